//! The root of trust and how it changes: release keys and certificate authorities are replaced by updates that the outgoing
//! root signs, so that a medium burned years ago follows its operator to new keys (the roles and rules are those of The
//! Update Framework's root, section 5.3: <https://theupdateframework.github.io/specification/latest/>).
//!
//! A node begins with the root in its medium, serial 0, and takes one step after the other. Every step needs the
//! signatures of the root it comes from, so that nobody else can take it, and those of the root it leads to, so that an
//! operator cannot lock itself out with keys that nobody holds.

use alloc::{string::String, vec::Vec};
use core::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    envelope::{Envelope, EnvelopeError, MAX_PAYLOAD, PayloadType, TrustRoot},
    json::{self, JsonError},
    key::PublicKey,
};

/// Whom a node trusts at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// How many updates lie between the medium's root and this one.
    pub serial: u64,
    /// The release keys.
    pub trust: TrustRoot,
    /// The certificate authorities that central's server must chain to, in PEM, one after the other.
    pub ca: String,
}

/// The next root. Signed as [`PayloadType::TrustUpdate`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustUpdate {
    /// Format version; this is version 1.
    pub version: u16,
    /// One more than that of the root it replaces.
    pub serial: u64,
    /// Issued at, in Unix seconds. For people: an update does not expire, or a node that was off for years could not
    /// follow.
    pub issued: u64,
    /// The release keys from then on.
    pub release_keys: Vec<PublicKey>,
    /// How many of them must have signed.
    pub release_threshold: u8,
    /// The certificate authorities from then on, in PEM, one after the other.
    pub ca: String,
}

/// Why an update was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrustRefused {
    /// The envelope, or the signatures of the outgoing root.
    Outgoing(EnvelopeError),
    /// The signatures of the root it would bring in.
    Incoming(EnvelopeError),
    /// The payload is not an update.
    Json(JsonError),
    /// A format version of another time.
    Version(u16),
    /// Not the next one.
    Serial {
        /// Its serial.
        serial: u64,
        /// The serial of the root in force.
        current: u64,
    },
    /// Fewer keys than the threshold, a threshold of 0, or no certificate authority.
    Unusable,
}

impl fmt::Display for TrustRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Outgoing(e) => write!(f, "trust update: by the root in force: {e}"),
            Self::Incoming(e) => write!(f, "trust update: by its own keys: {e}"),
            Self::Json(e) => write!(f, "trust update: {e}"),
            Self::Version(v) => write!(f, "trust update has format version {v}, this node knows 1"),
            Self::Serial { serial, current } => {
                write!(f, "trust update has serial {serial}, the root in force has {current}")
            }
            Self::Unusable => f.write_str("trust update leaves fewer keys than its threshold, or no authority"),
        }
    }
}

impl core::error::Error for TrustRefused {}

impl TrustUpdate {
    /// Parses a payload.
    ///
    /// # Errors
    /// Not an update of version 1 that somebody could live with.
    pub fn decode(payload: &[u8]) -> Result<Self, TrustRefused> {
        let update: Self = json::from_slice(payload).map_err(TrustRefused::Json)?;
        if update.version != 1 {
            return Err(TrustRefused::Version(update.version));
        }
        let mut distinct = Vec::<&PublicKey>::new();
        for key in &update.release_keys {
            if !distinct.contains(&key) {
                distinct.push(key);
            }
        }
        let enough = (1..=distinct.len()).contains(&usize::from(update.release_threshold));
        if !enough || !update.ca.contains("-----BEGIN CERTIFICATE-----") {
            return Err(TrustRefused::Unusable);
        }
        Ok(update)
    }

    /// The payload to sign.
    ///
    /// # Errors
    /// It is longer than an envelope holds.
    pub fn encode(&self) -> Result<Vec<u8>, JsonError> {
        json::to_vec(self, MAX_PAYLOAD)
    }

    fn root(self) -> Root {
        let trust = TrustRoot { keys: self.release_keys, threshold: self.release_threshold };
        Root { serial: self.serial, trust, ca: self.ca }
    }
}

impl Root {
    /// The root that follows this one by a signed update.
    ///
    /// # Errors
    /// The update is not one that this root may be replaced by.
    pub fn advance(&self, envelope: &[u8]) -> Result<Self, TrustRefused> {
        let envelope = Envelope::parse(envelope).map_err(TrustRefused::Outgoing)?;
        let verified = envelope.verify(PayloadType::TrustUpdate, &self.trust).map_err(TrustRefused::Outgoing)?;
        let next = TrustUpdate::decode(verified.payload())?.root();
        if Some(next.serial) != self.serial.checked_add(1) {
            return Err(TrustRefused::Serial { serial: next.serial, current: self.serial });
        }
        envelope.verify(PayloadType::TrustUpdate, &next.trust).map_err(TrustRefused::Incoming)?;
        Ok(next)
    }

