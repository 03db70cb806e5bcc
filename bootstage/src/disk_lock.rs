//! One process at a time at the installed disk's boot partition.
//!
//! The kernel refuses to mount a device for writing where it is mounted for reading, and an installation needs it for itself. Stages
//! wait for each other here; the reporter, which has something to keep now and then, goes away again if it is not its turn.

use std::{
    fs::File,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{FlockOperation, flock};

const LOCK_PATH: &str = "/run/orrery/disk.lock";
/// Whoever holds it longer than this hangs; then it protects nothing any more.
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);

/// The turn of whoever holds it; over when it is dropped, or when the process ends.
#[derive(Debug)]
pub struct Turn {
    _file: File,
}

/// Waits for a turn; none if somebody hangs on to it, and the disk is as free as it will get.
pub fn wait() -> Option<Turn> {
    wait_at(Path::new(LOCK_PATH), PATIENCE)
}

/// A turn, if it is free now.
pub(crate) fn try_now() -> Option<Turn> {
    wait_at(Path::new(LOCK_PATH), Duration::ZERO)
}

fn wait_at(path: &Path, patience: Duration) -> Option<Turn> {
    let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(path).ok()?;
    let end = Instant::now() + patience;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Some(Turn { _file: file }),
            Err(_) if Instant::now() >= end => return None,
            Err(_) => thread::sleep(POLL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let turn = wait_at(&path, Duration::ZERO);
        assert!(turn.is_some());
        assert!(wait_at(&path, Duration::ZERO).is_none());
        drop(turn);
        assert!(wait_at(&path, Duration::ZERO).is_some());
    }
}
