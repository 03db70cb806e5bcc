//! From knowing a name and a password to a [`Session`].

use std::{
    fmt,
    time::{Duration, Instant},
};

use thiserror::Error;

use crate::{
    Authentication15, Completion, Credentials, Discarded, Handshake, Malformed, OpenSession, Opened, Packet,
    PayloadType, Privilege, Proof, Rakp1, Rakp2, Rakp3, Rakp4, Random, Received, Request, Resend, Session, Status,
    Suite, Unusable,
    capabilities::{GetCapabilities, answer_outside, outside},
    command::{Activate, GetChallenge, SetPrivilege},
    lan15::{Keys15, Packet15},
};

/// The first pause. Old controllers need a second for a message of RAKP, and an answer to a first copy that comes after the
/// second copy was sent does not fit the controller's state any more.
const PAUSE: Duration = Duration::from_millis(1500);
/// How often a session of IPMI 1.5 is activated in vain before the password is taken for wrong: controllers say nothing then.
const ACTIVATIONS: u32 = 3;

/// Logging in. It is given datagrams and the time, and becomes a [`Session`].
pub struct Login {
    setup: Setup,
    stage: Stage,
    resend: Resend,
    resent: bool,
}

struct Setup {
    credentials: Credentials,
    privilege: Privilege,
    suites: Vec<Suite>,
    lan15: Vec<Authentication15>,
    random: Random,
    /// The controller has a key of its own.
    bmc_key: bool,
}

/// What is asked now. It has no `Debug`: a datagram may contain the password.
enum Stage {
    Capabilities(GetCapabilities),
    /// And the suites to propose after this one.
    Opening(OpenSession, Vec<Suite>),
    First {
        suite: Suite,
        console_session: u32,
        message: Rakp1,
    },
    Third(Box<Handshake>, Rakp3),
    Challenge(Authentication15, GetChallenge),
    Activating {
        how: Authentication15,
        request: Activate,
        datagram: Vec<u8>,
    },
    Raising(Box<Session>),
}

/// Where a login is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Get Channel Authentication Capabilities.
    Capabilities,
    /// Open Session.
    Open,
    /// RAKP messages 1 and 2: the controller shows that it knows the password.
    First,
    /// RAKP messages 3 and 4: we do.
    Third,
    /// Get Session Challenge of IPMI 1.5.
    Challenge,
    /// Activate Session of IPMI 1.5.
    Activate,
    /// Set Session Privilege Level.
    Privilege,
}

/// What became of a login with a datagram.
#[derive(Debug)]
pub enum Progress {
    /// It is as if the datagram had not come.
    Discarded(Login, Discarded),
    /// The next step.
    Going(Login),
    /// Done.
    LoggedIn(Session),
}

/// Why there is no session.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LoginError {
    /// The controller has IPMI 1.5 alone, which is not allowed.
    #[error("the device has sessions of IPMI 1.5 only")]
    Only15,
    /// None of the ways to log in that are allowed is offered.
    #[error("the device offers no way to log in that is allowed: {0}")]
    NoWay(&'static str),
    /// The controller declines, in RMCP+.
    #[error("{0}: {1}")]
    Status(Step, Status),
    /// The controller declines a command.
    #[error("{0}: {1}")]
    Completion(Step, Completion),
    /// The password is not the controller's: its code in RAKP message 2 is another. A controller without such an account may
    /// make one up, too.
    #[error("RAKP message 2 does not fit the password: it is wrong, or there is no such user")]
    Password {
        /// Tells the controller, so that it does not keep the half of a session: the last datagram to send.
        farewell: Vec<u8>,
    },
    /// The controller is silent where it would be with a wrong password.
    #[error("the device does not answer the activation of the session, as with a wrong password")]
    Silent,
    /// The password is longer than those of IPMI 1.5.
    #[error("the password is longer than the 16 bytes of IPMI 1.5")]
    LongPassword,
    /// Who knew the password in message 2 has another key in message 4.
    #[error("RAKP message 4 is not authentic{}", if *.bmc_key { ": the device has a BMC key (K_G), which is not supported" } else { "" })]
    Key {
        /// The controller says that it has a key of its own, which explains it.
        bmc_key: bool,
    },
    /// The controller chose other algorithms than it was asked for: it, or somebody in between, wants weaker ones.
    #[error("the device chose other algorithms than cipher suite {}", *.0 as u8)]
    Downgrade(Suite),
    /// The session has less privilege than it was asked for.
    #[error("the device gives the session privilege {0} only")]
    Privilege(u8),
    /// What the controller says makes no sense.
    #[error("{0}: {1}")]
    Malformed(Step, Malformed),
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("step", &self.step()).finish_non_exhaustive()
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Capabilities => "Get Channel Authentication Capabilities",
            Self::Open => "Open Session",
            Self::First => "RAKP message 1",
            Self::Third => "RAKP message 3",
            Self::Challenge => "Get Session Challenge",
            Self::Activate => "Activate Session",
            Self::Privilege => "Set Session Privilege Level",
        })
    }
}

