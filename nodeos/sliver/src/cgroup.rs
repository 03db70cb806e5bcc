//! The control group of a sliver: limits at its top, one leaf for the first process and one for each session, so that a
//! session that runs out of memory is killed as a whole while the sliver lives.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use orrery_protocol::Rspec;
use rustix::process::Pid;

use crate::error::{At, SliverError};

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
    fn sweep(&self) -> Result<(), SliverError> {
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

    /// Whether anything runs in the group.
    fn populated(&self) -> bool {
        fs::read_to_string(self.path.join("cgroup.events")).is_ok_and(|text| text.contains("populated 1"))
    }

    /// Kills everything in the group and waits until it is gone.
    pub(crate) fn kill(&self) -> Result<(), SliverError> {
        let events = self.path.join("cgroup.events");
        let file = match fs::File::open(&events) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            result => result.at("opening", &events)?,
        };
        self.write("cgroup.kill", "1")?;
        while self.populated() {
            // The kernel signals a change of the file as an exceptional condition. The deadline covers a change between
            // the look and the wait.
            let mut wait = [rustix::event::PollFd::new(&file, rustix::event::PollFlags::PRI)];
            let deadline = rustix::event::Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
            rustix::event::poll(&mut wait, Some(&deadline)).at("waiting for", &events)?;
        }
        Ok(())
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

    /// Bytes of memory in use, and processes, or zeros when nothing runs.
    pub(crate) fn usage(&self) -> (u64, u32) {
        let read = |name: &str| fs::read_to_string(self.path.join(name)).ok();
        let memory = read("memory.current").and_then(|t| t.trim().parse().ok()).unwrap_or(0);
        let processes = read("pids.current").and_then(|t| t.trim().parse().ok()).unwrap_or(0);
        (memory, processes)
    }
}

fn processes(leaf: &Path) -> io::Result<Vec<Pid>> {
    let text = fs::read_to_string(leaf.join("cgroup.procs"))?;
    Ok(text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect())
}
