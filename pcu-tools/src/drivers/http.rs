//! PDUs behind HTTP, each a data file: forms, queries or JSON; passwords by Basic, Digest, a header, a query or a login.

mod reading;
mod session;
mod table;
mod template;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::{Ability, Deadline, Driver, Method, PcuError, Session, drivers::About};

pub(super) use table::Table;

/// The data files that are built in.
pub(super) const BUILTIN: &[&str] = &[
    include_str!("../../data/http/aten-pe.toml"),
    include_str!("../../data/http/dli-rest.toml"),
    include_str!("../../data/http/dli-web.toml"),
    include_str!("../../data/http/energenie-pms2.toml"),
    include_str!("../../data/http/epowerswitch-old.toml"),
    include_str!("../../data/http/epowerswitch.toml"),
    include_str!("../../data/http/esphome.toml"),
    include_str!("../../data/http/eth008.toml"),
    include_str!("../../data/http/geist.toml"),
    include_str!("../../data/http/gude-js.toml"),
    include_str!("../../data/http/gude-meta.toml"),
    include_str!("../../data/http/gude.toml"),
    include_str!("../../data/http/home-assistant.toml"),
    include_str!("../../data/http/intellinet.toml"),
    include_str!("../../data/http/ippower-9258-p60.toml"),
    include_str!("../../data/http/ippower-9258.toml"),
    include_str!("../../data/http/mfi-mpower.toml"),
    include_str!("../../data/http/mystrom.toml"),
    include_str!("../../data/http/netio-json.toml"),
    include_str!("../../data/http/raritan-rpc.toml"),
    include_str!("../../data/http/servertech-jaws.toml"),
    include_str!("../../data/http/shelly-gen1.toml"),
    include_str!("../../data/http/shelly-gen2.toml"),
    include_str!("../../data/http/synaccess.toml"),
    include_str!("../../data/http/tasmota.toml"),
    include_str!("../../data/http/tinycontrol-6g10a.toml"),
    include_str!("../../data/http/tinycontrol-tcpdu.toml"),
];

/// A driver made of a data file.
#[derive(Debug)]
pub(super) struct Http {
    about: About,
    table: Arc<Table>,
    abilities: Vec<Ability>,
}

impl Http {
    /// The driver that `table` describes.
    ///
    /// # Errors
    /// When the table makes no sense; says which part.
    pub(super) fn new(about: About, table: Table) -> Result<Self, String> {
        table.check()?;
        let mut abilities = vec![Ability::Status, Ability::On, Ability::Off];
        abilities.extend(table.cycle.as_ref().map(|_| Ability::Cycle));
        Ok(Self { about, table: Arc::new(table), abilities })
    }
}

impl Driver for Http {
    fn name(&self) -> &str {
        &self.about.name
    }

    fn about(&self) -> &str {
        &self.about.about
    }

    fn abilities(&self) -> &[Ability] {
        &self.abilities
    }

    fn open(&self, method: &Method, deadline: Deadline) -> Result<Box<dyn Session>, PcuError> {
        Ok(Box::new(session::HttpSession::open(&self.about.name, self.table.clone(), method, deadline)?))
    }
}
