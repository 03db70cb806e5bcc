//! Which of a service's systems is the node, and its power.

use serde_json::{Value, json};

use super::service::{Resource, Service, link};
use crate::{Change, Deadline, PcuError, PowerState, web::clip};

/// Most systems behind one service.
const SYSTEMS: usize = 256;

/// The action that switches a system.
#[derive(Debug)]
pub(super) struct Reset {
    target: String,
    /// What it takes; none when the service does not say.
    pub(super) allowed: Option<Vec<String>>,
}

/// Finds the system: `outlet` is its Id, Name or UUID; without one, the only system there is.
pub(super) fn find(service: &mut Service, outlet: Option<&str>, deadline: Deadline) -> Result<Resource, PcuError> {
    let doing = format!("looking for the system at {}", service.origin());
    let collection = service.root().link("/Systems").map(str::to_owned);
    let collection = collection
        .ok_or_else(|| PcuError::Unsupported { doing: doing.clone(), detail: "the service has no systems".into() })?;
    let members = service.members(&collection, SYSTEMS, deadline)?;
    let links: Vec<_> = members.iter().filter_map(link).map(str::to_owned).collect();
    match (links.as_slice(), outlet) {
        // iDRACs that have just started do so (github.com/redhat-performance/jetlag/pull/778).
        ([], _) => return Err(PcuError::Busy { doing, detail: "it does not know its systems yet".into() }),
        ([only], None) => return service.get(only, deadline),
        _ => (),
    }
    // Mostly, the Id is in the link; reading many systems takes many seconds.
    let named = links.iter().find(|link| link.trim_end_matches('/').rsplit('/').next() == outlet);
    if let Some(link) = named {
        return service.get(link, deadline);
    }
    let mut systems = Vec::new();
    for link in &links {
        systems.push(service.get(link, deadline)?);
    }
    let known = systems.iter().map(title).collect();
    let is_it = |system: &Resource| {
        let names = ["/Id", "/Name", "/UUID"].into_iter().filter_map(|at| system.text(at));
        outlet.is_some_and(|outlet| names.into_iter().any(|name| name.eq_ignore_ascii_case(outlet)))
    };
    let mut found = systems.into_iter().filter(is_it);
    match (found.next(), found.next()) {
        (Some(system), None) => Ok(system),
        _ => Err(PcuError::OutletUnknown { doing, outlet: outlet.unwrap_or_default().into(), known }),
    }
}

/// A system in words: "1 (Computer System)".
pub(super) fn title(system: &Resource) -> String {
    let text = |at: &str| clip(system.text(at).unwrap_or_default());
    match (text("/Id"), text("/Name")) {
        (id, name) if name.is_empty() || name == id => id,
        (id, name) => format!("{id} ({name})"),
    }
}

/// Whether a system has power. While it is on the way, it is still what it was.
pub(super) fn state(system: &Resource) -> Result<PowerState, PcuError> {
    let doing = || format!("reading the power of {}", title(system));
    match system.body.get("PowerState") {
        Some(Value::String(state)) => match state.as_str() {
            "On" | "PoweringOff" | "Paused" => Ok(PowerState::On),
            "Off" | "PoweringOn" => Ok(PowerState::Off),
            other => Err(PcuError::BadAnswer { doing: doing(), detail: format!("PowerState is {:?}", clip(other)) }),
        },
        Some(Value::Null) => {
            Err(PcuError::Busy { doing: doing(), detail: "it does not know the power's state now".into() })
        }
        _ => Err(PcuError::BadAnswer { doing: doing(), detail: "it has no PowerState".into() }),
    }
}

