//! What central keeps of nodes beside what they are: groups, keys, logs, requests; and the trust roots.

use orrery_protocol::{BootState, Digest, TrustUpdate, is_node_id};
use serde::{Deserialize, Serialize};

/// A boot state for one boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnceRecord {
    /// What is wanted of that boot.
    pub boot_state: BootState,
    /// Which boot; none until a node contacts.
    pub boot_id: Option<String>,
}

/// `PUT /v1/nodes/{id}/groups`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupChange {
    /// All groups that the node is in.
    pub groups: Vec<String>,
}

/// `POST /v1/nodes/{id}/keys`: the node's next key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// SHA-256 of its SubjectPublicKeyInfo in DER.
    pub spki: Digest,
    /// How long the earlier keys still count, in seconds.
    pub grace: u64,
    /// Whether the first contact by the new key ends that time.
    #[serde(default)]
    pub end_grace: bool,
}

/// A key of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    /// SHA-256 of its SubjectPublicKeyInfo in DER.
    pub spki: Digest,
    /// When it was made known, in Unix seconds.
    pub created: u64,
    /// When another one was made known in its place, in Unix seconds.
    pub replaced: Option<u64>,
    /// It counts until then, in Unix seconds.
    pub ends: Option<u64>,
}

/// The answer to `POST /v1/nodes/{id}/reboot`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebootAsked {
    /// The boot that is to end.
    pub boot_id: String,
}

/// Lines of a node's log that arrived together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRecord {
    /// Its place among all that central keeps: grows, with gaps.
    pub seq: u64,
    /// When it arrived, in Unix seconds.
    pub received: u64,
    /// The boot the lines are of.
    pub boot_id: String,
    /// `boot`, `node` or `previous`.
    pub role: String,
    /// Number of the first line.
    pub first: u64,
    /// The lines.
    pub lines: Vec<String>,
}

/// A published trust update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootRecord {
    /// SHA-256 of the signed update.
    pub sha256: Digest,
    /// When it was published, in Unix seconds.
    pub published: u64,
    /// What it says.
    pub update: TrustUpdate,
}

/// An artifact that central has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRecord {
    /// SHA-256 of the content.
    pub sha256: Digest,
    /// Size in bytes.
    pub size: u64,
    /// When it was stored, in Unix seconds.
    pub stored: u64,
    /// What names it, for people. None: it may be removed.
    pub uses: Vec<String>,
}

/// Groups in order and each once, if all can name one.
///
/// # Errors
/// The first that cannot.
pub fn checked_groups(groups: &[String]) -> Result<Vec<String>, &str> {
    if let Some(bad) = groups.iter().find(|group| !is_node_id(group)) {
        return Err(bad);
    }
    let mut groups = groups.to_vec();
    groups.sort();
    groups.dedup();
    Ok(groups)
}

/// What central keeps of a token: SHA-256 of it as Crockford's base32 has it, in upper case and without separators, so
/// that people may type it as they like.
pub fn token_digest(token: &str) -> Digest {
    let plain = token.bytes().filter(u8::is_ascii_alphanumeric).map(|byte| match byte.to_ascii_uppercase() {
        b'O' => b'0',
        b'I' | b'L' => b'1',
        other => other,
    });
    Digest::of(&plain.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_the_same_however_it_is_typed() {
        assert_eq!(token_digest("abcd-EF01"), token_digest(" ABCDEFOl\n"));
        assert_ne!(token_digest("abcd"), token_digest("abce"));
    }

    #[test]
    fn groups_are_a_set_of_names() {
        let groups = ["b", "a", "b"].map(str::to_owned);
        assert_eq!(checked_groups(&groups), Ok(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(checked_groups(&["@a".to_owned()]), Err("@a"));
    }
}
