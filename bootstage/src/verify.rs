//! Judging the script: signed by enough release keys, for this node, current, not older than the last one obeyed.

use std::{fs, time::UNIX_EPOCH};

use orrery_init_api::{FailureClass, PLAN_PATH, SCRIPT_PATH, Stage};
use orrery_installer::{InstalledState, Request};
use orrery_protocol::{
    ArtifactRef, BootScript, EnvelopeError, NodeConfig, ScriptContext, ScriptKind, ScriptRefused, TrustRoot, Waiver,
};
use thiserror::Error;

use crate::{
    StageFailure,
    clock::{self, Judgement},
    disks, events, facts,
    files::{read_json, write_json},
    trust,
};

/// A script that this node may execute now. Only verification makes one.
#[derive(Debug)]
pub struct VerifiedScript {
    script: BootScript,
    envelope: Vec<u8>,
    judged: Judgement,
}

impl VerifiedScript {
    /// What to do.
    pub fn kind(&self) -> ScriptKind {
        self.script.kind
    }

    /// Its serial.
    pub fn serial(&self) -> u64 {
        self.script.serial
    }

    /// Base URLs of mirrors, in order.
    pub(crate) fn mirrors(&self) -> &[String] {
        &self.script.mirrors
    }

    /// What need not be fulfilled, by the script or by the configuration.
    pub(crate) fn waivers(&self, config: &NodeConfig) -> Vec<Waiver> {
        [self.script.waivers.as_slice(), &config.waivers].concat()
    }

    /// What the installer is asked for by it: `release`, on this machine, on a disk that remembers `state` and that this script was
    /// obeyed.
    pub(crate) fn request<'a>(
        &self,
        config: &'a NodeConfig,
        release: ArtifactRef,
        trust: &'a TrustRoot,
        waivers: &'a [Waiver],
        mut state: InstalledState,
    ) -> Request<'a> {
        state.accept(self.kind(), self.serial());
        Request {
            release,
            trust,
            rule: &config.install.disk,
            wipe: config.install.wipe,
            serial: self.serial(),
            state,
            hardware: facts::hardware(),
            waivers,
        }
    }

    /// The time that it was judged at, in Unix seconds: one that has passed, and before the script is void.
    pub(crate) fn judged_at(&self) -> u64 {
        self.judged.now
    }

    /// The release it names, if it is a script of `kind`.
    ///
    /// # Errors
    /// It is of another kind: a stage was started that the script does not ask for.
    pub fn release_for(&self, kind: ScriptKind) -> Result<ArtifactRef, StageFailure> {
        let release = self.script.release.filter(|_| self.script.kind == kind);
        release.ok_or_else(|| {
            let error = VerifyError::OtherKind { asked: kind, has: self.script.kind };
            StageFailure::new(FailureClass::Internal, error)
        })
    }
}

#[derive(Debug, Error)]
enum VerifyError {
    #[error("reading {SCRIPT_PATH}")]
    Read(#[source] std::io::Error),
    #[error("the boot script is of kind {has}, not {asked}")]
    OtherKind { asked: ScriptKind, has: ScriptKind },
    #[error("{refused}{said}")]
    Refused { refused: ScriptRefused, said: String },
}

/// Verifies the script that was fetched; returns its kind and a few words about it.
///
/// # Errors
/// The script is not one to execute.
pub fn run(config: &NodeConfig) -> Result<String, StageFailure> {
    // A disk that appeared late may know of updates that this central keeps to itself.
    trust::take_up(config);
    let script = open(config)?;
    write_json(PLAN_PATH, &script.script).map_err(|e| StageFailure::new(FailureClass::Internal, e))?;
    // Installing remembers it after the commit, on the disk that there is then.
    if script.kind() != ScriptKind::Install {
        remember(config, &script);
    }
    Ok(format!("{} serial {}{}", script.kind(), script.serial(), script.judged.said()))
}

/// Opens and judges the script. Every stage that obeys it does so itself, and trusts no earlier one.
///
/// # Errors
/// The script is not one to execute.
pub fn open(config: &NodeConfig) -> Result<VerifiedScript, StageFailure> {
    let envelope =
        fs::read(SCRIPT_PATH).map_err(|e| StageFailure::new(FailureClass::Internal, VerifyError::Read(e)))?;
    let remembered = disks::remembered(config);
    let judged = clock::judgement(remembered.last_seen);
    let (now, accepted) = (judged.now, &remembered.accepted);
    let context = ScriptContext { node: &config.id, groups: &config.groups, now, accepted };
    match BootScript::open(&envelope, &trust::current(config).trust, &context) {
        Ok(script) => Ok(VerifiedScript { script, envelope, judged }),
        Err(refused) => Err(refusal(refused, judged)),
    }
}

/// A clock that may be wrong is worth knowing where it decided.
fn refusal(refused: ScriptRefused, judged: Judgement) -> StageFailure {
    let said = if matches!(refused, ScriptRefused::Expired { .. }) { judged.said() } else { String::new() };
    StageFailure::new(class(&refused), VerifyError::Refused { refused, said })
}

/// The script in force that may admit administrators, of kind `safe`, `install` or `upgrade`: judged as every script is,
/// now, and the very one that the verify stage accepted against what the disk remembers. For safe mode, which must not touch
/// a disk that others may be writing to.
pub(crate) fn admitting_script(config: &NodeConfig) -> Option<BootScript> {
    in_force(config, &fs::read(SCRIPT_PATH).ok()?, &read_json(PLAN_PATH).ok()?, now())
}

fn in_force(config: &NodeConfig, envelope: &[u8], accepted: &BootScript, now: u64) -> Option<BootScript> {
    let context =
        ScriptContext { node: &config.id, groups: &config.groups, now, accepted: &[(accepted.kind, accepted.serial)] };
    let script = BootScript::open(envelope, &trust::current(config).trust, &context).ok()?;
    (script == *accepted && script.kind != ScriptKind::Boot).then_some(script)
}

fn now() -> u64 {
    UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs())
}

