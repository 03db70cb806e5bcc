//! Intel AMT by WS-Management: power, and what is started next.
//!
//! Non-goals: the redirection protocol (serial line, disks, screen), and provisioning. AMT before 3.0 speaks something else.

mod wsman;

use crate::{
    Ability, BootDevice, Change, Deadline, Driver, Method, PcuError, PowerState, Proof, Session,
    web::{Verb, WebAuth, WebClient},
};

use wsman::{Answer, Fault, Instance, Parsed, Writer, element, number, reference};

/// The port of WS-Management over TLS, and without.
const PORTS: (u16, u16) = (16993, 16992);
const PATH: &str = "/wsman";

const POWER: Instance = Instance {
    class: "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_AssociatedPowerManagementService",
    selectors: &[],
};
const POWER_SERVICE: Instance = Instance {
    class: "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_PowerManagementService",
    selectors: &[("Name", "Intel(r) AMT Power Management Service")],
};
const MACHINE: Instance = Instance {
    class: "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ComputerSystem",
    selectors: &[("CreationClassName", "CIM_ComputerSystem"), ("Name", "ManagedSystem")],
};
const BOOT_SERVICE: Instance = Instance {
    class: "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_BootService",
    selectors: &[("Name", "Intel(r) AMT Boot Service")],
};
const BOOT_CONFIG: Instance = Instance {
    class: "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_BootConfigSetting",
    selectors: &[("InstanceID", "Intel(r) AMT: Boot Configuration 0")],
};
const BOOT_OPTIONS: Instance = Instance {
    class: "http://intel.com/wbem/wscim/1/amt-schema/1/AMT_BootSettingData",
    selectors: &[("InstanceID", "Intel(r) AMT:BootSettingData 0")],
};
const GENERAL: Instance =
    Instance { class: "http://intel.com/wbem/wscim/1/amt-schema/1/AMT_GeneralSettings", selectors: &[] };

/// Roles of a boot configuration: for the next boot only, and not at all.
const ROLES: (u32, u32) = (1, 32768);
/// With one of these options set, the device refuses a boot source.
const EXCLUSIVE: [&str; 5] = ["UseIDER", "UseSOL", "ReflashBIOS", "BIOSPause", "BIOSSetup"];

/// Intel AMT, 3.0 and newer.
#[derive(Debug)]
pub(super) struct Amt;

struct AmtSession {
    client: WebClient,
    writer: Writer,
    user: String,
}

impl Driver for Amt {
    fn name(&self) -> &'static str {
        "amt"
    }

    fn about(&self) -> &'static str {
        "Intel AMT by WS-Management: https on port 16993, http on 16992"
    }

    fn abilities(&self) -> &[Ability] {
        &[Ability::Status, Ability::On, Ability::Off, Ability::Cycle, Ability::Reset, Ability::BootDevice]
    }

    fn open(&self, method: &Method, deadline: Deadline) -> Result<Box<dyn Session>, PcuError> {
        method.no_options()?;
        if method.outlet.is_some() {
            return Err(method.misconfigured("a machine with AMT has no outlets"));
        }
        let mut method = method.clone();
        // The account that every device has.
        let user = method.user.get_or_insert_with(|| "admin".into()).clone();
        let port = if method.address.starts_with("http://") { PORTS.1 } else { PORTS.0 };
        let client = WebClient::new(&method, port)?;
        let writer = Writer::new(format!("{}{PATH}", client.origin()));
        let mut session = AmtSession { client, writer, user };
        session.state(deadline)?;
        Ok(Box::new(session))
    }
}

impl AmtSession {
    fn doing(&self, what: &str) -> String {
        format!("{what} by AMT at {}", self.client.origin())
    }

