//! snmpsim, an SNMP agent of data files.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    net::UdpSocket,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// How long it may take to start.
const START: Duration = Duration::from_secs(60);
/// How often it is asked whether it has.
const POLL: Duration = Duration::from_millis(50);
/// An agent of the simulator: a folder of data files, and for version 3 a user.
#[derive(Default)]
pub(crate) struct Agent {
    /// Community, or context of version 3, and data file. The context without a name cannot be had from the simulator.
    pub(crate) data: Vec<(&'static str, &'static str)>,
    /// Name, `--v3-auth-proto`, its key, `--v3-priv-proto`, its key; no protocol for none.
    pub(crate) user: Option<[&'static str; 5]>,
    /// Host and port; a free one of 127.0.0.1 without.
    pub(crate) at: Option<&'static str>,
}

/// What every agent with version 3 answers: a question for its engine (RFC 3414, section 4).
pub(crate) const DISCOVERY: &[u8] = b"\x30\x39\x02\x01\x03\x30\x0e\x02\x01\x01\x02\x03\x00\xff\xe3\x04\x01\x04\x02\x01\x03\x04\x10\x30\x0e\
    \x04\x00\x02\x01\x00\x02\x01\x00\x04\x00\x04\x00\x04\x00\x30\x12\x04\x00\x04\x00\xa0\x0c\x02\x02\x01\x01\x02\x01\x00\x02\x01\x00\x30\x00";

/// A running simulator. It ends when this goes.
pub(crate) struct Simulator {
    child: Child,
    addresses: Vec<String>,
    _folder: TempDir,
}

impl Simulator {
    /// Starts one, and waits until it listens.
    pub(crate) fn start(agents: &[Agent]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/snmp");
        let place = |name: &str| {
            let place = folder.path().join(name);
            fs::create_dir(&place).unwrap();
            place
        };
        let (modules, cache) = (place("modules"), place("cache"));
        fs::copy(data.join("outlets.py"), modules.join("outlets.py")).unwrap();
        let mut command = Command::new(program("snmpsim-command-responder"));
        command.arg("--logging-method=stderr");
        command.arg(format!("--variation-modules-dir={}", modules.display()));
        command.arg(format!("--cache-dir={}", cache.display()));
        if rustix::process::getuid().is_root() {
            command.args(["--process-user=root", "--process-group=root"]);
        }
        let mut addresses = Vec::new();
        for (number, agent) in agents.iter().enumerate() {
            let own = place(&format!("agent{number}"));
            for (community, file) in &agent.data {
                fs::copy(data.join(file), own.join(format!("{community}.snmprec"))).unwrap();
            }
            let at = agent.at.unwrap_or("127.0.0.1:0");
            let address = UdpSocket::bind(at).unwrap().local_addr().unwrap().to_string();
            command.args(["--v3-engine-id=auto", &format!("--data-dir={}", own.display())]);
            command.arg(format!("--agent-udpv4-endpoint={address}"));
            if let Some([name, auth, auth_key, privacy, privacy_key]) = agent.user {
                command.arg(format!("--v3-user={name}")).args(["--v3-auth-proto", auth, "--v3-auth-key", auth_key]);
                if !privacy.is_empty() {
                    command.args(["--v3-priv-proto", privacy, "--v3-priv-key", privacy_key]);
                }
            }
            addresses.push(address);
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut simulator = Self { child, addresses, _folder: folder };
        simulator.wait(lines);
        simulator
    }

    /// Where an agent listens: host and port.
    pub(crate) fn address(&self, agent: usize) -> &str {
        &self.addresses[agent]
    }

    /// It says that it listens before it does; that it answers is what counts.
    fn wait(&mut self, lines: impl Iterator<Item = std::io::Result<String>> + Send + 'static) {
        let (send, said) = mpsc::channel();
        // It reads to the end, so that the simulator never waits for us.
        thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(send.send(line))));
        let until = Instant::now() + START;
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(POLL)).unwrap();
        for address in self.addresses.clone() {
            socket.connect(&address).unwrap();
            // An error means that nobody listens yet.
            while socket.send(DISCOVERY).and_then(|_| socket.recv(&mut [0; 512])).is_err() {
                if Instant::now() > until || self.child.try_wait().unwrap().is_some() {
                    panic!("snmpsim does not answer:\n{}", said.try_iter().collect::<Vec<_>>().join("\n"));
                }
                thread::sleep(POLL);
            }
        }
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program(name: &str) -> PathBuf {
    let cache = || env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cache")));
    let folder = env::var_os("ORRERY_PYTHON_TOOLS").map(PathBuf::from);
    let folder = folder.or_else(|| Some(cache()?.join("orrery/python-tools/bin"))).expect("there is a home");
    let path = folder.join(name);
    assert!(path.exists(), "{} is missing; run `cargo xtask setup`", path.display());
    path
}
