//! The boot script: the signed instruction a node fetches at every boot.

use alloc::{string::String, vec::Vec};
use core::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    artifact::ArtifactRef,
    cidr::Cidr,
    envelope::{Envelope, EnvelopeError, MAX_PAYLOAD, PayloadType, TrustRoot},
    json::{self, JsonError},
    report::UnknownWord,
};

/// What a node is told to do. Signed as [`PayloadType::BootScript`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootScript {
    /// Format version; this is version 1.
    pub version: u16,
    /// What to do.
    pub kind: ScriptKind,
    /// Whom it is for: ids of nodes, groups as `@name`, or `*` for every node.
    pub nodes: Vec<String>,
    /// Grows with every script of a kind: a node refuses one below the highest it has accepted.
    pub serial: u64,
    /// Issued at, in Unix seconds.
    pub issued: u64,
    /// Void from then on, in Unix seconds.
    pub expires: u64,
    /// The signed release manifest to install, to upgrade to, or to repair from; every kind but `safe`.
    #[serde(default)]
    pub release: Option<ArtifactRef>,
    /// OpenSSH public keys that safe mode, and the sshd beside an installation, admit.
    #[serde(default)]
    pub ssh_keys: Vec<String>,
    /// Networks that this sshd can be reached from. With none, it can be reached from nowhere.
    #[serde(default)]
    pub networks: Vec<Cidr>,
    /// Base URLs of servers that have the artifacts too, `http://…` or `https://…`; asked before central. Nothing is
    /// taken on trust from them.
    #[serde(default)]
    pub mirrors: Vec<String>,
    /// What the nodes need not fulfil.
    #[serde(default)]
    pub waivers: Vec<Waiver>,
}

/// A demand that is waived for a node, by its configuration or by its script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Waiver {
    /// The release's minimum hardware.
    MinimumHardware,
    /// The chain-boot by kexec, for machines whose devices do not survive it: the node OS is entered under the medium's
    /// own kernel instead.
    Kexec,
}

impl Waiver {
    /// The word on the wire and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MinimumHardware => "minimum-hardware",
            Self::Kexec => "kexec",
        }
    }
}

impl fmt::Display for Waiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Waiver {
    type Err = UnknownWord;

    fn from_str(s: &str) -> Result<Self, UnknownWord> {
        let all = [Self::MinimumHardware, Self::Kexec];
        all.into_iter().find(|waiver| waiver.as_str() == s).ok_or(UnknownWord("minimum-hardware or kexec"))
    }
}

/// Kinds of boot script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScriptKind {
    /// Partition, format, fetch, write, verify, then chain-boot.
    Install,
    /// Fetch, write and verify a release into the slot that does not run, and try it. Data stays.
    Upgrade,
    /// Verify the installed image and chain-boot it.
    Boot,
    /// Open sshd for an administrator.
    Safe,
}

impl ScriptKind {
    /// The word on the wire and on the console.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Install => "install",
            Self::Upgrade => "upgrade",
            Self::Boot => "boot",
            Self::Safe => "safe",
        }
    }
}

impl fmt::Display for ScriptKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a node judges a script by.
#[derive(Debug, Clone, Copy)]
pub struct ScriptContext<'a> {
    /// The node's own id.
    pub node: &'a str,
    /// The groups its configuration names.
    pub groups: &'a [String],
    /// The node's clock, in Unix seconds.
    pub now: u64,
    /// The highest serial accepted of each kind before; 0 where none was.
    pub accepted: &'a [(ScriptKind, u64)],
}

/// Why a script was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScriptRefused {
    /// The envelope or its signatures.
    Envelope(EnvelopeError),
    /// The payload is not a script.
    Json(JsonError),
    /// A format version of another time.
    Version(u16),
    /// An `install` or `boot` script without a release.
    NoRelease,
    /// For other nodes.
    WrongNode,
    /// Void.
    Expired {
        /// When it became void, in Unix seconds.
        expires: u64,
        /// The node's clock, in Unix seconds.
        now: u64,
    },
    /// Older than one accepted before.
    Stale {
        /// Its serial.
        serial: u64,
        /// The highest serial accepted.
        accepted: u64,
    },
}

impl fmt::Display for ScriptRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Envelope(e) => write!(f, "boot script: {e}"),
            Self::Json(e) => write!(f, "boot script: {e}"),
            Self::Version(v) => write!(f, "boot script has format version {v}, this node knows 1"),
            Self::NoRelease => f.write_str("boot script names no release"),
            Self::WrongNode => f.write_str("boot script is for other nodes"),
            Self::Expired { expires, now } => {
                write!(f, "boot script expired at {expires}, the clock says {now} (Unix seconds)")
            }
            Self::Stale { serial, accepted } => {
                write!(f, "boot script has serial {serial}, older than {accepted} accepted before")
            }
        }
    }
}

impl core::error::Error for ScriptRefused {}

