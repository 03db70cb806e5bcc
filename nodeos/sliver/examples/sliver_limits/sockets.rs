//! Every way to hold many ports of the node, none of which takes them all, and its memory by connections that nobody accepts; and ports
//! that no sliver may hold.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead, BufReader, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    os::unix::{fs::MetadataExt, process::ExitStatusExt},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use orrery_protocol::{Extras, Rspec};
use orrery_sliver::{Session, SliverPaths, Slivers};

use super::{GROUP, Node};

/// What a sliver may have: sockets, and those of them that listen (`src/ports/mod.rs`).
const MOST: u32 = 4096;
const LISTENERS: u32 = 256;
/// What one that listens counts for in a network that a container has.
const IN_OTHER_NETWORKS: u32 = 8;
/// What one for pings counts for.
const PING: u32 = 64;
/// How long a queue of connections is (`src/node.rs`): the kernel takes one more.
const QUEUE: u32 = 512;
/// What the kernel takes for one connection, and more.
const CONNECTION_KIB: u64 = 5;

/// What all programs here know.
const WORDS: &str = "$any = pack_sockaddr_in(0, INADDR_ANY); sub at { pack_sockaddr_in($_[0], INADDR_LOOPBACK) } \
     sub tcp { socket($_[0], AF_INET, SOCK_STREAM, 0) } \
     sub server { $_[0] || tcp($_[0]) && setsockopt($_[0], SOL_SOCKET, SO_REUSEADDR, 1) \
     && bind($_[0], pack_sockaddr_in($_[1], INADDR_ANY)) && listen($_[0], 4096) } \
     sub parted { server($L, 8090) && tcp($c) && connect($c, at(8090)) && accept($_[0], $L) && close($c) \
     && connect($_[0], pack(q(Sx14), 0)) }";

/// Ways to take ports of the ephemeral range until that is refused, in Perl, and how many times each works: what it makes on the way
/// counts as well.
const WAYS: &[(&str, &str, u32)] = &[
    ("datagrams", "socket($s, AF_INET, SOCK_DGRAM, 0) && bind($s, $any)", MOST),
    (
        "of the sixth version",
        "socket($s, AF_INET6, SOCK_DGRAM, 0) && bind($s, pack_sockaddr_in6(0, inet_pton(AF_INET6, '::')))",
        MOST,
    ),
    // What waits in these is charged to nobody.
    ("for pings", "socket($s, AF_INET, SOCK_DGRAM, IPPROTO_ICMP)", MOST / PING),
    ("for pings of the sixth version", "socket($s, AF_INET6, SOCK_DGRAM, 58)", MOST / PING),
    ("bound", "tcp($s) && bind($s, $any)", MOST),
    ("listening, never bound", "tcp($s) && listen($s, 1)", LISTENERS),
    ("listening, of the sixth version", "socket($s, AF_INET6, SOCK_STREAM, 0) && listen($s, 1)", LISTENERS),
    // The port stays with the connection that was accepted; what listened for it, and who made it, are gone.
    (
        "accepted",
        "tcp($l) && bind($l, $any) && listen($l, 1) && tcp($c) && connect($c, getsockname($l)) && accept($s, $l)",
        MOST - 1,
    ),
    // Connections that nobody accepts count, and are over with what listened.
    (
        "never accepted",
        "tcp($s) && bind($s, $any) && (@s >= 100 || listen($s, 1) && tcp($c) && connect($c, getsockname($s)))",
        MOST - 100,
    ),
    // What was accepted at a port outside of the range, and is no connection any more, takes one of the range.
    ("accepted and bound", "parted($s) && bind($s, $any)", MOST - 1),
    (
        "accepted and connected",
        "server($M, 8091) && parted($s) && connect($s, at(8091)) && accept($m[@m], $M)",
        MOST - 2,
    ),
    ("accepted and listening", "parted($s) && listen($s, 1)", LISTENERS - 1),
    ("connected to itself", "tcp($s) && bind($s, $any) && connect($s, getsockname($s))", MOST),
];

