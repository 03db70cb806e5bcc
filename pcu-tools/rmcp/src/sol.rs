//! Serial over LAN: packets of characters that are acknowledged one by one (15.9, 15.11).

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use thiserror::Error;

use crate::{Malformed, Resend, bytes::Reader};

/// Bytes before the characters.
pub const HEADER: usize = 4;
/// How long until characters that were not acknowledged are sent again.
const PAUSE: Duration = Duration::from_millis(300);
/// How long a controller that asked us to wait is left alone.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often characters are sent before the line is lost.
const ATTEMPTS: u32 = 12;
/// The most that waits to be sent, in bytes.
pub const QUEUE: usize = 64 << 10;
/// The most characters in one packet to the controller: what every one of them takes in.
const CHARACTERS: usize = 200;

const NACK: u8 = 0x40;
const UNAVAILABLE: u8 = 0x20;
const DEACTIVATING: u8 = 0x10;

/// A payload of the serial line, in either direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// 1 to 15, or 0 when it only acknowledges.
    pub sequence: u8,
    /// Which packet of the other side is acknowledged; 0 when none is.
    pub acknowledged: u8,
    /// How many of its characters were taken.
    pub accepted: u8,
    /// From the controller: whether it refuses for now, cannot transfer, or has ended the session. To it: operations on the line.
    pub status: u8,
    /// Characters.
    pub characters: Vec<u8>,
}

/// Why there is no line any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LineError {
    /// The controller ended it.
    #[error("the device ended serial over LAN")]
    Deactivated,
    /// It does not acknowledge.
    #[error("the device does not acknowledge characters that were sent {ATTEMPTS} times")]
    Unacknowledged,
    /// More is to be sent than it takes.
    #[error("the device takes characters too slowly: {QUEUE} bytes wait to be sent")]
    Full,
}

/// A serial line: what is to be sent, and what of it arrived.
#[derive(Debug)]
pub struct Line {
    /// The most characters of one packet.
    most: usize,
    queue: VecDeque<u8>,
    /// How many characters at the queue's head are in a packet that is not acknowledged yet.
    flight: Option<Flight>,
    /// The number of the last packet with characters.
    sent: u8,
    /// The last packet that was taken in, and how many of its characters.
    taken: (u8, u8),
    /// Whether the other side waits for an acknowledgement.
    owes: bool,
}

#[derive(Debug)]
struct Flight {
    sequence: u8,
    length: usize,
    resend: Resend,
    /// Not before then: the controller asked us to wait.
    wait: Option<Instant>,
}

impl Packet {
    /// Its payload.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.sequence & 15, self.acknowledged & 15, self.accepted, self.status];
        bytes.extend_from_slice(&self.characters);
        bytes
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// When it is short, or has more characters than can be acknowledged.
    pub fn parse(payload: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(payload);
        let [sequence, acknowledged, accepted, status] = reader.array()?;
        let characters = reader.rest();
        if characters.len() > usize::from(u8::MAX) {
            return Err(Malformed("it has more than 255 characters"));
        }
        Ok(Self {
            sequence: sequence & 15,
            acknowledged: acknowledged & 15,
            accepted,
            status,
            characters: characters.to_vec(),
        })
    }
}

impl Line {
    /// A line to a controller that says that it takes payloads of up to `inbound` bytes. Some say 0 and mean nothing by it.
    #[must_use]
    pub fn new(inbound: u16) -> Self {
        let most = match usize::from(inbound).saturating_sub(HEADER) {
            0 => CHARACTERS,
            most => most.min(CHARACTERS),
        };
        Self { most, queue: VecDeque::new(), flight: None, sent: 0, taken: (0, 0), owes: false }
    }

    /// Takes characters to be sent.
    ///
    /// # Errors
    /// [`LineError::Full`], and then none of them.
    pub fn write(&mut self, characters: &[u8]) -> Result<(), LineError> {
        if self.queue.len() + characters.len() > QUEUE {
            return Err(LineError::Full);
        }
        self.queue.extend(characters);
        Ok(())
    }

