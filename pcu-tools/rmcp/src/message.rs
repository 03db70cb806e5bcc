//! The message in a packet: addressed, numbered, and with two checksums (13.8).

use crate::{Malformed, bytes::Reader};

/// The BMC's address on every bus.
pub const BMC: u8 = 0x20;
/// The address of who asks over a LAN.
pub const REMOTE_CONSOLE: u8 = 0x81;

/// Shortest message: addresses, function, number, command, two checksums.
const SHORTEST: usize = 7;

/// A request or an answer; an answer has an odd function, and its body begins with the completion code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who it is for.
    pub to: u8,
    /// Network function, 6 bits.
    pub function: u8,
    /// The unit it is for, 2 bits.
    pub to_unit: u8,
    /// Who it is from.
    pub from: u8,
    /// The requester's number, 6 bits.
    pub sequence: u8,
    /// The unit it is from, 2 bits.
    pub from_unit: u8,
    /// The command.
    pub command: u8,
    /// The rest.
    pub body: Vec<u8>,
}

impl Message {
    /// As it is sent.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.to, self.function << 2 | self.to_unit & 3];
        bytes.push(checksum(&bytes));
        let second = bytes.len();
        bytes.extend([self.from, self.sequence << 2 | self.from_unit & 3, self.command]);
        bytes.extend_from_slice(&self.body);
        bytes.push(checksum(&bytes[second..]));
        bytes
    }

    /// Reads one.
    ///
    /// # Errors
    /// When it is too short, or a checksum is wrong.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.len() < SHORTEST {
            return Err(Malformed("it is shorter than any message"));
        }
        let (first, second) = bytes.split_at(3);
        // With its checksum, everything adds up to zero.
        if checksum(first) != 0 || checksum(second) != 0 {
            return Err(Malformed("its checksum is wrong"));
        }
        let [to, function, _] = Reader::new(first).array()?;
        let mut reader = Reader::new(&second[..second.len() - 1]);
        let [from, sequence, command] = reader.array()?;
        Ok(Self {
            to,
            function: function >> 2,
            to_unit: function & 3,
            from,
            sequence: sequence >> 2,
            from_unit: sequence & 3,
            command,
            body: reader.rest().to_vec(),
        })
    }

    /// The answer to this request.
    #[must_use]
    pub fn answer(&self, completion: u8, data: &[u8]) -> Self {
        let body = std::iter::once(completion).chain(data.iter().copied()).collect();
        Self {
            to: self.from,
            function: self.function | 1,
            to_unit: self.from_unit,
            from: self.to,
            sequence: self.sequence,
            from_unit: self.to_unit,
            command: self.command,
            body,
        }
    }
}

/// What has to be added for a sum of zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn as_ipmitool_sends_it() {
        // Get Channel Authentication Capabilities for an administrator on this channel.
        let bytes = hex::decode("2018c88100388e04b5").unwrap();
        let message = Message::parse(&bytes).unwrap();
        assert_eq!((message.to, message.function, message.from, message.command), (BMC, 6, REMOTE_CONSOLE, 0x38));
        assert_eq!(message.body, [0x8e, 4]);
        assert_eq!(message.encode(), bytes);
        for at in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1;
            assert!(Message::parse(&wrong).is_err(), "{at}");
        }
    }

    proptest! {
        #[test]
        fn what_is_sent_is_read(header: [u8; 7], body: Vec<u8>) {
            let [to, function, to_unit, from, sequence, from_unit, command] = header;
            let message = Message {
                to, function: function >> 2, to_unit: to_unit & 3, from, sequence: sequence >> 2, from_unit: from_unit & 3,
                command, body,
            };
            prop_assert_eq!(Message::parse(&message.encode()), Ok(message));
        }

        #[test]
        fn anything_may_come(bytes: Vec<u8>) {
            if let Ok(message) = Message::parse(&bytes) {
                prop_assert_eq!(message.encode(), bytes);
            }
        }
    }
}
