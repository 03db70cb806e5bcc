//! JSON in and out of signed payloads, bounded and without `std`.

use alloc::{vec, vec::Vec};
use core::fmt;

use serde::{Serialize, de::DeserializeOwned};

/// A payload that is not the JSON its type asks for, or does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JsonError {
    /// Malformed, or a field of the wrong type.
    Malformed(serde_json_core::de::Error),
    /// Something follows the value.
    TrailingBytes,
    /// The value is longer than the caller allows, in bytes.
    TooLong(usize),
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(e) => write!(f, "malformed JSON: {e}"),
            Self::TrailingBytes => f.write_str("bytes follow the JSON value"),
            Self::TooLong(limit) => write!(f, "JSON longer than {limit} bytes"),
        }
    }
}

impl core::error::Error for JsonError {}

/// Parses exactly one value from `bytes`.
pub(crate) fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    // Escaped strings are decoded into a scratch buffer; no string is longer than the whole input.
    let mut scratch = vec![0; bytes.len()];
    let (value, used) = serde_json_core::from_slice_escaped(bytes, &mut scratch).map_err(JsonError::Malformed)?;
    let rest = &bytes[used..];
    if rest.iter().any(|b| !b.is_ascii_whitespace()) {
        return Err(JsonError::TrailingBytes);
    }
    Ok(value)
}

/// Writes `value` in at most `limit` bytes.
pub(crate) fn to_vec<T: Serialize>(value: &T, limit: usize) -> Result<Vec<u8>, JsonError> {
    let mut buffer = vec![0; limit];
    let used = serde_json_core::to_slice(value, &mut buffer).map_err(|_| JsonError::TooLong(limit))?;
    buffer.truncate(used);
    Ok(buffer)
}
