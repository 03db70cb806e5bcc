//! Telling central something along the way: lines in the event log that the reporter sends.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    time::UNIX_EPOCH,
};

use orrery_init_api::{EVENTS_PATH, FailureClass, ROLE_ENV, Stage};
use orrery_protocol::{Event, Outcome};

/// The log stands in memory. With this much in it that was not sent, only the console tells; PID 1 keeps the same bound.
const MAX_LOG: u64 = 16 * 1024 * 1024;

/// Appends an event of `stage`. An event that cannot be written is shown instead: it must not fail the stage.
pub fn tell(stage: Stage, class: Option<FailureClass>, message: impl Into<String>) {
    let message = message.into();
    println!("{message}");
    let outcome = if class.is_some() { Outcome::Failed } else { Outcome::Info };
    append(stage.as_str(), outcome, class.map(FailureClass::as_str), message, 0);
}

/// Appends an event of any `stage` or service, which took `duration_ms` milliseconds.
pub fn append(stage: &str, outcome: Outcome, class: Option<&str>, message: String, duration_ms: u64) {
    let role = std::env::var(ROLE_ENV).unwrap_or_else(|_| "boot".into());
    let event = now(stage, outcome, class, message, duration_ms, role);
    if let Err(error) = append_line(Path::new(EVENTS_PATH), &event.to_json_line(), MAX_LOG) {
        eprintln!("appending to {EVENTS_PATH}: {error}");
    }
}

/// An event of this moment.
pub(crate) fn now(
    stage: &str,
    outcome: Outcome,
    class: Option<&str>,
    message: String,
    duration_ms: u64,
    role: String,
) -> Event {
    let uptime = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Event {
        boot_id: crate::boot_id().unwrap_or_default(),
        at_ms: uptime.tv_sec.unsigned_abs() * 1000 + uptime.tv_nsec.unsigned_abs() / 1_000_000,
        wall: UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs()),
        role,
        stage: stage.into(),
        outcome,
        class: class.map(Into::into),
        message,
        duration_ms,
    }
}

/// Appends in one write, so that lines of several processes do not mix, unless the log occupies `most` bytes. Its length
/// says nothing about that: the reporter gives back the memory of what was sent, and leaves a hole.
fn append_line(path: &Path, line: &[u8], most: u64) -> io::Result<()> {
    let mut log = File::options().append(true).create(true).mode(0o600).open(path)?;
    if log.metadata()?.blocks() * 512 >= most {
        return Err(io::Error::new(io::ErrorKind::StorageFull, "the log is full until central can be reached"));
    }
    log.write_all(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_takes_nothing_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        append_line(&path, b"one\n", 4096).unwrap();
        std::fs::write(&path, vec![b'x'; 8192]).unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
        assert_eq!(append_line(&path, b"two\n", 4096).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 8192);
    }
}
