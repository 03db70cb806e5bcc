//! The stock OpenSSH client against a server on loopback. `cargo xtask setup` installs the client.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use orrery_sshd::{HostKey, KeyList, Limits, LocalShell, Login, Session, SessionRequest, parse_key, serve_blocking};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// What the server's own key is made from.
const HOST_SEED: [u8; 32] = [42; 32];

/// A server that admits user `tester` with the key in the folder, and a client's configuration for it.
struct Bench {
    folder: TempDir,
    port: u16,
}

impl Bench {
    fn start(limits: Limits) -> Self {
        Self::with(limits, |login| login)
    }

    fn with(limits: Limits, wrap: impl FnOnce(Arc<LocalShell>) -> Arc<dyn Login>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        // OpenSSH's key format is also this crate's.
        let key = HostKey::load_or_create(&path("id")).unwrap();
        HostKey::load_or_create(&path("stranger")).unwrap();
        let keys = vec![parse_key(&key.public_line()).unwrap()];
        let login = LocalShell::new(folder.path(), vec![("PLACE".to_owned(), "here".to_owned())]);
        let accounts = Arc::new(KeyList::new("tester", keys, wrap(login)));

        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let host_key = HostKey::from_seed(&HOST_SEED);
        fs::write(path("known_hosts"), format!("[127.0.0.1]:{port} {}\n", host_key.public_line())).unwrap();
        thread::spawn(move || serve_blocking(listener, host_key, accounts, limits));
        Self { folder, port }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn client(&self, user: &str, key: &str, options: &[&str], command: &str) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR"]);
        ssh.args(["-o", "StrictHostKeyChecking=yes", "-o", "IdentityAgent=none"]);
        ssh.arg("-o").arg(format!("UserKnownHostsFile={}", self.path("known_hosts").display()));
        ssh.arg("-i").arg(self.path(key)).args(["-p", &self.port.to_string()]);
        ssh.args(options).arg(format!("{user}@127.0.0.1")).arg("--").arg(command);
        ssh.stdin(Stdio::null());
        ssh
    }

    fn ssh(&self, command: &str) -> Command {
        self.client("tester", "id", &[], command)
    }

    /// Standard output and exit code of a command.
    fn check(&self, options: &[&str], command: &str, stdout: &str, code: i32) {
        let output = self.client("tester", "id", options, command).output().unwrap();
        assert_eq!(text(&output), (stdout.to_owned(), output.stderr.escape_ascii().to_string()), "{command}");
        assert_eq!(output.status.code(), Some(code), "{command}: {}", output.stderr.escape_ascii());
    }
}

fn text(output: &Output) -> (String, String) {
    (String::from_utf8_lossy(&output.stdout).into_owned(), output.stderr.escape_ascii().to_string())
}

