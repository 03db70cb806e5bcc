//! The clock: never before the image was built, and right where somebody can be asked (RFC 4330).

use std::{
    fs,
    net::{IpAddr, SocketAddr, SocketAddrV4, UdpSocket},
    time::{Duration, Instant, UNIX_EPOCH},
};

use orrery_init_api::{CLOCK_PATH, FailureClass, RELEASE_PATH};
use orrery_protocol::NodeConfig;
use rsntp::{Config, SntpClient};
use rustix::time::{ClockId, Timespec, clock_settime};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    StageFailure, central,
    files::{read_json, write_json},
};

/// One server may take this long; a boot does not wait for a clock for ever.
const SERVER_TIMEOUT: Duration = Duration::from_millis(1000);
/// All servers together.
const TOTAL: Duration = Duration::from_secs(3);
const NTP_PORT: u16 = 123;
/// Clocks that differ by no more than this many seconds agree.
const AGREE: u64 = 60;

/// What the clock stands on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockState {
    /// `sntp`, `central`, `rtc` or `floor`.
    pub source: String,
}

/// A time to judge by, and how far it can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Judgement {
    /// In Unix seconds. Never before a time that is known to have passed.
    pub(crate) now: u64,
    /// Where it comes from, if that may be wrong.
    pub(crate) doubt: Option<Doubt>,
}

/// A source that may be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// The machine's own clock.
    Rtc,
    /// When the image was built.
    Floor,
    /// When a script was last obeyed.
    LastSeen,
}

impl Doubt {
    fn as_str(self) -> &'static str {
        match self {
            Self::Rtc => "rtc",
            Self::Floor => "floor",
            Self::LastSeen => "last-seen",
        }
    }
}

impl Judgement {
    /// A few words for whoever reads how something was judged by it; empty if there is no doubt.
    pub(crate) fn said(&self) -> String {
        let said = |doubt: Doubt| format!(" (this clock is from {} and may be wrong)", doubt.as_str());
        self.doubt.map(said).unwrap_or_default()
    }
}

/// What the time is, given that `last_seen` has passed. The clock may stand anywhere; what is known to have passed bounds it from
/// below, and nothing from above.
pub(crate) fn judgement(last_seen: u64) -> Judgement {
    let source = read_json::<ClockState>(CLOCK_PATH).map(|state| state.source).unwrap_or_default();
    judge(UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs()), &source, floor(), last_seen)
}

fn judge(clock: u64, source: &str, floor: u64, last_seen: u64) -> Judgement {
    let now = clock.max(floor).max(last_seen);
    let doubt = match source {
        _ if now > clock && now == last_seen => Some(Doubt::LastSeen),
        _ if now > clock => Some(Doubt::Floor),
        "sntp" | "central" => None,
        "floor" => Some(Doubt::Floor),
        _ => Some(Doubt::Rtc),
    };
    Judgement { now, doubt }
}

/// Takes the clock of a central that was verified, in Unix seconds, where no time server answered: forwards only, since a clock
/// that goes back revives what has expired. Returns a sentence about it if there is anything to say.
pub(crate) fn take_from_central(date: u64) -> Option<String> {
    let source = read_json::<ClockState>(CLOCK_PATH).ok()?.source;
    let clock = UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs());
    match weigh(date, clock, &source, floor()) {
        Weighed::Nothing => None,
        Weighed::Behind => Some(format!("the clock ({source}) is {} s ahead of central's, and stays", clock - date)),
        Weighed::Agrees => leave("central").is_ok().then(|| format!("clock from {source}, as central has it")),
        Weighed::Ahead => {
            set(Duration::from_secs(date)).ok()?;
            leave("central").ok()?;
            Some(format!("clock from central, stepped by +{} s from {source}", date - clock))
        }
    }
}

/// What central's clock says about ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weighed {
    /// Nothing: ours is better, or central's cannot be right.
    Nothing,
    /// Ours is far ahead, and one of them is wrong.
    Behind,
    /// The same.
    Agrees,
    /// Ours is behind.
    Ahead,
}

fn weigh(date: u64, clock: u64, source: &str, floor: u64) -> Weighed {
    match () {
        () if matches!(source, "sntp" | "central") || date < floor => Weighed::Nothing,
        () if date > clock => Weighed::Ahead,
        () if clock - date > AGREE => Weighed::Behind,
        () => Weighed::Agrees,
    }
}

#[derive(Debug, Error)]
enum ClockError {
    #[error("setting the clock")]
    Set(#[source] std::io::Error),
    #[error("no time server answered, the clock stays at {source_word}: {last}")]
    Silence { source_word: &'static str, last: String },
}

/// Sets the clock; returns a sentence about it.
///
/// # Errors
/// It cannot be set, or no configured server answered; the clock is then at least at its floor.
pub fn run(config: &NodeConfig) -> Result<String, StageFailure> {
    let fail = |e: ClockError| StageFailure::new(FailureClass::Clock, e);
    let source = raise_to_floor().map_err(fail)?;
    leave(source)?;
    if config.network.ntp.is_empty() {
        return Ok(format!("from {source}, no time server configured"));
    }
    let name_servers = central::name_servers(config);
    let end = Instant::now() + TOTAL;
    let mut last = String::new();
    for server in &config.network.ntp {
        if Instant::now() >= end {
            break;
        }
        match ask(server, &name_servers) {
            Ok(now) if now.as_secs() >= floor() => {
                let before = UNIX_EPOCH.elapsed().unwrap_or_default();
                set(now).map_err(fail)?;
                leave("sntp")?;
                let step = now.as_secs_f64() - before.as_secs_f64();
                return Ok(format!("from {server}, stepped by {step:+.3} s"));
            }
            Ok(now) => last = format!("{server} says {} (Unix seconds), before this image was built", now.as_secs()),
            Err(error) => last = format!("{server}: {error}"),
        }
    }
    Err(fail(ClockError::Silence { source_word: source, last }))
}

/// Unix seconds that the clock is never before: when this image was built.
fn floor() -> u64 {
    let release = fs::read_to_string(RELEASE_PATH).unwrap_or_default();
    release.lines().find_map(|line| line.strip_prefix("epoch=")?.trim().parse().ok()).unwrap_or(0)
}

fn raise_to_floor() -> Result<&'static str, ClockError> {
    let floor = floor();
    let now = UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs());
    if now >= floor {
        return Ok("rtc");
    }
    set(Duration::from_secs(floor))?;
    Ok("floor")
}

