//! A session's process: waited for through a pidfd, signalled as a group.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use tokio::io::unix::AsyncFd;

/// A child of this process that leads its own process group (or session), not yet waited for.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    pidfd: OwnedFd,
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

impl Process {
    /// Takes over a child that nobody else will wait for: dropping a [`std::process::Child`] does not.
    ///
    /// # Errors
    /// When it is not a child, or was waited for.
    pub fn adopt(child: std::process::Child) -> io::Result<Self> {
        let pid = Pid::from_child(&child);
        Ok(Self { pid, pidfd: rustix::process::pidfd_open(pid, PidfdFlags::empty())? })
    }

    /// Takes over a child by its id and a descriptor of it.
    pub fn from_pidfd(pid: Pid, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd }
    }

    /// Sends a signal to the whole process group. The id cannot have been reused: nobody has waited for the process.
    pub(crate) fn signal(&self, signal: Signal) {
        if rustix::process::kill_process_group(self.pid, signal).is_err() {
            let _ = rustix::process::pidfd_send_signal(&self.pidfd, signal);
        }
    }

    /// Waits for the process's end without keeping the thread.
    pub(crate) async fn wait(&self) -> io::Result<Exit> {
        let ready = watch(self.pidfd.try_clone()?)?;
        loop {
            let mut guard = ready.readable().await?;
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            match rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), options)? {
                Some(status) => {
                    return Ok(match status.terminating_signal() {
                        Some(number) => Exit::Signal { number, core_dumped: status.dumped() },
                        None => Exit::Status(status.exit_status().unwrap_or(255) as u8),
                    });
                }
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
