//! The real machine: sysfs, block devices, mke2fs, mounts.

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use orrery_sys::block::reread_partition_table;
use rustix::{
    fs::OFlags,
    mount::{MountFlags, UnmountFlags, mount, unmount},
    rand::{GetRandomFlags, getrandom},
};
use thiserror::Error;

use crate::{
    disk::{Disk, discover},
    error::InstallError,
    layout::{BOOT_LABEL, DATA_LABEL},
    probe::{Content, probe},
    run::Machine,
    table,
};

/// This machine.
#[derive(Debug, Default)]
pub struct Linux;

/// How long a partition's device node may take to appear; it is there at once unless the machine is very busy.
const NODE_DEADLINE: Duration = Duration::from_secs(10);
const NODE_POLL: Duration = Duration::from_millis(5);

/// A mount that could not be made.
#[derive(Debug, Error)]
#[error("mounting {device} at {target}: {source}")]
pub struct MountError {
    device: PathBuf,
    target: PathBuf,
    source: io::Error,
}

/// A mounted file system; unmounted when dropped.
#[derive(Debug)]
pub struct Mounted {
    target: PathBuf,
}

impl Mounted {
    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.target
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Detached, so that whoever still reads from it does not keep the name; the kernel finishes when they do.
        let _ = unmount(&self.target, UnmountFlags::DETACH);
    }
}

/// Mounts `device` at `target`, which is made if need be.
///
/// # Errors
/// [`MountError`].
pub fn mount_partition(
    device: &Path,
    target: &Path,
    kind: &str,
    read_only: bool,
    options: &str,
) -> Result<Mounted, MountError> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOATIME;
    let flags = if read_only { flags | MountFlags::RDONLY } else { flags };
    let go = || {
        fs::create_dir_all(target)?;
        let options = CString::new(options).map_err(io::Error::other)?;
        Ok(mount(device, target, kind, flags, options.as_c_str())?)
    };
    go().map_err(|source| MountError { device: device.into(), target: target.into(), source })?;
    Ok(Mounted { target: target.into() })
}

/// Device nodes of all partitions with this GPT name.
///
/// # Errors
/// sysfs cannot be read.
pub fn find_partitions(name: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/sys/class/block")? {
        let entry = entry?;
        // The device may go while we look.
        let Ok(uevent) = fs::read_to_string(entry.path().join("uevent")) else { continue };
        if uevent.lines().any(|line| line.strip_prefix("PARTNAME=") == Some(name)) {
            found.push(Path::new("/dev").join(entry.file_name()));
        }
    }
    found.sort();
    Ok(found)
}

/// The kernel's name of the disk that a partition is on.
pub fn parent_disk(partition: &Path) -> Option<String> {
    let real = fs::canonicalize(Path::new("/sys/class/block").join(partition.file_name()?)).ok()?;
    Some(real.parent()?.file_name()?.to_string_lossy().into_owned())
}

impl Machine for Linux {
    type Volume = Mounted;

    fn disks(&mut self) -> Result<Vec<(Disk, Content)>, InstallError> {
        let sys = Path::new("/sys/block");
        let disks = discover(sys).map_err(|e| InstallError::io("reading", sys, e))?;
        Ok(disks
            .into_iter()
            .map(|disk| {
                let content = File::open(&disk.path).and_then(|mut file| probe(&mut file, disk.sector_size));
                let content = content.unwrap_or_else(|e| Content::Unreadable(e.to_string()));
                (disk, content)
            })
            .collect())
    }

    fn prepare(&mut self, disk: &Disk) -> Result<(), InstallError> {
        let failed = |action| move |e: io::Error| InstallError::io(action, &disk.path, e);
        // Exclusive: fails while any of its partitions is mounted.
        let flags = OFlags::EXCL.bits() as i32;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(&disk.path)
            .map_err(failed("opening"))?;
        table::zap(&mut file, disk.size).map_err(failed("erasing the signatures on"))?;
        file.sync_all().map_err(failed("erasing the signatures on"))?;
        let guids = random().map_err(failed("drawing partition ids for"))?;
        table::write(&mut file, disk.sector_size, guids)
            .map_err(|source| InstallError::Partition { path: disk.path.clone(), source })?;
        file.sync_all().map_err(failed("writing the partition table of"))?;
        reread_partition_table(&file).map_err(failed("rereading the partition table of"))?;
        drop(file);
        let (boot, data) = (disk.partition(1), disk.partition(2));
        wait_for(&boot)?;
        wait_for(&data)?;
        // The boot partition first: should the other fail, nothing on it claims to be installed.
        format(&boot, BOOT_LABEL, &["-O", "^resize_inode", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"])?;
        let options = "quotatype=prjquota,lazy_itable_init=1,lazy_journal_init=1,nodiscard";
        format(&data, DATA_LABEL, &["-O", "project,quota,verity", "-E", options])
    }

    fn mount(&mut self, disk: &Disk) -> Result<(Mounted, Mounted), InstallError> {
        let boot = mount_partition(&disk.partition(1), Path::new("/mnt/boot"), "ext4", false, "")?;
        let data = mount_partition(&disk.partition(2), Path::new("/mnt/data"), "ext4", false, "prjquota")?;
        Ok((boot, data))
    }

    fn mount_again(&mut self, disk: &Disk) -> Option<(Mounted, Mounted)> {
        if !(ours(disk, 1, BOOT_LABEL) && ours(disk, 2, DATA_LABEL)) {
            return None;
        }
        // A journal that was cut off is replayed by mounting.
        self.mount(disk).ok().or_else(|| {
            let repaired = [1, 2].into_iter().all(|number| repair_file_system(&disk.partition(number)));
            repaired.then(|| self.mount(disk).ok()).flatten()
        })
    }
}

/// Whether partition `number` of `disk` has this name.
fn ours(disk: &Disk, number: u32, name: &str) -> bool {
    find_partitions(name).is_ok_and(|found| found.contains(&disk.partition(number)))
}

/// Whether e2fsck could make the file system sound by what needs nobody's judgement.
fn repair_file_system(device: &Path) -> bool {
    let run = Command::new("/sbin/e2fsck").arg("-p").arg(device).stdin(Stdio::null()).output();
    // 1 and 2 say that errors were corrected (e2fsck(8)).
    run.is_ok_and(|output| output.status.code().is_some_and(|code| code & !3 == 0))
}

fn random() -> io::Result<[[u8; 16]; 3]> {
    let mut guids = [[0; 16]; 3];
    for guid in &mut guids {
        // Up to 256 bytes come whole.
        getrandom(guid.as_mut_slice(), GetRandomFlags::empty())?;
    }
    Ok(guids)
}

fn wait_for(node: &Path) -> Result<(), InstallError> {
    let end = Instant::now() + NODE_DEADLINE;
    while !node.exists() {
        if Instant::now() > end {
            return Err(InstallError::io("waiting for", node, io::ErrorKind::NotFound.into()));
        }
        thread::sleep(NODE_POLL);
    }
    Ok(())
}

fn format(partition: &Path, label: &str, extra: &[&str]) -> Result<(), InstallError> {
    let output = Command::new("/sbin/mke2fs")
        .args(["-t", "ext4", "-F", "-q", "-m", "0", "-L", label])
        .args(extra)
        .arg(partition)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| InstallError::io("running mke2fs on", partition, e))?;
    if output.status.success() {
        return Ok(());
    }
    let message = format!("mke2fs: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    Err(InstallError::Format { path: partition.into(), message })
}
