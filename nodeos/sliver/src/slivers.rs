//! Every sliver of a node.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::DirBuilderExt},
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use orrery_protocol::{Rspec, SliverSpec};
use orrery_sys::quota;
use rustix::{fs::FlockOperation, process::Pid};

use crate::{
    boot,
    cgroup::ControlGroup,
    enter::{self, EnterRequest, Entered, Entering},
    error::{At, SliverError},
    record::{MAX_INDEX, Record},
    remove::remove_tree,
    socket::{Made, Wish},
};

/// A disk quota of bytes is also one of files: one for so many bytes, the ratio ext4 makes inodes at.
const BYTES_PER_INODE: u64 = 16 * 1024;
/// A record, in a sliver's directory.
const RECORD: &str = "sliver.json";
/// A directory with this prefix is no sliver: one being made or destroyed.
const TRANSIENT: char = '.';

/// Where slivers are kept.
#[derive(Debug, Clone)]
pub struct SliverPaths {
    /// The data partition; slivers are in its `slivers` directory.
    pub data: PathBuf,
    /// For mount points and locks, in memory.
    pub run: PathBuf,
    /// The control group that holds theirs.
    pub cgroup: PathBuf,
    /// The trees of the image store.
    pub trees: PathBuf,
}

impl Default for SliverPaths {
    fn default() -> Self {
        Self {
            data: "/data".into(),
            run: "/run/slivers".into(),
            cgroup: "/sys/fs/cgroup/slivers".into(),
            trees: "/data/trees".into(),
        }
    }
}

/// The slivers of a node. Cheap to open, and without state in memory.
#[derive(Debug)]
pub struct Slivers {
    paths: SliverPaths,
    sessions: AtomicU64,
}

