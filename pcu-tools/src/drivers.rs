//! The drivers. Those for one protocol are code; those for one family of devices behind a protocol are data in `data/`.

mod amt;
mod command;
mod http;
mod ipmi;
mod manual;
mod menu;
mod qmp;
pub(crate) mod redfish;
mod snmp;
mod tcp;
mod virsh;
mod wol;
mod xml;

use std::sync::Arc;

use serde::Deserialize;

pub use self::ipmi::IpmiProbe;
use crate::Driver;

/// Every driver that is built in.
pub(crate) fn builtin() -> Vec<Arc<dyn Driver>> {
    let code: [Arc<dyn Driver>; 8] = [
        Arc::new(amt::Amt),
        Arc::new(command::Command),
        Arc::new(ipmi::Ipmi),
        Arc::new(manual::Manual),
        Arc::new(qmp::Qmp),
        Arc::new(redfish::Redfish),
        Arc::new(virsh::Virsh),
        Arc::new(wol::WakeOnLan),
    ];
    // One list a family, of files in `data/`.
    let data = [http::BUILTIN, menu::BUILTIN, snmp::BUILTIN].concat();
    let data = data.into_iter().map(|text| parse_data(text).expect("a test parses every built-in file"));
    code.into_iter().chain(data).collect()
}

/// What every data file says of itself.
#[derive(Debug, Clone)]
pub(crate) struct About {
    /// The driver's name.
    pub(crate) name: String,
    /// One line: what it talks to.
    pub(crate) about: String,
}

/// A data file: what every one says of itself, and one table of its family.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DataFile {
    name: String,
    about: String,
    /// Where its facts are from: a MIB, a manual and its page. For the reader; it has to be there.
    #[serde(rename = "source")]
    _source: String,
    http: Option<http::Table>,
    menu: Option<menu::Script>,
    snmp: Option<snmp::Table>,
}

/// Makes the driver that a data file describes.
pub(crate) fn parse_data(text: &str) -> Result<Arc<dyn Driver>, String> {
    let file: DataFile = toml::from_str(text).map_err(|error| error.to_string())?;
    let about = About { name: file.name, about: file.about };
    match (file.http, file.menu, file.snmp) {
        (Some(table), None, None) => Ok(Arc::new(http::Http::new(about, table)?)),
        (None, Some(script), None) => Ok(Arc::new(menu::Menu::new(about, script))),
        (None, None, Some(table)) => Ok(Arc::new(snmp::Snmp::new(about, table)?)),
        _ => Err(format!("{} ({}) has not exactly one of [http], [menu] and [snmp]", about.name, about.about)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_builtin_driver_has_a_name_of_its_own() {
        let drivers = builtin();
        let names: BTreeSet<_> = drivers.iter().map(|driver| driver.name().to_owned()).collect();
        assert_eq!(names.len(), drivers.len());
    }
}