/// The next stage, or why a datagram is none of it.
type Next = Result<Result<Stage, Discarded>, LoginError>;

impl Login {
    /// A login as `credentials` for `privilege`, with the first of `suites` that the controller offers. If it has IPMI 1.5 only,
    /// with the first of `lan15`.
    #[must_use]
    pub fn new(
        credentials: Credentials,
        privilege: Privilege,
        suites: Vec<Suite>,
        lan15: Vec<Authentication15>,
        random: Random,
        now: Instant,
    ) -> Self {
        let stage = Stage::Capabilities(GetCapabilities { privilege, extended: true });
        let setup = Setup { credentials, privilege, suites, lan15, random, bmc_key: false };
        Self { setup, stage, resend: Resend::new(now, PAUSE), resent: false }
    }

    /// Where it is.
    #[must_use]
    pub fn step(&self) -> Step {
        match self.stage {
            Stage::Capabilities(_) => Step::Capabilities,
            Stage::Opening(..) => Step::Open,
            Stage::First { .. } => Step::First,
            Stage::Third(..) => Step::Third,
            Stage::Challenge(..) => Step::Challenge,
            Stage::Activating { .. } => Step::Activate,
            Stage::Raising(_) => Step::Privilege,
        }
    }

    /// Whether something was sent more than once: then the controller may have answered an earlier copy, and refuse what
    /// follows from the later one's answer.
    #[must_use]
    pub fn resent(&self) -> bool {
        self.resent
    }

    /// The datagram that is due, if any.
    ///
    /// # Errors
    /// [`LoginError::Silent`] when there is no use in sending it again.
    pub fn send(&mut self, now: Instant) -> Result<Option<Vec<u8>>, LoginError> {
        if let Stage::Raising(session) = &mut self.stage {
            return Ok(session.send(now));
        }
        if !self.resend.due(now) {
            return Ok(None);
        }
        self.resent |= self.resend.sent() > 1;
        Ok(Some(match &self.stage {
            Stage::Capabilities(request) => request.datagram(),
            Stage::Opening(request, _) => Packet::outside(PayloadType::OpenRequest, &request.encode()),
            Stage::First { message, .. } => Packet::outside(PayloadType::Rakp1, &message.encode()),
            Stage::Third(_, message) => Packet::outside(PayloadType::Rakp3, &message.encode()),
            Stage::Challenge(_, request) => outside(request),
            Stage::Activating { .. } if self.resend.sent() > ACTIVATIONS => return Err(LoginError::Silent),
            Stage::Activating { datagram, .. } => datagram.clone(),
            Stage::Raising(_) => unreachable!("it was handled above"),
        }))
    }

    /// When [`Self::send`] has something.
    #[must_use]
    pub fn next(&self) -> Instant {
        match &self.stage {
            Stage::Raising(session) => session.next().unwrap_or(self.resend.next()),
            _ => self.resend.next(),
        }
    }

    /// Takes in a datagram.
    ///
    /// # Errors
    /// When it says that there will be no session.
    pub fn receive(mut self, datagram: &[u8], now: Instant) -> Result<Progress, LoginError> {
        if let Stage::Raising(session) = &mut self.stage {
            let answer = match session.receive(datagram) {
                Received::Answer(answer) => answer,
                Received::Sol(_) => return Ok(Progress::Discarded(self, Discarded::NotAsked)),
                Received::Discarded(why) => return Ok(Progress::Discarded(self, why)),
            };
            let granted = answer.read(&SetPrivilege(self.setup.privilege)).map_err(unusable(Step::Privilege))?;
            let Stage::Raising(session) = self.stage else { unreachable!("it was matched above") };
            return if granted >= self.setup.privilege as u8 {
                Ok(Progress::LoggedIn(*session))
            } else {
                Err(LoginError::Privilege(granted))
            };
        }
        let next = match &self.stage {
            Stage::Capabilities(request) => capabilities(&mut self.setup, *request, datagram),
            Stage::Opening(request, left) => opening(&self.setup, request, left, datagram),
            Stage::First { suite, console_session, message } => {
                first(&self.setup, *suite, *console_session, message, datagram)
            }
            Stage::Third(handshake, message) => third(&self.setup, handshake, message, datagram, now),
            Stage::Challenge(how, request) => challenge(&self.setup, *how, request, datagram),
            Stage::Activating { how, request, .. } => activating(&self.setup, *how, request, datagram, now),
            Stage::Raising(_) => unreachable!("it was handled above"),
        };
        match next? {
            Ok(stage) => {
                self.stage = stage;
                self.resend = Resend::new(now, PAUSE);
                Ok(Progress::Going(self))
            }
            Err(why) => Ok(Progress::Discarded(self, why)),
        }
    }
}

