//! Opening a session: the Open Session pair and the four RAKP messages (13.17 to 13.24), and the codes in them (13.28.1, 13.31).

use std::fmt;

use zeroize::Zeroizing;

use crate::{Credentials, Keys, Malformed, Privilege, Suite, bytes::Reader};

/// Look for an account of that name whatever its privilege; otherwise the two have to match (13.20).
const BY_NAME_ONLY: u8 = 0x10;

/// Why a controller does not open a session (13.24).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u8);

impl Status {
    /// No session is free, at all or for this role.
    #[must_use]
    pub fn is_busy(self) -> bool {
        matches!(self.0, 0x01 | 0x0b)
    }

    /// The account may not have the privilege that was asked for.
    #[must_use]
    pub fn is_privilege(self) -> bool {
        matches!(self.0, 0x09 | 0x0a)
    }

    /// There is no such account.
    #[must_use]
    pub fn is_name(self) -> bool {
        matches!(self.0, 0x0c | 0x0d)
    }

    /// The code that the password went into is wrong: so is the password.
    #[must_use]
    pub fn is_password(self) -> bool {
        self.0 == 0x0f
    }

    /// The cipher suite is not offered.
    #[must_use]
    pub fn is_suite(self) -> bool {
        matches!(self.0, 0x04..=0x07 | 0x10 | 0x11)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let meaning = match self.0 {
            0x00 => "no error",
            0x01 => "insufficient resources for a session",
            0x02 => "invalid session number",
            0x03 => "invalid payload type",
            0x04 => "invalid authentication algorithm",
            0x05 => "invalid integrity algorithm",
            0x06 => "no matching authentication payload",
            0x07 => "no matching integrity payload",
            0x08 => "inactive session number",
            0x09 => "invalid role",
            0x0a => "unauthorized role or privilege",
            0x0b => "insufficient resources for a session of that role",
            0x0c => "invalid length of the name",
            0x0d => "unauthorized name",
            0x0e => "unauthorized GUID",
            0x0f => "invalid integrity check value",
            0x10 => "invalid confidentiality algorithm",
            0x11 => "no cipher suite of these algorithms",
            0x12 => "illegal or unknown parameter",
            _ => "reserved",
        };
        write!(f, "{meaning} (RMCP+ status {:02x}h)", self.0)
    }
}

/// Open Session Request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenSession {
    /// Comes back in the response.
    pub tag: u8,
    /// The number that the controller shall use for us.
    pub console_session: u32,
    /// What is proposed.
    pub suite: Suite,
}

/// Open Session Response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// The request's.
    pub tag: u8,
    /// Our number; 0 in a refusal that does not say.
    pub console_session: u32,
    /// The controller's number and its algorithms, which need not be those of a suite that we know.
    pub outcome: Result<(u32, Option<Suite>), Status>,
}

/// RAKP message 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rakp1 {
    /// Comes back in message 2.
    pub tag: u8,
    /// The controller's number.
    pub bmc_session: u32,
    /// Our nonce.
    pub console_random: [u8; 16],
    /// The privilege that is asked for, and how the account is looked for.
    pub role: u8,
    /// The account.
    pub name: Vec<u8>,
}

/// RAKP message 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rakp2 {
    /// That of message 1.
    pub tag: u8,
    /// Our number; 0 in a refusal that does not say.
    pub console_session: u32,
    /// What the controller says of itself.
    pub outcome: Result<Proof, Status>,
}

/// The controller's part of the key exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// Its nonce.
    pub bmc_random: [u8; 16],
    /// Its GUID.
    pub guid: [u8; 16],
    /// The code over everything so far, which the password goes into.
    pub code: Vec<u8>,
}

/// RAKP message 3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rakp3 {
    /// Comes back in message 4.
    pub tag: u8,
    /// Zero, or why we give up.
    pub status: Status,
    /// The controller's number.
    pub bmc_session: u32,
    /// The code that shows that we know the password.
    pub code: Vec<u8>,
}

/// RAKP message 4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rakp4 {
    /// That of message 3.
    pub tag: u8,
    /// Our number; 0 in a refusal that does not say.
    pub console_session: u32,
    /// The code that shows that the controller has the session's key.
    pub outcome: Result<Vec<u8>, Status>,
}

impl OpenSession {
    /// Its payload. The highest privilege of the account is asked for; message 1 says which is wanted.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.tag, 0, 0, 0];
        bytes.extend(self.console_session.to_le_bytes());
        bytes.extend(algorithms(self.suite));
        bytes
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// When it is short, or its algorithms are not those of a suite that we know.
    pub fn parse(payload: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload);
        let [tag, _, _, _] = reader.array()?;
        let console_session = reader.u32()?;
        let suite = read_algorithms(&mut reader)?.ok_or(Malformed("it proposes another cipher suite"))?;
        Ok(Self { tag, console_session, suite })
    }
}

