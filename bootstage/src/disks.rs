//! The installed disk as the boot stages see it.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use orrery_init_api::FailureClass;
use orrery_installer::{
    BOOT_LABEL, DATA_LABEL, InstalledState, Mounted, discover, find_partitions, fits, installed_slot, mount_partition,
    parent_disk, read_state, write_state,
};
use orrery_protocol::{DiskFacts, NodeConfig, ScriptKind};
use thiserror::Error;

use crate::{StageFailure, files::write_private};

const SYS_BLOCK: &str = "/sys/block";
const BOOT_MOUNT: &str = "/mnt/boot";
const DATA_MOUNT: &str = "/mnt/data";

/// NVMe and USB controllers are probed while the first stages run already.
const DISK_DEADLINE: Duration = Duration::from_secs(5);
const DISK_POLL: Duration = Duration::from_millis(20);

#[derive(Debug, Error)]
pub(crate) enum DiskError {
    #[error("looking for the partition {name}")]
    Find { name: &'static str, source: std::io::Error },
    #[error("several disks have a partition {name} ({devices}); name one by `serial` or `wwid` under [install.disk]")]
    Several { name: &'static str, devices: String },
    #[error("no disk has a partition {name}: this node is not installed; set its boot state to reinstall")]
    NotInstalled { name: &'static str },
    #[error("opening the installed disk")]
    Mount(#[source] orrery_installer::MountError),
}

impl From<DiskError> for StageFailure {
    fn from(error: DiskError) -> Self {
        let class = match &error {
            DiskError::Find { .. } | DiskError::Mount(_) => FailureClass::Io,
            DiskError::Several { .. } => FailureClass::AmbiguousDisk,
            DiskError::NotInstalled { .. } => FailureClass::NotInstalled,
        };
        Self::new(class, error)
    }
}

/// Waits until the first disk is there, for a machine that has just been started.
pub(crate) fn wait_for_any() {
    wait(|| discover(Path::new(SYS_BLOCK)).is_ok_and(|disks| !disks.is_empty()));
}

/// Waits until an installed disk is there.
pub(crate) fn wait_for_installed() {
    wait(|| find_partitions(BOOT_LABEL).is_ok_and(|found| !found.is_empty()));
}

fn wait(mut there: impl FnMut() -> bool) {
    let end = Instant::now() + DISK_DEADLINE;
    while !there() && Instant::now() < end {
        thread::sleep(DISK_POLL);
    }
}

/// Mounts the installed boot partition.
pub(crate) fn mount_boot(config: &NodeConfig, read_only: bool) -> Result<Mounted, DiskError> {
    let device = partition(BOOT_LABEL, config)?;
    mount_partition(&device, Path::new(BOOT_MOUNT), "ext4", read_only, "").map_err(DiskError::Mount)
}

/// Mounts the installed data partition for writing.
pub(crate) fn mount_data(config: &NodeConfig) -> Result<Mounted, DiskError> {
    let device = partition(DATA_LABEL, config)?;
    mount_partition(&device, Path::new(DATA_MOUNT), "ext4", false, "prjquota").map_err(DiskError::Mount)
}

/// The device of the installed partition `name`. Where several disks have one, it is the one on the configured disk.
pub(crate) fn partition(name: &'static str, config: &NodeConfig) -> Result<PathBuf, DiskError> {
    let found = find_partitions(name).map_err(|source| DiskError::Find { name, source })?;
    let [first, rest @ ..] = found.as_slice() else { return Err(DiskError::NotInstalled { name }) };
    if rest.is_empty() {
        return Ok(first.clone());
    }
    let disks = discover(Path::new(SYS_BLOCK)).map_err(|source| DiskError::Find { name, source })?;
    let configured = |device: &PathBuf| {
        let disk = parent_disk(device).and_then(|parent| disks.iter().find(|disk| disk.name == parent));
        disk.is_some_and(|disk| fits(disk, &config.install.disk))
    };
    let chosen: Vec<_> = found.iter().filter(|device| configured(device)).collect();
    match chosen.as_slice() {
        [one] => Ok((*one).clone()),
        _ => {
            let devices = found.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(", ");
            Err(DiskError::Several { name, devices })
        }
    }
}

/// All disks, for central.
pub(crate) fn facts() -> Vec<DiskFacts> {
    discover(Path::new(SYS_BLOCK)).unwrap_or_default().iter().map(|disk| disk.facts()).collect()
}

/// The release on the disk, if one is complete.
pub(crate) fn installed_release(config: &NodeConfig) -> Option<String> {
    let boot = mount_boot(config, true).ok()?;
    installed_slot(boot.path()).ok()??;
    read_state(boot.path()).ok()?.release
}

/// The envelope of the last `boot` script that was obeyed, on the boot partition.
const LAST_SCRIPT: &str = "script";

/// The last `boot` script that was obeyed, as central gave it, if an installed disk has one. It must be judged anew.
pub(crate) fn last_script(config: &NodeConfig) -> Option<Vec<u8>> {
    let boot = mount_boot(config, true).ok()?;
    fs::read(boot.path().join(LAST_SCRIPT)).ok()
}

/// Makes the installed disk, if there is one, remember that a script was obeyed, and `keep` as the last script; with
/// `None`, it keeps none, unless the script is an upgrade: that one means the node to boot, as the kept one does. It is written to only if that is news.
pub(crate) fn remember(
    config: &NodeConfig,
    kind: ScriptKind,
    serial: u64,
    keep: Option<&[u8]>,
) -> Result<(), StageFailure> {
    let boot = match mount_boot(config, true) {
        Err(DiskError::NotInstalled { .. }) => return Ok(()),
        other => other?,
    };
    let before = read_state(boot.path()).unwrap_or_default();
    let mut after = before.clone();
    after.accept(kind, serial);
    let kept = fs::read(boot.path().join(LAST_SCRIPT)).ok();
    let keep = if kind == ScriptKind::Upgrade { kept.as_deref() } else { keep };
    drop(boot);
    if after == before && kept.as_deref() == keep {
        return Ok(());
    }
    let boot = mount_boot(config, false)?;
    write_state(boot.path(), &after).map_err(|e| StageFailure::new(FailureClass::Io, e))?;
    keep_script(boot.path(), keep).map_err(|e| StageFailure::new(FailureClass::Io, e))
}

fn keep_script(boot: &Path, script: Option<&[u8]>) -> anyhow::Result<()> {
    let path = boot.join(LAST_SCRIPT);
    match script {
        Some(script) => write_private(path, script),
        None if path.exists() => fs::remove_file(&path).with_context(|| format!("removing {}", path.display())),
        None => Ok(()),
    }
}

/// What the installed disk remembers. A disk that remembers nothing, or nothing that makes sense, leaves only the script's
/// own expiry to judge by.
pub(crate) fn remembered(config: &NodeConfig) -> InstalledState {
    let remembered = mount_boot(config, true).ok().and_then(|boot| read_state(boot.path()).ok());
    remembered.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_script_is_replaced_and_forgotten() {
        let boot = tempfile::tempdir().unwrap();
        for script in [None, Some(b"one".as_slice()), Some(b"two"), None] {
            keep_script(boot.path(), script).unwrap();
            assert_eq!(fs::read(boot.path().join(LAST_SCRIPT)).ok().as_deref(), script);
        }
        assert_eq!(fs::read_dir(boot.path()).unwrap().count(), 0);
    }
}
