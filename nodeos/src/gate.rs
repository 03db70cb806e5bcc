//! Service `ssh-gate`: `ssh slice@node` leads into the slice's sliver.

use std::{
    convert::Infallible,
    ffi::OsString,
    io,
    net::{Ipv4Addr, Ipv6Addr, TcpListener},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use orrery_protocol::{LayerTask, SliceName, SliverState};
use orrery_sshd::{
    Accounts, Command, HostKey, Limits, Login, Network, PublicKey, Session, SessionRequest, parse_key, serve_blocking,
};
use rustix::process::{Resource, Rlimit, setrlimit};

use crate::{
    accounts::{Account, AccountFile, AccountTable},
    paths,
};

/// The port of ssh.
const PORT: u16 = 22;

/// Starts the image's server of sftp and of today's scp, which distributions have in different places.
const SFTP_SERVER: &str = "for folder in /usr/lib/openssh /usr/lib/ssh /usr/libexec/openssh /usr/libexec; do \
    test -x $folder/sftp-server && exec $folder/sftp-server; done; \
    echo 'this sliver has no sftp-server: install the package openssh-sftp-server in it' >&2; exit 127";

/// The subsystems that print what a sliver's own programs said: until now, and from then on.
const LOGS: &str = "orrery-logs";
const FOLLOW_LOGS: &str = "orrery-logs-follow";

/// How soon a connection ends whose key was taken off its slice, or whose slice was deleted.
const RECHECK: Duration = Duration::from_secs(5);

/// Open files, enough for all connections with all that one account may forward. Slivers have a limit of their own.
const FILES: u64 = 65_536;

/// What to run inside a sliver, as its root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// A login shell.
    Shell,
    /// A command line for the shell.
    Line(OsString),
    /// A script of the node's for `/bin/sh`, whatever shell the root has.
    Script(&'static str),
}

/// Starts processes inside slivers.
pub trait Entrance: Send + Sync + 'static {
    /// Starts `program` in the sliver of `slice` with variables `env` beside the usual, and with a terminal if the request asks
    /// for one. The process belongs to the sliver in every respect.
    ///
    /// # Errors
    /// When it cannot be started.
    fn enter(
        &self,
        slice: &SliceName,
        program: Program,
        env: Vec<(String, String)>,
        request: &SessionRequest,
    ) -> io::Result<Session>;

    /// Prints what the sliver's own programs said, and goes on with what they say if it is to `follow`. The sliver is not entered.
    ///
    /// # Errors
    /// When it cannot be done.
    fn log(&self, slice: &SliceName, follow: bool) -> io::Result<Session>;

    /// Starts work on the layer of the sliver of `slice`, outside of it: its input and output are the user's, nothing else is.
    ///
    /// # Errors
    /// When it cannot be started.
    fn work(&self, slice: &SliceName, task: LayerTask) -> io::Result<Session>;

    /// The network of a sliver.
    fn network(&self, slice: &SliceName) -> Arc<dyn Network>;
}

/// Serves for ever, as the host of `host_key`. `ready` is called once connections are accepted.
///
/// # Errors
/// When the port is taken.
pub fn run(host_key: HostKey, entrance: Arc<dyn Entrance>, ready: impl FnOnce()) -> Result<Infallible> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT))
        // A kernel without IPv6.
        .or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)))
        .with_context(|| format!("listening on port {PORT}"))?;
    let files = Rlimit { current: Some(FILES), maximum: Some(FILES) };
    setrlimit(Resource::Nofile, files).context("raising the limit of open files")?;
    ready();
    let gate = Gate { accounts: Arc::new(AccountFile::new(paths::ACCOUNTS)), entrance };
    let limits = Limits { recheck: Some(RECHECK), ..Limits::default() };
    serve_blocking(listener, host_key, Arc::new(gate), limits).context("serving ssh")
}

/// Accounts out of the node manager's table.
struct Gate {
    accounts: Arc<AccountFile>,
    entrance: Arc<dyn Entrance>,
}

