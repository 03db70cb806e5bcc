//! The stock OpenSSH client against a server on loopback. `cargo xtask setup` installs the client.

use std::{
    convert::Infallible,
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use orrery_sshd::{
    Accounts, HostKey, KeyList, Limits, LocalShell, Login, PublicKey, Session, SessionRequest, parse_key, serve,
    serve_blocking,
};
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
        Self::admitting(limits, |keys, shell| Arc::new(KeyList::new("tester", keys, wrap(shell))))
    }

    fn admitting(limits: Limits, accounts: impl FnOnce(Vec<PublicKey>, Arc<LocalShell>) -> Arc<dyn Accounts>) -> Self {
        Self::served(accounts, |listener, host_key, accounts| serve_blocking(listener, host_key, accounts, limits))
    }

    /// With so many threads for what may block.
    fn on_threads(
        limits: Limits,
        threads: usize,
        accounts: impl FnOnce(Vec<PublicKey>, Arc<LocalShell>) -> Arc<dyn Accounts>,
    ) -> Self {
        Self::served(accounts, move |listener, host_key, accounts| {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().max_blocking_threads(threads).build()?;
            runtime.block_on(serve(listener, host_key, accounts, limits))
        })
    }

    fn served(
        accounts: impl FnOnce(Vec<PublicKey>, Arc<LocalShell>) -> Arc<dyn Accounts>,
        serve: impl FnOnce(TcpListener, HostKey, Arc<dyn Accounts>) -> io::Result<Infallible> + Send + 'static,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["id", "stranger"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(path(name));
            assert!(keygen.stdin(Stdio::null()).status().unwrap().success());
        }
        let keys = vec![parse_key(fs::read_to_string(path("id.pub")).unwrap().trim()).unwrap()];
        let env = vec![("PLACE".to_owned(), "here".to_owned())];
        let login = Arc::new(LocalShell::new(folder.path(), env).sftp("/usr/lib/openssh/sftp-server"));
        let accounts = accounts(keys, login);

        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let host_key = HostKey::from_seed(&HOST_SEED);
        fs::write(path("known_hosts"), format!("[127.0.0.1]:{port} {}\n", host_key.public_line())).unwrap();
        thread::spawn(move || serve(listener, host_key, accounts));
        Self { folder, port }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What every client program of OpenSSH is told.
    fn options(&self, key: &str) -> Vec<String> {
        let mut options = vec!["-F".to_owned(), "none".to_owned()];
        let known_hosts = format!("UserKnownHostsFile={}", self.path("known_hosts").display());
        let fixed = ["BatchMode=yes", "IdentitiesOnly=yes", "StrictHostKeyChecking=yes", "IdentityAgent=none"];
        for option in fixed.iter().copied().chain([known_hosts.as_str(), &format!("Port={}", self.port)]) {
            options.extend(["-o".to_owned(), option.to_owned()]);
        }
        options.extend(["-i".to_owned(), self.path(key).display().to_string()]);
        options
    }

    /// `scp`, `sftp` or the like, as the user who is welcome.
    fn tool(&self, name: &str) -> Command {
        let mut tool = Command::new(name);
        tool.args(self.options("id")).stdin(Stdio::null());
        tool
    }

    fn client(&self, user: &str, key: &str, options: &[&str], command: &str) -> Command {
        let mut ssh = Command::new("ssh");
        // The first word on anything counts.
        ssh.args(options).args(self.options(key)).args(["-o", "LogLevel=ERROR"]);
        ssh.arg(format!("{user}@127.0.0.1")).arg("--").arg(command);
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
    // As a file's name may be.
    let output = bench.ssh("printf %s").arg(OsStr::from_bytes(b"'\xe4' | od -An -tx1")).output().unwrap();
    assert_eq!(text(&output).0, " e4\n");
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

/// Admits the list's user under any name. Sessions of `stuck` start only once there is a word for it.
struct Crowd {
    list: KeyList,
    stuck: Arc<dyn Login>,
}

impl Accounts for Crowd {
    fn authorize(&self, user: &str, key: &PublicKey) -> Option<Arc<dyn Login>> {
        let login = self.list.authorize("tester", key)?;
        Some(if user == "stuck" { self.stuck.clone() } else { login })
    }
}

#[test]
fn an_account_whose_sessions_do_not_start_holds_up_no_other() {
    let (sender, word) = mpsc::channel();
    // Fewer threads than the account would take.
    let limits = Limits { calls_per_account: 2, ..Limits::default() };
    let bench = Bench::on_threads(limits, 3, |keys, shell| {
        let stuck = Arc::new(Held { shell: shell.clone(), word: Mutex::new(word) });
        Arc::new(Crowd { list: KeyList::new("tester", keys, shell), stuck })
    });
    let held: Vec<_> = (0..6)
        .map(|_| bench.client("stuck", "id", &[], "echo held; cat").stdout(Stdio::piped()).spawn().unwrap())
        .collect();
    for _ in 0..3 {
        bench.check(&[], "echo other", "other\n", 0);
    }
    held.iter().for_each(|_| sender.send(()).unwrap());
    for ssh in held {
        assert_eq!(text(&ssh.wait_with_output().unwrap()).0, "held\n");
    }
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
fn what_nobody_reads_yet_waits_at_the_client() {
    let bench = Bench::start(Limits::default());
    let expect = big_file(&bench.path("big"), 16);
    // Only once there is a word for it, the command reads.
    assert!(Command::new("mkfifo").arg(bench.path("word")).status().unwrap().success());
    let mut ssh = bench.ssh("echo up; read word < word; exec cat");
    ssh.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut ssh = ssh.spawn().unwrap();
    let (mut input, mut output) = (ssh.stdin.take().unwrap(), ssh.stdout.take().unwrap());
    let path = bench.path("big");
    let sent = Arc::new(AtomicUsize::new(0));
    let pouring = thread::spawn({
        let sent = sent.clone();
        move || {
            for part in fs::read(path).unwrap().chunks(64 << 10) {
                input.write_all(part).unwrap();
                sent.fetch_add(part.len(), Ordering::Relaxed);
            }
        }
    });
    output.read_exact(&mut [0; 3]).unwrap();
    // Long enough for all of it, were it taken.
    let mut before = usize::MAX;
    while sent.load(Ordering::Relaxed) != before {
        before = sent.load(Ordering::Relaxed);
        thread::sleep(Duration::from_millis(500));
    }
    assert!(before < 8 << 20, "{before} bytes went to a command that reads nothing");
    fs::write(bench.path("word"), "read\n").unwrap();
    let mut bytes = Vec::new();
    output.read_to_end(&mut bytes).unwrap();
    pouring.join().unwrap();
    assert_eq!(digest(&bytes), expect);
    assert!(ssh.wait().unwrap().success());
}

/// A terminal for a client: the side of its window, and the client's.
fn terminal() -> (OwnedFd, OwnedFd) {
    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
    let master = rustix::pty::openpt(flags).unwrap();
    rustix::pty::grantpt(&master).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let terminal = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
    (master, terminal)
}

fn window(rows: u16, columns: u16) -> rustix::termios::Winsize {
    rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

#[test]
fn a_terminal_has_the_clients_size_and_type() {
    let bench = Bench::start(Limits::default());
    let (master, terminal) = terminal();
    rustix::termios::tcsetwinsize(&master, window(33, 101)).unwrap();
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
fn files_are_copied_both_ways() {
    let bench = Bench::start(Limits::default());
    let expect = big_file(&bench.path("big"), 4);
    fs::create_dir(bench.path("there")).unwrap();
    let remote = |name: &str| format!("tester@127.0.0.1:{name}");
    let rsh = format!("ssh {}", bench.options("id").join(" "));
    let check = |mut command: Command, arrived: &str| {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", output.stderr.escape_ascii());
        assert_eq!(digest(&fs::read(bench.path(arrived)).unwrap()), expect, "{command:?}");
    };
    let copy = |name: &str, options: &[&str], from: &str, to: &str| {
        let mut command = match name {
            "rsync" => Command::new(name),
            tool => bench.tool(tool),
        };
        command.args(options).args([from, to]).current_dir(bench.folder.path());
        command
    };
    check(copy("scp", &[], "big", &remote("there/a")), "there/a");
    check(copy("scp", &[], &remote("there/a"), "b"), "b");
    // The protocol of old, with `scp` itself at the other end.
    check(copy("scp", &["-O"], "big", &remote("there/c")), "there/c");
    check(copy("scp", &["-O"], &remote("there/c"), "d"), "d");
    check(copy("rsync", &["-e", &rsh], "big", &remote("there/e")), "there/e");
    check(copy("rsync", &["-e", &rsh], &remote("there/e"), "f"), "f");

    let batch = bench.path("batch");
    fs::write(&batch, "put big there/g\nrename there/g there/h\nget there/h i\n").unwrap();
    let mut sftp = bench.tool("sftp");
    sftp.arg("-b").arg(&batch).arg("tester@127.0.0.1").current_dir(bench.folder.path());
    check(sftp, "i");
    assert!(!bench.path("there/g").exists());
}

#[test]
fn git_clones_and_pushes() {
    let bench = Bench::start(Limits::default());
    let rsh = format!("ssh {}", bench.options("id").join(" "));
    let git = |folder: &str, arguments: &[&str]| {
        let mut git = Command::new("git");
        git.args(["-c", "user.name=Tester", "-c", "user.email=tester@example.org", "-c", "init.defaultBranch=main"]);
        git.args(arguments).env("GIT_SSH_COMMAND", &rsh).env("GIT_CONFIG_GLOBAL", "/dev/null");
        let output = git.current_dir(bench.path(folder)).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", output.stderr.escape_ascii());
        String::from_utf8(output.stdout).unwrap()
    };
    git("", &["init", "-q", "--bare", "there.git"]);
    git("", &["clone", "-q", "tester@127.0.0.1:there.git", "one"]);
    let expect = big_file(&bench.path("one/big"), 2);
    git("one", &["add", "big"]);
    git("one", &["commit", "-q", "-m", "something big"]);
    git("one", &["push", "-q", "origin", "HEAD:main"]);
    git("", &["clone", "-q", "-b", "main", "tester@127.0.0.1:there.git", "two"]);
    assert_eq!(digest(&fs::read(bench.path("two/big")).unwrap()), expect);
    assert_eq!(git("two", &["rev-parse", "HEAD"]), git("one", &["rev-parse", "HEAD"]));
}

#[test]
fn a_terminal_follows_the_clients_size() {
    let bench = Bench::start(Limits::default());
    let (master, terminal) = terminal();
    rustix::termios::tcsetwinsize(&master, window(33, 101)).unwrap();
    let command = "trap 'stty size; exit 7' WINCH; stty size; while :; do sleep 0.02; done";
    let mut ssh = bench.client("tester", "id", &["-tt"], command);
    let mut ssh = ssh.stdin(terminal).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = ssh.stdout.take().unwrap();
    let mut line = [0; "33 101\r\n".len()];
    out.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"33 101\r\n");
    rustix::termios::tcsetwinsize(&master, window(44, 132)).unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_child(&ssh), rustix::process::Signal::WINCH).unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "44 132\r\n");
    assert_eq!(ssh.wait().unwrap().code(), Some(7));
}

/// A server that sends back what it gets, until its end of file.
fn echo() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            thread::spawn(move || io::copy(&mut &stream, &mut &stream));
        }
    });
    port
}

