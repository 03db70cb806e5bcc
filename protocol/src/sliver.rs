//! Slices and slivers as central tells a node about them.

use alloc::{format, string::String, vec::Vec};
use core::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{admin::Admin, artifact::ArtifactRef, rspec::Rspec, startup::Startup};

/// A slice's name: `<authority>/<name>`, both of lower-case letters and digits, starting with a letter, at
/// most 32 characters together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceName {
    authority: String,
    name: String,
}

/// Not a slice name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SliceNameError;

impl fmt::Display for SliceNameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "a slice is named `<authority>/<name>`: lower-case letters and digits, each starting with a letter, \
             at most 31 characters without the slash",
        )
    }
}

impl core::error::Error for SliceNameError {}

impl SliceName {
    /// The authority that made the slice.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// The slice's name within its authority.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The account on nodes: `<authority>_<name>`. Unambiguous, since neither part has an underscore.
    pub fn login(&self) -> String {
        format!("{}_{}", self.authority, self.name)
    }
}

impl FromStr for SliceName {
    type Err = SliceNameError;

    fn from_str(s: &str) -> Result<Self, SliceNameError> {
        let word = |w: &str| {
            w.starts_with(|c: char| c.is_ascii_lowercase())
                && w.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        match s.split_once('/') {
            Some((authority, name)) if word(authority) && word(name) && s.len() <= 32 => {
                Ok(Self { authority: authority.into(), name: name.into() })
            }
            _ => Err(SliceNameError),
        }
    }
}

impl fmt::Display for SliceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.authority, self.name)
    }
}

impl Serialize for SliceName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SliceName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A reference image by name and content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRef {
    /// The name, as `debian`.
    pub name: String,
    /// The archive it is unpacked from.
    #[serde(rename = "ref")]
    pub content: ArtifactRef,
    /// Its [`crate::Listing`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listing: Option<ArtifactRef>,
}

/// What is wanted of a sliver's life. The default is that it runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Life {
    /// Which sliver of this slice on this node it is. With another number it is another sliver, which nothing of the one before is
    /// left to: whoever has a slice of that name now may be somebody else. 0 where that is not known.
    pub birth: u64,
    /// Why it is suspended, if it is: what runs in it stands still, and nobody gets in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspended: Option<String>,
    /// The last reset to the image. Numbers grow with every request, so that a node carries one out if it is greater than that of
    /// the last it carried out, and once however often it reads it.
    pub reset: u64,
    /// The last restart, numbered likewise.
    pub restart: u64,
}

impl Life {
    /// Whether this is another sliver's than `other`. Where it is not known, it is not: nothing is destroyed on a suspicion.
    #[must_use]
    pub fn is_of_another(&self, other: &Self) -> bool {
        self.birth != other.birth && self.birth != 0 && other.birth != 0
    }
}

/// One sliver a node should have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliverSpec {
    /// Whose it is.
    pub slice: SliceName,
    /// The slice's version: another number with each change.
    #[serde(default)]
    pub version: u64,
    /// OpenSSH public keys that may log in.
    pub keys: Vec<String>,
    /// What its root starts from.
    pub image: ImageRef,
    /// Its limits.
    #[serde(default)]
    pub rspec: Rspec,
    /// What runs in it without a login.
    #[serde(default)]
    pub startup: Startup,
    /// Whether it runs, and from what on.
    #[serde(default)]
    pub life: Life,
    /// What it sees and may do of the node.
    #[serde(default, skip_serializing_if = "Admin::is_none")]
    pub admin: Admin,
}

/// All that central wants of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WantedState {
    /// Every sliver; one that is not listed is to be destroyed.
    pub slivers: Vec<SliverSpec>,
    /// The boot that is to end: a node whose boot id this is restarts from its medium.
    #[serde(default)]
    pub reboot: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slice_names() {
        let check = |text: &str, login: Option<&str>| {
            assert_eq!(text.parse::<SliceName>().ok().map(|n| n.login()).as_deref(), login, "{text}");
        };
        check("princeton/codeen", Some("princeton_codeen"));
        check("a/b2", Some("a_b2"));
        check("a", None);
        check("a/", None);
        check("/b", None);
        check("a/b/c", None);
        check("A/b", None);
        check("a/2b", None);
        check("a/../b", None);
        check("a_b/c", None);
        check(&"a".repeat(31), None);
    }

    #[test]
    fn a_sliver_runs_unless_its_life_says_otherwise() {
        let text = format!(
            r#"{{"slice":"a/b","keys":[],"image":{{"name":"debian","ref":{{"sha256":"{}","size":1}}}}}}"#,
            "0".repeat(64)
        );
        let mut spec: SliverSpec = serde_json::from_str(&text).unwrap();
        assert_eq!(spec.life, Life::default());
        spec.life = Life { suspended: Some("abuse".into()), birth: 4, reset: 7, restart: 0 };
        let again: SliverSpec = serde_json::from_str(&serde_json::to_string(&spec).unwrap()).unwrap();
        assert_eq!(again, spec);
    }
}
