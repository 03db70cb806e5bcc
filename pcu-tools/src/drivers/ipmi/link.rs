//! A socket and a clock around a session.

use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, ToSocketAddrs, UdpSocket},
    time::{Duration, Instant},
};

use orrery_rmcp::{Discarded, Login as Handshake, LoginError, Progress, Received, Request, Session, Unusable, sol};
use rustix::rand::{GetRandomFlags, getrandom};

use super::{Login, failure};
use crate::{Deadline, PcuError};

/// Longer than any datagram of a controller.
const DATAGRAM: usize = 2048;
/// How many datagrams may be nothing before whoever sends them is taken for broken.
const NONSENSE: u32 = 10_000;
/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// Being logged in. Dropping it ends the session.
#[derive(Debug)]
pub(super) struct Link {
    peer: Peer,
    session: Session,
    /// Whether the last command was sent more than once.
    repeated: bool,
}

/// Why there is no link.
#[derive(Debug)]
pub(super) enum Failure {
    /// The device has IPMI 1.5 only, and that was not allowed.
    Only15,
    /// Anything else.
    Other(PcuError),
}

/// A socket that hears one address.
#[derive(Debug)]
struct Peer {
    socket: UdpSocket,
    /// The device, for people.
    name: String,
    buffer: Vec<u8>,
    /// How many datagrams of the present exchange were nothing, and why the last one was.
    discarded: (u32, Option<Discarded>),
}

impl From<PcuError> for Failure {
    fn from(error: PcuError) -> Self {
        Self::Other(error)
    }
}

impl Link {
    /// Logs in. When the device lost its way between copies of a message, it is tried once more.
    pub(super) fn log_in(address: (&str, u16), user: &str, login: &Login, deadline: Deadline) -> Result<Self, Failure> {
        let user = if user.is_empty() { "the null user" } else { user };
        let doing = format!("logging in to {}:{} as {user}", address.0, address.1);
        let mut peer = Peer::connect(address, &doing)?;
        let session = match peer.log_in(login, &doing, deadline)? {
            Err((LoginError::Status(..), true)) => peer.log_in(login, &doing, deadline)?,
            outcome => outcome,
        };
        match session {
            Ok(session) => Ok(Self { peer, session, repeated: false }),
            Err((LoginError::Only15, _)) => Err(Failure::Only15),
            Err((error, _)) => Err(failure::login(doing, &error).into()),
        }
    }

    /// What protects the session, for people.
    pub(super) fn describe(&self) -> &'static str {
        if self.is_encrypted() { "IPMI 2.0, encrypted" } else { "IPMI 1.5, without encryption" }
    }

    /// Whether it is encrypted, which sessions of IPMI 1.5 are not.
    pub(super) fn is_encrypted(&self) -> bool {
        self.session.is_encrypted()
    }

    /// Asks for a command and waits for its answer.
    pub(super) fn ask<R: Request>(
        &mut self,
        request: &R,
        doing: &str,
        deadline: Deadline,
    ) -> Result<R::Answer, PcuError> {
        self.try_ask(request, doing, deadline)?.map_err(|error| failure::unusable(self.doing(doing), error))
    }

    /// The same for a change that cannot be asked for twice: where a copy was sent, what its refusal shows is that the first one
    /// was done.
    pub(super) fn ask_change<R: Request<Answer = ()>>(
        &mut self,
        request: &R,
        doing: &str,
        deadline: Deadline,
    ) -> Result<(), PcuError> {
        match self.try_ask(request, doing, deadline)? {
            Err(Unusable::Refused(completion)) if self.repeated && completion.may_be_repetition() => Ok(()),
            outcome => outcome.map_err(|error| failure::unusable(self.doing(doing), error)),
        }
    }

    /// The same, for whoever has a use for certain refusals.
    pub(super) fn try_ask<R: Request>(
        &mut self,
        request: &R,
        doing: &str,
        deadline: Deadline,
    ) -> Result<Result<R::Answer, Unusable>, PcuError> {
        let doing = self.doing(doing);
        self.peer.discarded = (0, None);
        self.session.ask(request, Instant::now());
        loop {
            if let Some(datagram) = self.session.send(Instant::now()) {
                self.peer.send(&datagram, &doing)?;
            }
            let next = self.session.next().expect("it asks");
            let Some(length) = self.peer.hear(next, &doing, deadline)? else { continue };
            match self.session.receive(&self.peer.buffer[..length]) {
                Received::Answer(answer) => {
                    self.repeated = answer.sent > 1;
                    return Ok(answer.read(request));
                }
                // What is left of a console; nobody listens any more.
                Received::Sol(_) => self.peer.discard(Discarded::NotAsked, &doing)?,
                Received::Discarded(why) => self.peer.discard(why, &doing)?,
            }
        }
    }

    /// Sends a packet of the serial line.
    pub(super) fn send_sol(&mut self, packet: &sol::Packet, doing: &str) -> Result<(), PcuError> {
        let datagram = self.session.sol(packet).ok_or_else(|| PcuError::Unsupported {
            doing: self.doing(doing),
            detail: "there is no serial over LAN in IPMI 1.5".into(),
        })?;
        self.peer.send(&datagram, &self.doing(doing))
    }

    /// Waits for a packet of the serial line until `until`; a command may be under way meanwhile.
    pub(super) fn hear_sol(&mut self, until: Instant, doing: &str) -> Result<Option<sol::Packet>, PcuError> {
        let doing = self.doing(doing);
        if let Some(datagram) = self.session.send(Instant::now()) {
            self.peer.send(&datagram, &doing)?;
        }
        let Some(length) = self.peer.hear_until(until, &doing)? else { return Ok(None) };
        match self.session.receive(&self.peer.buffer[..length]) {
            Received::Sol(packet) => {
                self.peer.discarded = (0, None);
                Ok(Some(packet))
            }
            Received::Answer(_) => Ok(None),
            Received::Discarded(why) => self.peer.discard(why, &doing).map(|()| None),
        }
    }

    /// Asks for a command whose answer nobody needs, if none is under way: so that the session stays alive.
    pub(super) fn keep_alive<R: Request>(&mut self, request: &R) {
        if !self.session.is_asking() {
            self.session.ask(request, Instant::now());
        }
    }

    /// "doing, on whom".
    pub(super) fn doing(&self, doing: &str) -> String {
        format!("{doing} at {}", self.peer.name)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let close = self.session.close();
        // Devices end sessions by themselves after a minute; this one may be gone.
        let _ = self.try_ask(&close, "logging out", Deadline::after(GOODBYE));
    }
}

