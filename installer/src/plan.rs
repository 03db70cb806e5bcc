//! What will be done to the disk, said before it is done.

use std::fmt;

use orrery_protocol::ReleaseManifest;

use crate::{
    disk::Disk,
    layout::{BOOT_BYTES, BOOT_LABEL, DATA_LABEL},
    probe::Content,
};

/// An installation that has not begun.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Onto this disk.
    pub disk: Disk,
    /// Which holds this now.
    pub content: Content,
    /// This release.
    pub release: ReleaseManifest,
}

impl Plan {
    /// All that will be downloaded, in bytes.
    pub fn download_bytes(&self) -> u64 {
        self.release.artifacts.iter().fold(0, |sum, a| sum.saturating_add(a.content.size))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "release {} onto {}", self.release.release, self.disk.describe())?;
        writeln!(f, "  overwrites: {}", self.content)?;
        writeln!(f, "  partition 1: {BOOT_LABEL}, {} MiB, ext4", BOOT_BYTES >> 20)?;
        writeln!(f, "  partition 2: {DATA_LABEL}, the rest, ext4 with project quotas and fs-verity")?;
        write!(f, "  download: {} artifacts, {} MiB", self.release.artifacts.len(), self.download_bytes() >> 20)
    }
}
