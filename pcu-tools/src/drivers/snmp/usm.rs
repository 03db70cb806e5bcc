//! SNMP version 3 with users (RFC 3412, 3414): finding the device's engine, sealing requests, opening answers. No I/O.
//!
//! Keys, signatures and ciphers are `snmp2`'s. Its session is not used: it takes whatever datagram comes first for the answer,
//! cannot be told to wait less, and repeats nothing. What comes from the network is looked at here before it gets there:
//! `snmp2` calculates with the engine's boots and time without looking for overflow.

use std::time::Instant;

use serde::Deserialize;
use snmp2::{
    AsnReader, Error, MessageType, Pdu, asn1, snmp,
    v3::{self, AuthErrorKind, Security},
};

use super::{
    message::{self, Answer, Request, Unusable, integer, octets, only, tlv},
    object::ObjectId,
};
use crate::Secret;

/// Longest engine identifier that is believed; RFC 3411 allows 32 bytes.
const ENGINE: usize = 64;
/// Largest message that we take, in bytes: the largest datagram.
const LARGEST: i64 = 65_507;
/// RFC 3414's model of users.
const MODEL: i64 = 3;
/// The counters that a refusal names (RFC 3414, section 5): `usmStats`.
const COUNTERS: &str = "1.3.6.1.6.3.15.1.1";

/// How messages are signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Auth {
    /// HMAC-MD5-96.
    Md5,
    /// HMAC-SHA-96.
    Sha1,
    /// HMAC-128-SHA-224 (RFC 7860), and so on.
    Sha224,
    /// HMAC-192-SHA-256.
    Sha256,
    /// HMAC-256-SHA-384.
    Sha384,
    /// HMAC-384-SHA-512.
    Sha512,
}

/// How messages are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Privacy {
    /// 56 bits.
    Des,
    /// RFC 3826.
    Aes128,
    /// By drafts only, as the next.
    Aes192,
    /// With 256 bits.
    Aes256,
}

/// How a key is made longer when the signature's hash is too short for the cipher; two drafts differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Extension {
    /// draft-reeder-snmpv3-usm-3desede: Cisco, and most devices.
    #[default]
    Reeder,
    /// draft-blumenthal-aes-usm: net-snmp.
    Blumenthal,
}

/// Who we are.
#[derive(Debug)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) auth: Auth,
    pub(super) password: Secret,
    pub(super) privacy: Option<(Privacy, Secret)>,
    pub(super) extension: Extension,
    /// Which of a device's contexts (RFC 3411); most have only the one without a name.
    pub(super) context: String,
}

/// The device's engine, and the keys that it and the user share.
pub(super) struct Engine {
    id: Vec<u8>,
    boots: i32,
    time: i32,
    /// When it had this time.
    at: Instant,
    security: Security,
}

/// What a device says.
pub(super) enum Heard {
    /// The answer.
    Answer(Answer),
    /// Which engine it has, or what its time is: ask again.
    Learnt,
    /// Why it does not answer.
    Refusal(Refusal),
}

/// Why a device does not answer: the counter that it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The user may not talk with this much, or this little, protection.
    Level,
    /// Our idea of its time is wrong.
    Time,
    /// No such user.
    User,
    /// We talk to another engine.
    Engine,
    /// The password is wrong, or the way of signing.
    Signature,
    /// The privacy password is wrong, or the cipher.
    Decryption,
    /// Another one.
    Other(ObjectId),
}

/// What stands in a message before its content.
struct Header<'a> {
    authenticated: bool,
    engine: &'a [u8],
    boots: i32,
    time: i32,
    /// The content, when it is not encrypted.
    plain: Option<&'a [u8]>,
}

/// Asks a device for its engine (RFC 3414, section 4).
pub(super) fn discovery(id: i32) -> Vec<u8> {
    wrap(id, &[], 0, 0, &[], &message::pdu_of(snmp::MSG_GET, id, &[]))
}

