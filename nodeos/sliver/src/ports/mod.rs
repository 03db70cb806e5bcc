//! How many ports of the node a sliver may hold.
//!
//! Slivers share the node's ports, and whoever connects needs one from the ephemeral range. What holds one there is a socket, so
//! that sockets are counted: those that are made, and accepted connections to a port of the range, which hold it when the
//! socket that listened is closed. Accepted connections to other ports hold nothing that anybody needs, and do not count.
//!
//! What outlives its socket, connections in TIME-WAIT and those not acknowledged at the end, is bounded for the whole node
//! (`node.rs`): with that, one sliver never has all of the range.

mod program;

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use orrery_sys::bpf::{self, Hook, Map};

use self::program::{closed, connection, created};

/// Sockets that one sliver may have, of some 28,000 ports.
const SOCKETS: u32 = 4096;
/// Those that can be known at a time: accepted connections are not refused, though they count. More than there is memory for.
const KNOWN: u32 = 1 << 20;
/// Where the kernel takes ports from for who does not ask for one.
const EPHEMERAL: u32 = 32_768;

/// What the programs of one sliver keep.
#[derive(Debug, Clone, Copy)]
struct Maps<'a> {
    /// Sockets that count, by their cookies.
    known: BorrowedFd<'a>,
    /// How many that are.
    count: BorrowedFd<'a>,
}

/// Limits the sockets of a sliver's control group, for as long as that is there.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn limit(group: &Path) -> io::Result<()> {
    let group = File::open(group)?;
    let (known, count) = (bpf::map(Map::Trie, KNOWN)?, bpf::map(Map::Array, 1)?);
    let maps = Maps { known: known.as_fd(), count: count.as_fd() };
    // What takes away from the count is there before what adds to it.
    for (hook, program) in [
        (Hook::SocketRelease, closed(maps)),
        (Hook::Connection, connection(maps, EPHEMERAL)),
        (Hook::SocketCreate, created(maps, SOCKETS)),
    ] {
        bpf::attach(group.as_fd(), bpf::load(hook, &program)?.as_fd(), hook)?;
    }
    Ok(())
}
