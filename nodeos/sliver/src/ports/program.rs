//! The programs that count sockets.
//!
//! Written out as instructions: three of some twenty each do not need a compiler of their own in the build.

use std::os::fd::{AsRawFd, BorrowedFd};

use orrery_sys::bpf::Instruction;

use super::Maps;

// Functions of the kernel by number (`__BPF_FUNC_MAPPER` of linux/bpf.h). They take registers 1 to 5, return 0, and keep 6 to 9.
const MAP_LOOKUP: i32 = 1;
const MAP_UPDATE: i32 = 2;
const MAP_DELETE: i32 = 3;
const SOCKET_COOKIE: i32 = 46;
const SET_CALLBACKS: i32 = 59;
const SET_ERROR: i32 = 187;

/// `BPF_NOEXIST`: an update makes a new value or fails.
const NEW_ONLY: i32 = 1;

// Of a connection (`struct bpf_sock_ops`, and the constants beside it): where its fields are, what happens, and states.
const EVENT: i16 = 0;
const NEW_STATE: i16 = 8;
const LOCAL_PORT: i16 = 68;
const ACCEPTED: i32 = 5;
const STATE_CHANGED: i32 = 10;
const WANT_STATES: i32 = 4;
const CLOSED: i32 = 7;

// Registers: what is returned, arguments, what is kept, and the end of the stack.
const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const CONTEXT: u8 = 6;
const COUNT: u8 = 7;
const STACK: u8 = 10;

// On the stack.
const VALUE: i16 = -8;
const COOKIE: i16 = -16;
const KEY: i16 = -20;
const INDEX: i16 = -24;

/// The bits of a cookie, which stand before it in a key.
const COOKIE_BITS: i32 = 64;

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
    Gone,
    Refuse,
    Done,
}

use Step::{Here, Jump, Plain};

/// Runs when a socket is made. Refuses it as too many open files (`ENFILE`) if there are `most`.
pub(super) fn created(maps: Maps<'_>, most: u32) -> Vec<Instruction> {
    let mut steps = vec![Plain(copy(CONTEXT, R1))];
    steps.extend(count_of(maps));
    steps.extend([Plain(load(R1, COUNT, 0)), Jump(if_at_least(R1, most.cast_signed()), Place::Refuse)]);
    steps.extend(note(maps));
    steps.extend([Jump(if_not(R0, 0), Place::Refuse), Plain(set(R1, 1)), Plain(add_to_count()), Here(Place::Done)]);
    steps.extend([Plain(set(R0, 1)), Plain(exit()), Here(Place::Refuse)]);
    steps.extend([Plain(set(R1, -libc::ENFILE)), Plain(call(SET_ERROR)), Plain(set(R0, 0)), Plain(exit())]);
    assemble(&steps)
}

/// Runs when a socket is closed.
pub(super) fn closed(maps: Maps<'_>) -> Vec<Instruction> {
    let mut steps = vec![Plain(copy(CONTEXT, R1))];
    steps.extend(forget(maps));
    steps.extend([Here(Place::Done), Plain(set(R0, 1)), Plain(exit())]);
    assemble(&steps)
}

/// Runs when something happens to a connection. One that is accepted at port `from` or above counts until it has ended or its socket is
/// closed; it may never have had one.
pub(super) fn connection(maps: Maps<'_>, from: u32) -> Vec<Instruction> {
    let mut steps = vec![
        Plain(copy(CONTEXT, R1)),
        Plain(load_half(R1, CONTEXT, EVENT)),
        Jump(if_equal(R1, ACCEPTED), Place::Accepted),
        Jump(if_not(R1, STATE_CHANGED), Place::Done),
        Plain(load_half(R1, CONTEXT, NEW_STATE)),
        Jump(if_equal(R1, CLOSED), Place::Gone),
        Here(Place::Done),
        Plain(set(R0, 1)),
        Plain(exit()),
        Here(Place::Accepted),
        Plain(load_half(R1, CONTEXT, LOCAL_PORT)),
        Jump(if_below(R1, from.cast_signed()), Place::Done),
    ];
    steps.extend(count_of(maps));
    steps.extend(note(maps));
    steps.extend([
        Jump(if_not(R0, 0), Place::Done),
        Plain(set(R1, 1)),
        Plain(add_to_count()),
        Plain(copy(R1, CONTEXT)),
        Plain(set(R2, WANT_STATES)),
        Plain(call(SET_CALLBACKS)),
        Plain(set(R0, 1)),
        Plain(exit()),
        Here(Place::Gone),
    ]);
    steps.extend(forget(maps));
    steps.extend([Plain(set(R0, 1)), Plain(exit())]);
    assemble(&steps)
}

