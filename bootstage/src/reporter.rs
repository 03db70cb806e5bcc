//! Carrying the event log to central: from the first network on, oldest first, nothing twice and nothing lost
//! while this boot lasts.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::PathBuf,
    time::{Duration, Instant},
};

use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use orrery_init_api::{EVENTS_PATH, RUN_DIR};
use orrery_protocol::{Event, EventBatch, NodeConfig};
use orrery_transport::{Client, Method, TransportError};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{FallocateFlags, fallocate, inotify},
    time::Timespec,
};

use crate::{StageFailure, client, files::write_private};

/// Events of one request.
const BATCH: usize = 100;
/// What was sent of the log is kept for people, up to this many bytes; then its memory is given back.
const KEPT: u64 = 4 * 1024 * 1024;
/// Bytes read of the log at a time; a line is at most 16 KiB.
const CHUNK: u64 = 256 * 1024;
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// How long the last events may take once the machine is about to go on.
const FLUSH_DEADLINE: Duration = Duration::from_secs(4);

/// A descriptor that becomes readable when this process is told to end. Call it before any thread is started: the
/// signal is blocked from then on.
///
/// # Errors
/// The kernel refuses.
pub fn stop_on_sigterm() -> Result<SignalFd, StageFailure> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGTERM);
    mask.thread_block()
        .and_then(|()| SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC))
        .map_err(|e| StageFailure::new(orrery_init_api::FailureClass::Internal, e))
}

/// Sends events until `stop` becomes readable, then what is left, and returns.
///
/// # Errors
/// The log cannot be watched. Being unable to reach central is no error: it is tried again for ever.
pub fn run(config: &NodeConfig, stop: impl rustix::fd::AsFd) -> Result<(), StageFailure> {
    let internal = |e: io::Error| StageFailure::new(orrery_init_api::FailureClass::Internal, e);
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
        .map_err(|e| internal(e.into()))?;
    File::options().append(true).create(true).open(EVENTS_PATH).map_err(internal)?;
    inotify::add_watch(&watch, EVENTS_PATH, inotify::WatchFlags::MODIFY).map_err(|e| internal(e.into()))?;

    let mut link = Link { config, client: None, url: 0 };
    let mut log = Log::open();
    let mut pause = FIRST_RETRY;
    loop {
        let wait = match log.send(&mut link) {
            Ok(()) => {
                pause = FIRST_RETRY;
                None
            }
            Err(error) => {
                eprintln!("reporting to central: {error}");
                pause = (pause * 2).min(LONGEST_RETRY);
                Some(pause)
            }
        };
        let mut descriptors = [PollFd::new(&stop, PollFlags::IN), PollFd::new(&watch, PollFlags::IN)];
        // After a failure only time helps: further events would only hammer a central that is down.
        let watched = if wait.is_some() { &mut descriptors[..1] } else { &mut descriptors[..] };
        let timeout = wait.map(|d| Timespec { tv_sec: d.as_secs().cast_signed(), tv_nsec: d.subsec_nanos().into() });
        match poll(watched, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => (),
            Err(error) => return Err(internal(error.into())),
        }
        if !descriptors[0].revents().is_empty() {
            flush(&mut log, &mut link);
            return Ok(());
        }
        drain(&watch);
    }
}

fn flush(log: &mut Log, link: &mut Link<'_>) {
    let end = Instant::now() + FLUSH_DEADLINE;
    while Instant::now() < end {
        if log.send(link).is_ok() {
            return;
        }
        std::thread::sleep(FIRST_RETRY);
    }
}

fn drain(watch: &impl rustix::fd::AsFd) {
    let mut buffer = [0; 4096];
    while rustix::io::read(watch, &mut buffer).is_ok_and(|got| got > 0) {}
}

/// The connection, made when it is first needed and again after it failed, to the next server then.
struct Link<'a> {
    config: &'a NodeConfig,
    client: Option<Client>,
    url: usize,
}

impl Link<'_> {
    fn post(&mut self, batch: &EventBatch) -> Result<(), StageFailure> {
        if self.client.is_none() {
            let urls = &self.config.central.urls;
            self.client = Some(client(self.config, &urls[self.url % urls.len()])?);
        }
        let Some(client) = &self.client else { return Ok(()) };
        match client.send(Method::POST, "/v1/node/events", batch) {
            // Events that central does not take now it will not take later.
            Err(error @ TransportError::Refused { status: 400..=499, .. }) => {
                eprintln!("central does not take events: {error}");
                Ok(())
            }
            Err(error) => {
                self.client = None;
                self.url += 1;
                Err(error.into())
            }
            Ok(()) => Ok(()),
        }
    }
}

