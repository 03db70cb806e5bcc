//! A node's configuration: `node.toml` as stamped into its medium.
//!
//! The crate has the types; the TOML parser is the caller's, followed by [`NodeConfig::check`].

use alloc::{string::String, vec::Vec};
use core::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use serde::{Deserialize, Serialize};

use crate::{cidr::Cidr, digest::Digest, envelope::TrustRoot, key::PublicKey, script::Waiver, trust::Root};

/// Everything a node knows before it has spoken to anyone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// The node's id at its central: letters, digits, `-` and `.`; at most 63 characters. Empty where the node has to
    /// enrol.
    #[serde(default)]
    pub id: String,
    /// A name for people.
    #[serde(default)]
    pub name: String,
    /// The node's P-256 private key, PKCS#8 in PEM. Secret. Empty where the node has to enrol.
    #[serde(default)]
    pub key: String,
    /// The one-time token that a node without a key enrols with. Secret until it was used.
    #[serde(default)]
    pub enrol_token: Option<String>,
    /// Groups that scripts may be for, as `@name`.
    #[serde(default)]
    pub groups: Vec<String>,
    /// Who the node obeys.
    pub central: Central,
    /// How the node reaches it.
    #[serde(default)]
    pub network: Network,
    /// What may be installed on.
    #[serde(default)]
    pub install: Install,
    /// OpenSSH public keys that safe mode admits besides those of the script.
    #[serde(default)]
    pub admin_keys: Vec<String>,
    /// Networks that safe mode's sshd can be reached from, besides those of the script.
    #[serde(default)]
    pub admin_networks: Vec<Cidr>,
    /// SHA-256 of the recovery key that opens a shell on the console. Without one, the console only shows.
    #[serde(default)]
    pub recovery: Option<Digest>,
    /// What the node need not fulfil.
    #[serde(default)]
    pub waivers: Vec<Waiver>,
}

/// The central a node belongs to, and the keys that prove it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Central {
    /// Base URLs of boot servers, `https://host[:port]`, tried in order.
    pub urls: Vec<String>,
    /// The certificate authorities that servers must chain to, in PEM; one after the other if there are several.
    pub ca: String,
    /// Public release keys.
    pub release_keys: Vec<PublicKey>,
    /// How many of them must have signed a script or a release.
    #[serde(default = "one")]
    pub release_threshold: u8,
}

/// The network of a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// The interface by kernel name or MAC address; without it, the first one with a link.
    #[serde(default)]
    pub interface: Option<String>,
    /// How the node gets its address.
    #[serde(default)]
    pub addressing: Addressing,
    /// Name servers; with DHCP, these go before the ones offered.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
    /// Time servers, `host[:port]`.
    #[serde(default)]
    pub ntp: Vec<String>,
}

/// Where the address comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Addressing {
    /// DHCP (RFC 2131).
    #[default]
    Dhcp,
    /// Given here: `addressing.static = { … }`.
    Static(StaticAddress),
}

/// A static IPv4 address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticAddress {
    /// The node's address.
    pub address: Ipv4Addr,
    /// Bits of the network prefix, 1 to 32.
    pub prefix: u8,
    /// The default gateway; none where central is on the same link.
    #[serde(default)]
    pub gateway: Option<Ipv4Addr>,
}

/// What the installer may do.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Install {
    /// Which disk.
    #[serde(default)]
    pub disk: DiskRule,
    /// Whether a disk with somebody else's data may be overwritten.
    #[serde(default)]
    pub wipe: bool,
}

/// A rule that must match exactly one disk. All given fields must hold; with none given, the node must have
/// exactly one disk that can be installed on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskRule {
    /// The serial number.
    #[serde(default)]
    pub serial: Option<String>,
    /// The World Wide Identifier as sysfs has it.
    #[serde(default)]
    pub wwid: Option<String>,
    /// The model, as a part of what the disk says.
    #[serde(default)]
    pub model: Option<String>,
    /// At least so many bytes.
    #[serde(default)]
    pub min_bytes: Option<u64>,
    /// At most so many bytes.
    #[serde(default)]
    pub max_bytes: Option<u64>,
}

impl DiskRule {
    /// Whether the rule names one physical disk, rather than describing a kind of disk.
    pub fn names_one_disk(&self) -> bool {
        self.serial.is_some() || self.wwid.is_some()
    }
}

