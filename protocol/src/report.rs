//! What a node tells central: facts at contact, events on the way, its status once it lives.

use alloc::{string::String, vec::Vec};
use core::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{digest::Digest, json, sliver::SliceName};

/// What the operator wants of a node. A node never changes it; only its boot server does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BootState {
    /// Chain-boot the installed node OS.
    Boot,
    /// Install anew; the node's data is lost.
    Reinstall,
    /// Try the script's release in the other slot; slivers and their data stay.
    Upgrade,
    /// Wait in safe mode for an administrator.
    Safe,
    /// Out of service: safe mode, no slivers.
    Disabled,
}

impl BootState {
    /// The word on the wire and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Reinstall => "reinstall",
            Self::Upgrade => "upgrade",
            Self::Safe => "safe",
            Self::Disabled => "disabled",
        }
    }
}

impl FromStr for BootState {
    type Err = UnknownWord;

    fn from_str(s: &str) -> Result<Self, UnknownWord> {
        [Self::Boot, Self::Reinstall, Self::Upgrade, Self::Safe, Self::Disabled]
            .into_iter()
            .find(|state| state.as_str() == s)
            .ok_or(UnknownWord("boot, reinstall, upgrade, safe or disabled"))
    }
}

impl fmt::Display for BootState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// None of the words that are known; holds those.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownWord(pub &'static str);

impl fmt::Display for UnknownWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}", self.0)
    }
}

impl core::error::Error for UnknownWord {}

/// What a node last was. Reported by the node, never wanted of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunLevel {
    /// In the boot stages.
    Booting,
    /// Installing.
    Installing,
    /// The node OS runs.
    Running,
    /// Safe mode is open.
    Safe,
}

/// How a stage ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It did what it is for.
    Ok,
    /// It did not; `class` and `message` say why.
    Failed,
    /// Something worth telling along the way.
    Info,
}

/// One transition of a node, as written to its event log (one JSON line each) and posted to central.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Which boot: random, new at every power-on, kept across the chain-boot.
    pub boot_id: String,
    /// When it ended, in milliseconds since the running kernel started.
    pub at_ms: u64,
    /// When it ended, in Unix seconds by the node's clock.
    pub wall: u64,
    /// `boot` or `node`.
    pub role: String,
    /// The stage or service.
    pub stage: String,
    /// How it ended.
    pub outcome: Outcome,
    /// The class of a failure.
    #[serde(default)]
    pub class: Option<String>,
    /// For people: the result, or the error with its causes.
    pub message: String,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
}

/// The longest event line, in bytes. Longer messages are cut by whoever writes them.
const MAX_EVENT_LINE: usize = 16 * 1024;

impl Event {
    /// The event as one line of JSON, with its newline. A message too long for a line is cut.
    pub fn to_json_line(&self) -> Vec<u8> {
        let mut line = json::to_vec(self, MAX_EVENT_LINE).unwrap_or_else(|_| {
            // Escaping makes a character six bytes at most.
            let cut = |s: &str| s.chars().take(256).collect::<String>();
            let short = Self {
                boot_id: cut(&self.boot_id),
                role: cut(&self.role),
                stage: cut(&self.stage),
                class: self.class.as_deref().map(cut),
                message: cut(&self.message),
                ..*self
            };
            json::to_vec(&short, MAX_EVENT_LINE).unwrap_or_default()
        });
        line.push(b'\n');
        line
    }
}

/// Events on their way to central, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EventBatch {
    /// At most a few hundred.
    pub events: Vec<Event>,
}

/// Lines of a node's log on their way to central.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogBatch {
    /// The boot they are of.
    pub boot_id: String,
    /// `boot` or `node`; `previous` for what an earlier boot left behind, as a panic's last lines.
    pub role: String,
    /// Number of the first line, counted from 0 in this boot and role: central passes over what it has already.
    pub first: u64,
    /// The lines, without their ends.
    pub lines: Vec<String>,
}

/// A key-less node's request to become the node that a one-time token stands for. Its key is that of the TLS session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// The token.
    pub token: String,
    /// What the machine is.
    pub facts: Facts,
}

/// The answer to an [`EnrolRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// The node's id.
    pub node: String,
    /// A name for people.
    #[serde(default)]
    pub name: String,
    /// The groups it is in.
    #[serde(default)]
    pub groups: Vec<String>,
}

