//! SNMP messages (RFC 1157, 1901, 3416): requests are encoded here, answers decoded by `snmp2`. No I/O.

use snmp2::{AsnReader, MessageType, Pdu, asn1, snmp};

use super::object::ObjectId;

/// Most bytes of a text value that are kept.
const TEXT: usize = 255;

/// A version without users.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// RFC 1157.
    V1,
    /// RFC 1901.
    V2c,
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub(super) enum Request<'a> {
    /// For one object's value.
    Get(&'a ObjectId),
    /// For the object after this one, and its value.
    Next(&'a ObjectId),
    /// To give an object a value.
    Set(&'a ObjectId, i32),
}

/// What a device says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// The error status; zero for none.
    pub(super) status: u32,
    /// The object, and its value. Not all devices send it back with an error.
    pub(super) binding: Option<(ObjectId, Value)>,
}

/// What an object holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// A number, of any of the types of numbers.
    Number(i64),
    /// Text, printable and bounded.
    Text(String),
    /// A name.
    Object(ObjectId),
    /// There is no such object, or none after this one.
    Absent,
    /// Something else.
    Other,
}

/// Why a datagram is not the answer that is waited for.
pub(super) type Unusable = String;

/// A request without encryption.
pub(super) fn request(version: Version, community: &[u8], request: Request<'_>, id: i32) -> Vec<u8> {
    let content = [integer(version.number()), octets(community), pdu(request, id)].concat();
    tlv(asn1::TYPE_SEQUENCE, &content)
}

/// The answer to [`request`].
///
/// # Errors
/// When the datagram is not that.
pub(super) fn answer(datagram: &[u8], version: Version, community: &[u8], id: i32) -> Result<Answer, Unusable> {
    // Without users, a message of version 3 is an error in there.
    let pdu = Pdu::from_bytes(datagram).map_err(|error| error.to_string())?;
    if pdu.version().map(|version| version as i64) != Ok(version.number()) || pdu.community != community {
        return Err("it is of another version or community".into());
    }
    response(&pdu, id)
}

/// What a decoded message answers.
///
/// # Errors
/// When it is no answer to the request `id`.
pub(super) fn response(pdu: &Pdu<'_>, id: i32) -> Result<Answer, Unusable> {
    if pdu.message_type != MessageType::Response {
        return Err(format!("it is a {:?}", pdu.message_type));
    }
    if pdu.req_id != id {
        return Err("it answers another request".into());
    }
    Ok(Answer { status: pdu.error_status, binding: binding(pdu) })
}

/// The first binding of a message.
pub(super) fn binding(pdu: &Pdu<'_>) -> Option<(ObjectId, Value)> {
    let (name, value) = pdu.varbinds.clone().next()?;
    Some((ObjectId::decode(name.as_bytes())?, Value::from(value)))
}

/// A request as it stands in messages of all versions.
pub(super) fn pdu(request: Request<'_>, id: i32) -> Vec<u8> {
    let null = [asn1::TYPE_NULL, 0];
    let (tag, object, value) = match request {
        Request::Get(object) => (snmp::MSG_GET, object, null.to_vec()),
        Request::Next(object) => (snmp::MSG_GET_NEXT, object, null.to_vec()),
        Request::Set(object, value) => (snmp::MSG_SET, object, integer(value.into())),
    };
    let name = tlv(asn1::TYPE_OBJECTIDENTIFIER, &object.encode());
    let binding = tlv(asn1::TYPE_SEQUENCE, &[name, value].concat());
    pdu_of(tag, id, &binding)
}

/// A request with these bindings.
pub(super) fn pdu_of(tag: u8, id: i32, bindings: &[u8]) -> Vec<u8> {
    let content = [integer(id.into()), integer(0), integer(0), tlv(asn1::TYPE_SEQUENCE, bindings)].concat();
    tlv(tag, &content)
}

/// Type, length and content (X.690, section 8.1).
pub(super) fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    match u8::try_from(content.len()) {
        Ok(length @ ..0x80) => bytes.push(length),
        _ => {
            let length = content.len().to_be_bytes();
            let length = &length[length.iter().take_while(|byte| **byte == 0).count()..];
            bytes.push(0x80 | length.len() as u8);
            bytes.extend(length);
        }
    }
    bytes.extend(content);
    bytes
}