fn capabilities(setup: &mut Setup, request: GetCapabilities, datagram: &[u8]) -> Next {
    let found = match request.read(datagram) {
        Ok(found) => found,
        Err(Unusable::Malformed(malformed)) => return Ok(Err(malformed.into())),
        // A controller of IPMI 1.5 does not know the bit.
        Err(Unusable::Refused(Completion::INVALID_FIELD)) if request.extended => {
            return Ok(Ok(Stage::Capabilities(GetCapabilities { extended: false, ..request })));
        }
        Err(Unusable::Refused(completion)) => return Err(LoginError::Completion(Step::Capabilities, completion)),
    };
    setup.bmc_key = found.bmc_key;
    if found.rmcp_plus {
        return match setup.suites.split_first() {
            Some((suite, left)) => Ok(Ok(propose(setup, *suite, left))),
            None => Err(LoginError::NoWay("no cipher suite is")),
        };
    }
    if setup.lan15.is_empty() {
        return Err(LoginError::Only15);
    }
    let offered = |how: &&Authentication15| match how {
        Authentication15::Md5 => found.md5,
        Authentication15::Password => found.password,
    };
    let how = setup.lan15.iter().find(offered).ok_or(LoginError::NoWay("IPMI 1.5 without MD5"))?;
    let request = GetChallenge { authentication: *how as u8, name: setup.credentials.padded_name() };
    Ok(Ok(Stage::Challenge(*how, request)))
}

fn propose(setup: &Setup, suite: Suite, left: &[Suite]) -> Stage {
    let [tag, _, _, _] = random(setup);
    // Zero means "no session".
    let console_session = u32::from_le_bytes(random(setup)).max(1);
    Stage::Opening(OpenSession { tag, console_session, suite }, left.to_vec())
}

fn opening(setup: &Setup, request: &OpenSession, left: &[Suite], datagram: &[u8]) -> Next {
    let opened = match outside_session(datagram, PayloadType::OpenResponse).and_then(Opened::parse) {
        Ok(opened)
            if opened.tag == request.tag
                && ours(opened.console_session, request.console_session, opened.outcome.is_err()) =>
        {
            opened
        }
        Ok(_) => return Ok(Err(Discarded::NotAsked)),
        Err(malformed) => return Ok(Err(malformed.into())),
    };
    let (bmc_session, suite) = match opened.outcome {
        Ok(opened) => opened,
        Err(status) => {
            return match left.split_first() {
                Some((suite, left)) if status.is_suite() => Ok(Ok(propose(setup, *suite, left))),
                _ => Err(LoginError::Status(Step::Open, status)),
            };
        }
    };
    if suite != Some(request.suite) {
        return Err(LoginError::Downgrade(request.suite));
    }
    let message = Rakp1 {
        tag: request.tag.wrapping_add(1),
        bmc_session,
        console_random: random(setup),
        role: Handshake::role(setup.privilege),
        name: setup.credentials.name().to_vec(),
    };
    Ok(Ok(Stage::First { suite: request.suite, console_session: request.console_session, message }))
}

fn first(setup: &Setup, suite: Suite, console_session: u32, message: &Rakp1, datagram: &[u8]) -> Next {
    let second = match outside_session(datagram, PayloadType::Rakp2).and_then(Rakp2::parse) {
        Ok(second)
            if second.tag == message.tag && ours(second.console_session, console_session, second.outcome.is_err()) =>
        {
            second
        }
        Ok(_) => return Ok(Err(Discarded::NotAsked)),
        Err(malformed) => return Ok(Err(malformed.into())),
    };
    let Proof { bmc_random, guid, code } = second.outcome.map_err(|status| LoginError::Status(Step::First, status))?;
    let handshake = Handshake {
        suite,
        console_session,
        bmc_session: message.bmc_session,
        console_random: message.console_random,
        bmc_random,
        guid,
        role: message.role,
        credentials: setup.credentials.clone(),
    };
    let tag = message.tag.wrapping_add(1);
    if !handshake.proves_password(&code) {
        let farewell = Rakp3 { tag, status: Status(0x0f), bmc_session: message.bmc_session, code: Vec::new() };
        return Err(LoginError::Password { farewell: Packet::outside(PayloadType::Rakp3, &farewell.encode()) });
    }
    let third = Rakp3 { tag, status: Status(0), bmc_session: message.bmc_session, code: handshake.third_code() };
    Ok(Ok(Stage::Third(Box::new(handshake), third)))
}