impl BootScript {
    /// Opens a signed script and judges whether this node may execute it now.
    ///
    /// # Errors
    /// Why not.
    pub fn open(envelope: &[u8], root: &TrustRoot, context: &ScriptContext<'_>) -> Result<Self, ScriptRefused> {
        let verified = Envelope::parse(envelope)
            .and_then(|e| e.verify(PayloadType::BootScript, root))
            .map_err(ScriptRefused::Envelope)?;
        let script = Self::decode(verified.payload())?;
        script.judge(context)?;
        Ok(script)
    }

    /// Parses a payload.
    ///
    /// # Errors
    /// Not a script of version 1, or one that lacks what its kind needs.
    pub fn decode(payload: &[u8]) -> Result<Self, ScriptRefused> {
        let script: Self = json::from_slice(payload).map_err(ScriptRefused::Json)?;
        if script.version != 1 {
            return Err(ScriptRefused::Version(script.version));
        }
        if script.release.is_none() && script.kind != ScriptKind::Safe {
            return Err(ScriptRefused::NoRelease);
        }
        Ok(script)
    }

    /// The payload to sign.
    ///
    /// # Errors
    /// It is longer than an envelope holds.
    pub fn encode(&self) -> Result<Vec<u8>, JsonError> {
        json::to_vec(self, MAX_PAYLOAD)
    }

    /// Whether the script is for `node`, which is in `groups`.
    pub fn is_for(&self, node: &str, groups: &[String]) -> bool {
        self.nodes.iter().any(|target| match target.strip_prefix('@') {
            Some(group) => groups.iter().any(|known| known == group),
            None => target == "*" || target == node,
        })
    }

    fn judge(&self, context: &ScriptContext<'_>) -> Result<(), ScriptRefused> {
        if !self.is_for(context.node, context.groups) {
            return Err(ScriptRefused::WrongNode);
        }
        if context.now >= self.expires {
            return Err(ScriptRefused::Expired { expires: self.expires, now: context.now });
        }
        let accepted = context.accepted.iter().filter(|(k, _)| *k == self.kind).map(|(_, s)| *s).max().unwrap_or(0);
        if self.serial < accepted {
            return Err(ScriptRefused::Stale { serial: self.serial, accepted });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloc::{string::ToString, vec};

    use proptest::prelude::*;

    use super::*;
    use crate::{digest::Digest, envelope, key::SigningKey};

    fn script() -> BootScript {
        BootScript {
            version: 1,
            kind: ScriptKind::Install,
            nodes: vec!["n1".to_string()],
            serial: 7,
            issued: 1000,
            expires: 2000,
            release: Some(ArtifactRef { sha256: Digest([3; 32]), size: 12 }),
            ssh_keys: vec!["ssh-ed25519 AAAA \"quoted\" \\ comment".to_string()],
            networks: vec!["192.0.2.0/24".parse().unwrap()],
            mirrors: vec!["http://mirror.example/orrery".to_string()],
            waivers: vec![Waiver::Kexec],
        }
    }

    fn check(change: impl FnOnce(&mut BootScript), expect: Result<(), ScriptRefused>) {
        let mut script = script();
        change(&mut script);
        let key = SigningKey::from_scalar(&[9; 32]).unwrap();
        let bytes = envelope::sign(PayloadType::BootScript, &script.encode().unwrap(), &[&key]).unwrap();
        let root = TrustRoot { keys: vec![key.public()], threshold: 1 };
        let accepted = [(ScriptKind::Install, 7), (ScriptKind::Boot, 100)];
        let groups = ["rack1".to_string()];
        let context = ScriptContext { node: "n1", groups: &groups, now: 1500, accepted: &accepted };
        assert_eq!(BootScript::open(&bytes, &root, &context).map(|got| assert_eq!(got, script)), expect);
    }

    #[test]
    fn scripts_are_judged_by_node_time_and_serial() {
        check(|_| (), Ok(()));
        check(|s| s.nodes = vec!["*".to_string()], Ok(()));
        check(|s| s.nodes = vec!["n2".to_string()], Err(ScriptRefused::WrongNode));
        check(|s| s.nodes = vec!["@rack1".to_string()], Ok(()));
        check(|s| s.nodes = vec!["@rack2".to_string(), "rack1".to_string()], Err(ScriptRefused::WrongNode));
        check(|s| s.nodes.clear(), Err(ScriptRefused::WrongNode));
        check(|s| s.expires = 1500, Err(ScriptRefused::Expired { expires: 1500, now: 1500 }));
        check(|s| s.serial = 6, Err(ScriptRefused::Stale { serial: 6, accepted: 7 }));
        check(|s| s.release = None, Err(ScriptRefused::NoRelease));
        check(|s| s.version = 2, Err(ScriptRefused::Version(2)));
        check(
            |s| {
                s.kind = ScriptKind::Safe;
                s.release = None;
                s.serial = 0;
            },
            Ok(()),
        );
    }

    proptest! {
        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = BootScript::decode(&bytes);
        }

        #[test]
        fn decoding_a_damaged_script_never_panics(at: usize, byte: u8) {
            let mut bytes = script().encode().unwrap();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = BootScript::decode(&bytes);
        }
    }
}
