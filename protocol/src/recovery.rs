//! The recovery key: what somebody at the machine's own console proves with that they may open a shell there.
//!
//! A node knows its SHA-256 only. The key is drawn at random and 200 bits long, so that a plain hash is enough:
//! guessing it offline is as hopeless as guessing any other key.

use core::{fmt, str::FromStr};

use crate::digest::Digest;

/// Crockford's base32: digits and letters without those that look alike (<https://www.crockford.com/base32.html>).
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// Characters of a key; each is worth five bits.
const CHARACTERS: usize = 40;
/// Characters between two dashes.
const GROUP: usize = 5;

/// A recovery key. It does not show itself in debug output; [`fmt::Display`] writes it out, in groups.
#[derive(Clone, PartialEq, Eq)]
pub struct RecoveryKey([u8; CHARACTERS]);

/// Not a recovery key. What was typed is not repeated: it may be nearly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecoveryKeyError {
    /// Other than 40 characters.
    Length(usize),
    /// A character outside the alphabet.
    Character,
}

impl fmt::Display for RecoveryKeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(has) => {
                write!(f, "a recovery key has {CHARACTERS} letters and digits in groups of {GROUP}, this has {has}")
            }
            Self::Character => {
                f.write_str("a recovery key has no characters but digits, letters other than U, and dashes")
            }
        }
    }
}

impl core::error::Error for RecoveryKeyError {}

impl RecoveryKey {
    /// The key that 25 random bytes make.
    pub fn from_random(bytes: &[u8; 25]) -> Self {
        let mut characters = [0; CHARACTERS];
        // Five bytes are eight characters.
        for (bytes, characters) in bytes.chunks_exact(5).zip(characters.chunks_exact_mut(8)) {
            let word = bytes.iter().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
            for (at, character) in characters.iter_mut().rev().enumerate() {
                *character = ALPHABET[(word >> (5 * at) & 31) as usize];
            }
        }
        Self(characters)
    }

    /// What a node's configuration holds of it: the SHA-256 of its 40 characters, in upper case and without dashes.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.0)
    }

    /// Whether `digest` is this key's, found out in a time that does not depend on how much of it is right.
    pub fn is(&self, digest: &Digest) -> bool {
        let differing = self.digest().0.iter().zip(digest.0).fold(0, |all, (a, b)| all | (a ^ b));
        core::hint::black_box(differing) == 0
    }
}

impl FromStr for RecoveryKey {
    type Err = RecoveryKeyError;

    /// Parses a key as people type it: in any case, with dashes and spaces anywhere, and with `O` for zero and `I` or
    /// `L` for one.
    fn from_str(text: &str) -> Result<Self, RecoveryKeyError> {
        let mut characters = [0; CHARACTERS];
        let mut count = 0;
        for typed in text.bytes().filter(|byte| *byte != b'-' && !byte.is_ascii_whitespace()) {
            let character = match typed.to_ascii_uppercase() {
                b'O' => b'0',
                b'I' | b'L' => b'1',
                other => other,
            };
            if !ALPHABET.contains(&character) {
                return Err(RecoveryKeyError::Character);
            }
            if let Some(place) = characters.get_mut(count) {
                *place = character;
            }
            count += 1;
        }
        if count == CHARACTERS { Ok(Self(characters)) } else { Err(RecoveryKeyError::Length(count)) }
    }
}

impl fmt::Display for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, group) in self.0.chunks(GROUP).enumerate() {
            let group = core::str::from_utf8(group).map_err(|_| fmt::Error)?;
            write!(f, "{}{group}", if at == 0 { "" } else { "-" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecoveryKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use alloc::{format, string::ToString};

    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "01234-56789-ABCDE-FGHJK-MNPQR-STVWX-YZ012-34567";

    fn check(text: &str, expect: Result<&str, RecoveryKeyError>) {
        let got = text.parse::<RecoveryKey>().map(|key| key.to_string());
        assert_eq!(got, expect.map(str::to_string), "{text}");
    }

    #[test]
    fn keys_are_parsed_as_people_type_them() {
        check(TEXT, Ok(TEXT));
        check(&TEXT.to_lowercase().replace('-', ""), Ok(TEXT));
        check(&format!(" {} \n", TEXT.replace('-', " ")), Ok(TEXT));
        check("oil34-56789-ABCDE-FGHJK-MNPQR-STVWX-YZ0l2-34567", Ok("01134-56789-ABCDE-FGHJK-MNPQR-STVWX-YZ012-34567"));
        check("", Err(RecoveryKeyError::Length(0)));
        check(&TEXT[1..], Err(RecoveryKeyError::Length(39)));
        check(&format!("{TEXT}0"), Err(RecoveryKeyError::Length(41)));
        check(&TEXT.replace('A', "U"), Err(RecoveryKeyError::Character));
        check(&TEXT.replace('A', "é"), Err(RecoveryKeyError::Character));
    }

    #[test]
    fn the_digest_is_of_the_plain_characters() {
        let key: RecoveryKey = TEXT.parse().unwrap();
        assert_eq!(key.digest(), Digest::of(b"0123456789ABCDEFGHJKMNPQRSTVWXYZ01234567"));
        assert!(key.is(&key.digest()));
        assert!(!key.is(&Digest::of(b"")));
        assert!(!format!("{key:?}").contains("01234"));
    }

    proptest! {
        #[test]
        fn random_keys_round_trip_and_differ(a: [u8; 25], b: [u8; 25]) {
            let key = RecoveryKey::from_random(&a);
            prop_assert_eq!(key.to_string().len(), 47);
            prop_assert_eq!(key.to_string().parse::<RecoveryKey>(), Ok(key.clone()));
            prop_assert_eq!(RecoveryKey::from_random(&b) == key, a == b);
        }

        #[test]
        fn parsing_never_panics(text in ".{0,60}") {
            let _ = text.parse::<RecoveryKey>();
        }
    }
}
