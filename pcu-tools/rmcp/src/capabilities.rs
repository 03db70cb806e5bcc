//! Get Channel Authentication Capabilities (22.13): what is asked first, of anybody, before any session.

use crate::{
    Answer, BMC, Malformed, Message, Privilege, REMOTE_CONSOLE, Request, Unusable, bytes::Reader, command::APPLICATION,
    lan15::Packet15,
};

/// "The channel that this comes by".
const THIS_CHANNEL: u8 = 0x0e;
/// "Say also what IPMI 2.0 has"; some controllers of IPMI 1.5 refuse it.
const EXTENDED: u8 = 0x80;

/// Get Channel Authentication Capabilities.
#[derive(Debug, Clone, Copy)]
pub struct GetCapabilities {
    /// What will be asked for.
    pub privilege: Privilege,
    /// Whether to ask for what IPMI 2.0 has.
    pub extended: bool,
}

/// What a controller offers to somebody who wants to log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// IPMI 2.0: RMCP+.
    pub rmcp_plus: bool,
    /// IPMI 1.5 with MD5.
    pub md5: bool,
    /// IPMI 1.5 with the password itself.
    pub password: bool,
    /// The controller has a key of its own, K<sub>G</sub>, besides passwords.
    pub bmc_key: bool,
    /// Somebody without name and password is let in.
    pub anonymous: bool,
}

impl Request for GetCapabilities {
    const FUNCTION: u8 = APPLICATION;
    const COMMAND: u8 = 0x38;
    type Answer = Capabilities;

    fn data(&self) -> Vec<u8> {
        vec![THIS_CHANNEL | if self.extended { EXTENDED } else { 0 }, self.privilege as u8]
    }

    fn parse(&self, data: &[u8]) -> Result<Capabilities, Malformed> {
        let [_, kinds, status, extended] = Reader::new(data).array()?;
        Ok(Capabilities {
            rmcp_plus: kinds & 0x80 != 0 && extended & 2 != 0,
            md5: kinds & 4 != 0,
            password: kinds & 0x10 != 0,
            bmc_key: status & 0x20 != 0,
            anonymous: status & 1 != 0,
        })
    }
}

impl GetCapabilities {
    /// The datagram that asks.
    #[must_use]
    pub fn datagram(&self) -> Vec<u8> {
        outside(self)
    }

    /// Reads a datagram as the answer.
    ///
    /// # Errors
    /// When it is something else. [`Unusable::Refused`] is an answer too.
    pub fn read(&self, datagram: &[u8]) -> Result<Capabilities, Unusable> {
        answer_outside(datagram, self)?.read(self)
    }
}

/// A request outside of any session.
pub(crate) fn outside<R: Request>(request: &R) -> Vec<u8> {
    let message = Message {
        to: BMC,
        function: R::FUNCTION,
        to_unit: 0,
        from: REMOTE_CONSOLE,
        sequence: 0,
        from_unit: 0,
        command: R::COMMAND,
        body: request.data(),
    };
    Packet15::outside(&message.encode())
}

/// The answer to a request outside of any session.
pub(crate) fn answer_outside<R: Request>(datagram: &[u8], _: &R) -> Result<Answer, Malformed> {
    let packet = Packet15::parse(datagram)?;
    if packet.session != 0 {
        return Err(Malformed("it is of a session"));
    }
    let message = Message::parse(packet.message)?;
    if message.function != R::FUNCTION | 1 || message.command != R::COMMAND || message.sequence != 0 {
        return Err(Malformed("it answers another command"));
    }
    Ok(Answer::new(message.body, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_ipmi_sim_answers() {
        let ask = GetCapabilities { privilege: Privilege::Administrator, extended: true };
        assert_eq!(hex::encode(ask.datagram()), "0600ff07000000000000000000092018c88100388e04b5");
        let message = Message::parse(&hex::decode("2018c88100388e04b5").unwrap()).unwrap();
        let datagram = |code, data: &[u8]| Packet15::outside(&message.answer(code, data).encode());
        let found = ask.read(&datagram(0, &[1, 0x97, 6, 3, 0, 0, 0, 0])).unwrap();
        let expected = Capabilities { rmcp_plus: true, md5: true, password: true, bmc_key: false, anonymous: false };
        assert_eq!(found, expected);
        assert!(!ask.read(&datagram(0, &[1, 0x17, 6, 0, 0, 0, 0, 0])).unwrap().rmcp_plus);
        assert!(matches!(ask.read(&datagram(0xcc, &[])), Err(Unusable::Refused(_))));
        assert!(matches!(ask.read(&datagram(0, &[1])), Err(Unusable::Malformed(_))));
        assert!(matches!(ask.read(&ask.datagram()), Err(Unusable::Malformed(_))));
    }
}
