//! IPMI over a LAN: the controller that servers have had since 2004.

mod console;
mod failure;
mod link;
mod log;
mod probe;
mod sensors;

use std::time::Duration;

use orrery_rmcp::{Authentication15, Credentials, Privilege, Suite, chassis, command::GetDeviceId};
use serde::Deserialize;

use self::link::Link;
pub use self::probe::IpmiProbe;
use crate::{
    Ability, BootDevice, Change, Console, Deadline, Driver, LogEntry, Method, PcuError, PowerState, Sensor, Session,
    Waiver, driver::Proof,
};

/// The controllers of servers, by IPMI 2.0; by IPMI 1.5 where a method has the waiver for it.
#[derive(Debug)]
pub(super) struct Ipmi;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// The only cipher suite to use; otherwise 17, and 3 where the device does not offer 17.
    cipher: Option<u8>,
    /// What to log in for.
    #[serde(default)]
    privilege: Role,
    /// Which firmware the next boot's choice is for.
    #[serde(default)]
    firmware: Firmware,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    #[default]
    Operator,
    Administrator,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Firmware {
    #[default]
    Uefi,
    Bios,
}

/// What a login needs.
#[derive(Debug)]
struct Login {
    credentials: Credentials,
    privilege: Privilege,
    suites: Vec<Suite>,
    lan15: Vec<Authentication15>,
}

#[derive(Debug)]
struct LoggedIn {
    link: Link,
    user: String,
    role: Role,
    firmware: Firmware,
}

impl Driver for Ipmi {
    fn name(&self) -> &'static str {
        "ipmi"
    }

    fn about(&self) -> &'static str {
        "the management controller of a server, by IPMI 2.0 over a LAN"
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
            Ability::Console,
            Ability::Sensors,
            Ability::Log,
        ]
    }

    fn open(&self, method: &Method, deadline: Deadline) -> Result<Box<dyn Session>, PcuError> {
        let options: Options = method.options()?;
        let (host, port) = method.host_and_port(orrery_rmcp::PORT)?;
        // The null user has no name, and may have no password.
        let user = method.user.clone().unwrap_or_default();
        let password = method.password.as_ref().map(|source| source.resolve()).transpose()?;
        let password = password.as_ref().map_or("", |secret| secret.reveal());
        let credentials =
            Credentials::new(&user, password).map_err(|error| method.misconfigured(&error.to_string()))?;
        let login = Login {
            credentials,
            privilege: options.privilege.into(),
            suites: suites(method, options.cipher)?,
            lan15: lan15(method),
        };
        let link = Link::log_in((&host, port), &user, &login, deadline).map_err(|failure| match failure {
            link::Failure::Only15 => {
                let why = format!("{host} has IPMI 1.5 only, in which nothing is encrypted");
                method.require(Waiver::Lan15, &why).expect_err("the method does not have it, or it would be used")
            }
            link::Failure::Other(error) => error,
        })?;
        Ok(Box::new(LoggedIn { link, user, role: options.privilege, firmware: options.firmware }))
    }
}

fn suites(method: &Method, cipher: Option<u8>) -> Result<Vec<Suite>, PcuError> {
    match cipher {
        None => Ok(vec![Suite::Seventeen, Suite::Three]),
        Some(number) => Suite::from_number(number).map(|suite| vec![suite]).ok_or_else(|| {
            method.misconfigured(&format!("cipher = {number} is neither 17 nor 3; no other suite is safe"))
        }),
    }
}

/// What is allowed of IPMI 1.5. There is no password in the clear without another waiver.
fn lan15(method: &Method) -> Vec<Authentication15> {
    let mut allowed = Vec::new();
    if method.waivers.contains(&Waiver::Lan15) {
        allowed.push(Authentication15::Md5);
        if method.waivers.contains(&Waiver::ClearText) {
            allowed.push(Authentication15::Password);
        }
    }
    allowed
}

impl From<Role> for Privilege {
    fn from(role: Role) -> Self {
        match role {
            Role::Operator => Self::Operator,
            Role::Administrator => Self::Administrator,
        }
    }
}

impl Session for LoggedIn {
    fn state(&mut self, deadline: Deadline) -> Result<PowerState, PcuError> {
        let status = self.link.ask(&chassis::GetStatus, "reading the power's state", deadline)?;
        Ok(if status.power { PowerState::On } else { PowerState::Off })
    }

    fn change(&mut self, change: Change, deadline: Deadline) -> Result<(), PcuError> {
        let control = match change {
            Change::On => chassis::Control::On,
            Change::Off => chassis::Control::Off,
            Change::Cycle => chassis::Control::Cycle,
            Change::Reset => chassis::Control::Reset,
        };
        self.link.ask_change(&control, &format!("switching power: {change}"), deadline)
    }

