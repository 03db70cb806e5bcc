//! P-256 keys (FIPS 186-5) as release keys: what signs envelopes offline.

use alloc::string::String;
use core::{fmt, str::FromStr};

use p256::ecdsa::{
    Signature, VerifyingKey,
    signature::hazmat::{PrehashSigner, PrehashVerifier},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::digest::{Digest, decode_hex, write_hex};

/// Bytes of a compressed SEC1 point on P-256.
const POINT_BYTES: usize = 33;

/// The public half of a signing key: a compressed SEC1 point, written as 66 hexadecimal digits.
/// Holding one proves that the point is on the curve.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

/// The private half: signs digests deterministically (RFC 6979).
pub struct SigningKey(p256::ecdsa::SigningKey);

/// Bytes that are no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyError;

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a P-256 key (public: 66, private: 64 lower-case hexadecimal digits)")
    }
}

impl core::error::Error for KeyError {}

impl PublicKey {
    /// The key's name: the SHA-256 of its compressed point.
    pub fn id(&self) -> Digest {
        Digest::of(&self.point())
    }

    /// Whether `signature` (r ‖ s) over `digest` was made by this key.
    pub(crate) fn verifies(&self, digest: &Digest, signature: &[u8; 64]) -> bool {
        Signature::from_slice(signature).is_ok_and(|s| self.0.verify_prehash(&digest.0, &s).is_ok())
    }

    fn point(&self) -> [u8; POINT_BYTES] {
        let mut out = [0; POINT_BYTES];
        out.copy_from_slice(self.0.to_sec1_point(true).as_bytes());
        out
    }
}

impl SigningKey {
    /// A key from its 32-byte scalar.
    ///
    /// # Errors
    /// The scalar is zero or not below the group's order.
    pub fn from_scalar(scalar: &[u8; 32]) -> Result<Self, KeyError> {
        p256::ecdsa::SigningKey::from_slice(scalar).map(Self).map_err(|_| KeyError)
    }

    /// The scalar: what a key file holds. Secret.
    pub fn scalar(&self) -> [u8; 32] {
        self.0.to_bytes().into()
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(*self.0.verifying_key())
    }

    /// Signs a digest: r ‖ s.
    pub(crate) fn sign(&self, digest: &Digest) -> [u8; 64] {
        let signature: Signature = self.0.sign_prehash(&digest.0).expect("a 32-byte digest is long enough for P-256");
        signature.to_bytes().into()
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(s: &str) -> Result<Self, KeyError> {
        let mut point = [0; POINT_BYTES];
        decode_hex(s.as_bytes(), &mut point).ok_or(KeyError)?;
        VerifyingKey::from_sec1_bytes(&point).map(Self).map_err(|_| KeyError)
    }
}

impl FromStr for SigningKey {
    type Err = KeyError;

    fn from_str(s: &str) -> Result<Self, KeyError> {
        let mut scalar = [0; 32];
        decode_hex(s.as_bytes(), &mut scalar).ok_or(KeyError)?;
        Self::from_scalar(&scalar)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.point(), f)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}
