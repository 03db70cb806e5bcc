//! Installing a system call filter, and answering the calls that one hands over.
#![allow(unsafe_code)] // seccomp has no safe wrapper that leaves no_new_privs alone; ioctls of its listener have none at all.

use std::{
    io, mem,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    process::Pid,
};

/// Installs a filter on the calling thread, for good: whatever it forks or executes keeps it. Filters add up, and the
/// strictest answer counts. The process needs `CAP_SYS_ADMIN` in its user namespace, and `no_new_privs` stays as it is.
///
/// # Errors
/// When the process has no such right, or the program is not one the kernel takes.
pub fn install(program: &[libc::sock_filter]) -> io::Result<()> {
    set_filter(program, 0).map(drop)
}

/// As [`install`], for a filter that hands calls over (`SECCOMP_RET_USER_NOTIF`): whoever holds the listener answers them. A
/// process can have only one such filter; when nobody holds its listener, those calls do not exist.
///
/// # Errors
/// As [`install`].
pub fn install_with_listener(program: &[libc::sock_filter]) -> io::Result<OwnedFd> {
    let number = set_filter(program, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
    // SAFETY: with this flag, the call returns a descriptor that it made, which nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn set_filter(program: &[libc::sock_filter], flags: libc::c_ulong) -> io::Result<RawFd> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: the structure holds the pointer and the length of a slice, both outlive the call, and the kernel only reads.
    let returned =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    RawFd::try_from(returned).ok().filter(|number| *number >= 0).ok_or_else(io::Error::last_os_error)
}

/// A call that waits for its answer.
#[derive(Debug)]
#[must_use]
pub struct Call {
    id: u64,
    /// Whose it is, in the PID namespace of who holds the listener. That thread does nothing else before it has the answer; an answer
    /// to a call reaches nobody but its caller.
    pub caller: Option<Pid>,
    /// Its number.
    pub number: libc::c_long,
    /// Its arguments. Pointers lead into the caller's memory, which its other threads change at will.
    pub arguments: [u64; 6],
}

/// Waits for the next call; there is none any more when the last process with that filter has ended.
///
/// # Errors
/// When `listener` is none.
pub fn next_call(listener: BorrowedFd<'_>) -> io::Result<Option<Call>> {
    loop {
        let mut wait = [PollFd::from_borrowed_fd(listener, PollFlags::IN)];
        rustix::io::retry_on_intr(|| poll(&mut wait, None))?;
        if !wait[0].revents().contains(PollFlags::IN) {
            return Ok(None);
        }
        // SAFETY: integers only, for which zero is a value; the kernel wants all of them zero.
        let mut call: libc::seccomp_notif = unsafe { mem::zeroed() };
        match control(listener, libc::SECCOMP_IOCTL_NOTIF_RECV, &mut call) {
            Ok(_) => {
                let number = libc::c_long::from(call.data.nr);
                let caller = i32::try_from(call.pid).ok().and_then(Pid::from_raw);
                return Ok(Some(Call { id: call.id, caller, number, arguments: call.data.args }));
            }
            // The caller was interrupted or killed meanwhile.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Has a call fail with the number of `error`. A caller that is gone is no error.
///
/// # Errors
/// When `listener` is none.
pub fn refuse(listener: BorrowedFd<'_>, call: Call, error: &io::Error) -> io::Result<()> {
    let number = error.raw_os_error().unwrap_or(libc::EIO);
    let mut answer = libc::seccomp_notif_resp { id: call.id, val: 0, error: -number, flags: 0 };
    gone_is_fine(control(listener, libc::SECCOMP_IOCTL_NOTIF_SEND, &mut answer))
}

/// Has a call succeed with a copy of `descriptor`, as the caller's next free number. A caller that is gone is no error.
///
/// # Errors
/// When `listener` is none, or the caller has no number left.
pub fn answer_with(
    listener: BorrowedFd<'_>,
    call: Call,
    descriptor: BorrowedFd<'_>,
    close_on_exec: bool,
) -> io::Result<()> {
    let mut answer = libc::seccomp_notif_addfd {
        id: call.id,
        flags: libc::SECCOMP_ADDFD_FLAG_SEND as u32,
        srcfd: descriptor.as_raw_fd().cast_unsigned(),
        newfd: 0,
        newfd_flags: if close_on_exec { libc::O_CLOEXEC as u32 } else { 0 },
    };
    match control(listener, libc::SECCOMP_IOCTL_NOTIF_ADDFD, &mut answer) {
        // The call still waits.
        Err(error) if error.raw_os_error() == Some(libc::EMFILE) => refuse(listener, call, &error),
        result => gone_is_fine(result),
    }
}

fn gone_is_fine(result: io::Result<RawFd>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

/// A structure of `<linux/seccomp.h>` that a request of a listener takes.
trait Argument {}

impl Argument for libc::seccomp_notif {}
impl Argument for libc::seccomp_notif_resp {}
impl Argument for libc::seccomp_notif_addfd {}

fn control<T: Argument>(listener: BorrowedFd<'_>, request: libc::Ioctl, argument: &mut T) -> io::Result<RawFd> {
    // SAFETY: every request above is made with the structure that its number names, which outlives the call.
    let returned = unsafe { libc::ioctl(listener.as_fd().as_raw_fd(), request, &raw mut *argument) };
    if returned == -1 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::Read, os::fd::AsFd, sync::mpsc, thread};

    use super::*;

    /// Hands over calls of one number and allows all others.
    fn hands_over(number: libc::c_long) -> [libc::sock_filter; 4] {
        let instruction = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
        [
            instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
            instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, number as u32),
            instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
            instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
        ]
    }

    #[test]
    fn another_answers_a_call() {
        let (give, take) = mpsc::channel();
        let (give_id, caller_id) = mpsc::channel();
        // A filter is its thread's, and this one ends with it.
        let caller = thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            give_id.send(rustix::thread::gettid()).unwrap();
            give.send(install_with_listener(&hands_over(libc::SYS_epoll_create1)).unwrap()).unwrap();
            let call = || rustix::event::epoll::create(rustix::event::epoll::CreateFlags::CLOEXEC);
            let refused = call().unwrap_err();
            let mut text = String::new();
            File::from(call().unwrap()).read_to_string(&mut text).unwrap();
            (refused, text)
        });
        let listener = take.recv().unwrap();
        let first = next_call(listener.as_fd()).unwrap().unwrap();
        assert_eq!((first.number, first.arguments[0]), (libc::SYS_epoll_create1, libc::O_CLOEXEC as u64));
        assert_eq!(first.caller, Some(caller_id.recv().unwrap()));
        refuse(listener.as_fd(), first, &io::Error::from_raw_os_error(libc::EXDEV)).unwrap();
        let second = next_call(listener.as_fd()).unwrap().unwrap();
        let (reader, writer) = io::pipe().unwrap();
        io::Write::write_all(&mut &writer, b"handed over").unwrap();
        drop(writer);
        answer_with(listener.as_fd(), second, reader.as_fd(), true).unwrap();
        assert_eq!(caller.join().unwrap(), (rustix::io::Errno::XDEV, "handed over".to_owned()));
        assert!(next_call(listener.as_fd()).unwrap().is_none(), "a call of nobody");
    }
}