/// A port nobody listens on.
fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// Sends 3 MiB through a connection and expects them back, up to the end of file.
fn echoes(mut stream: TcpStream) {
    let sent: Vec<u8> = (0..3_u32 << 18).flat_map(u32::to_le_bytes).collect();
    let mut writer = stream.try_clone().unwrap();
    let back = sent.clone();
    let sending = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    sending.join().unwrap();
    assert!(got == back, "{} of {} bytes", got.len(), back.len());
}

/// Starts a client and returns once its forwards are set up: it asks for them before its command.
fn forwarding(bench: &Bench, options: &[&str]) -> std::process::Child {
    let options = [&["-o", "ExitOnForwardFailure=yes"], options].concat();
    let mut ssh = bench.client("tester", "id", &options, "echo up; exec cat");
    let mut ssh = ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    ssh.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
    ssh
}

fn end(mut ssh: std::process::Child) {
    drop(ssh.stdin.take());
    assert!(ssh.wait().unwrap().success());
}

#[test]
fn connections_are_forwarded_to_targets() {
    let bench = Bench::start(Limits { forwards: 8, ..Limits::default() });
    let (echo, local) = (echo(), free_port());
    let ssh = forwarding(&bench, &["-L", &format!("{local}:127.0.0.1:{echo}")]);
    // More, one after the other, than there are places at the same time.
    for _ in 0..12 {
        echoes(TcpStream::connect((Ipv4Addr::LOCALHOST, local)).unwrap());
    }
    let together: Vec<_> = (0..4)
        .map(|_| thread::spawn(move || echoes(TcpStream::connect((Ipv4Addr::LOCALHOST, local)).unwrap())))
        .collect();
    together.into_iter().for_each(|one| one.join().unwrap());
    end(ssh);

    let nobody = free_port();
    let ssh = forwarding(&bench, &["-L", &format!("{local}:127.0.0.1:{nobody}")]);
    let mut refused = TcpStream::connect((Ipv4Addr::LOCALHOST, local)).unwrap();
    assert_eq!(refused.read(&mut [0; 1]).unwrap_or(0), 0);
    end(ssh);
}

