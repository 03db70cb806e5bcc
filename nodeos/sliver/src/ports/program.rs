//! The programs that count sockets.
//!
//! Written out as instructions: five of some thirty to sixty each do not need a compiler of their own in the build.

use std::os::fd::{AsRawFd, BorrowedFd};

use orrery_sys::bpf::Instruction;

use super::Maps;

// Functions of the kernel by number (`__BPF_FUNC_MAPPER` of linux/bpf.h). They take registers 1 to 5, return 0, and keep 6 to 9.
const SET_CALLBACKS: i32 = 59;
const OF_GROUP: i32 = 81;
const OF_SOCKET: i32 = 107;
const NETWORK: i32 = 122;
const SET_ERROR: i32 = 187;

/// `BPF_SK_STORAGE_GET_F_CREATE`: what a map has with a socket is made if it is not there.
const MAKE: i32 = 1;

// Of a connection (`struct bpf_sock_ops`, and the constants beside it): where its fields are, what happens, and states.
const EVENT: i16 = 0;
const NEW_STATE: i16 = 8;
const LOCAL_PORT: i16 = 68;
const SOCKET: i16 = 184;
const ACCEPTED: i32 = 5;
const STATE_CHANGED: i32 = 10;
const WANT_STATES: i32 = 4;
const CLOSED: i32 = 7;

// Of a socket (`struct bpf_sock`), and of what is about to connect (`struct bpf_sock_addr`).
const TYPE: i16 = 8;
const PROTOCOL: i16 = 12;
const PORT: i16 = 44;
const STATE: i16 = 72;
const LISTENING: i32 = 10;
const CONNECTING: i16 = 64;

// What is counted, and where in a sliver's count: sockets in four bytes, and in two each those that listen, of which there are never
// near as many, and those that count only as long as a connection. The last is there to be seen in a mark; in a count it may overflow.
const SOCKETS: i16 = 0;
const LISTENERS: i16 = 4;
const PASSING: i16 = 6;
// A mark is what its socket adds to the count.
const ONE_SOCKET: i32 = 1;
const ONE_PASSING: u64 = 1 | 1 << (8 * PASSING);

// Registers: what is returned, arguments, and what is kept.
const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const CONTEXT: u8 = 6;
const COUNT: u8 = 7;
/// The address of a mark, or one.
const MARK: u8 = 8;
const KEPT: u8 = 9;

/// A step of a program: an instruction, or one that goes on elsewhere on some condition.
#[derive(Debug, Clone, Copy)]
enum Step {
    Plain(Instruction),
    Jump(Instruction, Place),
    /// Where jumps lead to.
    Here(Place),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Accepted,
    Allowed,
    Counted,
    Weighed,
    Forbid,
    Refuse,
    Done,
}

use Step::{Here, Jump, Plain};

/// Runs when a socket is made. Refuses it as too many open files (`ENFILE`) if there are `most`, of which one for pings or for packets
/// as they are is `pings`.
pub(super) fn created(maps: Maps<'_>, most: u32, pings: u32) -> Vec<Instruction> {
    let mut steps = vec![
        Plain(copy(CONTEXT, R1)),
        Plain(set(KEPT, pings.cast_signed())),
        Plain(load_half(R1, CONTEXT, TYPE)),
        Jump(if_equal(R1, libc::SOCK_RAW), Place::Weighed),
        Plain(load_half(R1, CONTEXT, PROTOCOL)),
        Jump(if_equal(R1, libc::IPPROTO_ICMP), Place::Weighed),
        Jump(if_equal(R1, libc::IPPROTO_ICMPV6), Place::Weighed),
        Plain(set(KEPT, ONE_SOCKET)),
        Here(Place::Weighed),
    ];
    steps.extend(count_of(maps));
    steps.extend([
        Plain(load_half(R1, COUNT, SOCKETS)),
        Plain(sum(R1, KEPT)),
        Jump(if_at_least(R1, most.cast_signed() + 1), Place::Refuse),
        Plain(copy(R2, CONTEXT)),
    ]);
    steps.extend(mark_of(maps, MAKE));
    steps.extend([Jump(if_equal(R0, 0), Place::Refuse), Plain(copy(MARK, R0)), Plain(copy(R1, KEPT))]);
    steps.extend([Plain(add(MARK)), Plain(add(COUNT))]);
    steps.extend(allow_or_refuse());
    assemble(&steps)
}

/// Runs when a socket is closed.
pub(super) fn closed(maps: Maps<'_>) -> Vec<Instruction> {
    let mut steps = vec![Plain(copy(R2, R1))];
    steps.extend(mark_of(maps, 0));
    steps.extend(forget(maps));
    steps.push(Here(Place::Done));
    steps.extend(allow());
    assemble(&steps)
}

