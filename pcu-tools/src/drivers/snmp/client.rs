//! Talking to one device: requests are repeated until an answer comes, and what is not the answer is passed over.

use std::{
    io,
    net::{SocketAddr, ToSocketAddrs, UdpSocket},
    time::Duration,
};

use super::{
    credentials::Credentials,
    message::{self, Answer, Request, Unusable, Value, Version},
    object::ObjectId,
    usm::{self, Engine, Heard, Refusal, User},
};
use crate::{Deadline, PcuError};

/// How long is waited for an answer before asking again; the last of them for all further times.
const WAITS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// How long is waited for an answer in all. Datagrams get lost, but not for so long.
const PATIENCE: Duration = Duration::from_secs(15);
/// How many datagrams that are no answer are looked at for one request. Late answers to a repeated request are among them.
const USELESS: usize = 64;
/// How often a device may say during one request that its engine or time is another.
const LESSONS: usize = 4;
/// Most rows of a table that are read.
const ROWS: usize = 512;
/// Largest datagram.
const DATAGRAM: usize = 65_507;

/// A device that is asked by one user or community.
pub(super) struct Client {
    socket: UdpSocket,
    peer: String,
    credentials: Credentials,
    engine: Option<Engine>,
    id: i32,
    buffer: Box<[u8]>,
}

/// Whether a request whose answer is missing is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// It does the same twice as once.
    Harmless,
    /// Twice is not the same as once.
    Never,
}

