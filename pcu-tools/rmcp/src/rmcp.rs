//! The header before everything on port 623 (13.1.3).

use crate::{Malformed, bytes::Reader};

/// The primary RMCP port of UDP.
pub const PORT: u16 = 623;

const VERSION: u8 = 6;
/// Asks for no acknowledgement; IPMI never does.
const NO_ACKNOWLEDGEMENT: u8 = 0xff;

/// What follows the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// Presence ping and pong.
    Asf = 6,
    /// IPMI, either version.
    Ipmi = 7,
}

/// Puts the header before `body`.
#[must_use]
pub fn wrap(class: Class, body: &[u8]) -> Vec<u8> {
    let mut datagram = vec![VERSION, 0, NO_ACKNOWLEDGEMENT, class as u8];
    datagram.extend_from_slice(body);
    datagram
}

/// Takes the header off.
///
/// # Errors
/// When it is not RMCP, or of another class.
pub fn unwrap(datagram: &[u8]) -> Result<(Class, &[u8]), Malformed> {
    let mut reader = Reader::new(datagram);
    let [version, _, _, class] = reader.array()?;
    if version != VERSION {
        return Err(Malformed("it is not RMCP version 1.0"));
    }
    match class {
        6 => Ok((Class::Asf, reader.rest())),
        7 => Ok((Class::Ipmi, reader.rest())),
        _ => Err(Malformed("it is neither ASF nor IPMI, or an acknowledgement")),
    }
}
