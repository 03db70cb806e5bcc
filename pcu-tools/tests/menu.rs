//! Dialogues against servers nobody here wrote: OpenSSH's sshd and busybox's telnetd, with a script behind them that plays APC's menus.

#[path = "support/inetd.rs"]
mod inetd;
#[path = "support/racadm.rs"]
mod racadm;

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use inetd::Inetd;
use orrery_pcu::{Change, Class, Deadline, Method, PcuError, PowerState, Registry, SecretSource, Session, Waiver};
use racadm::Racadm;
use tempfile::TempDir;

/// The script that plays a power unit.
const APC: &str = include_str!("support/apc.sh");
const PASSWORD: &str = "sesame";
/// It starts itself anew for every connection, and so has to be named in full.
const SSHD: &str = "/usr/sbin/sshd";

/// A power unit of 20 outlets, all of them on, behind a server.
struct Unit {
    folder: TempDir,
    server: Option<Inetd>,
}

impl Unit {
    fn new(kind: &str, way: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("outlets")).unwrap();
        for outlet in 1..=20 {
            fs::write(path("outlets").join(outlet.to_string()), "ON\n").unwrap();
        }
        fs::write(path("apc.sh"), APC).unwrap();
        let apc = path("apc.sh").display().to_string();
        let device = format!("#!/bin/sh\nexec bash {apc} {kind} {way} {}\n", folder.path().display());
        fs::write(path("device"), device).unwrap();
        fs::set_permissions(path("device"), fs::Permissions::from_mode(0o755)).unwrap();
        Self { folder, server: None }
    }

    fn telnet(kind: &str) -> Self {
        let applets = Command::new("busybox").arg("--list").output();
        let has_telnetd =
            applets.is_ok_and(|output| output.stdout.split(|byte| *byte == b'\n').any(|name| name == b"telnetd"));
        assert!(has_telnetd, "busybox with telnetd (Debian's busybox-static) is missing; run `cargo xtask setup`");
        let mut unit = Self::new(kind, "telnet");
        let device = unit.path("device");
        unit.server = Some(Inetd::start(move || {
            let mut telnetd = Command::new("busybox");
            telnetd.args(["telnetd", "-i", "-f", "/dev/null", "-l"]).arg(&device);
            telnetd
        }));
        unit
    }

    fn ssh(kind: &str) -> Self {
        Self::ssh_with(kind, &["-t", "ed25519"], "")
    }

    /// Behind OpenSSH's server, which has a host key as `ssh-keygen` makes it with `key`, and `settings`.
    fn ssh_with(kind: &str, key: &[&str], settings: &str) -> Self {
        assert!(Path::new(SSHD).exists(), "{SSHD} is missing; run `cargo xtask setup`");
        let mut unit = Self::new(kind, "ssh");
        let path = |name: &str| unit.path(name).display().to_string();
        keygen(key, &path("host"));
        keygen(&["-t", "ed25519"], &path("id"));
        let config = format!(
            "HostKey {}\nAuthorizedKeysFile {}\nForceCommand {}\nStrictModes no\nPermitRootLogin yes\nPidFile none\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nPrintMotd no\nLogLevel QUIET\n{settings}\n",
            path("host"),
            path("id.pub"),
            path("device"),
        );
        fs::write(unit.path("config"), config).unwrap();
        if user() == "root" {
            // Where root's sshd locks itself in until somebody is logged in.
            fs::create_dir_all("/run/sshd").unwrap();
        }
        let config = unit.path("config");
        unit.server = Some(Inetd::start(move || {
            let mut sshd = Command::new(SSHD);
            sshd.arg("-i").arg("-f").arg(&config);
            sshd
        }));
        unit
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn method(&self, driver: &str, outlet: &str) -> Method {
        let server = self.server.as_ref().unwrap();
        let mut method = Method::new(driver, format!("127.0.0.1:{}", server.port()));
        method.outlet = Some(outlet.into());
        if self.path("id").exists() {
            method.user = Some(user());
            method.fingerprint = Some(self.fingerprint());
            method.options.insert("key".into(), self.path("id").display().to_string().into());
        } else {
            method.user = Some("op".into());
            method.password = Some(self.secret(PASSWORD));
            method.waivers = vec![Waiver::ClearText];
            method.options.insert("transport".into(), "telnet".into());
        }
        method
    }

    fn secret(&self, word: &str) -> SecretSource {
        let path = self.path("secret");
        fs::write(&path, word).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        SecretSource::File(path)
    }

    /// As `ssh-keygen -l` shows it.
    fn fingerprint(&self) -> String {
        let output = Command::new("ssh-keygen").arg("-lf").arg(self.path("host.pub")).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_whitespace().nth(1).unwrap().to_owned()
    }

    fn outlet(&self, outlet: &str) -> String {
        fs::read_to_string(self.path("outlets").join(outlet)).unwrap().trim().to_owned()
    }

    /// What has been done to outlets.
    fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

fn keygen(key: &[&str], path: &str) {
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-N", "", "-C", "", "-f", path]).args(key).stdin(Stdio::null());
    assert!(keygen.status().expect("ssh-keygen is missing; run `cargo xtask setup`").success());
}

fn user() -> String {
    let output = Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(30))
}

