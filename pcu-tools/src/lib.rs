//! Remote power control of nodes: what the `pcu` command and central use.
//!
//! An [`Inventory`] says by which [`Method`]s, in which order, a node's power can be switched. A [`Driver`] opens a
//! [`Session`] with the device of one method; [`engine`] performs an [`Action`] on a node by the first method that works, and
//! proves by reading the state back that it had an effect. [`fleet`] does it for many nodes at once, a bounded number at a time.
//!
//! Non-goals: managing power units (naming outlets, users, firmware), and deciding *when* a node needs power control: that is
//! central's.

pub mod action;
mod deadline;
pub mod discover;
pub mod driver;
mod drivers;
pub mod engine;
mod error;
pub mod fleet;
mod inventory;
mod method;
mod secret;
mod web;

pub use action::{Action, BootDevice, Change, PowerState};
pub use deadline::Deadline;
pub use driver::{Ability, Console, Driver, LogEntry, Proof, Registry, Sensor, Session};
pub use error::{Class, PcuError};
pub use inventory::{Inventory, InventoryError, Node};
pub use method::{Method, Waiver};
pub use secret::{Secret, SecretError, SecretSource};