#[test]
fn forwarded_connections_are_bounded() {
    let bench = Bench::start(Limits { forwards: 2, ..Limits::default() });
    let (echo, local) = (echo(), free_port());
    let ssh = forwarding(&bench, &["-L", &format!("{local}:127.0.0.1:{echo}")]);
    let open = || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, local)).unwrap();
        let answered = stream.write_all(b"x").and_then(|()| stream.read_exact(&mut [0; 1])).is_ok();
        (stream, answered)
    };
    let (first, second, third) = (open(), open(), open());
    assert_eq!((first.1, second.1, third.1), (true, true, false));
    // The client ends with the last of its connections.
    drop((first, second, third));
    end(ssh);
}

#[test]
fn a_client_is_a_socks_proxy() {
    let bench = Bench::start(Limits::default());
    let (echo, local) = (echo(), free_port());
    let ssh = forwarding(&bench, &["-D", &local.to_string()]);
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, local)).unwrap();
    // SOCKS 4: connect to 127.0.0.1 for nobody in particular.
    let port = echo.to_be_bytes();
    stream.write_all(&[4, 1, port[0], port[1], 127, 0, 0, 1, 0]).unwrap();
    let mut answer = [0; 8];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..2], [0, 90]);
    echoes(stream);
    end(ssh);
}

