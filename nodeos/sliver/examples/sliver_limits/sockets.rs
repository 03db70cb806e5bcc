//! Every way to hold many ports of the node, none of which takes them all, and its memory by connections that nobody accepts.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead, BufReader},
    net::{TcpListener, TcpStream, UdpSocket},
    os::unix::fs::MetadataExt,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use orrery_protocol::Rspec;
use orrery_sliver::{Session, SliverPaths, Slivers};

use super::{GROUP, Node};

/// What a sliver may have (`src/ports/mod.rs`).
const MOST: u32 = 4096;

/// Ways to take ports of the ephemeral range until that is refused, in Perl, and how many times each works: what it makes on the way
/// counts as well.
const WAYS: &[(&str, &str, u32)] = &[
    ("datagrams", "socket($s, AF_INET, SOCK_DGRAM, 0) && bind($s, $any)", MOST),
    (
        "of the sixth version",
        "socket($s, AF_INET6, SOCK_DGRAM, 0) && bind($s, pack_sockaddr_in6(0, inet_pton(AF_INET6, '::')))",
        MOST,
    ),
    ("bound", "socket($s, AF_INET, SOCK_STREAM, 0) && bind($s, $any)", MOST),
    ("listening, never bound", "socket($s, AF_INET, SOCK_STREAM, 0) && listen($s, 1)", MOST),
    // The port stays with the connection that was accepted; what listened for it, and who made it, are gone.
    (
        "accepted",
        "socket($l, AF_INET, SOCK_STREAM, 0) && bind($l, $any) && listen($l, 1) && socket($c, AF_INET, SOCK_STREAM, 0) \
         && connect($c, getsockname($l)) && accept($s, $l)",
        MOST - 1,
    ),
    // Connections that nobody accepts count, and are over with what listened.
    (
        "never accepted",
        "socket($s, AF_INET, SOCK_STREAM, 0) && bind($s, $any) && (@s >= 100 || listen($s, 1) \
         && socket($c, AF_INET, SOCK_STREAM, 0) && connect($c, getsockname($s)))",
        MOST - 100,
    ),
];

/// A server at a port outside of the range has as many connections as it likes.
const SERVED: u32 = MOST + 500;
const SERVER: &str = "socket($l, AF_INET, SOCK_STREAM, 0); bind($l, pack_sockaddr_in(8080, INADDR_ANY)) or die; listen($l, 100); \
     for (1..SERVED) { my ($s, $c); socket($c, AF_INET, SOCK_STREAM, 0) && connect($c, pack_sockaddr_in(8080, INADDR_LOOPBACK)) or last; \
     accept($s, $l) or last; push @s, $s } print scalar(@s), qq( $!\n)";

/// How many connections that others made a sliver may have, and sockets that listen.
const CONNECTIONS: u32 = 16_384;
const LISTENERS: u32 = 128;
/// How long a queue of connections is (`src/node.rs`): the kernel takes one more.
const QUEUE: u32 = 512;
/// What the kernel takes for one connection, and more.
const CONNECTION_KIB: u64 = 5;

/// Makes connections to itself that it never accepts, and closes its ends, until that works no more, and tries some more; then makes
/// one to a neighbour, and hears of it. Each is to an address of its own, or the kernel would give one the port of another that was
/// closed, and end what was not accepted.
const FLOOD: &str = "sub at { pack_sockaddr_in($_[2], pack(q(C4), 127, $_[0], $_[1] >> 8, $_[1] & 255)) } \
     for my $i (0..32) { socket($l[$i], AF_INET, SOCK_STREAM, 0) && bind($l[$i], pack_sockaddr_in(9000 + $i, INADDR_ANY)) \
     && listen($l[$i], 512) or die } my $n = 0; while (1) { socket(my $c, AF_INET, SOCK_STREAM, 0) or last; \
     setsockopt($c, SOL_SOCKET, SO_SNDTIMEO, pack(q(qq), 2, 0)); connect($c, at(1, $n, 9000 + int($n / 500))) or last; $n++ } \
     print qq($$ $n $!); for (0..499) { socket($c[$_], AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0); \
     connect($c[$_], at(2, $_, 9000 + $_ % 33)) } select(undef, undef, undef, 1.5); \
     print q(, ), scalar(grep { getpeername($_) } @c); @c = (); socket(my $c, AF_INET, SOCK_STREAM, 0); \
     connect($c, pack_sockaddr_in(8081, INADDR_LOOPBACK)) or die; print q(, ), scalar(<$c>); sleep 1000";
