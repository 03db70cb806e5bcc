//! A login into this very machine, as the user the server runs as.

use std::{
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    process::{self, Stdio},
    sync::Arc,
};

use orrery_sys::session::new_session;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

use crate::{
    account::{Command, Login, Pty, Session, SessionIo, SessionRequest},
    process::Process,
};

/// Runs shells and commands with `/bin/sh` as the user of this process.
#[derive(Debug, Clone)]
pub struct LocalShell {
    home: PathBuf,
    env: Vec<(String, String)>,
    sftp: Option<PathBuf>,
}

impl LocalShell {
    /// Sessions start in `home`, with nothing in their environment but the usual, `env`, and what clients send.
    pub fn new(home: impl Into<PathBuf>, env: Vec<(String, String)>) -> Arc<Self> {
        Arc::new(Self { home: home.into(), env, sftp: None })
    }

    /// As [`LocalShell::new`], with the program at `sftp` for the subsystem of that name. It speaks the protocol of
    /// OpenSSH's `sftp-server` on its standard input and output.
    pub fn with_sftp(home: impl Into<PathBuf>, env: Vec<(String, String)>, sftp: impl Into<PathBuf>) -> Arc<Self> {
        Arc::new(Self { home: home.into(), env, sftp: Some(sftp.into()) })
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
                    Command::Exec(line) => command.args(["-c", line]),
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