/// Runs when something happens to a connection. One that others made to port `from` or above counts as a socket until it has ended or
/// its socket is closed, and it may never have had one.
pub(super) fn connection(maps: Maps<'_>, from: u32) -> Vec<Instruction> {
    // Always there with these events, which the kernel does not know.
    let socket = [Plain(load(R2, CONTEXT, SOCKET)), Jump(if_equal(R2, 0), Place::Done)];
    let mut steps = vec![
        Plain(copy(CONTEXT, R1)),
        Plain(load_half(R1, CONTEXT, EVENT)),
        Jump(if_equal(R1, ACCEPTED), Place::Accepted),
        Jump(if_not(R1, STATE_CHANGED), Place::Done),
        Plain(load_half(R1, CONTEXT, NEW_STATE)),
        Jump(if_not(R1, CLOSED), Place::Done),
    ];
    steps.extend(socket);
    steps.extend(mark_of(maps, 0));
    // One that was bound anew counts until it is closed.
    steps.extend([
        Jump(if_equal(R0, 0), Place::Done),
        Plain(load_two(R1, R0, PASSING)),
        Jump(if_equal(R1, 0), Place::Done),
    ]);
    steps.extend(forget(maps));
    steps.push(Here(Place::Done));
    steps.extend(allow());
    steps.extend([
        Here(Place::Accepted),
        Plain(load_half(R1, CONTEXT, LOCAL_PORT)),
        Jump(if_below(R1, from.cast_signed()), Place::Done),
    ]);
    steps.extend(socket);
    steps.extend(mark_of(maps, MAKE));
    // A socket that connected to itself counts already.
    steps.extend([
        Jump(if_equal(R0, 0), Place::Done),
        Plain(load_half(R1, R0, SOCKETS)),
        Jump(if_not(R1, 0), Place::Done),
        Plain(copy(MARK, R0)),
    ]);
    steps.extend(count_of(maps));
    steps.extend(wide(R1, ONE_PASSING).map(Plain));
    steps.extend([
        Plain(add(MARK)),
        Plain(add(COUNT)),
        Plain(copy(R1, CONTEXT)),
        Plain(set(R2, WANT_STATES)),
        Plain(call(SET_CALLBACKS)),
    ]);
    steps.extend(allow());
    assemble(&steps)
}

/// Runs when a socket has been given a port, since it was bound or begins to listen. It counts from then on until it is closed, if it did
/// not before. Refused if there are more than `most`, or as one that listens if there are more than `listeners`, of which one in a
/// network of its own is `others`. Forbidden (`EACCES`) for datagrams at the ports `kept` in the node's network.
pub(super) fn bound(maps: Maps<'_>, most: u32, listeners: u32, others: u32, kept: &[u16]) -> Vec<Instruction> {
    let mut steps = vec![
        Plain(copy(CONTEXT, R1)),
        Plain(load_half(R1, CONTEXT, PROTOCOL)),
        Jump(if_not(R1, libc::IPPROTO_UDP), Place::Allowed),
    ];
    steps.extend(networks());
    steps.extend([Jump(if_other(R0, KEPT), Place::Allowed), Plain(load_half(R1, CONTEXT, PORT))]);
    steps.extend(kept.iter().map(|port| Jump(if_equal(R1, i32::from(*port)), Place::Forbid)));
    steps.extend([Here(Place::Allowed), Plain(copy(R2, CONTEXT))]);
    steps.extend(takes_port(maps, most));
    steps.extend([
        Plain(load_half(R1, CONTEXT, STATE)),
        Jump(if_not(R1, LISTENING), Place::Done),
        Plain(load_two(R1, MARK, LISTENERS)),
        Jump(if_not(R1, 0), Place::Done),
    ]);
    steps.extend(networks());
    steps.extend([
        Plain(set(R1, 1)),
        Jump(if_same(R0, KEPT), Place::Weighed),
        Plain(set(R1, others.cast_signed())),
        Here(Place::Weighed),
        Plain(load_two(R2, COUNT, LISTENERS)),
        Plain(sum(R2, R1)),
        Jump(if_at_least(R2, listeners.cast_signed() + 1), Place::Refuse),
        Plain(shift(R1, 8 * i32::from(LISTENERS))),
        Plain(add(MARK)),
        Plain(add(COUNT)),
        Here(Place::Done),
    ]);
    steps.extend(allow_or_refuse());
    steps.push(Here(Place::Forbid));
    steps.extend(fail(libc::EACCES));
    assemble(&steps)
}

