//! The Redfish emulator of OpenStack's sushy-tools, on a free port of this machine.

use std::{
    env, fs,
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How long it may take to listen; it is a Python program, and tests run beside it.
const START: Duration = Duration::from_secs(60);
/// How often a port that was free may have been taken meanwhile.
const TRIES: usize = 5;

/// An emulator that runs, and is ended with this.
#[derive(Debug)]
pub(crate) struct Emulator {
    child: Child,
    pub(crate) port: u16,
    /// Its state and output.
    folder: tempfile::TempDir,
}

/// A certificate and its key, in PEM.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Emulator {
    /// Starts one with two systems that are off, `left` (Id `aaaaaaaa-0000-4000-8000-000000000001`) and `right`, and the account
    /// `ada` with the password `secret!`; over TLS if it has an identity for that.
    pub(crate) fn start(identity: Option<&Identity>) -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST, 0, identity)
    }

    /// The same at this address and port; a free one for 0.
    pub(crate) fn start_at(host: Ipv4Addr, port: u16, identity: Option<&Identity>) -> Self {
        let program = tool("sushy-emulator");
        for _ in 0..TRIES {
            let folder = tempfile::tempdir().unwrap();
            let port = TcpListener::bind((host, port)).unwrap().local_addr().unwrap().port();
            let output = fs::File::create(folder.path().join("output")).unwrap();
            let child = Command::new(&program)
                .args(["--fake", "--interface", &host.to_string(), "--port", &port.to_string(), "--config"])
                .arg(configure(folder.path(), identity))
                .stdin(Stdio::null())
                .stdout(output.try_clone().unwrap())
                .stderr(output)
                .spawn()
                .unwrap_or_else(|error| panic!("running {}: {error}; run `cargo xtask setup`", program.display()));
            let mut emulator = Self { child, port, folder };
            if emulator.listens(SocketAddrV4::new(host, port)) {
                return emulator;
            }
            let said = fs::read_to_string(emulator.folder.path().join("output")).unwrap();
            assert!(said.contains("in use"), "the emulator ended at once: {said}");
        }
        panic!("no port stays free");
    }

    fn listens(&mut self, address: SocketAddrV4) -> bool {
        let begun = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            if TcpStream::connect(address).is_ok() {
                return true;
            }
            assert!(begun.elapsed() < START, "the emulator does not listen");
            thread::sleep(Duration::from_millis(50));
        }
        false
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes its configuration, which is a program in Python.
fn configure(folder: &Path, identity: Option<&Identity>) -> PathBuf {
    let path = |name: &str| folder.join(name).display().to_string();
    // Of the password, by bcrypt.
    fs::write(path("accounts"), "ada:$2b$04$fZrNvaBhNo93hhItYz6tr./rdxV2VkcoeTU0c1aRkUug9mmFCE.8i\n").unwrap();
    let mut text = format!(
        "SUSHY_EMULATOR_STATE_DIR = {state:?}\nSUSHY_EMULATOR_AUTH_FILE = {accounts:?}\nSUSHY_EMULATOR_FAKE_SYSTEMS = [\n",
        state = path(""),
        accounts = path("accounts"),
    );
    for (number, name) in [(1, "left"), (2, "right")] {
        text += &format!(
            "    {{'uuid': 'aaaaaaaa-0000-4000-8000-00000000000{number}', 'name': '{name}', 'power_state': 'Off', \
             'external_notifier': False, 'nics': []}},\n"
        );
    }
    text += "]\n";
    if let Some(identity) = identity {
        fs::write(path("certificate"), &identity.certificate).unwrap();
        fs::write(path("key"), &identity.key).unwrap();
        text += &format!(
            "SUSHY_EMULATOR_SSL_CERT = {:?}\nSUSHY_EMULATOR_SSL_KEY = {:?}\n",
            path("certificate"),
            path("key")
        );
    }
    let config = folder.join("config.py");
    fs::write(&config, text).unwrap();
    config
}

/// A program of the Python tools that `cargo xtask setup` installs.
fn tool(name: &str) -> PathBuf {
    let folder = env::var_os("ORRERY_PYTHON_TOOLS").map(PathBuf::from).unwrap_or_else(|| {
        let home = || Path::new(&env::var_os("HOME").expect("HOME is set")).join(".cache");
        let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).unwrap_or_else(home);
        cache.join("orrery/python-tools/bin")
    });
    let program = folder.join(name);
    assert!(program.exists(), "there is no {}; run `cargo xtask setup`", program.display());
    program
}
