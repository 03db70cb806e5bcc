//! fs-verity: files whose content the file system proves at every read, and lets nobody change (Linux:
//! `filesystems/fsverity.rst`).
#![allow(unsafe_code)] // One ioctl.

use std::{
    io, mem,
    os::fd::{AsRawFd, BorrowedFd},
};

const FS_IOC_ENABLE_VERITY: libc::c_ulong = 0x4080_6685;
const FS_VERITY_HASH_ALG_SHA256: u32 = 1;
/// What is proven at once, in bytes, unless the file system's blocks are smaller: larger ones are refused.
const BLOCK: u32 = 4096;

/// `struct fsverity_enable_arg` of linux/fsverity.h.
#[repr(C)]
#[derive(Default)]
struct EnableArgument {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt: u64,
    signature_size: u32,
    reserved: u32,
    signature: u64,
    more_reserved: [u64; 11],
}

/// Makes the content of a file final: nobody can open it for writing or truncate it any more, and reading what the disk has lost
/// fails. Owner, mode, times and attributes can be changed still, and the file be linked, renamed and removed. What was written is
/// on the disk afterwards. Returns whether the file system can do that; nothing has changed if not.
///
/// `file` must be open for reading only, and open for writing nowhere.
///
/// # Errors
/// When the file is open for writing, or the disk is full or fails.
pub fn enable_verity(file: BorrowedFd<'_>) -> io::Result<bool> {
    const { assert!(mem::size_of::<EnableArgument>() == 128) };
    let block = u32::try_from(rustix::fs::fstatfs(file)?.f_bsize).map_or(BLOCK, |block| block.min(BLOCK));
    let argument = EnableArgument {
        version: 1,
        hash_algorithm: FS_VERITY_HASH_ALG_SHA256,
        block_size: block,
        ..EnableArgument::default()
    };
    // SAFETY: the descriptor is open, and the structure has the size encoded in the request and outlives the call.
    let returned = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_ENABLE_VERITY, &raw const argument) };
    if returned == 0 {
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::EEXIST) => Ok(true),
        // Another file system, a kernel without it, or one that was made without.
        Some(libc::ENOTTY | libc::EOPNOTSUPP) => Ok(false),
        _ => Err(error),
    }
}
