//! The machine's network interfaces, from sysfs.

use std::{fs, path::Path};

use crate::facts::read;

/// An Ethernet interface with hardware behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's name.
    pub name: String,
    /// The kernel's number.
    pub index: u32,
    /// MAC address, in lower case with colons.
    pub mac: String,
}

impl Interface {
    /// Whether there is a link. Known only once the interface is up.
    pub fn carrier(&self) -> bool {
        read(Path::new("/sys/class/net").join(&self.name).join("carrier")) == "1"
    }
}

/// All of them, by number: the order in which the kernel found them.
pub fn interfaces() -> Vec<Interface> {
    let Ok(entries) = fs::read_dir("/sys/class/net") else { return Vec::new() };
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            // ARPHRD_ETHER, and a device: no tunnels, no loopback.
            if read(path.join("type")) != "1" || !path.join("device").exists() {
                return None;
            }
            Some(Interface {
                name: path.file_name()?.to_str()?.to_owned(),
                index: read(path.join("ifindex")).parse().ok()?,
                mac: read(path.join("address")),
            })
        })
        .collect();
    found.sort_by_key(|nic| nic.index);
    found
}
