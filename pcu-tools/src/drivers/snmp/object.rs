//! Object identifiers, and places in a table where an outlet's index belongs.

use std::{fmt, str::FromStr};

use serde::Deserialize;

/// Most numbers of an identifier (RFC 2578, section 3.5).
const MAX: usize = 128;
/// What stands for an outlet's index in a data file.
const OUTLET: &str = "{outlet}";

/// The name of an object: `1.3.6.1.2.1.1.2.0`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct ObjectId(Vec<u32>);

/// The name of one object per outlet: `1.3.6.1.4.1.318.1.1.12.3.5.1.1.4.{outlet}`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct OutletObject {
    before: Vec<u32>,
    after: Vec<u32>,
}

/// An outlet's object, or the whole device's.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(super) enum AnyObject {
    /// With [`OUTLET`] in its name.
    Outlet(OutletObject),
    /// Without.
    Device(ObjectId),
}

/// Which row of a device's tables an outlet is: one number, or several, as tower, infeed and outlet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Index(pub(super) Vec<u32>);

impl FromStr for ObjectId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = numbers(text)?;
        match numbers.as_slice() {
            [0 | 1, 0..=39, ..] | [2, 0..=47, ..] if numbers.len() <= MAX => Ok(Self(numbers)),
            _ => Err(format!("{text:?} is no object identifier, as 1.3.6.1.2.1.1.2.0")),
        }
    }
}

impl TryFrom<String> for ObjectId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&dotted(&self.0))
    }
}

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&dotted(&self.0))
    }
}

impl FromStr for Index {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        numbers(text).map(Self)
    }
}

impl TryFrom<String> for OutletObject {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{text:?} needs {OUTLET} as one of its parts, once: 1.3.6.1.4.1.9999.1.{OUTLET}");
        let (before, after) = text.split_once(OUTLET).ok_or_else(wrong)?;
        let before: ObjectId = before.strip_suffix('.').ok_or_else(wrong)?.parse()?;
        let after = match after.strip_prefix('.') {
            Some(after) => numbers(after)?,
            None if after.is_empty() => Vec::new(),
            None => return Err(wrong()),
        };
        Ok(Self { before: before.0, after })
    }
}

impl TryFrom<String> for AnyObject {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.contains(OUTLET) {
            OutletObject::try_from(text).map(Self::Outlet)
        } else {
            text.parse().map(Self::Device)
        }
    }
}

impl AnyObject {
    /// The object that tells of this outlet.
    pub(super) fn of(&self, outlet: &Index) -> ObjectId {
        match self {
            Self::Outlet(object) => object.of(outlet),
            Self::Device(object) => object.clone(),
        }
    }
}

impl OutletObject {
    /// The object of one outlet.
    pub(super) fn of(&self, outlet: &Index) -> ObjectId {
        ObjectId([self.before.as_slice(), &outlet.0, &self.after].concat())
    }

    /// Below which object those of all outlets are.
    pub(super) fn column(&self) -> ObjectId {
        ObjectId(self.before.clone())
    }

    /// Whose object it is, when it is one outlet's.
    pub(super) fn outlet(&self, below_column: &[u32]) -> Option<Index> {
        let index = below_column.strip_suffix(self.after.as_slice())?;
        Some(Index(index.to_vec()))
    }
}

impl ObjectId {
    /// What follows `column` in this name.
    pub(super) fn below(&self, column: &Self) -> Option<&[u32]> {
        self.0.strip_prefix(column.0.as_slice()).filter(|rest| !rest.is_empty())
    }

    /// Whether this is `other` or something below it.
    pub(super) fn is_within(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0)
    }

    /// How many numbers it has.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// As BER's content octets (X.690, section 8.19).
    pub(super) fn encode(&self) -> Vec<u8> {
        let (first, rest) = (self.0[0] * 40 + self.0[1], &self.0[2..]);
        let mut bytes = Vec::new();
        for number in std::iter::once(&first).chain(rest) {
            let groups = (32 - number.leading_zeros()).div_ceil(7).max(1);
            for group in (0..groups).rev() {
                let more = if group > 0 { 0x80 } else { 0 };
                bytes.push((number >> (7 * group)) as u8 & 0x7f | more);
            }
        }
        bytes
    }

    /// From BER's content octets; none when they are not an identifier, or too long a one.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut numbers = Vec::new();
        let mut number = 0u32;
        for byte in bytes {
            number = number.checked_mul(0x80)? | u32::from(byte & 0x7f);
            if byte & 0x80 == 0 {
                if numbers.is_empty() {
                    let first = (number / 40).min(2);
                    numbers.extend([first, number - 40 * first]);
                } else {
                    numbers.push(number);
                }
                number = 0;
            }
        }
        let ended = bytes.last().is_some_and(|byte| byte & 0x80 == 0);
        (ended && numbers.len() <= MAX).then_some(Self(numbers))
    }
}

fn numbers(text: &str) -> Result<Vec<u32>, String> {
    let number = |part: &str| {
        let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        part.parse().ok().filter(|_| digits).ok_or_else(|| format!("{text:?} is not numbers with dots between"))
    };
    text.split('.').map(number).collect()
}

fn dotted(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers() {
        let check = |text: &str, expected: Option<&[u8]>| {
            let found = text.parse::<ObjectId>().ok();
            assert_eq!(found.as_ref().map(ObjectId::encode).as_deref(), expected, "{text:?}");
            if let Some(object) = found {
                assert_eq!(object.to_string(), text);
                assert_eq!(ObjectId::decode(&object.encode()), Some(object));
            }
        };
        check("1.3.6.1.2.1.1.2.0", Some(&[0x2b, 6, 1, 2, 1, 1, 2, 0]));
        check("1.3.6.1.4.1.318", Some(&[0x2b, 6, 1, 4, 1, 0x82, 0x3e]));
        check("1.3.4294967295", Some(&[0x2b, 0x8f, 0xff, 0xff, 0xff, 0x7f]));
        check("0.0", Some(&[0]));
        check("2.47.128", Some(&[127, 0x81, 0]));
        for wrong in ["", ".1.3.6", "1", "1.3.", "1..3", "1.40", "3.1", "1.3.x", "1.3.-1", "1.3.+1", "1.3.4294967296"] {
            check(wrong, None);
        }
        for wrong in [&[][..], &[0x80], &[0x2b, 0x82], &[0xff; 200], &[1; 200], &[0x2b, 0x90, 0x80, 0x80, 0x80, 0]] {
            assert_eq!(ObjectId::decode(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn outlets_stand_anywhere_in_a_name() {
        let object = |text: &str| OutletObject::try_from(text.to_owned());
        let check = |text: &str, index: &str, expected: &str| {
            let (object, index) = (object(text).unwrap(), index.parse::<Index>().unwrap());
            let name = object.of(&index);
            assert_eq!(name.to_string(), expected);
            assert_eq!(object.outlet(name.below(&object.column()).unwrap()), Some(index));
        };
        check("1.3.6.{outlet}", "4", "1.3.6.4");
        check("1.3.6.{outlet}.7", "1.4", "1.3.6.1.4.7");
        for wrong in ["1.3.6", "{outlet}", "1.3.{outlet}6", "1.3.6{outlet}", "1.3.{outlet}.{outlet}", "1.3.{outlet}."] {
            assert!(object(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(object("1.3.6.{outlet}.7").unwrap().outlet(&[4, 8]), None);
    }
}
