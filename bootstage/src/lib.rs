//! The boot stages. Each is a function that takes nothing on trust from an earlier process: what it needs it
//! reads and checks again, what it found out it leaves in `/run/orrery` for the next.
//!
//! PID 1 runs each as a process of its own, see `orrery-init-api`; the node OS runs some of the same ones. Non-goals:
//! deciding what happens after a failure, and keeping anything alive; both are PID 1's.

mod central;
pub mod clock;
pub mod configure;
pub mod console;
pub mod contact;
pub mod disk_lock;
mod disks;
mod download;
pub mod events;
mod facts;
mod failure;
mod files;
pub mod firewall;
pub mod handover;
mod identity;
pub mod install;
pub mod kernel_log;
pub mod load;
pub mod network;
pub mod previous;
mod release;
pub mod repair;
pub mod reporter;
pub mod rescue;
pub mod safe;
pub mod trust;
pub mod unpack;
mod unsent;
pub mod upgrade;
pub mod verify;

pub use central::{client, name_servers};
pub use failure::StageFailure;
pub use files::{boot_id, node_config, write_private};
pub use identity::host_key_seed;
