//! What a command is, and those of sessions and of the controller itself. Others stand with what they are about.

use thiserror::Error;

use crate::{Completion, Malformed, Privilege, bytes::Reader};

/// Network functions, of requests (5.1).
pub(crate) const CHASSIS: u8 = 0;
pub(crate) const SENSOR: u8 = 4;
pub(crate) const APPLICATION: u8 = 6;
pub(crate) const STORAGE: u8 = 10;

/// A command, with its parameters.
pub trait Request {
    /// Its network function.
    const FUNCTION: u8;
    /// Its number.
    const COMMAND: u8;
    /// What comes back when it succeeds.
    type Answer;

    /// Its parameters.
    fn data(&self) -> Vec<u8>;

    /// Reads what comes back, without the completion code.
    ///
    /// # Errors
    /// When that is not what the command gives.
    fn parse(&self, data: &[u8]) -> Result<Self::Answer, Malformed>;

    /// The unit of the controller that it is for.
    fn unit(&self) -> u8 {
        0
    }
}

/// What came back for a command: authentic, not yet read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    body: Vec<u8>,
    /// How often the command was sent for it: more than once, it may have been done more than once.
    pub sent: u32,
}

/// Why a command gave nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Unusable {
    /// The controller did not do it.
    #[error("{0}")]
    Refused(Completion),
    /// The answer makes no sense.
    #[error("the answer makes no sense: {0}")]
    Malformed(#[from] Malformed),
}

impl Answer {
    pub(crate) fn new(body: Vec<u8>, sent: u32) -> Self {
        Self { body, sent }
    }

    /// Reads it as the answer to `request`.
    ///
    /// # Errors
    /// When the command was refused, or the answer makes no sense.
    pub fn read<R: Request>(&self, request: &R) -> Result<R::Answer, Unusable> {
        match self.body.split_first() {
            None => Err(Malformed("it has no completion code").into()),
            Some((0, data)) => Ok(request.parse(data)?),
            Some((code, _)) => Err(Unusable::Refused(Completion(*code))),
        }
    }
}

/// Get Device ID (20.1): harmless, and keeps a session alive.
#[derive(Debug, Clone, Copy)]
pub struct GetDeviceId;

/// What a controller is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceId {
    /// Firmware, major.
    pub firmware_major: u8,
    /// Firmware, minor, in two decimal digits of four bits.
    pub firmware_minor: u8,
    /// The maker's enterprise number as IANA knows it.
    pub manufacturer: u32,
    /// The maker's number for it.
    pub product: u16,
}

impl Request for GetDeviceId {
    const FUNCTION: u8 = APPLICATION;
    const COMMAND: u8 = 0x01;
    type Answer = DeviceId;

    fn data(&self) -> Vec<u8> {
        Vec::new()
    }

    fn parse(&self, data: &[u8]) -> Result<DeviceId, Malformed> {
        let mut reader = Reader::new(data);
        let [_, _, major, firmware_minor, _, _] = reader.array()?;
        let [a, b, c] = reader.array()?;
        let manufacturer = u32::from_le_bytes([a, b, c & 0x0f, 0]);
        Ok(DeviceId { firmware_major: major & 0x7f, firmware_minor, manufacturer, product: reader.u16()? })
    }
}

/// Set Session Privilege Level (22.18).
#[derive(Debug, Clone, Copy)]
pub struct SetPrivilege(pub Privilege);

impl Request for SetPrivilege {
    const FUNCTION: u8 = APPLICATION;
    const COMMAND: u8 = 0x3b;
    /// The number of the privilege that the session has now.
    type Answer = u8;

    fn data(&self) -> Vec<u8> {
        vec![self.0 as u8]
    }

    fn parse(&self, data: &[u8]) -> Result<u8, Malformed> {
        Ok(Reader::new(data).u8()? & 0x0f)
    }
}

/// Close Session (22.19).
#[derive(Debug, Clone, Copy)]
pub struct CloseSession {
    pub(crate) session: u32,
}

impl Request for CloseSession {
    const FUNCTION: u8 = APPLICATION;
    const COMMAND: u8 = 0x3c;
    type Answer = ();

    fn data(&self) -> Vec<u8> {
        self.session.to_le_bytes().to_vec()
    }

    fn parse(&self, _: &[u8]) -> Result<(), Malformed> {
        Ok(())
    }
}

/// Get Session Challenge of IPMI 1.5 (22.16).
#[derive(Debug, Clone, Copy)]
pub(crate) struct GetChallenge {
    pub(crate) authentication: u8,
    pub(crate) name: [u8; 16],
}

impl Request for GetChallenge {
    const FUNCTION: u8 = APPLICATION;
    const COMMAND: u8 = 0x39;
    /// Temporary session number, challenge.
    type Answer = (u32, [u8; 16]);

