//! The event log.

use std::{
    fs::OpenOptions,
    io::Write,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::PathBuf,
};

/// The log stands in memory. A node that restarts a broken service for a year without reaching central would fill it; with
/// this much in it only the console tells, until the reporter has sent it and given its memory back. That leaves a hole:
/// what counts is not the log's length but what it occupies.
const MAX_LOG: u64 = 16 * 1024 * 1024;

/// Appends lines; stages append to the same file.
pub(super) struct EventLog {
    path: PathBuf,
}

impl EventLog {
    pub(super) fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Appends in one write, so that lines of several processes do not mix. A log that cannot be written must not stop
    /// a boot: the console has told already.
    pub(super) fn append(&self, line: &[u8]) {
        let log = OpenOptions::new().append(true).create(true).mode(0o600).open(&self.path);
        if let Ok(mut log) = log
            && log.metadata().is_ok_and(|metadata| metadata.blocks() * 512 < MAX_LOG)
        {
            let _ = log.write(line);
        }
    }
}
