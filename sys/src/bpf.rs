//! Programs of the kernel's own machine for a control group's sockets, and the maps that they keep (bpf(2); Linux:
//! `bpf/instruction-set.rst`). The kernel proves a program before it takes it.
#![allow(unsafe_code)] // One system call, which is given addresses as numbers.

use std::{
    io, mem,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

const MAP_CREATE: libc::c_long = 0;
const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const BTF_LOAD: libc::c_long = 18;
/// `BPF_F_NO_PREALLOC`.
const NO_PREALLOC: u32 = 1;
/// The numbers of the two types of [`types`].
const KEY: u32 = 1;
const VALUE: u32 = 2;
/// What a program says of itself, which decides what the kernel lets it call.
const LICENSE: &[u8] = b"MIT\0";

/// One instruction (`struct bpf_insn` of linux/bpf.h).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// What is done.
    pub operation: u8,
    /// The destination's number, and 16 times the source's.
    pub registers: u8,
    /// Of an address, in bytes; of a jump, in instructions from the next one.
    pub offset: i16,
    /// A constant.
    pub immediate: i32,
}

/// When a program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Somebody makes an internet socket, and gets it if the program returns 1.
    SocketCreate,
    /// An internet socket is closed, also one that came from a listening one.
    SocketRelease,
    /// Something happens to a TCP socket.
    Connection,
    /// An IPv4 socket was given a port, since it was bound or, in a kernel with our patch, since it begins to listen. It keeps it if the
    /// program returns 1.
    Bind4,
    /// The same for IPv6.
    Bind6,
    /// An IPv4 socket is about to connect, and does if the program returns 1.
    Connect4,
    /// The same for IPv6.
    Connect6,
}

impl Hook {
    /// The kinds of program and of attachment (`enum bpf_prog_type` and `enum bpf_attach_type` of linux/bpf.h).
    fn kinds(self) -> (u32, u32) {
        match self {
            Self::SocketCreate => (9, 2),
            Self::SocketRelease => (9, 34),
            Self::Connection => (13, 3),
            Self::Bind4 => (9, 12),
            Self::Bind6 => (9, 13),
            Self::Connect4 => (18, 10),
            Self::Connect6 => (18, 11),
        }
    }
}

/// What a map is. Its values are zero in the beginning, are there as long as what they belong to, and cannot run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Map {
    /// Eight bytes with each socket for which a program asked for them.
    OfSockets,
    /// Eight bytes with each control group to which a program is attached that uses the map, the same for all its hooks.
    OfGroups,
}

/// Makes a map.
///
/// # Errors
/// When the caller has no right to, or there is no memory.
pub fn map(map: Map) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Argument {
        kind: u32,
        key: u32,
        value: u32,
        entries: u32,
        flags: u32,
        inner: u32,
        memory_node: u32,
        name: [u8; 16],
        interface: u32,
        types: i32,
        key_type: u32,
        value_type: u32,
    }
    const { assert!(mem::size_of::<Argument>() == 60) };
    let new = |kind, key, flags, types, [key_type, value_type]: [u32; 2]| {
        let value = 8;
        let (entries, inner, memory_node, name, interface) = (0, 0, 0, [0; 16], 0);
        descriptor(
            MAP_CREATE,
            &Argument {
                kind,
                key,
                value,
                entries,
                flags,
                inner,
                memory_node,
                name,
                interface,
                types,
                key_type,
                value_type,
            },
        )
    };
    match map {
        Map::OfSockets => new(24, 4, NO_PREALLOC, types()?.as_raw_fd(), [KEY, VALUE]),
        Map::OfGroups => new(19, 8, 0, 0, [0, 0]),
    }
}

/// The types without whose description the kernel makes no map of sockets (Linux: `bpf/btf.rst`).
fn types() -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Argument {
        types: u64,
        log_address: u64,
        size: u32,
        // Nothing after this: the kernel would write there.
        log: u32,
    }
    const { assert!(mem::size_of::<Argument>() == 24) };
    // A header with where its two parts are and how long, two types, which are integers of four bytes and 32 bits and of twice as
    // many, and names: none.
    const TYPES: [u32; 15] = [0x0001_eb9f, 24, 0, 32, 32, 4, 0, 1 << 24, 4, 32, 0, 1 << 24, 8, 64, 0];
    let (types, size) = (TYPES.as_ptr() as u64, mem::size_of_val(&TYPES) as u32);
    descriptor(BTF_LOAD, &Argument { types, log_address: 0, size, log: 0 })
}

/// Has the kernel prove and take a program.
///
/// # Errors
/// When the caller has no right to, or the program is none that the kernel takes.
pub fn load(hook: Hook, program: &[Instruction]) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Argument {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log: [u32; 2],
        log_address: u64,
        version: u32,
        flags: u32,
        name: [u8; 16],
        interface: u32,
        attachment: u32,
    }
    const { assert!(mem::size_of::<Argument>() == 72 && mem::size_of::<Instruction>() == 8) };
    let (kind, attachment) = hook.kinds();
    let argument = Argument {
        kind,
        count: program.len().try_into().map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        log: [0; 2],
        log_address: 0,
        version: 0,
        flags: 0,
        name: [0; 16],
        interface: 0,
        attachment,
    };
    descriptor(PROG_LOAD, &argument)
}

/// Has a program run for the sockets of a control group and those in it, as long as the group is there. One that ran for this group
/// at the same hook does not any more.
///
/// # Errors
/// When the caller has no right to, or there is one already for a group around this one.
pub fn attach(group: BorrowedFd<'_>, program: BorrowedFd<'_>, hook: Hook) -> io::Result<()> {
    #[repr(C)]
    struct Argument {
        group: i32,
        program: i32,
        attachment: u32,
        flags: u32,
    }
    let (group, program, attachment) = (group.as_raw_fd(), program.as_raw_fd(), hook.kinds().1);
    call(PROG_ATTACH, &Argument { group, program, attachment, flags: 0 }).map(drop)
}

/// For commands that return a descriptor.
fn descriptor<A>(command: libc::c_long, argument: &A) -> io::Result<OwnedFd> {
    let descriptor = call(command, argument)?;
    // SAFETY: the kernel has just made the descriptor, close-on-exec as all of this call, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn call<A>(command: libc::c_long, argument: &A) -> io::Result<i32> {
    let (address, size) = (std::ptr::from_ref(argument), mem::size_of::<A>());
    // SAFETY: the argument is as long as said, and begins as the command's part of `union bpf_attr`; the kernel takes what is not
    // there for zeros. It only reads it, and what it points at, which outlives the call.
    let returned = unsafe { libc::syscall(libc::SYS_bpf, command, address, size) };
    if returned < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(returned).map_err(io::Error::other)
}
