//! Descriptors at fixed numbers: those a process was started with, and those it keeps for others to find.
#![allow(unsafe_code)] // Taking ownership of a number, and closing what has an owner.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
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

/// Moves `descriptors` to the numbers from 3 on, and closes all others but the standard three, also those that have an owner: to
/// be called by a process that never returns to where those are. All that is kept becomes close-on-exec.
///
/// # Errors
/// When the process is out of descriptors; nothing is closed then.
pub fn keep_only<const COUNT: usize>(descriptors: [OwnedFd; COUNT]) -> io::Result<[OwnedFd; COUNT]> {
    let after = 3 + RawFd::try_from(COUNT).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // Out of the way of the numbers they are to have.
    let moved = descriptors.iter().map(|d| rustix::io::fcntl_dupfd_cloexec(d, after)).collect::<Result<Vec<_>, _>>()?;
    for (number, source) in (3..).zip(&moved) {
        // SAFETY: `source` is open and not below `after`, `number` is below; whoever owns that is not returned to.
        if unsafe { libc::dup3(source.as_raw_fd(), number, libc::O_CLOEXEC) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    // Their numbers are taken, or about to be closed.
    std::mem::forget((descriptors, moved));
    // SAFETY: the caller uses nothing that is closed here.
    if unsafe { libc::close_range(after as libc::c_uint, libc::c_uint::MAX, 0) } == -1 {
        return Err(io::Error::last_os_error());
    }
    let mut number = 2;
    Ok(std::array::from_fn(|_| {
        number += 1;
        // SAFETY: opened above, and owned by nobody who still uses it.
        unsafe { OwnedFd::from_raw_fd(number) }
    }))
}
