//! A small controller with cipher suite 17, which `ipmi_sim` does not have, and with bad manners on demand. That it computes what
//! controllers compute is shown by `ipmitool`, which logs in to it.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use orrery_rmcp::{
    Class, Credentials, Handshake, Keys, Message, OpenSession, Opened, Packet, PayloadType, Proof, Rakp1, Rakp2, Rakp3,
    Rakp4, Status, Suite, unwrap, wrap,
};

/// What it does badly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Manners {
    /// Every second datagram that comes is lost.
    pub(crate) lossy: bool,
    /// Every answer comes after forgeries, repetitions, cut and foreign packets.
    pub(crate) noisy: bool,
    /// It proves to know another password.
    pub(crate) impostor: bool,
    /// It opens a session without any authentication, whatever was asked for.
    pub(crate) downgrade: bool,
    /// The answer to the first control of the chassis is lost; a copy of the command is refused as a duplicate.
    pub(crate) once: bool,
    /// How commands of the chassis that change something end.
    pub(crate) completion: u8,
}

/// A running controller. Dropping it ends it.
pub(crate) struct Bmc {
    /// Its UDP port on 127.0.0.1.
    pub(crate) port: u16,
    /// The last control of the chassis; 0xff for none.
    pub(crate) controlled: Arc<AtomicU8>,
    /// For how many seconds the lamp was to be lit.
    pub(crate) lit: Arc<AtomicU8>,
    /// Whether the last session was closed.
    pub(crate) closed: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// The session, of which there is one at a time.
struct Inside {
    keys: Keys,
    console_session: u32,
    sequence: u32,
}

struct Answering {
    socket: UdpSocket,
    manners: Manners,
    power: u8,
    controlled: Arc<AtomicU8>,
    lit: Arc<AtomicU8>,
    closed: Arc<AtomicBool>,
    opening: Option<(u32, Suite)>,
    exchanged: Option<Handshake>,
    inside: Option<Inside>,
    last: Vec<u8>,
}

const BMC_SESSION: u32 = 0x0102_0304;

impl Bmc {
    /// Starts one with the power off; it lets `admin` in with `secret`, and never `viewer`, who may not switch power.
    pub(crate) fn start(manners: Manners) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let port = socket.local_addr().unwrap().port();
        let [controlled, lit] = [0xff, 0xff].map(|value| Arc::new(AtomicU8::new(value)));
        let closed = Arc::new(AtomicBool::new(false));
        let ended = Arc::new(AtomicBool::new(false));
        let mut answering = Answering {
            socket,
            manners,
            power: 0,
            controlled: Arc::clone(&controlled),
            lit: Arc::clone(&lit),
            closed: Arc::clone(&closed),
            opening: None,
            exchanged: None,
            inside: None,
            last: Vec::new(),
        };
        let end = Arc::clone(&ended);
        let thread = thread::spawn(move || {
            let (mut buffer, mut count) = ([0; 2048], 0u32);
            while !end.load(Ordering::Relaxed) {
                let Ok((length, from)) = answering.socket.recv_from(&mut buffer) else { continue };
                count += 1;
                if !(manners.lossy && count % 2 == 1) {
                    answering.take(&buffer[..length], from);
                }
            }
        });
        Self { port, controlled, lit, closed, ended, thread: Some(thread) }
    }
}

impl Drop for Bmc {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

impl Answering {
    /// Takes in a datagram; what it does not understand it ignores, as controllers do.
    fn take(&mut self, datagram: &[u8], from: SocketAddr) {
        let Ok((Class::Ipmi, body)) = unwrap(datagram) else { return };
        let answer = if body.first() == Some(&0) { capabilities(body) } else { self.plus(datagram) };
        let Some(answer) = answer else { return };
        if self.manners.noisy {
            self.noise(&answer, from);
        }
        self.socket.send_to(&answer, from).unwrap();
        self.last = answer;
    }

