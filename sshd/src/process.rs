//! A session's process: a child is waited for through a pidfd, and signalled as a group.

use std::{
    fmt::Debug,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    process::ExitStatus,
};

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use tokio::io::unix::AsyncFd;

/// A process whose end is a session's.
#[derive(Debug)]
pub enum Process {
    /// A child of this process that leads its own process group (or session), not yet waited for.
    Child {
        /// Its id.
        pid: Pid,
        /// A descriptor of it.
        pidfd: OwnedFd,
    },
    /// Somebody else's child.
    Elsewhere(Box<dyn Elsewhere>),
}

/// A process that is another's child. Its descriptor can be read, or is hung up, once the process has ended.
pub trait Elsewhere: AsFd + Debug + Send + Sync + 'static {
    /// How the process ended, if it has, however often that is asked.
    ///
    /// # Errors
    /// When nobody knows.
    fn try_wait(&self) -> io::Result<Option<ExitStatus>>;

    /// Sends a signal to it and what it started, unless it has ended. Must not wait.
    fn signal(&self, signal: Signal);

    /// Ends it.
    fn end(&self);
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this status.
    Status(u8),
    /// By a signal.
    Signal {
        /// Its number.
        number: i32,
        /// Whether there was a core dump.
        core_dumped: bool,
    },
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        match status.signal() {
            Some(number) => Self::Signal { number, core_dumped: status.core_dumped() },
            None => Self::Status(status.code().unwrap_or(255) as u8),
        }
    }
}

impl Process {
    /// Takes over a child that nobody else will wait for: dropping a [`std::process::Child`] does not.
    ///
    /// # Errors
    /// When it is not a child, or was waited for.
    pub fn adopt(child: std::process::Child) -> io::Result<Self> {
        let pid = Pid::from_child(&child);
        Ok(Self::Child { pid, pidfd: rustix::process::pidfd_open(pid, PidfdFlags::empty())? })
    }

    /// Takes over a child by its id and a descriptor of it.
    pub fn from_pidfd(pid: Pid, pidfd: OwnedFd) -> Self {
        Self::Child { pid, pidfd }
    }

    /// Ends it with all its process group, in the way of a terminal that hangs up.
    pub(crate) fn end(&self) {
        match self {
            Self::Child { .. } => self.signal(Signal::HUP),
            Self::Elsewhere(process) => process.end(),
        }
    }

    /// Sends a signal to the whole process group. The id cannot have been reused: nobody has waited for the process.
    pub(crate) fn signal(&self, signal: Signal) {
        match self {
            Self::Child { pid, pidfd } => {
                if rustix::process::kill_process_group(*pid, signal).is_err() {
                    let _ = rustix::process::pidfd_send_signal(pidfd, signal);
                }
            }
            Self::Elsewhere(process) => process.signal(signal),
        }
    }

    /// How it ended, if it has.
    fn try_wait(&self) -> io::Result<Option<Exit>> {
        match self {
            Self::Child { pidfd, .. } => {
                let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
                let status = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options)?;
                Ok(status.map(|status| match status.terminating_signal() {
                    Some(number) => Exit::Signal { number, core_dumped: status.dumped() },
                    None => Exit::Status(status.exit_status().unwrap_or(255) as u8),
                }))
            }
            Self::Elsewhere(process) => Ok(process.try_wait()?.map(Exit::from)),
        }
    }

    /// Waits for the process's end without keeping the thread.
    pub(crate) async fn wait(&self) -> io::Result<Exit> {
        let descriptor = match self {
            Self::Child { pidfd, .. } => pidfd.as_fd(),
            Self::Elsewhere(process) => process.as_fd(),
        };
        let ready = watch(descriptor.try_clone_to_owned()?)?;
        loop {
            let mut guard = ready.readable().await?;
            match self.try_wait()? {
                Some(exit) => return Ok(exit),
                None => guard.clear_ready(),
            }
        }
    }
}

/// Registers a descriptor with the runtime. It must be one that can be waited for.
#[expect(
    deprecated,
    reason = "its successor is an unsafe fn for types whose number may change, which `OwnedFd`'s cannot"
)]
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}