/// What a device answers to [`discovery`].
///
/// # Errors
/// When the datagram is not that.
pub(super) fn discovered(datagram: &[u8], user: &User, id: i32) -> Result<Engine, Unusable> {
    let header = header(datagram, id)?;
    if header.engine.is_empty() || header.plain.and_then(refusal).is_none() {
        return Err("it names no engine".into());
    }
    let security = security(user).with_engine_id(header.engine).map_err(|error| error.to_string())?;
    let Header { boots, time, .. } = header;
    Ok(Engine { id: header.engine.into(), boots, time, at: Instant::now(), security })
}

impl Engine {
    /// A request, signed, and encrypted where the user has a cipher.
    ///
    /// # Errors
    /// When a key is not as it should be.
    pub(super) fn seal(&self, user: &User, request: Request<'_>, id: i32) -> Result<Vec<u8>, Error> {
        let (boots, time) = (self.boots, self.now());
        // Only a decoded message can be given to `snmp2` for sealing.
        let plain = wrap(id, &self.id, boots, time, user.name.as_bytes(), &message::pdu(request, id));
        let mut open = Security::new(user.name.as_bytes(), &[])
            .with_auth(v3::Auth::NoAuthNoPriv)
            .with_engine_id(&self.id)?
            .with_engine_boots_and_time(boots.into(), time.into());
        let pdu = Pdu::from_bytes_with_security(&plain, Some(&mut open))?;
        pdu.to_bytes_with_security(Some(&self.at(boots, time)))
    }

    /// What a datagram says after [`Engine::seal`]. Nothing of one that is not signed as it should be is believed, but that it is
    /// a refusal.
    ///
    /// # Errors
    /// When it does not answer the request `id`.
    pub(super) fn open(&mut self, datagram: &[u8], id: i32) -> Result<Heard, Unusable> {
        let header = header(datagram, id)?;
        let refused = || header.plain.and_then(refusal);
        if !header.authenticated {
            return refused().map(Heard::Refusal).ok_or_else(|| "it is not signed".into());
        }
        let mut security = self.at(self.boots, self.now());
        // `snmp2` overwrites the signature in what it is given.
        let copy = datagram.to_vec();
        let heard = match Pdu::from_bytes_with_security(&copy, Some(&mut security)) {
            Ok(pdu) if pdu.message_type == MessageType::Report => {
                Heard::Refusal(named(message::binding(&pdu).map(|(name, _)| name)).ok_or("it names no counter")?)
            }
            Ok(pdu) => Heard::Answer(message::response(&pdu, id)?),
            // These two come after the signature was found to be right.
            Err(Error::AuthUpdated | Error::AuthFailure(AuthErrorKind::EngineTimeMismatch)) => Heard::Learnt,
            Err(error @ Error::AuthFailure(AuthErrorKind::ReplyNotEncrypted)) => match refused() {
                Some(Refusal::Time) => Heard::Learnt,
                Some(refusal) => return Ok(Heard::Refusal(refusal)),
                None => return Err(error.to_string()),
            },
            Err(error) => return Err(error.to_string()),
        };
        (self.boots, self.time, self.at) = (header.boots, header.time, Instant::now());
        Ok(heard)
    }

    /// Believes a device's own time although it is not signed; some do not sign a refusal.
    pub(super) fn believe_time(&mut self, datagram: &[u8], id: i32) {
        if let Ok(header) = header(datagram, id) {
            (self.boots, self.time, self.at) = (header.boots, header.time, Instant::now());
        }
    }

    fn now(&self) -> i32 {
        let passed = i32::try_from(self.at.elapsed().as_secs()).unwrap_or(i32::MAX);
        self.time.saturating_add(passed)
    }

    fn at(&self, boots: i32, time: i32) -> Security {
        self.security.clone().with_engine_boots_and_time(boots.into(), time.into())
    }
}

