//! The control group of a sliver: limits at its top, one leaf for the first process and one for each session, so that a
//! session that runs out of memory is killed as a whole while the sliver lives.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use orrery_protocol::Rspec;
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    io::Errno,
    process::Pid,
};

use crate::{
    disk,
    error::{At, SliverError},
    ports::SocketLimit,
};

/// The leaf of the node's process that makes sockets for an administrative sliver.
pub(crate) const BROKER: &str = "broker";

/// What a `cgroup.events` says of a group without processes.
const EMPTY: &str = "populated 0";

/// How long a group may take to stand still. A process that waits for a disk does so only once it is served.
const FREEZING: Duration = Duration::from_secs(10);

/// How long what was killed may take to end. One that waits for a disk does once it is served; one that waits for a file system in
/// user space that waits for itself never does.
pub(crate) const DYING: Duration = Duration::from_secs(30);

/// What the names of sessions' leaves begin with. Other leaves last as long as the sliver runs.
pub(crate) const SESSION: &str = "session-";

/// Over which a cap on processor time is kept, in microseconds; the kernel's default.
const CPU_PERIOD: u64 = 100_000;

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

    /// Makes the group if there is none, and sets its limits, on `disk` too if there are any. What a new group has by itself is
    /// not written.
    ///
    /// The weight of a sliver with a guarantee is a generous one until [`ControlGroup::set_weight`] sets that which it needs.
    pub(crate) fn limit(
        &self,
        rspec: &Rspec,
        sockets: &SocketLimit,
        disk: impl Fn() -> Result<String, SliverError>,
    ) -> Result<(), SliverError> {
        let fresh = match fs::create_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            result => result.map(|()| true).at("making", &self.path)?,
        };
        let set = |name: &str, value: &str, own: &str| {
            if fresh && value == own { Ok(()) } else { self.write(name, value) }
        };
        let weight = rspec.cpu_share.saturating_add(rspec.cpu_pct.saturating_mul(100)).min(10_000);
        set("cpu.weight", &weight.to_string(), "100")?;
        let quota = match rspec.cpu_cap_pct {
            0 => "max".to_owned(),
            cap => (u64::from(cap) * CPU_PERIOD / 100).to_string(),
        };
        set("cpu.max", &format!("{quota} {CPU_PERIOD}"), "max 100000")?;
        let names = |name: &str| !fresh && fs::read_to_string(self.path.join(name)).is_ok_and(|t| !t.trim().is_empty());
        if !rspec.cpus.is_empty() {
            self.write("cpuset.cpus", &rspec.cpus.to_string())?;
        } else if names("cpuset.cpus") {
            self.write("cpuset.cpus", &self.all_cpus()?)?;
        }
        set("memory.max", &rspec.mem_limit.to_string(), "max")?;
        // Absent without swap support in the kernel.
        if self.path.join("memory.swap.max").exists() {
            set("memory.swap.max", &rspec.swap_limit.to_string(), "max")?;
        }
        set("pids.max", &rspec.pids_limit.to_string(), "max")?;
        set("io.weight", &rspec.io_weight.to_string(), "100")?;
        // The first line in it makes the kernel count for each request to that disk.
        if disk::is_capped(rspec) || names("io.max") {
            self.write("io.max", &disk::caps(rspec, &disk()?))?;
        }
        set("cgroup.subtree_control", "+memory +pids", "")?;
        let init = self.init();
        if !init.exists() {
            // Nothing has run in it yet. Done again later by another process, it would forget what it has counted.
            sockets.apply(&self.path).at("limiting the sockets of", &self.path)?;
        }
        fs::create_dir_all(&init).at("making", &init)
    }

    /// A leaf by its name.
    pub(crate) fn leaf(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes a leaf that stays as long as the sliver runs, and ends what is left in it.
    pub(crate) fn claim(&self, name: &str) -> Result<PathBuf, SliverError> {
        let path = self.leaf(name);
        fs::create_dir_all(&path).at("making", &path)?;
        let group = path.join("memory.oom.group");
        fs::write(&group, "1").at("writing", &group)?;
        Self { path: path.clone() }.kill()?;
        Ok(path)
    }

    /// Waits until nothing is in a leaf. Returns whether that is so in time.
    pub(crate) fn wait_empty(&self, name: &str, patience: Duration) -> bool {
        let Ok(events) = fs::File::open(self.leaf(name).join("cgroup.events")) else { return true };
        wait_for(&events, patience, EMPTY).is_ok()
    }

    /// All CPUs that slivers may run on: what a group with processes has to name, once it named some.
    fn all_cpus(&self) -> Result<String, SliverError> {
        let path = self.path.with_file_name("cpuset.cpus.effective");
        Ok(fs::read_to_string(&path).at("reading", &path)?.trim().to_owned())
    }

    /// Sets the weight among slivers that compete for CPU time.
    pub(crate) fn set_weight(&self, weight: u32) -> Result<(), SliverError> {
        let path = self.path.join("cpu.weight");
        let weight = weight.to_string();
        if fs::read_to_string(&path).is_ok_and(|now| now.trim() == weight) {
            return Ok(());
        }
        match fs::write(&path, weight) {
            // It stopped meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => Ok(()),
            result => result.at("writing", &path),
        }
    }

    /// Every process in the group.
    pub(crate) fn all_processes(&self) -> Vec<Pid> {
        let mut found = Vec::new();
        let mut pending = vec![self.path.clone()];
        while let Some(group) = pending.pop() {
            found.extend(processes(&group).unwrap_or_default());
            let entries = fs::read_dir(&group).into_iter().flatten().flatten();
            pending.extend(entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
        }
        found
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
            let session = leaf.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(SESSION.as_bytes()));
            if session && processes(&leaf).is_ok_and(|p| p.is_empty()) {
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

    /// Stops everything in the group where it stands, or lets it go on, and waits until that is so.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<(), SliverError> {
        let events = self.path.join("cgroup.events");
        let file = match fs::File::open(&events) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result.at("opening", &events)?,
        };
        let number = u8::from(frozen);
        self.write("cgroup.freeze", &number.to_string())?;
        wait_for(&file, FREEZING, &format!("frozen {number}"))
            .at("waiting until all stands still, or moves, in", &self.path)
    }

    /// Kills everything in the group and waits until it is gone, but not for ever.
    pub(crate) fn kill(&self) -> Result<(), SliverError> {
        self.kill_within(DYING)
    }

    /// As [`kill`](Self::kill), with another patience.
    pub(crate) fn kill_within(&self, patience: Duration) -> Result<(), SliverError> {
        let events = self.path.join("cgroup.events");
        let file = match fs::File::open(&events) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result.at("opening", &events)?,
        };
        self.write("cgroup.kill", "1")?;
        match wait_for(&file, patience, EMPTY) {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(SliverError::Unending(self.path.clone())),
            result => result.at("waiting for", &events),
        }
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

    /// Bytes of memory in use that the kernel cannot just drop, and how many there may be, if there is the group.
    pub(crate) fn memory_held(&self) -> Option<(u64, u64)> {
        let stat = fs::read_to_string(self.path.join("memory.stat")).ok()?;
        let limit = fs::read_to_string(self.path.join("memory.max")).ok()?;
        let cached =
            stat.lines().filter_map(|line| line.strip_prefix("active_file ").or(line.strip_prefix("inactive_file ")));
        let cached: u64 = cached.filter_map(|bytes| bytes.parse::<u64>().ok()).sum();
        Some((self.usage().0.saturating_sub(cached), limit.trim().parse().unwrap_or(u64::MAX)))
    }

    /// Bytes of memory in use, and processes, or zeros when nothing runs.
    pub(crate) fn usage(&self) -> (u64, u32) {
        let read = |name: &str| fs::read_to_string(self.path.join(name)).ok();
        let memory = read("memory.current").and_then(|t| t.trim().parse().ok()).unwrap_or(0);
        let processes = read("pids.current").and_then(|t| t.trim().parse().ok()).unwrap_or(0);
        (memory, processes)
    }
}

