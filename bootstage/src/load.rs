//! Verifying the installed node OS and giving it to the kernel. What is executed is a sealed copy in memory that was hashed on
//! its way there: the disk may change afterwards as it likes.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use orrery_init_api::{BOOT_ID_PARAMETER, FailureClass, Stage};
use orrery_installer::{Slot, VerifyError, copy_verified, installed_slot, slot_file};
use orrery_protocol::{ArtifactRef, Digest, ManifestError, NodeConfig, ReleaseManifest, ScriptKind, TrustRoot};
use orrery_sys::kexec;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use thiserror::Error;

use crate::{
    StageFailure, contact, disks, events,
    handover::{self, Handover},
    trust, verify,
};

#[derive(Debug, Error)]
enum LoadError {
    #[error("the disk has no active slot: its installation was never completed; set the boot state to reinstall")]
    NoSlot,
    #[error(transparent)]
    State(orrery_installer::StateError),
    #[error("{path} is missing")]
    Missing { path: PathBuf },
    #[error("reading {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is not what was signed")]
    Manifest { path: PathBuf, source: ManifestError },
    #[error("{path} is not what was signed")]
    Tampered { path: PathBuf, source: VerifyError },
    #[error("copying {path} into memory")]
    Memory { path: PathBuf, source: io::Error },
    #[error("preparing the handover")]
    Handover(#[source] anyhow::Error),
    #[error("the kernel refused release {release}; is kexec enabled, and the kernel built for this machine?")]
    Kexec { release: String, source: io::Error },
}

impl From<LoadError> for StageFailure {
    fn from(error: LoadError) -> Self {
        let class = match &error {
            LoadError::NoSlot => FailureClass::NotInstalled,
            // A file that is gone or says nothing was tampered with as much as one that changed, and is repaired alike.
            LoadError::State(_)
            | LoadError::Missing { .. }
            | LoadError::Manifest { .. }
            | LoadError::Tampered { .. } => FailureClass::Tampered,
            LoadError::Read { .. } => FailureClass::Io,
            LoadError::Memory { .. } => FailureClass::Hardware,
            LoadError::Handover(_) => FailureClass::Internal,
            LoadError::Kexec { .. } => FailureClass::Kexec,
        };
        Self::new(class, error)
    }
}

/// A manifest whose signatures were verified, with where it was found.
struct VerifiedManifest {
    manifest: ReleaseManifest,
    envelope: ArtifactRef,
    boot: PathBuf,
    slot: Slot,
}

/// An artifact in memory whose digest is the one that the manifest names, sealed against writing.
struct VerifiedFile(File);

/// Kernel and initramfs of one verified release. Nothing else can be given to the kernel.
struct VerifiedRelease {
    manifest: ReleaseManifest,
    slot: Slot,
    kernel: VerifiedFile,
    initramfs: VerifiedFile,
}

/// Verifies and loads the active slot; returns `<release> slot <a|b>`.
///
/// # Errors
/// Nothing is installed, something of it is not what was signed, or the kernel refused it.
pub fn run(config: &NodeConfig) -> Result<String, StageFailure> {
    disks::wait_for_installed();
    let boot = disks::mount_boot(config, true)?;
    let manifest = VerifiedManifest::open(boot.path(), &trust::current(config).trust)?;
    note_other_release(config, &manifest);
    let boot_id = crate::boot_id().map_err(LoadError::Handover)?;
    let handover = Handover {
        config: trust::obeying(config),
        boot_id: boot_id.clone(),
        medium_version: handover::image_version(),
        slot: manifest.slot.as_str().into(),
        release: manifest.manifest.clone(),
        offline: contact::offline(),
    };
    let handover = handover.to_cpio().map_err(LoadError::Handover)?;
    let release = manifest.read(&handover)?;
    drop(boot);
    Ok(release.load(&boot_id)?)
}

/// The script names the release to repair from. That another one is installed is worth knowing, and no reason not to boot it:
/// it is signed, and updates are not the medium's business.
fn note_other_release(config: &NodeConfig, installed: &VerifiedManifest) {
    let named = verify::open(config).ok().and_then(|s| s.release_for(ScriptKind::Boot).ok());
    if named.is_some_and(|named| named != installed.envelope) {
        let text = format!("release {} is installed, the boot script names another", installed.manifest.release);
        events::tell(Stage::Load, None, text);
    }
}

impl VerifiedManifest {
    fn open(boot: &Path, trust: &TrustRoot) -> Result<Self, LoadError> {
        let slot = installed_slot(boot).map_err(LoadError::State)?.ok_or(LoadError::NoSlot)?;
        let path = slot_file(boot, slot, "manifest");
        let envelope = fs::read(&path).map_err(|e| reading(&path, e))?;
        let manifest =
            ReleaseManifest::open(&envelope, trust).map_err(|source| LoadError::Manifest { path, source })?;
        let envelope = ArtifactRef { sha256: Digest::of(&envelope), size: envelope.len() as u64 };
        Ok(Self { manifest, envelope, boot: boot.into(), slot })
    }

