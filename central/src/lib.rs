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
mod data;
mod db;
mod enrol_api;
mod fleet_api;
mod node_api;
mod pki;
mod range;
mod roots_api;
mod server;
mod tls;

use std::time::{SystemTime, UNIX_EPOCH};

pub use data::{DataError, InitError, InitOptions, Initialised, authorities as authority_files, init, new_authority};
pub use db::OpenError;
pub use pki::PkiError;
pub use server::{ServeError, Server};

/// Unix seconds.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// The day of a time in Unix seconds, as `2027-01-15` (UTC).
fn day(unix: u64) -> String {
    // Days to a civil date: https://howardhinnant.github.io/date_algorithms.html#civil_from_days
    let days = unix / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
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
    }
}