/// Tries to take ports where there are as many sockets as may be, and where there is one more, since a connection was made to one that
/// listens in the range.
const FULL: &str = "sub tried { push @said, $_[0] ? q(yes) : $! == 23 ? q(no) : $! } \
     tcp($e) && bind($e, $any) && listen($e, 1) && tcp($k) && tcp($u) or die; parted($a[$_]) or die qq($!) for (0..2); \
     while (1) { my $s; socket($s, AF_INET, SOCK_DGRAM, 0) or last; push @s, $s } \
     tried(bind($a[0], $any)); tried(connect($a[1], at(8090))); tried(listen($a[2], 1)); \
     pop @s; tried(bind($a[0], $any)); tried(bind($a[1], $any)); \
     tried(connect($k, getsockname($e))); tried(bind($u, $any)); tried(connect($u, at(8090))); tried(listen($u, 1)); \
     close($e); tried(bind($u, $any)); tried(connect($u, at(8090))); print qq(@said)";
const TRIED: &str = "no no no yes no yes no no no yes yes";

/// Tries to have ports for datagrams: those of DHCP, and one that is nothing special; and one of DHCP's for connections.
const DHCP: &str = "sub four { my $s; socket($s, AF_INET, $_[1], 0) or die qq($!); \
     bind($s, pack_sockaddr_in($_[0], INADDR_ANY)) ? 0 : $! + 0 } \
     sub six { my $s; socket($s, AF_INET6, SOCK_DGRAM, 0) or die qq($!); \
     bind($s, pack_sockaddr_in6($_[0], inet_pton(AF_INET6, '::'))) ? 0 : $! + 0 } \
     for my $port (67, 68, 546, 547, 69) { push @said, four($port, SOCK_DGRAM), six($port) } \
     push @said, four(68, SOCK_STREAM); print qq(@said)";
/// The errors on the node's network (`EACCES`), and on one of a container's own.
const DHCP_SHARED: &str = "13 13 13 13 13 13 13 13 0 0 0";
const DHCP_OWN: &str = "0 0 0 0 0 0 0 0 0 0 0";

/// A server at a port outside of the range has as many connections as it likes.
const SERVED: u32 = MOST + 500;
const SERVER: &str = "server($l, 8080) or die; for (1..SERVED) { my ($s, $c); tcp($c) && connect($c, at(8080)) or last; \
     accept($s, $l) or last; push @s, $s } print scalar(@s), qq( $!\n)";

/// Makes connections to itself that it never accepts, and closes its ends, until that works no more; then makes one to a neighbour, and
/// hears of it. Each is to an address of its own, or the kernel would give one the port of another that was closed, and end what was
/// not accepted.
const FLOOD: &str = "for $port (9000, 9001) { server($l[$port], $port) or die; while (1) { tcp(my $c) or last; \
     setsockopt($c, SOL_SOCKET, SO_SNDTIMEO, pack(q(qq), 2, 0)); \
     connect($c, pack_sockaddr_in($port, pack(q(C4), 127, 1, $n >> 8, $n & 255))) or last; $n++ } } \
     print qq($$ $n $!); tcp(my $c); connect($c, at(8081)) or die; print q(, ), scalar(<$c>); sleep 1000";
/// A server that says something to who connects.
const GREETER: &str =
    "server($l, 8081) or die; print qq($$ listens\n); while (accept(my $s, $l)) { syswrite($s, qq(served\n)) }";
/// Makes connections to itself, and resets them before they are accepted, as long as there is room in a queue.
const RESETS: &str = "server($l, 8083) or die; while (1) { tcp(my $c) or last; \
     setsockopt($c, SOL_SOCKET, SO_SNDTIMEO, pack(q(qq), 2, 0)); setsockopt($c, SOL_SOCKET, SO_LINGER, pack(q(ii), 1, 0)); \
     connect($c, at(8083)) or last; $n++ } print qq($n $!)";
/// Listens as often as that is allowed.
const LISTENING: &str = "while (1) { my $l; tcp($l) && listen($l, 1) or last; push @l, $l } print scalar(@l), qq( $!)";

/// Sends as much as comes through before anybody accepts, closes its ends, and accepts nothing.
const UNREAD: &str = "server($l, 8086) or die; for (1..500) { my $c; tcp($c) && connect($c, at(8086)) or die qq(connecting: $!); \
     my $w = syswrite($c, q(x) x 32768); $w == 32768 or die qq(wrote $w: $!) } print qq($$ sent\n); sleep 1000";
