//! The table of calls as a program for the kernel.
//!
//! It is one program, which finds a call by halving: when it is loaded the kernel runs it once for each call there is, to learn which
//! are always allowed, and later for every other call that a sliver makes. A program that looks at one call after the other, and
//! another for each answer, took a fifth of a sliver's start.

use std::{collections::BTreeMap, ptr};

use libc::{c_long, sock_filter};

use super::calls::{Is, LAST_REVIEWED, Nested, REFUSALS, Refusal, Test, UNLESS_BROKERED};

/// What the kernel calls the numbering of calls that this table is about.
const X86_64: u32 = 0xc000_003e;
/// Where a filter sees what.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

const ALLOW: sock_filter = answer(libc::SECCOMP_RET_ALLOW);

const fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

const fn load(offset: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset)
}

/// The lower half of an argument, from 0.
const fn load_argument(number: u8) -> sock_filter {
    load(ARGUMENTS + 8 * number as u32)
}

const fn mask(bits: u32) -> sock_filter {
    instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, bits)
}

/// A comparison of what was loaded, with how many instructions are passed over if it is so, or is not.
const fn is(value: u32, jt: u8, jf: u8) -> sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, jt, jf, value)
}

const fn answer(value: u32) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, value)
}

/// The program for a sliver that may nest containers or may not, and has a broker of sockets or has none. It ends a process that calls
/// by another architecture's numbers, that is, a program of 32 bits. What the table's author has not seen does not exist; numbers of
/// the x32 kind are large and fall under this too.
pub(super) fn program(nesting: bool, brokered: bool) -> Vec<sock_filter> {
    let rows = REFUSALS.iter().chain(UNLESS_BROKERED.iter().filter(|_| !brokered));
    let mut calls: BTreeMap<c_long, Vec<&Refusal>> = BTreeMap::new();
    for row in rows.filter(|row| !nesting || row.where_nested == Nested::Refused) {
        for (_, number) in row.calls {
            calls.entry(*number).or_default().push(row);
        }
    }
    let mut ranges: Vec<Range<'_>> = vec![(0, Vec::new())];
    for (number, rows) in calls {
        let number = number as u32;
        ranges.pop_if(|(first, _)| *first == number);
        if !ranges.last().is_some_and(|(_, last)| {
            last.iter().copied().map(ptr::from_ref).eq(rows.iter().copied().map(ptr::from_ref))
        }) {
            ranges.push((number, rows));
        }
        ranges.push((number + 1, Vec::new()));
    }
    let mut program = vec![
        load(ARCHITECTURE),
        is(X86_64, 1, 0),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER),
        instruction(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, 0, 1, LAST_REVIEWED as u32),
        answer(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
    ];
    program.extend(find(&ranges));
    program
}

/// Calls from this number on, up to the next range's, and what refuses them.
type Range<'a> = (u32, Vec<&'a Refusal>);

/// Finds the range that the number which was loaded is in, and goes on with what judges it.
fn find(ranges: &[Range<'_>]) -> Vec<sock_filter> {
    if let [] | [_] = ranges {
        return judge(ranges.first().map_or(&[], |(_, rows)| rows));
    }
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    let (first, lower, upper) = (upper[0].0, find(lower), find(upper));
    let is_upper = |jt, jf| instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, jt, jf, first);
    let compare = match u8::try_from(upper.len()) {
        Ok(length) => vec![is_upper(0, length)],
        // By a jump of its own, which reaches farther than a comparison's.
        Err(_) => vec![is_upper(1, 0), instruction(libc::BPF_JMP | libc::BPF_JA, 0, 0, upper.len() as u32)],
    };
    [compare, upper, lower].concat()
}

/// Refuses calls in the cases of these rows, one after the other, and allows them in all others.
fn judge(rows: &[&Refusal]) -> Vec<sock_filter> {
    let mut program = Vec::new();
    for row in rows {
        let refuse = answer(libc::SECCOMP_RET_ERRNO | row.answer.raw_os_error().unsigned_abs());
        if row.when.is_empty() {
            program.push(refuse);
            return program;
        }
        for tests in row.when {
            program.extend(unless(tests, refuse));
        }
    }
    program.push(ALLOW);
    program
}

