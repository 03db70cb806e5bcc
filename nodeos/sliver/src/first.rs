//! A sliver's first process once it runs: it forks a session for whoever knocks, puts it into its control group, and lets the kernel
//! reap.
//!
//! Sessions are its children and not the node's, since only what is forked inside is in the sliver's Landlock domain, which nobody
//! joins. All other confinement comes with it: a session is confined from its first instruction on.
//!
//! Its door is a pair of sockets of which it has both ends, so that no path and no name leads there: to knock takes a duplicate of
//! one end, and that the right to trace this process, which nothing inside has. It keeps nothing about sessions and waits for
//! nobody: what it hears is whole with one message.

use std::{
    convert::Infallible,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
};

use orrery_sys::{
    descriptor,
    namespace::{self, Fork, fork},
};
use rustix::{
    fs::{Mode, OFlags},
    net::{AddressFamily, SendFlags, SocketFlags, SocketType},
    process::{Pid, PidfdFlags, PidfdGetfdFlags},
};

use crate::{
    handover::{receive, send},
    session,
};

/// Where the first process has the end of its door to knock at. The end it listens at is before that.
const KNOCKER: i32 = 4;

/// The word that a session is in its control group: the sliver may be stopped from now on, which ends it too. It may do nothing
/// before it is told what.
pub(crate) const JOINED: &[u8] = b"=";

/// The first process's life, once it is confined. It closes all descriptors it had.
pub(crate) fn serve() -> io::Result<Infallible> {
    namespace::ignore_children()?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let (listener, knocker) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    drop(null);
    let door = descriptor::keep_only([listener, knocker])?;
    loop {
        // Whoever is not heard finds the connection closed.
        let Ok((_, given)) = receive(&door[0], &mut [0]) else { continue };
        let Ok([connection, group]) = <[OwnedFd; 2]>::try_from(given) else { continue };
        let joined = match fork() {
            // Not by its own hand: the sliver's root could stop it on the way, while whoever knocked holds the sliver's lock.
            Ok(Fork::Parent(session)) => rustix::io::write(group, session.as_raw_nonzero().to_string().as_bytes())
                .map_err(|error| format!("joining the control group: {error}")),
            Ok(Fork::Child) => {
                drop((door, group));
                session::run(&connection.into());
                std::process::exit(0)
            }
            Err(error) => Err(format!("forking: {error}")),
        };
        let _ = match joined {
            Ok(_) => send(&connection, JOINED, &[], SendFlags::DONTWAIT),
            Err(text) => send(&connection, text.as_bytes(), &[], SendFlags::DONTWAIT),
        };
    }
}

/// Whether there is a door to knock at. A first process that is about to end has none any more, while the mounts go with it.
pub(crate) fn listens(first: Pid) -> bool {
    let opened = rustix::process::pidfd_open(first, PidfdFlags::empty());
    opened.and_then(|first| rustix::process::pidfd_getfd(first, KNOCKER, PidfdGetfdFlags::empty())).is_ok()
}

/// Has the first process fork a session into the control group of this `cgroup.procs`, opened by somebody who may move processes
/// there. It gets one end of a connection. Returns the other, over which comes [`JOINED`].
///
/// # Errors
/// When this process may not trace that one, or too many are waiting there already.
pub(crate) fn knock(first: BorrowedFd<'_>, group: BorrowedFd<'_>) -> io::Result<UnixStream> {
    let door = rustix::process::pidfd_getfd(first, KNOCKER, PidfdGetfdFlags::empty())?;
    let (ours, theirs) = UnixStream::pair()?;
    send(&door, &[0], &[theirs.as_fd(), group], SendFlags::DONTWAIT)?;
    Ok(ours)
}
