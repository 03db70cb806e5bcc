//! The cipher suites (22.15.2), and the hashes they are made of.

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::Sha256;
use zeroize::Zeroizing;

/// What authenticates and encrypts a session. All others are not offered: they lack something, or are broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Suite {
    /// RAKP-HMAC-SHA1, HMAC-SHA1-96, AES-CBC-128. Every controller of IPMI 2.0 has it.
    Three = 3,
    /// RAKP-HMAC-SHA256, HMAC-SHA256-128, AES-CBC-128.
    Seventeen = 17,
}

impl Suite {
    /// The suite of that number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        [Self::Three, Self::Seventeen].into_iter().find(|known| *known as u8 == number)
    }

    /// Authentication, integrity and confidentiality algorithm (13.28).
    pub(crate) fn algorithms(self) -> [u8; 3] {
        match self {
            Self::Three => [1, 1, 1],
            Self::Seventeen => [3, 4, 1],
        }
    }

    /// The suite of these algorithms.
    pub(crate) fn from_algorithms(algorithms: [u8; 3]) -> Option<Self> {
        [Self::Three, Self::Seventeen].into_iter().find(|known| known.algorithms() == algorithms)
    }

    /// Bytes of a whole hash.
    pub(crate) fn hash_bytes(self) -> usize {
        match self {
            Self::Three => 20,
            Self::Seventeen => 32,
        }
    }

    /// Bytes of the hash that ends a packet, and RAKP message 4.
    pub(crate) fn check_bytes(self) -> usize {
        match self {
            Self::Three => 12,
            Self::Seventeen => 16,
        }
    }

    /// The keyed hash of `parts`, one after the other.
    pub(crate) fn hash(self, key: &[u8], parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(match self {
            Self::Three => keyed::<Hmac<Sha1>>(key, parts).finalize().into_bytes().to_vec(),
            Self::Seventeen => keyed::<Hmac<Sha256>>(key, parts).finalize().into_bytes().to_vec(),
        })
    }

    /// Whether `claimed` begins the keyed hash of `parts`; its length is the caller's to check. Takes the same time for any bytes.
    pub(crate) fn matches(self, key: &[u8], parts: &[&[u8]], claimed: &[u8]) -> bool {
        match self {
            Self::Three => keyed::<Hmac<Sha1>>(key, parts).verify_truncated_left(claimed),
            Self::Seventeen => keyed::<Hmac<Sha256>>(key, parts).verify_truncated_left(claimed),
        }
        .is_ok()
    }
}

fn keyed<M: Mac + KeyInit>(key: &[u8], parts: &[&[u8]]) -> M {
    let mut mac = <M as KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length");
    parts.iter().for_each(|part| mac.update(part));
    mac
}
