//! Installing a system call filter.
#![allow(unsafe_code)] // seccomp has no safe wrapper that leaves no_new_privs alone.

use std::io;

/// Installs a filter on the calling thread, for good: whatever it forks or executes keeps it. Filters add up, and the
/// strictest answer counts. The process needs `CAP_SYS_ADMIN` in its user namespace, and `no_new_privs` stays as it is.
///
/// # Errors
/// When the process has no such right, or the program is not one the kernel takes.
pub fn install(program: &[libc::sock_filter]) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: the structure holds the pointer and the length of a slice, both outlive the call, and the kernel only reads.
    let returned = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    if returned == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