    /// Sends a message, and hands the answer to `read`; refusals become errors.
    fn ask<T>(
        &mut self,
        what: &str,
        message: &str,
        deadline: Deadline,
        read: impl FnOnce(&Answer<'_>, &str) -> Result<T, PcuError>,
    ) -> Result<T, PcuError> {
        let doing = self.doing(what);
        let headers = [("content-type", "application/soap+xml;charset=UTF-8")];
        let reply =
            self.client.request_as(WebAuth::Digest, &Verb::POST, PATH, &headers, message.as_bytes(), deadline)?;
        match (wsman::parse(&reply.body), reply.status) {
            (Ok(Parsed::Answer(answer)), 200) => read(&answer, &doing),
            (Ok(Parsed::Fault(fault)), _) => Err(refusal(doing, fault)),
            (_, 403) => Err(PcuError::Privilege { doing, detail: format!("{} may not do this", self.user) }),
            (_, 404) => Err(PcuError::Unsupported { doing, detail: "it has no WS-Management".into() }),
            (_, status @ (429 | 500 | 502..=504)) => {
                Err(PcuError::Busy { doing, detail: format!("HTTP status {status}") })
            }
            (Err(detail), 200) => Err(PcuError::BadAnswer { doing, detail }),
            (_, status) => Err(PcuError::Refused { doing, detail: format!("HTTP status {status}") }),
        }
    }

    /// Calls a method, and takes its return value for success or failure.
    fn call(
        &mut self,
        what: &str,
        instance: Instance,
        method: &str,
        input: &str,
        deadline: Deadline,
    ) -> Result<(), PcuError> {
        let message = self.writer.invoke(instance, method, input);
        let power = instance.class == POWER_SERVICE.class;
        self.ask(what, &message, deadline, |answer, doing| {
            let value = answer.value("ReturnValue").and_then(|value| value.parse().ok());
            match value {
                Some(value) => returned(doing, method, value, power),
                None => Err(PcuError::BadAnswer { doing: doing.into(), detail: format!("{method} returned nothing") }),
            }
        })
    }

    fn change_boot_order(&mut self, source: &str, deadline: Deadline) -> Result<(), PcuError> {
        self.call("choosing what to boot", BOOT_CONFIG, "ChangeBootOrder", source, deadline)
    }

    /// Sets the option `BIOSSetup`, and clears those that exclude a boot source. Says nothing when they are so already.
    fn set_boot_options(&mut self, setup: bool, deadline: Deadline) -> Result<(), PcuError> {
        let message = self.writer.get(BOOT_OPTIONS);
        let mut fields =
            self.ask("reading the boot options", &message, deadline, |answer, doing| match answer.fields() {
                fields if fields.iter().any(|(name, _)| name == "InstanceID") => Ok(fields),
                _ => Err(PcuError::BadAnswer { doing: doing.into(), detail: "there are no boot options in it".into() }),
            })?;
        let mut changed = false;
        for (name, value) in &mut fields {
            if EXCLUSIVE.contains(&name.as_str()) {
                let wanted = (setup && name == "BIOSSetup").to_string();
                changed |= *value != wanted;
                *value = wanted;
            }
        }
        if !changed {
            return Ok(());
        }
        let message = self.writer.put(BOOT_OPTIONS, &element(BOOT_OPTIONS, &fields));
        self.ask("setting the boot options", &message, deadline, |_, _| Ok(()))
    }
}

impl Session for AmtSession {
    fn state(&mut self, deadline: Deadline) -> Result<PowerState, PcuError> {
        let message = self.writer.get(POWER);
        self.ask("reading the power state", &message, deadline, state)
    }

    fn change(&mut self, change: Change, deadline: Deadline) -> Result<(), PcuError> {
        let input = number("PowerState", requested(change)) + &reference("ManagedElement", MACHINE);
        self.call(&format!("doing a power {change}"), POWER_SERVICE, "RequestPowerStateChange", &input, deadline)
    }

    fn prove(&mut self, deadline: Deadline) -> Result<Vec<Proof>, PcuError> {
        let message = self.writer.get(GENERAL);
        let host = self.ask("reading the general settings", &message, deadline, |answer, _| {
            Ok(answer.value("HostName").filter(|name| !name.is_empty()))
        })?;
        let message = self.writer.get(POWER);
        let (state, offers) = self.ask("reading the power state", &message, deadline, |answer, doing| {
            Ok((state(answer, doing)?, answer.values("AvailableRequestedPowerStates")))
        })?;
        let host = host.unwrap_or_else(|| "a machine without a name".into());
        let mut proofs =
            vec![Proof(format!("AMT of {host} lets {} in", self.user)), Proof(format!("the power is {state}"))];
        let all = [Change::On, Change::Off, Change::Cycle, Change::Reset];
        let offered = all.into_iter().filter(|change| offers.contains(&requested(*change).to_string()));
        let offered: Vec<_> = offered.map(|change| change.to_string()).collect();
        if !offered.is_empty() {
            proofs.push(Proof(format!("it offers now: {}", offered.join(", "))));
        }
        Ok(proofs)
    }

