//! What a running sliver is limited to, and the CPU weights of all that run.

use std::{collections::BTreeSet, fs, thread};

use orrery_protocol::Rspec;

use crate::{
    disk,
    error::{At, SliverError},
    record::Record,
    rlimits,
    slivers::{Slivers, TRANSIENT},
    weights::{Claim, Weights},
};

/// When the kernel takes a disk for saturated, and lets weights decide (`Documentation/admin-guide/cgroup-v2.rst`, io.cost.qos):
/// when one in ten requests takes more than 25 ms, which a disk that keeps up does not, whatever it is made of. By itself the kernel
/// goes by full queues alone, which processes that wait for what they wrote never make.
const SATURATED: &str = "ctrl=user rpct=90 rlat=25000 wpct=90 wlat=25000 min=1 max=10000";

/// The memory that a running sliver holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Whose it is.
    pub login: String,
    /// How much, in bytes: without what the kernel can drop as it is on the disk too.
    pub bytes: u64,
    /// How much it may be, in bytes.
    pub limit: u64,
}

impl Slivers {
    /// Brings a sliver's control group and processes, if there are any, to its limits.
    pub(crate) fn limit_group(&self, record: &Record) -> Result<(), SliverError> {
        let rspec = &record.spec.rspec;
        let disk = || disk::disk_under(&self.paths.data).at("finding the disk of", &self.paths.data);
        self.group(&record.login()).limit(rspec, &self.sockets, disk)?;
        if rspec.io_weight != Rspec::default().io_weight {
            self.weigh_disk(&disk()?)?;
        }
        self.limit_processes(record)
    }

    /// Brings a sliver's processes to its limits.
    pub(crate) fn limit_processes(&self, record: &Record) -> Result<(), SliverError> {
        let login = record.login();
        let group = self.group(&login);
        let Some(first) = group.first_process() else { return Ok(()) };
        rlimits::apply(&record.spec.rspec, first, || group.all_processes())
            .map_err(|source| SliverError::Processes { login, source })
    }

    /// Has the kernel divide the time of a disk by weight. That costs a little of it where the kernel misjudges the disk, so it
    /// does not before some sliver has a weight of its own.
    fn weigh_disk(&self, disk: &str) -> Result<(), SliverError> {
        let path = self.paths.cgroup.parent().unwrap_or(&self.paths.cgroup).join("io.cost.qos");
        let enabled = format!("{disk} enable=1");
        let is = fs::read_to_string(&path).at("reading", &path)?.lines().any(|line| line.starts_with(&enabled));
        if is { Ok(()) } else { fs::write(&path, format!("{enabled} {SATURATED}")).at("writing", &path) }
    }

    /// The memory that each running sliver holds.
    pub fn memory_held(&self) -> Vec<Held> {
        let groups = fs::read_dir(&self.paths.cgroup).into_iter().flatten().flatten();
        let groups = groups.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let names = groups.filter_map(|entry| entry.file_name().into_string().ok());
        // Those that are none have limits of their own, and nobody ends them.
        let logins = names.filter(|name| !name.starts_with(TRANSIENT));
        let held = |login: String| {
            let (bytes, limit) = self.group(&login).memory_held()?;
            Some(Held { login, bytes, limit })
        };
        logins.filter_map(held).collect()
    }

    /// Makes the CPU weights of all slivers that run what their guarantees need, given those that lately wanted time. To be
    /// called now and then: a sliver that begins to want time dilutes guarantees until the next call.
    ///
    /// # Errors
    /// When a weight cannot be written.
    pub fn balance(&self, running: &[Record], busy: &BTreeSet<String>) -> Result<(), SliverError> {
        let claim = |record: &Record| {
            let Rspec { cpu_share, cpu_pct, .. } = record.spec.rspec;
            Claim { share: cpu_share, guarantee: cpu_pct }
        };
        let competes = |record: &&Record| record.spec.rspec.cpu_pct != 0 || busy.contains(&record.login());
        let claims: Vec<_> = running.iter().filter(competes).map(claim).collect();
        let cpus = thread::available_parallelism().map_or(1, |n| n.get() as u32);
        let weights = Weights::new(cpus, &claims);
        for record in running {
            self.group(&record.login()).set_weight(weights.of(claim(record)))?;
        }
        let path = self.paths.cgroup.join("cpu.weight");
        fs::write(&path, weights.group.to_string()).at("writing", &path)
    }
}

#[cfg(test)]
mod tests {
    use crate::slivers::SliverPaths;

    use super::*;

    #[test]
    fn only_slivers_hold_memory() {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in [(".work", "9000"), ("demo_a", "5000")] {
            let group = folder.path().join(name);
            fs::create_dir(&group).unwrap();
            for (file, text) in [
                ("memory.current", bytes),
                ("memory.max", "8000\n"),
                ("memory.stat", "anon 1000\nactive_file 500\ninactive_file 1500\n"),
            ] {
                fs::write(group.join(file), text).unwrap();
            }
        }
        fs::write(folder.path().join("memory.stat"), "").unwrap();
        let slivers = Slivers::at(SliverPaths { cgroup: folder.path().into(), ..SliverPaths::default() });
        assert_eq!(slivers.memory_held(), [Held { login: "demo_a".into(), bytes: 3000, limit: 8000 }]);
    }
}
