//! What a data file says of a family of power units: which objects to read and write.

use serde::Deserialize;

use super::object::{AnyObject, Index, ObjectId, OutletObject};
use crate::Change;

/// A data file's table `[snmp]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::drivers) struct Table {
    /// The `sysObjectID`s of these devices: these, or anything below them.
    #[serde(default)]
    pub(super) identity: Vec<ObjectId>,
    /// Columns with the outlets' names, below which the index stands. An outlet may be called by any of them.
    #[serde(default)]
    pub(super) names: Vec<ObjectId>,
    /// How many numbers an index has: 1, or 3 for tower, infeed and outlet.
    #[serde(default = "one")]
    pub(super) depth: usize,
    /// What stands before the outlet when the inventory gives only its number; as many numbers as the depth needs.
    #[serde(default)]
    pub(super) leading: Vec<u32>,
    /// How the power is read.
    pub(super) status: Status,
    /// What gives power.
    pub(super) on: Write,
    /// What takes it.
    pub(super) off: Write,
    /// What does both, where the device can.
    pub(super) cycle: Option<Write>,
    /// What else can be read.
    #[serde(default)]
    pub(super) sensors: Vec<SensorObject>,
}

/// How the power is read.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Status {
    /// Where.
    pub(super) oid: OutletObject,
    /// Values that mean that there is power.
    pub(super) on: Vec<i64>,
    /// Values that mean that there is none.
    pub(super) off: Vec<i64>,
    /// Values of an outlet that is between the two, or waits for something.
    #[serde(default)]
    pub(super) busy: Vec<i64>,
}

/// A command: a value that is written.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Write {
    /// Where.
    pub(super) oid: OutletObject,
    /// What.
    pub(super) value: i32,
}

/// A reading.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SensorObject {
    /// What it is called.
    pub(super) name: String,
    /// Where it is.
    pub(super) oid: AnyObject,
    /// Its unit, as `A`.
    pub(super) unit: String,
    /// What the value is multiplied by.
    #[serde(default = "unscaled")]
    pub(super) scale: f64,
    /// An outlet's object that says how many of the value's digits stand behind the point.
    #[serde(default)]
    pub(super) digits: Option<OutletObject>,
}

impl Table {
    /// Whether it can be used.
    ///
    /// # Errors
    /// Which field is wrong, and how.
    pub(super) fn check(&self) -> Result<(), String> {
        let Status { on, off, busy, .. } = &self.status;
        if on.is_empty() || off.is_empty() {
            return Err("snmp.status: on and off each need a value at least".into());
        }
        let values = [on.as_slice(), off, busy].concat();
        if let Some(value) =
            values.iter().enumerate().find_map(|(at, value)| values[..at].contains(value).then_some(value))
        {
            return Err(format!("snmp.status: the value {value} stands in on, off and busy more than once"));
        }
        if !(1..=4).contains(&self.depth) {
            return Err(format!("snmp.depth: an index has 1 to 4 numbers, not {}", self.depth));
        }
        if !self.leading.is_empty() && self.leading.len() + 1 != self.depth {
            return Err(format!(
                "snmp.leading: {} numbers and the outlet's make no index of depth {}",
                self.leading.len(),
                self.depth
            ));
        }
        if self.on == self.off || self.cycle.as_ref().is_some_and(|cycle| *cycle == self.on || *cycle == self.off) {
            return Err("snmp.on, snmp.off and snmp.cycle: two of them write the same".into());
        }
        match self.sensors.iter().find(|sensor| !(sensor.scale.is_finite() && sensor.scale > 0.0)) {
            Some(sensor) => Err(format!("snmp.sensors: the scale of {:?} is not above zero", sensor.name)),
            None => Ok(()),
        }
    }

    /// The command of a change, where there is one.
    pub(super) fn command(&self, change: Change) -> Option<&Write> {
        match change {
            Change::On => Some(&self.on),
            Change::Off => Some(&self.off),
            Change::Cycle => self.cycle.as_ref(),
            Change::Reset => None,
        }
    }

    /// The index that an inventory's outlet is; none when it is a name.
    pub(super) fn index(&self, outlet: &str) -> Option<Index> {
        let index: Index = outlet.parse().ok()?;
        match index.0.as_slice() {
            [_, ..] if index.0.len() == self.depth => Some(index),
            [number] if !self.leading.is_empty() => Some(Index([self.leading.as_slice(), &[*number]].concat())),
            _ => None,
        }
    }

    /// How an inventory would write an outlet.
    pub(super) fn written(&self, index: &Index) -> String {
        match index.0.strip_prefix(self.leading.as_slice()) {
            Some([number]) => number.to_string(),
            _ => index.to_string(),
        }
    }

    /// How much of a device's `sysObjectID` names this family: none, or more for a closer match.
    pub(super) fn fits(&self, identity: &ObjectId) -> Option<usize> {
        self.identity.iter().filter(|prefix| identity.is_within(prefix)).map(ObjectId::len).max()
    }
}