impl Client {
    /// A socket to the device. Nothing is sent.
    ///
    /// # Errors
    /// When the name is unknown, or there is no route.
    pub(super) fn new(host: &str, port: u16, credentials: Credentials) -> Result<Self, PcuError> {
        let peer = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let socket = connect(host, port).map_err(|error| PcuError::transport(format!("looking for {peer}"), error))?;
        let mut id = [0; 4];
        rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| PcuError::transport(format!("asking {peer}"), error.into()))?;
        // Positive, and far from the end.
        let id = i32::from_be_bytes(id) & 0x3fff_ffff;
        Ok(Self { socket, peer, credentials, engine: None, id, buffer: vec![0; DATAGRAM].into() })
    }

    /// What errors say was tried.
    pub(super) fn doing(&self, what: &str) -> String {
        format!("{what} of {} by SNMP {}", self.peer, self.credentials)
    }

    /// An object's value.
    ///
    /// # Errors
    /// When the device does not say.
    pub(super) fn get(&mut self, object: &ObjectId, deadline: Deadline) -> Result<Value, PcuError> {
        let doing = self.doing(&format!("reading {object}"));
        let answer = self.ask(Request::Get(object), Repeat::Harmless, &doing, deadline)?;
        match (answer.status, answer.binding) {
            (0, Some((name, value))) if name == *object => Ok(value),
            // Version 1 knows no better.
            (snmp2::snmp::ERRSTATUS_NOSUCHNAME, _) => Ok(Value::Absent),
            (0, _) => Err(PcuError::BadAnswer { doing, detail: "it says another object's value".into() }),
            (status, _) => Err(declined(doing, status, false)),
        }
    }

    /// Gives an object a value.
    ///
    /// # Errors
    /// When the device does not take it.
    pub(super) fn set(
        &mut self,
        object: &ObjectId,
        value: i32,
        repeat: Repeat,
        deadline: Deadline,
    ) -> Result<(), PcuError> {
        let doing = self.doing(&format!("setting {object} to {value}"));
        let answer = self.ask(Request::Set(object, value), repeat, &doing, deadline)?;
        match (answer.status, answer.binding) {
            (0, Some((_, Value::Absent))) => {
                Err(PcuError::Refused { doing, detail: "it says that there is no such object".into() })
            }
            (0, _) => Ok(()),
            (status, _) => Err(declined(doing, status, true)),
        }
    }

    /// All that is below `column`, by what follows in the names; at most some hundred rows.
    ///
    /// # Errors
    /// When the device does not say, or goes round in circles.
    pub(super) fn walk(&mut self, column: &ObjectId, deadline: Deadline) -> Result<Vec<(Vec<u32>, Value)>, PcuError> {
        let doing = self.doing(&format!("reading what is below {column}"));
        let mut rows = Vec::new();
        let mut last = column.clone();
        while rows.len() < ROWS {
            let answer = self.ask(Request::Next(&last), Repeat::Harmless, &doing, deadline)?;
            let (name, value) = match (answer.status, answer.binding) {
                (snmp2::snmp::ERRSTATUS_NOSUCHNAME, _) | (0, Some((_, Value::Absent)) | None) => break,
                (0, Some(binding)) => binding,
                (status, _) => return Err(declined(doing, status, false)),
            };
            let Some(row) = name.below(column) else { break };
            if name <= last {
                return Err(PcuError::BadAnswer { doing, detail: format!("{name} comes after {last}") });
            }
            rows.push((row.to_vec(), value));
            last = name;
        }
        Ok(rows)
    }

    fn ask(
        &mut self,
        request: Request<'_>,
        repeat: Repeat,
        doing: &str,
        deadline: Deadline,
    ) -> Result<Answer, PcuError> {
        for _ in 0..LESSONS {
            self.id = self.id.wrapping_add(1);
            match self.once(request, repeat, doing, deadline.at_most(PATIENCE))? {
                Heard::Answer(answer) => return Ok(answer),
                Heard::Learnt => {}
                Heard::Refusal(refusal) => return Err(self.refused(doing, &refusal)),
            }
        }
        let detail = "its SNMP engine is another one each time, or its clock jumps".into();
        Err(PcuError::BadAnswer { doing: doing.into(), detail })
    }

    /// Sends a request, again where that is harmless, until something comes that answers it.
    fn once(
        &mut self,
        request: Request<'_>,
        repeat: Repeat,
        doing: &str,
        deadline: Deadline,
    ) -> Result<Heard, PcuError> {
        // Looking for the engine changes nothing.
        let repeat = if self.engine.is_none() && self.credentials.user().is_some() { Repeat::Harmless } else { repeat };
        let mut useless = Useless::default();
        // Nothing is asked too late.
        deadline.left(doing)?;
        for attempt in 0.. {
            let packet = self.packet(request, doing)?;
            self.socket.send(&packet).map_err(|error| PcuError::transport(doing, error))?;
            let turn = match repeat {
                Repeat::Harmless => deadline.at_most(WAITS[attempt.min(WAITS.len() - 1)]),
                Repeat::Never => deadline,
            };
            if let Some(heard) = self.receive(turn, &mut useless, doing)? {
                return Ok(heard);
            }
            if deadline.passed() || repeat == Repeat::Never {
                break;
            }
        }
        Err(useless.instead_of_an_answer(doing, &self.credentials))
    }

    /// Waits until `turn` for something that answers the last request.
    fn receive(&mut self, turn: Deadline, useless: &mut Useless, doing: &str) -> Result<Option<Heard>, PcuError> {
        while let Ok(left) = turn.left(doing) {
            self.socket.set_read_timeout(Some(left)).map_err(|error| PcuError::transport(doing, error))?;
            let length = match self.socket.recv(&mut self.buffer) {
                Ok(length) => length,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(PcuError::transport(doing, error)),
            };
            match self.hear(length) {
                Ok(heard) => return Ok(Some(heard)),
                Err(why) => useless.add(why, doing)?,
            }
        }
        Ok(None)
    }

    fn packet(&self, request: Request<'_>, doing: &str) -> Result<Vec<u8>, PcuError> {
        match (&self.credentials, &self.engine) {
            (Credentials::Community(version, community), _) => {
                Ok(message::request(*version, community.reveal().as_bytes(), request, self.id))
            }
            (Credentials::User(_), None) => Ok(usm::discovery(self.id)),
            (Credentials::User(user), Some(engine)) => engine.seal(user, request, self.id).map_err(|error| {
                PcuError::Configuration { doing: doing.into(), detail: format!("sealing a request: {error}") }
            }),
        }
    }

    fn hear(&mut self, length: usize) -> Result<Heard, Unusable> {
        let (datagram, id) = (&self.buffer[..length], self.id);
        let user = match &self.credentials {
            Credentials::Community(version, community) => {
                return message::answer(datagram, *version, community.reveal().as_bytes(), id).map(Heard::Answer);
            }
            Credentials::User(user) => user,
        };
        let Some(engine) = &mut self.engine else {
            self.engine = Some(usm::discovered(datagram, user, id)?);
            return Ok(Heard::Learnt);
        };
        match engine.open(datagram, id)? {
            Heard::Refusal(Refusal::Time) => {
                engine.believe_time(datagram, id);
                Ok(Heard::Learnt)
            }
            Heard::Refusal(Refusal::Engine) => {
                self.engine = None;
                Ok(Heard::Learnt)
            }
            heard => Ok(heard),
        }
    }

    fn refused(&self, doing: &str, refusal: &Refusal) -> PcuError {
        let doing = doing.to_owned();
        let Some(user) = self.credentials.user() else {
            return PcuError::BadAnswer { doing, detail: "it refuses as version 3 does".into() };
        };
        let detail = match refusal {
            Refusal::User => format!("it does not know the user {:?} for SNMP version 3", user.name),
            Refusal::Signature => {
                format!("the password of {:?} is wrong, or it does not sign with {:?}", user.name, user.auth)
            }
            Refusal::Decryption => decryption(user),
            Refusal::Level => format!(
                "{:?} may not talk {} encryption: set, or leave out, privacy",
                user.name,
                if user.privacy.is_some() { "with" } else { "without" }
            ),
            Refusal::Time | Refusal::Engine | Refusal::Other(_) => {
                return PcuError::BadAnswer { doing, detail: format!("it refuses: {refusal:?}") };
            }
        };
        PcuError::Authentication { doing, detail }
    }
}

