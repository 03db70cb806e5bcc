//! The lamp at a system, or else at its chassis.

use serde_json::{Value, json};

use super::{
    service::{Resource, Service},
    system::title,
};
use crate::{Deadline, PcuError};

/// Lights the lamp or puts it out. It stays so: services have no clock for it.
pub(super) fn set(service: &mut Service, system: &Resource, lit: bool, deadline: Deadline) -> Result<(), PcuError> {
    if let Some(change) = change(system, lit) {
        return service.patch(system, &change, deadline);
    }
    for link in system.links("/Links/Chassis").iter().take(4) {
        let chassis = service.get(link, deadline)?;
        if let Some(change) = change(&chassis, lit) {
            return service.patch(&chassis, &change, deadline);
        }
    }
    Err(PcuError::Unsupported {
        doing: format!("lighting the lamp of {}", title(system)),
        detail: "neither the system nor its chassis has one".into(),
    })
}

/// What to write. `LocationIndicatorActive` has replaced `IndicatorLED` (DSP0268); some have both.
fn change(resource: &Resource, lit: bool) -> Option<Value> {
    if resource.body.get("LocationIndicatorActive").is_some_and(Value::is_boolean) {
        return Some(json!({ "LocationIndicatorActive": lit }));
    }
    resource.text("/IndicatorLED")?;
    let allowed = resource.texts("/IndicatorLED@Redfish.AllowableValues");
    let blinks = allowed.is_none_or(|allowed| allowed.iter().any(|state| state == "Blinking"));
    let state = match (lit, blinks) {
        (true, true) => "Blinking",
        (true, false) => "Lit",
        (false, _) => "Off",
    };
    Some(json!({ "IndicatorLED": state }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newer_lamp_is_preferred() {
        let check = |body: Value, lit: bool, expected: Option<Value>| {
            assert_eq!(change(&Resource::told("/1", body.clone()), lit), expected, "{body}");
        };
        let both = json!({ "IndicatorLED": "Lit", "LocationIndicatorActive": false });
        check(both, true, Some(json!({ "LocationIndicatorActive": true })));
        let old = json!({ "IndicatorLED": "Lit" });
        check(old.clone(), true, Some(json!({ "IndicatorLED": "Blinking" })));
        check(old, false, Some(json!({ "IndicatorLED": "Off" })));
        let steady = json!({ "IndicatorLED": "Off", "IndicatorLED@Redfish.AllowableValues": ["Lit", "Off"] });
        check(steady, true, Some(json!({ "IndicatorLED": "Lit" })));
        check(json!({ "IndicatorLED": null }), true, None);
        check(json!({}), true, None);
    }
}
