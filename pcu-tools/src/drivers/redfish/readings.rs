//! Temperatures, fans, voltages and power of a system's chassis: from `Thermal` and `Power`, which every service had until 2020,
//! else from `Sensors`, which has replaced them (DSP0268).

use serde_json::Value;

use super::{
    service::{Resource, Service, link},
    system::title,
};
use crate::{Deadline, PcuError, Sensor, web::clip};

/// Most chassis of one system, and most sensors of each.
const CHASSIS: usize = 8;
const SENSORS: usize = 500;

/// The old lists: where, its list, where the reading is in an entry, and its unit; an empty one stands in the entry.
const LISTS: [(&str, &str, &str, &str); 5] = [
    ("/Thermal", "Temperatures", "ReadingCelsius", "°C"),
    ("/Thermal", "Fans", "Reading", ""),
    ("/Power", "Voltages", "ReadingVolts", "V"),
    ("/Power", "PowerControl", "PowerConsumedWatts", "W"),
    ("/Power", "PowerSupplies", "LastPowerOutputWatts", "W"),
];

/// Reads all of them.
pub(super) fn read(service: &mut Service, system: &Resource, deadline: Deadline) -> Result<Vec<Sensor>, PcuError> {
    let mut sensors = Vec::new();
    for link in system.links("/Links/Chassis").iter().take(CHASSIS) {
        let chassis = service.get(link, deadline)?;
        let old = old_style(service, &chassis, deadline)?;
        let found = if old.is_empty() { new_style(service, &chassis, deadline)? } else { old };
        sensors.extend(found);
    }
    if sensors.is_empty() {
        let doing = format!("reading the sensors of {}", title(system));
        return Err(PcuError::Unsupported { doing, detail: "its chassis have none".into() });
    }
    Ok(sensors)
}

fn old_style(service: &mut Service, chassis: &Resource, deadline: Deadline) -> Result<Vec<Sensor>, PcuError> {
    let mut sensors = Vec::new();
    for place in ["/Thermal", "/Power"] {
        let Some(link) = chassis.link(place).map(str::to_owned) else { continue };
        let told = match service.get(&link, deadline) {
            Ok(told) => told,
            // Some link to what they do not have.
            Err(PcuError::Unsupported { .. }) => continue,
            Err(error) => return Err(error),
        };
        for (_, list, reading, unit) in LISTS.iter().filter(|list| list.0 == place) {
            let entries = told.body.get(*list).and_then(Value::as_array).into_iter().flatten();
            sensors.extend(entries.filter_map(|entry| sensor(entry, reading, unit)));
        }
    }
    sensors.truncate(SENSORS);
    Ok(sensors)
}

fn new_style(service: &mut Service, chassis: &Resource, deadline: Deadline) -> Result<Vec<Sensor>, PcuError> {
    let Some(collection) = chassis.link("/Sensors").map(str::to_owned) else { return Ok(Vec::new()) };
    let expands =
        service.root().body.pointer("/ProtocolFeaturesSupported/ExpandQuery/NoLinks") == Some(&Value::Bool(true));
    let expanded =
        if expands { service.members(&format!("{collection}?$expand=."), SENSORS, deadline).ok() } else { None };
    let members = match expanded {
        Some(members) => members,
        None => service.members(&collection, SENSORS, deadline)?,
    };
    let mut sensors = Vec::new();
    for member in members {
        let told = match (member.get("ReadingType"), link(&member)) {
            (None, Some(link)) => service.get(link, deadline)?.body,
            _ => member,
        };
        sensors.extend(sensor(&told, "Reading", ""));
    }
    Ok(sensors)
}

/// A reading; none for a sensor that is not there.
fn sensor(told: &Value, reading: &str, unit: &str) -> Option<Sensor> {
    let text = |key: &str| told[key].as_str().map(clip);
    let state = told["Status"]["State"].as_str().unwrap_or_default();
    if state == "Absent" {
        return None;
    }
    let name = text("Name").or_else(|| text("FanName")).or_else(|| text("Id")).or_else(|| text("MemberId"))?;
    let unit = match (unit, told["ReadingUnits"].as_str()) {
        ("", Some("Cel")) => "°C".into(),
        ("", Some("RPM" | "{rev}/min")) => "rpm".into(),
        ("", Some("Percent")) => "%".into(),
        ("", Some(other)) => clip(other),
        (known, _) => known.to_owned(),
    };
    let status = told["Status"]["Health"].as_str().unwrap_or(state);
    Some(Sensor { name, value: told[reading].as_f64(), unit, status: clip(status).to_lowercase() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn old_and_new_sensors_are_read() {
        let check = |told: Value, reading: &str, unit: &str, expected: Option<(&str, Option<f64>, &str, &str)>| {
            let expected = expected.map(|(name, value, unit, status)| Sensor {
                name: name.into(),
                value,
                unit: unit.into(),
                status: status.into(),
            });
            assert_eq!(sensor(&told, reading, unit), expected, "{told}");
        };
        let fine = json!({ "State": "Enabled", "Health": "OK" });
        let cpu = json!({ "Name": "CPU", "ReadingCelsius": 41, "Status": fine });
        check(cpu, "ReadingCelsius", "°C", Some(("CPU", Some(41.0), "°C", "ok")));
        let fan = json!({ "FanName": "Fan 1", "Reading": 9, "ReadingUnits": "Percent", "Status": { "Health": null, "State": "Enabled" } });
        check(fan, "Reading", "", Some(("Fan 1", Some(9.0), "%", "enabled")));
        let intake = json!({ "Id": "t1", "Reading": null, "ReadingUnits": "Cel", "Status": { "Health": "Critical" } });
        check(intake, "Reading", "", Some(("t1", None, "°C", "critical")));
        check(json!({ "Name": "x", "Status": { "State": "Absent" } }), "Reading", "", None);
        check(json!("x"), "Reading", "", None);
    }
}
