//! What a boot partition remembers: which slot is active, and how new the scripts were that it has obeyed.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use orrery_protocol::{FailedTrial, ScriptKind};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::replace::replace_file;

/// One of the two places for a kernel and a node OS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Slot {
    /// The first.
    A,
    /// The second.
    B,
}

impl std::str::FromStr for Slot {
    type Err = UnknownSlot;

    fn from_str(text: &str) -> Result<Self, UnknownSlot> {
        [Self::A, Self::B].into_iter().find(|slot| slot.as_str() == text).ok_or(UnknownSlot)
    }
}

/// Not the name of a [`Slot`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no slot has this name")]
pub struct UnknownSlot;

impl Slot {
    /// Its name on the disk and on the console.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// The content of `state.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstalledState {
    /// The highest serial obeyed of each kind of script.
    #[serde(default)]
    pub accepted: Vec<(ScriptKind, u64)>,
    /// The release in the active slot, as last written.
    #[serde(default)]
    pub release: Option<String>,
    /// A time that has passed, in Unix seconds: a script was obeyed then. What expired before it is expired, whatever the
    /// clock says.
    #[serde(default)]
    pub last_seen: u64,
    /// The release that was tried last and given up, until another one is tried.
    #[serde(default)]
    pub failed_trial: Option<FailedUpgrade>,
    /// Chain-boots in a row whose node OS never said that it is healthy.
    #[serde(default)]
    pub unconfirmed: u32,
    /// Refusals of the kernel in a row to load the next one.
    #[serde(default)]
    pub kexec_failures: u32,
}

/// An upgrade that failed, and which script asked for it: a newer one may ask for the same release again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedUpgrade {
    /// The script's serial.
    pub serial: u64,
    /// What was tried, and why it was given up.
    #[serde(flatten)]
    pub trial: FailedTrial,
}

impl InstalledState {
    /// What went wrong with what was installed before says nothing about what is installed now.
    pub fn forget_troubles(&mut self) {
        self.failed_trial = None;
        self.unconfirmed = 0;
        self.kexec_failures = 0;
    }

    /// Remembers that a script was obeyed.
    pub fn accept(&mut self, kind: ScriptKind, serial: u64) {
        match self.accepted.iter_mut().find(|(k, _)| *k == kind) {
            Some((_, highest)) => *highest = serial.max(*highest),
            None => self.accepted.push((kind, serial)),
        }
    }
}

/// The memory of a boot partition is in disorder.
#[derive(Debug, Error)]
pub enum StateError {
    /// A file cannot be read or written.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// A file says nothing that makes sense.
    #[error("{path} is damaged: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

/// The active slot of the boot partition mounted at `boot`; `None` where nothing complete is installed.
///
/// # Errors
/// [`StateError`].
pub fn installed_slot(boot: &Path) -> Result<Option<Slot>, StateError> {
    let path = boot.join("active");
    match fs::read(&path) {
        Ok(text) => match text.trim_ascii() {
            b"a" => Ok(Some(Slot::A)),
            b"b" => Ok(Some(Slot::B)),
            _ => Err(StateError::Damaged { path, what: "it names no slot".into() }),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StateError::Io { action: "reading", path, source }),
    }
}

/// Makes `slot` the active one. The last thing an installation does.
///
/// # Errors
/// [`StateError`].
pub fn write_active(boot: &Path, slot: Slot) -> Result<(), StateError> {
    replace(&boot.join("active"), format!("{}\n", slot.as_str()).as_bytes())
}

/// What the boot partition mounted at `boot` remembers; the default where there is nothing yet.
///
/// # Errors
/// [`StateError`].
pub fn read_state(boot: &Path) -> Result<InstalledState, StateError> {
    let path = boot.join("state.json");
    match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|e| StateError::Damaged { path, what: e.to_string() }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(InstalledState::default()),
        Err(source) => Err(StateError::Io { action: "reading", path, source }),
    }
}

/// Remembers `state`, if it is news.
///
/// # Errors
/// [`StateError`].
pub fn write_state(boot: &Path, state: &InstalledState) -> Result<(), StateError> {
    let path = boot.join("state.json");
    let bytes =
        serde_json::to_vec(state).map_err(|e| StateError::Damaged { path: path.clone(), what: e.to_string() })?;
    if fs::read(&path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    replace(&path, &bytes)
}

/// Replaces a file: after a power cut it has either its old content or its new one.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<(), StateError> {
    replace_file(path, content, 0o600).map_err(|source| StateError::Io { action: "writing", path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_survives_and_damage_is_told() {
        let boot = tempfile::tempdir().unwrap();
        let boot = boot.path();
        assert_eq!(installed_slot(boot).unwrap(), None);
        write_active(boot, Slot::B).unwrap();
        assert_eq!(installed_slot(boot).unwrap(), Some(Slot::B));
        let mut state = read_state(boot).unwrap();
        state.accept(ScriptKind::Boot, 4);
        state.accept(ScriptKind::Boot, 3);
        state.accept(ScriptKind::Install, 1);
        write_state(boot, &state).unwrap();
        assert_eq!(read_state(boot).unwrap().accepted, [(ScriptKind::Boot, 4), (ScriptKind::Install, 1)]);
        for file in ["active", "state.json"] {
            fs::write(boot.join(file), "{").unwrap();
        }
        assert!(matches!(installed_slot(boot), Err(StateError::Damaged { .. })));
        assert!(matches!(read_state(boot), Err(StateError::Damaged { .. })));
    }
}
