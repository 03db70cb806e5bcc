//! Disks as sysfs shows them.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use orrery_protocol::DiskFacts;

/// A disk of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The kernel's name; may change between boots.
    pub name: String,
    /// Its device node.
    pub path: PathBuf,
    /// Model.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// World Wide Identifier.
    pub wwid: String,
    /// Where it is plugged in, for disks that have no id of their own.
    pub slot: String,
    /// Size in bytes.
    pub size: u64,
    /// Bytes of a logical sector.
    pub sector_size: u64,
    /// Whether it can be pulled out.
    pub removable: bool,
    /// Whether it refuses writes.
    pub read_only: bool,
}

/// Prefixes of block devices that are no disks of the machine.
const NOT_DISKS: [&str; 11] = ["loop", "ram", "zram", "dm-", "md", "sr", "fd", "nbd", "drbd", "mtdblock", "pmem"];

/// All disks in `sys_block` (`/sys/block`), by name.
///
/// # Errors
/// The directory cannot be read.
pub fn discover(sys_block: &Path) -> io::Result<Vec<Disk>> {
    let mut disks = Vec::new();
    for entry in fs::read_dir(sys_block)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !NOT_DISKS.iter().any(|prefix| name.starts_with(prefix)) {
            disks.extend(read(&entry.path(), name));
        }
    }
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(disks)
}

fn read(dir: &Path, name: String) -> Option<Disk> {
    let sectors: u64 = text(dir, &["size"]).parse().ok()?;
    // Hidden ones are the paths to a multipath disk, which is listed itself.
    if sectors == 0 || text(dir, &["hidden"]) == "1" {
        return None;
    }
    // sysfs counts 512-byte sectors whatever the disk has.
    let size = sectors * 512;
    let sector_size = text(dir, &["queue/logical_block_size"]).parse().ok().filter(|s| *s >= 512).unwrap_or(512);
    Some(Disk {
        path: Path::new("/dev").join(&name),
        model: text(dir, &["device/model"]),
        serial: serial(dir),
        wwid: text(dir, &["wwid", "device/wwid"]),
        slot: slot(dir),
        size,
        sector_size,
        removable: text(dir, &["removable"]) == "1",
        read_only: text(dir, &["ro"]) == "1",
        name,
    })
}

/// The first of `files` that says something.
fn text(dir: &Path, files: &[&str]) -> String {
    files
        .iter()
        .filter_map(|file| fs::read(dir.join(file)).ok())
        .map(|bytes| clean(&bytes))
        .find(|text| !text.is_empty())
        .unwrap_or_default()
}

fn serial(dir: &Path) -> String {
    let serial = text(dir, &["serial", "device/serial"]);
    if !serial.is_empty() {
        return serial;
    }
    // SCSI vital product data, page 0x80: four bytes of header, then the serial number.
    fs::read(dir.join("device/vpd_pg80")).ok().and_then(|page| page.get(4..).map(clean)).unwrap_or_default()
}

fn clean(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().filter(|c| !c.is_control()).collect::<String>().trim().to_owned()
}

/// The device's way through the buses, which does not depend on the order of discovery.
fn slot(dir: &Path) -> String {
    let Ok(target) = fs::canonicalize(dir) else { return String::new() };
    let parts: Vec<_> = target.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let bus = parts.iter().rposition(|part| part.matches(':').count() == 2 && part.contains('.'));
    bus.map(|at| parts[at].clone()).unwrap_or_default()
}

impl Disk {
    /// The id that stays: World Wide Identifier, else model and serial number, else the place it is plugged into.
    pub fn stable_id(&self) -> String {
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join("_");
        if !self.wwid.is_empty() {
            format!("wwid-{}", words(&self.wwid))
        } else if !self.serial.is_empty() {
            [&self.model, &self.serial].iter().filter(|s| !s.is_empty()).map(|s| words(s)).collect::<Vec<_>>().join("_")
        } else if !self.slot.is_empty() {
            format!("path-{}", self.slot)
        } else {
            self.name.clone()
        }
    }

    /// The device node of its partition `number`.
    pub fn partition(&self, number: u32) -> PathBuf {
        let infix = if self.name.ends_with(|c: char| c.is_ascii_digit()) { "p" } else { "" };
        self.path.with_file_name(format!("{}{infix}{number}", self.name))
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        let gib = self.size as f64 / (1u64 << 30) as f64;
        let flags = [(self.removable, ", removable"), (self.read_only, ", read-only")];
        let flags: String = flags.iter().filter(|(on, _)| *on).map(|(_, text)| *text).collect();
        format!("{} [{}] {gib:.1} GiB{flags}", self.name, self.stable_id())
    }

    /// As reported to central.
    pub fn facts(&self) -> DiskFacts {
        DiskFacts {
            name: self.name.clone(),
            stable_id: self.stable_id(),
            model: self.model.clone(),
            serial: self.serial.clone(),
            wwid: self.wwid.clone(),
            size: self.size,
            removable: self.removable,
            read_only: self.read_only,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysfs_is_read_and_pseudo_disks_left_out() {
        let sys = tempfile::tempdir().unwrap();
        let file = |path: &str, content: &str| {
            let path = sys.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        file("vda/size", "8388608\n");
        file("vda/serial", "orrery-disk-1");
        file("vda/queue/logical_block_size", "4096\n");
        file("sdb/size", "0\n");
        file("nvme0n1/size", "2048\n");
        file("nvme0n1/wwid", "eui.0025\n");
        file("nvme0n1/ro", "1\n");
        file("nvme0n1/hidden", "0\n");
        file("nvme0c0n1/size", "2048\n");
        file("nvme0c0n1/hidden", "1\n");
        file("loop0/size", "2048\n");
        file("sr0/size", "2048\n");
        let disks = discover(sys.path()).unwrap();
        let ids: Vec<_> = disks.iter().map(|d| (d.name.as_str(), d.stable_id(), d.size, d.sector_size)).collect();
        assert_eq!(
            ids,
            [("nvme0n1", "wwid-eui.0025".into(), 1 << 20, 512), ("vda", "orrery-disk-1".into(), 4 << 30, 4096)]
        );
        assert!(disks[0].read_only);
        assert_eq!(disks[0].partition(2), Path::new("/dev/nvme0n1p2"));
        assert_eq!(disks[1].partition(1), Path::new("/dev/vda1"));
    }
}
