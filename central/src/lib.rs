//! Central: the boot server, the nodes' wanted state, their reports.
//!
//! One data folder holds everything: the certificate authority, one SQLite database, the artifacts. Non-goal:
//! signing. Release keys are never here, so that whoever owns this server can at worst replay what was signed.

mod admin_api;
mod api_error;
mod app;
mod artifacts;
mod boot_state;
mod data;
mod db;
mod node_api;
mod pki;
mod range;
mod server;
mod tls;

use std::time::{SystemTime, UNIX_EPOCH};

pub use data::{DataError, InitError, InitOptions, Initialised, init};
pub use db::OpenError;
pub use pki::PkiError;
pub use server::{ServeError, Server};

/// Unix seconds.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
