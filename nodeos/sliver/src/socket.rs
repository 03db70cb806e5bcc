//! Sockets made inside a sliver for somebody outside: packets of forwarded connections are then the sliver's.

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::DirBuilderExt,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use rustix::{
    event::{PollFd, PollFlags},
    net::{AddressFamily, SocketFlags, SocketType},
};
use serde::{Deserialize, Serialize};

use crate::{
    enter::{STARTED, doing},
    handover::answer,
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
    pub keep: Keep,
}

/// The connection to the session that made a socket.
#[derive(Debug)]
pub struct Keep(#[expect(dead_code, reason = "what counts is that it is there")] pub(crate) UnixStream);

/// What a session does for it.
pub(crate) fn make(control: &UnixStream, wish: &Wish) -> io::Result<()> {
    let family = match wish {
        Wish::Tcp4 => AddressFamily::INET,
        Wish::Tcp6 => AddressFamily::INET6,
        Wish::Listener(path) => return listen(control, path),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = doing("making a socket", rustix::net::socket_with(family, SocketType::STREAM, flags, None))?;
    answer(control, STARTED, Some(socket.as_fd()))
}

/// Listens at `path`, and removes it when whoever asked for it is gone.
fn listen(control: &UnixStream, path: &Path) -> io::Result<()> {
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
    // The other end says nothing more; that it is gone is a hang-up.
    let mut wait = [PollFd::new(control, PollFlags::empty())];
    let gone = rustix::io::retry_on_intr(|| rustix::event::poll(&mut wait, None));
    clean();
    gone?;
    Ok(())
}
