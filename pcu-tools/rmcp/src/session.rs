//! A session with a controller: one command at a time, sent again until it is answered, and the serial line beside it.

use std::time::{Duration, Instant};

use thiserror::Error;

use crate::{
    Answer, BMC, Keys, Malformed, Message, Packet, PayloadType, REMOTE_CONSOLE, Random, Rejected, Request, Resend,
    Window,
    command::CloseSession,
    lan15::{Keys15, Packet15},
    sol,
};

/// How long the first pause is before a command is sent again.
const PAUSE: Duration = Duration::from_millis(700);

/// A session. Holding one proves that both sides have shown to know the password.
#[derive(Debug)]
pub struct Session {
    keys: SessionKeys,
    random: Random,
    /// Our number; in IPMI 1.5 both sides have the same.
    console_session: u32,
    bmc_session: u32,
    /// The next packet's number.
    outgoing: u32,
    incoming: Window,
    /// The next command's number, 6 bits.
    number: u8,
    pending: Option<Pending>,
}

#[derive(Debug)]
enum SessionKeys {
    Plus(Keys),
    Lan15(Keys15),
}

#[derive(Debug)]
struct Pending {
    message: Message,
    resend: Resend,
}

/// What a datagram was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// The answer to the command that was asked last.
    Answer(Answer),
    /// Something of the serial line.
    Sol(sol::Packet),
    /// Nothing: it is as if it had not come.
    Discarded(Discarded),
}

/// Why a datagram is as good as none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Discarded {
    /// It is not what it should be.
    #[error("malformed: {0}")]
    Malformed(#[from] Malformed),
    /// It is of another session.
    #[error("of another session")]
    OtherSession,
    /// It is not authentic.
    #[error("not authentic: {0}")]
    Rejected(Rejected),
    /// It came before, or is from long ago.
    #[error("a repetition, or too old")]
    Repeated,
    /// It answers something else, such as an earlier command.
    #[error("an answer to something else")]
    NotAsked,
}

impl Session {
    pub(crate) fn plus(keys: Keys, random: Random, console_session: u32, bmc_session: u32) -> Self {
        Self::new(SessionKeys::Plus(keys), random, [console_session, bmc_session], [1, 1])
    }

    pub(crate) fn lan15(keys: Keys15, random: Random, session: u32, outgoing: u32, incoming: u32) -> Self {
        Self::new(SessionKeys::Lan15(keys), random, [session; 2], [outgoing, incoming])
    }

    fn new(keys: SessionKeys, random: Random, sessions: [u32; 2], [outgoing, incoming]: [u32; 2]) -> Self {
        Self {
            keys,
            random,
            console_session: sessions[0],
            bmc_session: sessions[1],
            outgoing,
            incoming: Window::starting_at(incoming),
            number: 0,
            pending: None,
        }
    }