fn third(setup: &Setup, handshake: &Handshake, message: &Rakp3, datagram: &[u8], now: Instant) -> Next {
    let fourth = match outside_session(datagram, PayloadType::Rakp4).and_then(Rakp4::parse) {
        Ok(fourth)
            if fourth.tag == message.tag
                && ours(fourth.console_session, handshake.console_session, fourth.outcome.is_err()) =>
        {
            fourth
        }
        Ok(_) => return Ok(Err(Discarded::NotAsked)),
        Err(malformed) => return Ok(Err(malformed.into())),
    };
    let code = fourth.outcome.map_err(|status| LoginError::Status(Step::Third, status))?;
    if !handshake.proves_key(&code) {
        return Err(LoginError::Key { bmc_key: setup.bmc_key });
    }
    let session = Session::plus(handshake.keys(), setup.random, handshake.console_session, handshake.bmc_session);
    Ok(Ok(raise(setup, session, now)))
}

fn challenge(setup: &Setup, how: Authentication15, request: &GetChallenge, datagram: &[u8]) -> Next {
    let answer = match answer_outside(datagram, request) {
        Ok(answer) => answer,
        Err(malformed) => return Ok(Err(malformed.into())),
    };
    let (session, challenge) = answer.read(request).map_err(unusable(Step::Challenge))?;
    let outbound = u32::from_le_bytes(random(setup)).max(1);
    let request = Activate { authentication: how as u8, privilege: setup.privilege, challenge, outbound };
    let message = crate::Message {
        to: crate::BMC,
        function: Activate::FUNCTION,
        to_unit: 0,
        from: crate::REMOTE_CONSOLE,
        sequence: 0,
        from_unit: 0,
        command: Activate::COMMAND,
        body: request.data(),
    };
    let datagram = keys15(setup, how)?.seal(session, 0, &message.encode());
    Ok(Ok(Stage::Activating { how, request, datagram }))
}

fn activating(setup: &Setup, how: Authentication15, request: &Activate, datagram: &[u8], now: Instant) -> Next {
    let keys = keys15(setup, how)?;
    let read = || -> Result<crate::Answer, Discarded> {
        let packet = Packet15::parse(datagram)?;
        // A refusal comes without authentication, since there is no session to authenticate.
        let refused = packet.authentication == 0 && crate::Message::parse(packet.message)?.body.first() != Some(&0);
        let message = if refused { packet.message } else { keys.open(&packet).map_err(Discarded::Rejected)? };
        let message = crate::Message::parse(message)?;
        if message.function != Activate::FUNCTION | 1 || message.command != Activate::COMMAND {
            return Err(Discarded::NotAsked);
        }
        Ok(crate::Answer::new(message.body, 1))
    };
    let answer = match read() {
        Ok(answer) => answer,
        Err(why) => return Ok(Err(why)),
    };
    let (authentication, session, inbound) = answer.read(request).map_err(unusable(Step::Activate))?;
    if authentication != how as u8 {
        return Err(LoginError::NoWay("it leaves authentication away after the login"));
    }
    let session = Session::lan15(keys, setup.random, session, inbound, request.outbound);
    Ok(Ok(raise(setup, session, now)))
}

/// Every session starts with the privilege of a user at most.
fn raise(setup: &Setup, mut session: Session, now: Instant) -> Stage {
    session.ask(&SetPrivilege(setup.privilege), now);
    Stage::Raising(Box::new(session))
}

fn keys15(setup: &Setup, how: Authentication15) -> Result<Keys15, LoginError> {
    Ok(Keys15::new(how, setup.credentials.password15().ok_or(LoginError::LongPassword)?))
}

/// Whether a reply is to our session; a refusal may leave its number away.
fn ours(number: u32, expected: u32, refusal: bool) -> bool {
    number == expected || refusal && number == 0
}

/// The payload of a packet that opens a session.
fn outside_session(datagram: &[u8], expected: PayloadType) -> Result<&[u8], Malformed> {
    let packet = Packet::parse(datagram)?;
    if packet.payload_type != expected || packet.session != 0 || packet.authenticated || packet.encrypted {
        return Err(Malformed("it is of another step"));
    }
    Ok(packet.payload)
}

fn unusable(step: Step) -> impl Fn(Unusable) -> LoginError {
    move |error| match error {
        Unusable::Refused(completion) => LoginError::Completion(step, completion),
        Unusable::Malformed(malformed) => LoginError::Malformed(step, malformed),
    }
}

fn random<const N: usize>(setup: &Setup) -> [u8; N] {
    let mut bytes = [0; N];
    (setup.random)(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests;
