//! The machine around the controller: its power, its lamp, what it boots (28).

use crate::{Malformed, Request, bytes::Reader, command::CHASSIS};

/// Get Chassis Status (28.2).
#[derive(Debug, Clone, Copy)]
pub struct GetStatus;

/// A machine's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// It has power.
    pub power: bool,
    /// The last attempt to give power failed in the power supply.
    pub power_fault: bool,
    /// Something keeps it off: a switch, an open case.
    pub interlock: bool,
    /// More current than it may draw switched it off.
    pub overload: bool,
}

impl Request for GetStatus {
    const FUNCTION: u8 = CHASSIS;
    const COMMAND: u8 = 0x01;
    type Answer = Status;

    fn data(&self) -> Vec<u8> {
        Vec::new()
    }

    fn parse(&self, data: &[u8]) -> Result<Status, Malformed> {
        let [power, _, _] = Reader::new(data).array()?;
        let bit = |number: u8| power & 1 << number != 0;
        // Bit 4 is a fault of power control, bit 3 one of the supply.
        Ok(Status { power: bit(0), overload: bit(1), interlock: bit(2), power_fault: bit(3) || bit(4) })
    }
}

/// Chassis Control (28.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Control {
    /// Take the power away, at once.
    Off = 0,
    /// Give it.
    On = 1,
    /// Take it away for a moment; a machine without power need not get any.
    Cycle = 2,
    /// Pull the reset line.
    Reset = 3,
}

impl Request for Control {
    const FUNCTION: u8 = CHASSIS;
    const COMMAND: u8 = 0x02;
    type Answer = ();

    fn data(&self) -> Vec<u8> {
        vec![*self as u8]
    }

    fn parse(&self, _: &[u8]) -> Result<(), Malformed> {
        Ok(())
    }
}

/// Chassis Identify (28.5): the lamp, for that many seconds; 0 turns it off.
#[derive(Debug, Clone, Copy)]
pub struct Identify(pub u8);

impl Request for Identify {
    const FUNCTION: u8 = CHASSIS;
    const COMMAND: u8 = 0x04;
    type Answer = ();

    fn data(&self) -> Vec<u8> {
        vec![self.0]
    }

    fn parse(&self, _: &[u8]) -> Result<(), Malformed> {
        Ok(())
    }
}

/// What firmware starts from (28.13, table 28-14).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Device {
    /// What it is configured for.
    Default = 0,
    /// The network.
    Pxe = 1,
    /// The default disk.
    Disk = 2,
    /// The default CD drive.
    Cd = 5,
    /// Its own setup.
    Setup = 6,
}

/// Set System Boot Options (28.12), those that concern the next boot.
#[derive(Debug, Clone, Copy)]
pub enum SetBoot {
    /// Says that everybody, the firmware first of all, has yet to see the flags (parameter 4).
    Unacknowledged,
    /// The flags themselves (parameter 5): for the next boot only.
    Flags {
        /// What to start.
        device: Device,
        /// As UEFI does; otherwise as a PC's BIOS does.
        uefi: bool,
    },
}

impl Request for SetBoot {
    const FUNCTION: u8 = CHASSIS;
    const COMMAND: u8 = 0x08;
    type Answer = ();

    fn data(&self) -> Vec<u8> {
        match *self {
            // The firmware's bit may be written, and is.
            Self::Unacknowledged => vec![4, 1, 1],
            // The flags that are all default are those that are not valid.
            Self::Flags { device: Device::Default, .. } => vec![5, 0, 0, 0, 0, 0],
            Self::Flags { device, uefi } => vec![5, if uefi { 0xa0 } else { 0x80 }, (device as u8) << 2, 0, 0, 0],
        }
    }

    fn parse(&self, _: &[u8]) -> Result<(), Malformed> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_a_machine() {
        let status = GetStatus.parse(&[0x21, 0x10, 0x40, 0x54]).unwrap();
        assert_eq!(status, Status { power: true, power_fault: false, interlock: false, overload: false });
        let status = GetStatus.parse(&[0x1e, 0, 0]).unwrap();
        assert_eq!(status, Status { power: false, power_fault: true, interlock: true, overload: true });
        assert!(GetStatus.parse(&[1, 0]).is_err());
    }

    #[test]
    fn flags_of_the_next_boot() {
        let check = |device, uefi, expected: &[u8]| assert_eq!(SetBoot::Flags { device, uefi }.data(), expected);
        check(Device::Pxe, true, &[5, 0xa0, 0x04, 0, 0, 0]);
        check(Device::Cd, false, &[5, 0x80, 0x14, 0, 0, 0]);
        check(Device::Setup, true, &[5, 0xa0, 0x18, 0, 0, 0]);
        check(Device::Default, true, &[5, 0, 0, 0, 0, 0]);
    }
}