/// Goes to `then` if all of the tests pass, and past it otherwise.
fn unless(tests: &[Test], then: sock_filter) -> Vec<sock_filter> {
    // From the last on, since each passes over those that follow.
    tests.iter().rev().fold(vec![then], |rest, &(argument, test)| {
        let past = rest.len() as u8;
        let compare = match test {
            Is::Equal(value) => vec![is(value, 0, past)],
            Is::Not(value) => vec![is(value, past, 0)],
            Is::With(bits) => vec![mask(bits), is(bits, 0, past)],
        };
        [vec![load_argument(argument)], compare, rest].concat()
    })
}

/// The calls that a broker answers: for packet sockets, and for raw ones of both versions of IP.
pub(super) fn handed_over() -> Vec<sock_filter> {
    // The flags in a socket's type are above these bits.
    const TYPE: u32 = 0xf;
    vec![
        load(NUMBER),
        is(libc::SYS_socket as u32, 0, 8),
        load_argument(0),
        is(libc::AF_PACKET as u32, 5, 0),
        is(libc::AF_INET as u32, 1, 0),
        is(libc::AF_INET6 as u32, 0, 4),
        load_argument(1),
        mask(TYPE),
        is(libc::SOCK_RAW as u32, 0, 1),
        answer(libc::SECCOMP_RET_USER_NOTIF),
        ALLOW,
    ]
}

#[cfg(test)]
mod tests {
    use super::{super::calls::When, *};

    const I386: u32 = 0x4000_0003;

    /// Runs a program as the kernel does; the instructions are those that are made here.
    fn run(program: &[sock_filter], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = [number, architecture, 0, 0].to_vec();
        data.extend(arguments.iter().flat_map(|a| [*a as u32, (*a >> 32) as u32]));
        let (mut accumulator, mut at) = (0, 0);
        loop {
            let i = &program[at];
            at += 1;
            let jump = |yes| usize::from(if yes { i.jt } else { i.jf });
            match u32::from(i.code) {
                0x20 => accumulator = data[i.k as usize / 4],
                0x54 => accumulator &= i.k,
                0x05 => at += i.k as usize,
                0x15 => at += jump(accumulator == i.k),
                0x25 => at += jump(accumulator > i.k),
                0x35 => at += jump(accumulator >= i.k),
                0x06 => return i.k,
                code => panic!("instruction {code:#x}"),
            }
        }
    }

    fn answer(nesting: bool, architecture: u32, number: u32, arguments: &[u64]) -> u32 {
        strictest(&[program(nesting, false)], architecture, number, arguments)
    }

    /// The strictest answer, which has the smallest number if taken with its sign.
    fn strictest(programs: &[Vec<sock_filter>], architecture: u32, number: u32, arguments: &[u64]) -> u32 {
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        programs.iter().map(|p| run(p, architecture, number, all)).min_by_key(|a| *a as i32).expect("a program")
    }