fn security(user: &User) -> Security {
    let auth = match &user.privacy {
        None => v3::Auth::AuthNoPriv,
        Some((privacy, password)) => v3::Auth::AuthPriv {
            cipher: match privacy {
                Privacy::Des => v3::Cipher::Des,
                Privacy::Aes128 => v3::Cipher::Aes128,
                Privacy::Aes192 => v3::Cipher::Aes192,
                Privacy::Aes256 => v3::Cipher::Aes256,
            },
            privacy_password: password.reveal().into(),
        },
    };
    let protocol = match user.auth {
        Auth::Md5 => v3::AuthProtocol::Md5,
        Auth::Sha1 => v3::AuthProtocol::Sha1,
        Auth::Sha224 => v3::AuthProtocol::Sha224,
        Auth::Sha256 => v3::AuthProtocol::Sha256,
        Auth::Sha384 => v3::AuthProtocol::Sha384,
        Auth::Sha512 => v3::AuthProtocol::Sha512,
    };
    let extension = match user.extension {
        Extension::Reeder => v3::KeyExtension::Reeder,
        Extension::Blumenthal => v3::KeyExtension::Blumenthal,
    };
    Security::new(user.name.as_bytes(), user.password.reveal().as_bytes())
        .with_auth(auth)
        .with_auth_protocol(protocol)
        .with_key_extension_method(extension)
        .with_context_name(&user.context)
}

/// A message that is neither signed nor encrypted (RFC 3412, section 6; RFC 3414, section 2.4).
fn wrap(id: i32, engine: &[u8], boots: i32, time: i32, user: &[u8], pdu: &[u8]) -> Vec<u8> {
    let sequence = |parts: &[Vec<u8>]| tlv(asn1::TYPE_SEQUENCE, &parts.concat());
    let flags = octets(&[snmp::V3_MSG_FLAGS_REPORTABLE]);
    let users = [octets(engine), integer(boots.into()), integer(time.into()), octets(user), octets(&[]), octets(&[])];
    sequence(&[
        integer(snmp2::Version::V3 as i64),
        sequence(&[integer(id.into()), integer(LARGEST), flags, integer(MODEL)]),
        octets(&sequence(&users)),
        sequence(&[octets(engine), octets(&[]), pdu.to_vec()]),
    ])
}

/// Takes a message apart as far as it can be without keys.
fn header(datagram: &[u8], id: i32) -> Result<Header<'_>, Unusable> {
    let said = |error: Error| error.to_string();
    let mut reader = AsnReader::from_bytes(only(datagram, asn1::TYPE_SEQUENCE)?);
    if reader.read_asn_integer().map_err(said)? != snmp2::Version::V3 as i64 {
        return Err("it is of another version".into());
    }
    let mut global = AsnReader::from_bytes(reader.read_raw(asn1::TYPE_SEQUENCE).map_err(said)?);
    if global.read_asn_integer().map_err(said)? != i64::from(id) {
        return Err("it answers another request".into());
    }
    let _largest = global.read_asn_integer().map_err(said)?;
    let &[flags] = global.read_asn_octetstring().map_err(said)? else {
        return Err("its flags are not one byte".into());
    };
    let parameters = reader.read_asn_octetstring().map_err(said)?;
    let mut users = AsnReader::from_bytes(only(parameters, asn1::TYPE_SEQUENCE)?);
    let engine = users.read_asn_octetstring().map_err(said)?;
    if engine.len() > ENGINE {
        return Err("its engine's identifier is too long".into());
    }
    let mut count = || {
        let number = users.read_asn_integer().map_err(said)?;
        i32::try_from(number).ok().filter(|number| *number >= 0).ok_or_else(|| "its time is impossible".to_owned())
    };
    let (boots, time) = (count()?, count()?);
    let plain = match flags & snmp::V3_MSG_FLAGS_PRIVACY {
        0 => Some(reader.read_raw(asn1::TYPE_SEQUENCE).map_err(said)?),
        _ => None,
    };
    Ok(Header { authenticated: flags & snmp::V3_MSG_FLAGS_AUTH != 0, engine, boots, time, plain })
}

