//! Processes and namespaces for helpers that run on one thread: fork, unshare, an idmapped mount, and what becomes of
//! children that end.
#![allow(unsafe_code)] // fork, clone, unshare, mount_setattr, signal and ioctls of namespaces have no safe wrapper.

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use rustix::{
    process::{Pid, PidfdFlags, WaitOptions},
    thread::UnshareFlags,
};

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

/// Forks a process that has only one thread into new namespaces of these kinds. If a user namespace is among them, it belongs to
/// this process's effective identity, and the others to it.
///
/// # Errors
/// When there are more threads, or the kernel refuses.
pub fn fork_into(kinds: UnshareFlags) -> io::Result<Fork> {
    require_one_thread()?;
    let flags = u64::from(kinds.bits()) | libc::SIGCHLD as u64;
    // SAFETY: with no flag that shares memory, and no stack given, the child goes on here with a copy of all, as after fork(2), and no
    // other thread exists that could hold a lock. The C library does not learn of it, and so has a wrong number of the child's
    // thread; it uses that for locks between threads only.
    match unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Fork::Child),
        pid => i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .map(Fork::Parent)
            .ok_or_else(|| io::Error::other("clone returned no PID")),
    }
}

/// Runs `work` in a child that shares this process's memory and descriptors, and waits for it: what differs are its namespaces. They
/// are those that children of this process are to have, and `work` may join others.
///
/// # Errors
/// When there is more than one thread, or the kernel refuses.
pub fn in_child<T, Work: FnOnce() -> T>(work: Work) -> io::Result<T> {
    /// What goes in, and what comes out.
    type Job<T, Work> = (Option<Work>, Option<T>);
    extern "C" fn run<T, Work: FnOnce() -> T>(job: *mut libc::c_void) -> libc::c_int {
        // SAFETY: the pointer is that which is given to clone below, whose caller does not touch the job before this has ended.
        let (work, result) = unsafe { &mut *job.cast::<Job<T, Work>>() };
        *result = work.take().map(|work| work());
        0
    }
    const STACK: usize = 256 << 10;

    require_one_thread()?;
    let mut job: Job<T, Work> = (Some(work), None);
    // Of a type that is aligned as a stack has to be.
    let mut stack = Vec::<u128>::with_capacity(STACK / size_of::<u128>());
    let top = stack.spare_capacity_mut().as_mut_ptr_range().end;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES | libc::SIGCHLD;
    // SAFETY: the child has a stack of its own, which outlives it, as does the job: CLONE_VFORK holds the only thread there is until
    // the child has ended, so that it is alone with what they share. A panic ends both, since `run` cannot be unwound out of.
    let child = unsafe { libc::clone(run::<T, Work>, top.cast(), flags, (&raw mut job).cast()) };
    if child == -1 {
        return Err(io::Error::last_os_error());
    }
    rustix::io::retry_on_intr(|| rustix::process::waitpid(Pid::from_raw(child), WaitOptions::empty()))?;
    job.1.ok_or_else(|| io::Error::other("the child ended before its work"))
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

/// Whether a thread is in a user namespace that was made in this process's own, not in that one itself nor in one further in.
///
/// # Errors
/// When the thread is gone, or this process may not trace it.
pub fn is_one_user_namespace_in(thread: Pid) -> io::Result<bool> {
    let around = match related(user_namespace(thread)?.as_fd(), libc::NS_GET_PARENT) {
        // It is this process's, and what is around that is not to be seen.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => return Ok(false),
        around => rustix::fs::fstat(around?)?,
    };
    let own = rustix::fs::fstat(user_namespace(rustix::thread::gettid())?)?;
    Ok((around.st_dev, around.st_ino) == (own.st_dev, own.st_ino))
}

fn user_namespace(thread: Pid) -> io::Result<OwnedFd> {
    let thread = rustix::process::pidfd_open(thread, PidfdFlags::from_bits_retain(libc::PIDFD_THREAD))?;
    related(thread.as_fd(), libc::PIDFD_GET_USER_NAMESPACE)
}

fn related(to: BorrowedFd<'_>, request: libc::Ioctl) -> io::Result<OwnedFd> {
    // SAFETY: both requests above want zero for an argument, and touch no memory of this process.
    let returned = unsafe { libc::ioctl(to.as_raw_fd(), request, 0) };
    if returned == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both return a descriptor that the kernel has just made, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(returned) })
}

fn handle_child(handler: libc::sighandler_t) -> io::Result<()> {
    // SAFETY: the handler is one of the kernel's own, no function of ours.
    if unsafe { libc::signal(libc::SIGCHLD, handler) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Lets the kernel reap every child of this process, adopted ones as well, for it and for those it forks.
///
/// # Errors
/// When the kernel refuses.
pub fn ignore_children() -> io::Result<()> {
    handle_child(libc::SIG_IGN)
}

/// Undoes [`ignore_children`]: children are to be waited for.
///
/// # Errors
/// When the kernel refuses.
pub fn heed_children() -> io::Result<()> {
    handle_child(libc::SIG_DFL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_not_inside_its_own_namespace() {
        assert!(!is_one_user_namespace_in(rustix::process::getpid()).unwrap());
    }

    #[test]
    fn several_threads_are_refused() {
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let waiting = std::thread::spawn(move || receiver.recv());
        assert!(fork().is_err());
        assert!(fork_into(UnshareFlags::NEWUSER).is_err());
        assert!(in_child(|| ()).is_err());
        assert!(unshare(UnshareFlags::NEWNS).is_err());
        drop(sender);
        assert!(waiting.join().expect("joining the thread").is_err());
    }
}