impl Peer {
    fn connect((host, port): (&str, u16), doing: &str) -> Result<Self, PcuError> {
        let failed = |error| PcuError::transport(doing, error);
        let connect = |address: SocketAddr| {
            let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
            let socket = UdpSocket::bind(any)?;
            socket.connect(address)?;
            Ok(socket)
        };
        let mut last = io::Error::new(ErrorKind::NotFound, "the name has no address");
        for address in (host, port).to_socket_addrs().map_err(failed)? {
            match connect(address) {
                Ok(socket) => {
                    let name = format!("{host}:{port}");
                    return Ok(Self { socket, name, buffer: vec![0; DATAGRAM], discarded: (0, None) });
                }
                Err(error) => last = error,
            }
        }
        Err(failed(last))
    }

    /// A session; or why not, and whether copies of a message may have confused the device.
    fn log_in(
        &mut self,
        login: &Login,
        doing: &str,
        deadline: Deadline,
    ) -> Result<Result<Session, (LoginError, bool)>, PcuError> {
        self.discarded = (0, None);
        let Login { credentials, privilege, suites, lan15 } = login;
        let mut handshake = Handshake::new(
            credentials.clone(),
            *privilege,
            suites.clone(),
            lan15.clone(),
            fill_randomly,
            Instant::now(),
        );
        loop {
            match handshake.send(Instant::now()) {
                Ok(Some(datagram)) => self.send(&datagram, doing)?,
                Ok(None) => {}
                Err(error) => return Ok(Err((error, false))),
            }
            let step = format!("{doing}: waiting for the answer to {}", handshake.step());
            let Some(length) = self.hear(handshake.next(), &step, deadline)? else { continue };
            let resent = handshake.resent();
            handshake = match handshake.receive(&self.buffer[..length], Instant::now()) {
                Ok(Progress::Going(next)) => next,
                Ok(Progress::Discarded(same, why)) => {
                    self.discard(why, &step)?;
                    same
                }
                Ok(Progress::LoggedIn(session)) => return Ok(Ok(session)),
                Err(error) => {
                    if let LoginError::Password { farewell } = &error {
                        self.send(farewell, doing)?;
                    }
                    return Ok(Err((error, resent)));
                }
            };
        }
    }

    fn send(&self, datagram: &[u8], doing: &str) -> Result<(), PcuError> {
        self.socket.send(datagram).map(drop).map_err(|error| PcuError::transport(doing, error))
    }

    /// Waits for a datagram until `until`, and gives its length.
    ///
    /// # Errors
    /// [`PcuError::Timeout`] when the deadline is over, with what came instead of an answer.
    fn hear(&mut self, until: Instant, doing: &str, deadline: Deadline) -> Result<Option<usize>, PcuError> {
        let left = deadline.left(doing).map_err(|_| PcuError::Timeout { doing: self.so_far(doing) })?;
        self.hear_until(until.min(Instant::now() + left), doing)
    }

    fn hear_until(&mut self, until: Instant, doing: &str) -> Result<Option<usize>, PcuError> {
        let failed = |error| PcuError::transport(doing, error);
        // Zero would mean "for ever".
        let wait = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.socket.set_read_timeout(Some(wait)).map_err(failed)?;
        match self.socket.recv(&mut self.buffer) {
            Ok(length) => Ok(Some(length)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// Counts a datagram that is nothing.
    ///
    /// # Errors
    /// [`PcuError::BadAnswer`] when there are too many.
    fn discard(&mut self, why: Discarded, doing: &str) -> Result<(), PcuError> {
        self.discarded = (self.discarded.0 + 1, Some(why));
        if self.discarded.0 < NONSENSE {
            return Ok(());
        }
        let detail = format!("{NONSENSE} datagrams that are no answer; the last one: {why}");
        Err(PcuError::BadAnswer { doing: doing.into(), detail })
    }

    /// What was done, and what came of it besides an answer.
    fn so_far(&self, doing: &str) -> String {
        match self.discarded {
            (count, Some(why)) => format!("{doing} ({count} datagrams were no answer; the last one: {why})"),
            _ => doing.into(),
        }
    }
}

/// Randomness of the kernel, which it has at the latest when it starts programs.
fn fill_randomly(bytes: &mut [u8]) {
    let mut filled = 0;
    while filled < bytes.len() {
        filled += getrandom(&mut bytes[filled..], GetRandomFlags::empty()).unwrap_or(0);
    }
}
