//! Who works on layers when, and the process that does it for a slice's users.
//!
//! Copying, packing and unpacking what strangers wrote takes time and memory. It is done by a process of its own, one for each
//! sliver at most and a few on the node, in a control group that bounds them all together, and to a deadline. It may be killed at
//! any instant.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};

use orrery_protocol::LayerTask;
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::{FlockOperation, OFlags},
    io::Errno,
    thread::CapabilitySet,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::SnapshotError;
use crate::{
    cgroup::{ControlGroup, DYING},
    error::{At, SliverError},
    internal::{LAYER, helper_command},
    slivers::{SliverPaths, Slivers, TRANSIENT},
};

/// The control group of all workers, beside those of slivers.
pub(crate) const WORKERS: &str = ".work";
/// Memory that all workers together may take, page cache included: some of a few megabytes each.
const MEMORY: &str = "134217728";
/// Processes and threads of all workers.
const PROCESSES: &str = "32";
/// How many work at a time.
const AT_ONCE: usize = 4;
/// How long a task may take.
const PATIENCE: Duration = Duration::from_secs(60 * 60);
/// How long the other side of an export or import may be silent.
const SILENCE: Duration = Duration::from_secs(60);

/// What a worker is told.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    data: PathBuf,
    run: PathBuf,
    cgroup: PathBuf,
    trees: PathBuf,
    login: String,
    task: LayerTask,
}

impl Slivers {
    /// Starts a task on the layers of a sliver. Standard input, output and error are pipes. It tells what came of it in a line of
    /// JSON, unless it is an export; that it failed, by its exit status and a line on standard error.
    ///
    /// Once it has ended, however it did, [`work_ended`](Self::work_ended) is to be called.
    ///
    /// # Errors
    /// When there is no such sliver, or no process can be made.
    pub fn begin_work(&self, login: &str, task: LayerTask) -> Result<Child, SliverError> {
        self.get(login)?;
        let SliverPaths { data, run, cgroup, trees } = self.paths.clone();
        let order = Order { data, run, cgroup, trees, login: login.into(), task };
        let order = serde_json::to_string(&order).map_err(|error| SliverError::Helper(error.into()))?;
        let mut command: Command = helper_command(LAYER);
        command.arg(order).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().map_err(SliverError::Helper)
    }

    /// Has a sliver go on, and removes what is left, if work on its layers was killed.
    ///
    /// # Errors
    /// When that cannot be done.
    pub fn work_ended(&self, login: &str) -> Result<(), SliverError> {
        // Somebody who works on it again has done so first thing.
        let Some(_lock) = self.try_lock(login, "work")? else { return Ok(()) };
        // In use by one that begins.
        let _ = ControlGroup::new(&self.paths.cgroup.join(WORKERS), login).remove();
        match self.settle(login, DYING) {
            Err(SliverError::Unknown(_)) => Ok(()),
            result => result,
        }
    }

    /// Ends what works on a sliver's layers.
    pub(crate) fn end_work(&self, login: &str) -> Result<(), SliverError> {
        let group = ControlGroup::new(&self.paths.cgroup.join(WORKERS), login);
        group.kill()?;
        group.remove()
    }

    /// A lock of a sliver's beside the usual one, unless somebody has it.
    pub(super) fn try_lock(&self, login: &str, what: &str) -> Result<Option<File>, SliverError> {
        let path = self.paths.run.join(format!("{login}.{what}.lock"));
        let file = File::create(&path).at("making", &path)?;
        match rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)) {
            Err(Errno::WOULDBLOCK) => Ok(None),
            result => result.at("locking", &path).map(|()| Some(file)),
        }
    }

    /// Whether a sliver is held still for its layer to be copied.
    pub(crate) fn is_held_still(&self, login: &str) -> bool {
        // Without such a file, nobody ever held it.
        File::open(self.paths.run.join(format!("{login}.still.lock"))).is_ok_and(|file| {
            let look = rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared);
            look == Err(Errno::WOULDBLOCK)
        })
    }

    /// One of the few rights to work on this node, unless all are taken.
    fn slot(&self) -> Result<Option<File>, SliverError> {
        for number in 0..AT_ONCE {
            let slot = self.try_lock(&format!("{TRANSIENT}slot-{number}"), "work")?;
            if slot.is_some() {
                return Ok(slot);
            }
        }
        Ok(None)
    }
}

/// A sliver that stands still, and does not start, until this is dropped.
#[derive(Debug)]
pub(super) struct Still<'a> {
    slivers: &'a Slivers,
    login: String,
    held: Option<File>,
}

impl<'a> Still<'a> {
    pub(super) fn begin(slivers: &'a Slivers, login: &str) -> Result<Self, SnapshotError> {
        let _lock = slivers.lock(login)?;
        let held = slivers.try_lock(login, "still")?.ok_or_else(|| SnapshotError::Busy(login.into()))?;
        let still = Self { slivers, login: login.into(), held: Some(held) };
        slivers.group(login).freeze(true)?;
        Ok(still)
    }
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        // Suspended meanwhile, or gone.
        let mut go_on = || -> Result<(), SliverError> {
            let _lock = self.slivers.lock(&self.login)?;
            self.held.take();
            let suspended = self.slivers.get(&self.login)?.spec.life.suspended.is_some();
            self.slivers.group(&self.login).freeze(suspended)
        };
        if let Err(error) = go_on() {
            tracing::warn!("having {} go on: {error}", self.login);
        }
    }
}