    #[test]
    fn calls_are_answered() {
        const ALLOWED: Result<(), i32> = Ok(());
        let check = |call: libc::c_long, arguments: &[u64], expect: Result<(), i32>| {
            let expect = match expect {
                Ok(()) => libc::SECCOMP_RET_ALLOW,
                Err(number) => libc::SECCOMP_RET_ERRNO | number as u32,
            };
            assert_eq!(answer(false, X86_64, call as u32, arguments), expect, "{call} {arguments:x?}");
        };
        let (thread, user) = (0x3d_0f00, libc::CLONE_NEWUSER as u64);
        check(libc::SYS_read, &[], ALLOWED);
        check(libc::SYS_ptrace, &[], ALLOWED);
        check(libc::SYS_mseal, &[], ALLOWED);
        check(libc::SYS_mseal + 1, &[], Err(libc::ENOSYS));
        check(libc::SYS_mount, &[], Err(libc::EPERM));
        check(libc::SYS_bpf, &[1, 2, 3], Err(libc::EPERM));
        check(libc::SYS_clone3, &[], Err(libc::ENOSYS));
        check(libc::SYS_clone, &[thread], ALLOWED);
        check(libc::SYS_clone, &[user | 17], Err(libc::EPERM));
        check(libc::SYS_clone, &[thread | libc::CLONE_NEWNET as u64], Err(libc::EPERM));
        check(libc::SYS_unshare, &[libc::CLONE_FS as u64 | libc::CLONE_FILES as u64], ALLOWED);
        check(libc::SYS_unshare, &[0x80], Err(libc::EPERM));
        check(libc::SYS_unshare, &[libc::CLONE_FS as u64 | user], Err(libc::EPERM));
        // The kernel takes these arguments as 32 bits, whatever is above.
        check(libc::SYS_ioctl, &[0, 0x5412], Err(libc::EPERM));
        check(libc::SYS_ioctl, &[0, 0xffff_ffff_0000_5412], Err(libc::EPERM));
        check(libc::SYS_ioctl, &[0, 0x401c_5820], Err(libc::EPERM));
        check(libc::SYS_ioctl, &[0, 0x5413], ALLOWED);
        check(libc::SYS_personality, &[0xffff_ffff], ALLOWED);
        check(libc::SYS_personality, &[0x4_0000], ALLOWED);
        check(libc::SYS_personality, &[0x40_0000], Err(libc::EPERM));
        for family in 0..64 {
            let allowed = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK].contains(&family);
            let expect = if allowed { ALLOWED } else { Err(libc::EAFNOSUPPORT) };
            check(libc::SYS_socket, &[family as u64, 1, 0], expect);
        }
        check(libc::SYS_socket, &[0x1_0000_0011, 3, 0], Err(libc::EAFNOSUPPORT));
        check(libc::SYS_socket, &[libc::AF_NETLINK as u64, 3, 4], ALLOWED);
        check(libc::SYS_socket, &[libc::AF_NETLINK as u64, 3, 12], Err(libc::EAFNOSUPPORT));
    }

    #[test]
    fn a_broker_gets_its_calls_and_no_other() {
        let check = |call: libc::c_long, arguments: &[u64], expect: u32| {
            let programs = [program(false, true), handed_over()];
            assert_eq!(strictest(&programs, X86_64, call as u32, arguments), expect, "{call} {arguments:x?}");
        };
        let refused = libc::SECCOMP_RET_ERRNO | libc::EAFNOSUPPORT as u32;
        let (handed, allowed) = (libc::SECCOMP_RET_USER_NOTIF, libc::SECCOMP_RET_ALLOW);
        let [unix, inet, inet6, netlink, packet, vsock] =
            [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_PACKET, libc::AF_VSOCK]
                .map(|f| f as u64);
        let [stream, datagram, raw] = [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_RAW].map(|kind| kind as u64);
        let flags = (libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u64;
        for kind in [datagram, raw, raw | flags] {
            check(libc::SYS_socket, &[packet, kind, 0x300], handed);
        }
        for family in [inet, inet6] {
            check(libc::SYS_socket, &[family, raw, 1], handed);
            check(libc::SYS_socket, &[family, raw | flags, 1], handed);
            check(libc::SYS_socket, &[family, stream | flags, 0], allowed);
            check(libc::SYS_socket, &[family, datagram, 1], allowed);
        }
        check(libc::SYS_socket, &[unix, raw, 0], allowed);
        check(libc::SYS_socket, &[netlink, raw, 0], allowed);
        check(libc::SYS_socket, &[netlink, raw, 12], refused);
        check(libc::SYS_socket, &[vsock, stream, 0], refused);
        check(libc::SYS_socketpair, &[packet, raw, 0], allowed);
        check(libc::SYS_read, &[packet, raw, 0], allowed);
        check(libc::SYS_mount, &[], libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
    }

    #[test]
    fn every_row_refuses_unless_nesting_lifts_it() {
        for (row, nesting) in REFUSALS.iter().chain(UNLESS_BROKERED).flat_map(|row| [(row, false), (row, true)]) {
            for (name, number) in row.calls {
                let always: When = &[&[]];
                for tests in if row.when.is_empty() { always } else { row.when } {
                    let mut arguments = [7_u64; 6];
                    for (argument, is) in *tests {
                        if let Is::Equal(value) | Is::With(value) = is {
                            arguments[usize::from(*argument)] = u64::from(*value);
                        }
                    }
                    let got = answer(nesting, X86_64, *number as u32, &arguments);
                    let expect = match row.where_nested {
                        Nested::Allowed if nesting => libc::SECCOMP_RET_ALLOW,
                        _ => libc::SECCOMP_RET_ERRNO | row.answer.raw_os_error() as u32,
                    };
                    assert_eq!(got, expect, "{name} {tests:?}");
                }
            }
        }
    }

    #[test]
    fn other_numberings_are_refused() {
        for number in [0, 1, 11, 102, 120, 400] {
            assert_eq!(answer(true, I386, number, &[]), libc::SECCOMP_RET_KILL_PROCESS);
            let x32 = answer(true, X86_64, 0x4000_0000 | number, &[]);
            assert_eq!(x32, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
        }
    }
}