const UNREAD_BYTES: u64 = 500 * 32_768;
/// Has ever more connections to itself, all full of what nobody reads.
const FILLED: &str = "server($l, 8087) or die; print qq($$ fills\n); while (1) { my ($s, $c); tcp($c) && connect($c, at(8087)) && accept($s, $l) \
     or die; push @s, $s, $c; $c->blocking(0); 1 while syswrite($c, q(x) x 65536) }";
/// Has ever more sockets, all full of datagrams that nobody reads.
const DATAGRAMS: &str = "print qq($$ fills\n); while (1) { my $s; socket($s, AF_INET, SOCK_DGRAM, 0) && bind($s, at(0)) && connect($s, getsockname($s)) \
     or die; push @s, $s; syswrite($s, q(x) x 32000) or die for (1..6) }";
/// What the node sends itself meanwhile, and how long it may wait for any of it.
const SENT_BYTES: usize = 8 << 20;
const SENT_DATAGRAMS: usize = 64;
const STALLED: Duration = Duration::from_secs(20);

/// How many programs a node manager has in the kernel.
const PROGRAMS: u32 = 7;
/// What is counted of a sliver: sockets, those that listen, and those that count only as long as a connection.
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
            $counts{unpack("Q", $key)} = join(" ", unpack("LSS", $value)) if bpf(1) == 0;
        }
    }
    print "$programs\n", map { "$_ $counts{$_}\n" } sort { $a <=> $b } keys %counts"#;

pub(crate) fn sockets(node: &Node) -> Result<()> {
    let [hog, calm] = [node.start("ports", Rspec::default())?, node.start("portless", Rspec::default())?];
    let extras = Extras { nesting: true, ..Extras::default() };
    let nesting = node.start("nesting", Rspec { extras, ..Rspec::default() })?;
    for (login, program, expect) in [
        (&hog, perl(DHCP), DHCP_SHARED),
        (&nesting, perl(DHCP), DHCP_SHARED),
        (&nesting, in_a_network(&perl(DHCP)), DHCP_OWN),
    ] {
        let said = node.said(login, &program)?;
        ensure!(said == expect, "at the ports of DHCP, in {login}: {said} instead of {expect}");
    }
    for (name, way, most) in WAYS {
        // What is not counted any more the second time, was not forgotten.
        for round in ["first", "second"] {
            let taken = Taken::by(node, &hog, way)?;
            taken.are(*most).with_context(|| format!("{name}, {round} time"))?;
            others_connect(node, &calm).with_context(|| format!("{name}, {round} time"))?;
            taken.end(node, &hog)?;
        }
    }
    let tried = node.said(&hog, &perl(FULL))?;
    ensure!(tried == TRIED, "with all sockets that it may have: {tried}");
    let served = node.said(&hog, &perl(&SERVER.replace("SERVED", &SERVED.to_string())))?;
    ensure!(served.split(' ').next() == Some(&SERVED.to_string()), "a server's connections: {served}");
    backlog(node, [&hog, &calm, &nesting])?;
    node.slivers.stop(&nesting)?;
    buffers(node, &hog)?;
    shared(node, &hog, &calm)
}

/// Connections that nobody accepts have a bound, which is nobody else's, and end with what listened.
fn backlog(node: &Node, [hog, calm, nesting]: [&str; 3]) -> Result<()> {
    let greeter = Taken::running(node, calm, GREETER)?;
    let before = unreclaimable()?;
    let flood = Taken::running(node, hog, FLOOD)?;
    let grown = unreclaimable()?.saturating_sub(before);
    let connections = 2 * (QUEUE + 1);
    println!("    {connections} connections that nobody accepts take {grown} KiB");
    let expect = format!("{connections} Operation now in progress, served");
    ensure!(flood.says == expect, "a sliver that accepts nothing says {:?} instead of {expect:?}", flood.says);
    ensure!(grown < u64::from(connections) * CONNECTION_KIB, "the kernel took {grown} KiB");
    ensure!(io::read_to_string(TcpStream::connect("127.0.0.1:8081")?)? == "served\n", "a neighbour does not serve");
    // The flood still has its own connection to the neighbour.
    counted(node, PROGRAMS, &[(hog, [3, 2, 0]), (calm, [1, 1, 0])])?;
    flood.end(node, hog)?;
    greeter.end(node, calm)?;

    // Those that were reset stay until they are accepted or their socket is closed.
    let resets = node.said(hog, &perl(RESETS))?;
    ensure!(resets == format!("{} Operation now in progress", QUEUE + 1), "a queue took {resets}");

    // Queues are longer in a network of one's own.
    for (program, most) in
        [(perl(LISTENING), LISTENERS), (in_a_network(&perl(LISTENING)), LISTENERS / IN_OTHER_NETWORKS)]
    {
        let listening = node.said(nesting, &program)?;
        ensure!(listening == format!("{most} Too many open files in system"), "listening: {listening}");
    }
    Ok(())
}

