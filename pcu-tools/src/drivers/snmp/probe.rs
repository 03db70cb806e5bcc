//! Whether a power unit of a known family answers SNMP at an address.

use super::{
    BUILTIN, DRIVER_PORT,
    client::Client,
    credentials::Credentials,
    message::Version,
    object::ObjectId,
    outlet,
};
use crate::{Deadline, Secret, drivers::DataFile};

/// Which driver the device at an address needs, and what it says that it is. None when nothing answers, or it is no power unit that
/// we know.
///
/// The community, usually `public`, crosses the network in the clear, as does the answer.
#[expect(dead_code, reason = "discovery calls it")]
pub(in crate::drivers) fn probe(
    address: &str,
    port: Option<u16>,
    community: &Secret,
    deadline: Deadline,
) -> Option<(String, String)> {
    let credentials = Credentials::Community(Version::V2c, community.clone());
    let mut client = Client::new(address, port.unwrap_or(DRIVER_PORT), credentials).ok()?;
    let (id, description) = outlet::identity(&mut client, deadline).ok()?;
    Some((guess(&id?)?, description))
}

/// The name of the built-in driver for devices of this `sysObjectID`: the closest match.
pub(super) fn guess(id: &ObjectId) -> Option<String> {
    let files = BUILTIN.iter().filter_map(|text| toml::from_str::<DataFile>(text).ok());
    let fits = files.filter_map(|file| Some((file.snmp?.fits(id)?, file.name)));
    fits.max_by_key(|(length, _)| *length).map(|(_, name)| name)
}
