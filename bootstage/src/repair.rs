//! Replacing a damaged node OS: the release the script names, into the slot that is not active. Data stays.

use std::process::{Command, Stdio};

use orrery_init_api::{FailureClass, Stage};
use orrery_installer::{BOOT_LABEL, failed_before, rewrite_slot};
use orrery_protocol::{NodeConfig, ScriptKind};
use thiserror::Error;

use crate::{
    StageFailure, disks,
    download::{Servers, Teller},
    trust, verify,
};

#[derive(Debug, Error)]
enum RepairError {
    #[error(
        "the only release the script offers is {release}, which was given up here: {reason}; set the boot state to boot"
    )]
    Unhealthy { release: String, reason: String },
    #[error("running e2fsck on the boot partition")]
    Run(#[source] std::io::Error),
    #[error(
        "the boot partition's file system cannot be repaired: e2fsck: {status}: {output}; set the boot state to reinstall"
    )]
    Fsck { status: std::process::ExitStatus, output: String },
}

/// Repairs; returns a sentence about it.
///
/// # Errors
/// The script is not one to execute, or repairing failed; the damage is then as it was.
pub fn run(config: &NodeConfig) -> Result<String, StageFailure> {
    let script = verify::open(config)?;
    // With nothing whole to fall back to, the release of an upgrade is not tried but installed.
    let release = script.release_for(ScriptKind::Boot).or_else(|_| script.release_for(ScriptKind::Upgrade))?;
    check_file_system(config)?;
    let boot = disks::mount_boot(config, false)?;
    let data = disks::mount_data(config)?;
    if script.kind() == ScriptKind::Upgrade
        && let Some(failed) = failed_before(boot.path(), &release, script.serial())
    {
        let error = RepairError::Unhealthy { release: failed.release, reason: failed.reason };
        return Err(StageFailure::new(FailureClass::Unhealthy, error));
    }
    let state = orrery_installer::read_state(boot.path()).unwrap_or_default();
    let trust = trust::current(config).trust;
    let waivers = script.waivers(config);
    let request = script.request(config, release, &trust, &waivers, state);
    let (servers, teller) = (Servers::new(config, script.mirrors())?, Teller::new(Stage::Repair));
    let committed = rewrite_slot(&servers, &teller, boot.path(), data.path(), request)?;
    Ok(format!("release {} in slot {}", committed.release(), committed.slot().as_str()))
}

/// Whatever damaged a file may have damaged the file system around it.
fn check_file_system(config: &NodeConfig) -> Result<(), StageFailure> {
    let device = disks::partition(BOOT_LABEL, config)?;
    let output = Command::new("/sbin/e2fsck")
        .args(["-p", "-f"])
        .arg(&device)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| StageFailure::new(FailureClass::Io, RepairError::Run(e)))?;
    // 1 and 2 say that errors were corrected (e2fsck(8)).
    if output.status.code().is_some_and(|code| code & !3 == 0) {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Err(StageFailure::new(FailureClass::Io, RepairError::Fsck { status: output.status, output: text }))
}
