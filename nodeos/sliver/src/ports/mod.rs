//! How many ports of the node a sliver may hold, and how many connections may wait in it.
//!
//! Slivers share the node's ports, and whoever connects needs one from the ephemeral range. What holds one there is a socket, so
//! that sockets are counted: those that are made, and accepted connections to a port of the range, which hold it when the
//! socket that listened is closed. Accepted connections to other ports hold nothing that anybody needs, and do not count; one that
//! is disconnected and then takes a port counts from then on. The kernel tells of every port that is taken before it is, but not where
//! a socket begins to listen that was never bound: `packages/linux` has a patch for that.
//!
//! What outlives its socket, connections in TIME-WAIT and those not acknowledged at the end, is bounded for the whole node
//! (`node.rs`): with that, one sliver never has all of the range.
//!
//! A connection that others make to a socket that listens is paid for by its sliver (`packages/linux` has a patch for that too), but not what comes before,
//! while it has only begun. Those are bounded by the queue of each such socket (`node.rs`), and by how many of them a sliver has.
//!
//! The ports of DHCP are none that a sliver may hold: from there it could tell the node another address, gateway and name server.

mod program;

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::OnceLock,
};

use orrery_sys::bpf::{self, Hook, Map};

use self::program::{bound, closed, connecting, connection, created};

/// Sockets that one sliver may have, of some 28,000 ports.
const SOCKETS: u32 = 4096;
/// What a socket for pings counts for, and one for packets as they are, in a network of a container's own: the kernel charges what waits in them to nobody,
/// up to 416 KiB in each. All of them are 26 MiB of the node's.
const PINGS: u32 = 64;
/// Sockets of one sliver that may listen. Each has a queue as long as it says, but not longer than the node allows (`node.rs`), of connections that
/// have only begun, at 300 to 500 bytes. All of them are 60 MiB of the node's.
const LISTENERS: u32 = 256;
/// What a socket that listens counts for in a network that a container inside has of its own. The node's setting does not hold there, and a
/// queue is up to 4,096 connections long, eight times as many.
const IN_OTHER_NETWORKS: u32 = 8;
/// Where servers of DHCP speak from and clients are spoken to, of versions 4 and 6 (RFC 2131, RFC 8415).
const DHCP: [u16; 4] = [67, 68, 546, 547];
/// Where the kernel takes ports from for who does not ask for one.
const EPHEMERAL: u32 = 32_768;

/// What the programs keep.
#[derive(Debug, Clone, Copy)]
struct Maps<'a> {
    /// With each socket, as what it counts.
    marks: BorrowedFd<'a>,
    /// With each sliver's control group, how many count.
    count: BorrowedFd<'a>,
}

/// The limit of sockets, the same for all slivers: programs that the kernel takes once, for the first of them.
///
/// Slivers that run keep theirs when this is gone, and whoever limits others then has programs of their own. Since a group is
/// limited before anything runs in it, and a socket belongs to one group for good, no socket is ever seen by both.
#[derive(Debug, Default)]
pub(crate) struct SocketLimit {
    /// What takes away from the count is attached before what adds to it.
    programs: OnceLock<[(Hook, OwnedFd); 7]>,
}

impl SocketLimit {
    /// Limits the sockets of a sliver's control group, for as long as that is there.
    ///
    /// # Errors
    /// When the kernel refuses. What it refused to take, it is asked to take again the next time.
    pub(crate) fn apply(&self, group: &Path) -> io::Result<()> {
        let group = File::open(group)?;
        let programs = match self.programs.get() {
            Some(programs) => programs,
            None => {
                let programs = load()?;
                self.programs.get_or_init(|| programs)
            }
        };
        programs.iter().try_for_each(|(hook, program)| bpf::attach(group.as_fd(), program.as_fd(), *hook))
    }
}

fn load() -> io::Result<[(Hook, OwnedFd); 7]> {
    let (marks, count) = (bpf::map(Map::OfSockets)?, bpf::map(Map::OfGroups)?);
    let maps = Maps { marks: marks.as_fd(), count: count.as_fd() };
    let load = |hook, program: &[_]| Ok::<_, io::Error>((hook, bpf::load(hook, program)?));
    let (bound, connecting) = (bound(maps, SOCKETS, LISTENERS, IN_OTHER_NETWORKS, &DHCP), connecting(maps, SOCKETS));
    Ok([
        load(Hook::SocketRelease, &closed(maps))?,
        load(Hook::Connection, &connection(maps, EPHEMERAL))?,
        load(Hook::Bind4, &bound)?,
        load(Hook::Bind6, &bound)?,
        load(Hook::Connect4, &connecting)?,
        load(Hook::Connect6, &connecting)?,
        load(Hook::SocketCreate, &created(maps, SOCKETS, PINGS))?,
    ])
}
