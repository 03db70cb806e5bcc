//! Which nodes there are, and by which methods their power is switched.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::Method;

/// A file of nodes.
///
/// ```toml
/// [nodes.n1]
/// groups = ["rack1"]
/// methods = [
///     { driver = "ipmi", address = "10.0.0.1", user = "pcu", password = { file = "/etc/pcu/n1.secret" } },
///     { driver = "wol", address = "52:54:00:12:34:56" },
/// ]
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inventory {
    /// Nodes by name.
    #[serde(default)]
    pub nodes: BTreeMap<String, Node>,
}

/// One node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// The groups that it is in.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub groups: BTreeSet<String>,
    /// Its methods, the preferred one first.
    pub methods: Vec<Method>,
}

/// Why an inventory cannot be used.
#[derive(Debug, Error)]
pub enum InventoryError {
    /// It cannot be read.
    #[error("reading the inventory {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It is no inventory.
    #[error("the inventory {}: {detail}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, with its line.
        detail: String,
    },
    /// Asked for a node that is not in it.
    #[error("the inventory has no node {0:?}")]
    NoNode(String),
    /// Asked for a group that is not in it.
    #[error("the inventory has no group {0:?}")]
    NoGroup(String),
}

impl Inventory {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or is not an inventory.
    pub fn read(path: &Path) -> Result<Self, InventoryError> {
        let text = fs::read_to_string(path).map_err(|source| InventoryError::Read { path: path.into(), source })?;
        let malformed = |detail: String| InventoryError::Malformed { path: path.into(), detail };
        let inventory: Self = toml::from_str(&text).map_err(|error| malformed(error.to_string()))?;
        match inventory.nodes.iter().find(|(_, node)| node.methods.is_empty()) {
            Some((name, _)) => Err(malformed(format!("node {name} has no method"))),
            None => Ok(inventory),
        }
    }

    /// The nodes named, and those in the groups named; each once, by name.
    ///
    /// # Errors
    /// When there is no such node or group.
    pub fn select<'a>(
        &'a self,
        names: &[String],
        groups: &[String],
    ) -> Result<BTreeMap<&'a str, &'a Node>, InventoryError> {
        let mut chosen = BTreeMap::new();
        for name in names {
            let (name, node) = self.nodes.get_key_value(name).ok_or_else(|| InventoryError::NoNode(name.clone()))?;
            chosen.insert(name.as_str(), node);
        }
        for group in groups {
            let mut members = self.nodes.iter().filter(|(_, node)| node.groups.contains(group)).peekable();
            if members.peek().is_none() {
                return Err(InventoryError::NoGroup(group.clone()));
            }
            chosen.extend(members.map(|(name, node)| (name.as_str(), node)));
        }
        Ok(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        [nodes.n1]
        groups = ["rack1"]
        methods = [
            { driver = "ipmi", address = "10.0.0.1", user = "pcu", password = { file = "/etc/pcu/n1" }, cipher = 17 },
            { driver = "apc", address = "10.0.0.9", outlet = "3", waivers = ["clear-text"] },
        ]
        [nodes.n2]
        groups = ["rack1", "old"]
        methods = [{ driver = "manual" }]
    "#;

    fn read(text: &str) -> Result<Inventory, InventoryError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pcu.toml");
        fs::write(&path, text).unwrap();
        Inventory::read(&path)
    }

    #[test]
    fn nodes_are_chosen_by_name_and_group() {
        let inventory = read(TEXT).unwrap();
        let check = |names: &[&str], groups: &[&str], expected: &[&str]| {
            let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
            let chosen = inventory.select(&own(names), &own(groups)).unwrap();
            assert_eq!(chosen.keys().copied().collect::<Vec<_>>(), expected);
        };
        check(&["n2"], &[], &["n2"]);
        check(&["n1"], &["old"], &["n1", "n2"]);
        check(&["n1", "n1"], &["rack1"], &["n1", "n2"]);
        assert!(matches!(inventory.select(&["n3".into()], &[]), Err(InventoryError::NoNode(_))));
        assert!(matches!(inventory.select(&[], &["x".into()]), Err(InventoryError::NoGroup(_))));
        assert_eq!(inventory.nodes["n1"].methods[0].options["cipher"].as_integer(), Some(17));
    }

    #[test]
    fn what_is_written_is_read_again() {
        let inventory = read(TEXT).unwrap();
        assert_eq!(read(&toml::to_string(&inventory).unwrap()).unwrap(), inventory);
    }

    #[test]
    fn a_broken_inventory_says_where() {
        for wrong in
            ["[nodes.n1]\n", "[nodes.n1]\nmethods = []\n", "[node.n1]\nmethods = []\n", "[nodes.n1]\nmethods = [{}]\n"]
        {
            assert!(matches!(read(wrong), Err(InventoryError::Malformed { .. })), "{wrong:?}");
        }
    }
}
