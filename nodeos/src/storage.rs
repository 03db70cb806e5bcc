//! Stage `storage`: the node's disk, checked and mounted.

use std::{
    ffi::CString,
    fmt, fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use orrery_init_api::FailureClass;
use rustix::mount::{MountFlags, mount};

use crate::{
    partition::{self, BLOCK_CLASS, PartitionError},
    paths,
};

/// How long disks may take to appear: slow RAID controllers and USB disks do.
const DISK_PATIENCE: Duration = Duration::from_secs(20);
/// How often to look meanwhile.
const DISK_POLL: Duration = Duration::from_millis(50);

/// The disk could not be brought up.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The partition is not there, or not the only one.
    #[error(transparent)]
    Partition(#[from] PartitionError),
    /// The check could not be run.
    #[error("running e2fsck on {device}: {source}")]
    Check {
        /// The device.
        device: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file system is damaged beyond what the check repairs.
    #[error("checking {device}: {outcome}")]
    Damaged {
        /// The device.
        device: PathBuf,
        /// What the check says.
        outcome: Checked,
    },
    /// The kernel refuses to mount it.
    #[error("mounting {device} at {target}: {source}")]
    Mount {
        /// The device.
        device: PathBuf,
        /// Where to.
        target: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A folder could not be made.
    #[error("creating {path}: {source}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl StorageError {
    /// What PID 1 decides by.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Partition(PartitionError::Missing(_)) => FailureClass::NotInstalled,
            Self::Partition(PartitionError::Ambiguous { .. }) => FailureClass::AmbiguousDisk,
            Self::Folder { source, .. } if source.kind() == io::ErrorKind::StorageFull => FailureClass::DiskFull,
            _ => FailureClass::Io,
        }
    }
}

/// What e2fsck found, by its exit status (e2fsck(8)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// Nothing to repair.
    Clean,
    /// Errors, all repaired.
    Repaired,
    /// Errors that need decisions.
    Unrepaired,
    /// It could not do its work: the status.
    Failed(i32),
}

impl Checked {
    /// Reads an exit status; `None` is death by a signal.
    pub fn from_status(code: Option<i32>) -> Self {
        match code {
            Some(0) => Self::Clean,
            // 2 asks for a reboot, which concerns a mounted root file system only.
            Some(1..=3) => Self::Repaired,
            Some(code) if code & 4 != 0 && code < 8 => Self::Unrepaired,
            Some(code) => Self::Failed(code),
            None => Self::Failed(-1),
        }
    }
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Clean => f.write_str("clean"),
            Self::Repaired => f.write_str("errors found and repaired"),
            Self::Unrepaired => f.write_str("errors left that e2fsck cannot repair"),
            Self::Failed(code) => write!(f, "e2fsck failed with status {code}"),
        }
    }
}

/// Checks and mounts the node's partitions, and makes sure of the folders that services expect. Says what it found in a few
/// words.
///
/// # Errors
/// When the data partition cannot be used. Nothing is ever formatted here.
pub fn bring_up() -> Result<String, StorageError> {
    let data = wait_for("ORRERY-DATA")?;
    let checked = check(&data)?;
    // Relaxed access times would make every read of a shared object a write.
    attach(&data, paths::DATA, MountFlags::NOATIME | MountFlags::NODEV, "prjquota")?;
    for (path, mode) in [(paths::STATE, 0o700), ("/data/images", 0o700), (paths::INCOMING, 0o700)] {
        folder(Path::new(path), mode)?;
    }

    let mut said = format!("{} {checked}", data.display());
    // Slivers run without it; what is wrong with it, the next boot's verification tells.
    let boot = partition::find(Path::new(BLOCK_CLASS), "ORRERY-BOOT").map_err(StorageError::from).and_then(|boot| {
        let flags = MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
        check(&boot)?;
        attach(&boot, paths::BOOT, flags, "")
    });
    if let Err(e) = boot {
        said.push_str(&format!("; without the boot partition: {e}"));
    }
    Ok(said)
}

fn wait_for(name: &str) -> Result<PathBuf, PartitionError> {
    let deadline = Instant::now() + DISK_PATIENCE;
    loop {
        match partition::find(Path::new(BLOCK_CLASS), name) {
            Err(PartitionError::Missing(_)) if Instant::now() < deadline => thread::sleep(DISK_POLL),
            result => return result,
        }
    }
}

/// Repairs what is safe to repair; where that is not enough, repairs by e2fsck's own judgement: nobody is there to ask.
fn check(device: &Path) -> Result<Checked, StorageError> {
    let run = |option: &str| {
        let status = Command::new("/sbin/e2fsck").arg(option).arg(device).stdin(std::process::Stdio::null()).status();
        match status {
            Ok(status) => Ok(Checked::from_status(status.code())),
            Err(source) => Err(StorageError::Check { device: device.to_owned(), source }),
        }
    };
    let outcome = match run("-p")? {
        Checked::Unrepaired => run("-y")?,
        outcome => outcome,
    };
    match outcome {
        Checked::Clean | Checked::Repaired => Ok(outcome),
        outcome => Err(StorageError::Damaged { device: device.to_owned(), outcome }),
    }
}

/// Mounts, unless an earlier attempt at this stage has.
fn attach(device: &Path, target: &'static str, flags: MountFlags, options: &str) -> Result<(), StorageError> {
    let fail = |source: io::Error| StorageError::Mount { device: device.to_owned(), target, source };
    fs::create_dir_all(target).map_err(fail)?;
    let options = CString::new(options).expect("options are constants without NUL");
    match mount(device, target, "ext4", flags, options.as_c_str()) {
        // The same device at the same place.
        Err(rustix::io::Errno::BUSY) if is_mounted(target) => Ok(()),
        result => result.map_err(|e| fail(e.into())),
    }
}

fn is_mounted(target: &str) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1) == Some(target))
}

fn folder(path: &Path, mode: u32) -> Result<(), StorageError> {
    let fail = |source| StorageError::Folder { path: path.to_owned(), source };
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => (),
        result => result.map_err(fail)?,
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(fail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_of_the_check() {
        let check = |code, expect| assert_eq!(Checked::from_status(code), expect, "{code:?}");
        check(Some(0), Checked::Clean);
        check(Some(1), Checked::Repaired);
        check(Some(2), Checked::Repaired);
        check(Some(3), Checked::Repaired);
        check(Some(4), Checked::Unrepaired);
        check(Some(5), Checked::Unrepaired);
        check(Some(8), Checked::Failed(8));
        check(Some(12), Checked::Failed(12));
        check(Some(32), Checked::Failed(32));
        check(None, Checked::Failed(-1));
    }
}
