//! Block devices.
#![allow(unsafe_code)] // The ioctl has no wrapper.

use std::{io, os::fd::AsFd};

use rustix::ioctl::{NoArg, Opcode, ioctl};

/// `_IO(0x12, 95)`: one of the numbers from before there was a scheme.
const BLKRRPART: Opcode = 0x125f;

/// Makes the kernel read a disk's partition table again.
///
/// # Errors
/// `EBUSY` while a partition is in use, `ENOTTY` where `disk` is no disk.
pub fn reread_partition_table(disk: impl AsFd) -> io::Result<()> {
    // SAFETY: BLKRRPART takes no argument.
    let request = unsafe { NoArg::<BLKRRPART>::new() };
    // SAFETY: as above; on any other kind of file the kernel answers ENOTTY.
    Ok(unsafe { ioctl(disk, request) }?)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn only_disks_have_partition_tables() {
        assert!(reread_partition_table(File::open("/dev/null").expect("opening /dev/null")).is_err());
    }
}
