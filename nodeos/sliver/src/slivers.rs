//! Every sliver of a node.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::DirBuilderExt},
    path::PathBuf,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use orrery_protocol::{Admin, Life, Rspec, SliverSpec, Startup};
use orrery_sys::quota;
use rustix::{
    fs::{CWD, FlockOperation, RenameFlags},
    process::Pid,
};

use crate::{
    boot,
    cgroup::{Activity, ControlGroup, SESSION},
    enter::{self, EnterRequest, Entered, Entering},
    error::{At, SliverError},
    first,
    forkserver::ForkServer,
    leftovers::directories,
    ports::SocketLimit,
    record::Record,
    remove::remove_tree,
    socket::{Made, Wish},
};

/// How long who comes in waits for a sliver whose layer is copied, and how often they look.
const COPYING: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);
/// A record, in a sliver's directory.
const RECORD: &str = "sliver.json";
/// A directory with this prefix is no sliver: one being made or destroyed.
pub(crate) const TRANSIENT: char = '.';

/// Where slivers are kept.
#[derive(Debug, Clone)]
pub struct SliverPaths {
    /// The data partition; slivers are in its `slivers` directory.
    pub data: PathBuf,
    /// For locks and notes, in memory.
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

/// The slivers of a node. Cheap to open, and without state in memory that anybody would miss.
#[derive(Debug)]
pub struct Slivers {
    pub(crate) paths: SliverPaths,
    pub(crate) sessions: AtomicU64,
    /// Where the search for a free number begins.
    pub(crate) next_index: AtomicU32,
    pub(crate) sockets: SocketLimit,
    helpers: ForkServer,
}

/// The lock on one sliver, or on all, held until this and every duplicate of its descriptor is closed.
pub(crate) struct Lock(File);

/// Refuses what no sliver is called, and no path has to contain.
fn check_login(login: &str) -> Result<(), SliverError> {
    let plain = !login.is_empty() && login.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if plain { Ok(()) } else { Err(SliverError::Unknown(login.into())) }
}

impl Slivers {
    /// Opens the slivers at `paths`, removes what whoever used them last left when it died, and renews suspensions.
    ///
    /// # Errors
    /// When a directory cannot be made or read.
    pub fn open(paths: SliverPaths) -> Result<Self, SliverError> {
        let slivers = Self { helpers: ForkServer::lasting(), ..Self::at(paths) };
        for directory in [slivers.home(), slivers.paths.run.clone()] {
            fs::DirBuilder::new().recursive(true).mode(0o711).create(&directory).at("making", &directory)?;
        }
        let _lock = slivers.lock_all()?;
        slivers.reconcile_leftovers()?;
        Ok(slivers)
    }

    /// The slivers at `paths`, which somebody else has opened and looks after.
    pub(crate) fn at(paths: SliverPaths) -> Self {
        let (sessions, next_index) = (AtomicU64::new(0), AtomicU32::new(0));
        let (sockets, helpers) = (SocketLimit::default(), ForkServer::passing());
        Self { paths, sessions, next_index, sockets, helpers }
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.paths.data.join("slivers")
    }

    pub(crate) fn directory(&self, login: &str) -> PathBuf {
        self.home().join(login)
    }

    pub(crate) fn group(&self, login: &str) -> ControlGroup {
        ControlGroup::new(&self.paths.cgroup, login)
    }

    /// The lock on the sliver of this login.
    ///
    /// # Errors
    /// When no sliver can have such a login, which never becomes part of a path then.
    pub(crate) fn lock(&self, login: &str) -> Result<Lock, SliverError> {
        check_login(login)?;
        self.lock_file(login)
    }

    /// The lock on making and destroying slivers. To be taken before that on one.
    fn lock_all(&self) -> Result<Lock, SliverError> {
        self.lock_file(".all")
    }

    fn lock_file(&self, name: &str) -> Result<Lock, SliverError> {
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
        records.sort_by_cached_key(Record::login);
        Ok(records)
    }

    /// The logins of all that run, or did a moment ago, in no order. Those that do not, cost this nothing.
    pub fn running(&self) -> Vec<String> {
        directories(&self.paths.cgroup).into_iter().map(|(login, _)| login).collect()
    }

    /// The sliver whose login this is.
    ///
    /// # Errors
    /// When there is none, or its record cannot be read.
    pub fn get(&self, login: &str) -> Result<Record, SliverError> {
        check_login(login)?;
        let path = self.directory(login).join(RECORD);
        if !path.exists() {
            return Err(SliverError::Unknown(login.into()));
        }
        Record::load(&path)
    }

