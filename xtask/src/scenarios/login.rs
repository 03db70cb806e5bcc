//! What the stock OpenSSH client does in a sliver beyond commands: forwarding both ways, the agent, keys that change; and what
//! the operator's command does through it.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use orrery_qemu::{
    Terminal, WindowSize, free_port,
    ssh::{Output, Ssh, generate_key},
};
use serde_json::Value;

use super::{Bench, EARLY, SLIVER, installed};
use crate::{
    command::output,
    lab::{Lab, Node, NodeOptions},
};

/// One command in a sliver, on an emulated processor.
const COMMAND: Duration = Duration::from_secs(120);
/// In which a change of keys at central has to be in force.
const KEYS: Duration = Duration::from_secs(60);

pub(super) fn login(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let (node, _vm) = installed(&lab, "n1", NodeOptions::default())?;
    lab.add_slice("demo/hello", &["n1"], &[])?;
    let first = node.run_when_ready(&lab, "demo_hello", "id -u", SLIVER)?;
    ensure!(first.stdout == "0\n", "no root shell in the sliver: {first}");
    let ssh = node.ssh("demo_hello");
    recorded(&lab, &node)?;
    by_central(&lab, &node)?;
    to_a_target(&ssh)?;
    from_a_listener(&ssh)?;
    agent(&ssh, &lab.folder.join("agent"))?;

    // Another key, and not the old one.
    let key = lab.folder.join("other_ed25519");
    generate_key(&key).context("making another ssh key")?;
    let public = key.with_extension("pub").display().to_string();
    lab.orrery(["slice", "set", "demo/hello", "--key", &public], [] as [&str; 0])?;
    let other = Ssh { key, ..ssh.clone() };
    node.wait_for(KEYS, "login by the new key", || Ok(run(&other, &[], "true")?.success()))?;
    ensure!(run(&ssh, &[], "true")?.status.code() == Some(255), "the key that was taken away still opens the sliver");
    Ok(())
}

/// The node's log at central says whose slice was logged into, and by which key.
fn recorded(lab: &Lab, node: &Node) -> Result<()> {
    let told = output(Command::new("ssh-keygen").arg("-lf").arg(lab.user_key().with_extension("pub")))?;
    let key = told.split_whitespace().find(|word| word.starts_with("SHA256:")).context("ssh-keygen tells no key")?;
    node.wait_for(EARLY, "login in the node's log", || {
        let log = output(lab.operator_command().args(["node", "log", "n1"]))?;
        let login = |line: &str| ["logged in", "demo_hello", key].iter().all(|word| line.contains(word));
        Ok(log.lines().any(login))
    })
}

