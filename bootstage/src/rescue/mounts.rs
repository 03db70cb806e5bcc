//! The installed disk, for reading.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use orrery_installer::{BOOT_LABEL, DATA_LABEL, mount_partition};
use rustix::{
    io::Errno,
    mount::{UnmountFlags, unmount},
};

use crate::{disks, node_config};

/// Below here.
const FOLDER: &str = "/mnt/orrery";
const PARTITIONS: [(&str, &str); 2] = [(BOOT_LABEL, "boot"), (DATA_LABEL, "data")];

/// Mounts both partitions; returns where. What is there already stays as it is.
///
/// # Errors
/// There is no installed disk, or the kernel refuses it.
pub(super) fn mount() -> Result<String> {
    let config = node_config().map_err(|failure| anyhow::anyhow!("{failure}"))?;
    let mounted = fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")?;
    let mut said = String::new();
    for (label, name) in PARTITIONS {
        let target = format!("{FOLDER}/{name}");
        let device = disks::partition(label, &config)?;
        if !mounted.lines().any(|line| line.split(' ').nth(1) == Some(target.as_str())) {
            // Without `noload`, ext4 would replay the journal: a look must not write.
            let kept = mount_partition(&device, Path::new(&target), "ext4", true, "noload")
                .context("the disk may be in use by an installation; see `orrery-node state`")?;
            // Until somebody unmounts it.
            std::mem::forget(kept);
        }
        said.push_str(&format!("{} is at {target}, read-only\n", device.display()));
    }
    Ok(said)
}

/// Unmounts what [`mount`] has mounted.
///
/// # Errors
/// Somebody uses it.
pub(super) fn unmount_all() -> Result<()> {
    for (_, name) in PARTITIONS {
        let target = format!("{FOLDER}/{name}");
        match unmount(&target, UnmountFlags::empty()) {
            // Not mounted, or never made.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("unmounting {target}: who uses it? see `lsof`"));
            }
        }
    }
    Ok(())
}