/// Makes the installed disk refuse older scripts from now on, and keep a `boot` script for the day when central is away. One
/// of another kind ends that: a node that was taken out of service must not come back by losing its network. That the
/// disk cannot remember is told and no more: the script itself is in order.
fn remember(config: &NodeConfig, verified: &VerifiedScript) {
    let keep = (verified.kind() == ScriptKind::Boot).then_some(verified.envelope.as_slice());
    if let Err(failure) = disks::remember(config, verified.kind(), verified.serial(), verified.judged_at(), keep) {
        let message = format!("the disk could not remember the script: {}", failure.chain());
        events::tell(Stage::Verify, Some(failure.class), message);
    }
}

fn class(refused: &ScriptRefused) -> FailureClass {
    match refused {
        ScriptRefused::Envelope(EnvelopeError::NotSigned { .. }) => FailureClass::Signature,
        ScriptRefused::Envelope(_) | ScriptRefused::Json(_) | ScriptRefused::Version(_) | ScriptRefused::NoRelease => {
            FailureClass::Malformed
        }
        ScriptRefused::WrongNode => FailureClass::WrongNode,
        ScriptRefused::Expired { .. } => FailureClass::Expired,
        ScriptRefused::Stale { .. } => FailureClass::Stale,
    }
}

#[cfg(test)]
mod tests {
    use orrery_protocol::{PayloadType, SigningKey, sign};

    use super::*;
    use crate::configure::{parse_toml, tests::sample};

    #[test]
    fn only_the_accepted_script_admits() {
        let release_key = SigningKey::from_scalar(&[9; 32]).unwrap();
        let config = parse_toml(&sample(&release_key)).unwrap();
        let safe = BootScript {
            version: 1,
            kind: ScriptKind::Safe,
            nodes: vec!["n1".into()],
            serial: 7,
            issued: 1000,
            expires: 2000,
            release: None,
            ssh_keys: vec!["a key".into()],
            networks: Vec::new(),
            mirrors: Vec::new(),
            waivers: Vec::new(),
        };
        let older = BootScript { serial: 6, ..safe.clone() };
        let newer = BootScript { serial: 8, ..safe.clone() };
        let other_keys = BootScript { ssh_keys: vec!["another key".into()], ..safe.clone() };
        let elsewhere = BootScript { nodes: vec!["n2".into()], ..safe.clone() };
        let release = Some(ArtifactRef { sha256: orrery_protocol::Digest([3; 32]), size: 12 });
        let boot = BootScript { kind: ScriptKind::Boot, release, ..safe.clone() };
        let install = BootScript { kind: ScriptKind::Install, ..boot.clone() };
        let check = |script: &BootScript, key: &SigningKey, accepted: &BootScript, now, expect: bool| {
            let bytes = sign(PayloadType::BootScript, &script.encode().unwrap(), &[key]).unwrap();
            assert_eq!(in_force(&config, &bytes, accepted, now).is_some(), expect, "{script:?} {accepted:?} {now}");
        };
        check(&safe, &release_key, &safe, 1500, true);
        check(&safe, &release_key, &safe, 2000, false);
        check(&safe, &SigningKey::from_scalar(&[8; 32]).unwrap(), &safe, 1500, false);
        check(&older, &release_key, &safe, 1500, false);
        check(&newer, &release_key, &safe, 1500, false);
        check(&other_keys, &release_key, &safe, 1500, false);
        check(&elsewhere, &release_key, &elsewhere, 1500, false);
        check(&boot, &release_key, &boot, 1500, false);
        check(&install, &release_key, &install, 1500, true);
        check(&install, &release_key, &safe, 1500, false);
    }
}
