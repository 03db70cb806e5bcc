//! Carrying events and logs to central: from the first network on, oldest first, nothing twice and nothing lost. What an earlier
//! boot could not send or left behind goes first.

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
use orrery_init_api::{EVENTS_PATH, ROLE_ENV, RUN_DIR, Role};
use orrery_protocol::{Event, EventBatch, NodeConfig};
use orrery_transport::{Client, Method, TransportError};
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{FallocateFlags, fallocate, inotify},
    time::Timespec,
};
use serde::Serialize;

use crate::{
    StageFailure, client, disk_lock, disks,
    files::{node_config, write_private},
    kernel_log::KernelLog,
    previous::Previous,
    unsent::Unsent,
};

/// Events of one request.
const BATCH: usize = 100;
/// What was sent of the log is kept for people, up to this many bytes; then its memory is given back.
const KEPT: u64 = 4 * 1024 * 1024;
/// Bytes read of the log at a time; a line is at most 16 KiB.
const CHUNK: u64 = 256 * 1024;
/// Bytes of the log that may wait on the disk; somewhat more than are kept there.
const UNSENT: u64 = 4 * 1024 * 1024;
/// Lines of the kernel wait so long for others: each is a request otherwise.
const LOG_PERIOD: Duration = Duration::from_secs(1);
/// How often to look whether the disk is there.
const DISK_PERIOD: Duration = Duration::from_secs(2);
/// How often the node OS lets the disk know how much time has passed.
const REMEMBER_PERIOD: Duration = Duration::from_secs(3600);
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

/// Sends events and logs until `stop` becomes readable, then what is left, and returns. Events that cannot be sent are kept on
/// the installed disk, if there is one, and sent by a later boot.
///
/// # Errors
/// The log cannot be watched. Being unable to reach central is no error: it is tried again for ever.
pub fn run(config: &NodeConfig, stop: impl rustix::fd::AsFd) -> Result<(), StageFailure> {
    let internal = |e: io::Error| StageFailure::new(orrery_init_api::FailureClass::Internal, e);
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
        .map_err(|e| internal(e.into()))?;
    File::options().append(true).create(true).open(EVENTS_PATH).map_err(internal)?;
    inotify::add_watch(&watch, EVENTS_PATH, inotify::WatchFlags::MODIFY).map_err(|e| internal(e.into()))?;

    let mut link = Link { config: config.clone(), client: None, url: 0 };
    let mut work = Work::open();
    let mut pause = FIRST_RETRY;
    loop {
        let wait = match work.send(&mut link) {
            Ok(wait) => {
                pause = FIRST_RETRY;
                wait
            }
            Err(error) => {
                eprintln!("reporting to central: {error}");
                pause = (pause * 2).min(LONGEST_RETRY);
                Wait { until: Some(pause), events: false, kernel: false }
            }
        };
        work.keep(&link.config);
        let mut descriptors = vec![PollFd::new(&stop, PollFlags::IN)];
        // After a failure only time helps: further events would only hammer a central that is down.
        descriptors.extend(wait.events.then(|| PollFd::new(&watch, PollFlags::IN)));
        let kernel = work.kernel.as_ref().filter(|_| wait.kernel);
        descriptors.extend(kernel.map(|kernel| PollFd::new(kernel, PollFlags::IN)));
        let span = |d: Duration| Timespec { tv_sec: d.as_secs().cast_signed(), tv_nsec: d.subsec_nanos().into() };
        match poll(&mut descriptors, wait.until.map(span).as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => (),
            Err(error) => return Err(internal(error.into())),
        }
        if !descriptors[0].revents().is_empty() {
            flush(&mut work, &mut link);
            return Ok(());
        }
        drain(&watch);
    }
}

fn flush(work: &mut Work, link: &mut Link) {
    let end = Instant::now() + FLUSH_DEADLINE;
    while Instant::now() < end && work.send(link).is_err() {
        std::thread::sleep(FIRST_RETRY);
    }
    work.keep(&link.config);
}

fn drain(watch: &impl rustix::fd::AsFd) {
    let mut buffer = [0; 4096];
    while rustix::io::read(watch, &mut buffer).is_ok_and(|got| got > 0) {}
}

/// What to wait for before there is more to do.
struct Wait {
    /// At most so long.
    until: Option<Duration>,
    /// For an event.
    events: bool,
    /// For a line of the kernel.
    kernel: bool,
}

