//! Every console of the machine: somebody may look at any of them.

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

/// All consoles the kernel writes to.
pub(super) struct Console {
    devices: Vec<Device>,
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
        Self { devices }
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
        line.push('\n');
        for device in &mut self.devices {
            device.write(line.as_bytes());
        }
    }
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
