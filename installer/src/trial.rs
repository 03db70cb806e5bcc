//! A release on trial: written whole beside the one that is known to be good, booted a bounded number of times, and made the
//! active one only by the node OS that runs from it and found itself healthy.
//!
//! The file `trial` is the whole of it. It is written after everything it stands for was verified and synced, so that a
//! power cut leaves no trial or a whole one; `active` is not touched before the trial has succeeded.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use orrery_protocol::{ArtifactRef, Digest, FailedTrial, ReleaseManifest, TrustRoot};
use serde::{Deserialize, Serialize};

use crate::{
    fetch::holds,
    installed::{FailedUpgrade, Slot, StateError, installed_slot, read_state, replace, write_active, write_state},
    layout::slot_file,
};

/// How often a release on trial is booted before it is given up. One would make a power cut during the first boot a failure
/// of the release; with more, a release that takes a minute to hang keeps the node from its users for longer.
pub const TRIAL_BOOTS: u32 = 2;

/// A trial that has been armed; the content of `trial`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// The slot that holds the release.
    pub slot: Slot,
    /// The release's name.
    pub release: String,
    /// SHA-256 of its signed manifest.
    pub manifest: Digest,
    /// Serial of the upgrade script that asked for it.
    pub serial: u64,
    /// How often it may still be booted.
    pub boots_left: u32,
    /// When it was armed, in Unix seconds by the node's clock.
    pub started: u64,
    /// Why a boot of it failed, as far as that is known.
    #[serde(default)]
    pub reason: Option<String>,
}

/// What is to be booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    /// The active slot.
    Active(Slot),
    /// A release on trial, which has a boot left.
    Trial(Trial),
    /// A trial has used its boots up; to be given up, and the active slot booted.
    GiveUp(Trial),
    /// Nothing complete is installed.
    Nothing,
}

/// What is due with this `active` slot and this `trial`.
pub fn due(active: Option<Slot>, trial: Option<Trial>) -> Due {
    match (active, trial) {
        // Promoted, and the power went before `trial` could be removed.
        (Some(active), Some(trial)) if trial.slot == active => Due::Active(active),
        (_, Some(trial)) if trial.boots_left > 0 => Due::Trial(trial),
        (_, Some(trial)) => Due::GiveUp(trial),
        (Some(active), None) => Due::Active(active),
        (None, None) => Due::Nothing,
    }
}

fn trial_path(boot: &Path) -> PathBuf {
    boot.join("trial")
}

/// The trial that is armed on the boot partition mounted at `boot`.
///
/// # Errors
/// [`StateError`].
pub fn read_trial(boot: &Path) -> Result<Option<Trial>, StateError> {
    let path = trial_path(boot);
    match fs::read(&path) {
        Ok(text) => {
            let trial = serde_json::from_slice(&text);
            trial.map(Some).map_err(|e| StateError::Damaged { path, what: e.to_string() })
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StateError::Io { action: "reading", path, source }),
    }
}

/// Arms `trial`, or changes it. After a power cut it is as it was or as it is to be.
///
/// # Errors
/// [`StateError`].
pub fn write_trial(boot: &Path, trial: &Trial) -> Result<(), StateError> {
    let path = trial_path(boot);
    let bytes =
        serde_json::to_vec(trial).map_err(|e| StateError::Damaged { path: path.clone(), what: e.to_string() })?;
    replace(&path, &bytes)
}

/// Ends the trial, if there is one; durably.
///
/// # Errors
/// [`StateError`].
pub fn remove_trial(boot: &Path) -> Result<(), StateError> {
    let path = trial_path(boot);
    let removed = match fs::remove_file(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => Err(e),
        Ok(()) => File::open(boot).and_then(|folder| folder.sync_all()),
    };
    removed.map_err(|source| StateError::Io { action: "removing", path, source })
}

