//! The system calls that are refused inside a sliver. All others the kernel judges by itself.
//!
//! A refusal answers what programs expect of a kernel that lacks the feature (`ENOSYS`, `EAFNOSUPPORT`: they do without) or of a
//! lack of rights (`EPERM`: they say so). Most refused calls need a capability that a sliver's root does not have; they
//! stand here too, so that a fault in the kernel's code before or behind that check is out of reach.
//!
//! Deliberately allowed: `ptrace` and its kin, which reach the sliver's own processes only; `seccomp` and Landlock, by which
//! programs confine themselves; `chroot`; `adjtimex` and `clock_adjtime`, which read the clock's state for everybody and
//! check the right to change it.

use libc::c_long;
use rustix::io::Errno;

/// The last call that was reviewed, of Linux 6.12. Later ones do not exist inside.
pub(super) const LAST_REVIEWED: c_long = libc::SYS_mseal;

/// A test of a call's argument, of which the lower 32 bits count: no call here looks at more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Is {
    Equal(u32),
    Not(u32),
    /// All these bits are set.
    With(u32),
}

/// Number of an argument, from 0, and a test of it.
pub(super) type Test = (u8, Is);

/// When a call is refused: if all tests of one of these rows pass. No row means always.
pub(super) type When = &'static [&'static [Test]];

/// What becomes of a refusal in a sliver that may nest containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nested {
    /// It stands.
    Refused,
    /// The kernel judges the call by the namespaces it is about.
    Allowed,
}
use Nested::{Allowed, Refused};

/// Calls that are refused in the same case, with the same answer, for the same reason.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) calls: &'static [(&'static str, c_long)],
    pub(super) when: When,
    pub(super) answer: Errno,
    pub(super) where_nested: Nested,
    #[cfg_attr(not(test), expect(dead_code, reason = "for whoever reviews the table"))]
    pub(super) why: &'static str,
}

/// Names and numbers of calls.
macro_rules! calls {
    ($($name:ident)+) => { &[$((stringify!($name), libc::$name)),+] };
}

const ALWAYS: When = &[];

const AF_UNIX: u32 = libc::AF_UNIX as u32;
const AF_INET: u32 = libc::AF_INET as u32;
const AF_INET6: u32 = libc::AF_INET6 as u32;
const AF_NETLINK: u32 = libc::AF_NETLINK as u32;
const AF_PACKET: u32 = libc::AF_PACKET as u32;

const PER_LINUX32: u32 = 8;

/// Makes a file executable wherever it is readable, or the first page mappable: only ancient programs ask for more than
/// these, which are the plain personality (of 64 or 32 bits, with an old version number), a debugger's wish for fixed
/// addresses, and the question what it is now.
const PERSONALITIES: &[Test] = &[
    (0, Is::Not(0)),
    (0, Is::Not(PER_LINUX32)),
    (0, Is::Not(libc::UNAME26 as u32)),
    (0, Is::Not(libc::UNAME26 as u32 | PER_LINUX32)),
    (0, Is::Not(libc::ADDR_NO_RANDOMIZE as u32)),
    (0, Is::Not(u32::MAX)),
];

/// New namespaces of every kind that clone and unshare name alike.
const NEW_NAMESPACES: When = &[
    &[(0, Is::With(libc::CLONE_NEWUSER as u32))],
    &[(0, Is::With(libc::CLONE_NEWNS as u32))],
    &[(0, Is::With(libc::CLONE_NEWNET as u32))],
    &[(0, Is::With(libc::CLONE_NEWPID as u32))],
    &[(0, Is::With(libc::CLONE_NEWIPC as u32))],
    &[(0, Is::With(libc::CLONE_NEWUTS as u32))],
    &[(0, Is::With(libc::CLONE_NEWCGROUP as u32))],
];