/// What a node is, posted at contact.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// The node's id by its configuration.
    pub node: String,
    /// Which boot.
    pub boot_id: String,
    /// Version of the medium.
    pub medium_version: String,
    /// Seconds since the kernel started.
    pub uptime_s: u64,
    /// Kernel release.
    pub kernel: String,
    /// Kernel command line.
    pub cmdline: String,
    /// Firmware kind: `bios` or `uefi`.
    pub firmware: String,
    /// Manufacturer by DMI.
    pub vendor: String,
    /// Product by DMI.
    pub product: String,
    /// Serial number by DMI.
    pub serial: String,
    /// CPU model.
    pub cpu_model: String,
    /// Logical CPUs.
    pub cpus: u32,
    /// Memory.
    pub memory: MemoryFacts,
    /// Disks.
    pub disks: Vec<DiskFacts>,
    /// Network interfaces.
    pub nics: Vec<NicFacts>,
    /// Where the clock comes from: `sntp`, `central`, `rtc` or `floor`.
    pub clock: String,
    /// Release installed on the node's disk, if any.
    pub installed: Option<String>,
    /// A release that was tried on this disk and did not become healthy, and why; until another one is tried.
    pub failed_trial: Option<FailedTrial>,
    /// The key by which safe mode's sshd, and the node OS's, prove that they are this node; OpenSSH's one-line form.
    pub ssh_host_key: String,
    /// Serial of the trust root in force; 0 is the medium's own.
    pub trust_serial: u64,
    /// The groups that the configuration names.
    pub groups: Vec<String>,
}

/// A release that a node fell back from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedTrial {
    /// SHA-256 of the release's signed manifest.
    pub manifest: Digest,
    /// The release's name.
    pub release: String,
    /// Why it was given up.
    pub reason: String,
}

/// Memory of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryFacts {
    /// All of it, in bytes.
    pub total: u64,
    /// What programs could still get, in bytes.
    pub available: u64,
}

/// One disk.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskFacts {
    /// The kernel's name; may change between boots.
    pub name: String,
    /// The id that stays: World Wide Identifier, or model and serial.
    pub stable_id: String,
    /// Model.
    pub model: String,
    /// Serial number.
    pub serial: String,
    /// World Wide Identifier.
    pub wwid: String,
    /// Size in bytes.
    pub size: u64,
    /// Whether it can be pulled out.
    pub removable: bool,
    /// Whether it refuses writes.
    pub read_only: bool,
}

/// One network interface.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NicFacts {
    /// The kernel's name.
    pub name: String,
    /// MAC address.
    pub mac: String,
    /// Whether a cable with somebody at its other end is plugged in.
    pub link: bool,
    /// Addresses with prefix.
    pub addresses: Vec<String>,
}

/// How a living node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Which boot.
    pub boot_id: String,
    /// What the node is.
    pub run_level: RunLevel,
    /// The release that runs.
    pub release: String,
    /// The slot it runs from, `a` or `b`.
    #[serde(default)]
    pub slot: String,
    /// Why this boot was decided by the node's last good script instead of by central, if it was.
    #[serde(default)]
    pub offline: Option<String>,
    /// The ssh gate's host key, in OpenSSH's one-line form.
    pub ssh_host_key: String,
    /// Every sliver.
    pub slivers: Vec<SliverStatus>,
}

/// How one sliver is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliverStatus {
    /// Whose it is.
    pub slice: SliceName,
    /// Which sliver of that slice ([`crate::Life::birth`]).
    #[serde(default)]
    pub birth: u64,
    /// The slice's version that this is about ([`crate::SliverSpec::version`]).
    #[serde(default)]
    pub version: u64,
    /// Whether all is as that version wants it.
    #[serde(default)]
    pub settled: bool,
    /// Its state.
    pub state: SliverState,
    /// Digest of the image its root starts from.
    pub image: Digest,
    /// Why it is in state `failed`, or not as it is wanted.
    #[serde(default)]
    pub error: Option<String>,
}

/// States of a sliver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SliverState {
    /// Being created.
    Creating,
    /// Can be logged into.
    Ready,
    /// Could not be created.
    Failed,
    /// Stands still, and cannot be logged into. Only told to a central that asked for it.
    Suspended,
}

/// The body of every error answer of central.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// A word for programs.
    pub error: String,
    /// A sentence for people.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use alloc::{format, string::ToString};

    use super::*;

    fn event(message: String) -> Event {
        Event {
            boot_id: "ab12".to_string(),
            at_ms: 1,
            wall: 2,
            role: "boot".to_string(),
            stage: "network".to_string(),
            outcome: Outcome::Failed,
            class: Some("no-dhcp".to_string()),
            message,
            duration_ms: 3,
        }
    }

    #[test]
    fn an_event_is_one_line_of_json_whatever_it_says() {
        for message in ["plain", "two\nlines \"quoted\" \\ \u{1} \u{fffd} ä"] {
            let line = event(message.to_string()).to_json_line();
            assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1, "{message:?}");
            assert_eq!(serde_json::from_slice::<Event>(&line).unwrap(), event(message.to_string()));
        }
        let line = event(format!("{}end", "\n".repeat(100_000))).to_json_line();
        assert!(line.len() < MAX_EVENT_LINE);
        assert!(serde_json::from_slice::<Event>(&line).unwrap().message.starts_with('\n'));
    }
}