fn open(method: &Method, deadline: Deadline) -> Result<Box<dyn Session>, PcuError> {
    Registry::builtin().of(method)?.open(method, deadline)
}

fn refusal(method: &Method, class: Class) -> String {
    refusal_within(method, class, soon())
}

fn refusal_within(method: &Method, class: Class, deadline: Deadline) -> String {
    let Err(error) = open(method, deadline) else { panic!("{method} was opened") };
    assert_eq!(error.class(), class, "{error}");
    let told = format!("{error} {error:?}");
    assert!(!told.contains(PASSWORD), "{told}");
    told
}

/// All that an operator does with an outlet.
fn switch(unit: &Unit, driver: &str) {
    let method = unit.method(driver, "15");
    let mut session = open(&method, soon()).unwrap();
    assert_eq!(session.state(soon()).unwrap(), PowerState::On);
    let proofs = session.prove(soon()).unwrap();
    assert!(proofs.iter().any(|proof| proof.0.contains("the power of outlet 15")), "{proofs:?}");
    // In menus there is a way to go; a command line has but the line that does it.
    let went = proofs.iter().any(|proof| proof.0.contains("steps towards on"));
    assert_eq!(went, driver == "apc-menu", "{proofs:?}");
    assert_eq!(unit.log(), Vec::<String>::new(), "a test changes nothing");
    session.change(Change::Off, soon()).unwrap();
    assert_eq!(session.state(soon()).unwrap(), PowerState::Off);
    session.prove(soon()).unwrap();
    session.change(Change::On, soon()).unwrap();
    assert_eq!(session.state(soon()).unwrap(), PowerState::On);
    session.change(Change::Cycle, soon()).unwrap();
    assert_eq!(unit.log(), ["OFF 15", "ON 15", "REBOOT 15"]);
    assert_eq!((unit.outlet("15"), unit.outlet("1")), ("ON".into(), "ON".into()));
    let error = session.change(Change::Reset, soon()).unwrap_err();
    assert_eq!(error.class(), Class::Unsupported, "{error}");

    // The unit lets one in at a time, and the next one as soon as we have logged out.
    refusal(&unit.method(driver, "1"), Class::Busy);
    drop(session);
    refusal(&unit.method(driver, "99"), Class::OutletUnknown);
    // An outlet is neither a pattern nor two words.
    refusal(&unit.method(driver, "1?"), Class::OutletUnknown);
    refusal(&unit.method(driver, "all"), Class::OutletUnknown);
    refusal(&unit.method(driver, "1\rolOff 2"), Class::Configuration);
    open(&unit.method(driver, "1"), soon()).unwrap();
    assert_eq!(unit.log().len(), 3);
}

#[test]
fn menus_over_telnet() {
    switch(&Unit::telnet("menu"), "apc-menu");
}

#[test]
fn menus_over_ssh() {
    switch(&Unit::ssh("menu"), "apc-menu");
}

#[test]
fn command_line_over_telnet() {
    switch(&Unit::telnet("cli"), "apc-cli");
}

#[test]
fn command_line_over_ssh() {
    switch(&Unit::ssh("cli"), "apc-cli");
}

#[test]
fn a_wrong_password_is_not_repeated_to_anybody() {
    let unit = Unit::telnet("menu");
    let mut method = unit.method("apc-menu", "1");
    method.user = Some("stranger".into());
    refusal(&method, Class::Authentication);
    // Nobody to ask for it.
    let mut method = unit.method("apc-menu", "1");
    method.password = None;
    refusal(&method, Class::Configuration);
}

