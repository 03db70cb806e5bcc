//! Snapshots of slivers' private layers, and layers on their way from one sliver to another.
//!
//! A snapshot is a copy of `upper/` in the sliver's directory, on the sliver's own quota: it takes nothing that others have, and a
//! sliver that is reset or destroyed takes its snapshots with it. What becomes a sliver's layer is first put together beside it, on
//! the same quota, and then takes its place in one step; a crash before leaves the old one, and files under names that begin
//! with a dot, which whoever opens the slivers next removes.
//!
//! While a layer is copied that is in use, the sliver stands still, frozen, and does not start: as after a power cut, but for
//! what had not reached the disk, which the copy has.

mod error;
mod export;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod identity;
mod import;
mod layer;
mod work;

use std::{
    fs::{self, File},
    io::Write,
    os::{fd::AsFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use orrery_protocol::{LayerSize, Snapshot, SnapshotName};
use orrery_sys::quota;
use rustix::{
    fs::{CWD, RenameFlags},
    io::Errno,
};

pub use self::error::SnapshotError;
pub(crate) use self::work::{WORKERS, helper};
use self::{
    identity::Range,
    layer::{Deadline, Owners, copy},
    work::Still,
};
use crate::{
    cgroup::DYING,
    error::{At, SliverError},
    record::Record,
    remove::remove_tree,
    slivers::{Slivers, TRANSIENT},
};

/// Snapshots of one sliver.
const MAX_SNAPSHOTS: usize = 16;
/// In a sliver's directory.
const SNAPSHOTS: &str = "snapshots";
const UPPER: &str = "upper";
/// What is about to be a sliver's layer.
const STAGED: &str = ".staged";
/// In a snapshot's directory, beside its layer.
const ABOUT: &str = "snapshot.json";

/// The right to work on the layers of one sliver, which nobody else has meanwhile.
#[derive(Debug)]
pub struct Work<'a> {
    slivers: &'a Slivers,
    login: String,
    deadline: Deadline,
    _lock: File,
}

impl Slivers {
    /// The snapshots of a sliver, the oldest first.
    ///
    /// # Errors
    /// When there is no such sliver, or they cannot be read.
    pub fn snapshots(&self, login: &str) -> Result<Vec<Snapshot>, SnapshotError> {
        self.get(login)?;
        let mut snapshots = Vec::new();
        for name in names(&self.directory(login).join(SNAPSHOTS))? {
            if let Ok(name) = name.parse::<SnapshotName>() {
                snapshots.push(read_about(&self.snapshot_path(login, &name).join(ABOUT))?);
            }
        }
        snapshots.sort_by(|one: &Snapshot, other| (one.created, &one.name).cmp(&(other.created, &other.name)));
        Ok(snapshots)
    }

    fn snapshot_path(&self, login: &str, name: &SnapshotName) -> PathBuf {
        self.directory(login).join(SNAPSHOTS).join(name.as_str())
    }

    /// Begins work on the layers of a sliver, which is given up after `patience`.
    ///
    /// # Errors
    /// When there is no such sliver, or somebody works on it.
    pub fn work(&self, login: &str, patience: Duration) -> Result<Work<'_>, SnapshotError> {
        self.get(login)?;
        let lock = self.try_lock(login, "work")?.ok_or_else(|| SnapshotError::Busy(login.into()))?;
        // Whoever worked here last may have been killed.
        self.settle(login, DYING)?;
        let deadline = Deadline::after(patience);
        Ok(Work { slivers: self, login: login.into(), deadline, _lock: lock })
    }

    /// Removes what work that was killed left of a sliver's layers. To be called while nobody works on it.
    pub(crate) fn sweep_layers(&self, login: &str) -> Result<(), SliverError> {
        let directory = self.directory(login);
        for parent in [directory.join(SNAPSHOTS), directory] {
            for name in names(&parent)?.into_iter().filter(|name| name.starts_with(TRANSIENT)) {
                let path = parent.join(name);
                remove_tree(&path).at("removing", &path)?;
            }
        }
        Ok(())
    }
}

