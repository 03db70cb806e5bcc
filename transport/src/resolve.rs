//! Names to addresses. A static glibc has no working getaddrinfo, so a node asks its name servers itself
//! (RFC 1035 over UDP); packets are smoltcp's to parse.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use smoltcp::wire::{
    DnsFlags, DnsOpcode, DnsPacket, DnsQueryType, DnsQuestion, DnsRcode, DnsRecord, DnsRecordData, DnsRepr,
};
use thiserror::Error;
use ureq::{
    config::Config,
    http::Uri,
    unversioned::{
        resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver as UreqResolver},
        transport::NextTimeout,
    },
};

/// How names become addresses.
#[derive(Debug, Clone)]
pub enum Resolver {
    /// As the system does it; for programs that are not static.
    System,
    /// By asking these name servers.
    Servers(Vec<IpAddr>),
}

/// How long one name server may think before the next is asked.
const SERVER_TIMEOUT: Duration = Duration::from_secs(2);
/// Every server is asked so often: the first packet after a link comes up is easily lost.
const ROUNDS: u32 = 2;
const DNS_PORT: u16 = 53;

/// Why a name has no address.
#[derive(Debug, Error)]
pub enum LookupError {
    /// Nobody to ask.
    #[error("no name server is known to resolve {0}")]
    NoServers(String),
    /// The name cannot exist.
    #[error("{0} is not a host name")]
    BadName(String),
    /// The servers agree that there is none.
    #[error("{name} has no address: {server} says {code}")]
    NoAddress {
        /// The name.
        name: String,
        /// Who said so.
        server: IpAddr,
        /// Its code.
        code: String,
    },
    /// No server answered.
    #[error("no name server answered for {name} (asked {servers}): {last}")]
    Silence {
        /// The name.
        name: String,
        /// All that were asked.
        servers: String,
        /// The last failure.
        last: io::Error,
    },
}

/// The IPv4 addresses of `name`, by asking `servers` in turn. A literal address is itself.
///
/// # Errors
/// [`LookupError`].
pub fn lookup(name: &str, servers: &[IpAddr]) -> Result<Vec<IpAddr>, LookupError> {
    if let Ok(address) = name.trim_matches(['[', ']']).parse() {
        return Ok(vec![address]);
    }
    if name == "localhost" {
        return Ok(vec![Ipv4Addr::LOCALHOST.into()]);
    }
    if servers.is_empty() {
        return Err(LookupError::NoServers(name.into()));
    }
    let encoded = encode_name(name).ok_or_else(|| LookupError::BadName(name.into()))?;
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    for round in 0..ROUNDS {
        for server in servers {
            // An identifier that an outsider cannot guess from the last one.
            let id = (std::process::id() as u16).rotate_left(7) ^ clock_noise() ^ round as u16;
            match ask(*server, id, &encoded) {
                Ok(Answer::Addresses(addresses)) => return Ok(addresses),
                Ok(Answer::None(code)) => {
                    return Err(LookupError::NoAddress { name: name.into(), server: *server, code });
                }
                Err(error) => last = error,
            }
        }
    }
    let servers = servers.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ");
    Err(LookupError::Silence { name: name.into(), servers, last })
}

#[derive(Debug, PartialEq)]
enum Answer {
    Addresses(Vec<IpAddr>),
    None(String),
}

fn clock_noise() -> u16 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.subsec_nanos() as u16)
}

fn encode_name(name: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(name.len() + 2);
    for label in name.trim_end_matches('.').split('.') {
        if !(1..=63).contains(&label.len())
            || !label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        {
            return None;
        }
        out.push(label.len() as u8);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    (out.len() <= 255).then_some(out)
}

fn ask(server: IpAddr, id: u16, name: &[u8]) -> io::Result<Answer> {
    let local: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(local)?;
    // Connected, so that other hosts' packets are not ours and a refusal is told at once.
    socket.connect((server, DNS_PORT))?;
    socket.send(&query(id, name))?;
    let end = Instant::now() + SERVER_TIMEOUT;
    let mut buffer = [0; 1500];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let got = socket.recv(&mut buffer)?;
        if let Some(answer) = parse(&buffer[..got], id) {
            return Ok(answer);
        }
    }
}