/// A server that says something to who connects.
const GREETER: &str = "socket($l, AF_INET, SOCK_STREAM, 0); setsockopt($l, SOL_SOCKET, SO_REUSEADDR, 1); \
     bind($l, pack_sockaddr_in(8081, INADDR_ANY)) && listen($l, 100) or die; print qq($$ listens\n); \
     while (accept(my $s, $l)) { syswrite($s, qq(served\n)) }";
/// Makes connections to itself, and resets them before they are accepted, as long as there is room in a queue.
const RESETS: &str = "socket($l, AF_INET, SOCK_STREAM, 0); bind($l, pack_sockaddr_in(8083, INADDR_ANY)) && listen($l, 4096) or die; \
     my $n = 0; while (1) { socket(my $c, AF_INET, SOCK_STREAM, 0) or last; setsockopt($c, SOL_SOCKET, SO_SNDTIMEO, pack(q(qq), 2, 0)); \
     setsockopt($c, SOL_SOCKET, SO_LINGER, pack(q(ii), 1, 0)); connect($c, pack_sockaddr_in(8083, INADDR_LOOPBACK)) or last; $n++ } \
     print qq($n $!)";
/// Connects to a few more sockets that listen than may.
const LISTENING: &str = "for (1..132) { socket(my $l, AF_INET, SOCK_STREAM, 0) or die; listen($l, 1) or die; push @l, $l; \
     socket(my $c, AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0) or die; connect($c, getsockname($l)); push @c, $c } \
     select(undef, undef, undef, 1.5); print scalar(grep { getpeername($_) } @c)";

/// How many programs a node manager has in the kernel.
const PROGRAMS: u32 = 4;
/// What is counted of a sliver: sockets, connections, and sockets that listen.
type Counts = [u32; 3];
const NONE: Counts = [0; 3];
const ALL: Counts = [MOST, 0, 0];

/// How many times a sliver starts, none of which may leave anything behind.
const STARTS: u32 = 20;
/// How long the kernel may take to let go of what belonged to a sliver or a node manager, and how often is looked.
const RELEASE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(100);

/// How many programs there are in the kernel, and all values of maps of control groups, by the groups' numbers (bpf(2); Linux:
/// include/uapi/linux/bpf.h).
const COUNTS: &str = r#"
    my ($programs, $id, $attributes, %counts) = (0, 0);
    sub bpf { my $command = shift; syscall(321, $command, $attributes, length $attributes) }
    sub after { $attributes = pack("LLL", $_[1], 0, 0); bpf($_[0]) < 0 ? 0 : (unpack("LLL", $attributes))[1] }
    sub at { unpack("Q", pack("P", $_[0])) }
    $programs++ while $id = after(11, $id);
    while ($id = after(12, $id)) {
        $attributes = pack("LLL", $id, 0, 0);
        my $map = bpf(14);
        open(my $about, "<", "/proc/self/fdinfo/$map") or next;
        grep { /^map_type:\t19$/ } <$about> or next;
        my ($key, $value, $from) = ("\0" x 8, "\0" x 8, 0);
        while (1) {
            $attributes = pack("LLQQQ", $map, 0, $from, at($key), 0);
            last if bpf(4) < 0;
            $from = at($key);
            $attributes = pack("LLQQQ", $map, 0, $from, at($value), 0);
            $counts{unpack("Q", $key)} = join(" ", unpack("SSS", $value)) if bpf(1) == 0;
        }
    }
    print "$programs\n", map { "$_ $counts{$_}\n" } sort { $a <=> $b } keys %counts"#;

pub(crate) fn sockets(node: &Node) -> Result<()> {
    // The machine's first process gives the loopback interface its address so.
    fs::write("/sys/class/net/lo/flags", "0x1").context("starting the loopback interface")?;
    let [hog, calm] = [node.start("ports", Rspec::default())?, node.start("portless", Rspec::default())?];
    for (name, way, most) in WAYS {
        // What is not counted any more the second time, was not forgotten.
        for round in ["first", "second"] {
            let taken = Taken::by(node, &hog, way)?;
            taken.are(*most).with_context(|| format!("{name}, {round} time"))?;
            others_connect(node, &calm).with_context(|| format!("{name}, {round} time"))?;
            taken.end(node, &hog)?;
        }
    }
    let served = node.said(&hog, &perl(&SERVER.replace("SERVED", &SERVED.to_string())))?;
    ensure!(served.split(' ').next() == Some(&SERVED.to_string()), "a server's connections: {served}");
    backlog(node, &hog, &calm)?;
    shared(node, &hog, &calm)
}

