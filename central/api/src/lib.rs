//! Central's administrative API: the bodies that cross between central and the operators' command line.
//!
//! What nodes exchange with central is in `orrery-protocol`. Non-goal: any I/O.

mod enrolment;
mod peek;
mod power;
mod records;

use orrery_protocol::{
    Admin, ArtifactRef, BootState, Digest, Event, Facts, NodeStatus, ReleaseManifest, Rspec, RunLevel, ScriptKind,
    SliceName, SliverState, Startup,
};
use serde::{Deserialize, Serialize};

pub use enrolment::{EnrolmentRecord, EnrolmentStanding, NewEnrolment, TokenUse};
pub use peek::{Peeked, peek};
pub use power::{
    EscalationLevel, LadderStanding, NewPowerOperation, NodePower, PowerAction, PowerAttempt, PowerContacts,
    PowerEvent, PowerFailure, PowerHold, PowerMethods, PowerOperation, PowerOutcome, PowerPolicy, PowerRecord,
    PowerReport, PowerResult, PowerStanding, PowerStateRead, PowerTest, PowerTestRequest, PowerTestsAsked, Rung,
};
pub use records::{
    ArtifactRecord, GroupChange, KeyRecord, LogRecord, NewKey, OnceRecord, RebootAsked, RootRecord, checked_groups,
    token_digest,
};

/// `POST /v1/nodes`: a node to be known from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewNode {
    /// Its id.
    pub id: String,
    /// A name for people.
    #[serde(default)]
    pub name: String,
    /// SHA-256 of its key's SubjectPublicKeyInfo in DER.
    pub spki: Digest,
    /// The groups it is in.
    #[serde(default)]
    pub groups: Vec<String>,
    /// What is wanted of it first.
    #[serde(default = "reinstall")]
    pub boot_state: BootState,
}

fn reinstall() -> BootState {
    BootState::Reinstall
}

/// One node, in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSummary {
    /// Its id.
    pub id: String,
    /// A name for people.
    pub name: String,
    /// SHA-256 of the SubjectPublicKeyInfo in DER of its newest key; none until it has enrolled.
    pub spki: Option<Digest>,
    /// The groups it is in.
    pub groups: Vec<String>,
    /// What is wanted of it.
    pub boot_state: BootState,
    /// What is wanted of one boot of it instead.
    pub once: Option<OnceRecord>,
    /// What it last was.
    pub run_level: Option<RunLevel>,
    /// When it was added, in Unix seconds.
    pub created: u64,
    /// When it last said anything, in Unix seconds.
    pub last_seen: Option<u64>,
    /// When it last contacted the boot server, in Unix seconds.
    pub last_contact: Option<u64>,
}

/// One node with all that it has reported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDetail {
    /// What a list shows.
    #[serde(flatten)]
    pub summary: NodeSummary,
    /// Its keys, newest first.
    pub keys: Vec<KeyRecord>,
    /// The boot that an operator asked to end.
    pub reboot: Option<String>,
    /// Slices that have a sliver on it.
    pub slices: Vec<SliceName>,
    /// Facts of its last contact.
    pub facts: Option<Facts>,
    /// Its last status.
    pub status: Option<NodeStatus>,
}

/// `PUT /v1/nodes/{id}/boot-state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootStateChange {
    /// What is wanted of the node.
    pub boot_state: BootState,
    /// Wanted of the next boot only; `boot` or `safe`. The standing state stays.
    #[serde(default)]
    pub once: bool,
}

/// An event as central keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredEvent {
    /// Its place in central's log: grows, with gaps.
    pub seq: u64,
    /// When it arrived, in Unix seconds.
    pub received: u64,
    /// What the node said.
    #[serde(flatten)]
    pub event: Event,
}

/// `PUT /v1/slices/{authority}/{name}`: a slice as it is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SliceSpec {
    /// The version that this is a change of, as an answer had it; 0 for a slice that is to be new. The change is refused if there is another one
    /// by now. None: whatever there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// OpenSSH public keys that may log in.
    pub keys: Vec<String>,
    /// Limits of each of its slivers.
    #[serde(default)]
    pub rspec: Rspec,
    /// Name of the reference image its slivers start from.
    pub image: String,
    /// Ids of the nodes it has slivers on.
    pub nodes: Vec<String>,
    /// What runs in each of its slivers without a login.
    #[serde(default)]
    pub startup: Startup,
}

/// A slice, named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceRecord {
    /// Its name.
    pub slice: SliceName,
    /// Why it is suspended, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspended: Option<String>,
    /// What its slivers see and may do of their nodes. Set by `PUT /v1/slices/{authority}/{name}/admin`, whose body this is.
    #[serde(default, skip_serializing_if = "Admin::is_none")]
    pub admin: Admin,
    /// What it is to be.
    #[serde(flatten)]
    pub spec: SliceSpec,
}

/// `GET /v1/slices/{authority}/{name}/slivers`: how one sliver of the slice is, as its node said last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliverRecord {
    /// On which node.
    pub node: String,
    /// When that was last heard of, in Unix seconds.
    pub last_seen: Option<u64>,
    /// Its state; none until the node has told of this sliver.
    pub state: Option<SliverState>,
    /// Digest of the image its root started from.
    pub image: Option<Digest>,
    /// Whether the node has told of the slice as it is now.
    pub told: bool,
    /// Whether all is as the slice is to be.
    pub settled: bool,
    /// Why it is not.
    pub error: Option<String>,
}

/// `PUT /v1/slices/{authority}/{name}/suspension`: nothing of the slice is to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Suspension {
    /// Why, in one line for those who try to log in.
    pub reason: String,
    /// Whether what runs is to end, rather than to stand still.
    #[serde(default)]
    pub stop: bool,
}

/// `POST /v1/slices/{authority}/{name}/reset` or `restart`: slivers are to start over.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartOver {
    /// Ids of the nodes whose slivers are meant; all of the slice if there is none.
    #[serde(default)]
    pub nodes: Vec<String>,
}

/// The number of a reset or restart that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartOverAsked {
    /// Greater than any before.
    pub number: u64,
}

/// A published release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseRecord {
    /// The signed manifest, itself an artifact.
    pub envelope: ArtifactRef,
    /// When it was published, in Unix seconds.
    pub published: u64,
    /// What it says.
    pub manifest: ReleaseManifest,
}

/// A published boot script.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScriptRecord {
    /// SHA-256 of the signed script.
    pub sha256: Digest,
    /// What it tells a node to do.
    pub kind: ScriptKind,
    /// Its serial.
    pub serial: u64,
    /// Ids of the nodes it is for; `*` is every node.
    pub nodes: Vec<String>,
    /// Void from then on, in Unix seconds.
    pub expires: u64,
    /// When it was published, in Unix seconds.
    pub published: u64,
    /// The signed release manifest it names.
    pub release: Option<ArtifactRef>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_reinstalled_unless_told_otherwise() {
        let spki = Digest([7; 32]);
        let node: NewNode = serde_json::from_value(serde_json::json!({ "id": "n1", "spki": spki })).unwrap();
        assert_eq!((node.boot_state, node.name.as_str()), (BootState::Reinstall, ""));
    }
}
