//! Events that are not at central yet, kept on the boot partition: for a boot that has better luck with the network.

use std::{fs, path::Path};

use orrery_init_api::ROLE_ENV;
use orrery_protocol::{Event, EventBatch, NodeConfig, Outcome};

use crate::{
    StageFailure, disk_lock, disks, events,
    files::write_private,
    reporter::{Link, parse_lines},
};

const NAME: &str = "unsent.jsonl";
/// What is kept at most, in bytes; the oldest go first.
const MOST: usize = 1 << 20;
/// How long after its start a machine's disk may still appear, in seconds.
const DISK_PATIENCE: i64 = 60;

/// What the boot partition keeps for central.
#[derive(Default)]
pub(crate) struct Unsent {
    /// Lines of earlier boots that are not at central yet; none while the disk was not looked at.
    earlier: Option<Vec<u8>>,
    /// What the file on the disk holds, as far as it is known.
    on_disk: Vec<u8>,
}

impl Unsent {
    /// Sends what earlier boots kept.
    pub(crate) fn send(&mut self, config: &NodeConfig, link: &mut Link) -> Result<(), StageFailure> {
        self.read(config);
        let Some(lines) = &mut self.earlier else { return Ok(()) };
        while !lines.is_empty() {
            let (events, used) = parse_lines(lines);
            if used == 0 {
                // The power went while it was written, and it is no line.
                lines.clear();
                break;
            }
            if !events.is_empty() {
                link.post("/v1/node/events", &EventBatch { events })?;
            }
            lines.drain(..used);
        }
        Ok(())
    }

    /// Whether the disk is still to be looked at.
    pub(crate) fn is_unread(&self) -> bool {
        self.earlier.is_none()
    }

    /// Keeps `lines` of this boot, and what is left of earlier ones, or removes the file if there is nothing to keep. Not if the
    /// disk is in use: the next time will do.
    pub(crate) fn keep(&mut self, config: &NodeConfig, lines: &[u8]) {
        self.read(config);
        let Some(earlier) = &self.earlier else { return };
        let wanted = bounded([earlier, lines].concat());
        if wanted == self.on_disk {
            return;
        }
        let Some(_turn) = disk_lock::try_now() else { return };
        match disks::boot_aside(config) {
            Ok(boot) => match replace(boot.path(), &wanted) {
                Ok(()) => self.on_disk = wanted,
                Err(error) => eprintln!("keeping events that central does not have: {error:#}"),
            },
            Err(error) => eprintln!("keeping events that central does not have: {error}"),
        }
    }

    /// Looks at the disk, once it is there and free.
    fn read(&mut self, config: &NodeConfig) {
        if self.earlier.is_some() {
            return;
        }
        let Some(_turn) = disk_lock::try_now() else { return };
        match disks::boot_aside(config) {
            Ok(boot) => {
                self.on_disk = fs::read(boot.path().join(NAME)).unwrap_or_default();
                self.earlier = Some(self.on_disk.clone());
            }
            Err(_) if uptime() < DISK_PATIENCE => {}
            Err(_) => self.earlier = Some(Vec::new()),
        }
    }
}

fn uptime() -> i64 {
    rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec
}

fn replace(boot: &Path, lines: &[u8]) -> anyhow::Result<()> {
    let path = boot.join(NAME);
    match lines {
        [] => fs::remove_file(&path)
            .or_else(|e| if e.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(e.into()) }),
        _ => write_private(path, lines),
    }
}

/// The newest of `lines` that fit, behind an event that says how many did not.
fn bounded(lines: Vec<u8>) -> Vec<u8> {
    if lines.len() <= MOST {
        return lines;
    }
    // Room for the event about it.
    let cut = lines.len() - (MOST - 1024);
    let cut = lines[cut..].iter().position(|byte| *byte == b'\n').map_or(lines.len(), |end| cut + end + 1);
    let dropped = lines[..cut].iter().filter(|byte| **byte == b'\n').count();
    let message = format!("{dropped} older events were dropped: central was away for too long");
    let role = std::env::var(ROLE_ENV).unwrap_or_default();
    let first = parse_lines(&lines[cut..]).0.into_iter().next();
    let marker = match first {
        // Beside the oldest that is left, so that it stands where the others are missing.
        Some(event) => {
            Event { stage: "reporter".into(), outcome: Outcome::Info, class: None, message, duration_ms: 0, ..event }
        }
        None => events::now("reporter", Outcome::Info, None, message, 0, role),
    };
    [marker.to_json_line(), lines[cut..].to_vec()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_go_and_that_is_said() {
        let line = |number: u64| {
            events::now("time", Outcome::Ok, None, format!("event {number}"), number, "boot".into()).to_json_line()
        };
        let few = [line(1), line(2)].concat();
        assert_eq!(bounded(few.clone()), few);
        let mut many: Vec<u8> = Vec::new();
        let mut count = 0;
        while many.len() <= MOST + 10_000 {
            count += 1;
            many.extend(line(count));
        }
        let kept = bounded(many);
        assert!(kept.len() <= MOST);
        let events: Vec<Event> =
            kept.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_slice(l).unwrap()).collect();
        let dropped = count - (events.len() as u64 - 1);
        assert!(events[0].message.starts_with(&format!("{dropped} older events")), "{}", events[0].message);
        assert_eq!(events[1].duration_ms, dropped + 1);
        assert_eq!(events.last().unwrap().duration_ms, count);
        // Dropping again says so again, and stays within bounds.
        assert!(bounded([kept, line(7).repeat(5000)].concat()).len() <= MOST);
    }

    #[test]
    fn nothing_to_keep_leaves_no_file() {
        let boot = tempfile::tempdir().unwrap();
        for lines in [b"".as_slice(), b"one\n", b"two\n", b"", b""] {
            replace(boot.path(), lines).unwrap();
            assert_eq!(fs::read(boot.path().join(NAME)).unwrap_or_default(), lines);
        }
        assert_eq!(fs::read_dir(boot.path()).unwrap().count(), 0);
    }
}
