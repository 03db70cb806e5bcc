//! Whether a controller is at an address: what anybody may ask.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use orrery_rmcp::{
    Privilege, Resend,
    capabilities::{Capabilities, GetCapabilities},
    presence::{self, Pong},
};

use crate::{
    Deadline,
    discover::{Found, Probe},
};

/// How long the other answer may take after the first one.
const OTHER: Duration = Duration::from_millis(300);
/// When what was not answered is asked again.
const AGAIN: Duration = Duration::from_millis(400);
/// The most datagrams that are looked at.
const DATAGRAMS: u32 = 100;
/// Marks our ping.
const TAG: u8 = 0x4f;
/// ASF's own enterprise number: what a controller says that does not say who made it.
const NOBODY: u32 = 4542;

/// Looks for controllers of servers.
#[derive(Debug, Clone, Copy)]
pub struct IpmiProbe {
    /// The UDP port; 623 everywhere but in tests.
    pub port: u16,
}

impl Default for IpmiProbe {
    fn default() -> Self {
        Self { port: orrery_rmcp::PORT }
    }
}

impl Probe for IpmiProbe {
    fn probe(&self, address: IpAddr, deadline: Deadline) -> Option<Found> {
        let address = SocketAddr::new(address, self.port);
        let (pong, capabilities) = ask(address, deadline);
        describe(pong, capabilities).map(|detail| Found { address, driver: "ipmi", detail })
    }
}

/// Both questions at once: some controllers answer one of them only.
fn ask(address: SocketAddr, deadline: Deadline) -> (Option<Pong>, Option<Capabilities>) {
    let (mut pong, mut capabilities) = (None, None);
    let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0)).and_then(|socket| socket.connect(address).map(|()| socket));
    let Ok(socket) = socket else { return (pong, capabilities) };
    let request = GetCapabilities { privilege: Privilege::Operator, extended: true };
    let (mut resend, mut deadline, mut buffer) = (Resend::new(Instant::now(), AGAIN), deadline, [0; 512]);
    for _ in 0..DATAGRAMS {
        if resend.due(Instant::now()) {
            for question in [presence::ping(TAG), request.datagram()] {
                // Nobody there says so sometimes; then nobody answers either.
                let _ = socket.send(&question);
            }
        }
        let Ok(left) = deadline.left("") else { break };
        let wait = left.min(resend.next().saturating_duration_since(Instant::now())).max(Duration::from_millis(1));
        if socket.set_read_timeout(Some(wait)).is_err() {
            break;
        }
        match socket.recv(&mut buffer) {
            Ok(length) => {
                let datagram = &buffer[..length];
                if let Ok(found) = Pong::parse(datagram) {
                    pong = pong.or(Some(found).filter(|pong| pong.tag == TAG));
                } else if let Ok(found) = request.read(datagram) {
                    capabilities = capabilities.or(Some(found));
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => break,
            Err(_) => continue,
        }
        match (&pong, &capabilities) {
            (Some(_), Some(_)) => break,
            (None, None) => {}
            _ => deadline = deadline.at_most(OTHER),
        }
    }
    (pong, capabilities)
}

/// What answered, for people; none when it is no controller.
fn describe(pong: Option<Pong>, capabilities: Option<Capabilities>) -> Option<String> {
    let mut detail = match capabilities {
        Some(Capabilities { rmcp_plus: true, .. }) => "IPMI 2.0".to_owned(),
        Some(_) => "IPMI 1.5 only, which needs the waiver lan15".to_owned(),
        None => pong.filter(|pong| pong.ipmi).map(|_| "IPMI".to_owned())?,
    };
    if let Some(pong) = pong.filter(|pong| pong.enterprise != NOBODY) {
        detail += &format!(", enterprise {}{}", pong.enterprise, maker(pong.enterprise));
    }
    if capabilities.is_some_and(|found| found.anonymous) {
        detail += "; it lets anybody in without a name and a password";
    }
    Some(detail)
}

/// Makers of servers, by IANA's enterprise numbers.
fn maker(enterprise: u32) -> &'static str {
    match enterprise {
        2 => " (IBM)",
        11 => " (Hewlett-Packard)",
        343 => " (Intel)",
        674 => " (Dell)",
        10876 => " (Super Micro)",
        19046 => " (Lenovo)",
        47196 => " (Hewlett Packard Enterprise)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_an_answer() {
        let pong = |enterprise, ipmi| Some(Pong { tag: TAG, enterprise, ipmi });
        let capabilities = |rmcp_plus, anonymous| {
            Some(Capabilities { rmcp_plus, md5: true, password: false, bmc_key: false, anonymous })
        };
        let check = |pong, capabilities, expected: Option<&str>| {
            assert_eq!(describe(pong, capabilities).as_deref(), expected);
        };
        check(pong(NOBODY, true), capabilities(true, false), Some("IPMI 2.0"));
        check(pong(674, true), None, Some("IPMI, enterprise 674 (Dell)"));
        check(None, capabilities(false, false), Some("IPMI 1.5 only, which needs the waiver lan15"));
        check(
            pong(10876, true),
            capabilities(true, true),
            Some("IPMI 2.0, enterprise 10876 (Super Micro); it lets anybody in without a name and a password"),
        );
        check(pong(NOBODY, false), None, None);
        check(None, None, None);
    }
}
