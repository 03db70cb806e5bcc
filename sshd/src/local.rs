//! A login into this very machine, as the user the server runs as.

use std::{
    io,
    net::{IpAddr, ToSocketAddrs},
    os::{
        fd::OwnedFd,
        unix::{fs::DirBuilderExt, net::UnixListener},
    },
    path::{Path, PathBuf},
    process::{self, Stdio},
    sync::Arc,
};

use orrery_sys::session::new_session;
use rustix::{
    net::{AddressFamily, SocketFlags, SocketType},
    pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt},
};

use crate::{
    account::{AgentListener, Command, Family, Login, Network, Pty, Session, SessionIo, SessionRequest},
    process::Process,
};

/// Finds the addresses of a host by its name.
type Resolve = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// Runs shells and commands with `/bin/sh` as the user of this process, and forwards from and to this machine's network.
#[derive(Clone)]
pub struct LocalShell {
    home: PathBuf,
    env: Vec<(String, String)>,
    sftp: Option<PathBuf>,
    resolve: Arc<Resolve>,
}

impl LocalShell {
    /// Sessions start in `home`, with nothing in their environment but the usual, `env`, and what clients send. Hosts to
    /// connect to are found as this system finds them.
    pub fn new(home: impl Into<PathBuf>, env: Vec<(String, String)>) -> Self {
        let system = |host: &str| Ok((host, 0).to_socket_addrs()?.map(|address| address.ip()).collect());
        Self { home: home.into(), env, sftp: None, resolve: Arc::new(system) }
    }

    /// With `program` for the subsystem `sftp`. It speaks the protocol of OpenSSH's `sftp-server` on its standard input and
    /// output.
    pub fn sftp(self, program: impl Into<PathBuf>) -> Self {
        Self { sftp: Some(program.into()), ..self }
    }

    /// With another way to find hosts, for a program without the system's.
    pub fn resolver(self, resolve: impl Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync + 'static) -> Self {
        Self { resolve: Arc::new(resolve), ..self }
    }

    fn command(&self, request: &SessionRequest) -> io::Result<process::Command> {
        let mut command = match (&request.command, &self.sftp) {
            (Command::Subsystem(name), Some(program)) if name == "sftp" => process::Command::new(program),
            (Command::Subsystem(name), _) => {
                return Err(io::Error::new(io::ErrorKind::NotFound, format!("no subsystem `{name}` here")));
            }
            (shell, _) => {
                let mut command = process::Command::new("/bin/sh");
                match shell {
                    Command::Exec(line) => command.arg("-c").arg(line),
                    _ => command.arg("-l"),
                };
                command
            }
        };
        command.env_clear().current_dir(&self.home);
        command.env("HOME", &self.home).env("SHELL", "/bin/sh");
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.envs(self.env.iter().cloned()).envs(request.env.iter().cloned());
        if let Some(pty) = &request.pty {
            command.env("TERM", &pty.term);
        }
        Ok(command)
    }
}

impl Login for LocalShell {
    fn network(&self) -> Option<Arc<dyn Network>> {
        Some(Arc::new(self.clone()))
    }

    fn spawn(&self, request: &SessionRequest) -> io::Result<Session> {
        let mut command = self.command(request)?;
        match &request.pty {
            Some(pty) => {
                let (master, terminal) = open_pty(pty)?;
                command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal);
                let child = new_session(&mut command, true).spawn()?;
                Ok(Session { io: SessionIo::Pty(master), process: Process::adopt(child)? })
            }
            None => {
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
                let mut child = new_session(&mut command, false).spawn()?;
                let lost = || io::Error::other("a pipe that was asked for is missing");
                let io = SessionIo::Pipes {
                    stdin: child.stdin.take().ok_or_else(lost)?.into(),
                    stdout: child.stdout.take().ok_or_else(lost)?.into(),
                    stderr: child.stderr.take().ok_or_else(lost)?.into(),
                };
                Ok(Session { io, process: Process::adopt(child)? })
            }
        }
    }
}

impl Network for LocalShell {
    fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        (self.resolve)(host)
    }

    fn socket(&self, family: Family) -> io::Result<OwnedFd> {
        let family = match family {
            Family::V4 => AddressFamily::INET,
            Family::V6 => AddressFamily::INET6,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
    }

    fn agent(&self, path: &Path) -> io::Result<AgentListener> {
        let folder = AgentFolder(path.parent().unwrap_or(Path::new("/")).to_owned());
        std::fs::DirBuilder::new().mode(0o700).create(&folder.0)?;
        Ok(AgentListener { listener: UnixListener::bind(path)?, keep: Box::new(folder) })
    }
}

/// The folder of one session's agent, removed with it.
struct AgentFolder(PathBuf);

impl Drop for AgentFolder {
    fn drop(&mut self) {
        // Nobody can do anything about a folder that stays.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A new terminal: its master side, and the side for the process.
fn open_pty(pty: &Pty) -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    // Not by its path, so that it works whichever /dev/pts this process sees.
    let terminal = ioctl_tiocgptpeer(&master, flags)?;
    pty.apply_to(&master)?;
    Ok((master, terminal))
}
