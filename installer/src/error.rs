//! What can go wrong while installing.

use std::{io, path::PathBuf};

use orrery_protocol::{ChunkIndexError, ManifestError, Mismatch, Waiver};
use thiserror::Error;

use crate::{
    choose::ChooseError, hardware::Shortfalls, installed::StateError, linux::MountError, source::TransferError,
};

/// A failed installation or repair.
#[derive(Debug, Error)]
pub enum InstallError {
    /// No disk to install on.
    #[error(transparent)]
    Choose(#[from] ChooseError),
    /// The release was not signed by those who may.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The manifest is longer than one may be.
    #[error("the release manifest claims {0} bytes")]
    ManifestTooLong(u64),
    /// The machine is less than the release needs.
    #[error("{0}; the waiver `{waiver}` lifts this", waiver = Waiver::MinimumHardware)]
    Hardware(Shortfalls),
    /// An artifact's chunk index makes no sense, though it is the one that was signed.
    #[error("the release names an unusable chunk index of {name}: {error}")]
    Index {
        /// The artifact.
        name: String,
        /// What is wrong.
        error: ChunkIndexError,
    },
    /// An artifact's chunk index is longer than one may be.
    #[error("the chunk index of {name} claims {size} bytes")]
    IndexTooLong {
        /// The artifact.
        name: String,
        /// What is claimed, in bytes.
        size: u64,
    },
    /// An artifact did not arrive, whatever was tried.
    #[error("downloading {name}: {source}")]
    Transfer {
        /// The artifact.
        name: String,
        /// The last failure.
        source: TransferError,
    },
    /// What arrived is something else, again and again.
    #[error("downloading {name}: it {mismatch}; the server's copy does not match the signed manifest")]
    Mismatch {
        /// The artifact.
        name: String,
        /// What differs.
        mismatch: Mismatch,
    },
    /// No space left.
    #[error("writing {path}: no space left on the disk")]
    DiskFull {
        /// The file.
        path: PathBuf,
    },
    /// A file or device.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The partition table.
    #[error("partitioning {path}: {source}")]
    Partition {
        /// The disk.
        path: PathBuf,
        /// Why.
        source: gptman::Error,
    },
    /// The file system.
    #[error("formatting {path}: {message}")]
    Format {
        /// The partition.
        path: PathBuf,
        /// What mke2fs said.
        message: String,
    },
    /// Mounting.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// What is remembered on the boot partition.
    #[error(transparent)]
    State(StateError),
}

impl From<StateError> for InstallError {
    fn from(error: StateError) -> Self {
        match error {
            StateError::Io { path, source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Self::DiskFull { path }
            }
            error => Self::State(error),
        }
    }
}

impl InstallError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        if source.kind() == io::ErrorKind::StorageFull {
            return Self::DiskFull { path };
        }
        Self::Io { action, path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_boot_partition_is_a_full_disk() {
        let state = |kind: io::ErrorKind| StateError::Io { action: "writing", path: "/b".into(), source: kind.into() };
        assert!(matches!(state(io::ErrorKind::StorageFull).into(), InstallError::DiskFull { .. }));
        assert!(matches!(state(io::ErrorKind::NotFound).into(), InstallError::State(_)));
    }
}
