//! What can go wrong, with the path it went wrong at.

use std::{
    io,
    path::{Path, PathBuf},
};

use orrery_protocol::Digest;
use rustix::io::Errno;

use crate::object::OWNERS;

/// Why an image was not imported. No tree is left behind.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The archive could not be read or unpacked: the reader failed, or it is not a tar or zstd stream.
    #[error("reading the image")]
    Reading(#[source] io::Error),
    /// An entry that makes no sense, or that a store does not take.
    #[error("refusing image entry {}: {reason}", path.display())]
    Malformed {
        /// The entry's name.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// An entry that would be written outside the tree.
    #[error("refusing image entry {}: {reason}", path.display())]
    Hostile {
        /// The entry's name.
        path: PathBuf,
        /// What it tries.
        reason: &'static str,
    },
    /// An entry whose owner nobody in a sliver could be.
    #[error(
        "refusing image entry {}: it belongs to {whose} {id}, and slivers have users and groups 0 to {}; give it another owner, \
         in the system that the image is made of",
        path.display(), OWNERS - 1
    )]
    Owner {
        /// The entry's name.
        path: PathBuf,
        /// `user` or `group`.
        whose: &'static str,
        /// Its number.
        id: u32,
    },
    /// More than the caller or the store allows.
    #[error("the image has more than {limit} {of}")]
    TooLarge {
        /// How many are allowed.
        limit: u64,
        /// Of what.
        of: &'static str,
    },
    /// All was read, but it is not the archive that was asked for.
    #[error("the image has digest {found}, not {expected}")]
    WrongDigest {
        /// What the caller asked for.
        expected: Digest,
        /// What was read.
        found: Digest,
    },
    /// An object that came by its listing is another.
    #[error("{} came with digest {found}, the image's listing has {expected}", path.display())]
    WrongObject {
        /// The file's name in the image.
        path: PathBuf,
        /// What the listing has.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// An object went away while it was needed, with the last other image that had it.
    #[error("the object of {} is gone", path.display())]
    Gone {
        /// The file's name in the image.
        path: PathBuf,
    },
    /// No space, inodes or quota left on the file system.
    #[error("the disk is full, writing {}", path.display())]
    DiskFull {
        /// What was being written.
        path: PathBuf,
    },
    /// There is less space than the image takes and the rest of the node needs. Nothing was written.
    #[error("the disk has {} MiB left, and the image takes {} MiB more, beside {} MiB that are kept free", free >> 20, (needed >> 20) + 1, reserve >> 20)]
    NoRoom {
        /// What the image takes beside what is here, in bytes.
        needed: u64,
        /// What is kept free, in bytes.
        reserve: u64,
        /// What is left, in bytes.
        free: u64,
    },
    /// The file system failed otherwise.
    #[error("{doing} {}", path.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

/// Why the store could not be opened, listed, checked or changed.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {}", path.display())]
pub struct StoreError {
    /// What was attempted.
    pub doing: &'static str,
    /// On what.
    pub path: PathBuf,
    /// What happened.
    pub source: io::Error,
}

impl StoreError {
    /// For `map_err`.
    pub(crate) fn at<E: Into<io::Error>>(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(E) -> Self {
        move |source| Self { doing, path: path.as_ref().to_owned(), source: source.into() }
    }
}

impl From<StoreError> for ImportError {
    fn from(StoreError { doing, path, source }: StoreError) -> Self {
        match Errno::from_io_error(&source) {
            Some(Errno::NOSPC | Errno::DQUOT) => Self::DiskFull { path },
            _ => Self::Io { doing, path, source },
        }
    }
}
