//! Enrolment: how a node without a key becomes one that central knows.

use orrery_protocol::{BootState, Digest};
use serde::{Deserialize, Serialize};

/// `POST /v1/enrolments`: a token that one machine may become a node with. The token itself stays with whoever made it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewEnrolment {
    /// SHA-256 of the token; see [`crate::token_digest`].
    pub token: Digest,
    /// The node that the token stands for: a new one, or one that has no key yet.
    pub node: String,
    /// A name for people.
    #[serde(default)]
    pub name: String,
    /// The groups it is in.
    #[serde(default)]
    pub groups: Vec<String>,
    /// What is wanted of it first.
    pub boot_state: BootState,
    /// Void from then on, in Unix seconds.
    pub expires: u64,
}

/// A token, without what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolmentRecord {
    /// SHA-256 of the token.
    pub token: Digest,
    /// The node that it stands for.
    pub node: String,
    /// When it was made, in Unix seconds.
    pub created: u64,
    /// Void from then on, in Unix seconds.
    pub expires: u64,
    /// The key that enrolled with it last.
    pub spki: Option<Digest>,
    /// Where it stands.
    pub standing: EnrolmentStanding,
}

/// Where a token stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EnrolmentStanding {
    /// Nobody has used it.
    Open,
    /// A machine has shown it and not yet confirmed that it keeps its key.
    Begun,
    /// It was used.
    Spent,
    /// An operator took it back.
    Revoked,
    /// Its time is over.
    Expired,
}

/// `POST /v1/enrol/confirm`: the node has kept its key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenUse {
    /// The token.
    pub token: String,
}
