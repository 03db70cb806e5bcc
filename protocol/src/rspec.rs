//! What a sliver may use.

use core::{fmt, ops::RangeInclusive};

use serde::{Deserialize, Serialize};

use crate::{cpus::CpuSet, extras::Extras};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const PIB: u64 = 1 << 50;

/// Without another number, a sliver has one file for so many bytes of its quota: the ratio ext4 makes inodes at.
const BYTES_PER_INODE: u64 = 16 * KIB;
/// The fewest files that a sliver is usable with.
const LEAST_INODES: u64 = 64;

/// A resource specification: what one sliver may use, and what it is sure to get. Every field has a default, so no sliver is
/// unlimited. Where 0 is outside of a field's range, it stands for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rspec {
    /// Weight among slivers that compete for CPU time which nobody is guaranteed.
    pub cpu_share: u32,
    /// CPU time that the sliver gets whatever others do, in per cent of one CPU. Admission-controlled.
    pub cpu_pct: u32,
    /// CPU time that it never gets more of, even if nobody else wants it, in per cent of one CPU; or 0.
    pub cpu_cap_pct: u32,
    /// The CPUs that it runs on; all if there is none.
    pub cpus: CpuSet,
    /// Memory, in bytes.
    pub mem_limit: u64,
    /// What of it may be swapped out beyond that, in bytes.
    pub swap_limit: u64,
    /// Private disk space, in bytes.
    pub disk_quota: u64,
    /// Private files and directories, or 0 for as many as go with the space.
    pub disk_inodes: u64,
    /// Weight among slivers that compete for the disk.
    pub io_weight: u32,
    /// Bytes a second read from the disk, or 0.
    pub io_read_bps: u64,
    /// Bytes a second written to the disk, or 0.
    pub io_write_bps: u64,
    /// Reads of the disk a second, or 0.
    pub io_read_iops: u64,
    /// Writes to the disk a second, or 0.
    pub io_write_iops: u64,
    /// Processes and threads.
    pub pids_limit: u32,
    /// Files that one process may have open.
    pub nofile: u64,
    /// Memory that one process may lock, in bytes.
    pub memlock: u64,
    /// What it has beyond what all have.
    #[serde(skip_serializing_if = "Extras::is_empty")]
    pub extras: Extras,
}

impl Default for Rspec {
    fn default() -> Self {
        Self {
            cpu_share: 100,
            cpu_pct: 0,
            cpu_cap_pct: 0,
            cpus: CpuSet::default(),
            mem_limit: 256 * MIB,
            swap_limit: 0,
            disk_quota: 1024 * MIB,
            disk_inodes: 0,
            io_weight: 100,
            io_read_bps: 0,
            io_write_bps: 0,
            io_read_iops: 0,
            io_write_iops: 0,
            pids_limit: 256,
            nofile: 65_536,
            memlock: 8 * MIB,
            extras: Extras::default(),
        }
    }
}

/// A limit outside of what can be enforced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RspecError {
    /// The field.
    pub field: &'static str,
    /// What it may be.
    pub range: &'static str,
}