/// Does `work` without the capability by which the node's root writes beyond any quota (`ignore_hardlimit` of fs/quota/dquot.c).
pub(super) fn within_quota<T>(work: impl FnOnce() -> T) -> T {
    let sets = rustix::thread::capabilities(None).ok();
    if let Some(mut sets) = sets {
        sets.effective -= CapabilitySet::SYS_RESOURCE;
        // Lowering what is effective is always allowed, and so is raising what is permitted.
        let _ = rustix::thread::set_capabilities(None, sets);
    }
    let done = work();
    if let Some(sets) = sets {
        let _ = rustix::thread::set_capabilities(None, sets);
    }
    done
}

/// A worker's whole life.
pub(crate) fn helper(order: Option<OsString>) -> ExitCode {
    let order = order.and_then(|text| serde_json::from_str::<Order>(text.to_str()?).ok());
    let Some(order) = order else {
        eprintln!("no order");
        return ExitCode::FAILURE;
    };
    match run(order) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut message = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                message = format!("{message}: {error}");
                cause = error.source();
            }
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn run(order: Order) -> Result<(), SnapshotError> {
    let Order { data, run, cgroup, trees, login, task } = order;
    let slivers = Slivers::at(SliverPaths { data, run, cgroup, trees });
    // Whoever takes the sliver away that is written to ends this first.
    let written = if let LayerTask::Clone(_, target) = &task { target } else { &login };
    join(&slivers, written)?;
    let begin = || {
        let slot = slivers.slot()?.ok_or(SnapshotError::NodeBusy)?;
        Ok::<_, SnapshotError>((slivers.work(&login, PATIENCE)?, slot))
    };
    let result = match task {
        LayerTask::List => json!(slivers.snapshots(&login)?),
        LayerTask::Take(name) => json!(begin()?.0.take(&name)?),
        LayerTask::Restore(name) => json!(begin()?.0.restore(&name)?),
        LayerTask::Delete(name) => {
            begin()?.0.delete(&name)?;
            json!({ "deleted": name })
        }
        LayerTask::Clone(name, target) => {
            let (work, _slot) = begin()?;
            json!(work.clone_into(&name, &slivers.work(&target, PATIENCE)?)?)
        }
        LayerTask::Export(name) => {
            begin()?.0.export(name.as_ref(), Patient::new(io::stdout().as_fd(), PollFlags::OUT)?)?;
            return Ok(());
        }
        LayerTask::Import => {
            let (from, size) = begin()?.0.import(Patient::new(io::stdin().as_fd(), PollFlags::IN)?)?;
            json!({ "from": from, "files": size.files, "bytes": size.bytes })
        }
    };
    let mut out = io::stdout().lock();
    writeln!(out, "{result}").and_then(|()| out.flush()).map_err(SnapshotError::Writing)
}

/// Puts this process into the workers' control group, which is made if there is none.
fn join(slivers: &Slivers, login: &str) -> Result<(), SliverError> {
    let workers = slivers.paths.cgroup.join(WORKERS);
    let leaf = workers.join(login);
    fs::create_dir_all(&workers).at("making", &workers)?;
    for (name, value) in [("memory.max", MEMORY), ("memory.swap.max", "0"), ("pids.max", PROCESSES)] {
        let path = workers.join(name);
        match fs::write(&path, value) {
            // Absent without swap support in the kernel.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result.at("writing", &path)?,
        }
    }
    let path = leaf.join("cgroup.procs");
    loop {
        fs::create_dir_all(&leaf).at("making", &leaf)?;
        match fs::write(&path, "0") {
            // Removed after the worker before this one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => break result.at("joining", &path)?,
        }
    }
    // Among the first to be killed when the node itself is short of memory.
    fs::write("/proc/self/oom_score_adj", "500").at("writing", "/proc/self/oom_score_adj")
}

/// A pipe whose other end may not be silent for ever.
struct Patient {
    pipe: OwnedFd,
    ready: PollFlags,
}

impl Patient {
    fn new(pipe: BorrowedFd<'_>, ready: PollFlags) -> Result<Self, SnapshotError> {
        let made = || -> io::Result<Self> {
            let pipe = pipe.try_clone_to_owned()?;
            let flags = rustix::fs::fcntl_getfl(&pipe)?;
            rustix::fs::fcntl_setfl(&pipe, flags | OFlags::NONBLOCK)?;
            Ok(Self { pipe, ready })
        };
        made().map_err(SnapshotError::Writing)
    }

    /// Does what does not block, or waits until it need not.
    fn retry(&self, mut attempt: impl FnMut(BorrowedFd<'_>) -> rustix::io::Result<usize>) -> io::Result<usize> {
        loop {
            match attempt(self.pipe.as_fd()) {
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => {}
                result => return Ok(result?),
            }
            let mut wait = [PollFd::new(&self.pipe, self.ready)];
            let limit = Timespec { tv_sec: SILENCE.as_secs().cast_signed(), tv_nsec: 0 };
            if rustix::io::retry_on_intr(|| rustix::event::poll(&mut wait, Some(&limit)))? == 0 {
                let message = format!("the other side was silent for {} s", SILENCE.as_secs());
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
        }
    }
}

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.retry(|pipe| rustix::io::read(pipe, &mut *buffer))
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.retry(|pipe| rustix::io::write(pipe, bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_pipe_is_waited_for() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let mut patient = Patient::new(writer.as_fd(), PollFlags::OUT).unwrap();
        drop(writer);
        // More than a pipe holds.
        let sent = thread::spawn(move || patient.write_all(&vec![7; 1 << 20]));
        let mut patient = Patient::new(reader.as_fd(), PollFlags::IN).unwrap();
        let mut got = Vec::new();
        patient.read_to_end(&mut got).unwrap();
        sent.join().unwrap().unwrap();
        assert_eq!(got, vec![7; 1 << 20]);
    }
}