/// Everything that is to be sent.
struct Work {
    earlier: Unsent,
    previous: Previous,
    log: Log,
    kernel: Option<KernelLog>,
    /// When lines of the kernel were last sent.
    logged: Instant,
    /// When the disk was last told how much time has passed; in the node OS alone, which runs for years.
    remembered: Option<Instant>,
}

impl Work {
    fn open() -> Self {
        let kernel = KernelLog::open().inspect_err(|error| eprintln!("reading the kernel's log: {error}")).ok();
        let now = Instant::now();
        let is_node = std::env::var(ROLE_ENV).is_ok_and(|role| role == Role::Node.as_str());
        Self {
            earlier: Unsent::default(),
            previous: Previous::Unread,
            log: Log::open(),
            kernel,
            logged: now,
            remembered: is_node.then_some(now),
        }
    }

    /// Sends everything, oldest first.
    fn send(&mut self, link: &mut Link) -> Result<Wait, StageFailure> {
        let config = link.config.clone();
        self.earlier.send(&config, link)?;
        self.previous.send(link)?;
        self.log.send(link)?;
        if let Some(kernel) = &mut self.kernel
            && kernel.send(link)?
        {
            self.logged = Instant::now();
        }
        let quiet = LOG_PERIOD.saturating_sub(self.logged.elapsed());
        let until = [
            (!quiet.is_zero()).then_some(quiet),
            self.earlier.is_unread().then_some(DISK_PERIOD),
            self.remembered.map(|last| REMEMBER_PERIOD.saturating_sub(last.elapsed())),
        ];
        Ok(Wait { until: until.into_iter().flatten().min(), events: true, kernel: quiet.is_zero() })
    }

    /// Brings the disk up to date: with what central does not have yet, and now and then with the time that has passed.
    fn keep(&mut self, config: &NodeConfig) {
        self.earlier.keep(config, &self.log.unsent());
        if let Some(last) = self.remembered.filter(|last| last.elapsed() >= REMEMBER_PERIOD)
            && let Some(_turn) = disk_lock::try_now()
        {
            self.remembered = Some(Instant::now());
            if let Err(failure) = disks::advance_last_seen(config, last.elapsed()) {
                eprintln!("remembering the time: {failure}");
            }
        }
    }
}

/// The connection, made when it is first needed and again after it failed, to the next server then.
pub(crate) struct Link {
    config: NodeConfig,
    client: Option<Client>,
    url: usize,
}

impl Link {
    pub(crate) fn post(&mut self, path: &str, body: &impl Serialize) -> Result<(), StageFailure> {
        if self.client.is_none() {
            // A node that enrols gets its key while this runs.
            self.config = node_config()?;
            let urls = &self.config.central.urls;
            self.client = Some(client(&self.config, &urls[self.url % urls.len()])?);
        }
        let Some(client) = &self.client else { return Ok(()) };
        match client.send(Method::POST, path, body) {
            // What central does not take by what it is, it will not take later.
            Err(error @ TransportError::Refused { status: 400 | 404 | 405 | 413 | 415 | 422, .. }) => {
                eprintln!("central does not take what {path} is for: {error}");
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
    fn send(&mut self, link: &mut Link) -> Result<(), StageFailure> {
        loop {
            let (batch, next) =
                self.next_batch().map_err(|e| StageFailure::new(orrery_init_api::FailureClass::Io, e))?;
            if next == self.position {
                return Ok(());
            }
            if !batch.events.is_empty() {
                link.post("/v1/node/events", &batch)?;
            }
            self.position = next;
            match write_private(Self::position_path(), next.to_string().as_bytes()) {
                Ok(()) => self.free(),
                Err(error) => eprintln!("{error:#}"),
            }
        }
    }

    /// The whole lines that were not sent.
    fn unsent(&self) -> Vec<u8> {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = File::open(EVENTS_PATH)?;
            file.seek(SeekFrom::Start(self.position))?;
            let mut bytes = Vec::new();
            file.take(UNSENT).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let mut bytes = read().unwrap_or_default();
        bytes.truncate(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
        bytes
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

/// Events of up to a batch of whole lines, and how many bytes those have. A line that is no event is passed over.
pub fn parse_lines(bytes: &[u8]) -> (Vec<Event>, usize) {
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
