//! Authenticating and encrypting packets of a session (13.28.4, 13.29).

use std::fmt;

use aes::{
    Aes128,
    cipher::{Array, BlockModeDecrypt, BlockModeEncrypt, KeyIvInit},
};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::{Class, Malformed, Packet, PayloadType, Suite, wrap};

/// Bytes of an AES block, of its key, and of the initialisation vector.
const BLOCK: usize = 16;
/// Names RMCP after the padding of a trailer.
const NEXT_HEADER: u8 = 7;

/// The keys of one session. They exist only after a handshake that has shown that both sides know the password.
pub struct Keys {
    suite: Suite,
    /// K1.
    integrity: Zeroizing<Vec<u8>>,
    /// The first bytes of K2.
    confidentiality: Zeroizing<[u8; BLOCK]>,
}

/// Why a packet is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Rejected {
    /// It is in the clear, or unauthenticated.
    #[error("it is not both authenticated and encrypted")]
    Unprotected,
    /// Whoever made it does not have the session's keys.
    #[error("its authentication code is wrong")]
    Forged,
    /// It is authentic, and makes no sense.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("suite", &self.suite).finish_non_exhaustive()
    }
}

impl Keys {
    /// The keys that follow from a handshake's session integrity key (13.32).
    pub(crate) fn derive(suite: Suite, session_key: &[u8]) -> Self {
        let integrity = suite.hash(session_key, &[&[1; 20]]);
        let second = suite.hash(session_key, &[&[2; 20]]);
        let confidentiality = second.first_chunk().expect("every hash is longer than a key of AES");
        Self { suite, integrity, confidentiality: Zeroizing::new(*confidentiality) }
    }

    /// A whole datagram with `payload` encrypted from the vector `iv`, which nobody may foresee.
    #[must_use]
    pub fn seal(
        &self,
        payload_type: PayloadType,
        session: u32,
        sequence: u32,
        payload: &[u8],
        iv: [u8; BLOCK],
    ) -> Vec<u8> {
        let mut packet = Packet::inside(payload_type, session, sequence, &self.encrypt(payload, iv));
        // The trailer's two bytes before the code belong to what is aligned.
        let padding = (packet.len() + 2).next_multiple_of(4) - packet.len() - 2;
        packet.extend(std::iter::repeat_n(0xff, padding));
        packet.extend([u8::try_from(padding).expect("at most 3"), NEXT_HEADER]);
        let code = self.suite.hash(&self.integrity, &[&packet]);
        packet.extend_from_slice(&code[..self.suite.check_bytes()]);
        wrap(Class::Ipmi, &packet)
    }

    /// The payload of a packet, after it has been shown to be authentic.
    ///
    /// # Errors
    /// When it is not, or cannot be decrypted.
    pub fn open(&self, packet: &Packet<'_>) -> Result<Vec<u8>, Rejected> {
        if !(packet.authenticated && packet.encrypted) {
            return Err(Rejected::Unprotected);
        }
        let code_at = packet.trailer.len().checked_sub(self.suite.check_bytes());
        let (padding, code) = packet.trailer.split_at(code_at.ok_or(Malformed("its trailer is short"))?);
        if !self.suite.matches(&self.integrity, &[packet.header_and_payload, padding], code) {
            return Err(Rejected::Forged);
        }
        match padding {
            [padding @ .., length, NEXT_HEADER] if padding.len() == usize::from(*length) => {
                Ok(self.decrypt(packet.payload)?)
            }
            _ => Err(Malformed("its trailer's padding is wrong").into()),
        }
    }

    fn encrypt(&self, payload: &[u8], iv: [u8; BLOCK]) -> Vec<u8> {
        let mut data = payload.to_vec();
        let padding = (data.len() + 1).next_multiple_of(BLOCK) - data.len() - 1;
        let padding = u8::try_from(padding).expect("less than a block");
        data.extend(1..=padding);
        data.push(padding);
        let mut cipher = cbc::Encryptor::<Aes128>::new(&(*self.confidentiality).into(), &iv.into());
        cipher.encrypt_blocks(Array::slice_as_chunks_mut(&mut data).0);
        [&iv[..], &data].concat()
    }