/// A configuration that parses but cannot be meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeConfigError {
    /// The id is empty, too long, or has other characters.
    Id,
    /// No boot server, or one whose URL is not `https://`.
    Urls,
    /// No CA certificate in PEM.
    Ca,
    /// Neither a private key in PEM nor a token to enrol with.
    Key,
    /// The name of a group is empty, too long, or has other characters.
    Group,
    /// No release key, or a threshold that is 0 or more than there are keys.
    ReleaseKeys,
    /// A prefix length of 0 or more than 32.
    Prefix,
    /// A disk rule that no disk can fulfil.
    DiskRule,
}

impl fmt::Display for NodeConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Id => "`id` must have 1 to 63 letters, digits, `-` or `.`",
            Self::Urls => "`central.urls` must name at least one `https://` server",
            Self::Ca => "`central.ca` must hold a certificate in PEM",
            Self::Key => "`key` must hold a PKCS#8 private key in PEM, or `enrol_token` a token",
            Self::Group => "each of `groups` must have 1 to 63 letters, digits, `-` or `.`",
            Self::ReleaseKeys => {
                "`central.release_keys` must hold at least `release_threshold` keys, and the threshold be at least 1"
            }
            Self::Prefix => "`network.addressing.static.prefix` must be 1 to 32",
            Self::DiskRule => "`install.disk` asks for a minimum size above its maximum",
        })
    }
}

impl core::error::Error for NodeConfigError {}

impl NodeConfig {
    /// Checks what the types cannot say.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), NodeConfigError> {
        let enrols = self.must_enrol();
        let id_ok = is_node_id(&self.id) || (enrols && self.id.is_empty());
        let urls_ok = !self.central.urls.is_empty()
            && self.central.urls.iter().all(|u| u.strip_prefix("https://").is_some_and(|rest| !rest.is_empty()));
        let keys = self.central.release_keys.len();
        let threshold = usize::from(self.central.release_threshold);
        let prefix_ok = match &self.network.addressing {
            Addressing::Dhcp => true,
            Addressing::Static(s) => (1..=32).contains(&s.prefix),
        };
        let disk = &self.install.disk;
        let disk_ok = disk.min_bytes.zip(disk.max_bytes).is_none_or(|(min, max)| min <= max);
        let checks = [
            (id_ok, NodeConfigError::Id),
            (urls_ok, NodeConfigError::Urls),
            (self.central.ca.contains("-----BEGIN CERTIFICATE-----"), NodeConfigError::Ca),
            (enrols || self.key.contains("-----BEGIN PRIVATE KEY-----"), NodeConfigError::Key),
            (self.groups.iter().all(|group| is_node_id(group)), NodeConfigError::Group),
            ((1..=keys).contains(&threshold), NodeConfigError::ReleaseKeys),
            (prefix_ok, NodeConfigError::Prefix),
            (disk_ok, NodeConfigError::DiskRule),
        ];
        checks.into_iter().try_for_each(|(ok, error)| if ok { Ok(()) } else { Err(error) })
    }

    /// Whether the node has no key yet, and a token to get one accepted with.
    pub fn must_enrol(&self) -> bool {
        self.key.is_empty() && self.enrol_token.as_ref().is_some_and(|token| !token.is_empty())
    }

    /// The root of trust in the medium: where every chain of updates begins.
    pub fn medium_root(&self) -> Root {
        let trust = TrustRoot { keys: self.central.release_keys.clone(), threshold: self.central.release_threshold };
        Root { serial: 0, trust, ca: self.central.ca.clone() }
    }

    /// Puts an accepted root in the place of the medium's.
    pub fn obey(&mut self, root: &Root) {
        self.central.release_keys.clone_from(&root.trust.keys);
        self.central.release_threshold = root.trust.threshold;
        self.central.ca.clone_from(&root.ca);
    }

    /// What the node verifies signatures against.
    pub fn trust_root(&self) -> TrustRoot {
        self.medium_root().trust
    }
}

/// Whether `id` can name a node: 1 to 63 letters, digits, `-` or `.`, so that it is safe in paths and URLs.
pub fn is_node_id(id: &str) -> bool {
    (1..=63).contains(&id.len())
        && !id.starts_with(['-', '.'])
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.')
}

fn one() -> u8 {
    1
}