/// Who listens pays for what comes, and ends at its own limit before others' connections suffer.
fn buffers(node: &Node, hog: &str) -> Result<()> {
    let held = || -> Result<u64> {
        let held = node.slivers.memory_held().into_iter().find(|held| held.login == hog);
        Ok(held.context("it does not run")?.bytes)
    };
    let before = held()?;
    let unread = Taken::running(node, hog, UNREAD)?;
    ensure!(unread.says == "sent", "{} {}", unread.process, unread.says);
    let grown = held()?.saturating_sub(before);
    println!("    {} KiB that nobody reads, {} KiB more held", UNREAD_BYTES >> 10, grown >> 10);
    ensure!(grown > UNREAD_BYTES, "the sliver pays for {grown} bytes");
    unread.end(node, hog)?;

    for (what, fills, sends) in
        [("transfers", FILLED, transfer as fn() -> _), ("bursts of datagrams", DATAGRAMS, burst)]
    {
        let filled = Taken::running(node, hog, fills)?;
        let mut sent = 0;
        let ended = loop {
            sends().with_context(|| format!("after {sent} {what} that went well"))?;
            sent += 1;
            if let Some(ended) = filled.session.try_wait()? {
                break ended;
            }
        };
        println!("    {sent} {what} while a sliver filled its memory with what nobody reads");
        ensure!(ended.signal() == Some(libc::SIGKILL), "it ended otherwise: {ended}");
        sends()?;
    }
    Ok(())
}

/// The node sends itself datagrams before it reads any, and all arrive.
fn burst() -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(STALLED))?;
    socket.connect(socket.local_addr()?)?;
    for _ in 0..SENT_DATAGRAMS {
        socket.send(&[7; 1024]).context("sending a datagram")?;
    }
    let mut datagram = [0; 2048];
    for received in 0..SENT_DATAGRAMS {
        socket.recv(&mut datagram).with_context(|| format!("{received} datagrams of {SENT_DATAGRAMS} arrived"))?;
    }
    Ok(())
}

/// The node sends itself something, all of which arrives.
fn transfer() -> Result<()> {
    let server = TcpListener::bind("127.0.0.1:0")?;
    let mut client = TcpStream::connect(server.local_addr()?)?;
    let (mut accepted, _) = server.accept()?;
    accepted.set_read_timeout(Some(STALLED))?;
    client.set_write_timeout(Some(STALLED))?;
    let received = thread::spawn(move || io::copy(&mut accepted, &mut io::sink()));
    client.write_all(&vec![7; SENT_BYTES]).context("sending")?;
    drop(client);
    let received = received.join().map_err(|_| anyhow!("receiving panicked"))?.context("receiving")?;
    ensure!(received == SENT_BYTES as u64, "{received} bytes arrived");
    Ok(())
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
            "while (1) {{ my ($s, $l, $c); {way} or last; push @s, $s }} \
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
    format!("ulimit -n 60000; exec perl -MSocket=:all -e '{WORDS} {}'", program.replace('\'', "\""))
}

/// In a network of its own.
fn in_a_network(script: &str) -> String {
    script.replace("exec perl", "exec unshare --map-root-user --net perl")
}

/// The node does, and a neighbour.
fn others_connect(node: &Node, calm: &str) -> Result<()> {
    UdpSocket::bind("0.0.0.0:0").context("a port for datagrams of the node")?;
    let server = TcpListener::bind("127.0.0.1:0").context("a port of the node")?;
    TcpStream::connect(server.local_addr()?).context("connecting on the node")?;
    let port = server.local_addr()?.port();
    let connect = format!("tcp($s) && connect($s, at({port})) or die qq($!)");
    node.said(calm, &perl(&connect)).map(drop)
}
