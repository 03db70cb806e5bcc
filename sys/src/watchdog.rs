//! The kernel's watchdog device (Documentation/watchdog/watchdog-api.rst).
#![allow(unsafe_code)] // The ioctls have no wrapper.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
    time::Duration,
};

use rustix::ioctl::{Getter, Updater, ioctl, opcode};

const WDIOC_SETTIMEOUT: rustix::ioctl::Opcode = opcode::read_write::<libc::c_int>(b'W', 6);
const WDIOC_GETTIMEOUT: rustix::ioctl::Opcode = opcode::read::<libc::c_int>(b'W', 7);

/// A running watchdog: the machine is reset unless [`Watchdog::pet`] is called within every timeout. Dropping it leaves
/// it running.
#[derive(Debug)]
pub struct Watchdog {
    device: File,
}

impl Watchdog {
    /// Opens and thereby starts a watchdog.
    ///
    /// # Errors
    /// When there is none, or somebody else has it open.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self { device: OpenOptions::new().write(true).open(path)? })
    }

    /// Asks for a timeout and returns the one that holds, in whole seconds: hardware rounds, and some cannot be set.
    ///
    /// # Errors
    /// When the device does not even tell its timeout.
    pub fn set_timeout(&self, timeout: Duration) -> io::Result<Duration> {
        let mut seconds = libc::c_int::try_from(timeout.as_secs()).unwrap_or(libc::c_int::MAX);
        // SAFETY: the opcode takes a pointer to an int that it reads and writes, which is what Updater passes.
        let update = unsafe { Updater::<WDIOC_SETTIMEOUT, libc::c_int>::new(&mut seconds) };
        // SAFETY: as above; on any other kind of file the kernel answers ENOTTY.
        if unsafe { ioctl(&self.device, update) }.is_err() {
            return self.timeout();
        }
        Ok(duration(seconds))
    }

    /// The timeout that holds.
    ///
    /// # Errors
    /// When the device does not tell.
    pub fn timeout(&self) -> io::Result<Duration> {
        // SAFETY: the opcode writes one int, which is the type given.
        let get = unsafe { Getter::<WDIOC_GETTIMEOUT, libc::c_int>::new() };
        // SAFETY: as above.
        Ok(duration(unsafe { ioctl(&self.device, get) }?))
    }

    /// Says that all is well.
    ///
    /// # Errors
    /// When the device is gone.
    pub fn pet(&mut self) -> io::Result<()> {
        self.device.write_all(b"\0")
    }

    /// Stops the watchdog, where the hardware can.
    ///
    /// # Errors
    /// When the device is gone.
    pub fn stop(mut self) -> io::Result<()> {
        self.device.write_all(b"V")
    }
}

fn duration(seconds: libc::c_int) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_watchdog_tells_no_timeout() {
        let mut watchdog = Watchdog::open("/dev/null").expect("opening /dev/null");
        assert!(watchdog.set_timeout(Duration::from_secs(60)).is_err());
        watchdog.pet().expect("writing to /dev/null");
        watchdog.stop().expect("writing to /dev/null");
    }

    #[test]
    fn the_opcodes_are_those_of_the_header() {
        assert_eq!((WDIOC_SETTIMEOUT, WDIOC_GETTIMEOUT), (0xc004_5706, 0x8004_5707));
    }
}