#[test]
fn connections_are_forwarded_from_listeners() {
    let bench = Bench::start(Limits::default());
    let (echo, remote) = (echo(), free_port());
    let control = bench.path("control").display().to_string();
    let forward = format!("{remote}:127.0.0.1:{echo}");
    let ssh = forwarding(&bench, &["-M", "-S", &control, "-R", &forward]);
    echoes(TcpStream::connect((Ipv4Addr::LOCALHOST, remote)).unwrap());

    let ask = |what: &str, forward: &str| {
        let output = bench.client("tester", "id", &["-S", &control, "-O", what, "-R", forward], "").output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    assert!(ask("cancel", &forward).0);
    // The answer comes from the client at hand; the listener is gone once the server has been told.
    while TcpStream::connect((Ipv4Addr::LOCALHOST, remote)).is_ok() {
        thread::yield_now();
    }
    let (given, port) = ask("forward", &format!("0:127.0.0.1:{echo}"));
    assert!(given);
    echoes(TcpStream::connect((Ipv4Addr::LOCALHOST, port.trim().parse().unwrap())).unwrap());
    // Nothing but loopback.
    assert!(!ask("forward", &format!("*:0:127.0.0.1:{echo}")).0);
    end(ssh);
}

/// OpenSSH's agent, ended with this.
struct Agent {
    process: std::process::Child,
    socket: PathBuf,
}

impl Agent {
    fn start(bench: &Bench) -> Self {
        let socket = bench.path("agent");
        let mut process =
            Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::piped()).spawn().unwrap();
        // It tells of its socket once that is there.
        process.stdout.as_mut().unwrap().read_exact(&mut [0; 1]).unwrap();
        let agent = Self { process, socket };
        assert!(agent.asked(Command::new("ssh-add").arg("-q").arg(bench.path("id"))).success());
        agent
    }

    fn asked(&self, command: &mut Command) -> std::process::ExitStatus {
        command.env("SSH_AUTH_SOCK", &self.socket).status().unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_session_reaches_the_clients_agent_as_long_as_it_lasts() {
    let bench = Bench::start(Limits::default());
    let agent = Agent::start(&bench);
    let line = "ssh-add -L | cut -d' ' -f1; ls -ld $(dirname $SSH_AUTH_SOCK) | cut -c1-10; echo $SSH_AUTH_SOCK";
    let there = format!("IdentityAgent={}", agent.socket.display());
    let asked = bench.client("tester", "id", &["-A", "-o", &there], line).output().unwrap();
    let (stdout, stderr) = text(&asked);
    let lines: Vec<_> = stdout.lines().collect();
    assert_eq!(lines[..2], ["ssh-ed25519", "drwx------"], "{stderr}");
    while Path::new(lines[2]).exists() {
        thread::yield_now();
    }
    let nowhere = Bench::with(Limits::default(), |shell| Arc::new(Plain(shell)));
    nowhere.check(&["-A", "-o", &there], "echo \"[$SSH_AUTH_SOCK]\"", "[]\n", 0);
    // Only for who asks.
    bench.check(&[], "echo \"[$SSH_AUTH_SOCK]\"", "[]\n", 0);
}

/// Says nothing about forwarding.
struct Plain(Arc<LocalShell>);

impl Login for Plain {
    fn spawn(&self, request: &SessionRequest) -> io::Result<Session> {
        self.0.spawn(request)
    }
}

#[test]
fn nothing_is_forwarded_unless_the_login_says_so() {
    let bench = Bench::with(Limits::default(), |shell| Arc::new(Plain(shell)));
    let (echo, port) = (echo(), free_port());
    let ssh = forwarding(&bench, &["-L", &format!("{port}:127.0.0.1:{echo}")]);
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0);
    end(ssh);
    let options = ["-o", "ExitOnForwardFailure=yes", "-R", &format!("{port}:127.0.0.1:{echo}")];
    assert_eq!(bench.client("tester", "id", &options, "true").status().unwrap().code(), Some(255));
}

#[test]
fn an_idle_connection_is_told_and_ended() {
    let bench = Bench::start(Limits { idle: Some(Duration::from_secs(1)), ..Limits::default() });
    let output = bench.client("tester", "id", &["-o", "LogLevel=INFO"], "exec sleep 1000").output().unwrap();
    assert_eq!(output.status.code(), Some(255));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("nothing was sent or received for 1 seconds"), "{stderr}");
    // Output alone keeps it.
    bench.check(&[], "for i in 1 2 3 4 5 6; do sleep 0.4; echo $i; done", "1\n2\n3\n4\n5\n6\n", 0);
}

