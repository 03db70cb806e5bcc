//! The config area: a fixed-size block inside a finished medium that a node's configuration is stamped into.
//!
//! ```text
//! offset  size  field
//!      0    24  magic
//!     24     4  content length, little-endian (0: blank)
//!     28    32  SHA-256 of the content
//!     60     n  content: node.toml, UTF-8
//!             0  zeros up to 64 KiB
//! ```
//!
//! The size never changes, so stamping overwrites one extent in place and the same bytes are seen whether the
//! medium is read as a CD, as a USB disk or as a PXE initrd.

use alloc::{vec, vec::Vec};
use core::fmt;

use crate::digest::Digest;

/// Bytes of the whole area.
pub const AREA_BYTES: usize = 64 * 1024;

const HEADER_BYTES: usize = 60;

/// The magic in two halves: the whole never stands in a program's own bytes, so that searching a medium for
/// it finds areas only.
const MAGIC_HALVES: (&[u8; 12], &[u8; 12]) = (b"ORRERY-CONFI", b"G-AREA-V1\r\n\0");

/// Why bytes are no config area, or a text does not fit one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AreaError {
    /// No magic, or not the size of an area.
    NotAnArea,
    /// An area that was never stamped.
    Blank,
    /// Header and content do not agree: a failing medium, or a write cut short.
    Damaged,
    /// The text is longer than an area holds, in bytes.
    TooLong(usize),
}

impl fmt::Display for AreaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnArea => f.write_str("no config area found"),
            Self::Blank => f.write_str("the config area is blank: stamp a configuration with `orrery media stamp`"),
            Self::Damaged => f.write_str("the config area is damaged: its checksum does not match its content"),
            Self::TooLong(n) => {
                write!(f, "the configuration has {n} bytes, an area holds {}", AREA_BYTES - HEADER_BYTES)
            }
        }
    }
}

impl core::error::Error for AreaError {}

/// An area that holds nothing yet.
pub fn blank_area() -> Vec<u8> {
    encode_area("").expect("an empty text fits")
}

/// An area that holds `text`.
///
/// # Errors
/// [`AreaError::TooLong`].
pub fn encode_area(text: &str) -> Result<Vec<u8>, AreaError> {
    if text.len() > AREA_BYTES - HEADER_BYTES {
        return Err(AreaError::TooLong(text.len()));
    }
    let mut area = vec![0; AREA_BYTES];
    area[..12].copy_from_slice(MAGIC_HALVES.0);
    area[12..24].copy_from_slice(MAGIC_HALVES.1);
    area[24..28].copy_from_slice(&(text.len() as u32).to_le_bytes());
    area[28..60].copy_from_slice(&Digest::of(text.as_bytes()).0);
    area[HEADER_BYTES..HEADER_BYTES + text.len()].copy_from_slice(text.as_bytes());
    Ok(area)
}

/// The text that `area` holds.
///
/// # Errors
/// The bytes are no area, a blank one, or a damaged one.
pub fn decode_area(area: &[u8]) -> Result<&str, AreaError> {
    if area.len() != AREA_BYTES || !has_magic(area) {
        return Err(AreaError::NotAnArea);
    }
    let length = u32::from_le_bytes([area[24], area[25], area[26], area[27]]) as usize;
    if length == 0 {
        return Err(AreaError::Blank);
    }
    let content = area[HEADER_BYTES..].get(..length).ok_or(AreaError::Damaged)?;
    if Digest::of(content).0 != area[28..60] {
        return Err(AreaError::Damaged);
    }
    core::str::from_utf8(content).map_err(|_| AreaError::Damaged)
}

/// Offset of the first area inside `bytes`, stamped, blank or damaged.
pub fn find_area(bytes: &[u8]) -> Option<usize> {
    let last = bytes.len().checked_sub(AREA_BYTES)?;
    (0..=last).find(|&at| has_magic(&bytes[at..]))
}

fn has_magic(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC_HALVES.0) && bytes[12..].starts_with(MAGIC_HALVES.1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn blank_short_and_damaged_areas_are_told_apart() {
        assert_eq!(decode_area(&blank_area()), Err(AreaError::Blank));
        assert_eq!(decode_area(&blank_area()[1..]), Err(AreaError::NotAnArea));
        let mut area = encode_area("id = 'n1'").unwrap();
        area[HEADER_BYTES] ^= 1;
        assert_eq!(decode_area(&area), Err(AreaError::Damaged));
        let long = "x".repeat(AREA_BYTES);
        assert_eq!(encode_area(&long), Err(AreaError::TooLong(AREA_BYTES)));
    }

    proptest! {
        #[test]
        fn round_trips_wherever_it_stands(text in "[a-z]{1,200}", before in 0usize..600) {
            let mut bytes = vec![0xa5; before];
            bytes.extend(encode_area(&text).unwrap());
            bytes.extend([0x5a; 100]);
            let at = find_area(&bytes).unwrap();
            prop_assert_eq!(at, before);
            prop_assert_eq!(decode_area(&bytes[at..at + AREA_BYTES]).unwrap(), text);
        }
    }
}