pub(super) const REFUSALS: &[Refusal] = &[
    Refusal {
        calls: calls![SYS_mount SYS_umount2 SYS_pivot_root SYS_open_tree SYS_move_mount SYS_fsopen SYS_fsconfig SYS_fsmount
            SYS_fspick SYS_mount_setattr],
        when: ALWAYS,
        answer: Errno::PERM,
        where_nested: Allowed,
        why: "mounts are the node's; the parsers of mount options have been a way into the kernel",
    },
    Refusal {
        calls: calls![SYS_setns],
        when: ALWAYS,
        answer: Errno::PERM,
        where_nested: Allowed,
        why: "there is no other namespace to be in",
    },
    Refusal {
        calls: calls![SYS_clone SYS_unshare],
        when: NEW_NAMESPACES,
        answer: Errno::PERM,
        where_nested: Allowed,
        why: "with a user namespace come all capabilities over what it holds",
    },
    Refusal {
        calls: calls![SYS_unshare],
        when: &[&[(0, Is::With(0x80))]], // CLONE_NEWTIME, which is part of a signal's number in clone
        answer: Errno::PERM,
        where_nested: Allowed,
        why: "the same",
    },
    Refusal {
        calls: calls![SYS_clone3],
        when: ALWAYS,
        answer: Errno::NOSYS,
        where_nested: Refused,
        why: "its flags are in memory, where no filter sees them; C libraries then use clone",
    },
    Refusal {
        calls: calls![SYS_bpf],
        when: ALWAYS,
        answer: Errno::PERM,
        where_nested: Refused,
        why: "programs in the kernel; its verifier has been wrong often",
    },
    Refusal {
        calls: calls![SYS_perf_event_open],
        when: ALWAYS,
        answer: Errno::PERM,
        where_nested: Refused,
        why: "it measures what others do, and is a large part of the kernel",
    },
    Refusal {
        calls: calls![SYS_io_uring_setup SYS_io_uring_enter SYS_io_uring_register],
        when: ALWAYS,
        answer: Errno::NOSYS,
        where_nested: Refused,
        why: "calls that no filter sees; libraries then use epoll",
    },
    Refusal {
        calls: calls![SYS_userfaultfd],
        when: ALWAYS,
        answer: Errno::NOSYS,
        where_nested: Refused,
        why: "it stops the kernel in the middle of a copy, which wins races; the node's kernel lacks it",
    },
    Refusal {
        calls: calls![SYS_add_key SYS_request_key SYS_keyctl],
        when: ALWAYS,
        answer: Errno::NOSYS,
        where_nested: Refused,
        why: "keyrings are no part of a sliver and know no namespaces of their own; Kerberos then uses files",
    },
    Refusal {
        calls: calls![SYS_open_by_handle_at],
        when: ALWAYS,
        answer: Errno::PERM,
        where_nested: Refused,
        why: "a handle names any file of a file system, below the sliver's root or not",
    },
    Refusal {
        calls: calls![SYS_fanotify_init],
        when: ALWAYS,
        answer: Errno::PERM,
        where_nested: Refused,
        why: "it watches whole file systems; inotify is there",
    },
    Refusal {
        calls: calls![SYS_init_module SYS_finit_module SYS_delete_module SYS_kexec_load SYS_kexec_file_load SYS_reboot],
        when: ALWAYS,
        answer: Errno::PERM,
        where_nested: Refused,
        why: "the kernel and its end are the node's",
    },
    Refusal {
        calls: calls![SYS_settimeofday SYS_clock_settime],
        when: ALWAYS,
        answer: Errno::PERM,
        where_nested: Refused,
        why: "the clock is everybody's",
    },
    Refusal {
        calls: calls![SYS_swapon SYS_swapoff SYS_quotactl SYS_quotactl_fd SYS_acct],
        when: ALWAYS,
        answer: Errno::PERM,
        where_nested: Refused,
        why: "memory, disk limits and accounting are the node's",
    },
    Refusal {
        calls: calls![SYS_syslog],
        when: ALWAYS,
        answer: Errno::PERM,
        where_nested: Refused,
        why: "what the kernel says is the node's business",
    },
    Refusal {
        calls: calls![SYS_sethostname SYS_setdomainname],
        when: ALWAYS,
        answer: Errno::PERM,
        where_nested: Allowed,
        why: "they need rights over the whole of a namespace, which no one inside has",
    },
    Refusal {
        calls: calls![SYS_vhangup],
        when: ALWAYS,
        answer: Errno::PERM,
        where_nested: Refused,
        why: "it takes a terminal from whoever is on it",
    },
    Refusal {
        calls: calls![SYS_iopl SYS_ioperm],
        when: ALWAYS,
        answer: Errno::PERM,
        where_nested: Refused,
        why: "hardware is the node's",
    },
    Refusal {
        calls: calls![SYS_modify_ldt],
        when: ALWAYS,
        answer: Errno::NOSYS,
        where_nested: Refused,
        why: "for 16-bit programs only; segments of one's own have broken the kernel's returns",
    },
    Refusal {
        calls: calls![SYS__sysctl SYS_uselib SYS_sysfs SYS_ustat SYS_nfsservctl SYS_lookup_dcookie],
        when: ALWAYS,
        answer: Errno::NOSYS,
        where_nested: Refused,
        why: "remains that nothing calls",
    },
    Refusal {
        calls: calls![SYS_personality],
        when: &[PERSONALITIES],
        answer: Errno::PERM,
        where_nested: Refused,
        why: "old personalities take protections of memory away, also from setuid programs",
    },
    Refusal {
        calls: calls![SYS_ioctl],
        when: &[&[(1, Is::Equal(0x5412))], &[(1, Is::Equal(0x541c))]], // TIOCSTI, TIOCLINUX
        answer: Errno::PERM,
        where_nested: Refused,
        why: "typing into a terminal reaches whoever reads it next, as another user inside",
    },
    Refusal {
        calls: calls![SYS_ioctl],
        when: &[&[(1, Is::Equal(0x401c_5820))]], // FS_IOC_FSSETXATTR
        answer: Errno::PERM,
        where_nested: Refused,
        why: "it sets a file's quota project, which is the disk limit it counts for",
    },
    Refusal {
        calls: calls![SYS_socket SYS_socketpair],
        when: &[
            &[
                (0, Is::Not(AF_UNIX)),
                (0, Is::Not(AF_INET)),
                (0, Is::Not(AF_INET6)),
                (0, Is::Not(AF_NETLINK)),
                (0, Is::Not(AF_PACKET)),
            ],
            &[
                (0, Is::Equal(AF_NETLINK)),
                (2, Is::Not(libc::NETLINK_ROUTE as u32)),
                (2, Is::Not(libc::NETLINK_SOCK_DIAG as u32)),
            ],
        ],
        answer: Errno::AFNOSUPPORT,
        where_nested: Refused,
        why: "these families are code that nothing needs. The two kinds of netlink list addresses and sockets, which C \
              libraries and ss do",
    },
];

