//! What this machine is, from sysfs and procfs.

use std::{fs, path::Path};

use orrery_init_api::CLOCK_PATH;
use orrery_installer::Hardware;
use orrery_protocol::{Facts, MemoryFacts, NicFacts, NodeConfig};
use orrery_sshd::HostKey;

use crate::{clock::ClockState, disks, files::read_json, handover, identity::host_key_seed, network, trust};

/// Gathers what can be found out; what cannot stays empty.
pub(crate) fn gather(config: &NodeConfig) -> Facts {
    let cpuinfo = read("/proc/cpuinfo");
    let meminfo = read("/proc/meminfo");
    Facts {
        node: config.id.clone(),
        boot_id: crate::boot_id().unwrap_or_default(),
        medium_version: handover::image_version(),
        uptime_s: rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec.unsigned_abs(),
        kernel: read("/proc/sys/kernel/osrelease"),
        cmdline: read("/proc/cmdline"),
        firmware: if Path::new("/sys/firmware/efi").exists() { "uefi" } else { "bios" }.into(),
        vendor: read("/sys/class/dmi/id/sys_vendor"),
        product: read("/sys/class/dmi/id/product_name"),
        serial: read("/sys/class/dmi/id/product_serial"),
        cpu_model: colon_value(&cpuinfo, "model name").unwrap_or_default().into(),
        cpus: cpus(&cpuinfo),
        memory: MemoryFacts { total: kib(&meminfo, "MemTotal"), available: kib(&meminfo, "MemAvailable") },
        disks: disks::facts(),
        nics: nics(),
        clock: read_json::<ClockState>(CLOCK_PATH).map(|state| state.source).unwrap_or_default(),
        installed: disks::installed_release(config),
        ssh_host_key: HostKey::from_seed(&host_key_seed(config)).public_line(),
        trust_serial: trust::current(config).serial,
        groups: config.groups.clone(),
        failed_trial: disks::remembered(config).failed_trial.map(|failed| failed.trial),
    }
}

/// What counts against a release's minimum.
pub(crate) fn hardware() -> Hardware {
    Hardware { memory: kib(&read("/proc/meminfo"), "MemTotal"), cpus: cpus(&read("/proc/cpuinfo")) }
}

fn cpus(cpuinfo: &str) -> u32 {
    u32::try_from(cpuinfo.lines().filter(|l| l.starts_with("processor")).count()).unwrap_or(u32::MAX)
}

/// A short text file, without the space around it; empty if it cannot be read.
pub(crate) fn read(path: impl AsRef<Path>) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned()).unwrap_or_default()
}

fn colon_value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.split_once(':').filter(|(k, _)| k.trim() == key)).map(|(_, value)| value.trim())
}

fn kib(meminfo: &str, key: &str) -> u64 {
    let value = colon_value(meminfo, key).and_then(|v| v.split(' ').next()?.parse::<u64>().ok());
    value.unwrap_or(0) * 1024
}

/// The network interfaces, with what the network stage gave them.
pub(crate) fn nics() -> Vec<NicFacts> {
    let state = network::state().ok();
    network::interfaces()
        .into_iter()
        .map(|nic| NicFacts {
            addresses: state
                .iter()
                .filter(|s| s.interface == nic.name)
                .map(|s| format!("{}/{}", s.address, s.prefix))
                .collect(),
            link: nic.carrier(),
            name: nic.name,
            mac: nic.mac,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_and_cpuinfo_values() {
        let text = "MemTotal:         228000 kB\nmodel name\t: QEMU Virtual\n";
        assert_eq!(kib(text, "MemTotal"), 228_000 * 1024);
        assert_eq!(kib(text, "MemFree"), 0);
        assert_eq!(colon_value(text, "model name"), Some("QEMU Virtual"));
    }
}
