//! The process that starts slivers: this program, executed once and forked for each start.
//!
//! To execute the program anew takes longer than most of what a start does besides, and every first process would keep its own copy
//! of the pages that the loader writes to. A fork of the node manager itself would do neither, but carry the manager's memory, and it
//! has threads.
//!
//! A message to it is an order, with two descriptors: what the new process has as its standard output, which it only holds, and
//! as its standard error, on which it says how it went. It ends when nobody can send it anything any more.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Child, ExitCode, Stdio},
    sync::{Arc, Mutex, PoisonError},
};

use orrery_sys::namespace::{self, Fork, fork};
use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
    net::{AddressFamily, SendFlags, SocketFlags, SocketType},
};

use crate::{
    handover::{receive, send},
    internal::{BOOT, helper_command},
};

/// Longer than any order.
const ORDER_BYTES: usize = 64 << 10;

/// The process, if there is one. It is made when it is first needed, and again when it has died.
#[derive(Debug)]
pub(crate) struct ForkServer {
    running: Mutex<Option<Arc<Running>>>,
    lasts: bool,
}

#[derive(Debug)]
struct Running {
    /// Closed before the process is waited for, which ends it.
    door: OwnedFd,
    _process: Reaped,
}

#[derive(Debug)]
struct Reaped(Child);

impl ForkServer {
    /// One that stays for further orders.
    pub(crate) fn lasting() -> Self {
        Self { running: Mutex::default(), lasts: true }
    }

    /// One that is made for each order, for who gives few.
    pub(crate) fn passing() -> Self {
        Self { running: Mutex::default(), lasts: false }
    }

    /// Has a process forked that carries out `order`. Returns what it and all that it forks say, once none of them has the descriptors
    /// any more. Until then they hold `lock`: if this process is killed, nobody begins before they are done.
    ///
    /// # Errors
    /// When there can be no such process.
    pub(crate) fn carry_out(&self, order: &[u8], lock: &File) -> io::Result<String> {
        let (mut answer, theirs) = UnixStream::pair()?;
        let ask = || {
            let running = self.running()?;
            send(&running.door, order, &[lock.as_fd(), theirs.as_fd()], SendFlags::empty())?;
            Ok::<_, io::Error>(running)
        };
        let running = ask().or_else(|error| match Errno::from_io_error(&error) {
            // It died since the last order.
            Some(Errno::PIPE | Errno::CONNRESET) => {
                self.forget();
                ask()
            }
            _ => Err(error),
        })?;
        drop(theirs);
        if !self.lasts {
            self.forget();
        }
        let mut said = String::new();
        answer.read_to_string(&mut said)?;
        drop(running);
        Ok(said)
    }

    fn running(&self) -> io::Result<Arc<Running>> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = &*running {
            return Ok(running.clone());
        }
        let (door, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut command = helper_command(BOOT);
        let process = command.stdin(theirs).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        Ok(running.insert(Arc::new(Running { door, _process: Reaped(process) })).clone())
    }

    fn forget(&self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Drop for Reaped {
    fn drop(&mut self) {
        // Somebody else may have reaped it.
        let _ = self.0.wait();
    }
}

/// The life of the process: it reads orders from its standard input and has each carried out by a process of its own.
pub(crate) fn serve(carry_out: impl Fn(&[u8]) -> ExitCode) -> io::Result<ExitCode> {
    namespace::ignore_children()?;
    let mut order = vec![0; ORDER_BYTES];
    loop {
        let (length, given) = receive(io::stdin(), &mut order)?;
        let Ok([lock, answer]) = <[OwnedFd; 2]>::try_from(given) else { return Ok(ExitCode::SUCCESS) };
        match fork() {
            Ok(Fork::Parent(_)) => {}
            Ok(Fork::Child) => {
                namespace::heed_children()?;
                rustix::stdio::dup2_stdin(rustix::fs::open(
                    "/dev/null",
                    OFlags::RDONLY | OFlags::CLOEXEC,
                    Mode::empty(),
                )?)?;
                rustix::stdio::dup2_stdout(lock)?;
                rustix::stdio::dup2_stderr(answer)?;
                return Ok(carry_out(&order[..length]));
            }
            Err(error) => drop(File::from(answer).write_all(format!("forking: {error}").as_bytes())),
        }
    }
}
