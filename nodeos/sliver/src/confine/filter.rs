//! The table of calls as programs for the kernel.
//!
//! A program of seccompiler's has one answer for what its rules match, so that there is one for each answer of the table. Each
//! ends a process that calls by another architecture's numbers, that is, a program of 32 bits.

use std::collections::BTreeMap;

use libc::sock_filter;
use rustix::io::Errno;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::calls::{Is, LAST_REVIEWED, Nested, REFUSALS, Refusal, Test, UNLESS_BROKERED};

/// All programs, for a sliver that may nest containers or may not, and has a broker of sockets or has none. Their order is of no
/// consequence.
pub(super) fn programs(nesting: bool, brokered: bool) -> Result<Vec<Vec<sock_filter>>, BackendError> {
    let rows = REFUSALS.iter().chain(UNLESS_BROKERED.iter().filter(|_| !brokered));
    let rows: Vec<_> = rows.filter(|row| !nesting || row.where_nested == Nested::Refused).collect();
    let mut answers: Vec<Errno> = rows.iter().map(|row| row.answer).collect();
    answers.sort_unstable_by_key(|answer| answer.raw_os_error());
    answers.dedup();
    answers.into_iter().map(|answer| refusing(&rows, answer)).chain([Ok(unreviewed())]).collect()
}

/// Those of `rows` with this answer.
fn refusing(rows: &[&Refusal], answer: Errno) -> Result<Vec<sock_filter>, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.answer == answer) {
        for (_, number) in row.calls {
            let cases = rules.entry(*number).or_default();
            for tests in row.when {
                cases.push(SeccompRule::new(tests.iter().map(condition).collect::<Result<_, _>>()?)?);
            }
        }
    }
    let refuse = SeccompAction::Errno(answer.raw_os_error().unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, TargetArch::x86_64)?;
    let program = BpfProgram::try_from(filter)?;
    Ok(program.into_iter().map(|i| sock_filter { code: i.code, jt: i.jt, jf: i.jf, k: i.k }).collect())
}

fn condition(&(argument, is): &Test) -> Result<SeccompCondition, BackendError> {
    let (operation, value) = match is {
        Is::Equal(value) => (SeccompCmpOp::Eq, value),
        Is::Not(value) => (SeccompCmpOp::Ne, value),
        Is::With(bits) => (SeccompCmpOp::MaskedEq(bits.into()), bits),
    };
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operation, value.into())
}

/// The calls that a broker answers: for packet sockets, and for raw ones of both versions of IP.
pub(super) fn handed_over() -> Vec<sock_filter> {
    const fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
        sock_filter { code: code as u16, jt, jf, k }
    }
    const fn load(offset: u32) -> sock_filter {
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset)
    }
    const fn is(value: i32, jt: u8, jf: u8) -> sock_filter {
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, jt, jf, value as u32)
    }
    const FIRST_ARGUMENT: u32 = 16;
    const SECOND_ARGUMENT: u32 = 24;
    // The flags in a socket's type are above these bits.
    const TYPE: u32 = 0xf;
    vec![
        load(0),
        is(libc::SYS_socket as i32, 0, 8),
        load(FIRST_ARGUMENT),
        is(libc::AF_PACKET, 5, 0),
        is(libc::AF_INET, 1, 0),
        is(libc::AF_INET6, 0, 4),
        load(SECOND_ARGUMENT),
        instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, TYPE),
        is(libc::SOCK_RAW, 0, 1),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

/// What the table's author has not seen does not exist. Numbers of the x32 kind are large and fall under this too.
fn unreviewed() -> Vec<sock_filter> {
    let instruction = |code: u32, jt, jf, k| sock_filter { code: code as u16, jt, jf, k };
    vec![
        // The call's number is first in what a filter sees.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, 0, 1, LAST_REVIEWED as u32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

#[cfg(test)]
mod tests {
    use super::{super::calls::When, *};

    const X86_64: u32 = 0xc000_003e;
    const I386: u32 = 0x4000_0003;

    /// Runs a program as the kernel does; the instructions are those that seccompiler makes.
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

    /// The strictest answer, which has the smallest number if taken with its sign.
    fn answer(nesting: bool, architecture: u32, number: u32, arguments: &[u64]) -> u32 {
        strictest(programs(nesting, false), architecture, number, arguments)
    }

    fn strictest(
        programs: Result<Vec<Vec<sock_filter>>, BackendError>,
        architecture: u32,
        number: u32,
        arguments: &[u64],
    ) -> u32 {
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        let programs = programs.expect("compiling");
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
            let programs = programs(false, true).map(|mut all| {
                all.push(handed_over());
                all
            });
            assert_eq!(strictest(programs, X86_64, call as u32, arguments), expect, "{call} {arguments:x?}");
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
