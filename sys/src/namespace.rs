//! Processes and namespaces for helpers that run on one thread: fork, unshare, an idmapped mount, and the process that
//! stays behind as the first of a PID namespace.
#![allow(unsafe_code)] // fork, unshare, mount_setattr and signal have no safe wrapper.

use std::{
    convert::Infallible,
    io, mem,
    os::fd::{AsRawFd, BorrowedFd},
};

use rustix::{process::Pid, thread::UnshareFlags};

/// Which side of a fork this is.
#[derive(Debug)]
pub enum Fork {
    /// The process that forked; holds the child's PID.
    Parent(Pid),
    /// The new process.
    Child,
}

/// Fails unless the process has one thread. Does not need /proc.
fn require_one_thread() -> io::Result<()> {
    // SAFETY: leaving the thread group changes nothing for a lone thread and is refused for any other (unshare(2)).
    match unsafe { rustix::thread::unshare_unsafe(UnshareFlags::from_bits_retain(libc::CLONE_THREAD as u32)) } {
        Err(rustix::io::Errno::INVAL) => Err(io::Error::other("the process has several threads where one is allowed")),
        result => Ok(result?),
    }
}

/// Forks a process that has only one thread.
///
/// # Errors
/// When there are more threads, or the kernel refuses.
pub fn fork() -> io::Result<Fork> {
    require_one_thread()?;
    // SAFETY: no other thread exists that could hold a lock or be in the middle of a change.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => Pid::from_raw(pid).map(Fork::Parent).ok_or_else(|| io::Error::other("fork returned a negative PID")),
    }
}

/// Leaves namespaces for new ones, in a process that has only one thread.
///
/// # Errors
/// When there are more threads, or the kernel refuses.
pub fn unshare(flags: UnshareFlags) -> io::Result<()> {
    require_one_thread()?;
    // SAFETY: the hazard is a descriptor table that differs between threads, and there is one thread.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

fn mount_setattr(mount: BorrowedFd<'_>, attributes: &libc::mount_attr) -> io::Result<()> {
    // SAFETY: the descriptor is open, the path is an empty NUL-terminated string, and the structure is passed with its
    // size and outlives the call.
    let returned = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            attributes,
            mem::size_of::<libc::mount_attr>(),
        )
    };
    if returned == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes a detached mount show its owners through the mapping of a user namespace, read-only.
///
/// # Errors
/// When the file system has no idmapped mounts, or the kernel refuses.
pub fn idmap_read_only(mount: BorrowedFd<'_>, user_namespace: BorrowedFd<'_>) -> io::Result<()> {
    mount_setattr(
        mount,
        &libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_IDMAP | libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV,
            attr_clr: 0,
            propagation: 0,
            userns_fd: user_namespace.as_raw_fd() as u64,
        },
    )
}

/// Makes a detached mount read-only, and forbids programs and devices of it.
///
/// # Errors
/// When the kernel refuses.
pub fn make_read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    let set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    mount_setattr(mount, &libc::mount_attr { attr_set: set, attr_clr: 0, propagation: 0, userns_fd: 0 })
}

/// Becomes the process that a PID namespace starts with: it only lets the kernel reap what is orphaned there, and lasts
/// until it is killed. All descriptors are closed.
///
/// # Errors
/// When its children cannot be ignored.
pub fn become_reaper() -> io::Result<Infallible> {
    require_one_thread()?;
    // SAFETY: SIG_IGN is no function of ours; the kernel then reaps every child, adopted ones as well.
    if unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: this function never returns from here on and there is no other thread, so nobody uses a descriptor that is
    // closed under them.
    unsafe { libc::close_range(0, libc::c_uint::MAX, 0) };
    loop {
        // SAFETY: takes no argument.
        unsafe { libc::pause() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_threads_are_refused() {
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let waiting = std::thread::spawn(move || receiver.recv());
        assert!(fork().is_err());
        assert!(unshare(UnshareFlags::NEWNS).is_err());
        drop(sender);
        assert!(waiting.join().expect("joining the thread").is_err());
    }
}
