//! The RMCP+ packet around a payload, before it is believed (13.6).

use crate::{Class, Malformed, bytes::Reader, unwrap, wrap};

/// Marks the format of IPMI 2.0 where IPMI 1.5 has its authentication type.
pub(crate) const RMCP_PLUS: u8 = 6;

const ENCRYPTED: u8 = 0x80;
const AUTHENTICATED: u8 = 0x40;

/// What a packet carries (13.27.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum PayloadType {
    /// A [`crate::Message`].
    Ipmi = 0,
    /// Serial over LAN.
    Sol = 1,
    /// Open Session Request.
    OpenRequest = 0x10,
    /// Open Session Response.
    OpenResponse = 0x11,
    /// RAKP message 1.
    Rakp1 = 0x12,
    /// RAKP message 2.
    Rakp2 = 0x13,
    /// RAKP message 3.
    Rakp3 = 0x14,
    /// RAKP message 4.
    Rakp4 = 0x15,
}

impl PayloadType {
    fn from_byte(byte: u8) -> Option<Self> {
        use PayloadType::{Ipmi, OpenRequest, OpenResponse, Rakp1, Rakp2, Rakp3, Rakp4, Sol};
        [Ipmi, Sol, OpenRequest, OpenResponse, Rakp1, Rakp2, Rakp3, Rakp4]
            .into_iter()
            .find(|known| *known as u8 == byte)
    }
}

/// A packet as it came. Nothing in it is proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// What it carries.
    pub payload_type: PayloadType,
    /// Whether the payload is encrypted.
    pub encrypted: bool,
    /// Whether a trailer authenticates it.
    pub authenticated: bool,
    /// The receiver's session number.
    pub session: u32,
    /// The packet's number in the session.
    pub sequence: u32,
    /// The payload, as it is on the wire.
    pub payload: &'a [u8],
    /// What is authenticated: everything from the session header on, up to the trailer.
    pub(crate) header_and_payload: &'a [u8],
    /// What follows the payload.
    pub(crate) trailer: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Reads a datagram.
    ///
    /// # Errors
    /// When it is no RMCP+ packet, carries something unknown, or its lengths do not fit.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, Malformed> {
        let (Class::Ipmi, body) = unwrap(datagram)? else { return Err(Malformed("it is not IPMI")) };
        let mut reader = Reader::new(body);
        if reader.u8()? != RMCP_PLUS {
            return Err(Malformed("it is not RMCP+"));
        }
        let kind = reader.u8()?;
        let payload_type = PayloadType::from_byte(kind & 0x3f).ok_or(Malformed("its payload is of an unknown type"))?;
        let (session, sequence) = (reader.u32()?, reader.u32()?);
        let length = usize::from(reader.u16()?);
        let payload = reader.take(length)?;
        let trailer = reader.rest();
        let authenticated = kind & AUTHENTICATED != 0;
        // Some controllers pad datagrams of certain lengths, which IPMI 1.5 asks for; nothing else may follow.
        if !authenticated && trailer.len() > 1 {
            return Err(Malformed("bytes follow its payload"));
        }
        Ok(Self {
            payload_type,
            encrypted: kind & ENCRYPTED != 0,
            authenticated,
            session,
            sequence,
            payload,
            header_and_payload: &body[..body.len() - trailer.len()],
            trailer,
        })
    }

    /// A packet outside of any session: those that open one.
    #[must_use]
    pub fn outside(payload_type: PayloadType, payload: &[u8]) -> Vec<u8> {
        wrap(Class::Ipmi, &header(payload_type as u8, 0, 0, payload))
    }

    /// The header and `payload`, which is encrypted, of a packet that will be authenticated.
    pub(crate) fn inside(payload_type: PayloadType, session: u32, sequence: u32, payload: &[u8]) -> Vec<u8> {
        header(payload_type as u8 | ENCRYPTED | AUTHENTICATED, session, sequence, payload)
    }
}

fn header(kind: u8, session: u32, sequence: u32, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("payloads that are sent are short");
    let mut bytes = vec![RMCP_PLUS, kind];
    bytes.extend(session.to_le_bytes());
    bytes.extend(sequence.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}
