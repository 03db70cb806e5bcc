//! The node OS: everything PID 1 starts once the installed system runs.
//!
//! Each module is one stage or service, or what several of them share. Slivers themselves are `orrery-sliver`'s, images
//! `orrery-image-store`'s; here it is decided which of them there should be.

pub mod accounts;
pub mod admission;
pub mod busy;
pub mod central;
pub mod gate;
pub mod health;
pub mod host;
pub mod idle;
pub mod images;
pub mod manager;
pub mod memory;
pub mod partition;
pub mod plan;
pub mod reconcile;
pub mod service;
pub mod storage;
pub mod supervisor;

/// Where things stand on the node's data partition.
pub mod paths {
    /// The data partition.
    pub const DATA: &str = "/data";
    /// The boot partition.
    pub const BOOT: &str = "/mnt/boot";
    /// What services remember.
    pub const STATE: &str = "/data/state";
    /// The last state central wanted.
    pub const WANTED: &str = "/data/state/wanted.json";
    /// Verified archives of reference images, by SHA-256.
    pub const INCOMING: &str = "/data/images/incoming";
    /// How reporting to central goes, in this boot.
    pub const REPORTED: &str = "/run/orrery/reported.json";
    /// Who may log in where.
    pub const ACCOUNTS: &str = "/run/orrery/accounts.json";
}