/// A file of `mib` MiB without repetition, and its digest.
fn big_file(path: &Path, mib: usize) -> [u8; 32] {
    let mut file = File::create(path).unwrap();
    let mut hasher = Sha256::new();
    let mut state = 1_u64;
    let mut block = vec![0; 1 << 20];
    for _ in 0..mib {
        for word in block.chunks_exact_mut(8) {
            // A linear congruential generator: incompressible enough, and every block differs.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all(&block).unwrap();
        hasher.update(&block);
    }
    hasher.finalize().into()
}

fn digest(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

#[test]
fn commands_end_with_their_status() {
    let bench = Bench::start(Limits::default());
    bench.check(&[], "true", "", 0);
    bench.check(&[], "exit 3", "", 3);
    bench.check(&[], "echo $PLACE; cd / && pwd", "here\n/\n", 0);
    bench.check(&["-T"], "printf 'a b'", "a b", 0);
    // The client has no exit status for a signal.
    let output = bench.ssh("kill -TERM $$").output().unwrap();
    assert_eq!(output.status.code(), Some(255));
    let output = bench.ssh("echo out; echo err >&2; exit 1").output().unwrap();
    assert_eq!(text(&output), ("out\n".to_owned(), "err\\n".to_owned()));
    assert_eq!(output.status.code(), Some(1));
}

/// Starts the command `held` only once there is a word for it.
struct Held {
    shell: Arc<LocalShell>,
    word: Mutex<mpsc::Receiver<()>>,
}

impl Login for Held {
    fn spawn(&self, request: &SessionRequest) -> io::Result<Session> {
        if request.command == orrery_sshd::Command::Exec("echo held; cat".into()) {
            self.word.lock().unwrap().recv().map_err(io::Error::other)?;
        }
        self.shell.spawn(request)
    }
}

#[test]
fn a_session_slow_to_start_holds_up_no_other() {
    let (sender, word) = mpsc::channel();
    let bench = Bench::with(Limits::default(), |shell| Arc::new(Held { shell, word: Mutex::new(word) }));
    let mut held = bench.ssh("echo held; cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    held.stdin.take().unwrap().write_all(b"early").unwrap();
    bench.check(&[], "echo other", "other\n", 0);
    sender.send(()).unwrap();
    let output = held.wait_with_output().unwrap();
    assert_eq!(text(&output).0, "held\nearly");
}

#[test]
fn input_and_output_pass_unchanged() {
    let bench = Bench::start(Limits::default());
    let expect = big_file(&bench.path("big"), 8);

    let output = bench.ssh("cat").stdin(File::open(bench.path("big")).unwrap()).output().unwrap();
    assert_eq!(output.stdout.len(), 8 << 20);
    assert_eq!(digest(&output.stdout), expect, "through cat");

    let status = bench.ssh("cat > copy").stdin(File::open(bench.path("big")).unwrap()).status().unwrap();
    assert!(status.success());
    assert_eq!(digest(&fs::read(bench.path("copy")).unwrap()), expect, "into a file");

    let output = bench.ssh("cat big; cat big >&2").output().unwrap();
    assert_eq!((digest(&output.stdout), digest(&output.stderr)), (expect, expect), "on both outputs");

    // Input that nobody reads holds nothing up.
    let status = bench.ssh("exec <&-; exit 4").stdin(File::open(bench.path("big")).unwrap()).status().unwrap();
    assert_eq!(status.code(), Some(4));
}

#[test]
fn a_slow_reader_of_what_it_sends_stalls_nothing_for_good() {
    let bench = Bench::start(Limits::default());
    let expect = big_file(&bench.path("big"), 12);
    // Three bytes come back for each one sent, and none is taken until all are waiting: every buffer on the way fills.
    let mut ssh = bench.ssh("tee /dev/stderr | tee -a /dev/stderr");
    ssh.stdin(File::open(bench.path("big")).unwrap()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut ssh = ssh.spawn().unwrap();
    let (mut out, mut err) = (ssh.stdout.take().unwrap(), ssh.stderr.take().unwrap());
    let errors = thread::spawn(move || {
        let mut bytes = Vec::new();
        err.read_to_end(&mut bytes).unwrap();
        bytes.len()
    });
    let mut bytes = Vec::new();
    out.read_to_end(&mut bytes).unwrap();
    assert_eq!(digest(&bytes), expect);
    assert_eq!(errors.join().unwrap(), 2 * (12 << 20));
    assert!(ssh.wait().unwrap().success());
}

#[test]
fn a_terminal_has_the_clients_size_and_type() {
    let bench = Bench::start(Limits::default());
    let master = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).unwrap();
    rustix::pty::grantpt(&master).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let terminal =
        rustix::pty::ioctl_tiocgptpeer(&master, rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY)
            .unwrap();
    let size = rustix::termios::Winsize { ws_row: 33, ws_col: 101, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&master, size).unwrap();
    let mut modes = rustix::termios::tcgetattr(&terminal).unwrap();
    modes.special_codes[rustix::termios::SpecialCodeIndex::VERASE] = 8;
    modes.input_modes |= rustix::termios::InputModes::IUTF8;
    rustix::termios::tcsetattr(&terminal, rustix::termios::OptionalActions::Now, &modes).unwrap();
    let command = "stty size; echo $TERM; stty -a | grep -o ' erase = ^H\\| iutf8'; tty >/dev/null && exit 5";
    let mut ssh = bench.client("tester", "id", &["-tt"], command);
    let output = ssh.env("TERM", "vt220").stdin(terminal).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "33 101\r\nvt220\r\n erase = ^H\r\n iutf8\r\n");
    assert_eq!(output.status.code(), Some(5));
}

#[test]
fn a_terminal_is_given_up_when_its_shell_ends() {
    let bench = Bench::start(Limits::default());
    let status: ExitStatus = bench
        .client("tester", "id", &["-tt"], "trap '' HUP; sleep 1000 & exit 6")
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(6));
}

#[test]
fn a_key_from_a_seed_is_seen_by_the_client() {
    let bench = Bench::start(Limits::default());
    let scan = Command::new("ssh-keyscan").args(["-t", "ed25519", "-p", &bench.port.to_string(), "127.0.0.1"]).output();
    let line = String::from_utf8(scan.unwrap().stdout).unwrap();
    let expect = HostKey::from_seed(&HOST_SEED).public_line();
    assert_eq!(line.trim_end(), format!("[127.0.0.1]:{} {expect}", bench.port));
}

#[test]
fn strangers_are_refused() {
    let bench = Bench::start(Limits::default());
    let check = |user: &str, key: &str, welcome: bool| {
        let output = bench.client(user, key, &[], "true").output().unwrap();
        assert_eq!(output.status.success(), welcome, "{user} with {key}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(stderr.contains("Permission denied (publickey)"), !welcome, "{stderr}");
    };
    check("tester", "id", true);
    check("tester", "stranger", false);
    check("nobody", "id", false);
    check("root", "id", false);
}

#[test]
fn who_does_not_log_in_is_cut_off() {
    let bench = Bench::start(Limits { login_grace: Duration::from_millis(50), ..Limits::default() });
    let mut silent = TcpStream::connect((Ipv4Addr::LOCALHOST, bench.port)).unwrap();
    silent.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut greeting = Vec::new();
    // Ends only because the server ends it.
    silent.read_to_end(&mut greeting).unwrap();
    assert!(greeting.starts_with(b"SSH-2.0-Orrery"), "{}", greeting.escape_ascii());
}

#[test]
fn too_many_connections_are_turned_away() {
    let bench = Bench::start(Limits { connections_per_source: 1, ..Limits::default() });
    let mut first = TcpStream::connect((Ipv4Addr::LOCALHOST, bench.port)).unwrap();
    first.read_exact(&mut [0; 4]).unwrap();
    let mut second = TcpStream::connect((Ipv4Addr::LOCALHOST, bench.port)).unwrap();
    second.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(second.read(&mut [0; 4]).unwrap_or(0), 0);
}

#[test]
fn a_hung_up_client_takes_its_command_along() {
    let bench = Bench::start(Limits::default());
    // The command's exit is seen as the end of the pipe its trap holds open.
    let fifo = bench.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut ssh = bench.ssh("exec 9>fifo; echo up; exec sleep 1000").stdout(Stdio::piped()).spawn().unwrap();
    let mut held = File::open(&fifo).unwrap();
    let mut up = [0; 3];
    ssh.stdout.take().unwrap().read_exact(&mut up).unwrap();
    ssh.kill().unwrap();
    ssh.wait().unwrap();
    assert_eq!(held.read(&mut [0; 1]).unwrap(), 0);
}
