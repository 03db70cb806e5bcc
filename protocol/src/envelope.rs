//! The signed envelope: a payload, and signatures of release keys over it.
//!
//! ```text
//! offset  size  field
//!      0     8  magic "ORRYENV1"
//!      8     1  payload type
//!      9     1  number of signatures, 1 to 16
//!     10     2  zero
//!     12     4  payload length, little-endian, at most 1 MiB
//!     16     n  payload
//!   16+n        signatures: 32 bytes key id, 64 bytes r ‖ s, each
//! ```
//!
//! A signature is over SHA-256("orrery-envelope-v1\0" ‖ type ‖ length ‖ payload): the type is signed, so a
//! manifest can never pass as a script. Framing is binary so that nothing but this page of code reads bytes
//! that nobody has vouched for yet; the payload is parsed after verification only.

use alloc::vec::Vec;
use core::fmt;

use crate::{
    digest::{Digest, Sha256},
    key::{PublicKey, SigningKey},
};

const MAGIC: &[u8; 8] = b"ORRYENV1";
const DOMAIN: &[u8] = b"orrery-envelope-v1\0";
const HEADER_BYTES: usize = 16;
const SIGNATURE_BYTES: usize = 32 + 64;
const MAX_SIGNATURES: usize = 16;

/// The longest payload, in bytes. A manifest of a thousand artifacts has a tenth of this.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// What a payload claims to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum PayloadType {
    /// A [`crate::BootScript`].
    BootScript = 1,
    /// A [`crate::ReleaseManifest`].
    ReleaseManifest = 2,
    /// A [`crate::TrustUpdate`].
    TrustUpdate = 3,
}

impl PayloadType {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::BootScript, Self::ReleaseManifest, Self::TrustUpdate].into_iter().find(|known| *known as u8 == byte)
    }
}

/// The release keys a reader trusts, and how many of them must have signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustRoot {
    /// The trusted keys.
    pub keys: Vec<PublicKey>,
    /// How many distinct keys must have signed; at least 1.
    pub threshold: u8,
}

/// A well-formed envelope. Nothing in it is proven: only [`Envelope::verify`] gives out the payload.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'a> {
    payload_type: PayloadType,
    payload: &'a [u8],
    signatures: &'a [u8],
}

/// A payload that enough trusted keys have signed as `payload_type`. Holding one proves it.
#[derive(Debug, Clone, Copy)]
pub struct Verified<'a> {
    payload: &'a [u8],
}

impl<'a> Verified<'a> {
    /// The signed bytes.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }
}

/// Why an envelope was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnvelopeError {
    /// Shorter than it says, or followed by other bytes.
    Truncated,
    /// It does not start like an envelope.
    NotAnEnvelope,
    /// A reserved, unknown or impossible value in the header.
    BadHeader,
    /// It carries another type of payload than the reader asked for.
    WrongType,
    /// Too few trusted keys have signed it.
    NotSigned {
        /// Distinct trusted keys whose signature holds.
        valid: u8,
        /// How many the trust root asks for.
        needed: u8,
    },
}

impl fmt::Display for EnvelopeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("envelope has the wrong length"),
            Self::NotAnEnvelope => f.write_str("not a signed envelope"),
            Self::BadHeader => f.write_str("envelope header is invalid"),
            Self::WrongType => f.write_str("envelope holds another type of payload"),
            Self::NotSigned { valid, needed } => {
                write!(f, "signature refused: {valid} valid signatures of trusted release keys, {needed} needed")
            }
        }
    }
}

impl core::error::Error for EnvelopeError {}