impl Work<'_> {
    /// Takes a snapshot. What runs in the sliver stands still meanwhile.
    ///
    /// # Errors
    /// When there is one of that name or there are too many, or the sliver's quota does not hold it.
    pub fn take(&self, name: &SnapshotName) -> Result<Snapshot, SnapshotError> {
        let (home, path) = (self.directory().join(SNAPSHOTS), self.path(name));
        if path.exists() {
            return Err(SnapshotError::Exists(name.clone()));
        }
        if names(&home)?.len() >= MAX_SNAPSHOTS {
            return Err(SnapshotError::Full(MAX_SNAPSHOTS));
        }
        if !home.exists() {
            self.make_directory(&home)?;
        }
        let new = home.join(format!("{TRANSIENT}new"));
        self.putting_together(&new, || {
            let upper = new.join(UPPER);
            fs::create_dir(&upper).at("making", &upper)?;
            let still = self.hold_still()?;
            let size = self.copy(&self.directory().join(UPPER), &upper, Owners::Same)?;
            drop(still);
            let snapshot = Snapshot { name: name.clone(), created: now(), size };
            write_about(&new.join(ABOUT), &snapshot)?;
            self.write_out()?;
            rustix::fs::renameat_with(CWD, &new, CWD, &path, RenameFlags::NOREPLACE).at("naming", &path)?;
            flush(&home)?;
            Ok(snapshot)
        })
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// When there is none of that name, or it cannot be removed.
    pub fn delete(&self, name: &SnapshotName) -> Result<(), SnapshotError> {
        let home = self.directory().join(SNAPSHOTS);
        let (path, dying) = (self.path(name), home.join(format!("{TRANSIENT}dead")));
        match fs::rename(&path, &dying) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(SnapshotError::Missing(name.clone()));
            }
            result => result.at("removing", &path)?,
        }
        flush(&home)?;
        Ok(remove_tree(&dying).at("removing", &dying)?)
    }

    /// Makes the sliver what the snapshot is. All that runs in it ends.
    ///
    /// # Errors
    /// When there is none of that name, or the sliver's quota does not hold another copy.
    pub fn restore(&self, name: &SnapshotName) -> Result<LayerSize, SnapshotError> {
        self.replace(|staged| self.copy(&self.layer_of(name)?, staged, Owners::Same))
    }

    /// Makes the sliver that `target` is for what the snapshot is, with owners of its own. All that runs in it ends.
    ///
    /// # Errors
    /// As for [`restore`](Self::restore), and when the two slivers began with different images.
    pub fn clone_into(&self, name: &SnapshotName, target: &Work<'_>) -> Result<LayerSize, SnapshotError> {
        let (source, sink) = (self.record()?, target.record()?);
        target.check_image(&source.image)?;
        let owners = Owners::Move { from: Range(source.id_base()), to: Range(sink.id_base()) };
        target.replace(|staged| {
            let size = target.copy(&self.layer_of(name)?, staged, owners)?;
            // A sliver that was reset or destroyed takes its snapshots away beneath the copy.
            self.layer_of(name).map(|_| size)
        })
    }

    /// Refuses a layer that lies on another image.
    fn check_image(&self, found: &str) -> Result<(), SnapshotError> {
        let expected = self.record()?.image;
        if expected == found {
            return Ok(());
        }
        Err(SnapshotError::OtherImage { login: self.login.clone(), expected, found: found.into() })
    }

    fn record(&self) -> Result<Record, SliverError> {
        self.slivers.get(&self.login)
    }

    fn directory(&self) -> PathBuf {
        self.slivers.directory(&self.login)
    }

    fn path(&self, name: &SnapshotName) -> PathBuf {
        self.slivers.snapshot_path(&self.login, name)
    }

    fn layer_of(&self, name: &SnapshotName) -> Result<PathBuf, SnapshotError> {
        let path = self.path(name);
        if path.is_dir() { Ok(path.join(UPPER)) } else { Err(SnapshotError::Missing(name.clone())) }
    }

    fn copy(&self, from: &Path, to: &Path, owners: Owners) -> Result<LayerSize, SnapshotError> {
        work::within_quota(|| copy(from, to, owners, &self.deadline))
    }

    /// Makes a directory that nobody but the node's root enters, whose files are all charged to the sliver.
    fn make_directory(&self, path: &Path) -> Result<(), SnapshotError> {
        fs::DirBuilder::new().mode(0o700).create(path).at("making", path)?;
        let opened = File::open(path).at("opening", path)?;
        let login = self.login.clone();
        let charged = quota::set_project(opened.as_fd(), self.record()?.project());
        Ok(charged.map_err(|source| SliverError::Quota { login, source })?)
    }

    /// Does `work` in the new directory `path`, and removes that if it failed.
    fn putting_together<T>(
        &self,
        path: &Path,
        work: impl FnOnce() -> Result<T, SnapshotError>,
    ) -> Result<T, SnapshotError> {
        self.make_directory(path)?;
        work().inspect_err(|_| remove_or_warn(path))
    }

    /// Has the sliver stand still, and not start, until the result is dropped.
    fn hold_still(&self) -> Result<Still<'_>, SnapshotError> {
        Still::begin(self.slivers, &self.login)
    }

    /// Puts a layer together with `fill`, stops the sliver, and gives it the layer.
    fn replace(
        &self,
        fill: impl FnOnce(&Path) -> Result<LayerSize, SnapshotError>,
    ) -> Result<LayerSize, SnapshotError> {
        let (staged, upper) = (self.directory().join(STAGED), self.directory().join(UPPER));
        self.putting_together(&staged, || {
            let size = fill(&staged)?;
            self.write_out()?;
            let lock = self.slivers.lock(&self.login)?;
            let record = self.record()?;
            if let Some(reason) = record.spec.life.suspended {
                return Err(SliverError::Suspended { slice: record.spec.slice, reason }.into());
            }
            self.slivers.stop_locked(&self.login, &lock)?;
            rustix::fs::renameat_with(CWD, &staged, CWD, &upper, RenameFlags::EXCHANGE).at("replacing", &upper)?;
            flush(&self.directory())?;
            drop(lock);
            remove_or_warn(&staged);
            Ok(size)
        })
    }

    /// Everything has to be on the disk before a name says so. One call instead of one for each file.
    fn write_out(&self) -> Result<(), SnapshotError> {
        let home = self.directory();
        let opened = File::open(&home).at("opening", &home)?;
        Ok(rustix::fs::syncfs(&opened).at("writing out", &home)?)
    }
}

