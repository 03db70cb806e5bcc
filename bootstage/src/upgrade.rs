//! Putting the release that the script names on trial, in the slot that is not active. What runs today stays as it is until
//! the new one has shown that it works.

use std::time::UNIX_EPOCH;

use orrery_init_api::{FailureClass, Stage};
use orrery_installer::{Wanted, read_state, try_slot, wanted};
use orrery_protocol::{NodeConfig, ScriptKind};
use thiserror::Error;

use crate::{
    StageFailure, disks,
    download::{Servers, Teller},
    trust, verify,
};

#[derive(Debug, Error)]
enum UpgradeError {
    #[error(
        "release {release} was tried on this disk and given up: {reason}; an upgrade script with a higher serial tries it again"
    )]
    FailedBefore { release: String, reason: String },
    #[error("what is installed cannot be told")]
    State(#[source] orrery_installer::StateError),
}

/// Upgrades; returns `trial <release> slot <x>` where something is to be tried, `current <release> slot <x>` where nothing
/// is to be done.
///
/// # Errors
/// The script is not one to execute, its release has failed here before, or it could not be written. The active slot is as
/// it was in every case.
pub fn run(config: &NodeConfig) -> Result<String, StageFailure> {
    let script = verify::open(config)?;
    let release = script.release_for(ScriptKind::Upgrade)?;
    let trust = trust::current(config).trust;
    disks::wait_for_installed();
    let boot = disks::mount_boot(config, false)?;
    let state_error = |e| StageFailure::new(FailureClass::Io, UpgradeError::State(e));
    match wanted(boot.path(), &release, script.serial(), &trust).map_err(state_error)? {
        Wanted::Current { slot, release } => return Ok(format!("current {release} slot {}", slot.as_str())),
        Wanted::OnTrial(trial) => return Ok(format!("trial {} slot {}", trial.release, trial.slot.as_str())),
        Wanted::FailedBefore(failed) => {
            let error = UpgradeError::FailedBefore { release: failed.release, reason: failed.reason };
            return Err(StageFailure::new(FailureClass::Unhealthy, error));
        }
        Wanted::New => {}
    }
    let data = disks::mount_data(config)?;
    let state = read_state(boot.path()).unwrap_or_default();
    let waivers = script.waivers(config);
    let request = script.request(config, release, &trust, &waivers, state);
    let (servers, teller) = (Servers::new(config, script.mirrors())?, Teller::new(Stage::Upgrade));
    let now = UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs());
    let committed = try_slot(&servers, &teller, boot.path(), data.path(), request, now)?;
    Ok(format!("trial {} slot {}", committed.release(), committed.slot().as_str()))
}
