//! Administrative slivers (the paper, section 4.3): what they see of the node, and who makes their sockets.
//!
//! No wall of a sliver falls for it. The view is a set of read-only mounts below `/node`, and what in them is for the node's
//! root alone stays so: its root is nobody to the sliver, in a user namespace above its own. Sockets over the node's network the
//! sliver's processes never may make themselves. A filter hands those calls over to a process of the node that has this one
//! right, which makes the socket and gives the caller a descriptor of it.

use std::{
    fs, io,
    num::NonZeroU32,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    process::{ExitCode, Stdio},
};

use orrery_protocol::{Admin, Capability, View};
use orrery_sys::{
    descriptor,
    namespace::{idmap_read_only, is_one_user_namespace_in, make_read_only},
    seccomp::{self, Call},
    spawn::Preparations,
};
use rustix::{
    mount::MountAttrFlags,
    net::{AddressFamily, Protocol, SocketFlags, SocketType},
    process::{Gid, Pid, Uid},
    thread::{self, CapabilitySet, CapabilitySets},
};

use crate::{
    boot::{Doing, Failed, Inside, clone_tree, file_system},
    cgroup::BROKER,
    enter::STARTED,
    handover::{answer, receive},
    internal::{SOCKETS, helper_command, hide},
};

/// What a view shows, and where below `/node`.
const VIEWS: &[(View, &str, &str)] = &[
    (View::Processes, "/proc", "proc"),
    (View::Cgroups, "/sys/fs/cgroup", "cgroup"),
    (View::Hardware, "/sys", "sys"),
    (View::Events, orrery_init_api::EVENTS_PATH, "events.jsonl"),
];

