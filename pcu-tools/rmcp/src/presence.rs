//! "Is there anything?" and "yes" of the Alert Standard Format (13.2.3, 13.2.4).

use crate::{Class, Malformed, bytes::Reader, unwrap, wrap};

/// The enterprise number of ASF, before every message.
const ASF: [u8; 4] = 4542u32.to_be_bytes();
const PING: u8 = 0x80;
const PONG: u8 = 0x40;

/// What a controller says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pong {
    /// What the ping was marked with.
    pub tag: u8,
    /// The maker's enterprise number as IANA knows it; 4542 where it has nothing to say.
    pub enterprise: u32,
    /// Whether it speaks IPMI.
    pub ipmi: bool,
}

/// A ping, marked with `tag`.
#[must_use]
pub fn ping(tag: u8) -> Vec<u8> {
    let [a, b, c, d] = ASF;
    wrap(Class::Asf, &[a, b, c, d, PING, tag, 0, 0])
}

impl Pong {
    /// Reads a datagram.
    ///
    /// # Errors
    /// When it is no pong.
    pub fn parse(datagram: &[u8]) -> Result<Self, Malformed> {
        let (Class::Asf, body) = unwrap(datagram)? else { return Err(Malformed("it is not ASF")) };
        let mut reader = Reader::new(body);
        if reader.array()? != ASF {
            return Err(Malformed("it has another enterprise number than ASF"));
        }
        let [kind, tag, _, length] = reader.array()?;
        if kind != PONG {
            return Err(Malformed("it is no pong"));
        }
        if length < 16 {
            return Err(Malformed("it is a pong of less than 16 bytes"));
        }
        let mut data = Reader::new(reader.take(16)?);
        let enterprise = data.array().map(u32::from_be_bytes)?;
        let [_, _, _, _, entities] = data.array()?;
        Ok(Self { tag, enterprise, ipmi: entities & 0x80 != 0 })
    }

    /// As a controller sends it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut body = ASF.to_vec();
        body.extend([PONG, self.tag, 0, 16]);
        body.extend(self.enterprise.to_be_bytes());
        body.extend([0, 0, 0, 0, if self.ipmi { 0x81 } else { 1 }, 0, 0, 0, 0, 0, 0, 0]);
        wrap(Class::Asf, &body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_in_the_specification() {
        assert_eq!(hex::encode(ping(9)), "0600ff06000011be80090000");
        let pong = hex::decode("0600ff06000011be4009001000000a3b00000000810000000000 0000".replace(' ', "")).unwrap();
        assert_eq!(Pong::parse(&pong), Ok(Pong { tag: 9, enterprise: 2619, ipmi: true }));
        assert_eq!(Pong::parse(&pong).unwrap().encode(), pong);
        for end in 0..pong.len() {
            assert!(Pong::parse(&pong[..end]).is_err(), "{end}");
        }
        assert!(Pong::parse(&ping(9)).is_err());
    }
}