/// Connections that nobody accepts have a bound, which is nobody else's, and ends with what listened.
fn backlog(node: &Node, hog: &str, calm: &str) -> Result<()> {
    let greeter = Taken::running(node, calm, GREETER)?;
    let before = unreclaimable()?;
    let flood = Taken::running(node, hog, FLOOD)?;
    let grown = unreclaimable()?.saturating_sub(before);
    println!("    {CONNECTIONS} connections that nobody accepts take {grown} KiB");
    let expect = format!("{CONNECTIONS} Operation now in progress, 0, served");
    ensure!(flood.says == expect, "a sliver that accepts nothing says {:?} instead of {expect:?}", flood.says);
    ensure!(grown < u64::from(CONNECTIONS) * CONNECTION_KIB, "the kernel took {grown} KiB");
    ensure!(io::read_to_string(TcpStream::connect("127.0.0.1:8081")?)? == "served\n", "a neighbour does not serve");
    // The flood still has its own connection to the neighbour.
    counted(node, PROGRAMS, &[(hog, [34, CONNECTIONS, 33]), (calm, [1, 0, 1])])?;
    flood.end(node, hog)?;
    counted(node, PROGRAMS, &[(hog, NONE), (calm, [1, 0, 1])])?;

    // Those that were reset do not count, and stay until they are accepted or their socket is closed.
    let resets = node.said(hog, &perl(RESETS))?;
    ensure!(resets == format!("{} Operation now in progress", QUEUE + 1), "a queue took {resets}");

    for family in ["AF_INET", "AF_INET6"] {
        let connected = node.said(hog, &perl(&LISTENING.replace("AF_INET", family)))?;
        ensure!(connected == LISTENERS.to_string(), "{connected} sockets of {family} that listen were connected to");
    }
    let again = Taken::running(node, hog, &GREETER.replace("8081", "8082"))?;
    ensure!(
        io::read_to_string(TcpStream::connect("127.0.0.1:8082")?)? == "served\n",
        "after the flood, it serves nobody"
    );
    again.end(node, hog)?;
    greeter.end(node, calm)
}

/// What the kernel's own objects take, in KiB, without what it would give back.
fn unreclaimable() -> Result<u64> {
    let memory = fs::read_to_string("/proc/meminfo")?;
    let line = memory.lines().find_map(|line| line.strip_prefix("SUnreclaim:")).context("no SUnreclaim")?;
    Ok(line.trim_end_matches("kB").trim().parse()?)
}

/// Slivers have programs in common, and no counts: neither with each other, nor with who they were before they stopped, nor across a
/// restart of the node manager.
fn shared(node: &Node, hog: &str, calm: &str) -> Result<()> {
    let take = |node: &Node, login: &str| -> Result<Taken> {
        let taken = Taken::by(node, login, WAYS[0].1)?;
        taken.are(MOST)?;
        Ok(taken)
    };
    counted(node, PROGRAMS, &[(hog, NONE), (calm, NONE)])?;
    let (lost, calms) = (take(node, hog)?, take(node, calm).context("beside another that has as many")?);
    node.slivers.stop(hog)?;
    lost.session.wait()?;
    node.slivers.start(hog)?;
    let hogs = take(node, hog).context("started again")?;
    counted(node, PROGRAMS, &[(hog, ALL), (calm, ALL)])?;

    // The next node manager finds both running.
    let next = Node { slivers: Slivers::open(SliverPaths::default())?, image: node.image.clone() };
    let late = next.start("late", Rspec::default())?;
    let lates = take(&next, &late).context("under the next node manager")?;
    counted(node, 2 * PROGRAMS, &[(hog, ALL), (calm, ALL), (&late, ALL)])?;
    hogs.end(&next, hog)?;
    let hogs = take(&next, hog).context("started by the last node manager")?;
    next.slivers.stop(calm)?;
    calms.session.wait()?;
    next.slivers.start(calm)?;
    let calms = take(&next, calm).context("started again, by the next node manager")?;
    counted(node, 2 * PROGRAMS, &[(hog, ALL), (calm, ALL), (&late, ALL)])?;
    for (login, taken) in [(hog, hogs), (calm, calms), (&late, lates)] {
        taken.end(&next, login)?;
    }
    counted(node, 2 * PROGRAMS, &[(hog, NONE), (calm, NONE), (&late, NONE)])?;

    // Nothing is left of slivers that were stopped, nor of a node manager.
    for _ in 0..STARTS {
        next.slivers.stop(calm)?;
        next.slivers.start(calm)?;
    }
    [hog, calm, &late].into_iter().try_for_each(|login| next.slivers.stop(login))?;
    drop(next);
    counted(node, PROGRAMS, &[]).with_context(|| format!("after {STARTS} starts"))
}