/// What is refused beside that, unless the sliver is an administrative one for which the node makes such sockets.
pub(super) const UNLESS_BROKERED: &[Refusal] = &[Refusal {
    calls: calls![SYS_socket],
    when: &[&[(0, Is::Equal(AF_PACKET))]],
    answer: Errno::AFNOSUPPORT,
    where_nested: Refused,
    why: "packet sockets pass by the packet filter, and see what is not the sliver's",
}];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_sound() {
        let mut seen = Vec::new();
        for row in REFUSALS.iter().chain(UNLESS_BROKERED) {
            assert!(!row.why.is_empty() && !row.calls.is_empty(), "{row:?}");
            for (name, number) in row.calls {
                assert!((0..=LAST_REVIEWED).contains(number), "{name} is {number}");
                let clash = seen.iter().any(|(other, when): &(c_long, When)| {
                    other == number && (when.is_empty() || row.when.is_empty() || *when == row.when)
                });
                assert!(!clash, "{name} is there twice");
                seen.push((*number, row.when));
            }
            for (argument, _) in row.when.iter().copied().flatten() {
                assert!(*argument < 6, "{row:?}");
            }
        }
    }

    /// The kernel's own names for the numbers that this table leans on most.
    #[test]
    fn numbers_are_those_of_this_architecture() {
        let number = |name: &str| {
            REFUSALS.iter().flat_map(|row| row.calls).find(|(other, _)| *other == name).map(|(_, number)| *number)
        };
        let check = |name, expect| assert_eq!(number(name), Some(expect), "{name}");
        check("SYS_mount", 165);
        check("SYS_bpf", 321);
        check("SYS_clone3", 435);
        check("SYS_open_by_handle_at", 304);
        check("SYS_keyctl", 250);
        check("SYS_socket", 41);
        check("SYS_fspick", 433);
    }
}
