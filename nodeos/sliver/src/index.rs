//! Which number a new sliver gets.

use std::{fs::File, os::fd::AsFd, sync::atomic::Ordering};

use orrery_sys::quota;

use crate::{
    error::{At, SliverError},
    record::{MAX_INDEX, project},
    slivers::Slivers,
};

impl Slivers {
    /// A number that no sliver has, asked of the file system's own accounts: every sliver has files in the project of its number. So
    /// it takes no look at the others' records, of which there may be thousands; and the number of a sliver whose last files are still
    /// held open is not given away, since those would count for its heir. To be called under the lock on all.
    pub(crate) fn free_index(&self) -> Result<u32, SliverError> {
        let home = self.home();
        let opened = File::open(&home).at("opening", &home)?;
        // Those before are likely taken: when this program last looked, they were.
        let likely = self.next_index.load(Ordering::Relaxed);
        for index in (likely..MAX_INDEX).chain(0..likely) {
            let used = quota::project_usage(opened.as_fd(), project(index)).at("asking for quotas of", &home)?;
            if used.inodes == 0 {
                self.next_index.store(index + 1, Ordering::Relaxed);
                return Ok(index);
            }
        }
        Err(SliverError::Full)
    }
}
