//! Power units that are switched by SNMP. What differs between families is data: which objects to read and write.
//!
//! Non-goals: traps, and the units' own configuration.

mod client;
mod credentials;
mod message;
mod object;
mod outlet;
mod probe;
mod table;
mod usm;

use std::fmt;

pub(super) use table::Table;

use super::About;
use crate::{
    Ability, Change, Deadline, Driver, Method, PcuError, PowerState, Proof, Sensor, Session,
    drivers::snmp::{
        client::{Client, Repeat},
        credentials::Credentials,
        message::Value,
        object::Index,
    },
};

/// The families that are built in.
pub(super) const BUILTIN: &[&str] = &[
    include_str!("../../data/snmp/apc-masterswitch.toml"),
    include_str!("../../data/snmp/apc-masterswitch-plus.toml"),
    include_str!("../../data/snmp/apc-rpdu.toml"),
    include_str!("../../data/snmp/apc-rpdu2.toml"),
    include_str!("../../data/snmp/avocent-pm.toml"),
    include_str!("../../data/snmp/baytech.toml"),
    include_str!("../../data/snmp/cyberpower-epdu.toml"),
    include_str!("../../data/snmp/cyberpower-epdu2.toml"),
    include_str!("../../data/snmp/eaton-epdu.toml"),
    include_str!("../../data/snmp/geist-v5.toml"),
    include_str!("../../data/snmp/gude-epc1202.toml"),
    include_str!("../../data/snmp/gude-epc8221.toml"),
    include_str!("../../data/snmp/raritan-px.toml"),
    include_str!("../../data/snmp/raritan-px2.toml"),
    include_str!("../../data/snmp/servertech-sentry3.toml"),
    include_str!("../../data/snmp/servertech-sentry4.toml"),
    include_str!("../../data/snmp/tripplite.toml"),
    include_str!("../../data/snmp/tripplite-webcard.toml"),
];

/// Where SNMP agents listen.
const DRIVER_PORT: u16 = 161;

/// A family of power units.
#[derive(Debug)]
pub(super) struct Snmp {
    about: About,
    table: Table,
    abilities: Vec<Ability>,
}

/// An outlet that is known to be there.
struct Outlet {
    client: Client,
    driver: String,
    table: Table,
    index: Index,
}

impl Snmp {
    /// The driver that a data file describes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn new(about: About, table: Table) -> Result<Self, String> {
        table.check()?;
        let mut abilities = vec![Ability::Status, Ability::On, Ability::Off];
        if table.cycle.is_some() {
            abilities.push(Ability::Cycle);
        }
        if !table.sensors.is_empty() {
            abilities.push(Ability::Sensors);
        }
        Ok(Self { about, table, abilities })
    }
}

impl Driver for Snmp {
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
        let (host, port) = method.host_and_port(DRIVER_PORT)?;
        let mut client = Client::new(&host, port, Credentials::of(method)?)?;
        let table = self.table.clone();
        let index = outlet::find(&mut client, &table, method, deadline)?;
        Ok(Box::new(Outlet { client, driver: self.about.name.clone(), table, index }))
    }
}

impl Session for Outlet {
    fn state(&mut self, deadline: Deadline) -> Result<PowerState, PcuError> {
        let status = &self.table.status;
        let value = self.client.get(&status.oid.of(&self.index), deadline)?;
        let doing = || self.client.doing(&format!("reading the state of {self}"));
        match value {
            Value::Number(value) if status.on.contains(&value) => Ok(PowerState::On),
            Value::Number(value) if status.off.contains(&value) => Ok(PowerState::Off),
            Value::Number(value) if status.busy.contains(&value) => {
                Err(PcuError::Busy { doing: doing(), detail: format!("the outlet is on its way (state {value})") })
            }
            Value::Absent => {
                Err(PcuError::BadAnswer { doing: doing(), detail: "the outlet is not there any more".into() })
            }
            other => {
                let detail = format!("{other:?} is neither on nor off by the driver {}", self.driver);
                Err(PcuError::BadAnswer { doing: doing(), detail })
            }
        }
    }

    fn change(&mut self, change: Change, deadline: Deadline) -> Result<(), PcuError> {
        let Some(command) = self.table.command(change) else {
            return Err(PcuError::unsupported(&self.driver, &format!("{change} of {self}")));
        };
        // A second cycle would take the power from a machine that starts.
        let repeat = if change == Change::Cycle { Repeat::Never } else { Repeat::Harmless };
        self.client.set(&command.oid.of(&self.index), command.value, repeat, deadline)
    }

    fn prove(&mut self, deadline: Deadline) -> Result<Vec<Proof>, PcuError> {
        let mut proofs = vec![Proof(format!("the power is {}", self.state(deadline)?))];
        let outlets = outlet::list(&mut self.client, &self.table, deadline)?;
        let mut called = format!("{self} is one of {}", outlets.len());
        if let Some(outlet) = outlets.iter().find(|outlet| outlet.index == self.index && !outlet.name.is_empty()) {
            called += &format!(", called {:?}", outlet.name);
        }
        proofs.push(Proof(called));
        for change in [Change::On, Change::Off, Change::Cycle] {
            let Some(command) = self.table.command(change) else { continue };
            let object = command.oid.of(&self.index);
            if self.client.get(&object, deadline)? == Value::Absent {
                let detail = format!("there is no {object} to write to; a unit that only measures, or another model?");
                let doing = self.client.doing(&format!("looking for the switch of {self}"));
                return Err(PcuError::Unsupported { doing, detail });
            }
        }
        proofs.push(Proof("its switch can be read; whether we may write it shows only when we do".into()));
        proofs.push(self.model(deadline)?);
        Ok(proofs)
    }

    fn sensors(&mut self, deadline: Deadline) -> Result<Vec<Sensor>, PcuError> {
        if self.table.sensors.is_empty() {
            return Err(PcuError::unsupported(&self.driver, "reading sensors"));
        }
        let mut readings = Vec::new();
        for sensor in &self.table.sensors {
            // A negative current or voltage is how devices say that they have none to tell.
            let value = match self.client.get(&sensor.oid.of(&self.index), deadline)? {
                Value::Number(value @ 0..) => Some(value),
                _ => None,
            };
            let digits = match &sensor.digits {
                Some(object) => match self.client.get(&object.of(&self.index), deadline)? {
                    Value::Number(digits @ 0..=9) => Some(digits as i32),
                    _ => None,
                },
                None => Some(0),
            };
            let value = value.zip(digits).map(|(value, digits)| value as f64 * sensor.scale / 10f64.powi(digits));
            readings.push(Sensor {
                name: sensor.name.clone(),
                value,
                unit: sensor.unit.clone(),
                status: String::new(),
            });
        }
        Ok(readings)
    }
}

impl Outlet {
    /// Whether the device is of this driver's family.
    fn model(&mut self, deadline: Deadline) -> Result<Proof, PcuError> {
        let (id, description) = outlet::identity(&mut self.client, deadline)?;
        let Some(id) = id else {
            return Ok(Proof(format!("it is {description:?}, and does not say which model")));
        };
        let said = format!("it is {description:?}, sysObjectID {id}");
        Ok(Proof(match (self.table.fits(&id), probe::guess(&id)) {
            (Some(_), _) => said,
            (None, _) if self.table.identity.is_empty() => said,
            (None, Some(driver)) => format!("warning: {said}: not one of {}'s, but of {driver}'s", self.driver),
            (None, None) => format!("warning: {said}: not one of {}'s", self.driver),
        }))
    }
}

impl fmt::Display for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "outlet {}", self.table.written(&self.index))
    }
}