/// Takes one of the trial's boots, before it is booted: what happens from now on counts, whatever it is.
///
/// # Errors
/// [`StateError`]; the boot must then not happen.
pub fn spend_boot(boot: &Path, trial: &Trial) -> Result<(), StateError> {
    write_trial(boot, &Trial { boots_left: trial.boots_left.saturating_sub(1), ..trial.clone() })
}

/// Gives `trial` up and remembers why, so that it is not tried again by the same script.
///
/// # Errors
/// [`StateError`].
pub fn give_up_trial(boot: &Path, trial: &Trial, reason: &str) -> Result<(), StateError> {
    let mut state = read_state(boot).unwrap_or_default();
    let failed = FailedTrial { manifest: trial.manifest, release: trial.release.clone(), reason: reason.to_owned() };
    state.failed_trial = Some(FailedUpgrade { serial: trial.serial, trial: failed });
    // In this order: a power cut between the two gives the trial up once more.
    write_state(boot, &state)?;
    remove_trial(boot)
}

/// Makes the release on trial in `slot` the active one.
///
/// # Errors
/// [`StateError`]. The trial goes on then; or it is over, with `slot` the active one.
pub fn promote(boot: &Path, slot: Slot, release: &str) -> Result<(), StateError> {
    let mut state = read_state(boot).unwrap_or_default();
    state.release = Some(release.to_owned());
    write_state(boot, &state)?;
    write_active(boot, slot)?;
    remove_trial(boot)
}

/// The name of the release in `slot` if it is the one with the signed manifest `release`, and whole.
pub fn release_in_slot(boot: &Path, slot: Slot, release: &ArtifactRef, trust: &TrustRoot) -> Option<String> {
    let envelope = fs::read(slot_file(boot, slot, "manifest")).ok()?;
    if envelope.len() as u64 != release.size || Digest::of(&envelope) != release.sha256 {
        return None;
    }
    let manifest = ReleaseManifest::open(&envelope, trust).ok()?;
    let whole = [("kernel", manifest.kernel()), ("nodeos", manifest.node_os())];
    let whole = whole.iter().all(|(name, artifact)| holds(&slot_file(boot, slot, name), &artifact.content));
    whole.then_some(manifest.release)
}

/// Whether an upgrade to the manifest `release` has already been tried here by a script of this `serial` or a later one.
pub fn failed_before(boot: &Path, release: &ArtifactRef, serial: u64) -> Option<FailedTrial> {
    let failed = read_state(boot).ok()?.failed_trial?;
    (failed.trial.manifest == release.sha256 && serial <= failed.serial).then_some(failed.trial)
}

/// What an upgrade has to do for the manifest `release`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing: it is the active one, and whole.
    Current {
        /// The slot.
        slot: Slot,
        /// The release's name.
        release: String,
    },
    /// Nothing more: it is on trial.
    OnTrial(Trial),
    /// Nothing: it has been tried.
    FailedBefore(FailedTrial),
    /// To be written and tried.
    New,
}