impl Accounts for Gate {
    fn authorize(&self, user: &str, key: &PublicKey) -> Option<Arc<dyn Login>> {
        let table = self.accounts.current();
        let account = table.accounts.get(user)?;
        admits(account, key).then(|| {
            let (accounts, entrance) = (self.accounts.clone(), self.entrance.clone());
            Arc::new(SliverLogin { login: user.to_owned(), key: key.clone(), accounts, entrance }) as Arc<dyn Login>
        })
    }
}

fn admits(account: &Account, key: &PublicKey) -> bool {
    // A key that does not parse is nobody's.
    account.keys.iter().filter_map(|line| parse_key(line).ok()).any(|known| known.key_data() == key.key_data())
}

struct SliverLogin {
    login: String,
    key: PublicKey,
    accounts: Arc<AccountFile>,
    entrance: Arc<dyn Entrance>,
}

impl Login for SliverLogin {
    fn network(&self) -> Option<Arc<dyn Network>> {
        let table = self.accounts.current();
        let account = self.account(&table).ok()?;
        (account.state == SliverState::Ready).then(|| self.entrance.network(&account.slice))
    }

    fn spawn(&self, request: &SessionRequest) -> io::Result<Session> {
        let table = self.accounts.current();
        let account = self.account(&table)?;
        // Whether one gets in or not.
        if let Some(follow) = log(&request.command) {
            return self.entrance.log(&account.slice, follow);
        }
        match (account.state, &account.error) {
            (SliverState::Ready, _) => match program(&request.command)? {
                Asked::Run(program) => {
                    self.entrance.enter(&account.slice, program, environment(&account.slice, request), request)
                }
                Asked::Work(task) => {
                    if let LayerTask::Clone(_, target) = &task {
                        self.may_change(table.accounts.get(target), target)?;
                    }
                    self.entrance.work(&account.slice, task)
                }
            },
            (SliverState::Creating, _) => {
                Err(io::Error::other(format!("sliver {} is being created; try again in a moment", account.slice)))
            }
            (SliverState::Suspended, reason) => {
                let why = reason.as_deref().unwrap_or("no reason known");
                Err(io::Error::other(format!("slice {} is suspended: {why}", account.slice)))
            }
            (SliverState::Failed, error) => {
                let why = error.as_deref().unwrap_or("no reason known");
                Err(io::Error::other(format!("sliver {} could not be created: {why}", account.slice)))
            }
        }
    }
}

/// Whether a request is for the log, and then whether it is to be followed.
fn log(command: &Command) -> Option<bool> {
    match command {
        Command::Subsystem(name) if name == LOGS => Some(false),
        Command::Subsystem(name) if name == FOLLOW_LOGS => Some(true),
        _ => None,
    }
}

impl SliverLogin {
    /// What this login opens now. Looked up for every use: a connection may outlive its sliver, whose name may be another's since,
    /// and the admission of its key.
    fn account<'a>(&self, table: &'a AccountTable) -> io::Result<&'a Account> {
        let account = table.accounts.get(&self.login);
        let account = account.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "this sliver was deleted"))?;
        if !admits(account, &self.key) {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "your key was taken off this slice"));
        }
        Ok(account)
    }

    /// Refuses what this login's key would not open either, without telling whether there is such a sliver.
    fn may_change(&self, other: Option<&Account>, login: &str) -> io::Result<()> {
        let refused =
            || io::Error::new(io::ErrorKind::PermissionDenied, format!("your key does not open `{login}` here"));
        let other = other.filter(|other| admits(other, &self.key)).ok_or_else(refused)?;
        if other.state == SliverState::Ready {
            return Ok(());
        }
        Err(io::Error::other(format!("sliver {} is not ready", other.slice)))
    }
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Asked {
    /// A program inside the sliver.
    Run(Program),
    /// Work on its layer.
    Work(LayerTask),
}

/// What to do for a request.
fn program(command: &Command) -> io::Result<Asked> {
    Ok(match command {
        Command::Shell => Asked::Run(Program::Shell),
        Command::Exec(line) => Asked::Run(Program::Line(line.clone())),
        Command::Subsystem(name) if name == "sftp" => Asked::Run(Program::Script(SFTP_SERVER)),
        Command::Subsystem(name) if name.starts_with("orrery-") => {
            Asked::Work(name.parse().map_err(|error| io::Error::new(io::ErrorKind::NotFound, error))?)
        }
        Command::Subsystem(name) => {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("no subsystem `{name}` here")));
        }
    })
}