/// Runs when a socket is about to connect, for which it is given a port if it has none. As [`bound`] otherwise.
pub(super) fn connecting(maps: Maps<'_>, most: u32) -> Vec<Instruction> {
    let mut steps =
        vec![Plain(copy(CONTEXT, R1)), Plain(load(R2, CONTEXT, CONNECTING)), Jump(if_equal(R2, 0), Place::Done)];
    steps.extend(takes_port(maps, most));
    steps.push(Here(Place::Done));
    steps.extend(allow_or_refuse());
    assemble(&steps)
}

/// Has the addresses of the count and of the mark of the socket in register 2, which counts from now on, in their registers. Refuses if
/// there are too many, also one that counted: it would take a second port, since the one that it had is with a connection that it
/// accepted.
fn takes_port(maps: Maps<'_>, most: u32) -> Vec<Step> {
    let mut steps = mark_of(maps, MAKE);
    steps.extend([Jump(if_equal(R0, 0), Place::Refuse), Plain(copy(MARK, R0))]);
    steps.extend(count_of(maps));
    steps.extend([
        Plain(load_half(R2, COUNT, SOCKETS)),
        Jump(if_at_least(R2, most.cast_signed() + 1), Place::Refuse),
        Plain(load_half(R1, MARK, SOCKETS)),
        Jump(if_not(R1, 0), Place::Counted),
        Jump(if_at_least(R2, most.cast_signed()), Place::Refuse),
        Plain(set(R1, ONE_SOCKET)),
        Plain(add(MARK)),
        Plain(add(COUNT)),
        Here(Place::Counted),
    ]);
    steps
}

fn allow() -> [Step; 2] {
    [Plain(set(R0, 1)), Plain(exit())]
}

/// Allows it, or refuses it to who jumps there, as too many open files (`ENFILE`).
fn allow_or_refuse() -> Vec<Step> {
    let mut steps = allow().to_vec();
    steps.push(Here(Place::Refuse));
    steps.extend(fail(libc::ENFILE));
    steps
}

/// Has the caller fail with this error.
fn fail(error: i32) -> [Step; 4] {
    [Plain(set(R1, -error)), Plain(call(SET_ERROR)), Plain(set(R0, 0)), Plain(exit())]
}

/// Returns the number of the socket's network, and keeps that of the node's.
fn networks() -> [Step; 5] {
    [
        // Of no context: the first network, which is the node's.
        Plain(set(R1, 0)),
        Plain(call(NETWORK)),
        Plain(copy(KEPT, R0)),
        Plain(copy(R1, CONTEXT)),
        Plain(call(NETWORK)),
    ]
}

/// Has the address of the count in its register.
fn count_of(maps: Maps<'_>) -> Vec<Step> {
    let mut steps: Vec<_> = address_of(maps.count).map(Plain).into();
    steps.extend([Plain(set(R2, 0)), Plain(call(OF_GROUP)), Plain(copy(COUNT, R0))]);
    steps
}

/// Returns the address of the mark of the socket in register 2, or 0 if there is none, not even after making one.
fn mark_of(maps: Maps<'_>, how: i32) -> Vec<Step> {
    let mut steps: Vec<_> = address_of(maps.marks).map(Plain).into();
    steps.extend([Plain(set(R3, 0)), Plain(set(R4, how)), Plain(call(OF_SOCKET))]);
    steps
}

/// Counts the socket no more whose mark's address was returned, and is done if it did not count or there is none.
fn forget(maps: Maps<'_>) -> Vec<Step> {
    let mut steps = vec![Jump(if_equal(R0, 0), Place::Done), Plain(set(R1, 0)), Plain(exchange_mark())];
    steps.extend([Jump(if_equal(R1, 0), Place::Done), Plain(copy(MARK, R1))]);
    steps.extend(count_of(maps));
    steps.extend([Plain(copy(R1, MARK)), Plain(negate(R1)), Plain(add(COUNT))]);
    steps
}

/// Puts in where jumps lead.
fn assemble(steps: &[Step]) -> Vec<Instruction> {
    let length = |steps: &[Step]| steps.iter().filter(|step| !matches!(step, Here(_))).count();
    let place = |wanted: Place| {
        let at = steps.iter().position(|step| matches!(step, Here(place) if *place == wanted));
        length(&steps[..at.expect("jumps lead to places that there are")])
    };
    let mut program = Vec::new();
    for step in steps {
        match *step {
            Plain(instruction) => program.push(instruction),
            Jump(instruction, to) => {
                let next = program.len() + 1;
                let offset = i16::try_from(place(to).wrapping_sub(next).cast_signed()).expect("programs are short");
                program.push(Instruction { offset, ..instruction });
            }
            Here(_) => {}
        }
    }
    program
}

