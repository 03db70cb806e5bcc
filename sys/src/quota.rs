//! Project quotas: which project a directory belongs to, and how much the files of a project may take.
#![allow(unsafe_code)] // quotactl_fd and two ioctls.

use std::{
    io, mem,
    os::fd::{AsRawFd, BorrowedFd},
};

const Q_GETQUOTA: libc::c_int = 0x80_0007;
const Q_SETQUOTA: libc::c_int = 0x80_0008;
const Q_GETNEXTQUOTA: libc::c_int = 0x80_0009;
const PRJQUOTA: libc::c_int = 2;
/// The unit of limits (not of usage, which is in bytes).
const BLOCK: u64 = 1024;
const FS_IOC_FSGETXATTR: libc::c_ulong = 0x801c_581f;
const FS_IOC_FSSETXATTR: libc::c_ulong = 0x401c_5820;
const FS_XFLAG_PROJINHERIT: u32 = 0x200;

/// `struct if_nextdqblk` of linux/quota.h, or `if_dqblk`, which has padding in place of the last field.
#[repr(C)]
#[derive(Default)]
struct DiskQuota {
    block_hard_limit: u64,
    block_soft_limit: u64,
    current_bytes: u64,
    inode_hard_limit: u64,
    inode_soft_limit: u64,
    current_inodes: u64,
    block_time: u64,
    inode_time: u64,
    valid: u32,
    /// The project, in answers of Q_GETNEXTQUOTA.
    id: u32,
}

/// Limits are valid in a [`DiskQuota`]: blocks (1) and inodes (4).
const VALID_LIMITS: u32 = 1 | 4;

/// `struct fsxattr` of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    copy_extent_size: u32,
    padding: [u8; 8],
}

/// What the files of a project may take. 0 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limit {
    /// Bytes of disk space, rounded up to a KiB.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

/// A project with what it may take and takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Project {
    /// Its number.
    pub id: u32,
    /// What it may take.
    pub limit: Limit,
    /// What it takes.
    pub usage: Usage,
}

/// What a project uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes of disk space.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

fn quotactl(file_system: BorrowedFd<'_>, command: libc::c_int, project: u32, quota: &mut DiskQuota) -> io::Result<()> {
    // SAFETY: the descriptor is open, and `quota` has the layout the command expects and outlives the call.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_quotactl_fd,
            file_system.as_raw_fd(),
            (command << 8) | PRJQUOTA,
            project,
            std::ptr::from_mut(quota),
        )
    };
    if returned == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Limits what the files of `project` may take on the file system that `file_system` is on. 0 is no limit.
///
/// # Errors
/// When the file system has no project quotas enabled.
pub fn set_project_limits(file_system: BorrowedFd<'_>, project: u32, bytes: u64, inodes: u64) -> io::Result<()> {
    let mut quota = DiskQuota {
        block_hard_limit: bytes.div_ceil(BLOCK),
        inode_hard_limit: inodes,
        valid: VALID_LIMITS,
        ..DiskQuota::default()
    };
    quotactl(file_system, Q_SETQUOTA, project, &mut quota)
}

/// The projects that the file system knows: those with a limit or a file, and perhaps some that had one.
///
/// # Errors
/// When the file system has no project quotas enabled.
pub fn projects(file_system: BorrowedFd<'_>) -> io::Result<Vec<Project>> {
    let mut projects = Vec::new();
    let mut next = Some(0);
    while let Some(project) = next {
        let mut quota = DiskQuota::default();
        match quotactl(file_system, Q_GETNEXTQUOTA, project, &mut quota) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            result => result?,
        }
        let limit = Limit { bytes: quota.block_hard_limit * BLOCK, inodes: quota.inode_hard_limit };
        let usage = Usage { bytes: quota.current_bytes, inodes: quota.current_inodes };
        projects.push(Project { id: quota.id, limit, usage });
        next = quota.id.checked_add(1);
    }
    Ok(projects)
}

/// What the files of `project` take.
///
/// # Errors
/// When the file system has no project quotas enabled.
pub fn project_usage(file_system: BorrowedFd<'_>, project: u32) -> io::Result<Usage> {
    let mut quota = DiskQuota::default();
    quotactl(file_system, Q_GETQUOTA, project, &mut quota)?;
    Ok(Usage { bytes: quota.current_bytes, inodes: quota.current_inodes })
}

/// Puts a directory, and everything that will be made in it, into `project`.
///
/// # Errors
/// When the file system has no projects.
pub fn set_project(directory: BorrowedFd<'_>, project: u32) -> io::Result<()> {
    let mut attributes = Attributes::default();
    const { assert!(mem::size_of::<Attributes>() == 28) };
    // SAFETY: the descriptor is open, and the structure has the size encoded in the request and outlives the call.
    let got = unsafe { libc::ioctl(directory.as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut attributes) };
    if got == -1 {
        return Err(io::Error::last_os_error());
    }
    attributes.project = project;
    attributes.flags |= FS_XFLAG_PROJINHERIT;
    // SAFETY: as above.
    let set = unsafe { libc::ioctl(directory.as_raw_fd(), FS_IOC_FSSETXATTR, &raw const attributes) };
    if set == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