fn query(id: u16, name: &[u8]) -> Vec<u8> {
    let repr = DnsRepr {
        transaction_id: id,
        opcode: DnsOpcode::Query,
        flags: DnsFlags::RECURSION_DESIRED,
        question: DnsQuestion { name, type_: DnsQueryType::A },
    };
    let mut bytes = vec![0; repr.buffer_len()];
    repr.emit(&mut DnsPacket::new_unchecked(&mut bytes));
    bytes
}

/// For the fuzzer: reads a packet as the answer to whatever it says it answers, and says whether it has addresses.
pub fn parse_any(bytes: &[u8]) -> bool {
    let [high, low, ..] = *bytes else { return false };
    matches!(parse(bytes, u16::from_be_bytes([high, low])), Some(Answer::Addresses(_)))
}

/// The answer in a packet; none if the packet is not the answer to `id` at all.
fn parse(bytes: &[u8], id: u16) -> Option<Answer> {
    let packet = DnsPacket::new_checked(bytes).ok()?;
    if packet.transaction_id() != id || !packet.flags().contains(DnsFlags::RESPONSE) {
        return None;
    }
    if packet.rcode() != DnsRcode::NoError {
        return Some(Answer::None(format!("{:?}", packet.rcode())));
    }
    let mut rest = packet.payload();
    for _ in 0..packet.question_count() {
        (rest, _) = DnsQuestion::parse(rest).ok()?;
    }
    let mut addresses = Vec::new();
    for _ in 0..packet.answer_record_count() {
        let Ok((next, record)) = DnsRecord::parse(rest) else { break };
        rest = next;
        if let DnsRecordData::A(address) = record.data {
            addresses.push(IpAddr::V4(address));
        }
    }
    Some(if addresses.is_empty() { Answer::None("no address record".into()) } else { Answer::Addresses(addresses) })
}

impl UreqResolver for Resolver {
    fn resolve(&self, uri: &Uri, config: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let servers = match self {
            Self::System => return DefaultResolver::default().resolve(uri, config, timeout),
            Self::Servers(servers) => servers,
        };
        let host = uri.host().ok_or(ureq::Error::HostNotFound)?;
        let port = uri.port_u16().unwrap_or(443);
        let found = lookup(host, servers).map_err(|e| ureq::Error::Io(io::Error::other(e)))?;
        let mut out = self.empty();
        // ureq keeps at most 16.
        found.into_iter().take(16).for_each(|ip| out.push(SocketAddr::new(ip, port)));
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn literals_need_no_server() {
        assert_eq!(lookup("10.0.2.2", &[]).unwrap(), ["10.0.2.2".parse::<IpAddr>().unwrap()]);
        assert!(matches!(lookup("central.example", &[]), Err(LookupError::NoServers(_))));
        assert!(matches!(lookup("a..b", &[Ipv4Addr::LOCALHOST.into()]), Err(LookupError::BadName(_))));
    }

    #[test]
    fn answers_are_read_and_strangers_ignored() {
        let name = encode_name("a.b").unwrap();
        let mut packet = query(7, &name);
        packet[2] |= 0x80;
        packet[7] = 1;
        packet.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 192, 0, 2, 1]);
        assert_eq!(parse(&packet, 7), Some(Answer::Addresses(vec!["192.0.2.1".parse().unwrap()])));
        assert_eq!(parse(&packet, 8), None);
        packet[3] |= 3;
        assert!(matches!(parse(&packet, 7), Some(Answer::None(_))));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 12..200)) {
            bytes[0] = 0;
            bytes[1] = 7;
            bytes[2] |= 0x80;
            bytes[3] &= 0xf0;
            let _ = parse(&bytes, 7);
        }
    }
}