impl Opened {
    /// Its payload.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = reply(self.tag, self.outcome.err(), self.console_session);
        if let Ok((bmc_session, Some(suite))) = self.outcome {
            bytes.extend(bmc_session.to_le_bytes());
            bytes.extend(algorithms(suite));
        }
        bytes
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// When it is short or makes no sense.
    pub fn parse(payload: &[u8]) -> Result<Self, Malformed> {
        let (tag, status, console_session, mut reader) = read_reply(payload)?;
        let outcome = match status {
            Some(status) => Err(status),
            None => match reader.u32()? {
                0 => return Err(Malformed("it gives the session the number 0")),
                bmc_session => Ok((bmc_session, read_algorithms(&mut reader)?)),
            },
        };
        Ok(Self { tag, console_session, outcome })
    }
}

impl Rakp1 {
    /// Its payload.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.tag, 0, 0, 0];
        bytes.extend(self.bmc_session.to_le_bytes());
        bytes.extend(self.console_random);
        bytes.extend([self.role, 0, 0, length(&self.name)]);
        bytes.extend_from_slice(&self.name);
        bytes
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// When it is short, or the name's length is wrong.
    pub fn parse(payload: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload);
        let [tag, _, _, _] = reader.array()?;
        let (bmc_session, console_random) = (reader.u32()?, reader.array()?);
        let [role, _, _, length] = reader.array()?;
        if length > 16 {
            return Err(Malformed("its name is longer than 16 bytes"));
        }
        Ok(Self { tag, bmc_session, console_random, role, name: reader.take(length.into())?.to_vec() })
    }
}

impl Rakp2 {
    /// Its payload.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = reply(self.tag, self.outcome.as_ref().err().copied(), self.console_session);
        if let Ok(Proof { bmc_random, guid, code }) = &self.outcome {
            bytes.extend(bmc_random);
            bytes.extend(guid);
            bytes.extend_from_slice(code);
        }
        bytes
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// When it is short.
    pub fn parse(payload: &[u8]) -> Result<Self, Malformed> {
        let (tag, status, console_session, mut reader) = read_reply(payload)?;
        let outcome = match status {
            Some(status) => Err(status),
            None => Ok(Proof { bmc_random: reader.array()?, guid: reader.array()?, code: reader.rest().to_vec() }),
        };
        Ok(Self { tag, console_session, outcome })
    }
}

impl Rakp3 {
    /// Its payload.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = reply(self.tag, Some(self.status), self.bmc_session);
        bytes.extend_from_slice(&self.code);
        bytes
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// When it is short.
    pub fn parse(payload: &[u8]) -> Result<Self, Malformed> {
        let (tag, status, bmc_session, reader) = read_reply(payload)?;
        Ok(Self { tag, status: status.unwrap_or(Status(0)), bmc_session, code: reader.rest().to_vec() })
    }
}

impl Rakp4 {
    /// Its payload.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = reply(self.tag, self.outcome.as_ref().err().copied(), self.console_session);
        bytes.extend_from_slice(self.outcome.as_deref().unwrap_or_default());
        bytes
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// When it is short.
    pub fn parse(payload: &[u8]) -> Result<Self, Malformed> {
        let (tag, status, console_session, reader) = read_reply(payload)?;
        let outcome = status.map_or_else(|| Ok(reader.rest().to_vec()), Err);
        Ok(Self { tag, console_session, outcome })
    }
}

/// Everything that both sides know after message 2, from which all codes and keys follow.
#[derive(Debug, Clone)]
pub struct Handshake {
    /// The suite agreed upon.
    pub suite: Suite,
    /// Our number: SID<sub>M</sub>.
    pub console_session: u32,
    /// The controller's number: SID<sub>C</sub>.
    pub bmc_session: u32,
    /// Our nonce: R<sub>M</sub>.
    pub console_random: [u8; 16],
    /// The controller's nonce: R<sub>C</sub>.
    pub bmc_random: [u8; 16],
    /// The controller's GUID.
    pub guid: [u8; 16],
    /// The role byte of message 1: ROLE<sub>M</sub>.
    pub role: u8,
    /// Name and password.
    pub credentials: Credentials,
}

impl Handshake {
    /// The role byte for a privilege: the account is looked for by its name alone.
    #[must_use]
    pub fn role(privilege: Privilege) -> u8 {
        BY_NAME_ONLY | privilege as u8
    }