    /// Makes the sliver `spec` describes, from the tree the image store knows as `image`, or brings the limits and keys of
    /// the one there is up to date. It is not started. A new one has been reset and restarted as often as `spec` asks, and is not
    /// suspended.
    ///
    /// # Errors
    /// When there is another one, be it of another image, or the disk or the quota refuses.
    pub fn create(&self, spec: &SliverSpec, image: &str) -> Result<Record, SliverError> {
        let login = spec.slice.login();
        // Creations choose numbers one after the other.
        let _all = self.lock_all()?;
        let _lock = self.lock(&login)?;
        let directory = self.directory(&login);
        match self.get(&login) {
            Ok(now) if now.image != image || now.spec.life.is_of_another(&spec.life) => {
                return Err(SliverError::Exists(login));
            }
            Ok(now) => {
                let (life, admin) = (now.spec.life.clone(), now.spec.admin.clone());
                let record = Record { spec: SliverSpec { life, admin, ..spec.clone() }, ..now.clone() };
                if record != now {
                    record.store(&directory.join(RECORD))?;
                }
                self.limit(&record)?;
                return Ok(record);
            }
            Err(SliverError::Unknown(_)) => {}
            Err(error) => return Err(error),
        }

        let index = self.free_index()?;
        let life = Life { suspended: None, ..spec.life };
        let record = Record { index, image: image.into(), spec: SliverSpec { life, ..spec.clone() } };
        let new = self.build(&record)?;
        self.limit_disk(&record)?;
        fs::rename(&new, &directory).at("naming", &directory)?;
        self.flush()?;
        Ok(record)
    }

    /// Makes names in the directory of slivers last.
    fn flush(&self) -> Result<(), SliverError> {
        let home = self.home();
        File::open(&home).and_then(|d| d.sync_all()).at("flushing", &home)
    }

    /// Makes the files of a sliver that has written nothing yet, under a transient name.
    fn build(&self, record: &Record) -> Result<PathBuf, SliverError> {
        let login = record.login();
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
        record.write(&new.join(RECORD))?;
        Ok(new)
    }

    /// Discards all that a sliver wrote, so that it is as one just made from `image`, which the image store knows under that name.
    /// `spec` says which image that is and the number of the reset; one that was carried out already does nothing.
    ///
    /// What the sliver is then appears under its name in one step, the number with it: a crash leaves it as it was or reset.
    ///
    /// # Errors
    /// When there is no such sliver, or the disk refuses.
    pub fn reset(&self, spec: &SliverSpec, image: &str) -> Result<(), SliverError> {
        let login = spec.slice.login();
        if self.get(&login)?.spec.life.reset >= spec.life.reset {
            return Ok(());
        }
        // First of all: with the lock on all, what takes long to end would hold up everybody.
        self.stop(&login)?;
        let _all = self.lock_all()?;
        let lock = self.lock(&login)?;
        let mut record = self.get(&login)?;
        // It may have been reset by somebody else, or started, meanwhile.
        if record.spec.life.reset >= spec.life.reset {
            return Ok(());
        }
        self.stop_locked(&login, &lock)?;
        record.image = image.into();
        record.spec.image = spec.image.clone();
        record.spec.life.reset = spec.life.reset;
        self.end_work(&login)?;
        let (fresh, directory) = (self.build(&record)?, self.directory(&login));
        rustix::fs::renameat_with(CWD, &fresh, CWD, &directory, RenameFlags::EXCHANGE).at("replacing", &directory)?;
        self.flush()?;
        // What is left to do costs space, and is done when the slivers are next opened.
        remove_tree(&fresh).unwrap_or_else(|error| tracing::warn!("removing {}: {error}", fresh.display()));
        Ok(())
    }

    /// Stops a sliver for its restart of this number, unless that was carried out already. The next login starts it.
    ///
    /// # Errors
    /// As [`Slivers::stop`].
    pub fn restart(&self, login: &str, number: u64) -> Result<(), SliverError> {
        let lock = self.lock(login)?;
        let mut record = self.get(login)?;
        if record.spec.life.restart >= number {
            return Ok(());
        }
        self.stop_locked(login, &lock)?;
        record.spec.life.restart = number;
        record.store(&self.directory(login).join(RECORD))
    }

    /// Stops a sliver for its restart of this number, and suspends it for this reason, so that nothing starts it before it is resumed.
    /// Its service is asked to end first.
    ///
    /// # Errors
    /// As [`Slivers::stop`].
    pub fn shut(&self, login: &str, reason: &str, number: u64) -> Result<(), SliverError> {
        let lock = self.lock(login)?;
        let mut record = self.get(login)?;
        self.stop_locked(login, &lock)?;
        (record.spec.life.suspended, record.spec.life.restart) = (Some(reason.to_owned()), number);
        record.store(&self.directory(login).join(RECORD))
    }

