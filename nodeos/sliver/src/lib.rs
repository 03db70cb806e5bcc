//! Slivers: light virtual machines made of namespaces, an overlay root, a control group and a project quota.
//!
//! A sliver is a record and a private upper directory on the data partition. An idle one has no process and no mount;
//! [`Slivers::start`] gives it a first process that owns its namespaces, [`Slivers::enter`] runs commands inside,
//! [`Slivers::stop`] kills all of it, and [`Slivers::stop_unused`] does so if nothing runs inside. Nothing is kept in memory:
//! whoever opens the same paths finds the same slivers, so the node manager may die at any time, and slivers keep running.
//!
//! The work inside namespaces is done by the program itself, run again with a first argument of `sliver-boot` or
//! `sliver-enter`: see [`internal_main`].

mod admin;
mod boot;
mod cgroup;
mod confine;
mod enter;
mod error;
mod first;
mod handover;
mod internal;
mod leftovers;
mod node;
mod record;
mod remove;
mod session;
mod slivers;
mod socket;

pub use cgroup::Activity;
pub use enter::{EnterRequest, Entered, Pty, Run};
pub use error::SliverError;
pub use internal::internal_main;
pub use node::prepare_node;
pub use record::Record;
pub use slivers::{SliverPaths, Slivers};
pub use socket::{Helper, Made, Wish};
