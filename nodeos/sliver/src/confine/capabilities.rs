//! The capabilities of a sliver's root. They are valid in its own user namespace: the node's network, clock, devices and
//! kernel belong to another, where its root is nobody.

use rustix::{
    io::Errno,
    thread::{self, CapabilitySet},
};

/// What is kept, and why. Whatever is not here is gone for good. `CAP_SYS_ADMIN` is not, so that mounts stay as they were
/// made; nor `CAP_MKNOD`, which makes no device outside of the node's own user namespace.
const KEPT: &[(CapabilitySet, &str)] = &[
    (CapabilitySet::CHOWN, "files of the sliver's users change hands"),
    (CapabilitySet::DAC_OVERRIDE, "root reads and writes its users' files"),
    (CapabilitySet::FOWNER, "root changes modes and times of its users' files"),
    (CapabilitySet::FSETID, "package managers keep setuid and setgid bits"),
    (CapabilitySet::SETUID, "su, sudo, cron and daemons become somebody else"),
    (CapabilitySet::SETGID, "the same, for groups"),
    (CapabilitySet::SETPCAP, "daemons narrow what they keep"),
    (CapabilitySet::SETFCAP, "packages give programs file capabilities, bound to this namespace"),
    (CapabilitySet::KILL, "root ends its users' processes"),
    (CapabilitySet::SYS_CHROOT, "daemons and build tools change their root; mounts stay locked"),
    (CapabilitySet::SYS_PTRACE, "gdb and strace on the sliver's own processes"),
    (CapabilitySet::NET_BIND_SERVICE, "programs that carry it as a file capability can be executed"),
    (CapabilitySet::NET_RAW, "the same: ping carries it; over the node's network it gives nothing"),
];

/// The union of the table.
pub(super) fn kept() -> CapabilitySet {
    KEPT.iter().fold(CapabilitySet::empty(), |all, (one, _)| all.union(*one))
}

/// Removes everything else from the bounding set, and empties the ambient set.
pub(super) fn bound(kept: CapabilitySet) -> Result<(), Errno> {
    thread::clear_ambient_capability_set()?;
    for bit in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        // The kernel says EINVAL after its last one.
        match thread::capability_is_in_bounding_set(capability) {
            Err(Errno::INVAL) => break,
            Ok(true) if !kept.contains(capability) => thread::remove_capability_from_bounding_set(capability)?,
            Ok(_) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_one_capability_with_a_reason() {
        for (index, (capability, why)) in KEPT.iter().enumerate() {
            assert_eq!(capability.bits().count_ones(), 1, "{capability:?}");
            assert!(!why.is_empty(), "{capability:?}");
            assert!(KEPT[..index].iter().all(|(other, _)| other != capability), "{capability:?} is there twice");
        }
    }

    #[test]
    fn nothing_that_rules_the_node() {
        let dangerous = CapabilitySet::SYS_ADMIN
            | CapabilitySet::SYS_MODULE
            | CapabilitySet::SYS_RAWIO
            | CapabilitySet::SYS_BOOT
            | CapabilitySet::SYS_TIME
            | CapabilitySet::SYS_RESOURCE
            | CapabilitySet::DAC_READ_SEARCH
            | CapabilitySet::NET_ADMIN
            | CapabilitySet::BPF
            | CapabilitySet::PERFMON;
        assert!(kept().intersection(dangerous).is_empty());
    }
}