    /// Suspends a sliver for this reason: what runs in it stands still, and nobody gets in. Or lets it go on.
    ///
    /// # Errors
    /// When there is no such sliver, or not all of it stood still in time.
    pub fn set_suspended(&self, login: &str, reason: Option<&str>) -> Result<(), SliverError> {
        let _lock = self.lock(login)?;
        let mut record = self.get(login)?;
        // The record is last: what it says is in force. Whoever opens the slivers makes that so after a crash.
        // One that is held still goes on, or does not, once that ends.
        if !self.is_held_still(login) {
            self.group(login).freeze(reason.is_some())?;
        }
        record.spec.life.suspended = reason.map(str::to_owned);
        record.store(&self.directory(login).join(RECORD))
    }

    /// Makes what a sliver sees and may do of the node what `admin` says. If that is another thing than now, the sliver stops: what
    /// had rights that it is not to have any more ends with them.
    ///
    /// # Errors
    /// As [`Slivers::stop`].
    pub fn set_admin(&self, login: &str, admin: &Admin) -> Result<(), SliverError> {
        let lock = self.lock(login)?;
        let mut record = self.get(login)?;
        if record.spec.admin == *admin {
            return Ok(());
        }
        self.stop_locked(login, &lock)?;
        record.spec.admin = admin.clone();
        record.store(&self.directory(login).join(RECORD))
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

    /// Sets what runs in a sliver without a login. What runs already goes on.
    ///
    /// # Errors
    /// When there is no such sliver, or the disk refuses.
    pub fn set_startup(&self, login: &str, startup: Startup) -> Result<(), SliverError> {
        let _lock = self.lock(login)?;
        let mut record = self.get(login)?;
        record.spec.startup = startup;
        record.store(&self.directory(login).join(RECORD))
    }

    /// Puts the limits of a record in force.
    pub(crate) fn limit(&self, record: &Record) -> Result<(), SliverError> {
        self.limit_disk(record)?;
        if self.is_running(&record.login()) { self.limit_group(record) } else { Ok(()) }
    }

    fn limit_disk(&self, record: &Record) -> Result<(), SliverError> {
        self.set_quota(record, record.spec.rspec.disk_quota, record.spec.rspec.inodes())
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
    /// When there is no such sliver, it is suspended, or a part of it cannot be made; nothing of it runs then.
    pub fn start(&self, login: &str) -> Result<(), SliverError> {
        let lock = self.lock(login)?;
        self.start_locked(login, &lock).map(drop)
    }

    /// As [`Slivers::start`], for who has the lock. Returns what the sliver is.
    pub(crate) fn start_locked(&self, login: &str, lock: &Lock) -> Result<Record, SliverError> {
        let record = self.get(login)?;
        if let Some(reason) = &record.spec.life.suspended {
            return Err(SliverError::Suspended { slice: record.spec.slice, reason: reason.clone() });
        }
        if self.is_held_still(login) {
            return Err(SliverError::HeldStill { slice: record.spec.slice });
        }
        let group = self.group(login);
        if group.first_process().is_some_and(first::listens) {
            // What held it still may have been killed, and who comes in would stand still at the door with the lock.
            return group.freeze(false).map(|()| record);
        }
        // A session may have outlived the first process, and this one whoever was killed while stopping the sliver.
        group.kill()?;
        self.limit_group(&record)?;
        let directory = self.directory(login);
        let order = boot::Order {
            host_name: record.host_name(),
            id_base: record.id_base(),
            lower: self.paths.trees.join(&record.image),
            upper: directory.join("upper"),
            work: directory.join("work"),
            leaf: group.init(),
            rspec: record.spec.rspec,
            admin: record.spec.admin.clone(),
        };
        for path in [&order.lower, &order.upper] {
            if !boot::is_plain(path) {
                let source = io::Error::from(io::ErrorKind::InvalidFilename);
                return Err(SliverError::Path { doing: "using as a layer", path: path.clone(), source });
            }
        }
        boot::start(&self.helpers, login, &order, &lock.0).inspect_err(|_| {
            // What failed to start is what matters to the caller.
            let _ = group.kill();
        })?;
        self.note_start(&record);
        Ok(record)
    }

    /// Does something with an image while no sliver runs on it, nor is started or made: who wants to waits. Returns nothing if one
    /// runs.
    ///
    /// # Errors
    /// When a sliver's record or lock cannot be had.
    pub fn at_rest<T>(&self, image: &str, work: impl FnOnce() -> T) -> Result<Option<T>, SliverError> {
        let _all = self.lock_all()?;
        let mut locks = Vec::new();
        for record in self.list()?.into_iter().filter(|record| record.image == image) {
            locks.push(self.lock(&record.login())?);
            if self.is_running(&record.login()) {
                return Ok(None);
            }
        }
        Ok(Some(work()))
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

    /// What has gone on in a sliver since it was started, if it runs.
    pub fn activity(&self, login: &str) -> Option<Activity> {
        self.group(login).activity()
    }

    /// Kills everything in a sliver. What it wrote stays.
    ///
    /// # Errors
    /// When there is no such sliver, its control group cannot be written, or something in it does not end.
    pub fn stop(&self, login: &str) -> Result<(), SliverError> {
        let lock = self.lock(login)?;
        self.get(login)?;
        self.stop_locked(login, &lock)
    }

    /// Kills everything in a sliver at once: its service is not asked to end, nor is whoever has the sliver's lock waited for. What is
    /// left to do is for [`Slivers::stop`].
    ///
    /// # Errors
    /// As [`Slivers::stop`].
    pub fn kill(&self, login: &str) -> Result<(), SliverError> {
        check_login(login)?;
        self.group(login).kill()
    }

    /// Stops a sliver in which there is nothing but its first process, and nothing ran after `since`. Returns whether it did:
    /// a login that came first keeps it running, one that comes after starts it again.
    ///
    /// # Errors
    /// As [`Slivers::stop`].
    pub fn stop_unused(&self, login: &str, since: Activity) -> Result<bool, SliverError> {
        let lock = self.lock(login)?;
        let unused = since.is_idle() && self.activity(login) == Some(since);
        if unused {
            self.stop_locked(login, &lock)?;
        }
        Ok(unused)
    }

    pub(crate) fn stop_locked(&self, login: &str, lock: &Lock) -> Result<(), SliverError> {
        let group = self.group(login);
        self.ask_service_to_end(login, lock);
        group.kill()?;
        group.remove()
    }

    /// Destroys a sliver with all it wrote. There being none is no error.
    ///
    /// # Errors
    /// When something of it cannot be removed; [`Slivers::open`] finishes what began.
    pub fn destroy(&self, login: &str) -> Result<(), SliverError> {
        // As in a reset.
        match self.stop(login) {
            Err(SliverError::Unknown(_)) => return Ok(()),
            result => result?,
        }
        let _all = self.lock_all()?;
        let lock = self.lock(login)?;
        let record = match self.get(login) {
            Err(SliverError::Unknown(_)) => return Ok(()),
            result => result?,
        };
        self.end_work(login)?;
        self.stop_locked(login, &lock)?;
        let dying = self.home().join(format!("{TRANSIENT}dead-{login}"));
        if dying.exists() {
            remove_tree(&dying).at("removing", &dying)?;
        }
        let directory = self.directory(login);
        fs::rename(&directory, &dying).at("renaming", &directory)?;
        self.flush()?;
        self.forget_kept(login);
        remove_tree(&dying).at("removing", &dying)?;
        self.set_quota(&record, 0, 0)
    }

    /// Runs a command in a sliver, which is started if it does not run.
    ///
    /// # Errors
    /// When there is no such sliver, it is suspended, or it cannot be started or entered. A command that does not exist is
    /// none: it exits with 127, as from a shell.
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

    /// Has a sliver's new session made. How long the rest takes is up to the sliver, which then must not hold up its
    /// own end: the lock is not held any more.
    fn begin(
        &self,
        login: &str,
        session: impl FnOnce(Pid, PathBuf) -> Result<Entering, SliverError>,
    ) -> Result<Entering, SliverError> {
        let meant = self.get(login)?.spec.life;
        // One lock for starting and entering, so that nobody stops it in between.
        let patience = Instant::now() + COPYING;
        let (_lock, record) = loop {
            let lock = self.lock(login)?;
            match self.start_locked(login, &lock) {
                Err(SliverError::HeldStill { .. }) if Instant::now() < patience => {
                    drop(lock);
                    thread::sleep(LOOK);
                }
                result => break (lock, result?),
            }
        };
        // While this waited, somebody else may have got a sliver of that name.
        if record.spec.life.is_of_another(&meant) {
            return Err(SliverError::Unknown(login.into()));
        }
        let group = self.group(login);
        let Some(first) = group.first_process() else {
            return Err(SliverError::Enter { login: login.into(), message: "it stopped meanwhile".into() });
        };
        let leaf = loop {
            let number = self.sessions.fetch_add(1, Ordering::Relaxed);
            match group.session(&format!("{SESSION}{number}")) {
                // Left by a node manager before this one, and still in use.
                Err(SliverError::Path { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {}
                result => break result?,
            }
        };
        session(first, leaf)
    }
}
