//! Stage `health`: whether this node OS does what it is for. A release on trial becomes the active one here, or is given up.
//!
//! What counts is what makes the node reachable and useful for its operator: its disk, its network, the ssh gate, the node
//! manager, and central's acceptance of a status report of this very boot. The last one is left out where central did
//! not decide this boot: a node must not lose a good release because central is away.

use std::{
    fmt::Write as _,
    fs,
    io::{self, Read},
    net::{Ipv4Addr, TcpStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use orrery_bootstage::{disk_lock, handover::Handover};
use orrery_init_api::{ENTERED_CMDLINE_PATH, FailureClass, PATIENCE_PARAMETER, patience_s};
use orrery_installer::{
    Slot, StateError, UnknownSlot, promote, read_state, read_trial, replace_file, write_state, write_trial,
};
use rustix::mount::{MountFlags, mount_remount};
use serde::{Deserialize, Serialize};

use crate::paths;

/// How often to look, while something is missing.
const POLL: Duration = Duration::from_secs(1);
/// How long the ssh gate of this very machine may take to greet.
const GREETING: Duration = Duration::from_secs(10);
/// How long an active release may go on being unhealthy before that is told again.
const TOLD_AGAIN: Duration = Duration::from_secs(3600);

/// What the node manager leaves of its reports to central, for this boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reported {
    /// Whether central has accepted one.
    pub accepted: bool,
    /// Why it has not, at the last attempt.
    pub error: Option<String>,
}

impl Reported {
    /// Leaves it for the health stage.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self, path: &Path) -> io::Result<()> {
        replace_file(path, &serde_json::to_vec(self)?, 0o600)
    }

    fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }
}

/// What could be seen of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signs {
    /// Whether the data partition takes writes, or why not.
    pub storage: Result<(), String>,
    /// Whether the node has an address.
    pub network: Result<(), String>,
    /// Whether the ssh gate greets.
    pub ssh_gate: Result<(), String>,
    /// The node manager's reports, once it has made one.
    pub reported: Option<Reported>,
    /// Whether this boot was decided without central.
    pub offline: bool,
}

/// What to do about what was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The node does what it is for.
    Healthy,
    /// It does not yet.
    Wait,
    /// It does not, and has had its time.
    Unhealthy(String),
}

/// Judges. `waited` is the time since everything was said to be ready.
pub fn judge(signs: &Signs, waited: Duration, patience: Duration) -> Verdict {
    let missing = missing(signs);
    if missing.is_empty() {
        Verdict::Healthy
    } else if waited < patience {
        Verdict::Wait
    } else {
        Verdict::Unhealthy(format!("after {} s, {}", waited.as_secs(), missing.join("; ")))
    }
}

fn missing(signs: &Signs) -> Vec<String> {
    let parts = [("storage", &signs.storage), ("network", &signs.network), ("ssh gate", &signs.ssh_gate)];
    let mut missing: Vec<_> =
        parts.iter().filter_map(|(name, sign)| Some(format!("{name}: {}", sign.as_ref().err()?))).collect();
    match &signs.reported {
        None => missing.push("node manager: it has not tried to report to central".to_owned()),
        Some(reported) if !reported.accepted && !signs.offline => {
            let mut text = "central has not accepted a report of this boot".to_owned();
            if let Some(error) = &reported.error {
                let _ = write!(text, ": {error}");
            }
            missing.push(text);
        }
        Some(_) => {}
    }
    missing
}

/// Looks at the machine.
fn look(offline: bool) -> Signs {
    let said = |error: &dyn std::fmt::Display| error.to_string();
    Signs {
        storage: replace_file(&Path::new(paths::STATE).join("health"), b"", 0o600).map_err(|e| said(&e)),
        network: orrery_bootstage::network::state().map(drop).map_err(|e| e.chain()),
        ssh_gate: greeted().map_err(|e| said(&e)),
        reported: Reported::read(Path::new(paths::REPORTED)),
        offline,
    }
}

fn greeted() -> io::Result<()> {
    let mut gate = TcpStream::connect((Ipv4Addr::LOCALHOST, 22))?;
    gate.set_read_timeout(Some(GREETING))?;
    let mut greeting = [0; 4];
    gate.read_exact(&mut greeting)?;
    if &greeting == b"SSH-" { Ok(()) } else { Err(io::Error::other("port 22 does not speak ssh")) }
}