    /// Whether `code` is that of message 2: the controller knows the password.
    #[must_use]
    pub fn proves_password(&self, code: &[u8]) -> bool {
        let (sessions, name) = (self.sessions(), self.named());
        let parts: [&[u8]; 6] = [&sessions[0], &sessions[1], &self.console_random, &self.bmc_random, &self.guid, &name];
        code.len() == self.suite.hash_bytes() && self.suite.matches(self.credentials.password(), &parts, code)
    }

    /// The code of message 2, as a controller makes it.
    #[must_use]
    pub fn second_code(&self) -> Vec<u8> {
        let (sessions, name) = (self.sessions(), self.named());
        let parts: [&[u8]; 6] = [&sessions[0], &sessions[1], &self.console_random, &self.bmc_random, &self.guid, &name];
        self.suite.hash(self.credentials.password(), &parts).to_vec()
    }

    /// The code of message 3: we know the password.
    #[must_use]
    pub fn third_code(&self) -> Vec<u8> {
        let parts: [&[u8]; 3] = [&self.bmc_random, &self.sessions()[0], &self.named()];
        self.suite.hash(self.credentials.password(), &parts).to_vec()
    }

    /// Whether `code` is that of message 4: the controller has the session's key.
    #[must_use]
    pub fn proves_key(&self, code: &[u8]) -> bool {
        let parts: [&[u8]; 3] = [&self.console_random, &self.sessions()[1], &self.guid];
        code.len() == self.suite.check_bytes() && self.suite.matches(&self.session_key(), &parts, code)
    }

    /// The code of message 4, as a controller makes it.
    #[must_use]
    pub fn fourth_code(&self) -> Vec<u8> {
        let parts: [&[u8]; 3] = [&self.console_random, &self.sessions()[1], &self.guid];
        self.suite.hash(&self.session_key(), &parts)[..self.suite.check_bytes()].to_vec()
    }

    /// The session's keys.
    #[must_use]
    pub fn keys(&self) -> Keys {
        Keys::derive(self.suite, &self.session_key())
    }

    /// The session integrity key; the password stands where a controller has no key of its own.
    fn session_key(&self) -> Zeroizing<Vec<u8>> {
        let parts: [&[u8]; 3] = [&self.console_random, &self.bmc_random, &self.named()];
        self.suite.hash(self.credentials.password(), &parts)
    }

    fn sessions(&self) -> [[u8; 4]; 2] {
        [self.console_session.to_le_bytes(), self.bmc_session.to_le_bytes()]
    }

    /// Role, length of the name, name.
    fn named(&self) -> Vec<u8> {
        let name = self.credentials.name();
        [&[self.role, length(name)], name].concat()
    }
}

fn length(name: &[u8]) -> u8 {
    u8::try_from(name.len()).expect("a name has at most 16 bytes")
}

fn reply(tag: u8, status: Option<Status>, session: u32) -> Vec<u8> {
    let mut bytes = vec![tag, status.map_or(0, |status| status.0), 0, 0];
    bytes.extend(session.to_le_bytes());
    bytes
}

/// Tag, status unless it is zero, session number, and the rest. Some controllers end a refusal after the status: then the number
/// is 0, which no session has.
fn read_reply(payload: &[u8]) -> Result<(u8, Option<Status>, u32, Reader<'_>), Malformed> {
    let mut reader = Reader::new(payload);
    let [tag, status] = reader.array()?;
    let status = Some(Status(status)).filter(|status| status.0 != 0);
    if status.is_some() && reader.rest().len() < 6 {
        return Ok((tag, status, 0, Reader::new(&[])));
    }
    let _reserved = reader.u16()?;
    Ok((tag, status, reader.u32()?, reader))
}

/// Three payloads of eight bytes: kind, length, algorithm.
fn algorithms(suite: Suite) -> impl Iterator<Item = u8> {
    (0u8..).zip(suite.algorithms()).flat_map(|(kind, algorithm)| [kind, 0, 0, 8, algorithm, 0, 0, 0])
}

