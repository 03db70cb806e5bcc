//! How long a login takes, beside OpenSSH's server, with OpenSSH's client over the loopback network.

use std::{
    fs,
    net::{Ipv4Addr, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use orrery_protocol::Rspec;
use serde_json::json;

use crate::{
    Node,
    figures::{tell, timed},
};

const GATE: u16 = 22;
const SSHD: u16 = 2222;
/// Keys and settings, in memory.
const FOLDER: &str = "/run/logins";
const KEY: &str = "/run/logins/key";
/// How long a server may take until it listens.
const STARTING: Duration = Duration::from_secs(30);
/// What client and server would agree on is one thing, how fast they are with the same is another.
const ALGORITHMS: [(&str, &[&str]); 2] = [
    ("as negotiated", &[]),
    ("curve25519, chacha20", &["-oKexAlgorithms=curve25519-sha256", "-oCiphers=chacha20-poly1305@openssh.com"]),
];

/// Logs in once each in every round, and runs `true`.
pub(crate) fn measure(node: &Node, rounds: usize) -> Result<()> {
    fs::create_dir_all(FOLDER)?;
    run("/usr/sbin/ip", &["link", "set", "lo", "up"])?;
    run("/usr/bin/ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", KEY])?;
    let key = fs::read_to_string(format!("{KEY}.pub"))?;
    let awake = node.create("bench/awake", Rspec::default())?;
    let asleep = node.create("bench/asleep", Rspec::default())?;
    node.slivers.start(&awake)?;
    let mut servers = [gate(&key, &["bench/awake", "bench/asleep"])?, sshd(&key)?];
    let mut times = vec![Vec::new(); 3 * ALGORITHMS.len()];
    // The first round finds nothing in memory, and does not count.
    for round in 0..=rounds {
        for (index, (_, options)) in ALGORITHMS.iter().enumerate() {
            node.slivers.stop(&asleep)?;
            let ways = [(&*awake, GATE), (&*asleep, GATE), ("root", SSHD)];
            for (way, (user, port)) in ways.into_iter().enumerate() {
                let time = timed(|| login(user, port, options))?;
                if round > 0 {
                    times[3 * index + way].push(time);
                }
            }
        }
    }
    for (index, (algorithms, _)) in ALGORITHMS.iter().enumerate() {
        let what = format!("login, {algorithms}");
        for (way, who) in ["slivers", "a stopped one", "OpenSSH"].into_iter().enumerate() {
            tell(&what, who, "ms", &times[3 * index + way]);
        }
    }
    for server in &mut servers {
        server.kill()?;
        server.wait()?;
    }
    [awake, asleep].iter().try_for_each(|login| Ok(node.slivers.destroy(login)?))
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("starting {program}"))?;
    ensure!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn login(user: &str, port: u16, options: &[&str]) -> Result<()> {
    let (port, to) = (port.to_string(), format!("{user}@127.0.0.1"));
    let fixed = ["-F", "none", "-oBatchMode=yes", "-oStrictHostKeyChecking=no", "-oUserKnownHostsFile=/dev/null"];
    let arguments: Vec<&str> =
        fixed.iter().chain(options).copied().chain(["-i", KEY, "-p", &port, &to, "true"]).collect();
    run("/usr/bin/ssh", &arguments)
}

/// The node's own gate, told of these slivers as a node manager does.
fn gate(key: &str, slices: &[&str]) -> Result<Child> {
    fs::create_dir_all("/run/orrery")?;
    let config = json!({ "central": { "urls": [], "ca": "", "release_keys": [] } });
    fs::write("/run/orrery/node.json", config.to_string())?;
    let account = |slice: &&str| (slice.replace('/', "_"), json!({ "slice": slice, "keys": [key], "state": "ready" }));
    let accounts: serde_json::Map<_, _> = slices.iter().map(account).collect();
    fs::write("/run/orrery/accounts.json", json!({ "accounts": accounts }).to_string())?;
    serve(Command::new("/orrery-nodeos").arg("ssh-gate"), GATE)
}

fn sshd(key: &str) -> Result<Child> {
    run("/usr/bin/ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &format!("{FOLDER}/host")])?;
    fs::create_dir_all("/run/sshd")?;
    fs::write(format!("{FOLDER}/authorized"), key)?;
    let settings = format!(
        "Port {SSHD}\nListenAddress 127.0.0.1\nHostKey {FOLDER}/host\nAuthorizedKeysFile {FOLDER}/authorized\nUsePAM no\n\
         UseDNS no\nStrictModes no\nPermitRootLogin yes\nPidFile none\nMaxStartups 100\n"
    );
    let path = format!("{FOLDER}/sshd_config");
    fs::write(&path, settings)?;
    serve(Command::new("/usr/sbin/sshd").args(["-D", "-f", &path]), SSHD)
}

/// Runs a server until it listens.
fn serve(command: &mut Command, port: u16) -> Result<Child> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("starting a server")?;
    let start = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        ensure!(start.elapsed() < STARTING && child.try_wait()?.is_none(), "nobody listens on port {port}");
        thread::yield_now();
    }
    Ok(child)
}
