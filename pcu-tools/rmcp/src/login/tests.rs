//! A login with a controller that is given in full, and may behave badly at one step.

use super::*;
use crate::{BMC, Keys, Message, Rejected, wrap};

fn ones(bytes: &mut [u8]) {
    bytes.fill(1);
}

/// What the controller does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behaviour {
    Well,
    /// It has cipher suite 3 only.
    Only3,
    /// It chooses no algorithms at all.
    NoAlgorithms,
    /// It knows another password.
    OtherPassword,
    /// It has another key, as with K_G.
    OtherKey,
    /// It refuses message 3.
    RefusesThird,
    /// It gives a session less privilege.
    LessPrivilege,
    /// It has IPMI 1.5 only.
    Only15,
    /// It does not know the bit that asks for IPMI 2.0, and has IPMI 1.5 only.
    Before20,
    /// It is Before20, and knows another password.
    Before20OtherPassword,
}

struct Controller {
    behaviour: Behaviour,
    handshake: Option<Handshake>,
    keys: Option<Keys>,
    proposed: Option<OpenSession>,
}

impl Controller {
    fn is_old(&self) -> bool {
        matches!(self.behaviour, Behaviour::Only15 | Behaviour::Before20 | Behaviour::Before20OtherPassword)
    }

    fn answer(&mut self, datagram: &[u8]) -> Option<Vec<u8>> {
        if let Ok(packet) = Packet15::parse(datagram) {
            return self.answer15(&packet);
        }
        let packet = Packet::parse(datagram).unwrap();
        let outside = |kind, payload: Vec<u8>| Some(Packet::outside(kind, &payload));
        match packet.payload_type {
            PayloadType::OpenRequest => {
                let asked = OpenSession::parse(packet.payload).unwrap();
                self.proposed = Some(asked);
                let outcome = match self.behaviour {
                    Behaviour::Only3 if asked.suite == Suite::Seventeen => Err(Status(0x11)),
                    _ => Ok((7, Some(asked.suite))),
                };
                let mut payload = Opened { tag: asked.tag, console_session: asked.console_session, outcome }.encode();
                if self.behaviour == Behaviour::NoAlgorithms {
                    (payload[16], payload[24], payload[32]) = (0, 0, 0);
                }
                outside(PayloadType::OpenResponse, payload)
            }
            PayloadType::Rakp1 => {
                let first = Rakp1::parse(packet.payload).unwrap();
                let OpenSession { console_session, suite, .. } = self.proposed.unwrap();
                let password = if self.behaviour == Behaviour::OtherPassword { "other" } else { "secret" };
                let handshake = Handshake {
                    suite,
                    console_session,
                    bmc_session: first.bmc_session,
                    console_random: first.console_random,
                    bmc_random: [2; 16],
                    guid: [3; 16],
                    role: first.role,
                    credentials: Credentials::new(str::from_utf8(&first.name).unwrap(), password).unwrap(),
                };
                let Handshake { bmc_random, guid, .. } = handshake;
                let outcome = Ok(Proof { bmc_random, guid, code: handshake.second_code() });
                self.handshake = Some(handshake);
                outside(PayloadType::Rakp2, Rakp2 { tag: first.tag, console_session, outcome }.encode())
            }
            PayloadType::Rakp3 => {
                let third = Rakp3::parse(packet.payload).unwrap();
                let handshake = self.handshake.as_ref().unwrap();
                if third.status != Status(0) {
                    return None;
                }
                assert_eq!(third.code, handshake.third_code());
                let mut code = handshake.fourth_code();
                code[0] ^= u8::from(self.behaviour == Behaviour::OtherKey);
                let outcome = if self.behaviour == Behaviour::RefusesThird { Err(Status(0x0f)) } else { Ok(code) };
                self.keys = Some(handshake.keys());
                let console_session = handshake.console_session;
                outside(PayloadType::Rakp4, Rakp4 { tag: third.tag, console_session, outcome }.encode())
            }
            _ => {
                let keys = self.keys.as_ref().unwrap();
                let asked = Message::parse(&keys.open(&packet).unwrap()).unwrap();
                assert_eq!((asked.to, asked.command), (BMC, SetPrivilege::COMMAND));
                let granted = if self.behaviour == Behaviour::LessPrivilege { 2 } else { asked.body[0] };
                let console_session = self.handshake.as_ref().unwrap().console_session;
                let message = asked.answer(0, &[granted]).encode();
                Some(keys.seal(PayloadType::Ipmi, console_session, 1, &message, [4; 16]))
            }
        }
    }

