//! Redfish (DMTF DSP0266, DSP0268): the way into most servers' management controllers since 2016.

mod boot;
mod journal;
mod lamp;
pub(crate) mod probe;
mod quirks;
mod readings;
mod refusal;
mod service;
mod system;
mod task;
#[cfg(test)]
mod tests;

use std::time::Duration;

use self::service::{Resource, Service};
use crate::{
    Ability, BootDevice, Change, Deadline, Driver, LogEntry, Method, PcuError, PowerState, Proof, Sensor, Session,
};

/// One server behind a Redfish service; the outlet is its system's Id, Name or UUID, and may be left out where there is one only.
#[derive(Debug)]
pub(super) struct Redfish;

#[derive(Debug)]
struct LoggedIn {
    service: Service,
    /// The system as it was last read.
    system: Resource,
    user: String,
}

impl Driver for Redfish {
    fn name(&self) -> &'static str {
        "redfish"
    }

    fn about(&self) -> &'static str {
        "servers' management controllers over HTTPS: iDRAC, iLO, XClarity, OpenBMC, Supermicro and others"
    }

    fn abilities(&self) -> &[Ability] {
        &[
            Ability::Status,
            Ability::On,
            Ability::Off,
            Ability::Cycle,
            Ability::Reset,
            Ability::Identify,
            Ability::BootDevice,
            Ability::Sensors,
            Ability::Log,
        ]
    }

    fn open(&self, method: &Method, deadline: Deadline) -> Result<Box<dyn Session>, PcuError> {
        method.no_options()?;
        let user = method.account()?.to_owned();
        let mut service = Service::open(method, deadline)?;
        let system = system::find(&mut service, method.outlet.as_deref(), deadline)?;
        Ok(Box::new(LoggedIn { service, system, user }))
    }
}

impl LoggedIn {
    fn read_system(&mut self, deadline: Deadline) -> Result<(), PcuError> {
        self.system = self.service.get(&self.system.path, deadline)?;
        Ok(())
    }
}

impl Session for LoggedIn {
    fn state(&mut self, deadline: Deadline) -> Result<PowerState, PcuError> {
        self.read_system(deadline)?;
        system::state(&self.system)
    }

    fn change(&mut self, change: Change, deadline: Deadline) -> Result<(), PcuError> {
        system::change(&mut self.service, &self.system, change, deadline)
    }

    fn prove(&mut self, deadline: Deadline) -> Result<Vec<Proof>, PcuError> {
        let state = self.state(deadline)?;
        let reset = system::reset(&mut self.service, &self.system, deadline)?;
        let takes = match &reset.allowed {
            Some(allowed) => format!("the resets it takes are {}", allowed.join(", ")),
            None => "it does not say which resets it takes".into(),
        };
        Ok(vec![
            Proof(format!("logged in as {} {}", self.user, self.service.login())),
            Proof(format!("the system is {}", system::title(&self.system))),
            Proof(format!("the power is {state}")),
            Proof(takes),
        ])
    }

    fn identify(&mut self, time: Duration, deadline: Deadline) -> Result<(), PcuError> {
        self.read_system(deadline)?;
        lamp::set(&mut self.service, &self.system, !time.is_zero(), deadline)
    }

    fn set_boot_device(&mut self, device: BootDevice, deadline: Deadline) -> Result<(), PcuError> {
        self.read_system(deadline)?;
        boot::set(&mut self.service, &self.system, device, deadline)
    }

    fn sensors(&mut self, deadline: Deadline) -> Result<Vec<Sensor>, PcuError> {
        readings::read(&mut self.service, &self.system, deadline)
    }

    fn log(&mut self, deadline: Deadline) -> Result<Vec<LogEntry>, PcuError> {
        journal::read(&mut self.service, &self.system, deadline)
    }
}