/// The event log and how far it was sent. The position outlives a crash of this process.
struct Log {
    position: u64,
    /// Up to where its memory was given back.
    freed: u64,
}

impl Log {
    fn position_path() -> PathBuf {
        PathBuf::from(RUN_DIR).join("events.sent")
    }

    fn open() -> Self {
        let text = std::fs::read_to_string(Self::position_path()).unwrap_or_default();
        Self { position: text.trim().parse().unwrap_or(0), freed: 0 }
    }

    /// Sends everything that is in the log.
    fn send(&mut self, link: &mut Link<'_>) -> Result<(), StageFailure> {
        loop {
            let (batch, next) =
                self.next_batch().map_err(|e| StageFailure::new(orrery_init_api::FailureClass::Io, e))?;
            if next == self.position {
                return Ok(());
            }
            if !batch.events.is_empty() {
                link.post(&batch)?;
            }
            self.position = next;
            match write_private(Self::position_path(), next.to_string().as_bytes()) {
                Ok(()) => self.free(),
                Err(error) => eprintln!("{error:#}"),
            }
        }
    }

    /// Gives the memory of what was sent back, once that is much. A hole needs no agreement with those who append: the
    /// end of the log stays where it is, and so does every position in it.
    fn free(&mut self) {
        if self.position - self.freed > KEPT {
            let freed = File::options().write(true).open(EVENTS_PATH).and_then(|log| punch(&log, self.position));
            if let Err(error) = freed {
                eprintln!("giving back the memory of {EVENTS_PATH}: {error}");
            }
            self.freed = self.position;
        }
    }

    /// The next whole lines, and the position behind them.
    fn next_batch(&self) -> io::Result<(EventBatch, u64)> {
        let mut file = File::open(EVENTS_PATH)?;
        file.seek(SeekFrom::Start(self.position))?;
        let mut bytes = Vec::new();
        file.take(CHUNK).read_to_end(&mut bytes)?;
        let (events, used) = parse_lines(&bytes);
        Ok((EventBatch { events }, self.position + used as u64))
    }
}

/// Makes the first `length` bytes a hole.
fn punch(log: &File, length: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(log, flags, 0, length)?)
}

/// Events of up to [`BATCH`] whole lines, and how many bytes those have. A line that is no event is passed over.
fn parse_lines(bytes: &[u8]) -> (Vec<Event>, usize) {
    let mut used = 0;
    let mut events = Vec::new();
    for line in bytes.split_inclusive(|b| *b == b'\n').take(BATCH) {
        if !line.ends_with(b"\n") {
            break;
        }
        used += line.len();
        events.extend(serde_json::from_slice::<Event>(line));
    }
    (events, used)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hole_frees_what_was_sent_and_moves_nothing() {
        use std::os::unix::fs::{FileExt, MetadataExt};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut content = vec![b'x'; 1 << 20];
        content.extend(b"unsent");
        std::fs::write(&path, &content).unwrap();
        let log = File::options().read(true).write(true).open(&path).unwrap();
        log.sync_all().unwrap();
        punch(&log, 1 << 20).unwrap();
        let mut rest = [0; 6];
        log.read_exact_at(&mut rest, 1 << 20).unwrap();
        assert_eq!(&rest, b"unsent");
        let metadata = log.metadata().unwrap();
        assert_eq!(metadata.len(), content.len() as u64);
        assert!(metadata.blocks() * 512 < 64 * 1024, "{} blocks", metadata.blocks());
    }

    #[test]
    fn only_whole_lines_are_taken() {
        let event = Event {
            boot_id: "b".into(),
            at_ms: 1,
            wall: 2,
            role: "boot".into(),
            stage: "time".into(),
            outcome: orrery_protocol::Outcome::Ok,
            class: None,
            message: "m".into(),
            duration_ms: 3,
        };
        let line = event.to_json_line();
        let check = |bytes: &[u8], events: usize, used: usize| {
            let (got, got_used) = parse_lines(bytes);
            assert_eq!((got.len(), got_used), (events, used));
        };
        check(b"", 0, 0);
        check(&line, 1, line.len());
        check(&line[..line.len() - 1], 0, 0);
        let mut two = line.clone();
        two.extend(b"garbage\n");
        two.extend(&line[..5]);
        check(&two, 1, line.len() + 8);
        let many = line.repeat(BATCH + 5);
        check(&many, BATCH, line.len() * BATCH);
    }
}
