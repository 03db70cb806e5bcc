//! A sliver's private layer: what its users ask of it through the ssh gate, and the head of its export.

use alloc::{
    format,
    string::{String, ToString},
    vec::Vec,
};
use core::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::sliver::SliceName;

/// The first entry of an export.
pub const EXPORT_MANIFEST: &str = "orrery-sliver.json";
/// What the names of all other entries begin with.
pub const EXPORT_LAYER: &str = "layer/";
/// The format of exports that this is.
pub const EXPORT_FORMAT: u32 = 1;

/// A snapshot's name: 1 to 32 letters, digits, `-`, `_` and `.`, the first a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotName(String);

/// What cannot name a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotNameError;

impl fmt::Display for SnapshotNameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a snapshot's name has 1 to 32 letters, digits, `-`, `_` and `.`, the first a letter or digit")
    }
}

impl core::error::Error for SnapshotNameError {}

impl SnapshotName {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SnapshotName {
    type Err = SnapshotNameError;

    fn from_str(s: &str) -> Result<Self, SnapshotNameError> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        let good =
            (1..=32).contains(&s.len()) && s.starts_with(|c: char| c.is_ascii_alphanumeric()) && s.bytes().all(plain);
        if good { Ok(Self(s.into())) } else { Err(SnapshotNameError) }
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for SnapshotName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SnapshotName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// How much a layer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LayerSize {
    /// Files, directories, links and marks of removed files, without further names of files.
    pub files: u64,
    /// Content of files without holes, in bytes.
    pub bytes: u64,
}

/// A snapshot of a sliver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its name.
    pub name: SnapshotName,
    /// When it was taken, in Unix seconds.
    pub created: u64,
    /// What it holds.
    #[serde(flatten)]
    pub size: LayerSize,
}

/// What an export says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportManifest {
    /// [`EXPORT_FORMAT`].
    pub format: u32,
    /// SHA-256 of the image that the layer lies on, in hexadecimal.
    pub image: String,
    /// Whose sliver it was.
    pub slice: SliceName,
    /// The snapshot that it is; none if it is the sliver as it was then.
    pub snapshot: Option<SnapshotName>,
    /// When it was written, in Unix seconds.
    pub created: u64,
}

/// Work on a layer that a slice's users ask for, as the name of an ssh subsystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayerTask {
    /// Take a snapshot.
    Take(SnapshotName),
    /// List the snapshots.
    List,
    /// Make the sliver what the snapshot is.
    Restore(SnapshotName),
    /// Remove a snapshot.
    Delete(SnapshotName),
    /// Make the sliver of another login on the node what the snapshot is.
    Clone(SnapshotName, String),
    /// Write a snapshot, or the sliver as it is, to standard output.
    Export(Option<SnapshotName>),
    /// Make the sliver what standard input is.
    Import,
}

/// Not a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerTaskError;

impl fmt::Display for LayerTaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "the subsystems for snapshots are `orrery-snapshot create NAME`, `list`, `restore NAME`, `delete NAME`, \
             `clone NAME LOGIN`, `orrery-export [NAME]` and `orrery-import`",
        )
    }
}

impl core::error::Error for LayerTaskError {}

impl FromStr for LayerTask {
    type Err = LayerTaskError;

    fn from_str(s: &str) -> Result<Self, LayerTaskError> {
        let name = |text: &str| text.parse().map_err(|_| LayerTaskError);
        let words: Vec<&str> = s.split_ascii_whitespace().collect();
        Ok(match words[..] {
            ["orrery-snapshot", "create", text] => Self::Take(name(text)?),
            ["orrery-snapshot", "list"] => Self::List,
            ["orrery-snapshot", "restore", text] => Self::Restore(name(text)?),
            ["orrery-snapshot", "delete", text] => Self::Delete(name(text)?),
            ["orrery-snapshot", "clone", text, login] => Self::Clone(name(text)?, login.into()),
            ["orrery-export"] => Self::Export(None),
            ["orrery-export", text] => Self::Export(Some(name(text)?)),
            ["orrery-import"] => Self::Import,
            _ => return Err(LayerTaskError),
        })
    }
}

impl fmt::Display for LayerTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&match self {
            Self::Take(name) => format!("orrery-snapshot create {name}"),
            Self::List => "orrery-snapshot list".to_string(),
            Self::Restore(name) => format!("orrery-snapshot restore {name}"),
            Self::Delete(name) => format!("orrery-snapshot delete {name}"),
            Self::Clone(name, login) => format!("orrery-snapshot clone {name} {login}"),
            Self::Export(None) => "orrery-export".to_string(),
            Self::Export(Some(name)) => format!("orrery-export {name}"),
            Self::Import => "orrery-import".to_string(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let check = |text: &str, good: bool| assert_eq!(text.parse::<SnapshotName>().is_ok(), good, "{text}");
        check("before-upgrade_1.2", true);
        check(&"a".repeat(32), true);
        check(&"a".repeat(33), false);
        check("", false);
        check(".new", false);
        check("-rf", false);
        check("a/b", false);
        check("ä", false);
        assert!(serde_json::from_str::<SnapshotName>("\"..\"").is_err());
    }

    #[test]
    fn tasks_are_read_as_they_are_written() {
        let name = |text: &str| text.parse::<SnapshotName>().unwrap();
        for task in [
            LayerTask::Take(name("a")),
            LayerTask::List,
            LayerTask::Restore(name("a.b")),
            LayerTask::Delete(name("a")),
            LayerTask::Clone(name("a"), "demo_b".into()),
            LayerTask::Export(None),
            LayerTask::Export(Some(name("a"))),
            LayerTask::Import,
        ] {
            assert_eq!(task.to_string().parse(), Ok(task));
        }
        for bad in
            ["", "sftp", "orrery-snapshot", "orrery-snapshot create", "orrery-snapshot create ../x", "orrery-import x"]
        {
            assert_eq!(bad.parse::<LayerTask>(), Err(LayerTaskError), "{bad}");
        }
    }
}