/// The mounts of a view, not attached yet.
pub(crate) struct Views(Vec<(View, &'static str, OwnedFd)>);

impl Views {
    /// Takes them from the node, whose mounts have to be there still.
    pub(crate) fn take(admin: &Admin, user_name_space: BorrowedFd<'_>) -> Result<Self, Failed> {
        let wanted = VIEWS.iter().filter(|(view, ..)| admin.views.contains(view));
        let take = |&(view, source, at): &(View, &str, &'static str)| {
            let mount = clone_tree(source)?;
            match view {
                // One file, for root alone: the sliver's root reads it as its owner.
                View::Events => idmap_read_only(mount.as_fd(), user_name_space),
                // In these the kernel itself tells what is for whom.
                View::Processes | View::Cgroups | View::Hardware => make_read_only(mount.as_fd()),
            }
            .doing(format!("making {source} read-only"))?;
            Ok((view, at, mount))
        };
        wanted.map(take).collect::<Result<_, _>>().map(Self)
    }

    /// Attaches them below `/node`, if there are any.
    pub(crate) fn mount(&self, root: &Inside) -> Result<(), Failed> {
        if self.0.is_empty() {
            return Ok(());
        }
        // The node's: nobody inside can add to it.
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        root.mount("node", &file_system("tmpfs", &[("mode", "555"), ("size", "16k")], flags)?)?;
        for (view, at, mount) in &self.0 {
            let path = format!("node/{at}");
            match view {
                View::Events => root.file(&path, mount)?,
                View::Processes | View::Cgroups | View::Hardware => root.mount(&path, mount)?,
            }
            if *view == View::Processes {
                root.mask(&path)?;
            }
        }
        Ok(())
    }
}

/// Where a broker finds its end of the connection to whoever needs it.
const CONTROL: i32 = 3;

/// A process of the node that makes sockets for a sliver. It lasts as long as the sliver's processes do, outside of their PID
/// namespace, in a leaf of their control group, by which the sockets are the sliver's.
#[derive(Debug)]
pub(crate) struct Broker {
    connection: UnixStream,
}

impl Broker {
    /// Starts one for the sliver of the identity `owner`, if it is to have such sockets. `beside` is a leaf of its control group. To
    /// be called with rights over the node.
    pub(crate) fn start_if(admin: &Admin, owner: u32, beside: &Path) -> io::Result<Option<Self>> {
        if !admin.capabilities.contains(&Capability::NetRaw) {
            return Ok(None);
        }
        let leaf = beside.with_file_name(BROKER);
        fs::create_dir_all(&leaf)?;
        let (connection, theirs) = UnixStream::pair()?;
        let mut command = helper_command(SOCKETS);
        command.arg(owner.to_string()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let group = leaf.join("cgroup.procs");
        Preparations::new()
            .descriptor(theirs.into(), CONTROL)?
            .write(&group.to_string_lossy(), b"0")?
            .apply(&mut command);
        command.spawn()?;
        Ok(Some(Self { connection }))
    }

    /// Leaves it the calls of a filter.
    pub(crate) fn give(self, listener: OwnedFd) -> io::Result<()> {
        answer(&self.connection, STARTED, Some(listener.as_fd()))
    }
}

/// The whole life of a broker.
pub(crate) fn broker() -> ExitCode {
    // Nobody reads what it could say: a caller of a broker that ended hears that there is no such call.
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn serve() -> io::Result<()> {
    let control = UnixStream::from(descriptor::inherited(CONTROL)?);
    let owner = std::env::args().nth(2).and_then(|text| text.parse().ok()).ok_or(io::ErrorKind::InvalidInput)?;
    // Of no group that somebody ends together with the service that started the sliver.
    rustix::process::setsid()?;
    keep_one_right(owner)?;
    let (_, listeners) = receive(&control, &mut [0])?;
    drop(control);
    let listener = listeners.into_iter().next().ok_or(io::ErrorKind::UnexpectedEof)?;
    while let Some(call) = seccomp::next_call(listener.as_fd())? {
        let close_on_exec = call.arguments[1] & u64::from(SocketFlags::CLOEXEC.bits()) != 0;
        match make_socket(&call) {
            Ok(socket) => seccomp::answer_with(listener.as_fd(), call, socket.as_fd(), close_on_exec)?,
            Err(error) => seccomp::refuse(listener.as_fd(), call, &error)?,
        }
    }
    Ok(())
}

/// Becomes the sliver's owner, to whom its sockets belong, with the right to make them and no other.
fn keep_one_right(owner: u32) -> io::Result<()> {
    let (user, group) = (Uid::from_raw(owner), Gid::from_raw(owner));
    thread::set_keep_capabilities(true)?;
    thread::set_thread_groups(&[])?;
    thread::set_thread_res_gid(group, group, group)?;
    thread::set_thread_res_uid(user, user, user)?;
    let one = CapabilitySet::NET_RAW;
    thread::set_capabilities(
        None,
        CapabilitySets { effective: one, permitted: one, inheritable: CapabilitySet::empty() },
    )?;
    // Becoming somebody else may have undone that.
    hide()
}

/// Makes the socket that a call asks for, if it is of a kind that this is about.
fn make_socket(call: &Call) -> io::Result<OwnedFd> {
    // The kernel takes each as 32 bits.
    let [family, kind, protocol] = [0, 1, 2].map(|index| call.arguments[index] as u32);
    let (kind, flags) = (SocketType::from_raw(kind & 0xf), SocketFlags::from_bits_retain(kind & !0xf));
    let family = u16::try_from(family).map(AddressFamily::from_raw).map_err(|_| io::ErrorKind::InvalidInput)?;
    let wanted = match family {
        AddressFamily::PACKET => true,
        AddressFamily::INET | AddressFamily::INET6 => kind == SocketType::RAW,
        _ => false,
    };
    if call.number != libc::SYS_socket || !wanted || !may_make_them(call.caller)? {
        return Err(rustix::io::Errno::PERM.into());
    }
    let protocol = NonZeroU32::new(protocol).map(Protocol::from_raw);
    Ok(rustix::net::socket_with(family, kind, flags | SocketFlags::CLOEXEC, protocol)?)
}

/// Whether a caller has the right to such sockets in the sliver, as its root has, and programs that carry it as a file capability: what
/// the kernel asks for in a sliver that has a network of its own. Anybody has all rights in a user namespace of their own making; those
/// are not the sliver's.
fn may_make_them(caller: Option<Pid>) -> io::Result<bool> {
    let Some(caller) = caller else { return Ok(false) };
    let has = thread::capabilities(Some(caller))?.effective.contains(CapabilitySet::NET_RAW);
    Ok(has && is_one_user_namespace_in(caller)?)
}
