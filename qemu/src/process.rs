//! Child processes that can't outlive the harness.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// How often a wait looks whether the child is gone; there is no waiting for a child with a timeout in std.
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// `program` wrapped so that the kernel kills it when the harness dies, in a process group of its own.
pub(crate) fn bound_command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).process_group(0);
    command
}

/// Spawns on a thread that lives as long as the process: the parent-death signal is tied to the spawning *thread*,
/// and a caller's thread may end before its VM does.
pub(crate) fn spawn(command: Command) -> io::Result<Guarded> {
    type Job = (Command, Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for (mut command, reply) in jobs {
                // A caller that went away drops its end; the child would be unsupervised, so it is killed.
                if let Err(mpsc::SendError(Ok(child))) = reply.send(command.spawn()) {
                    drop(Guarded::new(child));
                }
            }
        });
        sender
    });
    let (reply, child) = mpsc::channel();
    spawner.send((command, reply)).map_err(|_| io::Error::other("the spawning thread is gone"))?;
    Ok(Guarded::new(child.recv().map_err(|_| io::Error::other("the spawning thread is gone"))??))
}

/// A child whose whole process group is killed, and which is reaped, on drop.
#[derive(Debug)]
pub(crate) struct Guarded {
    child: Arc<Mutex<Child>>,
    /// Dropped with the child, which ends the deadline's thread.
    deadline: Option<Sender<()>>,
    overdue: Arc<OnceLock<Duration>>,
}

impl Guarded {
    fn new(child: Child) -> Self {
        Self { child: Arc::new(Mutex::new(child)), deadline: None, overdue: Arc::default() }
    }

    /// Kills the child after `limit`, whatever its owner is doing then.
    pub(crate) fn kill_after(&mut self, limit: Duration) {
        let (cancel, cancelled) = mpsc::channel::<()>();
        let (child, overdue) = (Arc::clone(&self.child), Arc::clone(&self.overdue));
        thread::spawn(move || {
            if cancelled.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                let _ = overdue.set(limit);
                kill_group(&mut lock(&child));
            }
        });
        self.deadline = Some(cancel);
    }

    /// The limit given to [`Self::kill_after`], when the child was killed for it.
    pub(crate) fn overdue(&self) -> Option<Duration> {
        self.overdue.get().copied()
    }

    pub(crate) fn child(&self) -> MutexGuard<'_, Child> {
        lock(&self.child)
    }

    pub(crate) fn try_wait(&self) -> io::Result<Option<ExitStatus>> {
        self.child().try_wait()
    }

    /// Waits until the child exits; `None` when it hasn't within `limit`.
    pub(crate) fn wait(&self, limit: Duration) -> io::Result<Option<ExitStatus>> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() >= end {
                return Ok(None);
            }
            thread::sleep(POLL);
        }
    }

    pub(crate) fn kill(&self) {
        let mut child = self.child();
        kill_group(&mut child);
        let _ = child.wait();
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A child that was reaped already is left alone: its id may belong to somebody else by now.
fn kill_group(child: &mut Child) {
    if let Ok(None) = child.try_wait()
        && let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw)
    {
        let _ = kill_process_group(group, Signal::KILL);
        let _ = child.wait();
    }
}

fn lock(child: &Mutex<Child>) -> MutexGuard<'_, Child> {
    child.lock().unwrap_or_else(PoisonError::into_inner)
}