/// Waits until the kernel has this many programs for slivers, and counts this much of each sliver, nothing of others that run, and
/// keeps no other count: it lets go of them a while after a group or a program.
fn counted(node: &Node, programs: u32, counts: &[(&str, Counts)]) -> Result<()> {
    let mut expected = BTreeMap::new();
    for login in node.slivers.running() {
        let counts = counts.iter().find(|(counted, _)| **counted == *login).map_or(NONE, |(_, counts)| *counts);
        let counts = counts.map(|count| count.to_string()).join(" ");
        expected.insert(fs::metadata(format!("{GROUP}/{login}"))?.ino(), counts);
    }
    let groups: Vec<_> = expected.iter().map(|(group, counts)| format!("{group} {counts}")).collect();
    let expected = [&[programs.to_string()], groups.as_slice()].concat().join("\n");

    // The image's perl, as the node's root.
    let tree = SliverPaths::default().trees.join(&node.image);
    let libraries = tree.join("usr/lib/x86_64-linux-gnu");
    let deadline = Instant::now() + RELEASE;
    loop {
        let mut perl = Command::new(libraries.join("ld-linux-x86-64.so.2"));
        perl.arg("--library-path").arg(&libraries).arg(tree.join("usr/bin/perl")).args(["-e", COUNTS]);
        let output = perl.output().context("executing perl")?;
        let counts = String::from_utf8_lossy(&output.stdout);
        if counts.trim() == expected {
            return Ok(());
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(Instant::now() < deadline, "the kernel has {counts:?} {errors} instead of {expected:?}");
        thread::sleep(LOOK);
    }
}

/// A program that holds ports, whose first line is its process and what it says.
struct Taken {
    session: Session,
    process: String,
    says: String,
}

impl Taken {
    fn by(node: &Node, login: &str, way: &str) -> Result<Self> {
        let program = format!(
            "$any = pack_sockaddr_in(0, INADDR_ANY); while (1) {{ my ($s, $l, $c); {way} or last; push @s, $s }} \
             print qq($$ ), scalar(@s), qq( $!\n); sleep 1000"
        );
        Self::running(node, login, &program)
    }

    fn running(node: &Node, login: &str, program: &str) -> Result<Self> {
        let mut session = node.enter(login, &perl(&format!("$| = 1; {program}")))?;
        let mut line = String::new();
        BufReader::new(session.stdout.take().context("no output")?).read_line(&mut line)?;
        let (process, says) = line.trim().split_once(' ').with_context(|| format!("a program said {line:?}"))?;
        Ok(Self { session, process: process.to_owned(), says: says.to_owned() })
    }

    fn are(&self, sockets: u32) -> Result<()> {
        let expect = format!("{sockets} Too many open files in system");
        ensure!(self.says == expect, "{} instead of {expect}", self.says);
        Ok(())
    }

    /// Ends the program, and its sockets with it.
    fn end(self, node: &Node, login: &str) -> Result<()> {
        let process = &self.process;
        node.said(login, &format!("kill {process}; while kill -0 {process} 2>/dev/null; do sleep 0.1; done"))?;
        self.session.wait()?;
        Ok(())
    }
}

fn perl(program: &str) -> String {
    format!("ulimit -n 60000; exec perl -MSocket=:all -e '{}'", program.replace('\'', "\""))
}

/// The node does, and a neighbour.
fn others_connect(node: &Node, calm: &str) -> Result<()> {
    UdpSocket::bind("0.0.0.0:0").context("a port for datagrams of the node")?;
    let server = TcpListener::bind("127.0.0.1:0").context("a port of the node")?;
    TcpStream::connect(server.local_addr()?).context("connecting on the node")?;
    let port = server.local_addr()?.port();
    let connect = format!(
        "socket($s, AF_INET, SOCK_STREAM, 0) && connect($s, pack_sockaddr_in({port}, INADDR_LOOPBACK)) or die qq($!)"
    );
    node.said(calm, &perl(&connect)).map(drop)
}