// Linux: `bpf/instruction-set.rst`.

fn instruction(operation: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { operation, registers: to | from << 4, offset, immediate }
}

fn set(to: u8, value: i32) -> Instruction {
    instruction(0xb7, to, 0, 0, value)
}

fn copy(to: u8, from: u8) -> Instruction {
    instruction(0xbf, to, from, 0, 0)
}

/// Eight bytes.
fn load(to: u8, from: u8, offset: i16) -> Instruction {
    instruction(0x79, to, from, offset, 0)
}

/// Four bytes.
fn load_half(to: u8, from: u8, offset: i16) -> Instruction {
    instruction(0x61, to, from, offset, 0)
}

/// Two bytes.
fn load_two(to: u8, from: u8, offset: i16) -> Instruction {
    instruction(0x69, to, from, offset, 0)
}

fn sum(to: u8, from: u8) -> Instruction {
    instruction(0x0f, to, from, 0, 0)
}

fn shift(to: u8, bits: i32) -> Instruction {
    instruction(0x67, to, 0, 0, bits)
}

fn negate(to: u8) -> Instruction {
    instruction(0x87, to, 0, 0, 0)
}

/// Adds register 1 to what is at an address, whoever else does at the same time.
fn add(address: u8) -> Instruction {
    instruction(0xdb, address, R1, 0, 0)
}

/// Exchanges the mark at the returned address for register 1, whoever else does at the same time.
fn exchange_mark() -> Instruction {
    instruction(0xdb, R0, R1, 0, 0xe1)
}

fn if_equal(register: u8, value: i32) -> Instruction {
    instruction(0x15, register, 0, 0, value)
}

fn if_same(one: u8, other: u8) -> Instruction {
    instruction(0x1d, one, other, 0, 0)
}

fn if_other(one: u8, other: u8) -> Instruction {
    instruction(0x5d, one, other, 0, 0)
}

fn if_not(register: u8, value: i32) -> Instruction {
    instruction(0x55, register, 0, 0, value)
}

fn if_at_least(register: u8, value: i32) -> Instruction {
    instruction(0x35, register, 0, 0, value)
}

fn if_below(register: u8, value: i32) -> Instruction {
    instruction(0xa5, register, 0, 0, value)
}

fn call(function: i32) -> Instruction {
    instruction(0x85, 0, 0, 0, function)
}

fn exit() -> Instruction {
    instruction(0x95, 0, 0, 0, 0)
}

/// A constant of eight bytes. Takes two instructions' place.
fn wide(to: u8, value: u64) -> [Instruction; 2] {
    let half = |bits: u64| (bits as u32).cast_signed();
    [instruction(0x18, to, 0, 0, half(value)), instruction(0, 0, 0, 0, half(value >> 32))]
}

/// A map as the first argument, by a descriptor that only has to be there while the program is loaded. Takes two instructions' place.
fn address_of(map: BorrowedFd<'_>) -> [Instruction; 2] {
    const OF_A_MAP: u8 = 1;
    [instruction(0x18, R1, OF_A_MAP, 0, map.as_raw_fd()), instruction(0, 0, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd};

    use super::*;

    #[test]
    fn jumps_lead_to_instructions() {
        const JUMPS: [u8; 6] = [0x15, 0x1d, 0x55, 0x5d, 0x35, 0xa5];
        let file = File::open("/dev/null").unwrap();
        let maps = Maps { marks: file.as_fd(), count: file.as_fd() };
        let programs = [
            created(maps, 4096, 64),
            closed(maps),
            connection(maps, 32_768),
            bound(maps, 4096, 128, 8, &[67, 68]),
            connecting(maps, 4096),
        ];
        for program in programs {
            assert_eq!(program.last(), Some(&exit()));
            for (at, jump) in program.iter().enumerate().filter(|(_, step)| JUMPS.contains(&step.operation)) {
                let to = (at + 1).checked_add_signed(jump.offset.into()).unwrap();
                // Not into an address, which takes two.
                assert!(to != at + 1 && to < program.len() && program[to].operation != 0, "{at}: {jump:?}");
            }
        }
    }

    #[test]
    fn jumps_count_instructions() {
        let [before, after] = [Place::Refuse, Place::Done];
        let steps = [
            Here(before),
            Jump(if_equal(R1, 3), after),
            Plain(set(R0, 1)),
            Here(after),
            Jump(if_not(R1, 4), before),
            Plain(exit()),
        ];
        let offsets: Vec<_> = assemble(&steps).iter().map(|instruction| instruction.offset).collect();
        assert_eq!(offsets, [1, 0, -3, 0]);
    }
}