/// Variables that say where a session comes from and leads to.
fn environment(slice: &SliceName, request: &SessionRequest) -> Vec<(String, String)> {
    let mut env = vec![("ORRERY_SLICE".to_owned(), slice.to_string())];
    if let Some(peer) = request.peer {
        env.push(("SSH_CLIENT".to_owned(), format!("{} {} {PORT}", peer.ip().to_canonical(), peer.port())));
    }
    env.extend(request.env.iter().cloned());
    env
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::IpAddr, os::fd::OwnedFd, path::Path};

    use orrery_sshd::{AgentListener, Family};

    use super::*;

    /// Nothing can be entered, but what was tried is told.
    struct Closed;

    impl Entrance for Closed {
        fn enter(
            &self,
            slice: &SliceName,
            program: Program,
            env: Vec<(String, String)>,
            _: &SessionRequest,
        ) -> io::Result<Session> {
            let env: Vec<_> = env.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
            Err(io::Error::other(format!("{slice}: {program:?} {}", env.join(","))))
        }

        fn log(&self, slice: &SliceName, follow: bool) -> io::Result<Session> {
            Err(io::Error::other(format!("{slice}: log, follow {follow}")))
        }

        fn work(&self, slice: &SliceName, task: LayerTask) -> io::Result<Session> {
            Err(io::Error::other(format!("{slice}: {task}")))
        }

        fn network(&self, _: &SliceName) -> Arc<dyn Network> {
            Arc::new(Nowhere)
        }
    }

    /// A network without anything.
    struct Nowhere;

    impl Network for Nowhere {
        fn resolve(&self, _: &str) -> io::Result<Vec<IpAddr>> {
            Err(io::ErrorKind::NotFound.into())
        }

        fn socket(&self, _: Family) -> io::Result<OwnedFd> {
            Err(io::ErrorKind::NotFound.into())
        }

        fn agent(&self, _: &Path) -> io::Result<AgentListener> {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    fn request(command: Command) -> SessionRequest {
        SessionRequest {
            command,
            pty: None,
            env: vec![("LANG".into(), "C".into())],
            peer: "[::ffff:10.0.2.2]:99".parse().ok(),
        }
    }

    #[test]
    fn logins_follow_the_table() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("accounts.json");
        let gate = Gate { accounts: Arc::new(AccountFile::new(&path)), entrance: Arc::new(Closed) };
        let [key, other] = [1, 2].map(|seed| parse_key(&HostKey::from_seed(&[seed; 32]).public_line()).unwrap());
        let line = format!("{} me@home", key.to_openssh().unwrap());
        let set = |state, error: Option<&str>| {
            let slice: SliceName = "demo/hello".parse().unwrap();
            let keys = vec!["not a key".to_owned(), line.clone()];
            let account = Account { slice: slice.clone(), keys, state, error: error.map(str::to_owned) };
            AccountTable { accounts: BTreeMap::from([(slice.login(), account)]) }.write(&path).unwrap();
        };
        assert!(gate.authorize("demo_hello", &key).is_none(), "without a table");

        set(SliverState::Creating, None);
        assert!(gate.authorize("demo_hello", &other).is_none());
        assert!(gate.authorize("demo_bye", &key).is_none());
        assert!(gate.authorize("root", &key).is_none());
        let login = gate.authorize("demo_hello", &key).unwrap();
        let check = |expect: &str| {
            let error = login.spawn(&request(Command::Subsystem("sftp".into()))).unwrap_err().to_string();
            assert_eq!(error, expect);
        };
        check("sliver demo/hello is being created; try again in a moment");
        assert!(login.network().is_none(), "forwarding for a sliver that is not there yet");
        set(SliverState::Failed, Some("disk full"));
        check("sliver demo/hello could not be created: disk full");
        set(SliverState::Suspended, Some("abuse"));
        check("slice demo/hello is suspended: abuse");
        let log = |name: &str| login.spawn(&request(Command::Subsystem(name.into()))).unwrap_err().to_string();
        assert_eq!(log(LOGS), "demo/hello: log, follow false");
        assert_eq!(log(FOLLOW_LOGS), "demo/hello: log, follow true");
        assert!(gate.authorize("demo_hello", &other).is_none());
        set(SliverState::Ready, None);
        assert!(login.network().is_some());
        let server = Program::Script(SFTP_SERVER);
        check(&format!("demo/hello: {server:?} ORRERY_SLICE=demo/hello,SSH_CLIENT=10.0.2.2 99 22,LANG=C"));
        AccountTable::default().write(&path).unwrap();
        check("this sliver was deleted");
        assert!(gate.authorize("demo_hello", &key).is_none());
    }

    #[test]
    fn a_login_opens_nothing_once_its_key_is_taken_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("accounts.json");
        let gate = Gate { accounts: Arc::new(AccountFile::new(&path)), entrance: Arc::new(Closed) };
        let [before, after] = [1, 2].map(|seed| parse_key(&HostKey::from_seed(&[seed; 32]).public_line()).unwrap());
        let admit = |key: &PublicKey| {
            let slice: SliceName = "demo/hello".parse().unwrap();
            let keys = vec![key.to_openssh().unwrap()];
            let account = Account { slice: slice.clone(), keys, state: SliverState::Ready, error: None };
            AccountTable { accounts: BTreeMap::from([(slice.login(), account)]) }.write(&path).unwrap();
        };
        admit(&before);
        let login = gate.authorize("demo_hello", &before).unwrap();
        assert!(login.network().is_some());
        admit(&after);
        assert!(login.network().is_none(), "something is forwarded");
        let subsystem = |name: &str| Command::Subsystem(name.into());
        let export = subsystem("orrery-export s");
        for command in [Command::Shell, Command::Exec("id".into()), subsystem("sftp"), export, subsystem(LOGS)] {
            let error = login.spawn(&request(command.clone())).unwrap_err().to_string();
            assert_eq!(error, "your key was taken off this slice", "{command:?}");
        }
        admit(&before);
        assert!(login.network().is_some());
    }

    #[test]
    fn programs() {
        let check = |command, expect| assert_eq!(program(&command).ok(), expect, "{command:?}");
        check(Command::Shell, Some(Asked::Run(Program::Shell)));
        check(Command::Exec("a 'b'; c".into()), Some(Asked::Run(Program::Line("a 'b'; c".into()))));
        check(Command::Subsystem("sftp".into()), Some(Asked::Run(Program::Script(SFTP_SERVER))));
        check(Command::Subsystem("orrery-import".into()), Some(Asked::Work(LayerTask::Import)));
        check(Command::Subsystem("orrery-snapshot create ../x".into()), None);
        check(Command::Subsystem("netconf".into()), None);
    }

    #[test]
    fn a_clone_is_made_only_of_what_the_key_opens() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("accounts.json");
        let gate = Gate { accounts: Arc::new(AccountFile::new(&path)), entrance: Arc::new(Closed) };
        let [mine, other] = [1, 2].map(|seed| parse_key(&HostKey::from_seed(&[seed; 32]).public_line()).unwrap());
        let account = |slice: &str, key: &PublicKey, state| {
            let slice: SliceName = slice.parse().unwrap();
            let keys = vec![key.to_openssh().unwrap()];
            (slice.login(), Account { slice, keys, state, error: None })
        };
        let accounts = BTreeMap::from([
            account("demo/a", &mine, SliverState::Ready),
            account("demo/b", &mine, SliverState::Ready),
            account("demo/new", &mine, SliverState::Creating),
            account("demo/theirs", &other, SliverState::Ready),
        ]);
        AccountTable { accounts }.write(&path).unwrap();
        let login = gate.authorize("demo_a", &mine).unwrap();
        let check = |target: &str, expect: &str| {
            let asked = Command::Subsystem(format!("orrery-snapshot clone s {target}"));
            assert_eq!(login.spawn(&request(asked)).unwrap_err().to_string(), expect);
        };
        check("demo_b", "demo/a: orrery-snapshot clone s demo_b");
        check("demo_new", "sliver demo/new is not ready");
        check("demo_theirs", "your key does not open `demo_theirs` here");
        check("nobody", "your key does not open `nobody` here");
    }
}