fn set(now: Duration) -> Result<(), ClockError> {
    let time = Timespec { tv_sec: now.as_secs().cast_signed(), tv_nsec: now.subsec_nanos().into() };
    clock_settime(ClockId::Realtime, time).map_err(|e| ClockError::Set(e.into()))
}

fn leave(source: &str) -> Result<(), StageFailure> {
    let state = ClockState { source: source.into() };
    write_json(CLOCK_PATH, &state).map_err(|e| StageFailure::new(FailureClass::Internal, e))
}

fn ask(server: &str, name_servers: &[IpAddr]) -> Result<Duration, String> {
    let (host, port) = split_port(server);
    let addresses = orrery_transport::lookup(host, name_servers).map_err(|e| e.to_string())?;
    let address = addresses.first().ok_or("no address")?;
    let local: SocketAddr = match address {
        IpAddr::V4(_) => SocketAddr::V4(SocketAddrV4::new([0, 0, 0, 0].into(), 0)),
        IpAddr::V6(_) => ([0u16; 8], 0).into(),
    };
    // Asking for a route first turns "network unreachable" into an error at once instead of a time-out.
    UdpSocket::bind(local).and_then(|s| s.connect((*address, port))).map_err(|e| e.to_string())?;
    let client = SntpClient::with_config(Config::default().timeout(SERVER_TIMEOUT).bind_address(local));
    let answer = client.synchronize(SocketAddr::new(*address, port).to_string()).map_err(|e| e.to_string())?;
    answer.datetime().unix_timestamp().map_err(|e| e.to_string())
}

fn split_port(server: &str) -> (&str, u16) {
    match server.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            port.parse().map_or((server, NTP_PORT), |port| (host, port))
        }
        _ => (server, NTP_PORT),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_time_is_as_good_as_its_source() {
        let check = |clock, source, floor, last_seen, now, doubt| {
            assert_eq!(judge(clock, source, floor, last_seen), Judgement { now, doubt }, "{clock} {source}");
        };
        check(100, "sntp", 50, 60, 100, None);
        check(100, "central", 50, 60, 100, None);
        check(100, "rtc", 50, 60, 100, Some(Doubt::Rtc));
        check(50, "floor", 50, 0, 50, Some(Doubt::Floor));
        check(50, "floor", 50, 60, 60, Some(Doubt::LastSeen));
        check(10, "rtc", 50, 0, 50, Some(Doubt::Floor));
        // A time server that lies, or a last boot by a clock that did.
        check(100, "sntp", 50, 200, 200, Some(Doubt::LastSeen));
        check(10, "", 50, 0, 50, Some(Doubt::Floor));
        assert_eq!(judge(100, "sntp", 0, 0).said(), "");
        assert_eq!(judge(100, "rtc", 0, 0).said(), " (this clock is from rtc and may be wrong)");
    }

    #[test]
    fn central_moves_a_clock_forwards_only() {
        let check = |date, clock, source, expect| assert_eq!(weigh(date, clock, source, 500), expect, "{date} {clock}");
        check(2000, 1000, "rtc", Weighed::Ahead);
        check(2000, 1000, "floor", Weighed::Ahead);
        check(2000, 1000, "sntp", Weighed::Nothing);
        check(2000, 1000, "central", Weighed::Nothing);
        check(1000, 1000, "rtc", Weighed::Agrees);
        check(1000, 1000 + AGREE, "rtc", Weighed::Agrees);
        check(1000, 1001 + AGREE, "rtc", Weighed::Behind);
        check(499, 100, "rtc", Weighed::Nothing);
    }

    proptest! {
        #[test]
        fn no_clock_revives_what_has_expired(clock: u64, floor: u64, last_seen: u64, expires: u64, source in "sntp|central|rtc|floor") {
            let judged = judge(clock, &source, floor, last_seen);
            prop_assert!(judged.now >= floor && judged.now >= last_seen && judged.now >= clock);
            if expires <= floor.max(last_seen) {
                prop_assert!(judged.now >= expires);
            }
            // The time is one of the three, and only one that was asked for is free of doubt.
            prop_assert!([clock, floor, last_seen].contains(&judged.now));
            if judged.doubt.is_none() {
                prop_assert!(judged.now == clock && ["sntp", "central"].contains(&source.as_str()));
            }
        }
    }

    #[test]
    fn servers_with_and_without_port() {
        let check = |text, expect| assert_eq!(split_port(text), expect);
        check("pool.example", ("pool.example", 123));
        check("10.0.0.1:1123", ("10.0.0.1", 1123));
        check("[2001:db8::1]:1123", ("[2001:db8::1]", 1123));
        check("2001:db8::1", ("2001:db8::1", 123));
    }
}