fn decryption(user: &User) -> String {
    let name = &user.name;
    format!(
        "the privacy password of {name:?} is wrong, or it uses another cipher, or makes keys longer in the other way \
         (key_extension)"
    )
}

fn connect(host: &str, port: u16) -> io::Result<UdpSocket> {
    let address = (host, port).to_socket_addrs()?.next();
    let address = address.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address"))?;
    let any: SocketAddr = if address.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any)?;
    // From here on, only this peer's datagrams arrive.
    socket.connect(address)?;
    Ok(socket)
}

/// Datagrams that were no answer.
#[derive(Default)]
struct Useless {
    count: usize,
    last: Option<Unusable>,
}

impl Useless {
    fn add(&mut self, why: Unusable, doing: &str) -> Result<(), PcuError> {
        self.count += 1;
        let full = self.count > USELESS;
        let detail = format!("{} datagrams and no answer among them; the last one: {why}", self.count);
        self.last = Some(why);
        if full { Err(PcuError::BadAnswer { doing: doing.into(), detail }) } else { Ok(()) }
    }

    fn instead_of_an_answer(self, doing: &str, credentials: &Credentials) -> PcuError {
        match self.last {
            Some(why) => {
                let detail = format!("{} datagrams and no answer among them; the last one: {why}", self.count);
                PcuError::BadAnswer { doing: doing.into(), detail }
            }
            None => PcuError::Timeout { doing: format!("{doing} (no answer; {})", credentials.silence()) },
        }
    }
}

/// What an error status says (RFC 3416, section 3).
fn declined(doing: String, status: u32, writing: bool) -> PcuError {
    use snmp2::snmp::{
        ERRSTATUS_AUTHORIZATIONERROR, ERRSTATUS_BADVALUE, ERRSTATUS_COMMITFAILED, ERRSTATUS_GENERR,
        ERRSTATUS_INCONSISTENTVALUE, ERRSTATUS_NOACCESS, ERRSTATUS_NOCREATION, ERRSTATUS_NOSUCHNAME,
        ERRSTATUS_NOTWRITABLE, ERRSTATUS_READONLY, ERRSTATUS_RESOURCEUNAVAILABLE, ERRSTATUS_WRONGTYPE,
        ERRSTATUS_WRONGVALUE,
    };
    let named = |name: &str| format!("{name} ({status})");
    match status {
        ERRSTATUS_NOSUCHNAME if writing => {
            let detail = named("noSuchName") + ": by version 1 that also means that this community may only read";
            PcuError::Privilege { doing, detail }
        }
        ERRSTATUS_READONLY => PcuError::Privilege { doing, detail: named("readOnly") },
        ERRSTATUS_NOACCESS => PcuError::Privilege { doing, detail: named("noAccess") },
        ERRSTATUS_NOTWRITABLE => PcuError::Privilege { doing, detail: named("notWritable") },
        ERRSTATUS_AUTHORIZATIONERROR => PcuError::Privilege { doing, detail: named("authorizationError") },
        ERRSTATUS_INCONSISTENTVALUE => PcuError::Busy { doing, detail: named("inconsistentValue: not now") },
        ERRSTATUS_RESOURCEUNAVAILABLE => PcuError::Busy { doing, detail: named("resourceUnavailable") },
        ERRSTATUS_GENERR => PcuError::Refused { doing, detail: named("genErr") },
        ERRSTATUS_COMMITFAILED => PcuError::Refused { doing, detail: named("commitFailed") },
        ERRSTATUS_BADVALUE => PcuError::Refused { doing, detail: named("badValue") },
        ERRSTATUS_WRONGTYPE..=ERRSTATUS_WRONGVALUE => PcuError::Refused { doing, detail: named("wrong type or value") },
        ERRSTATUS_NOCREATION => PcuError::Unsupported { doing, detail: named("noCreation: there is no such object") },
        _ => PcuError::Refused { doing, detail: format!("error status {status}") },
    }
}

impl Credentials {
    /// What it may mean that a device says nothing.
    fn silence(&self) -> &'static str {
        match self {
            Self::Community(Version::V1 | Version::V2c, _) => {
                "SNMP agents drop a request with a wrong community, or from an address that they do not serve, without a word"
            }
            Self::User(_) => {
                "is SNMP version 3 on, and does it serve this address? Some agents drop what they do not trust"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Class;

    #[test]
    fn error_statuses_have_classes() {
        let check = |status: u32, reading: Class, writing: Class| {
            assert_eq!(declined("x".into(), status, false).class(), reading, "reading, {status}");
            assert_eq!(declined("x".into(), status, true).class(), writing, "writing, {status}");
        };
        check(2, Class::Refused, Class::Privilege);
        for status in [4, 6, 16, 17] {
            check(status, Class::Privilege, Class::Privilege);
        }
        for status in [12, 13] {
            check(status, Class::Busy, Class::Busy);
        }
        for status in [1, 3, 5, 7, 8, 9, 10, 14, 15, 18, 99] {
            check(status, Class::Refused, Class::Refused);
        }
        check(11, Class::Unsupported, Class::Unsupported);
    }
}
