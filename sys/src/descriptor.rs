//! Descriptors that a process was started with at fixed numbers.
#![allow(unsafe_code)] // Taking ownership of a number.

use std::{
    io,
    os::fd::{AsFd, FromRawFd, OwnedFd, RawFd},
    sync::atomic::{AtomicU64, Ordering},
};

/// The numbers that were taken over.
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// Takes over a descriptor that whoever started this program left open at `number`, 3 to 63. It becomes close-on-exec.
/// To be called first thing, before the process opens anything that might get the number.
///
/// # Errors
/// When it is not open, was taken over already, or is close-on-exec (and so was opened by this process, not inherited).
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if !(3..64).contains(&number) || TAKEN.fetch_or(1 << number, Ordering::Relaxed) & (1 << number) != 0 {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: takes a number and a command without argument; one that is not open is an error.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags == -1 {
        return Err(io::Error::last_os_error());
    }
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(io::Error::other("the descriptor was not inherited"));
    }
    // SAFETY: the number is open, was inherited (everything this process opens is close-on-exec), and is taken only once.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(descriptor.as_fd(), rustix::io::FdFlags::CLOEXEC)?;
    Ok(descriptor)
}