/// The lock on one sliver, or on all, held until dropped.
struct Lock(#[expect(dead_code, reason = "holding it open is what locks")] File);

impl Slivers {
    /// Opens the slivers at `paths`, and removes what an interrupted creation or destruction left.
    ///
    /// # Errors
    /// When a directory cannot be made or read.
    pub fn open(paths: SliverPaths) -> Result<Self, SliverError> {
        let slivers = Self { paths, sessions: AtomicU64::new(0) };
        for directory in [slivers.home(), slivers.paths.run.clone()] {
            fs::DirBuilder::new().recursive(true).mode(0o711).create(&directory).at("making", &directory)?;
        }
        let _lock = slivers.lock(".all")?;
        let home = slivers.home();
        for entry in fs::read_dir(&home).at("listing", &home)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(TRANSIENT) {
                // It costs space and nothing else.
                if let Err(error) = remove_tree(&entry.path()) {
                    tracing::warn!("removing {}: {error}", entry.path().display());
                }
            }
        }
        Ok(slivers)
    }

    fn home(&self) -> PathBuf {
        self.paths.data.join("slivers")
    }

    fn directory(&self, login: &str) -> PathBuf {
        self.home().join(login)
    }

    fn group(&self, login: &str) -> ControlGroup {
        ControlGroup::new(&self.paths.cgroup, login)
    }

    fn lock(&self, name: &str) -> Result<Lock, SliverError> {
        let path = self.paths.run.join(format!("{name}.lock"));
        let file = File::create(&path).at("making", &path)?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive)).at("locking", &path)?;
        Ok(Lock(file))
    }

    /// Every sliver, by login.
    ///
    /// # Errors
    /// When a record cannot be read.
    pub fn list(&self) -> Result<Vec<Record>, SliverError> {
        let home = self.home();
        let mut records = Vec::new();
        for entry in fs::read_dir(&home).at("listing", &home)? {
            let entry = entry.at("listing", &home)?;
            if !entry.file_name().to_string_lossy().starts_with(TRANSIENT) {
                records.push(Record::load(&entry.path().join(RECORD))?);
            }
        }
        records.sort_by_key(Record::login);
        Ok(records)
    }

    /// The sliver whose login this is.
    ///
    /// # Errors
    /// When there is none, or its record cannot be read.
    pub fn get(&self, login: &str) -> Result<Record, SliverError> {
        let named = login.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !login.is_empty();
        let path = self.directory(login).join(RECORD);
        if !named || !path.exists() {
            return Err(SliverError::Unknown(login.into()));
        }
        Record::load(&path)
    }

    /// Makes the sliver `spec` describes, from the tree the image store knows as `image`, or brings the limits and keys of
    /// the one there is up to date. It is not started.
    ///
    /// # Errors
    /// When there is one of another image, or the disk or the quota refuses.
    pub fn create(&self, spec: &SliverSpec, image: &str) -> Result<Record, SliverError> {
        let login = spec.slice.login();
        // Creations choose numbers one after the other.
        let _all = self.lock(".all")?;
        let _lock = self.lock(&login)?;
        let directory = self.directory(&login);
        match self.get(&login) {
            Ok(now) if now.image != image => return Err(SliverError::Exists(login)),
            Ok(now) => {
                let record = Record { spec: spec.clone(), ..now.clone() };
                if record != now {
                    record.store(&directory.join(RECORD))?;
                }
                self.limit(&record)?;
                return Ok(record);
            }
            Err(SliverError::Unknown(_)) => {}
            Err(error) => return Err(error),
        }

        let taken: Vec<u32> = self.list()?.iter().map(|r| r.index).collect();
        let index = (0..MAX_INDEX).find(|i| !taken.contains(i)).ok_or(SliverError::Full)?;
        let record = Record { index, image: image.into(), spec: spec.clone() };
        let new = self.home().join(format!("{TRANSIENT}new-{login}"));
        if new.exists() {
            remove_tree(&new).at("removing", &new)?;
        }
        // The node's root only: what is in upper/ belongs to identities of the sliver.
        fs::DirBuilder::new().mode(0o700).create(&new).at("making", &new)?;
        for (name, mode) in [("upper", 0o755), ("work", 0o700)] {
            let path = new.join(name);
            fs::DirBuilder::new().mode(mode).create(&path).at("making", &path)?;
            let base = Some(record.id_base());
            std::os::unix::fs::chown(&path, base, base).at("giving away", &path)?;
            let opened = File::open(&path).at("opening", &path)?;
            quota::set_project(opened.as_fd(), record.project())
                .map_err(|source| SliverError::Quota { login: login.clone(), source })?;
        }
        record.store(&new.join(RECORD))?;
        self.limit_disk(&record)?;
        fs::rename(&new, &directory).at("naming", &directory)?;
        let home = self.home();
        File::open(&home).and_then(|d| d.sync_all()).at("flushing", &home)?;
        Ok(record)
    }

    /// Sets the limits of a sliver to `rspec`, whether it runs or not.
    ///
    /// # Errors
    /// When there is no such sliver, or a limit cannot be set.
    pub fn apply_limits(&self, login: &str, rspec: Rspec) -> Result<(), SliverError> {
        let _lock = self.lock(login)?;
        let mut record = self.get(login)?;
        record.spec.rspec = rspec;
        record.store(&self.directory(login).join(RECORD))?;
        self.limit(&record)
    }

    fn limit(&self, record: &Record) -> Result<(), SliverError> {
        self.limit_disk(record)?;
        let group = self.group(&record.login());
        if group.first_process().is_some() { group.limit(&record.spec.rspec) } else { Ok(()) }
    }

    fn limit_disk(&self, record: &Record) -> Result<(), SliverError> {
        let bytes = record.spec.rspec.disk_quota;
        self.set_quota(record, bytes, (bytes / BYTES_PER_INODE).max(64))
    }

    fn set_quota(&self, record: &Record, bytes: u64, inodes: u64) -> Result<(), SliverError> {
        let home = self.home();
        let opened = File::open(&home).at("opening", &home)?;
        quota::set_project_limits(opened.as_fd(), record.project(), bytes, inodes)
            .map_err(|source| SliverError::Quota { login: record.login(), source })
    }

    /// Starts a sliver, unless it runs.
    ///
    /// # Errors
    /// When there is no such sliver, or a part of it cannot be made; nothing of it runs then.
    pub fn start(&self, login: &str) -> Result<(), SliverError> {
        let record = self.get(login)?;
        let _lock = self.lock(login)?;
        let group = self.group(login);
        if group.first_process().is_some() {
            return Ok(());
        }
        // A session may have outlived the first process in its last moments.
        group.kill()?;
        group.limit(&record.spec.rspec)?;
        let directory = self.directory(login);
        let scratch = self.paths.run.join(login);
        fs::create_dir_all(&scratch).at("making", &scratch)?;
        let order = boot::Order {
            host_name: record.host_name(),
            id_base: record.id_base(),
            lower: self.paths.trees.join(&record.image),
            upper: directory.join("upper"),
            work: directory.join("work"),
            scratch,
            leaf: group.init(),
        };
        for path in [&order.lower, &order.upper, &order.scratch] {
            if !boot::is_plain(path) {
                let source = io::Error::from(io::ErrorKind::InvalidFilename);
                return Err(SliverError::Path { doing: "using as a layer", path: path.clone(), source });
            }
        }
        boot::start(login, &order).inspect_err(|_| {
            // What failed to start is what matters to the caller.
            let _ = group.kill();
        })
    }

    /// Whether the sliver runs.
    pub fn is_running(&self, login: &str) -> bool {
        self.group(login).first_process().is_some()
    }

    /// Bytes of memory and number of processes a sliver has now.
    pub fn usage(&self, login: &str) -> (u64, u32) {
        self.group(login).usage()
    }

    /// What a sliver has on disk.
    ///
    /// # Errors
    /// When there is no such sliver, or no quotas.
    pub fn disk_usage(&self, login: &str) -> Result<quota::Usage, SliverError> {
        let record = self.get(login)?;
        let home = self.home();
        let opened = File::open(&home).at("opening", &home)?;
        quota::project_usage(opened.as_fd(), record.project())
            .map_err(|source| SliverError::Quota { login: login.into(), source })
    }

    /// Kills everything in a sliver. What it wrote stays.
    ///
    /// # Errors
    /// When its control group cannot be written.
    pub fn stop(&self, login: &str) -> Result<(), SliverError> {
        self.get(login)?;
        let _lock = self.lock(login)?;
        let group = self.group(login);
        group.kill()?;
        group.remove()
    }

    /// Destroys a sliver with all it wrote. There being none is no error.
    ///
    /// # Errors
    /// When something of it cannot be removed; [`Slivers::open`] finishes what began.
    pub fn destroy(&self, login: &str) -> Result<(), SliverError> {
        let record = match self.get(login) {
            Err(SliverError::Unknown(_)) => return Ok(()),
            result => result?,
        };
        self.stop(login)?;
        let _all = self.lock(".all")?;
        let _lock = self.lock(login)?;
        let dying = self.home().join(format!("{TRANSIENT}dead-{login}"));
        if dying.exists() {
            remove_tree(&dying).at("removing", &dying)?;
        }
        let directory = self.directory(login);
        fs::rename(&directory, &dying).at("renaming", &directory)?;
        remove_tree(&dying).at("removing", &dying)?;
        self.set_quota(&record, 0, 0)
    }

    /// Runs a command in a sliver, which is started if it does not run.
    ///
    /// # Errors
    /// When there is no such sliver, or it cannot be started or entered. A command that does not exist is none: it exits
    /// with 127, as from a shell.
    pub fn enter(&self, login: &str, request: EnterRequest) -> Result<Entered, SliverError> {
        self.begin(login, |first, leaf| enter::begin(login, first, leaf, request))?.finish()
    }

    /// Makes a socket inside a sliver, which is started if it does not run.
    ///
    /// # Errors
    /// When there is no such sliver, it cannot be started or entered, or the socket cannot be made.
    pub fn socket(&self, login: &str, wish: Wish) -> Result<Made, SliverError> {
        self.begin(login, |first, leaf| enter::begin_socket(login, first, leaf, wish))?.finish_socket()
    }

    /// Lets a helper join a sliver's new session. How long the rest takes is up to the sliver, which then must not hold up its
    /// own end: the lock is not held any more.
    fn begin(
        &self,
        login: &str,
        helper: impl FnOnce(Pid, PathBuf) -> Result<Entering, SliverError>,
    ) -> Result<Entering, SliverError> {
        self.start(login)?;
        let _lock = self.lock(login)?;
        let group = self.group(login);
        let Some(first) = group.first_process() else {
            return Err(SliverError::Enter { login: login.into(), message: "it stopped meanwhile".into() });
        };
        let leaf = loop {
            let number = self.sessions.fetch_add(1, Ordering::Relaxed);
            match group.session(&format!("session-{number}")) {
                // Left by a node manager before this one, and still in use.
                Err(SliverError::Path { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {}
                result => break result?,
            }
        };
        helper(first, leaf)
    }
}
