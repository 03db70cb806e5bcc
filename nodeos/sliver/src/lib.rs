//! Slivers: light virtual machines made of namespaces, an overlay root, a control group and a project quota.
//!
//! A sliver is a record and a private upper directory on the data partition. An idle one has no process and no mount;
//! [`Slivers::start`] gives it a first process that owns its namespaces, [`Slivers::enter`] runs commands inside,
//! [`Slivers::keep`] runs what goes without a login, [`Slivers::stop`] kills all of it, and [`Slivers::stop_unused`] does so if
//! nothing runs inside. Nothing is kept in memory: whoever opens the same paths finds the same slivers, so the node manager may
//! die at any time, and slivers keep running.
//!
//! The work inside namespaces, beside them, and on layers for their users, is done by the program itself, run again with a first
//! argument of `sliver-boot`, `sliver-keep`, `sliver-log` or `sliver-layer`: see [`internal_main`].

mod admin;
mod boot;
mod cgroup;
mod confine;
mod disk;
mod enter;
mod error;
mod first;
mod forkserver;
mod handover;
mod index;
mod internal;
mod keep;
mod keeper;
mod leftovers;
mod limits;
mod log;
mod node;
mod ports;
mod record;
mod remove;
mod rlimits;
mod session;
mod slivers;
mod snapshot;
mod socket;
mod user;
mod weights;

/// Parsers that are private otherwise, for the fuzz targets.
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::snapshot::fuzzing::reimport;
}

pub use cgroup::Activity;
pub use enter::{EnterRequest, Entered, Pty, Run, Session, Stream};
pub use error::SliverError;
pub use internal::internal_main;
pub use keep::{End, Ended, Kept, Role};
pub use limits::Held;
pub use node::prepare_node;
pub use record::Record;
pub use slivers::{SliverPaths, Slivers};
pub use snapshot::{SnapshotError, Work};
pub use socket::{Keep, Made, Wish};