    fn prove(&mut self, deadline: Deadline) -> Result<Vec<Proof>, PcuError> {
        let status = self.link.ask(&chassis::GetStatus, "reading the power's state", deadline)?;
        let device = self.link.ask(&GetDeviceId, "asking what it is", deadline)?;
        let user = if self.user.is_empty() { "the null user" } else { &self.user };
        let role = match self.role {
            Role::Operator => "operator",
            Role::Administrator => "administrator",
        };
        let (major, minor) = (device.firmware_major, device.firmware_minor);
        let mut proofs = vec![
            format!("logged in as {user} by {}", self.link.describe()),
            format!("the session has the privilege of an {role}, which may switch power"),
            format!("firmware {major}.{minor:02x} of manufacturer {}", device.manufacturer),
            format!("the power is {}", if status.power { PowerState::On } else { PowerState::Off }),
        ];
        for (wrong, text) in [
            (status.interlock, "an interlock keeps the machine off"),
            (status.power_fault, "the power supply or its control has a fault"),
            (status.overload, "an overload switched the machine off"),
        ] {
            if wrong {
                proofs.push(text.into());
            }
        }
        Ok(proofs.into_iter().map(Proof).collect())
    }

    fn identify(&mut self, time: Duration, deadline: Deadline) -> Result<(), PcuError> {
        // A part of a second is one; more than fits is the most.
        let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
        let seconds = u8::try_from(seconds).unwrap_or(u8::MAX);
        self.link.ask(&chassis::Identify(seconds), "lighting the lamp", deadline)
    }

    fn set_boot_device(&mut self, device: BootDevice, deadline: Deadline) -> Result<(), PcuError> {
        let chosen = match device {
            BootDevice::Cd => chassis::Device::Cd,
            BootDevice::Pxe => chassis::Device::Pxe,
            BootDevice::Disk => chassis::Device::Disk,
            BootDevice::Setup => chassis::Device::Setup,
            BootDevice::Default => chassis::Device::Default,
        };
        let doing = format!("choosing {device} for the next boot");
        match self.link.ask(&chassis::SetBoot::Unacknowledged, &doing, deadline) {
            // Not every controller keeps account of who has seen the flags.
            Ok(()) | Err(PcuError::Refused { .. } | PcuError::Unsupported { .. }) => {}
            Err(error) => return Err(error),
        }
        let flags = chassis::SetBoot::Flags { device: chosen, uefi: self.firmware == Firmware::Uefi };
        self.link.ask(&flags, &doing, deadline)
    }

    fn sensors(&mut self, deadline: Deadline) -> Result<Vec<Sensor>, PcuError> {
        sensors::read(&mut self.link, deadline)
    }

    fn log(&mut self, deadline: Deadline) -> Result<Vec<LogEntry>, PcuError> {
        log::read(&mut self.link, deadline)
    }

    fn console(self: Box<Self>, deadline: Deadline) -> Result<Box<dyn Console>, PcuError> {
        Ok(Box::new(console::SerialLine::open(self.link, deadline)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Class;

    fn open(options: &str) -> PcuError {
        let mut method = Method::new("ipmi", "127.0.0.1:1");
        method.options = toml::from_str(options).unwrap();
        Ipmi.open(&method, Deadline::after(Duration::from_secs(5))).err().unwrap()
    }

    #[test]
    fn what_is_not_safe_cannot_be_configured() {
        for options in ["cipher = 0", "cipher = 1", "cipher = 2", "cipher = 12", "privilege = 'user'", "lan15 = true"] {
            assert_eq!(open(options).class(), Class::Configuration, "{options}");
        }
        // As far as the network, where nobody is.
        assert_eq!(open("cipher = 3\nprivilege = 'administrator'\nfirmware = 'bios'").class(), Class::Transport);
    }

    #[test]
    fn a_name_or_password_that_no_controller_can_have_is_refused() {
        let mut method = Method::new("ipmi", "127.0.0.1:1");
        method.user = Some("x".repeat(17));
        let error = Ipmi.open(&method, Deadline::after(Duration::from_secs(5))).err().unwrap();
        assert_eq!(error.class(), Class::Configuration, "{error}");
        method.user = Some("x".repeat(16));
        method.password = Some(crate::SecretSource::Command(vec!["echo".into(), "p".repeat(21)]));
        let error = Ipmi.open(&method, Deadline::after(Duration::from_secs(5))).err().unwrap();
        assert_eq!(error.class(), Class::Configuration, "{error}");
        assert!(!error.to_string().contains("ppp"), "{error}");
    }
}
