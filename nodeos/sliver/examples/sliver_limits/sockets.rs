//! Every way to hold many ports of the node, none of which takes them all.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
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
            $counts{unpack("Q", $key)} = unpack("q", $value) if bpf(1) == 0;
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
    shared(node, &hog, &calm)
}

/// Slivers have programs in common, and no counts: neither with each other, nor with who they were before they stopped, nor across a
/// restart of the node manager.
fn shared(node: &Node, hog: &str, calm: &str) -> Result<()> {
    let take = |node: &Node, login: &str| -> Result<Taken> {
        let taken = Taken::by(node, login, WAYS[0].1)?;
        taken.are(MOST)?;
        Ok(taken)
    };
    counted(node, 3, &[(hog, 0), (calm, 0)])?;
    let (lost, calms) = (take(node, hog)?, take(node, calm).context("beside another that has as many")?);
    node.slivers.stop(hog)?;
    lost.session.wait()?;
    node.slivers.start(hog)?;
    let hogs = take(node, hog).context("started again")?;
    counted(node, 3, &[(hog, MOST), (calm, MOST)])?;

    // The next node manager finds both running.
    let next = Node { slivers: Slivers::open(SliverPaths::default())?, image: node.image.clone() };
    let late = next.start("late", Rspec::default())?;
    let lates = take(&next, &late).context("under the next node manager")?;
    counted(node, 6, &[(hog, MOST), (calm, MOST), (&late, MOST)])?;
    hogs.end(&next, hog)?;
    let hogs = take(&next, hog).context("started by the last node manager")?;
    next.slivers.stop(calm)?;
    calms.session.wait()?;
    next.slivers.start(calm)?;
    let calms = take(&next, calm).context("started again, by the next node manager")?;
    counted(node, 6, &[(hog, MOST), (calm, MOST), (&late, MOST)])?;
    for (login, taken) in [(hog, hogs), (calm, calms), (&late, lates)] {
        taken.end(&next, login)?;
    }
    counted(node, 6, &[(hog, 0), (calm, 0), (&late, 0)])?;

    // Nothing is left of slivers that were stopped, nor of a node manager.
    for _ in 0..STARTS {
        next.slivers.stop(calm)?;
        next.slivers.start(calm)?;
    }
    [hog, calm, &late].into_iter().try_for_each(|login| next.slivers.stop(login))?;
    drop(next);
    counted(node, 3, &[]).with_context(|| format!("after {STARTS} starts"))
}

/// Waits until the kernel has this many programs for slivers, and counts this many sockets of each sliver, none of others that run, and
/// keeps no other count: it lets go of them a while after a group or a program.
fn counted(node: &Node, programs: u32, sockets: &[(&str, u32)]) -> Result<()> {
    let mut expected = BTreeMap::new();
    for login in node.slivers.running() {
        let sockets = sockets.iter().find(|(counted, _)| **counted == *login).map_or(0, |(_, sockets)| *sockets);
        expected.insert(fs::metadata(format!("{GROUP}/{login}"))?.ino(), sockets);
    }
    let groups: Vec<_> = expected.iter().map(|(group, sockets)| format!("{group} {sockets}")).collect();
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

/// A program that holds ports.
struct Taken {
    session: Session,
    process: String,
    says: String,
}

impl Taken {
    fn by(node: &Node, login: &str, way: &str) -> Result<Self> {
        let program = format!(
            "$| = 1; $any = pack_sockaddr_in(0, INADDR_ANY); while (1) {{ my ($s, $l, $c); {way} or last; push @s, $s }} \
             print qq($$ ), scalar(@s), qq( $!\n); sleep 1000"
        );
        let mut session = node.enter(login, &perl(&program))?;
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
