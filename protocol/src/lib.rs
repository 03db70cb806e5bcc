//! Wire formats of Orrery: everything that one machine writes and another reads.
//!
//! `no_std` (with `alloc`), so that a firmware loader could verify a boot script with the very code the
//! node uses. No input is trusted: parsers are bounded, total, and refuse trailing bytes. The crate does no
//! I/O but the [`embedded_io::Read`] that streaming verification reads through.
#![no_std]

extern crate alloc;

mod admin;
mod artifact;
mod chunks;
mod cidr;
mod config_area;
mod cpus;
mod digest;
mod envelope;
mod extras;
mod json;
mod key;
mod layer;
mod listing;
mod node_config;
mod recovery;
mod release;
mod report;
mod rspec;
mod script;
mod sliver;
mod startup;
mod trust;

pub use admin::{Admin, AdminWordError, Capability, View};
pub use artifact::{ArtifactRef, Mismatch, VerifyingReader};
pub use chunks::{Chunk, ChunkIndex, ChunkIndexError, MAX_CHUNK};
pub use cidr::{Cidr, CidrError};
pub use config_area::{AREA_BYTES, AreaError, blank_area, decode_area, encode_area, find_area};
pub use cpus::{CpuSet, CpuSetError};
pub use digest::{Digest, ParseDigestError, Sha256};
pub use envelope::{Envelope, EnvelopeError, MAX_PAYLOAD, PayloadType, TrustRoot, Verified, sign};
pub use extras::Extras;
pub use json::JsonError;
pub use key::{KeyError, PublicKey, SigningKey};
pub use layer::{
    EXPORT_FORMAT, EXPORT_LAYER, EXPORT_MANIFEST, ExportManifest, LayerSize, LayerTask, LayerTaskError, Snapshot,
    SnapshotName, SnapshotNameError,
};
pub use listing::{Frame, Listing, ListingError};
pub use node_config::{
    Addressing, Central, DiskRule, Install, Network, NodeConfig, NodeConfigError, StaticAddress, is_node_id,
};
pub use recovery::{RecoveryKey, RecoveryKeyError};
pub use release::{ArtifactRole, ManifestError, MinimumHardware, ReleaseArtifact, ReleaseManifest};
pub use report::{
    BootState, DiskFacts, EnrolRequest, Enrolled, Event, EventBatch, Facts, FailedTrial, LogBatch, MemoryFacts,
    NicFacts, NodeStatus, Outcome, Refusal, RunLevel, SliverState, SliverStatus, UnknownWord,
};
pub use rspec::{Rspec, RspecError};
pub use script::{BootScript, ScriptContext, ScriptKind, ScriptRefused, Waiver};
pub use sliver::{ImageRef, Life, SliceName, SliceNameError, SliverSpec, WantedState};
pub use startup::{MAX_INITSCRIPT, Restart, RunConfig, Service, Startup, StartupError};
pub use trust::{Root, TrustRefused, TrustUpdate};