    fn set_boot_device(&mut self, device: BootDevice, deadline: Deadline) -> Result<(), PcuError> {
        let source = match device {
            BootDevice::Cd => Some(&[("InstanceID", "Intel(r) AMT: Force CD/DVD Boot")]),
            BootDevice::Pxe => Some(&[("InstanceID", "Intel(r) AMT: Force PXE Boot")]),
            BootDevice::Disk => Some(&[("InstanceID", "Intel(r) AMT: Force Hard-drive Boot")]),
            BootDevice::Setup | BootDevice::Default => None,
        };
        // Options and a source exclude each other: first neither, then what is wanted, and at last it is made the next boot's.
        self.change_boot_order("", deadline)?;
        self.set_boot_options(device == BootDevice::Setup, deadline)?;
        if let Some(selectors) = source {
            let class = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_BootSourceSetting";
            self.change_boot_order(&reference("Source", Instance { class, selectors }), deadline)?;
        }
        let role = if device == BootDevice::Default { ROLES.1 } else { ROLES.0 };
        let input = reference("BootConfigSetting", BOOT_CONFIG) + &number("Role", role);
        self.call("choosing what to boot", BOOT_SERVICE, "SetBootConfigRole", &input, deadline)
    }
}

/// What `RequestPowerStateChange` calls a change; off, cycle and reset do not ask the operating system.
fn requested(change: Change) -> u32 {
    match change {
        Change::On => 2,
        Change::Off => 8,
        Change::Cycle => 5,
        Change::Reset => 10,
    }
}

/// What `PowerState` of `CIM_AssociatedPowerManagementService` means. A machine that sleeps has power.
fn state(answer: &Answer<'_>, doing: &str) -> Result<PowerState, PcuError> {
    let said = answer.value("PowerState").unwrap_or_default();
    let between = |what: &str| PcuError::Busy { doing: doing.into(), detail: format!("the machine {what}") };
    match said.as_str() {
        // On, light and deep sleep.
        "2" | "3" | "4" => Ok(PowerState::On),
        // Off hard, hibernating, off soft, and both after the system was asked.
        "6" | "7" | "8" | "12" | "13" => Ok(PowerState::Off),
        "5" | "9" | "15" | "16" => Err(between("is between off and on")),
        "10" | "11" | "14" => Err(between("is being reset")),
        _ => Err(PcuError::BadAnswer { doing: doing.into(), detail: format!("its power state is {said:?}") }),
    }
}

/// What a method's return value means: of `CIM_PowerManagementService` or of the boot classes, which differ at 6.
fn returned(doing: &str, method: &str, value: u32, power: bool) -> Result<(), PcuError> {
    let doing = doing.to_owned();
    let refused =
        |why: &str| PcuError::Refused { doing: doing.clone(), detail: format!("{method} returned {value}: {why}") };
    match value {
        // 4096: begun, and not waited for.
        0 | 4096 => Ok(()),
        1 => Err(PcuError::Unsupported { doing, detail: format!("the machine has no {method}") }),
        3 | 4099 => Err(PcuError::Busy { doing, detail: format!("{method} returned {value}") }),
        6 if power => Err(PcuError::Busy { doing, detail: "the power service is in use".into() }),
        6 => Err(PcuError::Privilege { doing, detail: format!("{method} returned 6: access denied") }),
        2 => Err(refused("an error that it does not name")),
        4 => Err(refused("failed, or points to nothing")),
        5 => Err(refused("a wrong parameter; the machine may not have this boot source")),
        4097 => Err(refused("not possible in the present power state")),
        _ => Err(refused("see the status codes of Intel's AMT reference")),
    }
}

/// What a fault means (DSP0226, 14.6).
fn refusal(doing: String, Fault { subcode, reason }: Fault) -> PcuError {
    let detail = match (subcode.as_str(), reason.as_str()) {
        ("", "") => "a fault without a reason".into(),
        ("", reason) => reason.to_owned(),
        (subcode, "") => subcode.to_owned(),
        (subcode, reason) => format!("{subcode}: {reason}"),
    };
    match subcode.as_str() {
        "AccessDenied" => PcuError::Privilege { doing, detail },
        "TimedOut" | "QuotaLimit" | "Concurrency" | "InternalError" | "EndpointUnavailable" => {
            PcuError::Busy { doing, detail }
        }
        "DestinationUnreachable" | "ActionNotSupported" | "UnsupportedFeature" => {
            PcuError::Unsupported { doing, detail }
        }
        _ => PcuError::Refused { doing, detail },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Class;

    #[test]
    fn power_states_are_told_apart() {
        let check = |said: &str, expected: Result<PowerState, Class>| {
            let text = format!(
                r#"<e:Envelope xmlns:e="http://www.w3.org/2003/05/soap-envelope"><e:Body><p><PowerState>{said}</PowerState></p></e:Body></e:Envelope>"#
            );
            let Ok(Parsed::Answer(answer)) = wsman::parse(text.as_bytes()) else { panic!("{text}") };
            assert_eq!(state(&answer, "").map_err(|error| error.class()), expected, "{said}");
        };
        for on in ["2", "3", "4"] {
            check(on, Ok(PowerState::On));
        }
        for off in ["6", "7", "8", "12", "13"] {
            check(off, Ok(PowerState::Off));
        }
        for between in ["5", "9", "10", "16"] {
            check(between, Err(Class::Busy));
        }
        for wrong in ["", "0", "1", "x"] {
            check(wrong, Err(Class::Prompt));
        }
    }

    #[test]
    fn return_values_and_faults_have_classes() {
        let check = |value: u32, power: bool, expected: Option<Class>| {
            let class = returned("", "Do", value, power).err().map(|error| error.class());
            assert_eq!(class, expected, "{value} {power}");
        };
        check(0, true, None);
        check(4096, true, None);
        check(1, true, Some(Class::Unsupported));
        check(2, true, Some(Class::Refused));
        check(3, false, Some(Class::Busy));
        check(6, true, Some(Class::Busy));
        check(6, false, Some(Class::Privilege));
        check(4097, true, Some(Class::Refused));
        check(4099, true, Some(Class::Busy));
        check(2054, true, Some(Class::Refused));
        let fault =
            |subcode: &str| refusal(String::new(), Fault { subcode: subcode.into(), reason: String::new() }).class();
        assert_eq!(fault("AccessDenied"), Class::Privilege);
        assert_eq!(fault("InternalError"), Class::Busy);
        assert_eq!(fault("DestinationUnreachable"), Class::Unsupported);
        assert_eq!(fault("SchemaValidationError"), Class::Refused);
    }
}
