//! What somebody in the place of a management controller sends, before and after a login.

use std::time::Instant;

use orrery_rmcp::{
    Credentials, Login, Message, Packet, Privilege, Progress, Request, Suite,
    capabilities::GetCapabilities,
    chassis,
    command::{ActivateSol, GetDeviceId},
    presence::Pong,
    sdr, sel, sol,
};

/// Randomness as the seeds expect it.
fn ones(bytes: &mut [u8]) {
    bytes.fill(1);
}

/// Pieces of the input, each with its length in two bytes before it.
fn pieces(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk()?;
        let (piece, rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
        bytes = rest;
        Some(piece)
    })
}

/// What anybody may send: what is understood survives being written again.
pub(crate) fn datagram(bytes: &[u8]) -> bool {
    let pong = Pong::parse(bytes);
    if let Ok(pong) = pong {
        assert_eq!(Pong::parse(&pong.encode()), Ok(pong));
    }
    let packet = Packet::parse(bytes);
    if let Ok(packet) = packet {
        assert!(packet.payload.len() <= bytes.len());
    }
    if let Ok(message) = Message::parse(bytes) {
        assert_eq!(message.encode(), bytes);
    }
    let capabilities = GetCapabilities { privilege: Privilege::Operator, extended: true }.read(bytes);
    pong.is_ok() || packet.is_ok() || capabilities.is_ok()
}

/// Answers to somebody who logs in: the good ones are those of a controller that knows the password.
pub(crate) fn login(bytes: &[u8]) -> bool {
    let now = Instant::now();
    let credentials = Credentials::new("admin", "secret").expect("they are short");
    let suites = vec![Suite::Seventeen, Suite::Three];
    let mut login = Login::new(credentials, Privilege::Operator, suites, Vec::new(), ones, now);
    for datagram in pieces(bytes) {
        let _ = login.send(now);
        login = match login.receive(datagram, now) {
            Ok(Progress::Going(next) | Progress::Discarded(next, _)) => next,
            Ok(Progress::LoggedIn(mut session)) => {
                session.ask(&GetDeviceId, now);
                let _ = session.receive(datagram);
                return true;
            }
            Err(_) => return false,
        };
    }
    false
}

/// The data of an answer: the first byte says to which command.
pub(crate) fn answer(bytes: &[u8]) -> bool {
    let Some((command, data)) = bytes.split_first() else { return false };
    match command % 8 {
        0 => GetDeviceId.parse(data).is_ok(),
        1 => chassis::GetStatus.parse(data).is_ok(),
        2 => ActivateSol.parse(data).is_ok(),
        3 => sdr::GetReading { unit: 0, number: 0 }.parse(data).is_ok(),
        4 => sdr::GetRecord { reservation: 0, id: 0, offset: 0, length: 16 }
            .parse(data)
            .is_ok_and(|part| part.bytes.len() <= 16),
        5 => sel::GetEntry { id: 0 }.parse(data).is_ok_and(|entry| !entry.event.describe().is_empty()),
        6 => GetCapabilities { privilege: Privilege::Operator, extended: true }.parse(data).is_ok(),
        _ => {
            let Ok(Some(sensor)) = sdr::Sensor::parse(data) else { return false };
            for raw in 0..=u8::MAX {
                let value = sensor.scale.and_then(|scale| scale.value(raw));
                assert!(value.is_none_or(f64::is_finite));
                assert!(!sensor.status(sdr::Reading { raw: Some(raw), states: raw.into() }).is_empty());
            }
            assert!(!sensor.name.chars().any(char::is_control));
            true
        }
    }
}

/// Packets of a serial line on which we send, too: no character is given twice, and none is invented.
pub(crate) fn serial(bytes: &[u8]) -> bool {
    let now = Instant::now();
    let mut line = sol::Line::new(64);
    line.write(&[b'x'; 300]).expect("there is room");
    let (mut came, mut given) = (0, 0);
    for payload in pieces(bytes) {
        if let Ok(Some(sent)) = line.send(now) {
            assert!(sent.characters.len() <= 64 - sol::HEADER);
        }
        let Ok(packet) = sol::Packet::parse(payload) else { continue };
        came += packet.characters.len();
        match line.receive(&packet, now) {
            Ok(characters) => given += characters.len(),
            Err(_) => break,
        }
        assert!(given <= came);
    }
    given > 0
}
