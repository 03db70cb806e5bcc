//! Every console of the machine: somebody may look at any of them. And the two places from where a line is found again after
//! the machine has died: the kernel's log, and the ring in memory that outlives a reset.

use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Write},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
};

/// A line longer than this is cut.
const MAX_LINE: usize = 1024;
/// The kernel takes no longer records, their prefix included (`PRINTKRB_RECORD_MAX`).
const MAX_RECORD: usize = 1000;
/// User space's facility and level "debug", which a quiet kernel does not show: the consoles have the line already.
const KMSG_PREFIX: &str = "<15>";

/// All consoles the kernel writes to.
pub(super) struct Console {
    devices: Vec<Device>,
    kernel_log: Option<File>,
    ring: Option<File>,
}

/// One of them.
struct Device {
    name: String,
    file: Option<File>,
}

impl Console {
    /// Opens `/dev/console` if the kernel names none.
    pub(super) fn open() -> Self {
        let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
        let mut devices = active.split_ascii_whitespace().map(Device::open).collect::<Vec<_>>();
        if devices.iter().all(|device| device.file.is_none()) {
            devices.push(Device::open("console"));
        }
        Self { devices, kernel_log: open("kmsg"), ring: open("pmsg0") }
    }

    /// The terminals a person can use: `tty1` behind `tty0`, which stands for whichever is in front.
    pub(super) fn terminals(&self) -> impl Iterator<Item = String> {
        let names = self.devices.iter().map(|device| device.name.as_str()).filter(|name| *name != "console");
        names.map(|name| format!("/dev/{}", if name == "tty0" { "tty1" } else { name }))
    }

    /// Writes a line to each. A console that does not take it (a serial line held by flow control) misses it.
    pub(super) fn line(&mut self, text: &str) {
        let mut line = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
        line.truncate(line.floor_char_boundary(MAX_LINE));
        // Neither log is a condition: a kernel without them, or one that is in a hurry, drops the line.
        if let Some(log) = &mut self.kernel_log {
            let _ = log.write(record(&line).as_bytes());
        }
        line.push('\n');
        if let Some(ring) = &mut self.ring {
            let _ = ring.write(line.as_bytes());
        }
        for device in &mut self.devices {
            device.write(line.as_bytes());
        }
    }
}

/// `line` as one record of the kernel's log.
fn record(line: &str) -> String {
    let length = line.floor_char_boundary(MAX_RECORD - KMSG_PREFIX.len());
    format!("{KMSG_PREFIX}{}", line.get(..length).unwrap_or_default())
}

impl Device {
    fn open(name: &str) -> Self {
        Self { name: name.to_owned(), file: open(name) }
    }

    /// The end of a shell hangs its terminal up, and with it every descriptor anybody had: then it is opened anew.
    fn write(&mut self, bytes: &[u8]) {
        if !self.file.as_mut().is_some_and(|file| write_patiently(file, bytes)) {
            self.file = open(&self.name);
            if let Some(file) = &mut self.file {
                write_patiently(file, bytes);
            }
        }
    }
}

fn open(name: &str) -> Option<File> {
    let flags = (OFlags::NOCTTY | OFlags::NONBLOCK).bits();
    OpenOptions::new().write(true).custom_flags(i32::try_from(flags).ok()?).open(format!("/dev/{name}")).ok()
}

/// Returns whether the device is still good.
fn write_patiently(file: &mut File, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(written @ 1..) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let patience = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
                let mut fds = [PollFd::from_borrowed_fd(file.as_fd(), PollFlags::OUT)];
                if !matches!(poll(&mut fds, Some(&patience)), Ok(1..)) {
                    return true;
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_fit_the_kernels_log() {
        assert_eq!(record("orrery[boot] +0.1s started"), "<15>orrery[boot] +0.1s started");
        let long = "ä".repeat(MAX_LINE);
        assert!(record(&long).len() <= MAX_RECORD && record(&long).ends_with('ä'));
    }
}