#[test]
fn the_wrong_driver_says_what_it_met() {
    let unit = Unit::telnet("cli");
    let told = refusal(&unit.method("apc-menu", "1"), Class::Prompt);
    assert!(told.contains("apc>"), "{told}");
}

#[test]
fn telnet_needs_a_waiver() {
    let unit = Unit::telnet("menu");
    let mut method = unit.method("apc-menu", "1");
    method.waivers.clear();
    let told = refusal(&method, Class::Configuration);
    assert!(told.contains("clear-text"), "{told}");
}

#[test]
fn a_session_that_broke_off_begins_anew() {
    let unit = Unit::telnet("menu");
    let mut session = open(&unit.method("apc-menu", "3"), soon()).unwrap();
    fs::remove_file(unit.path("outlets/3")).unwrap();
    assert_eq!(session.change(Change::Off, soon()).unwrap_err().class(), Class::OutletUnknown);
    fs::write(unit.path("outlets/3"), "ON\n").unwrap();
    // The unit needs a moment to see that we have hung up.
    let deadline = soon();
    let done = loop {
        match session.change(Change::Off, deadline) {
            Err(PcuError::Busy { .. }) if !deadline.passed() => {}
            done => break done,
        }
    };
    done.unwrap();
    assert_eq!((unit.outlet("3"), unit.log()), ("OFF".into(), vec!["OFF 3".to_owned()]));
}

#[test]
fn host_keys() {
    let unit = Unit::ssh("cli");
    let print = unit.fingerprint();
    let mut method = unit.method("apc-cli", "1");

    method.fingerprint = None;
    let told = refusal(&method, Class::Identity);
    assert!(told.contains(&print), "{told}");
    assert!(!unit.path("lock").exists(), "nothing was said to an unknown device");
    method.fingerprint = Some("00".repeat(32));
    let told = refusal(&method, Class::Identity);
    assert!(told.contains(&print), "{told}");
    // The pin counts also where any would do.
    method.waivers = vec![Waiver::AnyIdentity];
    refusal(&method, Class::Identity);
    method.fingerprint = None;
    open(&method, soon()).unwrap();
    method.waivers.clear();

    // The same in hexadecimal, which `ssh-keygen` does not show.
    let key = fs::read_to_string(unit.path("host.pub")).unwrap();
    let mut decode = Command::new("sh");
    decode.args(["-c", "printf %s \"$0\" | base64 -d | sha256sum", key.split_whitespace().nth(1).unwrap()]);
    let hex = String::from_utf8(decode.output().unwrap().stdout).unwrap()[..64].to_owned();
    method.fingerprint = Some(hex);
    open(&method, soon()).unwrap();
    method.fingerprint = Some("SHA256:short".into());
    refusal(&method, Class::Configuration);
}

#[test]
fn old_algorithms_need_a_waiver() {
    let old = "KexAlgorithms diffie-hellman-group1-sha1\nCiphers 3des-cbc\nMACs hmac-sha1\nHostKeyAlgorithms ssh-rsa";
    let unit = Unit::ssh_with("cli", &["-t", "rsa", "-b", "1024"], old);
    let mut method = unit.method("apc-cli", "2");
    let told = refusal(&method, Class::Configuration);
    assert!(told.contains("old-ssh") && told.contains("diffie-hellman-group1-sha1"), "{told}");
    method.waivers = vec![Waiver::OldSsh];
    assert_eq!(open(&method, soon()).unwrap().state(soon()).unwrap(), PowerState::On);

    let dsa = "HostKeyAlgorithms ssh-dss\nCiphers aes128-cbc\nKexAlgorithms diffie-hellman-group14-sha1";
    let unit = Unit::ssh_with("cli", &["-t", "dsa"], dsa);
    let mut method = unit.method("apc-cli", "2");
    refusal(&method, Class::Configuration);
    method.waivers = vec![Waiver::OldSsh];
    open(&method, soon()).unwrap();

    // A short key is refused though everything else is new.
    let unit = Unit::ssh_with("cli", &["-t", "rsa", "-b", "1024"], "");
    let told = refusal(&unit.method("apc-cli", "2"), Class::Identity);
    assert!(told.contains("1024 bits"), "{told}");
    let unit = Unit::ssh_with("cli", &["-t", "rsa", "-b", "2048"], "");
    open(&unit.method("apc-cli", "2"), soon()).unwrap();
}

