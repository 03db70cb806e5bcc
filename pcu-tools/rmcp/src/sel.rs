//! The controller's log of events (31, 32).

use crate::{Malformed, Request, bytes::Reader, command::STORAGE};

/// The number that stands for "none after this one".
pub const END: u16 = 0xffff;
/// Times below are seconds since the controller started (37.1).
const SINCE_START: u32 = 0x2000_0000;
/// "No time".
const UNKNOWN: u32 = 0xffff_ffff;

/// Get SEL Entry (31.5); entry 0 is the first one.
#[derive(Debug, Clone, Copy)]
pub struct GetEntry {
    /// Which.
    pub id: u16,
}

/// One entry, and which comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The next one's number, or [`END`].
    pub next: u16,
    /// Its own number.
    pub id: u16,
    /// When, in Unix seconds of the controller's clock; none when it did not know.
    pub at: Option<i64>,
    /// What.
    pub event: Event,
}

/// What is logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Of a sensor.
    Sensor {
        /// Of what kind it is (table 42-3).
        kind: u8,
        /// Its number.
        number: u8,
        /// What kind of event (table 42-1).
        event_type: u8,
        /// It began; otherwise it ended.
        asserted: bool,
        /// Which of the kind's events, and more about it.
        data: [u8; 3],
    },
    /// The maker's own.
    Oem {
        /// The record's type.
        record: u8,
        /// What it says.
        data: Vec<u8>,
    },
}

impl Request for GetEntry {
    const FUNCTION: u8 = STORAGE;
    const COMMAND: u8 = 0x43;
    type Answer = Entry;

    fn data(&self) -> Vec<u8> {
        // No reservation, which whole records do not need; all of it.
        let [low, high] = self.id.to_le_bytes();
        vec![0, 0, low, high, 0, 0xff]
    }

    fn parse(&self, data: &[u8]) -> Result<Entry, Malformed> {
        let mut reader = Reader::new(data);
        let (next, id, record) = (reader.u16()?, reader.u16()?, reader.u8()?);
        let data: [u8; 13] = reader.array()?;
        let mut fields = Reader::new(&data);
        let at = match record {
            // The maker's own without a time.
            0xe0.. => None,
            _ => Some(fields.u32()?).filter(|at| (SINCE_START..UNKNOWN).contains(at)).map(i64::from),
        };
        let event = if record >= 0xc0 {
            Event::Oem { record, data: fields.rest().to_vec() }
        } else {
            let [_, _, _, kind, number, direction] = fields.array()?;
            let event_type = direction & 0x7f;
            Event::Sensor { kind, number, event_type, asserted: direction & 0x80 == 0, data: fields.array()? }
        };
        Ok(Entry { next, id, at, event })
    }
}

impl Event {
    /// For people.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Oem { record, data } => {
                let bytes: Vec<String> = data.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("the maker's own record {record:02x}h: {}", bytes.join(" "))
            }
            Self::Sensor { kind, number, event_type, asserted, data: [first, second, third] } => {
                let offset = first & 15;
                let what = match event_type {
                    1 => threshold(offset).map(str::to_owned),
                    0x6f => specific(*kind, offset).map(str::to_owned),
                    _ => None,
                };
                let what = what.unwrap_or_else(|| format!("event {event_type:02x}h/{offset}"));
                let ended = if *asserted { "" } else { ", no longer" };
                let kind = sensor_kind(*kind);
                format!("{kind}, sensor {number:02x}h: {what}{ended} ({first:02x} {second:02x} {third:02x})")
            }
        }
    }
}

/// Events of thresholds (table 42-2).
fn threshold(offset: u8) -> Option<&'static str> {
    const NAMES: [&str; 12] = [
        "lower non-critical, going low",
        "lower non-critical, going high",
        "lower critical, going low",
        "lower critical, going high",
        "lower non-recoverable, going low",
        "lower non-recoverable, going high",
        "upper non-critical, going low",
        "upper non-critical, going high",
        "upper critical, going low",
        "upper critical, going high",
        "upper non-recoverable, going low",
        "upper non-recoverable, going high",
    ];
    NAMES.get(usize::from(offset)).copied()
}

/// Events that power control is asked about (table 42-3); all others are told by their numbers.
fn specific(kind: u8, offset: u8) -> Option<&'static str> {
    let names: &[&str] = match kind {
        0x08 => &["present", "failed", "failure predicted", "input lost", "input lost or out of range"],
        0x09 => &["power off", "power cycle", "240 VA power down", "interlock power down", "AC lost"],
        0x10 => &["memory error logging disabled", "event logging disabled", "log cleared", "all logging disabled"],
        0x12 => &["reconfigured", "booted by a controller"],
        0x1d => &["started by power up", "started by hard reset", "started by warm reset", "network boot requested"],
        0x23 => &["timer expired", "hard reset by the timer", "power down by the timer", "power cycle by the timer"],
        _ => &[],
    };
    names.get(usize::from(offset)).copied()
}

/// Kinds of sensors (table 42-3).
#[must_use]
pub fn sensor_kind(kind: u8) -> &'static str {
    const NAMES: [&str; 45] = [
        "reserved",
        "temperature",
        "voltage",
        "current",
        "fan",
        "physical security",
        "platform security",
        "processor",
        "power supply",
        "power unit",
        "cooling device",
        "other units",
        "memory",
        "drive slot",
        "memory resize",
        "firmware progress",
        "event logging",
        "watchdog 1",
        "system event",
        "critical interrupt",
        "button",
        "module or board",
        "microcontroller",
        "add-in card",
        "chassis",
        "chip set",
        "other FRU",
        "cable",
        "terminator",
        "system start",
        "boot error",
        "operating system boot",
        "operating system stop",
        "slot",
        "ACPI state",
        "watchdog 2",
        "platform alert",
        "entity presence",
        "monitor ASIC",
        "LAN",
        "management subsystem",
        "battery",
        "session audit",
        "version change",
        "FRU state",
    ];
    NAMES.get(usize::from(kind)).copied().unwrap_or(if kind >= 0xc0 { "the maker's own kind" } else { "unknown kind" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries() {
        let check = |record: &str, at: Option<i64>, text: &str| {
            let data = [vec![0xff, 0xff, 1, 0], hex::decode(record.replace(' ', "")).unwrap()].concat();
            let entry = GetEntry { id: 0 }.parse(&data).unwrap();
            assert_eq!((entry.next, entry.id, entry.at, entry.event.describe().as_str()), (END, 1, at, text));
            for end in 0..data.len() {
                assert!(GetEntry { id: 0 }.parse(&data[..end]).is_err());
            }
        };
        let hot = "temperature, sensor 01h: upper critical, going high (59 60 70)";
        check("02 00000060 2000 04 01 01 01 59 60 70", Some(0x6000_0000), hot);
        let gone = "power unit, sensor 05h: AC lost, no longer (04 ff ff)";
        check("02 21b60000 2000 04 09 05 ef 04 ff ff", None, gone);
        check(
            "02 ffffffff 2000 04 c8 05 03 01 00 00",
            None,
            "the maker's own kind, sensor 05h: event 03h/1 (01 00 00)",
        );
        check(
            "c1 00000060 b81a00 010203040506",
            Some(0x6000_0000),
            "the maker's own record c1h: b8 1a 00 01 02 03 04 05 06",
        );
        check(
            "e0 0102030405060708090a0b0c0d",
            None,
            "the maker's own record e0h: 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d",
        );
    }
}