/// The refusal that an unencrypted content is.
fn refusal(plain: &[u8]) -> Option<Refusal> {
    let mut scoped = AsnReader::from_bytes(plain);
    let _engine = scoped.read_asn_octetstring().ok()?;
    let _context = scoped.read_asn_octetstring().ok()?;
    let mut report = AsnReader::from_bytes(scoped.read_raw(snmp::MSG_REPORT).ok()?);
    for _ in ["id", "status", "index"] {
        report.read_asn_integer().ok()?;
    }
    let mut bindings = AsnReader::from_bytes(report.read_raw(asn1::TYPE_SEQUENCE).ok()?);
    let mut binding = AsnReader::from_bytes(bindings.read_raw(asn1::TYPE_SEQUENCE).ok()?);
    let name = binding.read_asn_objectidentifier().ok()?;
    named(ObjectId::decode(name.as_bytes()))
}

fn named(counter: Option<ObjectId>) -> Option<Refusal> {
    let counter = counter?;
    let counters: ObjectId = COUNTERS.parse().expect("it is an identifier");
    Some(match counter.below(&counters) {
        Some([1, ..]) => Refusal::Level,
        Some([2, ..]) => Refusal::Time,
        Some([3, ..]) => Refusal::User,
        Some([4, ..]) => Refusal::Engine,
        Some([5, ..]) => Refusal::Signature,
        Some([6, ..]) => Refusal::Decryption,
        _ => Refusal::Other(counter),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::snmp::message::{
        Value,
        tests::{Noise, bind},
    };

    const ID: &[u8] = b"\x80\x00\x1f\x88\x04test";

    fn user(auth: Auth, privacy: Option<Privacy>) -> User {
        let secret = |text: &str| Secret::new(text.into());
        let privacy = privacy.map(|privacy| (privacy, secret("privacy word")));
        let (name, context) = ("pcu".into(), String::new());
        User { name, auth, password: secret("maplesyrup"), privacy, extension: Extension::Reeder, context }
    }

    /// A report in the clear, with the counter of this number.
    fn report(id: i32, engine: &[u8], boots: i64, time: i64, counter: u32) -> Vec<u8> {
        let binding = bind(&format!("{COUNTERS}.{counter}.0"), integer(1));
        let pdu = [integer(0), integer(0), integer(0), tlv(asn1::TYPE_SEQUENCE, &binding)].concat();
        let pdu = tlv(snmp::MSG_REPORT, &pdu);
        let sequence = |parts: &[Vec<u8>]| tlv(asn1::TYPE_SEQUENCE, &parts.concat());
        let users = [octets(engine), integer(boots), integer(time), octets(b""), octets(b""), octets(b"")];
        sequence(&[
            integer(3),
            sequence(&[integer(id.into()), integer(LARGEST), octets(&[0]), integer(MODEL)]),
            octets(&sequence(&users)),
            sequence(&[octets(engine), octets(b""), pdu]),
        ])
    }

    /// What the device of this engine would answer, with the same keys.
    fn reply(engine: &Engine, id: i32, value: i64) -> Vec<u8> {
        let binding = bind("1.3.6.1", integer(value));
        let pdu = [integer(id.into()), integer(0), integer(0), tlv(asn1::TYPE_SEQUENCE, &binding)].concat();
        let plain = wrap(id, &engine.id, engine.boots, engine.time, b"pcu", &tlv(snmp::MSG_RESPONSE, &pdu));
        let mut open = Security::new(b"pcu", b"")
            .with_auth(v3::Auth::NoAuthNoPriv)
            .with_engine_id(&engine.id)
            .unwrap()
            .with_engine_boots_and_time(engine.boots.into(), engine.time.into());
        let pdu = Pdu::from_bytes_with_security(&plain, Some(&mut open)).unwrap();
        pdu.to_bytes_with_security(Some(&engine.at(engine.boots, engine.time))).unwrap()
    }

    fn engine(user: &User) -> Engine {
        discovered(&report(1, ID, 3, 1000, 4), user, 1).unwrap()
    }

    #[test]
    fn answers_are_opened_and_strange_ones_are_not() {
        for (auth, privacy) in [
            (Auth::Md5, Some(Privacy::Des)),
            (Auth::Sha1, Some(Privacy::Aes256)),
            (Auth::Sha256, Some(Privacy::Aes128)),
            (Auth::Sha512, Some(Privacy::Aes192)),
            (Auth::Sha224, None),
        ] {
            let user = user(auth, privacy);
            let mut engine = engine(&user);
            let sealed = engine.seal(&user, Request::Get(&"1.3.6.1".parse().unwrap()), 7).unwrap();
            assert!(engine.open(&sealed, 7).is_err(), "a request is no answer");
            let good = reply(&engine, 7, 5);
            let Ok(Heard::Answer(answer)) = engine.open(&good, 7) else { panic!("{auth:?} {privacy:?}") };
            assert_eq!(answer.binding, Some(("1.3.6.1".parse().unwrap(), Value::Number(5))));
            assert!(engine.open(&good, 8).is_err(), "another request's");
            let mut forged = good.clone();
            *forged.last_mut().unwrap() ^= 1;
            assert!(engine.open(&forged, 7).is_err(), "another content");
            assert!(engine.open(&[good.as_slice(), b"x"].concat(), 7).is_err(), "something behind it");
        }
    }

    #[test]
    fn a_device_that_started_again_is_believed_when_it_signs() {
        let user = user(Auth::Sha256, Some(Privacy::Aes128));
        let mut engine = engine(&user);
        let mut later = discovered(&report(1, ID, 4, 20, 4), &user, 1).unwrap();
        assert!(matches!(engine.open(&reply(&later, 7, 5), 7), Ok(Heard::Learnt)));
        assert_eq!((engine.boots, engine.now()), (4, 20));
        later.time = 2000;
        assert!(matches!(engine.open(&reply(&later, 7, 5), 7), Ok(Heard::Learnt)));
        assert!(matches!(engine.open(&reply(&later, 7, 5), 7), Ok(Heard::Answer(_))));
        later.boots = 3;
        assert!(engine.open(&reply(&later, 7, 5), 7).is_err(), "an old one, sent again");
    }

    #[test]
    fn refusals() {
        let user = user(Auth::Sha256, None);
        let mut engine = engine(&user);
        for (counter, expected) in [
            (1, Refusal::Level),
            (2, Refusal::Time),
            (3, Refusal::User),
            (4, Refusal::Engine),
            (5, Refusal::Signature),
            (6, Refusal::Decryption),
        ] {
            let Ok(Heard::Refusal(found)) = engine.open(&report(7, ID, 3, 1000, counter), 7) else {
                panic!("{counter}")
            };
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn impossible_engines_are_not_taken() {
        let user = user(Auth::Sha256, None);
        let check =
            |engine: &[u8], boots: i64, time: i64| discovered(&report(1, engine, boots, time, 4), &user, 1).is_ok();
        assert!(check(ID, 0, 0));
        assert!(check(ID, i32::MAX.into(), i32::MAX.into()));
        assert!(!check(b"", 1, 1));
        assert!(!check(&[1; ENGINE + 1], 1, 1));
        for (boots, time) in [(-1, 0), (0, -1), (i64::MAX, 0), (0, i64::MAX), (i64::MIN, i64::MIN), (1 << 31, 0)] {
            assert!(!check(ID, boots, time), "{boots} {time}");
        }
    }

    #[test]
    fn spoilt_messages_do_no_harm() {
        let mut noise = Noise(7);
        let user = user(Auth::Md5, Some(Privacy::Des));
        let mut engine = engine(&user);
        let (good, refusal) = (reply(&engine, 7, 5), report(7, ID, 3, 1000, 5));
        for _ in 0..20_000 {
            let spoilt = noise.spoil(&good);
            if let Ok(Heard::Answer(answer)) = engine.open(&spoilt, 7) {
                assert_eq!(answer.binding.unwrap().1, Value::Number(5));
            }
            let _ = engine.open(&noise.spoil(&refusal), 7);
            let _ = header(&noise.spoil(&refusal), 7);
        }
    }
}
