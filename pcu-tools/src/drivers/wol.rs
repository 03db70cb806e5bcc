//! Wake-on-LAN: a packet that a sleeping network card wakes its machine by. Nothing answers.

use std::net::UdpSocket;

use serde::Deserialize;

use crate::{Ability, Change, Deadline, Driver, Method, PcuError, PowerState, Proof, Session};

/// How often the packet is sent: it may get lost, and waking twice does no harm.
const COPIES: usize = 3;

/// Sends a magic packet (AMD, *Magic Packet Technology*, 20213) to the broadcast address. `address` is the card's.
#[derive(Debug)]
pub(super) struct WakeOnLan;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// Where it is sent to, with the port.
    #[serde(default = "everybody")]
    broadcast: String,
}

#[derive(Debug)]
struct Sleeper {
    packet: Vec<u8>,
    broadcast: String,
    mac: String,
}

impl Driver for WakeOnLan {
    fn name(&self) -> &'static str {
        "wol"
    }

    fn about(&self) -> &'static str {
        "wake-on-LAN: turns on what its network card can wake, unverified"
    }

    fn abilities(&self) -> &[Ability] {
        &[Ability::On]
    }

    fn open(&self, method: &Method, _deadline: Deadline) -> Result<Box<dyn Session>, PcuError> {
        let Options { broadcast } = method.options()?;
        let wrong = || method.misconfigured("the address is no MAC address like 52:54:00:12:34:56");
        let mac = octets(&method.address).filter(|mac| mac.len() == 6).ok_or_else(wrong)?;
        let mut packet = [vec![0xff; 6], mac.repeat(16)].concat();
        if let Some(source) = &method.password {
            // SecureON: six octets, written like an address, or four as an IPv4 address.
            let word = source.resolve()?;
            let short = || method.misconfigured("the SecureON password is not six octets like 01:02:03:04:05:06");
            packet.extend(octets(word.reveal()).filter(|word| word.len() == 6).ok_or_else(short)?);
        }
        Ok(Box::new(Sleeper { packet, broadcast, mac: method.address.clone() }))
    }
}

impl Session for Sleeper {
    fn state(&mut self, _deadline: Deadline) -> Result<PowerState, PcuError> {
        Err(PcuError::unsupported("wol", "asking whether there is power"))
    }

    fn change(&mut self, change: Change, _deadline: Deadline) -> Result<(), PcuError> {
        let doing = format!("waking {} through {}", self.mac, self.broadcast);
        if change != Change::On {
            return Err(PcuError::Unsupported {
                doing,
                detail: format!("a packet can wake, and nothing else ({change})"),
            });
        }
        let socket = self.socket().map_err(|error| PcuError::transport(doing.as_str(), error))?;
        for _ in 0..COPIES {
            socket.send(&self.packet).map_err(|error| PcuError::transport(doing.as_str(), error))?;
        }
        Ok(())
    }

    fn prove(&mut self, _deadline: Deadline) -> Result<Vec<Proof>, PcuError> {
        let doing = format!("looking for a way to {}", self.broadcast);
        self.socket().map_err(|error| PcuError::transport(doing, error))?;
        Ok(vec![Proof(format!("a packet would go to {}; whether the card listens is not to be known", self.broadcast))])
    }
}

impl Sleeper {
    fn socket(&self) -> std::io::Result<UdpSocket> {
        let any = if self.broadcast.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(any)?;
        socket.set_broadcast(true)?;
        socket.connect(&self.broadcast)?;
        Ok(socket)
    }
}

fn everybody() -> String {
    "255.255.255.255:9".into()
}

/// Octets in hexadecimal, with `:` or `-` between them.
fn octets(text: &str) -> Option<Vec<u8>> {
    let plain = |word: &str| word.len() == 2 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let octet = |word: &str| plain(word).then(|| u8::from_str_radix(word, 16).ok()).flatten();
    text.split([':', '-']).map(octet).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::Class;

    fn deadline() -> Deadline {
        Deadline::after(Duration::from_secs(5))
    }

    #[test]
    fn the_packet_is_sixteen_times_the_address() {
        let ear = UdpSocket::bind("127.0.0.1:0").unwrap();
        ear.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut method = Method::new("wol", "52:54:00:12:34:56");
        method.options.insert("broadcast".into(), ear.local_addr().unwrap().to_string().into());
        let mut session = WakeOnLan.open(&method, deadline()).unwrap();
        session.change(Change::On, deadline()).unwrap();
        let mut heard = [0; 200];
        let length = ear.recv(&mut heard).unwrap();
        assert_eq!(heard[..length], [vec![0xff; 6], [0x52, 0x54, 0, 0x12, 0x34, 0x56].repeat(16)].concat());
        assert_eq!(session.change(Change::Off, deadline()).unwrap_err().class(), Class::Unsupported);
        assert_eq!(session.state(deadline()).unwrap_err().class(), Class::Unsupported);
    }

    #[test]
    fn addresses_that_are_none_are_refused() {
        for wrong in ["", "52:54:00:12:34", "52:54:00:12:34:5", "52:54:00:12:34:56:78", "n1", "+1:54:00:12:34:56"] {
            let error = WakeOnLan.open(&Method::new("wol", wrong), deadline()).err().unwrap();
            assert_eq!(error.class(), Class::Configuration, "{wrong:?}");
        }
    }
}