/// Looks what an upgrade by a script of `serial` has to do.
///
/// # Errors
/// [`StateError`]: nothing is known of what is installed.
pub fn wanted(boot: &Path, release: &ArtifactRef, serial: u64, trust: &TrustRoot) -> Result<Wanted, StateError> {
    let active = installed_slot(boot)?;
    if let Some(slot) = active
        && let Some(release) = release_in_slot(boot, slot, release, trust)
    {
        return Ok(Wanted::Current { slot, release });
    }
    // One that is damaged counts as none: it will be replaced.
    if let Some(trial) = read_trial(boot).ok().flatten()
        && trial.manifest == release.sha256
        && Some(trial.slot) != active
        && serial <= trial.serial
    {
        return Ok(Wanted::OnTrial(trial));
    }
    Ok(failed_before(boot, release, serial).map_or(Wanted::New, Wanted::FailedBefore))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(slot: Slot, boots_left: u32) -> Trial {
        Trial {
            slot,
            release: "0.2.0".into(),
            manifest: Digest([7; 32]),
            serial: 3,
            boots_left,
            started: 1_700_000_000,
            reason: None,
        }
    }

    #[test]
    fn what_is_due() {
        use Slot::{A, B};
        assert_eq!(due(None, None), Due::Nothing);
        assert_eq!(due(Some(A), None), Due::Active(A));
        assert_eq!(due(Some(A), Some(trial(B, 2))), Due::Trial(trial(B, 2)));
        assert_eq!(due(Some(A), Some(trial(B, 0))), Due::GiveUp(trial(B, 0)));
        assert_eq!(due(None, Some(trial(B, 1))), Due::Trial(trial(B, 1)));
        assert_eq!(due(Some(B), Some(trial(B, 1))), Due::Active(B));
        assert_eq!(due(Some(B), Some(trial(B, 0))), Due::Active(B));
    }

    #[test]
    fn a_trial_is_bounded_and_its_failure_remembered_until_a_newer_script_insists() {
        let folder = tempfile::tempdir().unwrap();
        let boot = folder.path();
        let release = ArtifactRef { sha256: Digest([7; 32]), size: 12 };
        let trust = TrustRoot { keys: Vec::new(), threshold: 1 };
        write_active(boot, Slot::A).unwrap();
        assert_eq!(wanted(boot, &release, 3, &trust).unwrap(), Wanted::New);
        write_trial(boot, &trial(Slot::B, TRIAL_BOOTS)).unwrap();
        for left in (0..TRIAL_BOOTS).rev() {
            let Due::Trial(now) = due(installed_slot(boot).unwrap(), read_trial(boot).unwrap()) else { panic!() };
            assert!(matches!(wanted(boot, &release, 3, &trust).unwrap(), Wanted::OnTrial(_)));
            spend_boot(boot, &now).unwrap();
            assert_eq!(read_trial(boot).unwrap().unwrap().boots_left, left);
        }
        let Due::GiveUp(over) = due(installed_slot(boot).unwrap(), read_trial(boot).unwrap()) else { panic!() };
        give_up_trial(boot, &over, "it hung").unwrap();
        assert_eq!(due(installed_slot(boot).unwrap(), read_trial(boot).unwrap()), Due::Active(Slot::A));
        let Wanted::FailedBefore(failed) = wanted(boot, &release, 3, &trust).unwrap() else { panic!() };
        assert_eq!((failed.release.as_str(), failed.reason.as_str()), ("0.2.0", "it hung"));
        assert_eq!(wanted(boot, &release, 4, &trust).unwrap(), Wanted::New);
        let other = ArtifactRef { sha256: Digest([8; 32]), size: 12 };
        assert_eq!(wanted(boot, &other, 3, &trust).unwrap(), Wanted::New);
    }

    #[test]
    fn promotion_survives_a_power_cut_between_its_steps() {
        let folder = tempfile::tempdir().unwrap();
        let boot = folder.path();
        write_active(boot, Slot::A).unwrap();
        write_trial(boot, &trial(Slot::B, 1)).unwrap();
        // The power goes after `active` was written.
        write_active(boot, Slot::B).unwrap();
        assert_eq!(due(installed_slot(boot).unwrap(), read_trial(boot).unwrap()), Due::Active(Slot::B));
        promote(boot, Slot::B, "0.2.0").unwrap();
        assert_eq!(read_trial(boot).unwrap(), None);
        assert_eq!(installed_slot(boot).unwrap(), Some(Slot::B));
        assert_eq!(read_state(boot).unwrap().release.as_deref(), Some("0.2.0"));
        promote(boot, Slot::B, "0.2.0").unwrap();
    }

    #[test]
    fn a_damaged_trial_is_told() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(trial_path(folder.path()), "{").unwrap();
        assert!(matches!(read_trial(folder.path()), Err(StateError::Damaged { .. })));
    }
}
