//! net-snmp's agent, with objects that hold what is written to them.

use std::{
    fs,
    net::UdpSocket,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// How long it may take to start.
const START: Duration = Duration::from_secs(60);
/// How often it is asked whether it has.
const POLL: Duration = Duration::from_millis(50);

/// A running agent. It ends when this goes.
pub(crate) struct Snmpd {
    child: Child,
    address: String,
    folder: TempDir,
}

impl Snmpd {
    /// Starts one of this configuration, and waits until it answers.
    pub(crate) fn start(configuration: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("agent.conf"), configuration).unwrap();
        let address = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let child = run(folder.path(), &address);
        let mut agent = Self { child, address, folder };
        agent.wait();
        agent
    }

    /// Ends it and starts it again, at the same address.
    pub(crate) fn restart(&mut self) {
        self.end();
        self.child = run(self.folder.path(), &self.address);
        self.wait();
    }

    /// Where it listens: host and port.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    fn wait(&mut self) {
        let until = Instant::now() + START;
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(POLL)).unwrap();
        socket.connect(&self.address).unwrap();
        // An error means that nobody listens yet.
        while socket.send(super::DISCOVERY).and_then(|_| socket.recv(&mut [0; 512])).is_err() {
            if Instant::now() > until || self.child.try_wait().unwrap().is_some() {
                let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
                panic!("snmpd does not answer:\n{log}");
            }
            thread::sleep(POLL);
        }
    }

    fn end(&mut self) {
        // By a signal that lets it write down how often it started.
        if let Some(process) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            let _ = rustix::process::kill_process(process, rustix::process::Signal::TERM);
        }
        let until = Instant::now() + START;
        while self.child.try_wait().unwrap().is_none() && Instant::now() < until {
            thread::sleep(POLL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Snmpd {
    fn drop(&mut self) {
        self.end();
    }
}

fn run(folder: &Path, address: &str) -> Child {
    let program = Path::new("/usr/sbin/snmpd");
    assert!(program.exists(), "{} is missing; run `cargo xtask setup`", program.display());
    let log = fs::File::create(folder.join("log")).unwrap();
    Command::new(program)
        .args(["-f", "-Lo", "-C", "-c"])
        .arg(folder.join("agent.conf"))
        .arg("-p")
        .arg(folder.join("pid"))
        .arg(format!("udp:{address}"))
        .env("SNMP_PERSISTENT_DIR", folder)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}