/// Waits until a `cgroup.events` has this line, or the group is gone.
fn wait_for(events: &fs::File, patience: Duration, line: &str) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        let mut text = [0; 256];
        // Through the descriptor that is waited on: the kernel signals what changed since it was last read there.
        let length = match rustix::io::pread(events, &mut text, 0) {
            Err(Errno::NODEV) => return Ok(()),
            result => result?,
        };
        if text[..length].split(|byte| *byte == b'\n').any(|found| found == line.as_bytes()) {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        // A change of the file is an exceptional condition.
        let mut wait = [PollFd::new(events, PollFlags::PRI)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut wait, Some(&timeout)))?;
    }
}

/// What is in a leaf, by the node's numbers.
pub(crate) fn processes(leaf: &Path) -> io::Result<Vec<Pid>> {
    let text = fs::read_to_string(leaf.join("cgroup.procs"))?;
    Ok(text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_end_is_not_waited_for_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let group = ControlGroup::new(folder.path(), "demo_a");
        let kill = || group.kill_within(Duration::from_millis(10));
        kill().expect("there is no such group");
        fs::create_dir(&group.path).unwrap();
        let check = |events: &str, ends: bool| {
            fs::write(group.path.join("cgroup.events"), events).unwrap();
            match kill() {
                Ok(()) => assert!(ends, "{events}"),
                Err(SliverError::Unending(path)) => assert!(!ends && path == group.path, "{events}"),
                Err(error) => panic!("{error}"),
            }
            assert_eq!(fs::read_to_string(group.path.join("cgroup.kill")).unwrap(), "1");
        };
        check("populated 0\nfrozen 0\n", true);
        check("populated 1\nfrozen 0\n", false);
    }
}