/// What cannot be removed costs space until the slivers are next opened.
fn remove_or_warn(path: &Path) {
    if let Err(error) = remove_tree(path) {
        tracing::warn!("removing {}: {error}", path.display());
    }
}

/// The names in a directory, which need not exist. Those that are not text are nobody's here.
fn names(directory: &Path) -> Result<Vec<String>, SliverError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.at("listing", directory)?,
    };
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

fn flush(directory: &Path) -> Result<(), SliverError> {
    File::open(directory).and_then(|opened| opened.sync_all()).at("flushing", directory)
}

fn read_about(path: &Path) -> Result<Snapshot, SliverError> {
    let text = fs::read(path).at("reading", path)?;
    serde_json::from_slice(&text).map_err(|source| SliverError::Record { path: path.into(), source })
}

fn write_about(path: &Path, snapshot: &Snapshot) -> Result<(), SnapshotError> {
    let text = serde_json::to_vec(snapshot).map_err(|source| SliverError::Record { path: path.into(), source })?;
    work::within_quota(|| File::create_new(path).and_then(|mut file| file.write_all(&text))).map_err(|source| {
        match Errno::from_io_error(&source) {
            Some(Errno::NOSPC | Errno::DQUOT) => SnapshotError::NoSpace { path: path.into() },
            _ => SliverError::Path { doing: "writing", path: path.into(), source }.into(),
        }
    })
}

/// Unix seconds.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