impl<'a> Envelope<'a> {
    /// Reads the frame.
    ///
    /// # Errors
    /// The bytes are not exactly one envelope.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, EnvelopeError> {
        let Some((header, rest)) = bytes.split_at_checked(HEADER_BYTES) else {
            return Err(EnvelopeError::Truncated);
        };
        if !header.starts_with(MAGIC) {
            return Err(EnvelopeError::NotAnEnvelope);
        }
        let payload_type = PayloadType::from_byte(header[8]).ok_or(EnvelopeError::BadHeader)?;
        let count = usize::from(header[9]);
        let length = u32::from_le_bytes([header[12], header[13], header[14], header[15]]) as usize;
        if !(1..=MAX_SIGNATURES).contains(&count) || header[10..12] != [0, 0] || length > MAX_PAYLOAD {
            return Err(EnvelopeError::BadHeader);
        }
        let Some((payload, signatures)) = rest.split_at_checked(length) else {
            return Err(EnvelopeError::Truncated);
        };
        if signatures.len() != count * SIGNATURE_BYTES {
            return Err(EnvelopeError::Truncated);
        }
        Ok(Self { payload_type, payload, signatures })
    }

    /// The first envelope of several that follow each other, and what is behind it.
    ///
    /// # Errors
    /// The bytes do not begin with an envelope.
    pub fn split_first(bytes: &'a [u8]) -> Result<(&'a [u8], &'a [u8]), EnvelopeError> {
        let header = bytes.get(..HEADER_BYTES).ok_or(EnvelopeError::Truncated)?;
        let length = u32::from_le_bytes([header[12], header[13], header[14], header[15]]) as usize;
        if length > MAX_PAYLOAD {
            return Err(EnvelopeError::BadHeader);
        }
        let end = HEADER_BYTES + length + usize::from(header[9]) * SIGNATURE_BYTES;
        let (first, rest) = bytes.split_at_checked(end).ok_or(EnvelopeError::Truncated)?;
        Self::parse(first).map(|_| (first, rest))
    }

    /// What it claims to hold. Unproven.
    pub fn claimed_type(&self) -> PayloadType {
        self.payload_type
    }

    /// The payload as it arrived, for whoever shows it to people or adds a signature. Unproven: a node never looks at it.
    pub fn unverified_payload(&self) -> &'a [u8] {
        self.payload
    }

    /// Ids of the keys that claim to have signed it. Unproven.
    pub fn claimed_signers(&self) -> impl Iterator<Item = Digest> + 'a {
        self.signatures.chunks_exact(SIGNATURE_BYTES).map(|entry| {
            let mut id = [0; 32];
            id.copy_from_slice(&entry[..32]);
            Digest(id)
        })
    }

    /// Checks type and signatures, and gives out the payload.
    ///
    /// # Errors
    /// The type is another, or fewer than the threshold of distinct trusted keys have signed.
    pub fn verify(&self, expected: PayloadType, root: &TrustRoot) -> Result<Verified<'a>, EnvelopeError> {
        if self.payload_type != expected {
            return Err(EnvelopeError::WrongType);
        }
        let digest = signed_digest(self.payload_type, self.payload);
        let valid = root
            .keys
            .iter()
            .enumerate()
            // A key listed twice in the root still counts once.
            .filter(|(i, key)| !root.keys[..*i].contains(key) && self.signed_by(key, &digest))
            .count() as u8;
        let needed = root.threshold.max(1);
        if valid < needed {
            return Err(EnvelopeError::NotSigned { valid, needed });
        }
        Ok(Verified { payload: self.payload })
    }

    fn signed_by(&self, key: &PublicKey, digest: &Digest) -> bool {
        let id = key.id();
        self.signatures.chunks_exact(SIGNATURE_BYTES).any(|entry| {
            let (entry_id, signature) = entry.split_at(32);
            let signature = signature.try_into().expect("a signature entry is 32 + 64 bytes");
            entry_id == id.0 && key.verifies(digest, signature)
        })
    }
}