/// A whole number.
pub(super) fn integer(number: i64) -> Vec<u8> {
    let bytes = number.to_be_bytes();
    // A first byte goes when the next one says the same of the sign.
    let spare = bytes.windows(2).take_while(|pair| matches!(pair, [0, 0..=0x7f] | [0xff, 0x80..=0xff])).count();
    tlv(asn1::TYPE_INTEGER, &bytes[spare..])
}

/// Bytes.
pub(super) fn octets(bytes: &[u8]) -> Vec<u8> {
    tlv(asn1::TYPE_OCTETSTRING, bytes)
}

/// The only value of `tag` that `bytes` are.
pub(super) fn only(bytes: &[u8], tag: u8) -> Result<&[u8], Unusable> {
    let mut reader = AsnReader::from_bytes(bytes);
    match reader.read_raw(tag) {
        Ok(content) if reader.bytes_left() == 0 => Ok(content),
        Ok(_) => Err("something follows it".into()),
        Err(error) => Err(error.to_string()),
    }
}

impl Version {
    fn number(self) -> i64 {
        match self {
            Self::V1 => snmp2::Version::V1 as i64,
            Self::V2c => snmp2::Version::V2C as i64,
        }
    }
}

impl From<snmp2::Value<'_>> for Value {
    fn from(value: snmp2::Value<'_>) -> Self {
        match value {
            snmp2::Value::Integer(number) => Self::Number(number),
            snmp2::Value::Unsigned32(number) | snmp2::Value::Counter32(number) | snmp2::Value::Timeticks(number) => {
                Self::Number(number.into())
            }
            snmp2::Value::Counter64(number) => i64::try_from(number).map_or(Self::Other, Self::Number),
            snmp2::Value::OctetString(bytes) => Self::Text(printable(bytes)),
            snmp2::Value::ObjectIdentifier(name) => ObjectId::decode(name.as_bytes()).map_or(Self::Other, Self::Object),
            snmp2::Value::NoSuchObject | snmp2::Value::NoSuchInstance | snmp2::Value::EndOfMibView => Self::Absent,
            _ => Self::Other,
        }
    }
}