fn one() -> usize {
    1
}

fn unscaled() -> f64 {
    1.0
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        Inventory, Registry,
        drivers::{parse_data, snmp::credentials::Credentials},
    };

    pub(in super::super) const GOOD: &str = r#"
name = "x"
about = "a unit"
source = "none"
[snmp]
names = ["1.3.6.1.4.1.9999.1.2"]
depth = 2
leading = [1]
[snmp.status]
oid = "1.3.6.1.4.1.9999.1.4.{outlet}"
on = [1]
off = [0]
busy = [2]
[snmp.on]
oid = "1.3.6.1.4.1.9999.1.5.{outlet}"
value = 1
[snmp.off]
oid = "1.3.6.1.4.1.9999.1.5.{outlet}"
value = 2
[[snmp.sensors]]
name = "current"
oid = "1.3.6.1.4.1.9999.1.7.{outlet}"
unit = "A"
scale = 0.1
"#;

    #[test]
    fn a_wrong_file_says_what_is_wrong() {
        let check = |from: &str, to: &str, expected: &str| {
            assert!(GOOD.contains(from), "{from}");
            let error = parse_data(&GOOD.replacen(from, to, 1)).err().unwrap_or_else(|| panic!("{to:?} is taken"));
            assert!(error.contains(expected), "{to:?}: {error}");
        };
        assert!(parse_data(GOOD).is_ok());
        check("on = [1]\n", "", "missing field `on`");
        check("on = [1]", "on = []", "snmp.status: on and off each need a value");
        check("off = [0]", "off = [1]", "snmp.status: the value 1 stands in");
        check("busy = [2]", "busy = [0]", "the value 0");
        check("busy = [2]", "pending = [2]", "unknown field `pending`");
        check("depth = 2", "depth = 3", "snmp.leading: 1 numbers");
        check("depth = 2\nleading = [1]", "depth = 9", "snmp.depth");
        check("1.4.{outlet}", "1.4", "needs {outlet}");
        check("1.4.{outlet}", "1.4.{outlet}{outlet}", "needs {outlet}");
        check("1.3.6.1.4.1.9999.1.2", "PDU-MIB::outletName", "numbers with dots");
        check("value = 1", "value = \"on\"", "invalid type");
        check("value = 1", "value = 9999999999", "invalid value");
        check("value = 1", "value = 2", "two of them write the same");
        check("scale = 0.1", "scale = 0.0", "scale of \"current\"");
        check("oid = \"1.3.6.1.4.1.9999.1.7", "object = \"1.3.6.1.4.1.9999.1.7", "unknown field `object`");
        check("[snmp.on]", "[snmp.start]", "unknown field `start`");
        check("source = \"none\"", "", "missing field `source`");
        check("[snmp.off]\noid = \"1.3.6.1.4.1.9999.1.5.{outlet}\"\nvalue = 2\n", "", "missing field `off`");
    }

    #[test]
    fn what_the_documentation_shows_is_right() {
        let text = include_str!("../../../../docs/pcu/snmp.md");
        let blocks = text.split("```toml\n").skip(1).map(|block| block.split("```").next().unwrap());
        let mut counts = [0, 0];
        for block in blocks {
            if block.starts_with("name = ") {
                assert_eq!(parse_data(block).unwrap().name(), "acme-snmp");
                counts[0] += 1;
            } else {
                let inventory: Inventory = toml::from_str(block).unwrap();
                for method in inventory.nodes.values().flat_map(|node| &node.methods) {
                    let driver = Registry::builtin().of(method).unwrap().name().to_owned();
                    assert!(text.contains(&format!("`{driver}`")), "{driver}");
                    let error = Credentials::of(method).unwrap_err();
                    assert!(error.to_string().contains("/etc/pcu/"), "only the secret is missing, not: {error}");
                }
                counts[1] += 1;
            }
        }
        assert_eq!(counts, [1, 2]);
    }

    #[test]
    fn outlets_are_numbers_or_names() {
        let file: toml::Table = toml::from_str(GOOD).unwrap();
        let mut table: Table = file["snmp"].clone().try_into().unwrap();
        let check = |table: &Table, outlet: &str, expected: Option<&str>| {
            let found = table.index(outlet);
            assert_eq!(found.map(|index| index.to_string()).as_deref(), expected, "{outlet:?}");
        };
        check(&table, "3", Some("1.3"));
        check(&table, "2.3", Some("2.3"));
        check(&table, "1.2.3", None);
        check(&table, "n3", None);
        check(&table, "", None);
        assert_eq!(table.written(&"1.3".parse().unwrap()), "3");
        assert_eq!(table.written(&"2.3".parse().unwrap()), "2.3");
        (table.depth, table.leading) = (3, Vec::new());
        check(&table, "1.1.3", Some("1.1.3"));
        check(&table, "3", None);
    }
}