impl fmt::Display for RspecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` must be {}", self.field, self.range)
    }
}

impl core::error::Error for RspecError {}

/// A field that is a number, its range, and whether 0 may stand for none.
type Bounds = (&'static str, u64, RangeInclusive<u64>, Zero, &'static str);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Zero {
    IsNone,
    IsANumber,
}

impl Rspec {
    /// Files and directories it may have.
    pub fn inodes(&self) -> u64 {
        match self.disk_inodes {
            0 => (self.disk_quota / BYTES_PER_INODE).max(LEAST_INODES),
            inodes => inodes,
        }
    }

    /// Checks every limit against its range.
    ///
    /// # Errors
    /// The first one outside.
    pub fn check(&self) -> Result<(), RspecError> {
        let inside =
            |(_, value, range, zero, _): &Bounds| range.contains(value) || (*value == 0 && *zero == Zero::IsNone);
        if let Some((field, .., range)) = self.bounds().into_iter().find(|bounds| !inside(bounds)) {
            return Err(RspecError { field, range });
        }
        if self.cpu_cap_pct != 0 && self.cpu_cap_pct < self.cpu_pct {
            return Err(RspecError { field: "cpu_cap_pct", range: "no less than `cpu_pct`, or 0" });
        }
        // The time that others leave on single CPUs follows from no sum.
        if self.cpu_pct != 0 && !self.cpus.is_empty() {
            return Err(RspecError {
                field: "cpu_pct",
                range: "0 where `cpus` names some: a guarantee is of any CPU's time",
            });
        }
        Ok(())
    }

    fn bounds(&self) -> [Bounds; 15] {
        use Zero::{IsANumber, IsNone};
        const PCT: u64 = 100 * CpuSet::CAPACITY as u64;
        // What a capped sliver has not written yet, others' syncs may have to wait for: the file system has one journal.
        let rate = |field, value| (field, value, MIB..=PIB, IsNone, "1 MiB to 1 PiB a second, or 0");
        let operations = |field, value| (field, value, 10..=1_000_000_000, IsNone, "10 to 1000000000 a second, or 0");
        [
            ("cpu_share", self.cpu_share.into(), 1..=10_000, IsANumber, "1 to 10000"),
            ("cpu_pct", self.cpu_pct.into(), 1..=PCT, IsNone, "1 to 51200, or 0"),
            ("cpu_cap_pct", self.cpu_cap_pct.into(), 1..=PCT, IsNone, "1 to 51200, or 0"),
            ("mem_limit", self.mem_limit, 8 * MIB..=PIB, IsANumber, "8 MiB to 1 PiB"),
            ("swap_limit", self.swap_limit, 0..=PIB, IsANumber, "0 to 1 PiB"),
            ("disk_quota", self.disk_quota, MIB..=PIB, IsANumber, "1 MiB to 1 PiB"),
            ("disk_inodes", self.disk_inodes, LEAST_INODES..=1 << 32, IsNone, "64 to 4294967296, or 0"),
            ("io_weight", self.io_weight.into(), 1..=10_000, IsANumber, "1 to 10000"),
            rate("io_read_bps", self.io_read_bps),
            rate("io_write_bps", self.io_write_bps),
            operations("io_read_iops", self.io_read_iops),
            operations("io_write_iops", self.io_write_iops),
            ("pids_limit", self.pids_limit.into(), 8..=4_194_304, IsANumber, "8 to 4194304"),
            // Below that, what starts in a sliver cannot; above, the kernel lets nobody.
            ("nofile", self.nofile, 64..=1_048_576, IsANumber, "64 to 1048576"),
            ("memlock", self.memlock, 0..=PIB, IsANumber, "0 to 1 PiB"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let check = |change: fn(&mut Rspec), field: Option<&str>| {
            let mut rspec = Rspec::default();
            change(&mut rspec);
            assert_eq!(rspec.check().err().map(|e| e.field), field);
        };
        check(|_| (), None);
        check(|r| r.cpu_share = 0, Some("cpu_share"));
        check(|r| r.cpu_pct = 51_200, None);
        check(|r| r.cpu_pct = 51_201, Some("cpu_pct"));
        check(|r| (r.cpu_pct, r.cpu_cap_pct) = (50, 50), None);
        check(|r| (r.cpu_pct, r.cpu_cap_pct) = (50, 49), Some("cpu_cap_pct"));
        check(|r| r.cpus = [0, 3].into_iter().collect(), None);
        check(|r| (r.cpu_pct, r.cpus) = (50, [0].into_iter().collect()), Some("cpu_pct"));
        check(|r| r.mem_limit = 1, Some("mem_limit"));
        check(|r| r.swap_limit = 1 << 60, Some("swap_limit"));
        check(|r| r.disk_quota = 0, Some("disk_quota"));
        check(|r| r.disk_inodes = 63, Some("disk_inodes"));
        check(|r| r.io_weight = 0, Some("io_weight"));
        check(|r| r.io_read_bps = 1, Some("io_read_bps"));
        check(|r| r.io_write_bps = 1, Some("io_write_bps"));
        check(|r| r.io_read_iops = 9, Some("io_read_iops"));
        check(|r| r.io_write_iops = 10, None);
        check(|r| r.pids_limit = 0, Some("pids_limit"));
        check(|r| r.nofile = 63, Some("nofile"));
        check(|r| r.memlock = 0, None);
    }

    #[test]
    fn files_go_with_the_space() {
        let check = |disk_quota, disk_inodes, expect| {
            assert_eq!(Rspec { disk_quota, disk_inodes, ..Rspec::default() }.inodes(), expect);
        };
        check(1 << 30, 0, 65_536);
        check(1 << 20, 0, 64);
        check(1 << 20, 1000, 1000);
    }

    #[test]
    fn a_specification_of_the_first_day_is_understood() {
        let text = r#"{"cpu_share":7,"mem_limit":67108864,"disk_quota":1073741824,"pids_limit":256}"#;
        let expect = Rspec { cpu_share: 7, mem_limit: 64 << 20, ..Rspec::default() };
        assert_eq!(serde_json::from_str::<Rspec>(text).unwrap(), expect);
        let again = serde_json::to_string(&Rspec { cpus: [1, 2].into_iter().collect(), ..expect }).unwrap();
        assert!(again.contains(r#""cpus":"1-2""#), "{again}");
    }
}