    /// Whether all that was written has arrived.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && !self.owes
    }

    /// The packet that is due, if any.
    ///
    /// # Errors
    /// When the line is lost.
    pub fn send(&mut self, now: Instant) -> Result<Option<Packet>, LineError> {
        if self.flight.is_none() && !self.queue.is_empty() {
            // 1 to 15, then 1 again.
            self.sent = self.sent % 15 + 1;
            let length = self.queue.len().min(self.most);
            self.flight = Some(Flight { sequence: self.sent, length, resend: Resend::new(now, PAUSE), wait: None });
        }
        let mut packet = Packet { sequence: 0, acknowledged: 0, accepted: 0, status: 0, characters: Vec::new() };
        if let Some(flight) = &mut self.flight
            && flight.wait.is_none_or(|wait| now >= wait)
            && flight.resend.due(now)
        {
            if flight.resend.sent() > ATTEMPTS {
                return Err(LineError::Unacknowledged);
            }
            packet.sequence = flight.sequence;
            packet.characters = self.queue.iter().take(flight.length).copied().collect();
        } else if !self.owes {
            return Ok(None);
        }
        (packet.acknowledged, packet.accepted) = self.taken;
        self.owes = false;
        Ok(Some(packet))
    }

    /// When [`Self::send`] has something that it does not have yet.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.flight.as_ref().map(|flight| flight.resend.next().max(flight.wait.unwrap_or(flight.resend.next())))
    }

    /// Takes in a packet, and gives the characters that are new.
    ///
    /// # Errors
    /// When the controller ended the session.
    pub fn receive(&mut self, packet: &Packet, now: Instant) -> Result<Vec<u8>, LineError> {
        self.acknowledge(packet, now);
        let mut new = Vec::new();
        if packet.sequence != 0 {
            // One that comes again may have grown; its beginning has been taken.
            let known = if self.taken.0 == packet.sequence { usize::from(self.taken.1) } else { 0 };
            new.extend_from_slice(packet.characters.get(known..).unwrap_or_default());
            let accepted = u8::try_from(packet.characters.len().max(known)).unwrap_or(u8::MAX);
            self.taken = (packet.sequence, accepted);
            self.owes = true;
        }
        if packet.status & DEACTIVATING != 0 && new.is_empty() {
            return Err(LineError::Deactivated);
        }
        Ok(new)
    }

    fn acknowledge(&mut self, packet: &Packet, now: Instant) {
        let Some(flight) = self.flight.take_if(|flight| flight.sequence == packet.acknowledged) else { return };
        let accepted = usize::from(packet.accepted).min(flight.length);
        self.queue.drain(..accepted);
        let refused = packet.status & (NACK | UNAVAILABLE) != 0;
        if refused && accepted == 0 {
            // The same again, later.
            self.flight = Some(Flight { wait: Some(now + PATIENCE), ..flight });
        }
        // What was not taken of it goes into the next packet.
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(sequence: u8, acknowledged: u8, accepted: u8, status: u8, characters: &[u8]) -> Packet {
        Packet { sequence, acknowledged, accepted, status, characters: characters.to_vec() }
    }

    #[test]
    fn what_is_partly_accepted_goes_on() {
        let (mut line, now) = (Line::new(8), Instant::now());
        line.write(b"abcdef").unwrap();
        assert_eq!(line.send(now), Ok(Some(packet(1, 0, 0, 0, b"abcd"))));
        assert_eq!(line.send(now), Ok(None));
        assert_eq!(line.receive(&packet(0, 1, 3, 0, b""), now), Ok(vec![]));
        assert_eq!(line.send(now), Ok(Some(packet(2, 0, 0, 0, b"def"))));
        // A stale acknowledgement changes nothing; a refusal makes it wait.
        line.receive(&packet(0, 1, 4, 0, b""), now).unwrap();
        line.receive(&packet(0, 2, 0, NACK, b""), now).unwrap();
        assert_eq!(line.send(now + PAUSE), Ok(None));
        assert_eq!(line.next(), Some(now + PATIENCE));
        assert_eq!(line.send(now + PATIENCE), Ok(Some(packet(2, 0, 0, 0, b"def"))));
        line.receive(&packet(0, 2, 3, 0, b""), now).unwrap();
        assert!(line.is_idle());
    }

    #[test]
    fn what_comes_again_is_taken_once() {
        let (mut line, now) = (Line::new(100), Instant::now());
        assert_eq!(line.receive(&packet(7, 0, 0, 0, b"ab"), now), Ok(b"ab".to_vec()));
        assert_eq!(line.send(now), Ok(Some(packet(0, 7, 2, 0, b""))));
        assert_eq!(line.receive(&packet(7, 0, 0, 0, b"abc"), now), Ok(b"c".to_vec()));
        assert_eq!(line.receive(&packet(7, 0, 0, 0, b"a"), now), Ok(vec![]));
        line.write(b"x").unwrap();
        assert_eq!(line.send(now), Ok(Some(packet(1, 7, 3, 0, b"x"))));
        assert_eq!(line.receive(&packet(8, 1, 1, 0, b"z"), now), Ok(b"z".to_vec()));
        assert_eq!(line.send(now), Ok(Some(packet(0, 8, 1, 0, b""))));
    }

    #[test]
    fn a_line_ends() {
        let (mut line, now) = (Line::new(100), Instant::now());
        assert_eq!(line.receive(&packet(0, 0, 0, DEACTIVATING, b""), now), Err(LineError::Deactivated));
        assert_eq!(line.write(&vec![0; QUEUE + 1]), Err(LineError::Full));
        line.write(b"x").unwrap();
        let mut at = now;
        let mut sent = 0;
        let error = loop {
            match line.send(at) {
                Ok(Some(_)) => sent += 1,
                Ok(None) => at = line.next().unwrap(),
                Err(error) => break error,
            }
        };
        assert_eq!((error, sent), (LineError::Unacknowledged, ATTEMPTS));
    }

    proptest! {
        #[test]
        fn all_characters_arrive_in_order_over_a_bad_line(
            text in prop::collection::vec(any::<u8>(), 0..600), fate in prop::collection::vec(0u8..6, 1..64),
        ) {
            let (mut line, mut now) = (Line::new(20), Instant::now());
            line.write(&text).unwrap();
            let (mut got, mut last, mut taken, mut fate) = (Vec::new(), 0, 0u8, fate.iter().cycle());
            // Every packet in six attempts at worst, each of which takes at least one character.
            for _ in 0..6 * 700 {
                if line.is_idle() {
                    break;
                }
                let Ok(sent) = line.send(now) else { return Ok(()) };
                let Some(sent) = sent else { now = line.next().unwrap(); continue };
                let fate = *fate.next().unwrap();
                if fate == 0 {
                    continue;
                }
                if sent.sequence != last {
                    last = sent.sequence;
                    taken = u8::try_from(sent.characters.len()).unwrap().min(fate * 4);
                    got.extend_from_slice(&sent.characters[..usize::from(taken)]);
                }
                if fate != 1 {
                    line.receive(&packet(0, sent.sequence, taken, 0, b""), now).unwrap();
                }
            }
            prop_assert!(text.starts_with(&got));
            prop_assert!(!line.is_idle() || got == text);
        }

        #[test]
        fn anything_may_come(payloads in prop::collection::vec(any::<Vec<u8>>(), 0..20)) {
            let (mut line, now) = (Line::new(20), Instant::now());
            line.write(b"some text of ours").unwrap();
            for payload in payloads {
                let _ = line.send(now);
                if let Ok(packet) = Packet::parse(&payload) {
                    prop_assert_eq!(Packet::parse(&packet.encode()), Ok(packet.clone()));
                    let _ = line.receive(&packet, now);
                }
            }
        }
    }
}
