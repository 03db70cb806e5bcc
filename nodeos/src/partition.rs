//! Partitions by their GPT name.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Where the kernel lists block devices.
pub const BLOCK_CLASS: &str = "/sys/class/block";

/// A partition that could not be told.
#[derive(Debug, thiserror::Error)]
pub enum PartitionError {
    /// There is none.
    #[error("no partition is named {0}")]
    Missing(String),
    /// There are several, and using the wrong one would be worse than using none.
    #[error("partitions {devices} are all named {name}: unplug the disk that is not this node's")]
    Ambiguous {
        /// The name.
        name: String,
        /// The devices.
        devices: String,
    },
    /// The list could not be read.
    #[error("reading {path}: {source}")]
    Read {
        /// What was read.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// The device node of the only partition named `name`, by the list of block devices in `class`.
///
/// # Errors
/// When there is none or there are several.
pub fn find(class: &Path, name: &str) -> Result<PathBuf, PartitionError> {
    let entries = fs::read_dir(class).map_err(|source| PartitionError::Read { path: class.to_owned(), source })?;
    let mut found = Vec::new();
    for entry in entries.flatten() {
        // A device that goes away meanwhile is none.
        let Ok(uevent) = fs::read_to_string(entry.path().join("uevent")) else { continue };
        if value(&uevent, "PARTNAME") == Some(name)
            && let Some(device) = value(&uevent, "DEVNAME")
        {
            found.push(format!("/dev/{device}"));
        }
    }
    found.sort();
    match found.as_slice() {
        [] => Err(PartitionError::Missing(name.to_owned())),
        [only] => Ok(PathBuf::from(only)),
        several => Err(PartitionError::Ambiguous { name: name.to_owned(), devices: several.join(", ") }),
    }
}

/// The value of `key` in lines `KEY=value`.
fn value<'a>(uevent: &'a str, key: &str) -> Option<&'a str> {
    uevent.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_found_by_name() {
        let check = |devices: &[(&str, &str)], expect: Result<&str, &str>| {
            let folder = tempfile::tempdir().unwrap();
            for (device, partition) in devices {
                let path = folder.path().join(device);
                fs::create_dir(&path).unwrap();
                let name = if partition.is_empty() { String::new() } else { format!("PARTNAME={partition}\n") };
                fs::write(path.join("uevent"), format!("MAJOR=8\nDEVNAME={device}\n{name}")).unwrap();
            }
            let found = find(folder.path(), "ORRERY-DATA").map_err(|e| e.to_string());
            assert_eq!(found, expect.map(PathBuf::from).map_err(str::to_owned));
        };
        check(&[("sda", ""), ("sda1", "ORRERY-BOOT"), ("sda2", "ORRERY-DATA")], Ok("/dev/sda2"));
        check(&[("sda1", "ORRERY-DATA2"), ("sda2", "XORRERY-DATA")], Err("no partition is named ORRERY-DATA"));
        check(
            &[("sdb2", "ORRERY-DATA"), ("sda2", "ORRERY-DATA")],
            Err("partitions /dev/sda2, /dev/sdb2 are all named ORRERY-DATA: unplug the disk that is not this node's"),
        );
    }
}
