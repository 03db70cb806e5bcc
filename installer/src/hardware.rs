//! Whether the machine is what a release needs.

use std::fmt;

use orrery_protocol::{MinimumHardware, Waiver};

use crate::error::InstallError;

/// What the machine has, as the kernel sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hardware {
    /// Memory, in bytes.
    pub memory: u64,
    /// Logical CPUs.
    pub cpus: u32,
}

/// Everything of which the machine has too little; never empty.
#[derive(Debug, PartialEq, Eq)]
pub struct Shortfalls(Vec<String>);

impl fmt::Display for Shortfalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this machine is less than the release needs: {}", self.0.join("; "))
    }
}

/// Checks `hardware`, and the size of the `disk` where one is about to be used, against what a release needs.
pub(crate) fn check(
    hardware: Hardware,
    disk: Option<u64>,
    minimum: &MinimumHardware,
    waivers: &[Waiver],
) -> Result<(), InstallError> {
    if waivers.contains(&Waiver::MinimumHardware) {
        return Ok(());
    }
    let mib = |what: &str, has: u64, needs: u64| {
        // Rounded so that what is short never reads as enough.
        (has < needs).then(|| format!("{what}: {} MiB, needed: {} MiB", has >> 20, needs.div_ceil(1 << 20)))
    };
    let cpus = (hardware.cpus < minimum.cpus).then(|| format!("CPUs: {}, needed: {}", hardware.cpus, minimum.cpus));
    let disk = disk.and_then(|disk| mib("disk", disk, minimum.disk));
    let short: Vec<_> = [mib("memory", hardware.memory, minimum.memory), disk, cpus].into_iter().flatten().collect();
    if short.is_empty() { Ok(()) } else { Err(InstallError::Hardware(Shortfalls(short))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shortfall_is_named_and_the_waiver_lifts_them() {
        let minimum = MinimumHardware { memory: 192 << 20, disk: 2 << 30, cpus: 2 };
        let judge = |memory, cpus, disk, waivers: &[Waiver]| {
            check(Hardware { memory, cpus }, disk, &minimum, waivers).map_err(|e| e.to_string())
        };
        assert_eq!(judge(192 << 20, 2, Some(2 << 30), &[]), Ok(()));
        assert_eq!(judge(192 << 20, 2, None, &[]), Ok(()));
        assert_eq!(judge(0, 0, Some(0), &[Waiver::Kexec, Waiver::MinimumHardware]), Ok(()));
        let said = judge((192 << 20) - 1, 1, Some((2 << 30) - 1), &[Waiver::Kexec]).unwrap_err();
        for part in [
            "memory: 191 MiB, needed: 192 MiB",
            "disk: 2047 MiB, needed: 2048 MiB",
            "CPUs: 1, needed: 2",
            "minimum-hardware",
        ] {
            assert!(said.contains(part), "{said}");
        }
    }
}