/// A system's action, and what it takes: said with it, or in a resource of its own.
pub(super) fn reset(service: &mut Service, system: &Resource, deadline: Deadline) -> Result<Reset, PcuError> {
    const ACTION: &str = "/Actions/#ComputerSystem.Reset";
    let target = system.text(&format!("{ACTION}/target")).map(str::to_owned);
    let target = target.ok_or_else(|| PcuError::Unsupported {
        doing: format!("switching {}", title(system)),
        detail: "the system has no action ComputerSystem.Reset".into(),
    })?;
    let mut allowed = system.texts(&format!("{ACTION}/ResetType@Redfish.AllowableValues"));
    if let (None, Some(info)) = (&allowed, system.text(&format!("{ACTION}/@Redfish.ActionInfo"))) {
        let info = service.get(info, deadline)?;
        let parameters = info.body.get("Parameters").and_then(Value::as_array).into_iter().flatten();
        let values = parameters
            .filter(|parameter| parameter["Name"] == "ResetType")
            .map(|parameter| &parameter["AllowableValues"]);
        allowed = values
            .filter_map(Value::as_array)
            .next()
            .map(|values| values.iter().filter_map(Value::as_str).map(clip).collect());
    }
    Ok(Reset { target, allowed })
}

/// The type of reset that is a change, of those that the service takes.
pub(super) fn reset_type(change: Change, allowed: Option<&[String]>) -> Option<&'static str> {
    let wanted: &[_] = match change {
        Change::On => &["On", "ForceOn"],
        Change::Off => &["ForceOff"],
        Change::Cycle => &["PowerCycle"],
        Change::Reset => &["ForceRestart"],
    };
    match allowed {
        None => wanted.first().copied(),
        Some(allowed) => wanted.iter().copied().find(|wanted| allowed.iter().any(|allowed| allowed == wanted)),
    }
}

/// Asks for a change.
pub(super) fn change(
    service: &mut Service,
    system: &Resource,
    change: Change,
    deadline: Deadline,
) -> Result<(), PcuError> {
    let reset = reset(service, system, deadline)?;
    let kind = reset_type(change, reset.allowed.as_deref()).ok_or_else(|| PcuError::Unsupported {
        doing: format!("asking {} for {change}", title(system)),
        detail: format!("it takes {} only", reset.allowed.clone().unwrap_or_default().join(", ")),
    })?;
    let asked = service.post(&reset.target, &json!({ "ResetType": kind }), deadline);
    // Some refuse what is so already, as iDRAC with PSU501 and status 409, or what is on its way.
    let already = match (change, &asked) {
        (Change::On, Err(PcuError::Refused { .. })) => ["On", "PoweringOn"],
        (Change::Off, Err(PcuError::Refused { .. })) => ["Off", "PoweringOff"],
        _ => return asked,
    };
    match service.get(&system.path, deadline) {
        Ok(system) if system.text("/PowerState").is_some_and(|state| already.contains(&state)) => Ok(()),
        _ => asked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Class;

    #[test]
    fn resets_are_chosen_by_what_is_allowed() {
        let check = |change, allowed: Option<&[&str]>, expected: Option<&str>| {
            let allowed = allowed.map(|allowed| allowed.iter().map(|kind| (*kind).to_owned()).collect::<Vec<_>>());
            assert_eq!(reset_type(change, allowed.as_deref()), expected, "{change} {allowed:?}");
        };
        let old = Some(&["ForceOff", "ForceOn", "GracefulRestart", "Nmi"][..]);
        check(Change::On, None, Some("On"));
        check(Change::On, old, Some("ForceOn"));
        check(Change::On, Some(&["ForceOn", "On"]), Some("On"));
        check(Change::Off, old, Some("ForceOff"));
        check(Change::Cycle, old, None);
        check(Change::Cycle, None, Some("PowerCycle"));
        check(Change::Reset, old, None);
        check(Change::Reset, Some(&["ForceRestart"]), Some("ForceRestart"));
    }

    #[test]
    fn states_on_the_way_are_what_they_were() {
        let check = |body: Value, expected: Result<PowerState, Class>| {
            let system = Resource::told("/1", body.clone());
            assert_eq!(state(&system).map_err(|error| error.class()), expected, "{body}");
        };
        let power = |state: &str| json!({ "Id": "1", "PowerState": state });
        check(power("On"), Ok(PowerState::On));
        check(power("Off"), Ok(PowerState::Off));
        check(power("PoweringOn"), Ok(PowerState::Off));
        check(power("PoweringOff"), Ok(PowerState::On));
        check(power("Paused"), Ok(PowerState::On));
        check(power("Maybe"), Err(Class::Prompt));
        check(json!({ "PowerState": null }), Err(Class::Busy));
        check(json!({}), Err(Class::Prompt));
    }
}