    /// Whether it is one of RMCP+, encrypted; otherwise of IPMI 1.5.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        matches!(self.keys, SessionKeys::Plus(_))
    }

    /// Asks for a command. One that has not been answered yet will not be any more.
    pub fn ask<R: Request>(&mut self, request: &R, now: Instant) {
        self.number = (self.number + 1) & 0x3f;
        let message = Message {
            to: BMC,
            function: R::FUNCTION,
            to_unit: request.unit(),
            from: REMOTE_CONSOLE,
            sequence: self.number,
            from_unit: 0,
            command: R::COMMAND,
            body: request.data(),
        };
        self.pending = Some(Pending { message, resend: Resend::new(now, PAUSE) });
    }

    /// The command that ends the session.
    #[must_use]
    pub fn close(&self) -> CloseSession {
        CloseSession { session: self.bmc_session }
    }

    /// Whether a command has not been answered.
    #[must_use]
    pub fn is_asking(&self) -> bool {
        self.pending.is_some()
    }

    /// The datagram that is due, if any.
    pub fn send(&mut self, now: Instant) -> Option<Vec<u8>> {
        let pending = self.pending.as_mut()?;
        if !pending.resend.due(now) {
            return None;
        }
        let message = pending.message.encode();
        Some(self.seal(PayloadType::Ipmi, &message))
    }

    /// When [`Self::send`] has something; never, when no command is asked.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.pending.as_ref().map(|pending| pending.resend.next())
    }

    /// The datagram of a packet of the serial line; none in a session of IPMI 1.5, which has no such thing.
    pub fn sol(&mut self, packet: &sol::Packet) -> Option<Vec<u8>> {
        self.is_encrypted().then(|| self.seal(PayloadType::Sol, &packet.encode()))
    }

    /// Takes in a datagram.
    pub fn receive(&mut self, datagram: &[u8]) -> Received {
        self.read(datagram).unwrap_or_else(Received::Discarded)
    }

    fn read(&mut self, datagram: &[u8]) -> Result<Received, Discarded> {
        let (payload_type, session, sequence, payload) = match &self.keys {
            SessionKeys::Plus(keys) => {
                let packet = Packet::parse(datagram)?;
                // Before the keys are used, since it costs nothing.
                self.check(packet.session)?;
                let payload = keys.open(&packet).map_err(Discarded::Rejected)?;
                (packet.payload_type, packet.session, packet.sequence, payload)
            }
            SessionKeys::Lan15(keys) => {
                let packet = Packet15::parse(datagram)?;
                self.check(packet.session)?;
                let message = keys.open(&packet).map_err(Discarded::Rejected)?.to_vec();
                (PayloadType::Ipmi, packet.session, packet.sequence, message)
            }
        };
        debug_assert_eq!(session, self.console_session);
        if !self.incoming.accept(sequence) {
            return Err(Discarded::Repeated);
        }
        match payload_type {
            PayloadType::Ipmi => self.answer(&payload),
            PayloadType::Sol => Ok(Received::Sol(sol::Packet::parse(&payload)?)),
            _ => Err(Malformed("its payload has no place in a session").into()),
        }
    }

    fn check(&self, session: u32) -> Result<(), Discarded> {
        if session == self.console_session { Ok(()) } else { Err(Discarded::OtherSession) }
    }

    fn answer(&mut self, payload: &[u8]) -> Result<Received, Discarded> {
        let message = Message::parse(payload)?;
        let pending = self.pending.take_if(|Pending { message: asked, .. }| {
            message.function == asked.function | 1
                && message.command == asked.command
                && message.sequence == asked.sequence
        });
        match pending {
            Some(pending) => Ok(Received::Answer(Answer::new(message.body, pending.resend.sent()))),
            None => Err(Discarded::NotAsked),
        }
    }

    fn seal(&mut self, payload_type: PayloadType, payload: &[u8]) -> Vec<u8> {
        let sequence = self.outgoing;
        // Zero is for packets outside of sessions.
        self.outgoing = self.outgoing.checked_add(1).unwrap_or(1);
        match &self.keys {
            SessionKeys::Plus(keys) => {
                let mut iv = [0; 16];
                (self.random)(&mut iv);
                keys.seal(payload_type, self.bmc_session, sequence, payload, iv)
            }
            SessionKeys::Lan15(keys) => keys.seal(self.bmc_session, sequence, payload),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Credentials, Handshake, Privilege, Suite, Unusable, chassis};

    fn zeros(bytes: &mut [u8]) {
        bytes.fill(0);
    }

    fn keys() -> Keys {
        let handshake = Handshake {
            suite: Suite::Seventeen,
            console_session: 1,
            bmc_session: 2,
            console_random: [3; 16],
            bmc_random: [4; 16],
            guid: [5; 16],
            role: Handshake::role(Privilege::Operator),
            credentials: Credentials::new("admin", "secret").unwrap(),
        };
        handshake.keys()
    }

    /// The controller's answers to what a session sends.
    struct Controller(Keys, u32);

    impl Controller {
        fn answer(&mut self, datagram: &[u8], state: u8) -> Vec<u8> {
            let payload = self.0.open(&Packet::parse(datagram).unwrap()).unwrap();
            let answer = Message::parse(&payload).unwrap().answer(0, &[state, 0, 0]);
            self.1 += 1;
            self.0.seal(PayloadType::Ipmi, 1, self.1, &answer.encode(), [9; 16])
        }
    }

    #[test]
    fn late_and_repeated_answers_are_discarded() {
        let (mut session, mut bmc) = (Session::plus(keys(), zeros, 1, 2), Controller(keys(), 0));
        let now = Instant::now();
        assert_eq!(session.send(now), None);
        session.ask(&chassis::GetStatus, now);
        let first = session.send(now).unwrap();
        assert_eq!(session.send(now), None);
        let again = session.send(session.next().unwrap()).unwrap();
        // A packet that is sent again has a number of its own.
        assert_ne!(first, again);
        let late = bmc.answer(&first, 0);
        let answer = bmc.answer(&again, 1);
        let Received::Answer(answered) = session.receive(&answer) else { panic!("no answer") };
        assert!(answered.read(&chassis::GetStatus).unwrap().power);
        assert_eq!(answered.sent, 2);
        assert_eq!(session.receive(&answer), Received::Discarded(Discarded::Repeated));
        // The first one's answer comes although the second one's has been taken, and after the next command.
        session.ask(&chassis::GetStatus, now);
        assert_eq!(session.receive(&late), Received::Discarded(Discarded::NotAsked));
        assert!(session.is_asking());
    }

    #[test]
    fn other_sessions_and_forgeries_are_discarded() {
        let (mut session, now) = (Session::plus(keys(), zeros, 1, 2), Instant::now());
        session.ask(&chassis::GetStatus, now);
        let sent = session.send(now).unwrap();
        assert_eq!(session.receive(&sent), Received::Discarded(Discarded::OtherSession));
        let mut answer = Controller(keys(), 0).answer(&sent, 1);
        let end = answer.len() - 1;
        answer[end] ^= 1;
        assert_eq!(session.receive(&answer), Received::Discarded(Discarded::Rejected(Rejected::Forged)));
        let plain = Packet::outside(PayloadType::Ipmi, &[0; 20]);
        assert_eq!(session.receive(&plain), Received::Discarded(Discarded::OtherSession));
        answer[end] ^= 1;
        assert!(matches!(session.receive(&answer), Received::Answer(_)));
    }

    #[test]
    fn what_a_controller_refuses_is_told() {
        let (mut session, now) = (Session::plus(keys(), zeros, 1, 2), Instant::now());
        session.ask(&chassis::Control::Off, now);
        let sent = keys().open(&Packet::parse(&session.send(now).unwrap()).unwrap()).unwrap();
        let refused = Message::parse(&sent).unwrap().answer(0xd4, &[]);
        let answer = keys().seal(PayloadType::Ipmi, 1, 1, &refused.encode(), [0; 16]);
        let Received::Answer(answer) = session.receive(&answer) else { panic!("no answer") };
        let Err(Unusable::Refused(completion)) = answer.read(&chassis::Control::Off) else { panic!("not refused") };
        assert!(completion.is_privilege());
    }

    proptest! {
        #[test]
        fn anything_may_come(bytes: Vec<u8>) {
            let mut session = Session::plus(keys(), zeros, 1, 2);
            session.ask(&chassis::GetStatus, Instant::now());
            prop_assert!(matches!(session.receive(&bytes), Received::Discarded(_)));
        }

        #[test]
        fn the_order_on_the_way_does_not_matter(order in Just((0..8usize).collect::<Vec<_>>()).prop_shuffle()) {
            let (mut session, mut bmc) = (Session::plus(keys(), zeros, 1, 2), Controller(keys(), 0));
            session.ask(&chassis::GetStatus, Instant::now());
            let mut answers = Vec::new();
            while answers.len() < 8 {
                let sent = session.send(session.next().unwrap()).unwrap();
                answers.push(bmc.answer(&sent, 1));
            }
            let taken = order.iter().filter(|at| matches!(session.receive(&answers[**at]), Received::Answer(_))).count();
            prop_assert_eq!(taken, 1);
        }
    }
}
