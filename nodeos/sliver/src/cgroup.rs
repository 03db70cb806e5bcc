//! The control group of a sliver: limits at its top, one leaf for the first process and one for each session, so that a
//! session that runs out of memory is killed as a whole while the sliver lives.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use orrery_protocol::Rspec;
use rustix::process::Pid;

use crate::error::{At, SliverError};

/// The leaf of the node's process that makes sockets for an administrative sliver.
pub(crate) const BROKER: &str = "broker";

/// How long a group may take to stand still. A process that waits for a disk does so only once it is served.
const FREEZING: Duration = Duration::from_secs(10);

/// What has gone on in a running sliver so far. Equal values at two moments say that nothing ran in between: whatever does takes
/// processor time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Activity {
    /// Processes and threads there are, the first included.
    pub processes: u32,
    /// Processor time that all processes took together, those that ended included.
    pub cpu_microseconds: u64,
}

impl Activity {
    /// Whether nothing is there but the first process.
    pub fn is_idle(&self) -> bool {
        self.processes <= 1
    }
}

/// A sliver's control group, which may not exist.
#[derive(Debug, Clone)]
pub(crate) struct ControlGroup {
    path: PathBuf,
}

impl ControlGroup {
    pub(crate) fn new(root: &Path, login: &str) -> Self {
        Self { path: root.join(login) }
    }

    fn write(&self, name: &str, value: &str) -> Result<(), SliverError> {
        let path = self.path.join(name);
        fs::write(&path, value).at("writing", &path)
    }

    /// The leaf of the first process.
    pub(crate) fn init(&self) -> PathBuf {
        self.path.join("init")
    }

    /// Makes the group if there is none, and sets its limits.
    pub(crate) fn limit(&self, rspec: &Rspec) -> Result<(), SliverError> {
        fs::create_dir_all(&self.path).at("making", &self.path)?;
        self.write("cpu.weight", &rspec.cpu_share.to_string())?;
        self.write("memory.max", &rspec.mem_limit.to_string())?;
        // Absent without swap support in the kernel. Nothing of a sliver goes to swap: its limit is one of memory.
        if self.path.join("memory.swap.max").exists() {
            self.write("memory.swap.max", "0")?;
        }
        self.write("pids.max", &rspec.pids_limit.to_string())?;
        self.write("cgroup.subtree_control", "+memory +pids")?;
        let init = self.init();
        fs::create_dir_all(&init).at("making", &init)
    }

    /// Makes a leaf for a session. Leaves that emptied are removed on the way.
    pub(crate) fn session(&self, name: &str) -> Result<PathBuf, SliverError> {
        self.sweep()?;
        let path = self.path.join(name);
        fs::create_dir(&path).at("making", &path)?;
        let group = path.join("memory.oom.group");
        fs::write(&group, "1").at("writing", &group)?;
        Ok(path)
    }

    fn leaves(&self) -> Result<Vec<PathBuf>, SliverError> {
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            result => result.at("listing", &self.path)?,
        };
        Ok(entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect())
    }

    /// Removes session leaves without processes.
    pub(crate) fn sweep(&self) -> Result<(), SliverError> {
        for leaf in self.leaves()? {
            if leaf != self.init() && processes(&leaf).is_ok_and(|p| p.is_empty()) {
                // Busy when somebody just joined it, or gone already.
                let _ = fs::remove_dir(&leaf);
            }
        }
        Ok(())
    }

    /// The process all of the sliver's namespaces hang on.
    pub(crate) fn first_process(&self) -> Option<Pid> {
        processes(&self.init()).ok()?.first().copied()
    }

    /// Whether the group's events have this line.
    fn event(&self, line: &str) -> bool {
        fs::read_to_string(self.path.join("cgroup.events")).is_ok_and(|text| text.lines().any(|l| l == line))
    }

    /// Stops everything in the group where it stands, or lets it go on, and waits until that is so.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<(), SliverError> {
        let events = self.path.join("cgroup.events");
        let file = match fs::File::open(&events) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result.at("opening", &events)?,
        };
        let number = u8::from(frozen);
        self.write("cgroup.freeze", &number.to_string())?;
        let reached = || self.event(&format!("frozen {number}"));
        wait_for(&file, Some(FREEZING), reached).at("waiting until all stands still, or moves, in", &self.path)
    }

    /// Kills everything in the group and waits until it is gone.
    pub(crate) fn kill(&self) -> Result<(), SliverError> {
        let events = self.path.join("cgroup.events");
        let file = match fs::File::open(&events) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result.at("opening", &events)?,
        };
        self.write("cgroup.kill", "1")?;
        wait_for(&file, None, || !self.event("populated 1")).at("waiting for", &events)
    }

    /// Removes the emptied group.
    pub(crate) fn remove(&self) -> Result<(), SliverError> {
        for leaf in self.leaves()? {
            fs::remove_dir(&leaf).at("removing", &leaf)?;
        }
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result.at("removing", &self.path),
        }
    }

    /// What has gone on, if there is a first process.
    pub(crate) fn activity(&self) -> Option<Activity> {
        self.first_process()?;
        let cpu = fs::read_to_string(self.path.join("cpu.stat")).ok()?;
        let cpu_microseconds = cpu.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok())?;
        // Which does nothing of its own accord.
        let broker = processes(&self.path.join(BROKER)).map_or(0, |all| all.len() as u32);
        Some(Activity { processes: self.usage().1.saturating_sub(broker), cpu_microseconds })
    }

    /// Bytes of memory in use, and processes, or zeros when nothing runs.
    pub(crate) fn usage(&self) -> (u64, u32) {
        let read = |name: &str| fs::read_to_string(self.path.join(name)).ok();
        let memory = read("memory.current").and_then(|t| t.trim().parse().ok()).unwrap_or(0);
        let processes = read("pids.current").and_then(|t| t.trim().parse().ok()).unwrap_or(0);
        (memory, processes)
    }
}

/// Waits until a condition that shows in a `cgroup.events` is `reached`.
fn wait_for(events: &fs::File, patience: Option<Duration>, reached: impl Fn() -> bool) -> io::Result<()> {
    let start = Instant::now();
    while !reached() {
        if patience.is_some_and(|patience| start.elapsed() > patience) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // The kernel signals a change of the file as an exceptional condition. The deadline covers a change between the look
        // and the wait.
        let mut wait = [rustix::event::PollFd::new(events, rustix::event::PollFlags::PRI)];
        let deadline = rustix::event::Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut wait, Some(&deadline)))?;
    }
    Ok(())
}

fn processes(leaf: &Path) -> io::Result<Vec<Pid>> {
    let text = fs::read_to_string(leaf.join("cgroup.procs"))?;
    Ok(text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect())
}
