//! Sockets made inside a sliver for somebody outside: packets of forwarded connections are then the sliver's.

use std::{
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            fs::DirBuilderExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::{Child, ExitCode},
    thread,
};

use rustix::{
    event::{PollFd, PollFlags},
    net::{AddressFamily, SocketFlags, SocketType},
    thread::ThreadNameSpaceType,
};
use serde::{Deserialize, Serialize};

use crate::{
    enter::{STARTED, answer, doing},
    internal::become_sliver_root,
};

/// A socket to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wish {
    /// TCP over IPv4, neither bound nor connected.
    Tcp4,
    /// The same over IPv6.
    Tcp6,
    /// Listening at this path, in a folder that is made for it and removed with it.
    Listener(PathBuf),
}

/// A socket that was made.
#[derive(Debug)]
pub struct Made {
    /// The socket.
    pub socket: OwnedFd,
    /// What removes a listener's folder when it is dropped.
    pub helper: Helper,
}

/// The process that made a socket.
#[derive(Debug)]
pub struct Helper {
    pub(crate) child: Option<Child>,
    pub(crate) connection: Option<UnixStream>,
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.connection.take();
        if let Some(mut child) = self.child.take() {
            // It may be suspended with the sliver, which is nothing to wait for here.
            thread::spawn(move || child.wait());
        }
    }
}

/// The helper's life once it is in the sliver's control group. It stays in the node's PID namespace, where the sliver cannot
/// see it.
pub(crate) fn make(control: &UnixStream, first: BorrowedFd<'_>, wish: &Wish) -> io::Result<ExitCode> {
    let name_spaces = ThreadNameSpaceType::USER | ThreadNameSpaceType::MOUNT;
    doing("joining the namespaces", rustix::thread::move_into_thread_name_spaces(first, name_spaces))?;
    doing("becoming root of the sliver", become_sliver_root())?;
    let family = match wish {
        Wish::Tcp4 => AddressFamily::INET,
        Wish::Tcp6 => AddressFamily::INET6,
        Wish::Listener(path) => return listen(control, path),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = doing("making a socket", rustix::net::socket_with(family, SocketType::STREAM, flags, None))?;
    answer(control, STARTED, Some(socket.as_fd()))?;
    Ok(ExitCode::SUCCESS)
}

/// Listens at `path`, and removes it when whoever asked for it is gone.
fn listen(control: &UnixStream, path: &Path) -> io::Result<ExitCode> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    doing("making a folder", fs::DirBuilder::new().mode(0o700).create(folder))?;
    let clean = || {
        let _ = fs::remove_file(path);
        let _ = fs::remove_dir(folder);
    };
    let told = doing("listening", UnixListener::bind(path))
        .and_then(|listener| answer(control, STARTED, Some(listener.as_fd())));
    if let Err(error) = told {
        clean();
        return Err(error);
    }
    // The other end has said all it had to say; that it is gone altogether is a hang-up.
    let mut wait = [PollFd::new(control, PollFlags::empty())];
    let gone = rustix::io::retry_on_intr(|| rustix::event::poll(&mut wait, None));
    clean();
    gone?;
    Ok(ExitCode::SUCCESS)
}
