//! A verified node OS: what is given to the kernel, or unpacked beside it, is a sealed copy in memory that was hashed on its
//! way there. The disk may change afterwards as it likes.

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::FileExt,
    },
    path::{Path, PathBuf},
};

use orrery_init_api::{BOOT_ID_PARAMETER, ENTER, ENTERED_CMDLINE_PATH, FailureClass, NEW_ROOT, TRIAL_PARAMETER};
use orrery_installer::{Slot, VerifyError, copy_verified, slot_file};
use orrery_protocol::{ArtifactRef, Digest, ManifestError, ReleaseManifest, TrustRoot};
use orrery_sys::kexec;
use rustix::{
    fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create},
    mount::{MountFlags, UnmountFlags, mount, unmount},
};
use thiserror::Error;

use crate::{StageFailure, handover, unpack};

#[derive(Debug, Error)]
pub(crate) enum LoadError {
    #[error("the disk has no active slot: its installation was never completed; set the boot state to reinstall")]
    NoSlot,
    #[error(transparent)]
    State(orrery_installer::StateError),
    #[error("slot {slot} holds another release than the one on trial")]
    OtherRelease { slot: &'static str },
    #[error(
        "the node OS was started {times} times in a row and never said that it is healthy; waiting before the next time \
         ({wait} of {waits})"
    )]
    Unconfirmed { times: u32, wait: u32, waits: u32 },
    #[error("remembering what is about to be started")]
    Remember(#[source] orrery_installer::StateError),
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
    #[error("unpacking release {release} into memory")]
    Unpack { release: String, source: io::Error },
    #[error("the kernel refused release {release}; is kexec enabled, and the kernel built for this machine?")]
    Kexec { release: String, source: io::Error },
}

impl From<LoadError> for StageFailure {
    fn from(error: LoadError) -> Self {
        let class = match &error {
            LoadError::NoSlot => FailureClass::NotInstalled,
            // A file that is gone or says nothing was tampered with as much as one that changed, and is repaired alike.
            LoadError::State(_)
            | LoadError::OtherRelease { .. }
            | LoadError::Missing { .. }
            | LoadError::Manifest { .. }
            | LoadError::Tampered { .. } => FailureClass::Tampered,
            LoadError::Unconfirmed { .. } => FailureClass::Unhealthy,
            LoadError::Read { .. } | LoadError::Remember(_) => FailureClass::Io,
            LoadError::Memory { .. } | LoadError::Unpack { .. } => FailureClass::Hardware,
            LoadError::Handover(_) => FailureClass::Internal,
            LoadError::Kexec { .. } => FailureClass::Kexec,
        };
        Self::new(class, error)
    }
}

/// A manifest whose signatures were verified, with where it was found.
pub(crate) struct VerifiedManifest {
    pub(crate) manifest: ReleaseManifest,
    pub(crate) envelope: ArtifactRef,
    pub(crate) slot: Slot,
    boot: PathBuf,
}

/// An artifact in memory whose digest is the one that the manifest names, sealed against writing.
pub(crate) struct VerifiedFile(File);

/// Kernel and initramfs of one verified release. Nothing else can be given to the kernel.
pub(crate) struct VerifiedRelease {
    manifest: ReleaseManifest,
    slot: Slot,
    kernel: VerifiedFile,
    initramfs: VerifiedFile,
}

impl VerifiedManifest {
    /// Verifies the manifest in `slot` of the boot partition mounted at `boot`.
    pub(crate) fn open(boot: &Path, slot: Slot, trust: &TrustRoot) -> Result<Self, LoadError> {
        let path = slot_file(boot, slot, "manifest");
        let envelope = fs::read(&path).map_err(|e| reading(&path, e))?;
        let manifest =
            ReleaseManifest::open(&envelope, trust).map_err(|source| LoadError::Manifest { path, source })?;
        let envelope = ArtifactRef { sha256: Digest::of(&envelope), size: envelope.len() as u64 };
        Ok(Self { manifest, envelope, boot: boot.into(), slot })
    }

