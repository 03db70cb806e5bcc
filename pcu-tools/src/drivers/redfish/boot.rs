//! What a system's firmware starts next.

use std::{thread, time::Duration};

use serde_json::{Value, json};

use super::{
    quirks,
    service::{Resource, Service},
    system::title,
};
use crate::{BootDevice, Deadline, PcuError};

/// How long what was set may take to show, and how often that is looked at.
const SHOWS: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_secs(1);

const TARGET: &str = "/Boot/BootSourceOverrideTarget";
const ALLOWED: &str = "/Boot/BootSourceOverrideTarget@Redfish.AllowableValues";

/// Sets the device for the next boot and no other, and reads it back.
///
/// # Errors
/// [`PcuError::NoEffect`] when the service took it and goes on saying something else.
pub(super) fn set(
    service: &mut Service,
    system: &Resource,
    device: BootDevice,
    deadline: Deadline,
) -> Result<(), PcuError> {
    let doing = format!("setting what {} boots to {device}", title(system));
    // Settings that apply at the next start may stand in a resource of their own, which then takes them instead.
    let pending = match system.link("/@Redfish.Settings/SettingsObject") {
        Some(link) => {
            let link = link.to_owned();
            Some(service.get(&link, deadline)?).filter(|pending| pending.text(TARGET).is_some())
        }
        None => None,
    };
    let place = pending.as_ref().unwrap_or(system);
    let allowed = place.texts(ALLOWED).or_else(|| system.texts(ALLOWED));
    let target =
        target(device, allowed.as_deref(), quirks::of(system).cd_on_usb).ok_or_else(|| PcuError::Unsupported {
            doing: doing.clone(),
            detail: format!("it boots from {} only", allowed.unwrap_or_default().join(", ")),
        })?;
    let enabled = if device == BootDevice::Default { "Disabled" } else { "Once" };
    let mut boot = json!({ "BootSourceOverrideEnabled": enabled, "BootSourceOverrideTarget": target });
    if let (true, Some(mode)) = (quirks::of(system).repeat_boot_mode, place.text("/Boot/BootSourceOverrideMode")) {
        boot["BootSourceOverrideMode"] = Value::from(mode);
    }
    service.patch(place, &json!({ "Boot": boot }), deadline)?;
    let path = place.path.clone();
    let shows = deadline.at_most(SHOWS);
    loop {
        let said = service.get(&path, deadline)?.text(TARGET).map(str::to_owned);
        match said {
            Some(said) if said != target && shows.passed() => {
                return Err(PcuError::NoEffect { doing, detail: format!("it was told {target} and says {said}") });
            }
            Some(said) if said != target => thread::sleep(POLL.min(deadline.left(&doing)?)),
            _ => return Ok(()),
        }
    }
}

fn target(device: BootDevice, allowed: Option<&[String]>, cd_on_usb: bool) -> Option<&'static str> {
    let is_allowed = |target: &str| allowed.is_none_or(|allowed| allowed.iter().any(|allowed| allowed == target));
    let target = match device {
        BootDevice::Cd if cd_on_usb && allowed.is_some() && is_allowed("UsbCd") => "UsbCd",
        BootDevice::Cd => "Cd",
        BootDevice::Pxe => "Pxe",
        BootDevice::Disk => "Hdd",
        BootDevice::Setup => "BiosSetup",
        // Not every list has it, and every service takes it.
        BootDevice::Default => return Some("None"),
    };
    is_allowed(target).then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_targets() {
        let check = |device, allowed: Option<&[&str]>, cd_on_usb, expected| {
            let allowed = allowed.map(|allowed| allowed.iter().map(|target| (*target).to_owned()).collect::<Vec<_>>());
            assert_eq!(target(device, allowed.as_deref(), cd_on_usb), expected, "{device} {allowed:?}");
        };
        let some = Some(&["None", "Pxe", "Cd", "UsbCd"][..]);
        check(BootDevice::Cd, some, false, Some("Cd"));
        check(BootDevice::Cd, some, true, Some("UsbCd"));
        check(BootDevice::Cd, Some(&["Cd"]), true, Some("Cd"));
        check(BootDevice::Cd, None, true, Some("Cd"));
        check(BootDevice::Disk, some, false, None);
        check(BootDevice::Disk, None, false, Some("Hdd"));
        check(BootDevice::Setup, None, false, Some("BiosSetup"));
        check(BootDevice::Default, Some(&["Pxe"]), false, Some("None"));
    }
}
