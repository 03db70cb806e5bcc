//! What can go wrong with a sliver.

use std::{io, path::PathBuf};

use orrery_protocol::SliceName;

/// Why something could not be done to a sliver.
#[derive(Debug, thiserror::Error)]
pub enum SliverError {
    /// There is none of that name.
    #[error("there is no sliver `{0}` on this node")]
    Unknown(String),
    /// There is another one of this name.
    #[error("sliver `{0}` exists already: it is another one, or was made from another image")]
    Exists(String),
    /// It is not to run.
    #[error("slice {slice} is suspended: {reason}")]
    Suspended {
        /// Whose it is.
        slice: SliceName,
        /// Why.
        reason: String,
    },
    /// It is not to start now.
    #[error("sliver of {slice} is being copied, and stands still: try again in a moment")]
    HeldStill {
        /// Whose it is.
        slice: SliceName,
    },
    /// Every range of identities is taken.
    #[error("no range of user identities is free")]
    Full,
    /// A file or directory of the sliver's.
    #[error("{doing} {path}")]
    Path {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The record cannot be understood.
    #[error("reading the record {path}")]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        source: serde_json::Error,
    },
    /// The disk limit could not be set.
    #[error("limiting the disk space of `{login}` (is the data partition mounted with project quotas?)")]
    Quota {
        /// The sliver.
        login: String,
        /// What happened.
        source: io::Error,
    },
    /// Processes were killed and did not end: the kernel waits for something on their behalf, most likely a file system in user space.
    #[error(
        "processes in {} do not end although they were killed; until they do, or the node starts over, nothing runs there",
        .0.display()
    )]
    Unending(PathBuf),
    /// Limits of single processes could not be set.
    #[error("limiting the processes of `{login}`")]
    Processes {
        /// The sliver.
        login: String,
        /// What happened.
        source: io::Error,
    },
    /// The helper that starts a sliver failed.
    #[error("starting `{login}`: {message}")]
    Start {
        /// The sliver.
        login: String,
        /// What the helper said.
        message: String,
    },
    /// The way into a sliver failed.
    #[error("entering `{login}`: {message}")]
    Enter {
        /// The sliver.
        login: String,
        /// What was said on it.
        message: String,
    },
    /// Nobody says what the service is.
    #[error("the image of `{0}` does not say how it is run; give the service a command")]
    NoCommand(String),
    /// A helper could not be run at all.
    #[error("running a helper")]
    Helper(#[source] io::Error),
}

/// Adds what was attempted, and on what, to an I/O error.
pub(crate) trait At<T> {
    fn at(self, doing: &'static str, path: impl Into<PathBuf>) -> Result<T, SliverError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, doing: &'static str, path: impl Into<PathBuf>) -> Result<T, SliverError> {
        self.map_err(|source| SliverError::Path { doing, path: path.into(), source: source.into() })
    }
}