    fn answer15(&mut self, packet: &Packet15<'_>) -> Option<Vec<u8>> {
        let asked = Message::parse(packet.message).unwrap();
        let other = self.behaviour == Behaviour::Before20OtherPassword;
        let password = if other { "other" } else { "secret" };
        let password = Credentials::new("admin", password).unwrap().password15().unwrap();
        let keys = Keys15::new(Authentication15::Md5, password);
        match asked.command {
            GetCapabilities::COMMAND => {
                let before = self.is_old() && self.behaviour != Behaviour::Only15;
                let refused = before && asked.body[0] & 0x80 != 0;
                let kinds = if self.is_old() { 0x04 } else { 0x84 };
                let answer = if refused {
                    asked.answer(0xcc, &[])
                } else {
                    asked.answer(
                        0,
                        &[1, kinds, if self.behaviour == Behaviour::OtherKey { 0x24 } else { 4 }, 2, 0, 0, 0, 0],
                    )
                };
                Some(Packet15::outside(&answer.encode()))
            }
            GetChallenge::COMMAND => {
                assert_eq!(&asked.body[..6], b"\x02admin");
                let data = [&9u32.to_le_bytes()[..], &[8; 16]].concat();
                Some(Packet15::outside(&asked.answer(0, &data).encode()))
            }
            Activate::COMMAND => {
                assert_eq!(packet.session, 9);
                // With another password, it says nothing.
                keys.open(packet).ok()?;
                assert_eq!(asked.body[..18], [&[2, 3], &[8; 16][..]].concat());
                let data = [&[2][..], &10u32.to_le_bytes(), &77u32.to_le_bytes(), &[3]].concat();
                let outbound = u32::from_le_bytes(asked.body[18..22].try_into().unwrap());
                Some(keys.seal(10, outbound, &asked.answer(0, &data).encode()))
            }
            SetPrivilege::COMMAND => {
                keys.open(packet).unwrap();
                assert_eq!((packet.session, packet.sequence), (10, 77));
                Some(keys.seal(10, u32::from_le_bytes([1; 4]) + 1, &asked.answer(0, &asked.body).encode()))
            }
            other => panic!("it is asked for {other:02x}h"),
        }
    }
}

/// Logs in, and gives what became of it, and the suites or commands on the way.
fn log_in(behaviour: Behaviour, lan15: &[Authentication15]) -> Result<Session, LoginError> {
    let mut now = Instant::now();
    let credentials = Credentials::new("admin", "secret").unwrap();
    let suites = vec![Suite::Seventeen, Suite::Three];
    let mut login = Login::new(credentials, Privilege::Operator, suites, lan15.to_vec(), ones, now);
    let mut controller = Controller { behaviour, handshake: None, keys: None, proposed: None };
    loop {
        let Some(datagram) = login.send(now)? else {
            now = login.next();
            continue;
        };
        let Some(answer) = controller.answer(&datagram) else { continue };
        // Whatever else comes before the answer changes nothing.
        let noise: [&[u8]; 4] = [b"", &datagram, &answer[..answer.len() - 1], &wrap(crate::Class::Ipmi, &[6; 40])];
        for datagram in noise {
            login = match login.receive(datagram, now)? {
                Progress::Discarded(login, _) => login,
                progress => panic!("{progress:?}"),
            };
        }
        login = match login.receive(&answer, now)? {
            Progress::Going(login) => login,
            Progress::LoggedIn(session) => return Ok(session),
            Progress::Discarded(login, Discarded::Rejected(Rejected::Forged)) => login,
            Progress::Discarded(_, why) => panic!("{why}"),
        };
    }
}

#[test]
fn who_knows_the_password_gets_a_session() {
    assert!(log_in(Behaviour::Well, &[]).unwrap().is_encrypted());
    assert!(log_in(Behaviour::Only3, &[]).unwrap().is_encrypted());
    for behaviour in [Behaviour::Only15, Behaviour::Before20] {
        assert!(!log_in(behaviour, &[Authentication15::Md5]).unwrap().is_encrypted());
    }
}

#[test]
fn everything_else_is_an_error_of_its_own() {
    let check = |behaviour, lan15: &[Authentication15], expected: fn(&LoginError) -> bool| {
        let error = log_in(behaviour, lan15).unwrap_err();
        assert!(expected(&error), "{behaviour:?}: {error:?}");
    };
    check(Behaviour::NoAlgorithms, &[], |error| *error == LoginError::Downgrade(Suite::Seventeen));
    check(Behaviour::OtherPassword, &[], |error| {
        let LoginError::Password { farewell } = error else { return false };
        let packet = Packet::parse(farewell).unwrap();
        Rakp3::parse(packet.payload).unwrap().status == Status(0x0f)
    });
    check(Behaviour::OtherKey, &[], |error| *error == LoginError::Key { bmc_key: true });
    check(Behaviour::RefusesThird, &[], |error| *error == LoginError::Status(Step::Third, Status(0x0f)));
    check(Behaviour::LessPrivilege, &[], |error| *error == LoginError::Privilege(2));
    check(Behaviour::Only15, &[], |error| *error == LoginError::Only15);
    check(Behaviour::Before20, &[], |error| *error == LoginError::Only15);
    check(Behaviour::Only15, &[Authentication15::Password], |error| matches!(error, LoginError::NoWay(_)));
    check(Behaviour::Before20OtherPassword, &[Authentication15::Md5], |error| *error == LoginError::Silent);
}