#[test]
fn a_vanished_client_frees_its_place() {
    let limits = Limits {
        connections_per_account: 1,
        keepalive: Duration::from_millis(100),
        keepalive_missed: 2,
        ..Limits::default()
    };
    let bench = Bench::start(limits);
    let mut ssh = bench.ssh("echo up; exec sleep 1000").stdout(Stdio::piped()).spawn().unwrap();
    ssh.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
    assert!(!bench.ssh("true").status().unwrap().success());
    // A stopped client keeps its socket open and answers nothing, as one behind a cut line.
    let pid = rustix::process::Pid::from_child(&ssh);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    while !bench.ssh("true").status().unwrap().success() {}
    ssh.kill().unwrap();
    ssh.wait().unwrap();
}

#[test]
fn a_flood_of_strangers_keeps_nobody_out() {
    let limits = Limits { strangers: 4, strangers_per_source: 4, ..Limits::default() };
    let bench = Bench::start(limits);
    let mut flood: Vec<_> = (0..64)
        .map(|_| {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, bench.port)).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream
        })
        .collect();
    flood[63].read_exact(&mut [0; 4]).unwrap();
    assert!(bench.ssh("true").status().unwrap().success());
    // The login had the place of one more.
    for (number, stream) in flood.iter_mut().enumerate().take(61) {
        let end = stream.read_to_end(&mut Vec::new());
        let ended = end.as_ref().err().is_none_or(|e| e.kind() == std::io::ErrorKind::ConnectionReset);
        assert!(ended, "stranger {number}: {end:?}");
    }
    flood[62].set_nonblocking(true).unwrap();
    let silence = flood[62].read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(silence.kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn one_connection_has_any_number_of_sessions_in_turn() {
    let bench = Bench::start(Limits { sessions: 2, ..Limits::default() });
    let control = bench.path("control").display().to_string();
    let ssh = forwarding(&bench, &["-M", "-S", &control]);
    for _ in 0..5 {
        bench.check(&["-S", &control], "echo again", "again\n", 0);
    }
    end(ssh);
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

/// Admits whom the list does until it is revoked.
struct Revocable {
    list: KeyList,
    revoked: Arc<AtomicBool>,
}

impl Accounts for Revocable {
    fn authorize(&self, user: &str, key: &PublicKey) -> Option<Arc<dyn Login>> {
        if self.revoked.load(Ordering::Relaxed) { None } else { self.list.authorize(user, key) }
    }
}

#[test]
fn a_connection_ends_when_its_key_is_taken_away() {
    let revoked = Arc::new(AtomicBool::new(false));
    let limits = Limits { recheck: Some(Duration::from_millis(20)), ..Limits::default() };
    let bench = Bench::admitting(limits, |keys, shell| {
        Arc::new(Revocable { list: KeyList::new("tester", keys, shell), revoked: revoked.clone() })
    });
    let mut ssh = bench.client("tester", "id", &["-o", "LogLevel=INFO"], "echo up; exec sleep 1000");
    let mut ssh = ssh.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    ssh.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
    revoked.store(true, Ordering::Relaxed);
    let output = ssh.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(255));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("your key does not open this account any more"), "{stderr}");
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
fn an_accounts_connections_are_limited_and_it_is_told() {
    let bench = Bench::start(Limits { connections_per_account: 1, ..Limits::default() });
    let mut first = bench.ssh("echo up; exec sleep 1000").stdout(Stdio::piped()).spawn().unwrap();
    first.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
    let second = bench.ssh("true").output().unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains("this account has 1 connections already"), "{said}");
    first.kill().unwrap();
    first.wait().unwrap();
    while !bench.ssh("true").status().unwrap().success() {}
}

#[test]
fn a_hung_up_client_takes_its_command_along() {
    let bench = Bench::start(Limits::default());
    // The command's exit is seen as the end of the pipe its trap holds open.
    let fifo = bench.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    // Whoever runs the tests may have had the signal ignored, and it would stay so.
    let command = "exec 9>fifo; echo up; exec env --default-signal=HUP sleep 1000";
    let mut ssh = bench.ssh(command).stdout(Stdio::piped()).spawn().unwrap();
    let mut held = File::open(&fifo).unwrap();
    let mut up = [0; 3];
    ssh.stdout.take().unwrap().read_exact(&mut up).unwrap();
    ssh.kill().unwrap();
    ssh.wait().unwrap();
    assert_eq!(held.read(&mut [0; 1]).unwrap(), 0);
}
