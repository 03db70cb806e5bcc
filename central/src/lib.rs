//! Central: the boot server, the nodes' wanted state, their reports.
//!
//! One data folder holds everything: the certificate authority, one SQLite database, the artifacts. Non-goal:
//! signing. Release keys are never here, so that whoever owns this server can at worst replay what was signed.

mod admin_api;
mod api_error;
mod app;
mod artifacts;
mod authorities;
mod boot_state;
mod collect_api;
mod data;
mod db;
mod enrol_api;
mod fleet_api;
mod life_api;
mod node_api;
pub mod operators;
mod pki;
mod power;
mod power_api;
mod range;
mod roots_api;
mod server;
mod tls;

use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;

pub use data::{
    DataError, InitError, InitOptions, Initialised, authorities as authority_files, change_hosts, hosts, init,
    new_authority,
};
pub use db::OpenError;
pub use pki::PkiError;
pub use server::{ServeError, Server};

/// Unix seconds.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// The day of a time in Unix seconds, as `2027-01-15` (UTC); the seconds themselves where no calendar has it.
fn day(unix: u64) -> String {
    let time = i64::try_from(unix).ok().and_then(|t| OffsetDateTime::from_unix_timestamp(t).ok());
    time.map_or_else(|| unix.to_string(), |time| time.date().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days() {
        let check = |unix: u64, expect: &str| assert_eq!(day(unix), expect);
        check(0, "1970-01-01");
        check(951_782_399, "2000-02-28");
        check(951_782_400, "2000-02-29");
        check(1_800_000_000, "2027-01-15");
        check(4_102_444_799, "2099-12-31");
        check(u64::MAX, "18446744073709551615");
    }
}
