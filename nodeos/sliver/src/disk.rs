//! The disk that slivers are on, as control groups name it.

use std::{
    fmt::Write,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use orrery_protocol::Rspec;

/// The numbers of the whole disk under the file system that `path` is on, as `8:0`: limits are of disks, not of partitions.
pub(crate) fn disk_under(path: &Path) -> io::Result<String> {
    let device = fs::metadata(path)?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let device = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let whole = if device.join("partition").exists() { device.join("../dev") } else { device.join("dev") };
    Ok(fs::read_to_string(whole)?.trim().to_owned())
}

/// What `io.max` is to be of a disk.
pub(crate) fn caps(rspec: &Rspec, disk: &str) -> String {
    let caps = [
        ("rbps", rspec.io_read_bps),
        ("wbps", rspec.io_write_bps),
        ("riops", rspec.io_read_iops),
        ("wiops", rspec.io_write_iops),
    ];
    let mut text = disk.to_owned();
    for (name, cap) in caps {
        // Writing to a string cannot fail.
        let _ = if cap == 0 { write!(text, " {name}=max") } else { write!(text, " {name}={cap}") };
    }
    text
}

/// Whether a sliver has a cap at all.
pub(crate) fn is_capped(rspec: &Rspec) -> bool {
    [rspec.io_read_bps, rspec.io_write_bps, rspec.io_read_iops, rspec.io_write_iops].iter().any(|cap| *cap != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cap_is_a_number_or_none() {
        let rspec = Rspec { io_read_bps: 1 << 20, io_write_iops: 50, ..Rspec::default() };
        assert_eq!(caps(&rspec, "8:0"), "8:0 rbps=1048576 wbps=max riops=max wiops=50");
        assert!(is_capped(&rspec) && !is_capped(&Rspec::default()));
    }
}