/// `orrery slice exec`, `shell` and `cp`, which know the node's host key before anybody has logged in.
fn by_central(lab: &Lab, node: &Node) -> Result<()> {
    let slice = |verb: &[&str], rest: &[&str]| {
        let mut command = lab.operator_command();
        command.arg("slice").args(verb).args(["demo/hello", "--address", &format!("127.0.0.1:{}", node.ssh_port)]);
        command.arg("-i").arg(lab.user_key()).args(rest);
        command
    };
    let said = output(&mut slice(&["exec", "--node", "n1"], &["echo $ORRERY_SLICE; hostname"]))?;
    ensure!(said == "demo/hello\ndemo-hello\n", "orrery slice exec: {said:?}");
    let said = output(&mut slice(&["exec", "--json"], &["printf", "%s", "a b"]))?;
    let said: Value = serde_json::from_str(&said).context("reading what orrery slice exec --json printed")?;
    ensure!(said[0]["stdout"] == "a b" && said[0]["status"] == 0, "orrery slice exec --json: {said}");
    let ended = slice(&["exec"], &["exit 3"]).status().context("running orrery")?;
    ensure!(ended.code() == Some(3), "orrery slice exec does not pass the status on: {ended}");
    let mut shell = Terminal::start(slice(&["shell"], &[]), WindowSize { rows: 33, columns: 101 })?;
    // No expectation is in what is typed, which is echoed.
    shell.send("stty size; echo in-${ORRERY_SLICE}-as-$(id -u)\n")?;
    shell.console().expect("33 101", COMMAND).context("waiting for the terminal's size in orrery slice shell")?;
    shell.console().expect("in-demo/hello-as-0", COMMAND).context("waiting for the shell's words")?;
    shell.send("exit 9\n")?;
    let ended = shell.wait(COMMAND)?.context("orrery slice shell stays when the shell has ended")?;
    ensure!(ended.code() == Some(9), "orrery slice shell does not pass the status on: {ended}");
    let (there, back) = (lab.folder.join("there"), lab.folder.join("back"));
    let content: Vec<u8> = (0..300_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(&there, &content).context("writing a file to copy")?;
    output(&mut slice(&["cp"], &[&there.display().to_string(), "n1:/root/copy"]))?;
    output(&mut slice(&["cp"], &[":/root/copy", &back.display().to_string()]))?;
    ensure!(fs::read(&back).context("reading the copy")? == content, "the copy differs");
    Ok(())
}

fn run(ssh: &Ssh, options: &[&str], command: &str) -> Result<Output> {
    ssh.run_with_options(options, command, COMMAND).context("running the ssh client")
}

/// `-W`: the client's standard output is what a service inside the sliver says. The service says whose the other end of the
/// connection is: the sliver's, not the node's.
fn to_a_target(ssh: &Ssh) -> Result<()> {
    let service = r#"setsid perl -MIO::Socket::INET -e '
        my $l = IO::Socket::INET->new(Listen => 5, LocalAddr => "127.0.0.1", LocalPort => 8080, ReuseAddr => 1) or die $!;
        open(my $up, ">", "/tmp/up"); close $up;
        while (my $c = $l->accept) {
            my $port = sprintf(":%04X", $c->peerport);
            open(my $t, "<", "/proc/net/tcp");
            my ($uid) = map { (split)[7] } grep { (split)[1] =~ /$port$/ } <$t>;
            print $c "service for uid $uid\n"; close $c;
        }' > /dev/null 2>&1 < /dev/null & while ! test -e /tmp/up; do :; done"#;
    let started = run(ssh, &[], service)?;
    ensure!(started.success(), "starting a service in the sliver: {started}");
    let said = run(ssh, &["-W", "localhost:8080"], "")?;
    ensure!(said.stdout == "service for uid 0\n", "the service behind a forwarded connection: {said}");
    Ok(())
}

/// A program in the sliver connects to its own loopback, and ends at a service of the client's.
fn from_a_listener(ssh: &Ssh) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening")?;
    let here = listener.local_addr().context("listening")?.port();
    let serving = thread::spawn(move || listener.accept().and_then(|(mut stream, _)| stream.write_all(b"from afar\n")));
    let forward = format!("18080:127.0.0.1:{here}");
    let said = run(ssh, &["-o", "ExitOnForwardFailure=yes", "-R", &forward], "cat < /dev/tcp/127.0.0.1/18080")?;
    ensure!(said.stdout == "from afar\n", "through a listener in the sliver: {said}");
    serving.join().ok().context("the service panicked")?.context("serving")?;
    let taken = free_port().context("finding a free port")?;
    let wide = run(ssh, &["-o", "ExitOnForwardFailure=yes", "-R", &format!("*:{taken}:127.0.0.1:{here}")], "true")?;
    ensure!(!wide.success(), "a listener on every address was granted");
    Ok(())
}

/// OpenSSH's agent, ended with this.
struct Agent {
    process: Child,
    socket: PathBuf,
}

impl Agent {
    fn start(socket: PathBuf) -> Result<Self> {
        let process = Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::piped()).spawn();
        let mut agent = Self { process: process.context("starting ssh-agent")?, socket };
        // It tells of its socket once that is there.
        agent.process.stdout.take().context("no output")?.read_exact(&mut [0; 1]).context("waiting for ssh-agent")?;
        Ok(agent)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A program in the sliver asks the client's agent for its keys (draft-miller-ssh-agent, section 3.5).
fn agent(ssh: &Ssh, socket: &std::path::Path) -> Result<()> {
    let agent = Agent::start(socket.to_owned())?;
    let added = Command::new("ssh-add").arg("-q").arg(&ssh.key).env("SSH_AUTH_SOCK", &agent.socket).status();
    ensure!(added.context("running ssh-add")?.success(), "ssh-add failed");
    let ask = r#"perl -MIO::Socket::UNIX -e '
        my $s = IO::Socket::UNIX->new(Peer => $ENV{SSH_AUTH_SOCK}) or die "$ENV{SSH_AUTH_SOCK}: $!";
        print $s "\0\0\0\1\13"; $s->flush; read($s, my $a, 9);
        printf "%d %d\n", unpack("x4 C N", $a);'; echo $SSH_AUTH_SOCK"#;
    let there = format!("IdentityAgent={}", agent.socket.display());
    let said = run(ssh, &["-A", "-o", &there], ask)?;
    let mut lines = said.stdout.lines();
    ensure!(lines.next() == Some("12 1"), "the agent does not answer with its one key: {said}");
    let path = lines.next().context("no socket was named")?;
    let gone = format!("for i in $(seq 100); do test -e {path} || exit 0; sleep 0.1; done; exit 1");
    let gone = ssh.run(&gone, EARLY).context("running the ssh client")?;
    ensure!(gone.success(), "{path} stayed when its session had ended");
    let without = run(ssh, &[], "echo [$SSH_AUTH_SOCK]")?;
    ensure!(without.stdout == "[]\n", "an agent nobody asked for: {without}");
    Ok(())
}
