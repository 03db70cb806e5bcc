//! The release manifest: the signed list of what one release consists of.

use alloc::{string::String, vec::Vec};

use serde::{Deserialize, Serialize};

use crate::{
    artifact::ArtifactRef,
    envelope::{Envelope, EnvelopeError, MAX_PAYLOAD, PayloadType, TrustRoot},
    json::{self, JsonError},
    sliver::ImageRef,
};

/// What a release consists of. Signed as [`PayloadType::ReleaseManifest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseManifest {
    /// Format version; this is version 1.
    pub version: u16,
    /// The release's name, as `0.1.0`.
    pub release: String,
    /// Kernel command line of the node OS.
    pub cmdline: String,
    /// All artifacts, each role as often as it may occur.
    pub artifacts: Vec<ReleaseArtifact>,
    /// What a machine needs to run it.
    #[serde(default)]
    pub minimum: MinimumHardware,
}

/// The least hardware that a release runs on; zero demands nothing. Checked before a disk is touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MinimumHardware {
    /// Memory, in bytes, as the kernel sees it.
    pub memory: u64,
    /// The disk to install on, in bytes.
    pub disk: u64,
    /// Logical CPUs.
    pub cpus: u32,
}

/// One artifact of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseArtifact {
    /// What it is for.
    pub role: ArtifactRole,
    /// Its name; for a reference image, what slivers ask for.
    pub name: String,
    /// Digest and size.
    #[serde(rename = "ref")]
    pub content: ArtifactRef,
    /// Its [`crate::ChunkIndex`], with which it is verified piece by piece, and pieces that are there already are not
    /// fetched again.
    #[serde(default)]
    pub chunks: Option<ArtifactRef>,
    /// Of a reference image, its [`crate::Listing`], with which a node that has most of its files fetches the others only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listing: Option<ArtifactRef>,
}

impl ReleaseArtifact {
    /// As a reference image for slivers.
    pub fn image(&self) -> ImageRef {
        ImageRef { name: self.name.clone(), content: self.content, listing: self.listing }
    }
}

/// What an artifact is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ArtifactRole {
    /// The node OS's kernel; exactly one.
    Kernel,
    /// The node OS's initramfs; exactly one.
    NodeOs,
    /// A reference image for slivers, `tar.zst`.
    Image,
}

/// Why a manifest was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestError {
    /// The envelope or its signatures.
    Envelope(EnvelopeError),
    /// The payload is not a manifest.
    Json(JsonError),
    /// A format version of another time.
    Version(u16),
    /// Not exactly one kernel and one node OS.
    Roles,
}

impl core::fmt::Display for ManifestError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Envelope(e) => write!(f, "release manifest: {e}"),
            Self::Json(e) => write!(f, "release manifest: {e}"),
            Self::Version(v) => write!(f, "release manifest has format version {v}, this node knows 1"),
            Self::Roles => f.write_str("release manifest must name exactly one kernel and one node OS"),
        }
    }
}

impl core::error::Error for ManifestError {}

impl ReleaseManifest {
    /// Opens a signed manifest.
    ///
    /// # Errors
    /// Anything that keeps it from being a manifest which enough of `root`'s keys have signed.
    pub fn open(envelope: &[u8], root: &TrustRoot) -> Result<Self, ManifestError> {
        let verified = Envelope::parse(envelope)
            .and_then(|e| e.verify(PayloadType::ReleaseManifest, root))
            .map_err(ManifestError::Envelope)?;
        Self::decode(verified.payload())
    }

    /// Parses a payload.
    ///
    /// # Errors
    /// Not a manifest of version 1 with one kernel and one node OS.
    pub fn decode(payload: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self = json::from_slice(payload).map_err(ManifestError::Json)?;
        if manifest.version != 1 {
            return Err(ManifestError::Version(manifest.version));
        }
        let count = |role| manifest.artifacts.iter().filter(|a| a.role == role).count();
        if count(ArtifactRole::Kernel) != 1 || count(ArtifactRole::NodeOs) != 1 {
            return Err(ManifestError::Roles);
        }
        Ok(manifest)
    }

    /// The payload to sign.
    ///
    /// # Errors
    /// It is longer than an envelope holds.
    pub fn encode(&self) -> Result<Vec<u8>, JsonError> {
        json::to_vec(self, MAX_PAYLOAD)
    }

    /// The kernel.
    pub fn kernel(&self) -> &ReleaseArtifact {
        self.only(ArtifactRole::Kernel)
    }

    /// The node OS's initramfs.
    pub fn node_os(&self) -> &ReleaseArtifact {
        self.only(ArtifactRole::NodeOs)
    }

    /// The reference images.
    pub fn images(&self) -> impl Iterator<Item = &ReleaseArtifact> {
        self.artifacts.iter().filter(|a| a.role == ArtifactRole::Image)
    }

    fn only(&self, role: ArtifactRole) -> &ReleaseArtifact {
        self.artifacts.iter().find(|a| a.role == role).expect("decode() counted one kernel and one node OS")
    }
}