/// The node is not healthy, or the disk could not be told that it is.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// A release on trial that has had its time.
    #[error("release {release} on trial in slot {slot} is not healthy: {reason}")]
    Trial {
        /// The release.
        release: String,
        /// Its slot.
        slot: String,
        /// What is missing.
        reason: String,
    },
    /// The active release is not healthy.
    #[error("not healthy: {0}; looking on")]
    Active(String),
    /// The slot that was handed over.
    #[error("the handover names slot {slot:?}")]
    Slot {
        /// What it says.
        slot: String,
        /// Why that is none.
        source: UnknownSlot,
    },
    /// The boot partition.
    #[error("making {} writable", paths::BOOT)]
    Remount(#[source] io::Error),
    /// What it remembers.
    #[error(transparent)]
    State(#[from] StateError),
}

impl HealthError {
    /// What PID 1 decides by.
    pub fn class(&self) -> FailureClass {
        match self {
            Self::Trial { .. } => FailureClass::Unhealthy,
            Self::Active(_) => FailureClass::Deadline,
            Self::Slot { .. } => FailureClass::Internal,
            Self::Remount(_) | Self::State(_) => FailureClass::Io,
        }
    }
}

/// Waits until the node is healthy and makes the disk remember it; `attempt` counts from 1. Returns `promoted <release> slot
/// <x>` or `confirmed <release> slot <x>`.
///
/// # Errors
/// [`HealthError`].
pub fn run(handover: &Handover, attempt: u32) -> Result<String, HealthError> {
    let cmdline = fs::read_to_string(ENTERED_CMDLINE_PATH).or_else(|_| fs::read_to_string("/proc/cmdline"));
    let cmdline = cmdline.unwrap_or_default();
    let patience = patience(&cmdline, handover.trial, attempt);
    let began = Instant::now();
    let reason = loop {
        match judge(&look(handover.offline.is_some()), began.elapsed(), patience) {
            Verdict::Healthy => return remember(handover),
            Verdict::Wait => thread::sleep(POLL),
            Verdict::Unhealthy(reason) => break reason,
        }
    };
    if !handover.trial {
        return Err(HealthError::Active(reason));
    }
    // For the medium, which will tell it. It can do without: the boots are counted all the same.
    if let Err(error) = note_reason(Path::new(paths::BOOT), &reason) {
        tracing::warn!("noting why the trial failed: {error}");
    }
    Err(HealthError::Trial { release: handover.release.release.clone(), slot: handover.slot.clone(), reason })
}

/// What an active release's trouble is told of first after as long as a trial would take, then by the hour.
fn patience(cmdline: &str, trial: bool, attempt: u32) -> Duration {
    let value = cmdline
        .split_ascii_whitespace()
        .rev()
        .find_map(|word| word.strip_prefix(PATIENCE_PARAMETER)?.strip_prefix('='));
    if trial || attempt == 1 { Duration::from_secs(patience_s(value)) } else { TOLD_AGAIN }
}

fn remember(handover: &Handover) -> Result<String, HealthError> {
    let _writable = Writable::open()?;
    // A kernel that refused the chain-boot would refuse it again.
    let entered = Path::new(ENTERED_CMDLINE_PATH).exists();
    remember_at(Path::new(paths::BOOT), handover, entered)
}

fn remember_at(boot: &Path, handover: &Handover, entered: bool) -> Result<String, HealthError> {
    let release = &handover.release.release;
    let wrong = |source| HealthError::Slot { slot: handover.slot.clone(), source };
    let slot: Slot = handover.slot.parse().map_err(wrong)?;
    let mut said = "confirmed";
    if handover.trial {
        promote(boot, slot, release)?;
        said = "promoted";
    }
    let mut state = read_state(boot).unwrap_or_default();
    state.unconfirmed = 0;
    if !entered {
        state.kexec_failures = 0;
    }
    write_state(boot, &state)?;
    Ok(format!("{said} {release} slot {}", slot.as_str()))
}

fn note_reason(boot: &Path, reason: &str) -> Result<(), HealthError> {
    let _writable = Writable::open()?;
    if let Some(mut trial) = read_trial(boot)? {
        trial.reason = Some(reason.to_owned());
        write_trial(boot, &trial)?;
    }
    Ok(())
}

/// The boot partition, writable for as long as this lives. It is read-only otherwise: nothing in the node OS has business there.
struct Writable {
    /// The reporter makes it writable now and then, too.
    _turn: Option<disk_lock::Turn>,
}

impl Writable {
    const FLAGS: MountFlags = MountFlags::NODEV.union(MountFlags::NOSUID).union(MountFlags::NOEXEC);

    fn open() -> Result<Self, HealthError> {
        let turn = disk_lock::wait();
        mount_remount(paths::BOOT, Self::FLAGS, "").map_err(|e| HealthError::Remount(e.into()))?;
        Ok(Self { _turn: turn })
    }
}

impl Drop for Writable {
    fn drop(&mut self) {
        if let Err(error) = mount_remount(paths::BOOT, Self::FLAGS.union(MountFlags::RDONLY), "") {
            tracing::warn!("making {} read-only again: {error}", paths::BOOT);
        }
    }
}

#[cfg(test)]
mod tests {
    use orrery_installer::{Trial, installed_slot, write_active};
    use orrery_protocol::{
        ArtifactRef, ArtifactRole, Digest, MinimumHardware, NodeConfig, ReleaseArtifact, ReleaseManifest,
    };

    use super::*;

    fn well() -> Signs {
        Signs {
            storage: Ok(()),
            network: Ok(()),
            ssh_gate: Ok(()),
            reported: Some(Reported { accepted: true, error: None }),
            offline: false,
        }
    }

    #[test]
    fn every_sign_counts() {
        let patience = Duration::from_secs(300);
        let check = |change: &dyn Fn(&mut Signs), expect: Option<&str>| {
            let mut signs = well();
            change(&mut signs);
            let Some(expect) = expect else {
                assert_eq!(judge(&signs, Duration::ZERO, patience), Verdict::Healthy);
                assert_eq!(judge(&signs, patience * 9, patience), Verdict::Healthy);
                return;
            };
            assert_eq!(judge(&signs, Duration::from_secs(299), patience), Verdict::Wait);
            let expect = format!("after 300 s, {expect}");
            assert_eq!(judge(&signs, patience, patience), Verdict::Unhealthy(expect));
        };
        let refused = || Some(Reported { accepted: false, error: Some("refused".into()) });
        check(&|_| (), None);
        check(&|s| s.storage = Err("read-only".into()), Some("storage: read-only"));
        check(&|s| s.network = Err("none".into()), Some("network: none"));
        check(&|s| s.ssh_gate = Err("silent".into()), Some("ssh gate: silent"));
        check(&|s| s.reported = None, Some("node manager: it has not tried to report to central"));
        check(&|s| s.reported = refused(), Some("central has not accepted a report of this boot: refused"));
        // Central did not decide this boot: it need not be there. Everything else must.
        check(&|s| (s.reported, s.offline) = (refused(), true), None);
        check(&|s| (s.reported, s.offline) = (None, true), Some("node manager: it has not tried to report to central"));
        check(&|s| (s.storage, s.network) = (Err("a".into()), Err("b".into())), Some("storage: a; network: b"));
    }

    #[test]
    fn patience_is_the_releases_until_it_is_active() {
        let check = |cmdline, trial, attempt, expect| {
            assert_eq!(patience(cmdline, trial, attempt), Duration::from_secs(expect), "{cmdline} {trial} {attempt}");
        };
        check("quiet", true, 1, 300);
        check("quiet", true, 5, 300);
        check("orrery.patience=60 quiet", true, 1, 60);
        check("orrery.patience=60 quiet", false, 1, 60);
        check("orrery.patience=60 quiet", false, 2, 3600);
    }

    fn handover(trial: bool) -> Handover {
        let config = serde_json::json!({ "central": { "urls": [], "ca": "", "release_keys": [] } });
        let artifact = |role| ReleaseArtifact {
            role,
            name: "x".into(),
            content: ArtifactRef { sha256: Digest([1; 32]), size: 1 },
            chunks: None,
            listing: None,
        };
        Handover {
            config: serde_json::from_value::<NodeConfig>(config).unwrap(),
            boot_id: "b1".into(),
            medium_version: "0.1.0".into(),
            slot: "b".into(),
            release: ReleaseManifest {
                version: 1,
                release: "0.2.0".into(),
                cmdline: String::new(),
                artifacts: vec![artifact(ArtifactRole::Kernel), artifact(ArtifactRole::NodeOs)],
                minimum: MinimumHardware::default(),
            },
            offline: None,
            trial,
        }
    }

    #[test]
    fn health_promotes_a_trial_and_ends_the_count_of_silent_boots() {
        let folder = tempfile::tempdir().unwrap();
        let boot = folder.path();
        write_active(boot, Slot::A).unwrap();
        let mut state = read_state(boot).unwrap();
        state.unconfirmed = 4;
        write_state(boot, &state).unwrap();
        assert_eq!(remember_at(boot, &handover(false), false).unwrap(), "confirmed 0.2.0 slot b");
        assert_eq!(installed_slot(boot).unwrap(), Some(Slot::A));
        assert_eq!(read_state(boot).unwrap().unconfirmed, 0);

        let trial = Trial {
            slot: Slot::B,
            release: "0.2.0".into(),
            manifest: Digest([2; 32]),
            serial: 1,
            boots_left: 1,
            started: 0,
            reason: None,
        };
        write_trial(boot, &trial).unwrap();
        assert_eq!(remember_at(boot, &handover(true), false).unwrap(), "promoted 0.2.0 slot b");
        assert_eq!((installed_slot(boot).unwrap(), read_trial(boot).unwrap()), (Some(Slot::B), None));
    }

    #[test]
    fn reports_are_left_for_the_gate() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("reported.json");
        assert_eq!(Reported::read(&path), None);
        let told = Reported { accepted: false, error: Some("no".into()) };
        told.keep(&path).unwrap();
        assert_eq!(Reported::read(&path), Some(told));
    }
}
