//! Whether a power unit of a known family answers SNMP at an address.

use super::{BUILTIN, client::Client, credentials::Credentials, message::Version, object::ObjectId, outlet};
use crate::{Deadline, Secret, drivers::DataFile};

/// Which driver the device at an address needs, and what it says that it is. None when nothing answers, or it is no power unit that
/// we know.
///
/// The community, usually `public`, crosses the network in the clear, as does the answer.
#[cfg_attr(not(test), expect(dead_code, reason = "discovery calls it"))]
pub(in crate::drivers) fn probe(
    address: &str,
    port: u16,
    community: &Secret,
    deadline: Deadline,
) -> Option<(String, String)> {
    let credentials = Credentials::Community(Version::V2c, community.clone());
    let mut client = Client::new(address, port, credentials).ok()?;
    let (id, description) = outlet::identity(&mut client, deadline).ok()?;
    Some((guess(&id?)?, description))
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
    fn ask(id: &str) -> Option<(String, String)> {
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
        let found = probe("127.0.0.1", port, &Secret::new("public".into()), Deadline::after(Duration::from_secs(5)));
        device.join().unwrap();
        found
    }

    #[test]
    fn a_unit_is_found() {
        assert_eq!(ask("1.3.6.1.4.1.13742.6"), Some(("raritan-px2-snmp".into(), "a unit".into())));
        assert_eq!(ask("1.3.6.1.4.1.8072.3.2.10"), None);
    }
}
