//! Whether a power unit of a known family answers SNMP at an address.

use std::net::{IpAddr, SocketAddr};

use super::{BUILTIN, client::Client, credentials::Credentials, message::Version, object::ObjectId, outlet};
use crate::{
    Deadline, Secret,
    discover::{Found, Probe},
    drivers::DataFile,
};

/// Looks for power units of families that we know.
#[derive(Debug, Clone)]
pub struct SnmpProbe {
    /// The UDP port; 161 everywhere but in tests.
    pub port: u16,
    /// The community, usually `public`: it crosses the network in the clear, as does the answer.
    pub community: Secret,
}

impl Probe for SnmpProbe {
    fn probe(&self, address: IpAddr, deadline: Deadline) -> Option<Found> {
        let credentials = Credentials::Community(Version::V2c, self.community.clone());
        let mut client = Client::new(&address.to_string(), self.port, credentials).ok()?;
        let (id, detail) = outlet::identity(&mut client, deadline).ok()?;
        Some(Found { address: SocketAddr::new(address, self.port), driver: guess(&id?)?, detail })
    }
}

/// The name of the built-in driver for devices of this `sysObjectID`: the closest match.
pub(super) fn guess(id: &ObjectId) -> Option<String> {
    let files = BUILTIN.iter().filter_map(|text| toml::from_str::<DataFile>(text).ok());
    let fits = files.filter_map(|file| Some((file.snmp?.fits(id)?, file.name)));
    fits.max_by_key(|(length, _)| *length).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, thread, time::Duration};

    use snmp2::{Pdu, asn1};

    use super::*;
    use crate::drivers::snmp::message::{
        octets,
        tests::{bind, reply},
        tlv,
    };

    #[test]
    fn the_closest_family_is_guessed() {
        let check = |id: &str, expected: Option<&str>| {
            assert_eq!(guess(&id.parse().unwrap()).as_deref(), expected, "{id}");
        };
        check("1.3.6.1.4.1.318.1.3.4.5", Some("apc-rpdu-snmp"));
        check("1.3.6.1.4.1.318.1.3.4.6", Some("apc-rpdu2-snmp"));
        check("1.3.6.1.4.1.318.1.3.4.4", Some("apc-masterswitch-plus-snmp"));
        check("1.3.6.1.4.1.318.1.3.4.1", Some("apc-masterswitch-snmp"));
        check("1.3.6.1.4.1.13742.6", Some("raritan-px2-snmp"));
        check("1.3.6.1.4.1.1718.4.7", Some("servertech-sentry4-snmp"));
        check("1.3.6.1.4.1.8072.3.2.10", None);
        check("1.3.6.1.4.1.318", None);
    }

    /// Asks a device that says this of itself, and answers twice.
    fn ask(id: &str) -> Option<Found> {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let port = socket.local_addr().unwrap().port();
        let id = id.parse::<ObjectId>().unwrap();
        let device = thread::spawn(move || {
            for (object, value) in [
                (outlet::IDENTITY, tlv(asn1::TYPE_OBJECTIDENTIFIER, &id.encode())),
                (outlet::DESCRIPTION, octets(b"a unit")),
            ] {
                let mut buffer = [0; 512];
                let (length, from) = socket.recv_from(&mut buffer).unwrap();
                let number = Pdu::from_bytes(&buffer[..length]).unwrap().req_id;
                let answer = reply(Version::V2c, b"public", number, 0, &bind(object, value));
                socket.send_to(&answer, from).unwrap();
            }
        });
        let probe = SnmpProbe { port, community: Secret::new("public".into()) };
        let found = probe.probe(std::net::Ipv4Addr::LOCALHOST.into(), Deadline::after(Duration::from_secs(5)));
        device.join().unwrap();
        found
    }

    #[test]
    fn a_unit_is_found() {
        let found = ask("1.3.6.1.4.1.13742.6").unwrap();
        assert_eq!((found.driver.as_str(), found.detail.as_str()), ("raritan-px2-snmp", "a unit"));
        assert_eq!(ask("1.3.6.1.4.1.8072.3.2.10"), None);
    }
}