fn read_algorithms(reader: &mut Reader<'_>) -> Result<Option<Suite>, Malformed> {
    let mut algorithms = [0; 3];
    for (kind, algorithm) in (0u8..).zip(&mut algorithms) {
        let [found, _, _, length, number, _, _, _] = reader.array()?;
        if found != kind || length != 8 {
            return Err(Malformed("its algorithms are not as they should be"));
        }
        *algorithm = number & 0x3f;
    }
    Ok(Suite::from_algorithms(algorithms))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes<const N: usize>(text: &str) -> [u8; N] {
        hex::decode(text).unwrap().try_into().unwrap()
    }

    #[test]
    fn codes_of_a_session_of_ipmitool_and_ipmi_sim() {
        let check = |suite, second: &str, third: &str, key: &str, fourth: &str| {
            let handshake = Handshake {
                suite,
                console_session: u32::from_le_bytes(bytes("a4a3a2a0")),
                bmc_session: u32::from_le_bytes(bytes("84070000")),
                console_random: bytes("caff5bad84a7e8f5e743441f0016acb7"),
                bmc_random: bytes("a26b3d7ad6c360714da9eb55d628ef35"),
                guid: bytes("a123456789abcdefa123456789abcdef"),
                role: Handshake::role(Privilege::Administrator),
                credentials: Credentials::new("admin", "secret").unwrap(),
            };
            let codes = [handshake.second_code(), handshake.third_code(), handshake.fourth_code()];
            assert_eq!(codes.map(hex::encode), [second, third, fourth]);
            assert_eq!(hex::encode(&*handshake.session_key()), key);
            let code = |text: &str| hex::decode(text).unwrap();
            assert!(handshake.proves_password(&code(second)) && handshake.proves_key(&code(fourth)));
            // Neither a shorter code nor a longer one, which begins well.
            assert!(!handshake.proves_password(&code(&second[2..])) && !handshake.proves_password(&[]));
            assert!(!handshake.proves_key(&code(&fourth[..8])) && !handshake.proves_key(&[]));
            let wrong = Handshake { credentials: Credentials::new("admin", "Secret").unwrap(), ..handshake };
            assert!(!wrong.proves_password(&code(second)) && !wrong.proves_key(&code(fourth)));
        };
        // As `ipmitool -vvvv` prints them.
        check(
            Suite::Three,
            "0412901fd9c9398efc6d73802ed5e4cea8a9dede",
            "0c815cf26d2f542bd3a1a75d6e86b3e45f78b4d3",
            "abe52e527a1fb4b81c45e5e1af271e6edaa35410",
            "92c8b7a5fdce4658b93b7a1a",
        );
        // The same inputs, as Python's hmac gives them.
        check(
            Suite::Seventeen,
            "7c2cf67e370631372abb1aa3ce21827e9222d53319a96470998876b97ebf30d3",
            "ad10136c96cf92667b2cc02aab8fbf91f8e0bec9e65ace862097042e3fa01c4f",
            "a4fbba4c3a0662e2dfeebdb603c43006934994af02e31dc9af7314a9d5961d2e",
            "6558329f3d1b905a08c888143bbcd19b",
        );
    }

    #[test]
    fn a_refusal_as_ipmi_sim_sends_it() {
        let refused = Opened { tag: 9, console_session: 0, outcome: Err(Status(4)) };
        assert_eq!(Opened::parse(&[9, 4]), Ok(refused));
        assert!(Opened::parse(&[9]).is_err() && Opened::parse(&[9, 0]).is_err());
    }

    proptest! {
        #[test]
        fn what_is_sent_is_read(
            tag: u8, session: u32, bmc in 1u32.., random: [u8; 16], guid: [u8; 16], role: u8, seventeen: bool,
            name in prop::collection::vec(any::<u8>(), 0..=16), code: Vec<u8>, status in prop::option::of(1u8..),
        ) {
            let suite = if seventeen { Suite::Seventeen } else { Suite::Three };
            let status = status.map(Status);
            let open = OpenSession { tag, console_session: session, suite };
            prop_assert_eq!(OpenSession::parse(&open.encode()), Ok(open));
            let outcome = status.map_or(Ok((bmc, Some(suite))), Err);
            let opened = Opened { tag, console_session: session, outcome };
            prop_assert_eq!(Opened::parse(&opened.encode()), Ok(opened));
            let first = Rakp1 { tag, bmc_session: bmc, console_random: random, role, name };
            prop_assert_eq!(Rakp1::parse(&first.encode()), Ok(first));
            let outcome = status.map_or(Ok(Proof { bmc_random: random, guid, code: code.clone() }), Err);
            let second = Rakp2 { tag, console_session: session, outcome };
            prop_assert_eq!(Rakp2::parse(&second.encode()), Ok(second));
            let third = Rakp3 { tag, status: status.unwrap_or(Status(0)), bmc_session: bmc, code: code.clone() };
            prop_assert_eq!(Rakp3::parse(&third.encode()), Ok(third));
            let fourth = Rakp4 { tag, console_session: session, outcome: status.map_or(Ok(code), Err) };
            prop_assert_eq!(Rakp4::parse(&fourth.encode()), Ok(fourth));
        }

        #[test]
        fn anything_may_come(bytes: Vec<u8>) {
            let _ = OpenSession::parse(&bytes);
            let _ = Opened::parse(&bytes);
            let _ = Rakp1::parse(&bytes);
            let _ = Rakp2::parse(&bytes);
            let _ = Rakp3::parse(&bytes);
            let _ = Rakp4::parse(&bytes);
        }
    }
}
