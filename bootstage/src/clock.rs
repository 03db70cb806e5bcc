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

use crate::{StageFailure, central, files::write_json};

/// One server may take this long; a boot does not wait for a clock for ever.
const SERVER_TIMEOUT: Duration = Duration::from_millis(1000);
/// All servers together.
const TOTAL: Duration = Duration::from_secs(3);
const NTP_PORT: u16 = 123;

/// What the clock stands on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockState {
    /// `sntp`, `rtc` or `floor`.
    pub source: String,
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
    use super::*;

    #[test]
    fn servers_with_and_without_port() {
        let check = |text, expect| assert_eq!(split_port(text), expect);
        check("pool.example", ("pool.example", 123));
        check("10.0.0.1:1123", ("10.0.0.1", 1123));
        check("[2001:db8::1]:1123", ("[2001:db8::1]", 1123));
        check("2001:db8::1", ("2001:db8::1", 123));
    }
}