    /// Verifies all else, with `handover` behind the initramfs.
    pub(crate) fn read(self, handover: &[u8]) -> Result<VerifiedRelease, LoadError> {
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
    /// Gives it to the kernel; returns `<release> slot <a|b>`.
    pub(crate) fn load(&self, boot_id: &str, on_trial: bool) -> Result<String, LoadError> {
        let cmdline = self.cmdline(boot_id, on_trial)?;
        let cmdline = CString::new(cmdline).map_err(|e| LoadError::Handover(e.into()))?;
        let release = self.manifest.release.clone();
        match kexec::file_load(&self.kernel, &self.initramfs, &cmdline) {
            Ok(()) => Ok(format!("{release} slot {}", self.slot.as_str())),
            Err(source) => Err(LoadError::Kexec { release, source }),
        }
    }

    /// Unpacks it where PID 1 can enter it under the running kernel; returns `enter <release> slot <a|b>`, and which kernel
    /// stays. It takes a verified release, so that nothing else can stand there.
    pub(crate) fn unpack(&self, boot_id: &str, on_trial: bool) -> Result<String, LoadError> {
        let cmdline = self.cmdline(boot_id, on_trial)?;
        let failed = |source| LoadError::Unpack { release: self.manifest.release.clone(), source };
        self.unpack_at(Path::new(NEW_ROOT), &cmdline).map_err(failed)?;
        let running = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let brought = kernel_version(&self.kernel.0).unwrap_or_else(|| "another".to_owned());
        let (release, slot) = (&self.manifest.release, self.slot.as_str());
        Ok(format!("{ENTER} {release} slot {slot} under kernel {}, the release's own is {brought}", running.trim()))
    }

    fn unpack_at(&self, root: &Path, cmdline: &str) -> io::Result<()> {
        fs::create_dir_all(root)?;
        // What an earlier attempt left.
        while unmount(root, UnmountFlags::DETACH).is_ok() {}
        mount("tmpfs", root, "tmpfs", MountFlags::empty(), c"mode=0755")?;
        // The archive, then the handover behind it: both are in the sealed copy.
        let image = self.manifest.node_os().content.size;
        let mut copy = &self.initramfs.0;
        copy.seek(SeekFrom::Start(0))?;
        unpack::unpack(zstd::Decoder::new(copy.take(image))?, root)?;
        copy.seek(SeekFrom::Start(image.next_multiple_of(4)))?;
        unpack::unpack(copy, root)?;
        fs::write(root.join(ENTERED_CMDLINE_PATH.trim_start_matches('/')), cmdline)
    }

    fn cmdline(&self, boot_id: &str, on_trial: bool) -> Result<String, LoadError> {
        let mut cmdline = format!("{} {BOOT_ID_PARAMETER}={boot_id}", self.manifest.cmdline.trim());
        if on_trial {
            cmdline.push_str(&format!(" {TRIAL_PARAMETER}=1"));
        }
        handover::check_cmdline(&cmdline).map_err(LoadError::Handover)?;
        Ok(cmdline)
    }
}

/// The version that a bzImage says it is (Documentation/arch/x86/boot.rst, `kernel_version`).
fn kernel_version(kernel: &File) -> Option<String> {
    let mut pointer = [0; 2];
    kernel.read_exact_at(&mut pointer, 0x20e).ok()?;
    let mut text = [0; 64];
    let got = kernel.read_at(&mut text, u64::from(u16::from_le_bytes(pointer)) + 0x200).ok()?;
    let version = text.get(..got)?.split(|byte| matches!(byte, 0 | b' ')).next()?;
    let plain = !version.is_empty() && version.iter().all(u8::is_ascii_graphic);
    plain.then(|| String::from_utf8_lossy(version).into_owned())
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
    fn a_kernel_says_its_version() {
        let mut image = vec![0; 0x400];
        image[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        image[0x300..0x310].copy_from_slice(b"6.12.1 (a@b) #1\0");
        let mut file = tempfile::tempfile().unwrap();
        assert_eq!(kernel_version(&file), None);
        file.write_all(&image).unwrap();
        assert_eq!(kernel_version(&file).as_deref(), Some("6.12.1"));
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