/// Text of a device as it may be shown: without control characters, trimmed, bounded.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(TEXT)]);
    let text: String = text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    text.trim().to_owned()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn object(text: &str) -> ObjectId {
        text.parse().unwrap()
    }

    /// An answer as a device sends it.
    pub(in super::super) fn reply(
        version: Version,
        community: &[u8],
        id: i32,
        status: i64,
        bindings: &[u8],
    ) -> Vec<u8> {
        let pdu = [integer(id.into()), integer(status), integer(0), tlv(asn1::TYPE_SEQUENCE, bindings)].concat();
        let content = [integer(version.number()), octets(community), tlv(snmp::MSG_RESPONSE, &pdu)].concat();
        tlv(asn1::TYPE_SEQUENCE, &content)
    }

    pub(in super::super) fn bind(name: &str, value: Vec<u8>) -> Vec<u8> {
        tlv(asn1::TYPE_SEQUENCE, &[tlv(asn1::TYPE_OBJECTIDENTIFIER, &object(name).encode()), value].concat())
    }

    #[test]
    fn numbers_are_as_short_as_they_can_be() {
        let check = |number: i64, expected: &[u8]| assert_eq!(integer(number)[2..], *expected, "{number}");
        check(0, &[0]);
        check(127, &[0x7f]);
        check(128, &[0, 0x80]);
        check(-1, &[0xff]);
        check(-129, &[0xff, 0x7f]);
        check(65_507, &[0, 0xff, 0xe3]);
        check(i64::MIN, &[0x80, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(tlv(4, &[7; 200])[..3], [4, 0x81, 200]);
        assert_eq!(tlv(4, &[7; 300])[..4], [4, 0x82, 1, 44]);
    }

    #[test]
    fn a_request_is_what_other_tools_send() {
        // As in RFC 1157's example, and as net-snmp's `snmpget -v1 -c public … 1.3.6.1.2.1.1.1.0` sends it.
        let found = request(Version::V1, b"public", Request::Get(&object("1.3.6.1.2.1.1.1.0")), 0x2a);
        let expected = b"\x30\x26\x02\x01\x00\x04\x06public\xa0\x19\x02\x01\x2a\x02\x01\x00\x02\x01\x00\x30\x0e\
            \x30\x0c\x06\x08\x2b\x06\x01\x02\x01\x01\x01\x00\x05\x00";
        assert_eq!(found, expected);
    }

    #[test]
    fn answers() {
        let check = |bindings: &[u8], expected: Option<(&str, Value)>| {
            let datagram = reply(Version::V2c, b"c", 5, 0, bindings);
            let found = answer(&datagram, Version::V2c, b"c", 5).unwrap();
            let binding = expected.map(|(name, value)| (object(name), value));
            assert_eq!(found, Answer { status: 0, binding });
        };
        let bound = |value: Vec<u8>| bind("1.3.6.1", value);
        check(&bound(integer(-7)), Some(("1.3.6.1", Value::Number(-7))));
        check(
            &bound(tlv(snmp::TYPE_GAUGE32, &[0, 0xff, 0xff, 0xff, 0xff])),
            Some(("1.3.6.1", Value::Number(0xffff_ffff))),
        );
        check(&bound(octets(b"n1 \x1b[2J\xff\0")), Some(("1.3.6.1", Value::Text("n1  [2J\u{fffd}".into()))));
        check(&bound(octets(&[b'x'; 4000])), Some(("1.3.6.1", Value::Text("x".repeat(TEXT)))));
        check(&bound(tlv(snmp::SNMP_NOSUCHINSTANCE, &[])), Some(("1.3.6.1", Value::Absent)));
        check(&bound(tlv(snmp::TYPE_OPAQUE, &[1])), Some(("1.3.6.1", Value::Other)));
        check(b"", None);
        check(&tlv(asn1::TYPE_SEQUENCE, &[]), None);
    }

    #[test]
    fn what_is_not_the_answer_is_not_used() {
        let good = reply(Version::V2c, b"c", 5, 0, &bind("1.3.6.1", integer(1)));
        assert!(answer(&good, Version::V2c, b"c", 5).is_ok());
        assert!(answer(&good, Version::V1, b"c", 5).is_err());
        assert!(answer(&good, Version::V2c, b"d", 5).is_err());
        assert!(answer(&good, Version::V2c, b"c", 6).is_err());
        let own = request(Version::V2c, b"c", Request::Get(&object("1.3")), 5);
        assert!(answer(&own, Version::V2c, b"c", 5).is_err());
        for length in 0..good.len() {
            assert!(answer(&good[..length], Version::V2c, b"c", 5).is_err(), "{length}");
        }
    }

    /// Bytes without order, the same in every run.
    pub(in super::super) struct Noise(pub(in super::super) u64);

    impl Noise {
        pub(in super::super) fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }

        /// Changes some bytes, lengths among them, or cuts the end off.
        pub(in super::super) fn spoil(&mut self, good: &[u8]) -> Vec<u8> {
            let mut bytes = good.to_vec();
            for _ in 0..=self.next() % 4 {
                let at = self.next() as usize % bytes.len();
                bytes[at] = match self.next() % 4 {
                    0 => 0xff,
                    1 => 0x84,
                    2 => 0,
                    _ => self.next() as u8,
                };
            }
            if self.next().is_multiple_of(8) {
                bytes.truncate(self.next() as usize % bytes.len() + 1);
            }
            bytes
        }
    }

    #[test]
    fn spoilt_messages_do_no_harm() {
        let mut noise = Noise(42);
        let bindings = [bind("1.3.6.1.4.1.318.1", integer(1)), bind("1.3.6.1.4.1.318.2", octets(b"name"))].concat();
        let good = reply(Version::V2c, b"public", 5, 0, &bindings);
        for _ in 0..200_000 {
            let _ = answer(&noise.spoil(&good), Version::V2c, b"public", 5);
        }
        for _ in 0..50_000 {
            let bytes: Vec<u8> = (0..noise.next() % 80).map(|_| noise.next() as u8).collect();
            let _ = answer(&bytes, Version::V2c, b"public", 5);
        }
    }
}