    fn decrypt(&self, payload: &[u8]) -> Result<Vec<u8>, Malformed> {
        let (iv, data) = payload.split_first_chunk::<BLOCK>().ok_or(Malformed("its payload is no whole block"))?;
        if data.is_empty() || !data.len().is_multiple_of(BLOCK) {
            return Err(Malformed("its payload is no whole block"));
        }
        let mut data = data.to_vec();
        let mut cipher = cbc::Decryptor::<Aes128>::new(&(*self.confidentiality).into(), &(*iv).into());
        cipher.decrypt_blocks(Array::slice_as_chunks_mut(&mut data).0);
        // What the padding's bytes are proves nothing that the code has not proven; some controllers send zeros.
        let padding = usize::from(data.pop().expect("there is a block"));
        let length = data.len().checked_sub(padding).filter(|_| padding < BLOCK);
        data.truncate(length.ok_or(Malformed("its payload's padding is wrong"))?);
        Ok(data)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(suite: Suite) -> Keys {
        Keys::derive(suite, &[7; 32][..suite.hash_bytes()])
    }

    #[test]
    fn keys_as_ipmitool_and_python_derive_them() {
        let check = |suite, session_key: &str, integrity: &str, confidentiality: &str| {
            let keys = Keys::derive(suite, &hex::decode(session_key).unwrap());
            assert_eq!(hex::encode(&*keys.integrity), integrity);
            assert_eq!(hex::encode(*keys.confidentiality), confidentiality);
        };
        check(
            Suite::Three,
            "abe52e527a1fb4b81c45e5e1af271e6edaa35410",
            "d2c38ea4031f24806f7ed7c004caf1df499445f5",
            "f1a6e0bb757713c0568c601ce1192065",
        );
        check(
            Suite::Seventeen,
            "a4fbba4c3a0662e2dfeebdb603c43006934994af02e31dc9af7314a9d5961d2e",
            "b93e368774ec3405ae4ebdaff29719aee352799f191d0f9403aab6f84d67c134",
            "f9f893fa9ee67f191d9e0002174d08d5",
        );
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_opened_and_nothing_else(
            seventeen: bool, payload in prop::collection::vec(any::<u8>(), 0..300), iv: [u8; 16], session: u32, sequence: u32,
            flip: prop::sample::Index, bit in 0..8,
        ) {
            let keys = keys(if seventeen { Suite::Seventeen } else { Suite::Three });
            let sealed = keys.seal(PayloadType::Ipmi, session, sequence, &payload, iv);
            let packet = Packet::parse(&sealed).unwrap();
            prop_assert_eq!((packet.session, packet.sequence), (session, sequence));
            prop_assert_eq!(keys.open(&packet), Ok(payload));
            let mut wrong = sealed.clone();
            // The first four bytes are RMCP's, which nobody authenticates.
            let at = 4 + flip.index(sealed.len() - 4);
            wrong[at] ^= 1u8 << bit;
            if let Ok(packet) = Packet::parse(&wrong) {
                prop_assert!(keys.open(&packet).is_err());
            }
            for end in 0..sealed.len() {
                if let Ok(packet) = Packet::parse(&sealed[..end]) {
                    prop_assert!(keys.open(&packet).is_err());
                }
            }
        }

        #[test]
        fn anything_may_come(bytes: Vec<u8>) {
            if let Ok(packet) = Packet::parse(&wrap(Class::Ipmi, &[&[6], &bytes[..]].concat())) {
                prop_assert!(keys(Suite::Three).open(&packet).is_err());
            }
        }

        #[test]
        fn authentic_nonsense_is_refused(payload: Vec<u8>) {
            let keys = keys(Suite::Three);
            let _ = keys.decrypt(&payload);
        }
    }
}
