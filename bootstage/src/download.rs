//! Mirrors and central as the installer's source of artifacts, and the console as its observer.

use std::{
    cell::{Cell, RefCell},
    io::{self, Read},
    ops::Range,
    thread,
    time::{Duration, Instant},
};

use orrery_init_api::{FailureClass, Stage};
use orrery_installer::{ChooseError, InstallError, Observer, Source, TransferError};
use orrery_protocol::{ArtifactRef, NodeConfig};
use orrery_transport::{ArtifactStream, Client, Mirror, Resolver, TransportError};

use crate::{
    StageFailure,
    central::{client, name_servers},
    events,
    failure::transport_class,
};

/// The script's mirrors in order, then the configured servers in turn. A mirror that failed or lied is not asked again.
pub(crate) struct Servers {
    mirrors: Vec<Mirror>,
    clients: Vec<Client>,
    next: Cell<usize>,
}

impl Servers {
    /// A mirror whose URL makes no sense is told and left out: anybody else has what it would have had.
    pub(crate) fn new(config: &NodeConfig, mirrors: &[String]) -> Result<Self, StageFailure> {
        let clients = config.central.urls.iter().map(|url| client(config, url)).collect::<Result<_, _>>()?;
        let usable = |url: &String| {
            let mirror = Mirror::new(url, &config.central.ca, Resolver::Servers(name_servers(config)));
            mirror.inspect_err(|error| println!("leaving out a mirror: {error}")).ok()
        };
        Ok(Self { mirrors: mirrors.iter().filter_map(usable).collect(), clients, next: Cell::new(0) })
    }

    fn turn(&self) -> Turn<'_> {
        let next = self.next.get();
        match self.mirrors.get(next) {
            Some(mirror) => Turn::Mirror(mirror),
            None => Turn::Server(&self.clients[(next - self.mirrors.len()) % self.clients.len()]),
        }
    }
}

/// Who is asked.
enum Turn<'a> {
    Mirror(&'a Mirror),
    Server(&'a Client),
}

impl Source for Servers {
    fn open(&self, artifact: &ArtifactRef, range: Range<u64>) -> Result<Box<dyn Read>, TransferError> {
        let opened = match self.turn() {
            Turn::Mirror(mirror) => mirror.artifact(artifact, range),
            Turn::Server(client) => client.artifact_part(artifact, range),
        };
        match opened {
            Ok(stream) => Ok(Box::new(Explained(stream))),
            Err(error) => {
                let mut error = transfer_error(&error);
                // With another server left, even a refusal is not the last word.
                error.transient |= self.next.get() + 1 < self.mirrors.len() + self.clients.len();
                Err(error)
            }
        }
    }

    fn place(&self) -> String {
        match self.turn() {
            Turn::Mirror(mirror) => mirror.base_url().to_owned(),
            Turn::Server(client) => client.base_url().to_owned(),
        }
    }

    fn pass_over(&self) -> bool {
        let mirror = matches!(self.turn(), Turn::Mirror(_));
        self.next.set(self.next.get() + 1);
        mirror
    }
}

/// A stream whose errors are in the transport's words.
struct Explained(ArtifactStream);

impl Read for Explained {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf).map_err(|error| io::Error::other(transfer_error(&self.0.explain(error))))
    }
}

fn transfer_error(error: &TransportError) -> TransferError {
    let transient = !matches!(error, TransportError::Refused { status: 400..=499, .. } | TransportError::Setup { .. });
    TransferError { class: transport_class(error).as_str(), message: error.to_string(), transient }
}

/// Time between two lines about the same download.
const PROGRESS_PERIOD: Duration = Duration::from_secs(1);

/// Prints progress, and tells central what is worth it.
pub(crate) struct Teller {
    stage: Stage,
    current: RefCell<Option<Download>>,
}

struct Download {
    name: String,
    started: Instant,
    shown: Instant,
}

impl Teller {
    pub(crate) fn new(stage: Stage) -> Self {
        Self { stage, current: RefCell::new(None) }
    }
}

impl Observer for Teller {
    fn progress(&self, name: &str, done: u64, total: u64) {
        let mut current = self.current.borrow_mut();
        let now = Instant::now();
        let download = match &mut *current {
            Some(download) if download.name == name => download,
            _ => current.insert(Download { name: name.into(), started: now, shown: now }),
        };
        let elapsed = now.duration_since(download.started).as_secs_f64();
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        if done == total {
            let rate = if elapsed > 0.0 { mib(done) / elapsed } else { 0.0 };
            events::tell(
                self.stage,
                None,
                format!("{name}: {:.1} MiB in {elapsed:.1} s ({rate:.0} MiB/s)", mib(total)),
            );
            *current = None;
        } else if now.duration_since(download.shown) >= PROGRESS_PERIOD {
            download.shown = now;
            println!("{name}: {}% ({:.0} of {:.0} MiB)", done * 100 / total.max(1), mib(done), mib(total));
        }
    }

    fn note(&self, text: &str) {
        events::tell(self.stage, None, text);
    }

    fn pause(&self, failures: u32) {
        thread::sleep(Duration::from_secs(1 << failures.min(4)) / 2);
    }
}

impl From<InstallError> for StageFailure {
    fn from(error: InstallError) -> Self {
        let class = match &error {
            InstallError::Choose(ChooseError::NoDisk { .. }) => FailureClass::NoDisk,
            InstallError::Choose(ChooseError::Ambiguous { .. }) => FailureClass::AmbiguousDisk,
            InstallError::Choose(ChooseError::TooSmall { .. }) => FailureClass::DiskTooSmall,
            InstallError::Choose(ChooseError::ForeignData { .. }) => FailureClass::ForeignData,
            InstallError::Manifest(orrery_protocol::ManifestError::Envelope(_)) => FailureClass::Signature,
            InstallError::Manifest(_) | InstallError::ManifestTooLong(_) => FailureClass::Malformed,
            InstallError::Index { .. } | InstallError::IndexTooLong { .. } => FailureClass::Malformed,
            InstallError::Hardware(_) => FailureClass::Hardware,
            InstallError::Transfer { source, .. } => source.class.parse().unwrap_or(FailureClass::Http),
            InstallError::Mismatch { .. } => FailureClass::Tampered,
            InstallError::DiskFull { .. } => FailureClass::DiskFull,
            InstallError::Io { .. }
            | InstallError::Partition { .. }
            | InstallError::Format { .. }
            | InstallError::Mount(_)
            | InstallError::State(_) => FailureClass::Io,
        };
        Self::new(class, error)
    }
}
