//! Every way to hold many ports of the node, none of which takes them all.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{TcpListener, TcpStream, UdpSocket},
};

use anyhow::{Context, Result, ensure};
use orrery_protocol::Rspec;
use orrery_sliver::Session;

use super::Node;

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

pub(crate) fn sockets(node: &Node) -> Result<()> {
    // The machine's first process gives the loopback interface its address so.
    fs::write("/sys/class/net/lo/flags", "0x1").context("starting the loopback interface")?;
    let [hog, calm] = [node.start("ports", Rspec::default())?, node.start("portless", Rspec::default())?];
    for (name, way, most) in WAYS {
        // What is not counted any more the second time, was not forgotten.
        for round in ["first", "second"] {
            let taken = Taken::by(node, &hog, way)?;
            let expect = format!("{most} Too many open files in system");
            ensure!(taken.says == expect, "{name}, {round} time: {} instead of {expect}", taken.says);
            others_connect(node, &calm).with_context(|| format!("{name}, {round} time"))?;
            taken.end(node, &hog)?;
        }
    }
    let served = node.said(&hog, &perl(&SERVER.replace("SERVED", &SERVED.to_string())))?;
    ensure!(served.split(' ').next() == Some(&SERVED.to_string()), "a server's connections: {served}");
    for login in [hog, calm] {
        node.slivers.stop(&login)?;
    }
    Ok(())
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
