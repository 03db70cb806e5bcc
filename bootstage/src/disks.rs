//! The installed disk as the boot stages see it.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use orrery_init_api::{FailureClass, ROLE_ENV, Role};
use orrery_installer::{
    BOOT_LABEL, Content, DATA_LABEL, InstalledState, Linux, Machine, Mounted, choose, discover, find_partitions, fits,
    installed_slot, mount_partition, parent_disk, read_state, write_state,
};
use orrery_protocol::{DiskFacts, NodeConfig, ScriptKind};
use rustix::mount::{MountFlags, mount_remount};
use thiserror::Error;

use crate::{StageFailure, files::write_private, trust};

const SYS_BLOCK: &str = "/sys/block";
const BOOT_MOUNT: &str = "/mnt/boot";
const ASIDE_MOUNT: &str = "/mnt/aside";
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

/// The boot partition for the reporter, which runs beside the stages; hold a turn of [`crate::disk_lock`] meanwhile.
pub(crate) enum Aside {
    /// At a place of its own, for as long as this lives.
    Own(Mounted),
    /// Where the node OS has it, read-only but for now.
    Shared,
}

impl Aside {
    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Own(mounted) => mounted.path(),
            Self::Shared => Path::new(BOOT_MOUNT),
        }
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        if matches!(self, Self::Shared)
            && let Err(error) = mount_remount(BOOT_MOUNT, SHARED | MountFlags::RDONLY, "")
        {
            eprintln!("making {BOOT_MOUNT} read-only again: {error}");
        }
    }
}

/// How the node OS mounts the boot partition, beside read-only.
const SHARED: MountFlags = MountFlags::NODEV.union(MountFlags::NOSUID).union(MountFlags::NOEXEC);

/// Gets at the boot partition for writing beside the stages.
pub(crate) fn boot_aside(config: &NodeConfig) -> Result<Aside, StageFailure> {
    if std::env::var(ROLE_ENV).is_ok_and(|role| role == Role::Node.as_str()) {
        mount_remount(BOOT_MOUNT, SHARED, "")
            .map_err(|e| StageFailure::new(FailureClass::Io, std::io::Error::from(e)))?;
        return Ok(Aside::Shared);
    }
    let device = partition(BOOT_LABEL, config)?;
    let mounted = mount_partition(&device, Path::new(ASIDE_MOUNT), "ext4", false, "").map_err(DiskError::Mount)?;
    Ok(Aside::Own(mounted))
}

/// Makes the installed disk remember that `elapsed` have passed since it last remembered a time. Not what the clock says:
/// that may be wrong, and a time that was remembered is never taken back.
pub(crate) fn advance_last_seen(config: &NodeConfig, elapsed: Duration) -> Result<(), StageFailure> {
    let io = |e: orrery_installer::StateError| StageFailure::new(FailureClass::Io, e);
    let boot = boot_aside(config)?;
    let mut state = read_state(boot.path()).map_err(io)?;
    if state.last_seen > 0 {
        state.last_seen = state.last_seen.saturating_add(elapsed.as_secs());
        write_state(boot.path(), &state).map_err(io)?;
    }
    Ok(())
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

/// A file of the boot partition, if there is one.
pub(crate) fn kept_file(config: &NodeConfig, name: &str) -> Option<Vec<u8>> {
    let boot = mount_boot(config, true).ok()?;
    fs::read(boot.path().join(name)).ok()
}

/// A clock that advanced less than this is no news, in seconds: a disk need not be written to at every boot.
const LAST_SEEN_STEP: u64 = 3600;

/// Makes the installed disk, if there is one, remember that a script was obeyed at the time `now`, and `keep` as the last
/// script; with `None`, it keeps none, unless the script is an upgrade: that one means the node to boot, as the kept one
/// does. The trust updates that were accepted are kept as well. It is written to only if
/// something of that is news.
pub(crate) fn remember(
    config: &NodeConfig,
    kind: ScriptKind,
    serial: u64,
    now: u64,
    keep: Option<&[u8]>,
) -> Result<(), StageFailure> {
    let boot = match mount_boot(config, true) {
        Err(DiskError::NotInstalled { .. }) => return Ok(()),
        other => other?,
    };
    let before = read_state(boot.path()).unwrap_or_default();
    let mut after = before.clone();
    after.accept(kind, serial);
    if now >= after.last_seen.saturating_add(LAST_SEEN_STEP) {
        after.last_seen = now;
    }
    let kept = fs::read(boot.path().join(LAST_SCRIPT)).ok();
    let keep = if kind == ScriptKind::Upgrade { kept.as_deref() } else { keep };
    let news = after != before || kept.as_deref() != keep || trust::is_news(config, boot.path());
    drop(boot);
    if !news {
        return Ok(());
    }
    let io = |e: anyhow::Error| StageFailure::new(FailureClass::Io, e);
    let boot = mount_boot(config, false)?;
    trust::keep(config, boot.path()).map_err(io)?;
    write_state(boot.path(), &after).map_err(|e| io(e.into()))?;
    keep_script(boot.path(), keep).map_err(io)
}

/// Keeps the accepted trust updates on a disk that was just installed.
pub(crate) fn keep_roots(config: &NodeConfig) -> Result<(), StageFailure> {
    let boot = mount_boot(config, false)?;
    trust::keep(config, boot.path()).map_err(|e| StageFailure::new(FailureClass::Io, e))
}

/// Disks that may hold this node's identity, the one to write it to first: those with our partitions; without any, a blank
/// one that the configuration would have installed on. Never one with somebody's data.
pub(crate) fn identity_places(config: &NodeConfig) -> Vec<PathBuf> {
    let mut boots = find_partitions(BOOT_LABEL).unwrap_or_default();
    if let Ok(chosen) = partition(BOOT_LABEL, config) {
        boots.retain(|boot| *boot != chosen);
        boots.insert(0, chosen);
    }
    let parent = |boot: &PathBuf| parent_disk(boot).map(|name| Path::new("/dev").join(name));
    let ours: Vec<_> = boots.iter().filter_map(parent).collect();
    if !ours.is_empty() {
        return ours;
    }
    let disks = Linux.disks().unwrap_or_default();
    let chosen = choose(&disks, &config.install.disk, config.install.wipe).ok();
    chosen
        .filter(|(_, content)| matches!(content, Content::Blank | Content::Ours))
        .map(|(disk, _)| disk.path.clone())
        .into_iter()
        .collect()
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
