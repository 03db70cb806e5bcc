//! What a node manager that died at any instant, or a power cut, left: removed by whoever opens the slivers next.
//!
//! Each operation keeps an order in which the record's directory, under its own name, alone decides what there is. Everything
//! else is made before it appears there or removed after it is gone, and found here by having no record. Locks are files of no
//! size in memory, and stay.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use orrery_sys::quota::{self, Limit};

use crate::{
    cgroup::DYING,
    error::{At, SliverError},
    record::{MAX_INDEX, Record},
    remove::remove_tree,
    slivers::{Slivers, TRANSIENT},
    snapshot::WORKERS,
};

/// How long the end of what runs is waited for at least, when that of others took long.
const AT_LEAST: Duration = Duration::from_secs(1);

/// What cannot be removed costs space and no more; slivers go on without that.
fn warn<T>(what: &str, result: Result<T, SliverError>) {
    if let Err(error) = result {
        tracing::warn!("removing what is left of {what}: {error}: {:?}", std::error::Error::source(&error));
    }
}

impl Slivers {
    /// Removes leftovers and makes every sliver that runs what its record says. To be called while nobody makes or destroys one.
    pub(crate) fn reconcile_leftovers(&self) -> Result<(), SliverError> {
        let home = self.home();
        for entry in fs::read_dir(&home).at("listing", &home)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(TRANSIENT) {
                warn("a sliver", remove_tree(&entry.path()).at("removing", entry.path()));
            }
        }
        // Without all records it is not known what belongs to none.
        let records = match self.list() {
            Ok(records) => records,
            Err(error) => {
                warn("slivers", Err::<(), _>(error));
                return Ok(());
            }
        };
        let records: BTreeMap<String, Record> = records.into_iter().map(|r| (r.login(), r)).collect();
        // What does not end costs its sliver, and others together no more time than one would.
        let deadline = Instant::now() + DYING;
        let patience = || deadline.saturating_duration_since(Instant::now()).max(AT_LEAST);
        // Nobody waits for what works on layers any more.
        let workers = self.group(WORKERS);
        warn("workers", workers.kill_within(patience()).and_then(|()| workers.remove()));
        for (login, _) in directories(&self.paths.cgroup).into_iter().filter(|(login, _)| !records.contains_key(login))
        {
            let group = self.group(&login);
            warn(&login, group.kill_within(patience()).and_then(|()| group.remove()));
        }
        for login in self.kept_logins().into_iter().filter(|login| !records.contains_key(login)) {
            self.forget_kept(&login);
        }
        for login in records.keys() {
            warn(login, self.settle(login, patience()));
        }
        warn("limits", self.unlimit(&records));
        Ok(())
    }

    /// Makes what runs of a sliver, and its limits, what its record says. Waits that long for the end of what is not to run.
    pub(crate) fn settle(&self, login: &str, patience: Duration) -> Result<(), SliverError> {
        // Waits for a start whose node manager died: what that began holds the lock.
        let _lock = self.lock(login)?;
        self.sweep_layers(login)?;
        let record = self.get(login)?;
        let group = self.group(login);
        if group.first_process().is_none() {
            group.kill_within(patience)?;
            group.remove()?;
        } else {
            group.sweep()?;
            group.freeze(record.spec.life.suspended.is_some())?;
        }
        // Set after the record was written, and not flushed to the disk with it.
        self.limit(&record)
    }

    /// Takes the limits off the projects no sliver has.
    fn unlimit(&self, records: &BTreeMap<String, Record>) -> Result<(), SliverError> {
        let home = self.home();
        let opened = fs::File::open(&home).at("opening", &home)?;
        // A file system without project quotas has no limits either.
        let limited = quota::projects(opened.as_fd()).unwrap_or_default();
        let limited = limited.into_iter().filter(|project| project.limit != Limit::default()).map(|project| project.id);
        let used: BTreeSet<u32> = records.values().map(Record::project).collect();
        let unused = |project: &u32| (1..=MAX_INDEX).contains(project) && !used.contains(project);
        for project in limited.filter(unused) {
            quota::set_project_limits(opened.as_fd(), project, 0, 0).at("taking limits off a project of", &home)?;
        }
        Ok(())
    }
}

/// The directories in a directory, which need not exist, by name.
pub(crate) fn directories(path: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())).collect()
}
