//! The packet of IPMI 1.5 (13.6, 22.17.1). IPMI 2.0 uses it too, for what is asked before there is a session.

use std::fmt;

use md5::{Digest, Md5};
use zeroize::Zeroizing;

use crate::{Class, Malformed, Rejected, bytes::Reader, credentials::PASSWORD_15, unwrap, wrap};

const NONE: u8 = 0;

/// How a session of IPMI 1.5 is authenticated. Nothing is ever encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Authentication15 {
    /// A keyed MD5 of every message.
    Md5 = 2,
    /// The password itself, readable in every packet.
    Password = 4,
}

/// A packet as it came. Nothing in it is proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packet15<'a> {
    pub(crate) authentication: u8,
    pub(crate) sequence: u32,
    pub(crate) session: u32,
    pub(crate) code: [u8; 16],
    pub(crate) message: &'a [u8],
}

/// What a session of IPMI 1.5 is authenticated with.
pub(crate) struct Keys15 {
    how: Authentication15,
    password: Zeroizing<[u8; PASSWORD_15]>,
}

impl fmt::Debug for Keys15 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys15").field("how", &self.how).finish_non_exhaustive()
    }
}

impl<'a> Packet15<'a> {
    pub(crate) fn parse(datagram: &'a [u8]) -> Result<Self, Malformed> {
        let (Class::Ipmi, body) = unwrap(datagram)? else { return Err(Malformed("it is not IPMI")) };
        let mut reader = Reader::new(body);
        let authentication = reader.u8()?;
        if ![NONE, Authentication15::Md5 as u8, Authentication15::Password as u8].contains(&authentication) {
            return Err(Malformed("it has another format or authentication"));
        }
        let (sequence, session) = (reader.u32()?, reader.u32()?);
        let code = if authentication == NONE { [0; 16] } else { reader.array()? };
        let length = reader.u8()?.into();
        let message = reader.take(length)?;
        // One byte of padding after datagrams of certain lengths.
        if reader.rest().len() > 1 {
            return Err(Malformed("bytes follow its message"));
        }
        Ok(Self { authentication, sequence, session, code, message })
    }

    /// A packet outside of any session.
    pub(crate) fn outside(message: &[u8]) -> Vec<u8> {
        Packet15 { authentication: NONE, sequence: 0, session: 0, code: [0; 16], message }.encode()
    }

    fn encode(&self) -> Vec<u8> {
        let mut body = vec![self.authentication];
        body.extend(self.sequence.to_le_bytes());
        body.extend(self.session.to_le_bytes());
        if self.authentication != NONE {
            body.extend(self.code);
        }
        body.push(u8::try_from(self.message.len()).expect("messages that are sent are short"));
        body.extend_from_slice(self.message);
        let mut datagram = wrap(Class::Ipmi, &body);
        // Some old network controllers lose datagrams of these lengths (13.6, "legacy pad").
        if matches!(datagram.len(), 56 | 84 | 112 | 128 | 156) {
            datagram.push(0);
        }
        datagram
    }
}

impl Keys15 {
    pub(crate) fn new(how: Authentication15, password: Zeroizing<[u8; PASSWORD_15]>) -> Self {
        Self { how, password }
    }

    pub(crate) fn seal(&self, session: u32, sequence: u32, message: &[u8]) -> Vec<u8> {
        let code = self.code(session, sequence, message);
        Packet15 { authentication: self.how as u8, sequence, session, code, message }.encode()
    }

    /// The message, after it has been shown to be authentic. One without authentication is not, even where the controller
    /// would leave it away.
    pub(crate) fn open<'a>(&self, packet: &Packet15<'a>) -> Result<&'a [u8], Rejected> {
        if packet.authentication != self.how as u8 {
            return Err(Rejected::Unprotected);
        }
        let expected = self.code(packet.session, packet.sequence, packet.message);
        let different = expected.iter().zip(packet.code).fold(0, |different, (a, b)| different | (a ^ b));
        if different == 0 { Ok(packet.message) } else { Err(Rejected::Forged) }
    }

    fn code(&self, session: u32, sequence: u32, message: &[u8]) -> [u8; 16] {
        match self.how {
            Authentication15::Password => *self.password,
            Authentication15::Md5 => Md5::new()
                .chain_update(*self.password)
                .chain_update(session.to_le_bytes())
                .chain_update(message)
                .chain_update(sequence.to_le_bytes())
                .chain_update(*self.password)
                .finalize()
                .into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn as_ipmitool_asks_for_capabilities() {
        let datagram = hex::decode("0600ff07000000000000000000092018c88100388e04b5").unwrap();
        let packet = Packet15::parse(&datagram).unwrap();
        assert_eq!((packet.authentication, packet.session, packet.sequence), (0, 0, 0));
        assert_eq!(Packet15::outside(packet.message), datagram);
    }

    proptest! {
        #[test]
        fn what_is_sealed_is_opened_and_nothing_else(
            message in prop::collection::vec(any::<u8>(), 0..200), session: u32, sequence: u32, password: [u8; 16],
            flip: prop::sample::Index,
        ) {
            for how in [Authentication15::Md5, Authentication15::Password] {
                let keys = Keys15::new(how, password.into());
                let mut sealed = keys.seal(session, sequence, &message);
                let packet = Packet15::parse(&sealed).unwrap();
                prop_assert_eq!((packet.session, packet.sequence), (session, sequence));
                prop_assert_eq!(keys.open(&packet), Ok(&message[..]));
                if how == Authentication15::Md5 {
                    let padded = usize::from(sealed.len() != 30 + message.len());
                    let at = 4 + flip.index(sealed.len() - padded - 4);
                    sealed[at] ^= 1;
                    let opened = Packet15::parse(&sealed).is_ok_and(|packet| keys.open(&packet).is_ok());
                    prop_assert!(!opened);
                }
            }
        }

        #[test]
        fn anything_may_come(bytes: Vec<u8>) {
            if let Ok(packet) = Packet15::parse(&wrap(Class::Ipmi, &bytes)) {
                let keys = Keys15::new(Authentication15::Md5, [1; 16].into());
                prop_assert!(keys.open(&packet).is_err());
            }
        }
    }
}