    /// Follows as many updates of `chain`, envelopes one after the other, as lead on from this root. Updates at or below its
    /// serial are passed over. Returns the last root reached, and why the chain was left before its end, if it was.
    pub fn follow(&self, mut chain: &[u8]) -> (Self, Option<TrustRefused>) {
        let mut root = self.clone();
        while !chain.is_empty() {
            let (first, rest) = match Envelope::split_first(chain) {
                Ok(split) => split,
                Err(e) => return (root, Some(TrustRefused::Outgoing(e))),
            };
            chain = rest;
            match root.advance(first) {
                Ok(next) => root = next,
                // An update that leads to this root or to one before it: signed by keys that may no longer count.
                Err(_) if claimed_serial(first).is_some_and(|serial| serial <= root.serial) => {}
                Err(e) => return (root, Some(e)),
            }
        }
        (root, None)
    }
}

/// What an update says about itself, for passing it over only: nothing is proven.
fn claimed_serial(envelope: &[u8]) -> Option<u64> {
    let envelope = Envelope::parse(envelope).ok().filter(|e| e.claimed_type() == PayloadType::TrustUpdate)?;
    json::from_slice::<TrustUpdate>(envelope.unverified_payload()).ok().map(|update| update.serial)
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use proptest::prelude::*;

    use super::*;
    use crate::{envelope, key::SigningKey};

    const CA: &str = "-----BEGIN CERTIFICATE-----\n…\n-----END CERTIFICATE-----\n";

    fn key(n: u8) -> SigningKey {
        SigningKey::from_scalar(&[n; 32]).unwrap()
    }

    fn root(serial: u64, keys: &[u8], threshold: u8) -> Root {
        let keys = keys.iter().map(|n| key(*n).public()).collect();
        Root { serial, trust: TrustRoot { keys, threshold }, ca: CA.to_string() }
    }

    fn update(to: &Root, signers: &[u8]) -> Vec<u8> {
        let update = TrustUpdate {
            version: 1,
            serial: to.serial,
            issued: 1000,
            release_keys: to.trust.keys.clone(),
            release_threshold: to.trust.threshold,
            ca: to.ca.clone(),
        };
        let keys: Vec<_> = signers.iter().map(|n| key(*n)).collect();
        let keys: Vec<_> = keys.iter().collect();
        envelope::sign(PayloadType::TrustUpdate, &update.encode().unwrap(), &keys).unwrap()
    }

    fn not_signed(valid: u8, needed: u8) -> EnvelopeError {
        EnvelopeError::NotSigned { valid, needed }
    }

    #[test]
    fn an_update_needs_the_outgoing_root_and_its_own() {
        let from = root(0, &[1, 2, 3], 2);
        let check = |to: &Root, signers: &[u8], expect: Result<(), TrustRefused>| {
            assert_eq!(from.advance(&update(to, signers)).map(|got| assert_eq!(got, *to)), expect);
        };
        let to = root(1, &[2, 3, 4], 2);
        check(&to, &[2, 3], Ok(()));
        check(&to, &[1, 2, 4], Ok(()));
        check(&to, &[2], Err(TrustRefused::Outgoing(not_signed(1, 2))));
        check(&to, &[4, 5], Err(TrustRefused::Outgoing(not_signed(0, 2))));
        check(&to, &[1, 2], Err(TrustRefused::Incoming(not_signed(1, 2))));
        check(&root(0, &[2, 3], 2), &[2, 3], Err(TrustRefused::Serial { serial: 0, current: 0 }));
        check(&root(2, &[2, 3], 2), &[2, 3], Err(TrustRefused::Serial { serial: 2, current: 0 }));
        check(&root(1, &[2, 3], 3), &[2, 3], Err(TrustRefused::Unusable));
        check(&root(1, &[2, 2], 2), &[2, 3], Err(TrustRefused::Unusable));
        check(&root(1, &[2, 3], 0), &[2, 3], Err(TrustRefused::Unusable));
        check(&Root { ca: String::new(), ..to }, &[2, 3], Err(TrustRefused::Unusable));
    }

    #[test]
    fn a_chain_is_followed_to_where_it_holds() {
        let (zero, one, two) = (root(0, &[1], 1), root(1, &[2], 1), root(2, &[3], 1));
        let chain = [update(&one, &[1, 2]), update(&two, &[2, 3])].concat();
        assert_eq!(zero.follow(&chain), (two.clone(), None));
        // Whoever has gone a part of the way takes up from there, and nobody goes back.
        assert_eq!(one.follow(&chain), (two.clone(), None));
        assert_eq!(two.follow(&chain), (two.clone(), None));
        assert_eq!(zero.follow(b""), (zero.clone(), None));
        let forged = [update(&one, &[1, 2]), update(&two, &[1, 3])].concat();
        assert_eq!(zero.follow(&forged), (one.clone(), Some(TrustRefused::Outgoing(not_signed(0, 1)))));
        let cut = &chain[..chain.len() - 1];
        assert_eq!(zero.follow(cut), (one, Some(TrustRefused::Outgoing(EnvelopeError::Truncated))));
    }

    proptest! {
        #[test]
        fn following_never_panics_and_a_damaged_chain_leads_nowhere(at: usize, bit in 0u8..8) {
            let (zero, one) = (root(0, &[1], 1), root(1, &[2], 1));
            let mut chain = update(&one, &[1, 2]);
            let at = at % chain.len();
            chain[at] ^= 1 << bit;
            prop_assert_eq!(zero.follow(&chain).0, zero);
        }

        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = TrustUpdate::decode(&bytes);
            let _ = Envelope::split_first(&bytes);
        }
    }
}
