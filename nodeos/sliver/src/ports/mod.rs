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
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    sync::OnceLock,
};

use orrery_sys::bpf::{self, Hook, Map};

use self::program::{closed, connection, created};

/// Sockets that one sliver may have, of some 28,000 ports.
const SOCKETS: u32 = 4096;
/// Where the kernel takes ports from for who does not ask for one.
const EPHEMERAL: u32 = 32_768;

/// What the programs keep.
#[derive(Debug, Clone, Copy)]
struct Maps<'a> {
    /// With each socket, whether it counts.
    marks: BorrowedFd<'a>,
    /// With each sliver's control group, how many do.
    count: BorrowedFd<'a>,
}

/// The limit of sockets, the same for all slivers: programs that the kernel takes once, for the first of them.
///
/// Slivers that run keep theirs when this is gone, and whoever limits others then has programs of their own. Since a group is
/// limited before anything runs in it, and a socket belongs to one group for good, no socket is ever seen by both.
#[derive(Debug, Default)]
pub(crate) struct SocketLimit {
    /// What takes away from the count is attached before what adds to it.
    programs: OnceLock<[(Hook, OwnedFd); 3]>,
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

fn load() -> io::Result<[(Hook, OwnedFd); 3]> {
    let (marks, count) = (bpf::map(Map::OfSockets)?, bpf::map(Map::OfGroups)?);
    let maps = Maps { marks: marks.as_fd(), count: count.as_fd() };
    let load = |hook, program: &[_]| Ok::<_, io::Error>((hook, bpf::load(hook, program)?));
    Ok([
        load(Hook::SocketRelease, &closed(maps))?,
        load(Hook::Connection, &connection(maps, EPHEMERAL))?,
        load(Hook::SocketCreate, &created(maps, SOCKETS))?,
    ])
}
