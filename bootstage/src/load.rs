//! Choosing which installed node OS is booted, and giving it to the kernel. What is about to happen is remembered on the disk
//! before it does: whatever becomes of it then counts.

use orrery_init_api::{ATTEMPT_ENV, FailureClass, Stage};
use orrery_installer::{
    Due, InstalledState, Mounted, TRIAL_BOOTS, Trial, due, give_up_trial, installed_slot, read_state, read_trial,
    remove_trial, spend_boot, write_state,
};
use orrery_protocol::{NodeConfig, ScriptKind, Waiver};

use crate::{
    StageFailure, contact, disks, events,
    handover::{self, Handover},
    previous,
    release::{LoadError, VerifiedManifest, VerifiedRelease},
    trust, verify,
};

/// Chain-boots in a row without a word of health that are nothing special: power cuts, a trial and its fallback.
const ORDINARY: u32 = 5;
/// The longest row of waits; each is about a minute.
const MOST_WAITS: u32 = 10;

/// Verifies and loads what is due; returns `<release> slot <a|b>`, and more words if it is on trial.
///
/// # Errors
/// Nothing is installed, something of it is not what was signed, the kernel refused it, or it failed so often in a row that
/// a wait is due first.
pub fn run(config: &NodeConfig) -> Result<String, StageFailure> {
    disks::wait_for_installed();
    let mut disk = Disk::open(config)?;
    disk.wait_if_due(attempt())?;
    if let Some(text) = disk.load_trial(config)? {
        return Ok(text);
    }
    let active = installed_slot(disk.boot.path()).map_err(LoadError::State)?.ok_or(LoadError::NoSlot)?;
    let manifest = VerifiedManifest::open(disk.boot.path(), active, &trust::current(config).trust)?;
    note_other_release(config, &manifest);
    let (release, boot_id) = read(config, manifest, false)?;
    disk.count_start();
    Ok(disk.start(config, &release, &boot_id, false)?)
}

