//! What can go wrong with snapshots, exports and imports.

use std::{ffi::OsStr, io, os::unix::ffi::OsStrExt, path::PathBuf};

use orrery_image_store::ImportError;
use orrery_protocol::SnapshotName;
use rustix::io::Errno;

use crate::error::SliverError;

/// Why a snapshot was not taken, restored or moved. The sliver is as it was.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// What concerns the sliver as a whole.
    #[error(transparent)]
    Sliver(#[from] SliverError),
    /// There is none of that name.
    #[error("there is no snapshot `{0}`")]
    Missing(SnapshotName),
    /// There is one already.
    #[error("there is a snapshot `{0}` already: delete it, or choose another name")]
    Exists(SnapshotName),
    /// No more are kept.
    #[error("there are {0} snapshots, and no more are kept: delete one")]
    Full(usize),
    /// One thing at a time.
    #[error("another snapshot, restore, export or import of `{0}` is under way: try again when it has ended")]
    Busy(String),
    /// Others are served first.
    #[error("the node is busy with the snapshots of others: try again in a minute")]
    NodeBusy,
    /// The layer lies on another image.
    #[error("it lies on image {found}, but `{login}` on image {expected}: both must have begun with the same one")]
    OtherImage {
        /// The sliver.
        login: String,
        /// Its image.
        expected: String,
        /// The layer's.
        found: String,
    },
    /// The sliver's disk limit.
    #[error("the disk quota does not allow it, at {}: snapshots count, and so does what is being restored", path.display())]
    NoSpace {
        /// What was being written.
        path: PathBuf,
    },
    /// Something that a layer cannot hold, or must not.
    #[error("{}: {reason}", path.display())]
    Refused {
        /// Where, in the layer or the archive.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// What was read is no export, or not all of one.
    #[error("reading the export")]
    Reading(#[source] io::Error),
    /// Whoever reads the export does not any more.
    #[error("writing the export")]
    Writing(#[source] io::Error),
    /// A file or directory.
    #[error("{doing} {}", path.display())]
    Path {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// It was given up.
    #[error("it was not done in {} minutes, and given up", seconds / 60)]
    TooLong {
        /// What it was given.
        seconds: u64,
    },
}

impl From<ImportError> for SnapshotError {
    fn from(error: ImportError) -> Self {
        match error {
            ImportError::DiskFull { path } => Self::NoSpace { path },
            ImportError::Malformed { path, reason } | ImportError::Hostile { path, reason } => {
                Self::Refused { path, reason }
            }
            ImportError::Io { doing, path, source } => Self::Path { doing, path, source },
            ImportError::Reading(source) => Self::Reading(source),
            ImportError::TooLarge { .. } => refused(b"", "it is larger than any layer"),
            other => Self::Reading(io::Error::other(other)),
        }
    }
}

/// A path of a layer, for a message.
pub(crate) fn display(path: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(if path.is_empty() { b"/" } else { path }))
}

/// For a path in a layer, a refusal with its reason.
pub(crate) fn refused(path: &[u8], reason: &'static str) -> SnapshotError {
    SnapshotError::Refused { path: display(path), reason }
}

/// Adds what was attempted, on which path of a layer.
pub(crate) trait Within<T> {
    fn within(self, doing: &'static str, path: &[u8]) -> Result<T, SnapshotError>;
}

impl<T, E: Into<io::Error>> Within<T> for Result<T, E> {
    fn within(self, doing: &'static str, path: &[u8]) -> Result<T, SnapshotError> {
        self.map_err(|error| {
            let (path, source) = (display(path), error.into());
            match Errno::from_io_error(&source) {
                Some(Errno::NOSPC | Errno::DQUOT) => SnapshotError::NoSpace { path },
                _ => SnapshotError::Path { doing, path, source },
            }
        })
    }
}