    fn read(self, handover: &[u8]) -> Result<VerifiedRelease, LoadError> {
        let file = |name| slot_file(&self.boot, self.slot, name);
        let kernel = VerifiedFile::read(&file("kernel"), self.manifest.kernel().content, b"")?;
        let initramfs = VerifiedFile::read(&file("nodeos"), self.manifest.node_os().content, handover)?;
        Ok(VerifiedRelease { manifest: self.manifest, slot: self.slot, kernel, initramfs })
    }
}

impl VerifiedFile {
    /// Copies the file at `path` into memory, proves that it is `expected`, and puts `more` behind it.
    fn read(path: &Path, expected: ArtifactRef, more: &[u8]) -> Result<Self, LoadError> {
        let memory = |source| LoadError::Memory { path: path.into(), source };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut copy = File::from(memfd_create("verified", flags).map_err(|e| memory(e.into()))?);
        let source = File::open(path).map_err(|e| reading(path, e))?;
        copy_verified(source, expected, |chunk| copy.write_all(chunk), |_| {}).map_err(|error| match error {
            VerifyError::Read(source) => LoadError::Read { path: path.into(), source },
            VerifyError::Write(source) => memory(source),
            source @ VerifyError::Mismatch(_) => LoadError::Tampered { path: path.into(), source },
        })?;
        if !more.is_empty() {
            // Archives of an initramfs start at multiples of four; the kernel skips zeros between them.
            let padding = (expected.size.next_multiple_of(4) - expected.size) as usize;
            copy.write_all(&[0; 4][..padding]).map_err(memory)?;
            copy.write_all(more).map_err(memory)?;
        }
        let seals = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&copy, seals).map_err(|e| memory(e.into()))?;
        Ok(Self(copy))
    }
}

impl AsFd for VerifiedFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl VerifiedRelease {
    fn load(self, boot_id: &str) -> Result<String, LoadError> {
        let cmdline = format!("{} {BOOT_ID_PARAMETER}={boot_id}", self.manifest.cmdline.trim());
        handover::check_cmdline(&cmdline).map_err(LoadError::Handover)?;
        let cmdline = CString::new(cmdline).map_err(|e| LoadError::Handover(e.into()))?;
        let release = self.manifest.release;
        match kexec::file_load(&self.kernel, &self.initramfs, &cmdline) {
            Ok(()) => Ok(format!("{release} slot {}", self.slot.as_str())),
            Err(source) => Err(LoadError::Kexec { release, source }),
        }
    }
}

fn reading(path: &Path, source: io::Error) -> LoadError {
    let path = path.into();
    match source.kind() {
        io::ErrorKind::NotFound => LoadError::Missing { path },
        _ => LoadError::Read { path, source },
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    fn check(content: &[u8], named: &[u8], expect: Result<&[u8], FailureClass>) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        let expected = ArtifactRef { sha256: Digest::of(named), size: named.len() as u64 };
        let result = VerifiedFile::read(file.path(), expected, b"more").map_err(|e| StageFailure::from(e).class);
        let result = result.map(|VerifiedFile(mut copy)| {
            assert!(copy.write_all(b"x").is_err());
            copy.rewind().unwrap();
            let mut bytes = Vec::new();
            copy.read_to_end(&mut bytes).unwrap();
            bytes
        });
        assert_eq!(result.as_deref().map_err(|class| *class), expect);
    }

    #[test]
    fn only_what_was_signed_gets_into_memory() {
        check(b"hello", b"hello", Ok(b"hello\0\0\0more"));
        check(b"jello", b"hello", Err(FailureClass::Tampered));
        check(b"hell", b"hello", Err(FailureClass::Tampered));
        check(b"hello!", b"hello", Err(FailureClass::Tampered));
        let named = ArtifactRef { sha256: Digest::of(b"x"), size: 1 };
        let gone = VerifiedFile::read(Path::new("/nonexistent"), named, b"");
        assert!(matches!(gone, Err(LoadError::Missing { .. })));
    }
}