    fn data(&self) -> Vec<u8> {
        [&[self.authentication], &self.name[..]].concat()
    }

    fn parse(&self, data: &[u8]) -> Result<(u32, [u8; 16]), Malformed> {
        let mut reader = Reader::new(data);
        Ok((reader.u32()?, reader.array()?))
    }
}

/// Activate Session of IPMI 1.5 (22.17).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Activate {
    pub(crate) authentication: u8,
    pub(crate) privilege: Privilege,
    pub(crate) challenge: [u8; 16],
    /// The first number of the controller's packets.
    pub(crate) outbound: u32,
}

impl Request for Activate {
    const FUNCTION: u8 = APPLICATION;
    const COMMAND: u8 = 0x3a;
    /// Authentication, session number, the first number of our packets.
    type Answer = (u8, u32, u32);

    fn data(&self) -> Vec<u8> {
        let mut data = vec![self.authentication, self.privilege as u8];
        data.extend(self.challenge);
        data.extend(self.outbound.to_le_bytes());
        data
    }

    fn parse(&self, data: &[u8]) -> Result<(u8, u32, u32), Malformed> {
        let mut reader = Reader::new(data);
        Ok((reader.u8()? & 0x0f, reader.u32()?, reader.u32()?))
    }
}

/// Activate Payload (24.1): takes the serial line, encrypted and authenticated.
#[derive(Debug, Clone, Copy)]
pub struct ActivateSol;

/// Serial over LAN.
const SOL: u8 = 1;
/// The only instance that controllers have.
const INSTANCE: u8 = 1;

impl ActivateSol {
    /// Another session has the line.
    pub const TAKEN: [Completion; 2] = [Completion(0x80), Completion(0x82)];
    /// Serial over LAN is switched off.
    pub const DISABLED: Completion = Completion(0x81);
    /// Not with encryption.
    pub const NOT_ENCRYPTED: Completion = Completion(0x83);
}

impl Request for ActivateSol {
    const FUNCTION: u8 = APPLICATION;
    const COMMAND: u8 = 0x48;
    /// The longest payload that the controller takes, in bytes, its own header included.
    type Answer = u16;

    fn data(&self) -> Vec<u8> {
        // Encrypted and authenticated; alerts of the line fail meanwhile.
        vec![SOL, INSTANCE, 0xc0, 0, 0, 0]
    }

    fn parse(&self, data: &[u8]) -> Result<u16, Malformed> {
        let mut reader = Reader::new(data);
        let _auxiliary = reader.u32()?;
        // The UDP port that follows is left alone: it is the session's, or wrong, as in front of a forwarded port.
        reader.u16()
    }
}

/// Deactivate Payload (24.2): gives the serial line back.
#[derive(Debug, Clone, Copy)]
pub struct DeactivateSol;

impl Request for DeactivateSol {
    const FUNCTION: u8 = APPLICATION;
    const COMMAND: u8 = 0x49;
    type Answer = ();

    fn data(&self) -> Vec<u8> {
        vec![SOL, INSTANCE, 0, 0, 0, 0]
    }

    fn parse(&self, _: &[u8]) -> Result<(), Malformed> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{capabilities, chassis, sdr, sel};

    #[test]
    fn what_a_controller_says_of_itself() {
        let answer = Answer::new(hex::decode("0023840951029f9112000f020000000000").unwrap(), 1);
        let expected = DeviceId { firmware_major: 9, firmware_minor: 0x51, manufacturer: 0x1291, product: 0x020f };
        assert_eq!(answer.read(&GetDeviceId), Ok(expected));
        assert_eq!(Answer::new(vec![0xd4], 1).read(&GetDeviceId), Err(Unusable::Refused(Completion(0xd4))));
        assert!(matches!(Answer::new(vec![0, 1], 1).read(&GetDeviceId), Err(Unusable::Malformed(_))));
        assert!(matches!(Answer::new(vec![], 1).read(&GetDeviceId), Err(Unusable::Malformed(_))));
    }

    proptest! {
        #[test]
        fn any_answer_may_come(body: Vec<u8>) {
            let answer = Answer::new(body, 1);
            let _ = answer.read(&GetDeviceId);
            let _ = answer.read(&SetPrivilege(Privilege::User));
            let _ = answer.read(&GetChallenge { authentication: 2, name: [0; 16] });
            let _ = answer.read(&Activate { authentication: 2, privilege: Privilege::User, challenge: [0; 16], outbound: 1 });
            let _ = answer.read(&ActivateSol);
            let _ = answer.read(&capabilities::GetCapabilities { privilege: Privilege::User, extended: true });
            let _ = answer.read(&chassis::GetStatus);
            let _ = answer.read(&sdr::GetRepositoryInfo);
            let _ = answer.read(&sdr::GetReading { unit: 0, number: 0 });
            let _ = answer.read(&sel::GetEntry { id: 0 });
        }
    }
}