#[test]
fn keys_that_others_can_read_are_not_used() {
    let unit = Unit::ssh("cli");
    let method = unit.method("apc-cli", "1");
    fs::set_permissions(unit.path("id"), fs::Permissions::from_mode(0o644)).unwrap();
    let told = refusal(&method, Class::Configuration);
    assert!(told.contains("chmod 600"), "{told}");
    // Another key than the one that is let in.
    keygen(&["-t", "ed25519"], &unit.path("other").display().to_string());
    let mut method = unit.method("apc-cli", "1");
    method.options.insert("key".into(), unit.path("other").display().to_string().into());
    let told = refusal(&method, Class::Authentication);
    assert!(told.contains("it does not accept the key"), "{told}");
}

/// A server that does nothing but `serve`.
fn peer(serve: impl Fn(TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || listener.incoming().for_each(|stream| serve(stream.unwrap())));
    address
}

#[test]
fn floods_and_silence_are_bounded() {
    let unit = Unit::telnet("menu");
    let check = |address: &str, transport: &str, classes: &[Class], limit: u64| {
        let mut method = unit.method("apc-menu", "1");
        method.address = address.into();
        method.options.insert("transport".into(), transport.into());
        method.waivers.push(Waiver::AnyIdentity);
        let started = Instant::now();
        let Err(error) = open(&method, Deadline::after(Duration::from_secs(limit))) else { panic!("opened") };
        assert!(classes.contains(&error.class()), "{error}");
        assert!(error.to_string().len() < 1000, "{}", error.to_string().len());
        assert!(started.elapsed() < Duration::from_secs(limit + 2), "{:?}", started.elapsed());
    };
    let flood = |line: &'static [u8]| peer(move |mut stream| while stream.write_all(line).is_ok() {});
    check(&flood(b"garbage \xff\xff\x1b[1m "), "telnet", &[Class::Prompt], 20);
    check(&flood(b"garbage\r\n"), "ssh", &[Class::Prompt, Class::Timeout, Class::Transport], 3);
    // Nothing but requests for options, the answers to which nobody reads.
    check(&flood(&[255, 251, 99]), "telnet", &[Class::Timeout], 2);
    // A string of a terminal that never ends.
    check(&flood(b"\x1b]0;title"), "telnet", &[Class::Timeout], 2);

    // A peer that takes everything and says nothing.
    let silent = peer(|mut stream| drop(stream.read_to_end(&mut Vec::new())));
    check(&silent, "telnet", &[Class::Timeout], 2);
    check(&silent, "ssh", &[Class::Timeout], 2);
    // One that hangs up.
    let rude = peer(drop);
    check(&rude, "telnet", &[Class::Busy], 5);
    check(&rude, "ssh", &[Class::Transport], 5);
}

#[test]
fn commands_with_a_password() {
    for (asks, told) in [(false, "password"), (true, "keyboard-interactive")] {
        let racadm = Racadm::start(asks);
        let folder = tempfile::tempdir().unwrap();
        let unit = Unit { folder, server: None };
        let mut method = Method::new("idrac-racadm", format!("127.0.0.1:{}", racadm.port()));
        method.user = Some("op".into());
        method.password = Some(unit.secret(PASSWORD));
        method.fingerprint = Some(racadm.fingerprint());
        let mut session = open(&method, soon()).unwrap();
        assert_eq!(session.state(soon()).unwrap(), PowerState::On);
        session.change(Change::Off, soon()).unwrap();
        assert_eq!(session.state(soon()).unwrap(), PowerState::Off);
        session.change(Change::On, soon()).unwrap();
        session.change(Change::Reset, soon()).unwrap();
        let error = session.change(Change::Cycle, soon()).unwrap_err();
        assert_eq!(error.class(), Class::Privilege, "{error}");
        assert_eq!(
            racadm.commands(),
            ["powerstatus", "powerstatus", "powerdown", "powerstatus", "powerup", "hardreset", "powercycle"]
        );

        method.password = Some(unit.secret("wrong"));
        let said = refusal(&method, Class::Authentication);
        assert!(said.contains(told), "{said}");
    }
}