/// Wraps `payload` into an envelope signed by each of `keys`.
///
/// # Errors
/// The payload is too long, or there are no keys or more than 16.
pub fn sign(payload_type: PayloadType, payload: &[u8], keys: &[&SigningKey]) -> Result<Vec<u8>, EnvelopeError> {
    if payload.len() > MAX_PAYLOAD || !(1..=MAX_SIGNATURES).contains(&keys.len()) {
        return Err(EnvelopeError::BadHeader);
    }
    let mut out = Vec::with_capacity(HEADER_BYTES + payload.len() + keys.len() * SIGNATURE_BYTES);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[payload_type as u8, keys.len() as u8, 0, 0]);
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(payload);
    let digest = signed_digest(payload_type, payload);
    for key in keys {
        out.extend_from_slice(&key.public().id().0);
        out.extend_from_slice(&key.sign(&digest));
    }
    Ok(out)
}

fn signed_digest(payload_type: PayloadType, payload: &[u8]) -> Digest {
    let mut hasher = Sha256::new();
    hasher.update(DOMAIN);
    hasher.update(&[payload_type as u8]);
    hasher.update(&(payload.len() as u32).to_le_bytes());
    hasher.update(payload);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    fn key(n: u8) -> SigningKey {
        SigningKey::from_scalar(&[n; 32]).unwrap()
    }

    fn check(signers: &[u8], trusted: &[u8], threshold: u8, expect: Result<(), EnvelopeError>) {
        let signers: Vec<_> = signers.iter().map(|n| key(*n)).collect();
        let bytes = sign(PayloadType::BootScript, b"payload", &signers.iter().collect::<Vec<_>>()).unwrap();
        let root = TrustRoot { keys: trusted.iter().map(|n| key(*n).public()).collect(), threshold };
        let got = Envelope::parse(&bytes).unwrap().verify(PayloadType::BootScript, &root);
        assert_eq!(got.map(|v| assert_eq!(v.payload(), b"payload")), expect);
    }

    #[test]
    fn threshold_counts_distinct_trusted_keys() {
        check(&[1], &[1], 1, Ok(()));
        check(&[2, 1], &[1], 1, Ok(()));
        check(&[1, 2], &[1, 2, 3], 2, Ok(()));
        check(&[2], &[1], 1, Err(EnvelopeError::NotSigned { valid: 0, needed: 1 }));
        check(&[1, 1], &[1, 1, 2], 2, Err(EnvelopeError::NotSigned { valid: 1, needed: 2 }));
        check(&[1], &[1], 0, Ok(()));
        check(&[2], &[], 0, Err(EnvelopeError::NotSigned { valid: 0, needed: 1 }));
    }

    #[test]
    fn a_payload_signed_as_one_type_is_refused_as_another() {
        let mut bytes = sign(PayloadType::BootScript, b"x", &[&key(1)]).unwrap();
        let root = TrustRoot { keys: vec![key(1).public()], threshold: 1 };
        let verify =
            |bytes: &[u8]| Envelope::parse(bytes).unwrap().verify(PayloadType::ReleaseManifest, &root).map(|_| ());
        assert_eq!(verify(&bytes), Err(EnvelopeError::WrongType));
        bytes[8] = PayloadType::ReleaseManifest as u8;
        assert_eq!(verify(&bytes), Err(EnvelopeError::NotSigned { valid: 0, needed: 1 }));
    }

    proptest! {
        #[test]
        fn any_changed_bit_is_refused(payload in proptest::collection::vec(any::<u8>(), 0..64), at: usize, bit in 0u32..8) {
            let mut bytes = sign(PayloadType::BootScript, &payload, &[&key(1)]).unwrap();
            let at = at % bytes.len();
            bytes[at] ^= 1u8 << bit;
            let root = TrustRoot { keys: vec![key(1).public()], threshold: 1 };
            let accepted = Envelope::parse(&bytes)
                .and_then(|e| e.verify(PayloadType::BootScript, &root).map(|_| ()));
            prop_assert!(accepted.is_err());
        }

        #[test]
        fn parsing_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..256), with_magic: bool) {
            if with_magic && bytes.len() >= 8 {
                bytes[..8].copy_from_slice(MAGIC);
            }
            let _ = Envelope::parse(&bytes);
        }
    }
}
