//! How a command ended (5.2).

use std::fmt;

/// A completion code. What 0x80 to 0xbe mean depends on the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion(pub u8);

impl Completion {
    /// Done.
    pub const DONE: Self = Self(0);
    /// The reservation is another's by now.
    pub const RESERVATION_LOST: Self = Self(0xc5);
    /// There is no such record or sensor.
    pub const ABSENT: Self = Self(0xcb);
    /// A field has a value that the controller does not know.
    pub const INVALID_FIELD: Self = Self(0xcc);

    /// Whether the controller has no time now, but may have some later.
    #[must_use]
    pub fn is_busy(self) -> bool {
        // Busy, timed out, repository in update, firmware update, starting.
        matches!(self.0, 0xc0 | 0xc3 | 0xd0..=0xd2)
    }

    /// Whether the account, or the session's privilege, is not enough.
    #[must_use]
    pub fn is_privilege(self) -> bool {
        self.0 == 0xd4
    }

    /// Whether there is no such command or function.
    #[must_use]
    pub fn is_unsupported(self) -> bool {
        matches!(self.0, 0xc1 | 0xc2 | 0xd6)
    }

    /// Whether a command is refused that a copy of it, which was answered before, may have made impossible.
    #[must_use]
    pub fn may_be_repetition(self) -> bool {
        matches!(self.0, 0xcf | 0xd5)
    }

    /// Whether the answer would have been longer than the controller can send.
    #[must_use]
    pub fn is_too_long(self) -> bool {
        matches!(self.0, 0xc7 | 0xc8 | 0xca | 0xff)
    }
}

impl fmt::Display for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let meaning = match self.0 {
            0x00 => "done",
            0xc0 => "the controller is busy",
            0xc1 => "it does not know the command",
            0xc2 => "it does not know the command on this unit",
            0xc3 => "it ran out of time",
            0xc4 => "it has no space",
            0xc5 => "the reservation is gone",
            0xc6 => "the request was cut",
            0xc7 => "the request has a wrong length",
            0xc8 => "the request is too long",
            0xc9 => "a parameter is out of range",
            0xca => "it cannot return that many bytes",
            0xcb => "there is no such record, sensor or object",
            0xcc => "a field of the request is invalid",
            0xcd => "the command does not apply to this record or sensor",
            0xce => "it could not make an answer",
            0xcf => "a duplicate request",
            0xd0 => "its records are being updated",
            0xd1 => "its firmware is being updated",
            0xd2 => "it is starting",
            0xd3 => "who should do it is not there",
            0xd4 => "the privilege is insufficient",
            0xd5 => "not in its present state",
            0xd6 => "that function is disabled",
            0xff => "unspecified",
            0x01..=0x7e => "the maker's own code",
            0x80..=0xbe => "the command's own code",
            _ => "a reserved code",
        };
        write!(f, "{meaning} (completion code {:02x}h)", self.0)
    }
}