/// Has the address of the count in its register.
fn count_of(maps: Maps<'_>) -> Vec<Step> {
    let mut steps = vec![Plain(store_half(STACK, INDEX, 0))];
    steps.extend(address_of(maps.count).map(Plain));
    steps.extend([Plain(copy(R2, STACK)), Plain(add(R2, INDEX.into())), Plain(call(MAP_LOOKUP))]);
    // It is always there, which the kernel does not know.
    steps.extend([Jump(if_equal(R0, 0), Place::Done), Plain(copy(COUNT, R0))]);
    steps
}

/// Notes that the socket counts. Not 0 is returned if it did before, or cannot be noted.
fn note(maps: Maps<'_>) -> Vec<Step> {
    let mut steps = key();
    steps.push(Plain(store(STACK, VALUE, 0)));
    steps.extend(address_of(maps.known).map(Plain));
    steps.extend([Plain(copy(R2, STACK)), Plain(add(R2, KEY.into()))]);
    steps.extend([Plain(copy(R3, STACK)), Plain(add(R3, VALUE.into()))]);
    steps.extend([Plain(set(R4, NEW_ONLY)), Plain(call(MAP_UPDATE))]);
    steps
}

/// Counts a socket no more that counted, and is done if it did not.
fn forget(maps: Maps<'_>) -> Vec<Step> {
    let mut steps = key();
    steps.extend(address_of(maps.known).map(Plain));
    steps.extend([Plain(copy(R2, STACK)), Plain(add(R2, KEY.into())), Plain(call(MAP_DELETE))]);
    steps.push(Jump(if_not(R0, 0), Place::Done));
    steps.extend(count_of(maps));
    steps.extend([Plain(set(R1, -1)), Plain(add_to_count())]);
    steps
}

/// Has the socket's key on the stack, by its cookie, which no other socket ever has.
fn key() -> Vec<Step> {
    vec![
        Plain(copy(R1, CONTEXT)),
        Plain(call(SOCKET_COOKIE)),
        Plain(store_register(STACK, COOKIE, R0)),
        Plain(store_half(STACK, KEY, COOKIE_BITS)),
    ]
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

fn add(to: u8, value: i32) -> Instruction {
    instruction(0x07, to, 0, 0, value)
}

/// Eight bytes.
fn load(to: u8, from: u8, offset: i16) -> Instruction {
    instruction(0x79, to, from, offset, 0)
}

/// Four bytes.
fn load_half(to: u8, from: u8, offset: i16) -> Instruction {
    instruction(0x61, to, from, offset, 0)
}

fn store(to: u8, offset: i16, value: i32) -> Instruction {
    instruction(0x7a, to, 0, offset, value)
}

fn store_half(to: u8, offset: i16, value: i32) -> Instruction {
    instruction(0x62, to, 0, offset, value)
}

fn store_register(to: u8, offset: i16, from: u8) -> Instruction {
    instruction(0x7b, to, from, offset, 0)
}

/// Adds register 1 to the count, whoever else does at the same time.
fn add_to_count() -> Instruction {
    instruction(0xdb, COUNT, R1, 0, 0)
}

fn if_equal(register: u8, value: i32) -> Instruction {
    instruction(0x15, register, 0, 0, value)
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
        const JUMPS: [u8; 4] = [0x15, 0x55, 0x35, 0xa5];
        let file = File::open("/dev/null").unwrap();
        let maps = Maps { known: file.as_fd(), count: file.as_fd() };
        for program in [created(maps, 4096), closed(maps), connection(maps, 32_768)] {
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