/// PID 1's count of this stage's attempts in a row, from 1.
fn attempt() -> u32 {
    std::env::var(ATTEMPT_ENV).ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// How many attempts of this stage are turned into waits, after `unconfirmed` chain-boots in a row whose node OS never said
/// that it is healthy. A node OS that resets the machine at once would otherwise make a loop that nobody can get
/// into; so the medium opens safe mode and asks central again meanwhile, for a minute more each time.
fn waits(unconfirmed: u32) -> u32 {
    unconfirmed.saturating_sub(ORDINARY).min(MOST_WAITS)
}

/// Refusals of the kernel in a row after which the node OS is entered without it. After the first, the machine starts over
/// from the firmware, which may put right what another boot has left behind.
const REFUSALS: u32 = 2;

/// Whether the node OS is entered under the medium's kernel instead of being chain-booted.
fn enters(waived: bool, kexec_failures: u32) -> bool {
    waived || kexec_failures >= REFUSALS
}

/// The boot partition, and what it remembers.
struct Disk {
    boot: Mounted,
    state: InstalledState,
    /// A disk that takes no writes any more still boots what is active.
    writable: bool,
}

impl Disk {
    fn open(config: &NodeConfig) -> Result<Self, StageFailure> {
        let (boot, writable) = match disks::mount_boot(config, false) {
            Err(disks::DiskError::Mount(error)) => {
                let text = format!("the boot partition takes no writes: {error}");
                events::tell(Stage::Load, Some(FailureClass::Io), text);
                (disks::mount_boot(config, true)?, false)
            }
            other => (other?, true),
        };
        let state = read_state(boot.path()).unwrap_or_default();
        Ok(Self { boot, state, writable })
    }

    fn wait_if_due(&self, attempt: u32) -> Result<(), LoadError> {
        let waits = waits(self.state.unconfirmed);
        if attempt > waits {
            return Ok(());
        }
        Err(LoadError::Unconfirmed { times: self.state.unconfirmed, wait: attempt, waits })
    }

    /// Changes what is remembered. Being unable to is told and no more: it only makes later waits shorter.
    fn change(&mut self, change: impl FnOnce(&mut InstalledState)) {
        change(&mut self.state);
        if self.writable
            && let Err(error) = write_state(self.boot.path(), &self.state)
        {
            events::tell(Stage::Load, Some(FailureClass::Io), error.to_string());
        }
    }

    /// Gives a release to the kernel; or unpacks it to be entered, where the chain-boot is waived, or was refused too often.
    fn start(
        &mut self,
        config: &NodeConfig,
        release: &VerifiedRelease,
        boot_id: &str,
        trial: bool,
    ) -> Result<String, LoadError> {
        let of_script = verify::open(config).map(|script| script.waivers(config)).unwrap_or_default();
        let waived = config.waivers.iter().chain(&of_script).any(|waiver| *waiver == Waiver::Kexec);
        if enters(waived, self.state.kexec_failures) {
            return release.unpack(boot_id, trial);
        }
        let outcome = release.load(boot_id, trial);
        let Err(error @ LoadError::Kexec { .. }) = outcome else { return outcome };
        self.change(|state| state.kexec_failures = state.kexec_failures.saturating_add(1));
        if !enters(waived, self.state.kexec_failures) {
            return Err(error);
        }
        let failure = StageFailure::from(error);
        events::tell(Stage::Load, Some(failure.class), format!("{}; entering it instead", failure.chain()));
        release.unpack(boot_id, trial)
    }

    fn count_start(&mut self) {
        self.change(|state| state.unconfirmed = state.unconfirmed.saturating_add(1));
    }

    /// Loads the release on trial if one is due, or gives it up; `None` where the active slot is to be booted.
    fn load_trial(&mut self, config: &NodeConfig) -> Result<Option<String>, StageFailure> {
        if !self.writable {
            // A boot that cannot be counted could be repeated for ever.
            return Ok(None);
        }
        let trial = match read_trial(self.boot.path()) {
            Ok(trial) => trial,
            Err(error) => {
                events::tell(Stage::Load, Some(FailureClass::Tampered), format!("ending a trial: {error}"));
                remove_trial(self.boot.path()).map_err(LoadError::Remember)?;
                None
            }
        };
        let active = installed_slot(self.boot.path()).ok().flatten();
        match due(active, trial) {
            Due::Trial(trial) => match self.try_release(config, &trial) {
                Ok(text) => return Ok(Some(text)),
                // That the kernel refuses is the machine's doing before it is the release's.
                Err(failure) if failure.class == FailureClass::Kexec => return Err(failure),
                Err(failure) => self.give_up(&trial, &failure.chain()),
            },
            Due::GiveUp(trial) => {
                let reason = previous::last_words().or_else(|| trial.reason.clone());
                self.give_up(
                    &trial,
                    &reason.unwrap_or_else(|| format!("{TRIAL_BOOTS} boots without a healthy report")),
                );
            }
            Due::Active(_) | Due::Nothing => {}
        }
        Ok(None)
    }

    fn try_release(&mut self, config: &NodeConfig, trial: &Trial) -> Result<String, StageFailure> {
        let manifest = VerifiedManifest::open(self.boot.path(), trial.slot, &trust::current(config).trust)?;
        if manifest.envelope.sha256 != trial.manifest {
            return Err(LoadError::OtherRelease { slot: trial.slot.as_str() }.into());
        }
        let (release, boot_id) = read(config, manifest, true)?;
        let reason = if trial.boots_left < TRIAL_BOOTS { previous::last_words() } else { None };
        let trial = Trial { reason: reason.or_else(|| trial.reason.clone()), ..trial.clone() };
        spend_boot(self.boot.path(), &trial).map_err(LoadError::Remember)?;
        self.count_start();
        let text = self.start(config, &release, &boot_id, true)?;
        Ok(format!("{text} on trial, {} more boots after this one", trial.boots_left - 1))
    }

    /// Ends a trial, and tells why. If that cannot be remembered, the trial stays armed, with its boots as they were counted.
    fn give_up(&mut self, trial: &Trial, reason: &str) {
        let text = format!("release {} in slot {} fell back: {reason}", trial.release, trial.slot.as_str());
        events::tell(Stage::Load, Some(FailureClass::Unhealthy), text);
        if let Err(error) = give_up_trial(self.boot.path(), trial, reason) {
            events::tell(Stage::Load, Some(FailureClass::Io), error.to_string());
        }
        self.state = read_state(self.boot.path()).unwrap_or_default();
    }
}

/// Reads a release into memory, verified, with what the node OS starts from; and this boot's id.
fn read(config: &NodeConfig, manifest: VerifiedManifest, trial: bool) -> Result<(VerifiedRelease, String), LoadError> {
    let boot_id = crate::boot_id().map_err(LoadError::Handover)?;
    let handover = Handover {
        config: trust::obeying(config),
        boot_id: boot_id.clone(),
        medium_version: handover::image_version(),
        slot: manifest.slot.as_str().into(),
        release: manifest.manifest.clone(),
        offline: contact::offline(),
        trial,
    };
    let handover = handover.to_cpio().map_err(LoadError::Handover)?;
    Ok((manifest.read(&handover)?, boot_id))
}

/// The script names the release to repair from. That another one is installed is worth knowing, and no reason not to boot it:
/// it is signed, and updates are not a boot script's business.
fn note_other_release(config: &NodeConfig, installed: &VerifiedManifest) {
    let named = verify::open(config).ok().and_then(|s| s.release_for(ScriptKind::Boot).ok());
    if named.is_some_and(|named| named != installed.envelope) {
        let text = format!("release {} is installed, the boot script names another", installed.manifest.release);
        events::tell(Stage::Load, None, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_begin_after_ordinary_trouble_and_are_bounded() {
        let check = |unconfirmed, expect| assert_eq!(waits(unconfirmed), expect, "{unconfirmed}");
        check(0, 0);
        // A trial's boots and its fallback, with power cuts between.
        check(TRIAL_BOOTS + 1, 0);
        check(ORDINARY, 0);
        check(ORDINARY + 1, 1);
        check(u32::MAX, MOST_WAITS);
    }

    #[test]
    fn the_chain_boot_is_given_up_after_two_refusals() {
        assert!(!enters(false, 0) && !enters(false, 1));
        assert!(enters(false, 2) && enters(true, 0));
    }
}