    fn plus(&mut self, datagram: &[u8]) -> Option<Vec<u8>> {
        let packet = Packet::parse(datagram).ok()?;
        match packet.payload_type {
            PayloadType::OpenRequest => {
                let request = OpenSession::parse(packet.payload).ok()?;
                let (tag, console_session) = (request.tag, request.console_session);
                let outcome = match request.suite {
                    Suite::Three => Err(Status(0x11)),
                    suite => Ok((BMC_SESSION, Some(suite))),
                };
                self.opening = Some((console_session, request.suite));
                let mut payload = Opened { tag, console_session, outcome }.encode();
                if self.manners.downgrade {
                    // The algorithms' numbers.
                    for at in [16, 24, 32] {
                        payload[at] = 0;
                    }
                }
                Some(Packet::outside(PayloadType::OpenResponse, &payload))
            }
            PayloadType::Rakp1 => {
                let first = Rakp1::parse(packet.payload).ok()?;
                let (console_session, suite) = self.opening?;
                let reply = |outcome| {
                    let payload = Rakp2 { tag: first.tag, console_session, outcome }.encode();
                    Some(Packet::outside(PayloadType::Rakp2, &payload))
                };
                match &first.name[..] {
                    b"admin" => {}
                    b"viewer" => return reply(Err(Status(0x0a))),
                    _ => return reply(Err(Status(0x0d))),
                }
                let password = if self.manners.impostor { "guessed" } else { "secret" };
                let handshake = Handshake {
                    suite,
                    console_session,
                    bmc_session: first.bmc_session,
                    console_random: first.console_random,
                    bmc_random: [0x5a; 16],
                    guid: [0xa5; 16],
                    role: first.role,
                    credentials: Credentials::new("admin", password).unwrap(),
                };
                let (bmc_random, guid, code) = (handshake.bmc_random, handshake.guid, handshake.second_code());
                self.exchanged = Some(handshake);
                reply(Ok(Proof { bmc_random, guid, code }))
            }
            PayloadType::Rakp3 => {
                let third = Rakp3::parse(packet.payload).ok()?;
                let handshake = self.exchanged.as_ref()?;
                let console_session = handshake.console_session;
                let outcome = if third.code == handshake.third_code() {
                    self.inside = Some(Inside { keys: handshake.keys(), console_session, sequence: 0 });
                    self.closed.store(false, Ordering::Relaxed);
                    Ok(handshake.fourth_code())
                } else {
                    Err(Status(0x0f))
                };
                let payload = Rakp4 { tag: third.tag, console_session, outcome }.encode();
                Some(Packet::outside(PayloadType::Rakp4, &payload))
            }
            PayloadType::Ipmi => self.command(&packet),
            _ => None,
        }
    }

    fn command(&mut self, packet: &Packet<'_>) -> Option<Vec<u8>> {
        let inside = self.inside.as_mut()?;
        let payload = inside.keys.open(packet).ok()?;
        let request = Message::parse(&payload).ok()?;
        let answer = match (request.function, request.command) {
            (6, 0x3b) => request.answer(0, &request.body),
            (6, 0x3c) => {
                self.closed.store(true, Ordering::Relaxed);
                request.answer(0, &[])
            }
            (6, 0x01) => request.answer(0, &[0x20, 1, 2, 0x34, 0x51, 0xbf, 0x7c, 0x2a, 0, 1, 0]),
            (0, 0x01) => request.answer(0, &[self.power, 0, 0]),
            (0, 0x02) if self.manners.once => {
                let before = self.controlled.swap(*request.body.first()?, Ordering::Relaxed);
                self.power = u8::from(request.body != [0]);
                if before == 0xff {
                    return None;
                }
                request.answer(0xcf, &[])
            }
            (0, 0x02) => {
                self.controlled.store(*request.body.first()?, Ordering::Relaxed);
                if self.manners.completion == 0 {
                    self.power = u8::from(request.body != [0]);
                }
                request.answer(self.manners.completion, &[])
            }
            (0, 0x04) => {
                self.lit.store(*request.body.first()?, Ordering::Relaxed);
                request.answer(0, &[])
            }
            _ => request.answer(0xc1, &[]),
        };
        inside.sequence += 1;
        let iv = [0x77; 16];
        Some(inside.keys.seal(PayloadType::Ipmi, inside.console_session, inside.sequence, &answer.encode(), iv))
    }

    fn noise(&self, answer: &[u8], to: SocketAddr) {
        let mut forged = answer.to_vec();
        // Of a login's messages, nothing shows a forgery: it is believed, and ends the login.
        if answer[5] & 0x40 != 0 {
            *forged.last_mut().unwrap() ^= 1;
        } else {
            forged[4] = 0x55;
        }
        let mut foreign = answer.to_vec();
        foreign[6] ^= 1;
        let cut = &answer[..answer.len() - 1];
        for datagram in
            [&forged[..], &foreign, cut, &answer[..10], &self.last, b"", &[0xff; 1400], &wrap(Class::Ipmi, b"")]
        {
            self.socket.send_to(datagram, to).unwrap();
        }
    }
}

/// Says that there is IPMI 2.0, to whoever asks without a session.
fn capabilities(body: &[u8]) -> Option<Vec<u8>> {
    let request = Message::parse(body.get(10..)?).ok()?;
    let answer = match request.command {
        0x38 => request.answer(0, &[1, 0x80, 4, 2, 0, 0, 0, 0]),
        _ => request.answer(0xc1, &[]),
    };
    let message = answer.encode();
    let length = u8::try_from(message.len()).unwrap();
    Some(wrap(Class::Ipmi, &[&[0; 9], &[length][..], &message].concat()))
}
