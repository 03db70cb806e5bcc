//! The real machine behind [`Host`] and [`Entrance`].

use std::{
    ffi::OsString,
    fs::File,
    io,
    net::IpAddr,
    os::fd::OwnedFd,
    path::Path,
    process::{ExitCode, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use orrery_bootstage::{events, name_servers};
use orrery_image_store::{Imported, Store};
use orrery_init_api::SLIVERS_CGROUP;
use orrery_protocol::{Admin, ArtifactRef, NodeConfig, Outcome, SliceName, SliverSpec};
use orrery_sliver::{
    EnterRequest, Entered, Made, Pty, Record, Run, SliverPaths, Slivers, Wish, internal_main, prepare_node,
};
use orrery_sshd::{AgentListener, Family, Network, Process, Session, SessionIo, SessionRequest};

use crate::{
    central::Central,
    gate::{Entrance, Program},
    idle::IdleWatch,
    paths,
    plan::Existing,
    reconcile::Host,
};

/// How large an image may be when unpacked, in bytes: far above any real one, and a bound on what a broken one fills.
const MAX_IMAGE: u64 = 32 << 30;

/// How often slivers are looked at whether they are used.
const LOOK: Duration = Duration::from_secs(10);

/// Does the work of a sliver's helper if this process was made for that, and says what to exit with. To be called before
/// there are threads, with all arguments of the process.
pub fn run_inside(arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    internal_main(arguments)
}

/// This machine's slivers and images.
#[derive(Debug)]
pub struct LinuxHost {
    slivers: Slivers,
    store: Store,
    central: Arc<Central>,
}

impl LinuxHost {
    /// Sets the kernel up for slivers, and finds those there are.
    ///
    /// # Errors
    /// When this kernel or the data partition does not do.
    pub fn open(central: Arc<Central>) -> Result<Self> {
        prepare_node(Path::new(SLIVERS_CGROUP)).context("setting the kernel up for slivers")?;
        let slivers = Slivers::open(SliverPaths::default()).context("opening the slivers")?;
        let store = Store::open(Path::new(paths::DATA)).context("opening the image store")?;
        Ok(Self { slivers, store, central })
    }

    /// Unpacks an image that is on the disk already, so that the first sliver need not wait for it. Failing does no harm: it is
    /// tried again when the image is needed.
    pub fn unpack_ahead(&self, name: &str, image: &ArtifactRef) {
        if archive(image).exists()
            && let Err(e) = self.ensure_image(name, image)
        {
            tracing::warn!("unpacking image {name}: {e:#}");
        }
    }

    /// Stops slivers that nobody uses, for ever.
    pub fn rest_unused(&self) -> ! {
        let mut watch = IdleWatch::default();
        loop {
            let records = self.slivers.list().unwrap_or_else(|e| {
                tracing::warn!("looking for unused slivers: {:#}", anyhow::Error::from(e));
                Vec::new()
            });
            let activity = |record: Record| {
                let login = record.login();
                self.slivers.activity(&login).map(|activity| (login, activity))
            };
            for (login, activity) in watch.look(Instant::now(), records.into_iter().filter_map(activity).collect()) {
                match self.slivers.stop_unused(&login, activity) {
                    Ok(true) => println!("orrery[node] sliver {login} stopped: unused"),
                    Ok(false) => (),
                    Err(e) => tracing::warn!("stopping {login}, which is unused: {:#}", anyhow::Error::from(e)),
                }
            }
            thread::sleep(LOOK);
        }
    }

    /// Makes sure that an image is unpacked: from the disk, or else from central.
    fn ensure_image(&self, name: &str, image: &ArtifactRef) -> Result<()> {
        if self.store.tree(&image.sha256).is_some() {
            return Ok(());
        }
        let started = Instant::now();
        let imported = self.import_from_disk(image).or_else(|e| {
            tracing::warn!("image {name} is not to be had from the disk: {e:#}");
            let stream = self.central.artifact(image)?;
            // Hashed on the way; the tree appears only if it is the right one.
            self.store.import(stream, &image.sha256, MAX_IMAGE).context("importing the image from central")
        });
        let took = started.elapsed();
        let (outcome, message) = match &imported {
            // Somebody else was quicker.
            Ok(Imported { present: true, .. }) => return Ok(()),
            Ok(imported) => {
                (Outcome::Ok, format!("image {name}: {} files, {} MiB", imported.files, imported.bytes >> 20))
            }
            Err(e) => (Outcome::Failed, format!("image {name}: {e:#}")),
        };
        record("image-import", outcome, message, took);
        imported.map(drop)
    }

    fn import_from_disk(&self, image: &ArtifactRef) -> Result<Imported> {
        let path = archive(image);
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        self.store.import(file, &image.sha256, MAX_IMAGE).with_context(|| format!("importing {}", path.display()))
    }
}

impl Host for Arc<LinuxHost> {
    fn list(&self) -> Result<Vec<Existing>> {
        let records = self.slivers.list().context("reading the slivers' records")?;
        let existing = records.into_iter().map(|record| Existing {
            image: record.image.parse().unwrap_or(record.spec.image.content.sha256),
            slice: record.spec.slice,
            rspec: record.spec.rspec,
            life: record.spec.life,
            admin: record.spec.admin,
        });
        Ok(existing.collect())
    }

    fn create(&self, spec: &SliverSpec) -> Result<()> {
        self.ensure_image(&spec.image.name, &spec.image.content)?;
        let login = spec.slice.login();
        self.slivers.create(spec, &spec.image.content.sha256.to_string()).context("creating")?;
        // A sliver that cannot start is none. There is nothing in it yet that could be lost. One that can has no process before
        // its first login.
        let Err(e) = self.slivers.start(&login).and_then(|()| self.slivers.stop(&login)) else { return Ok(()) };
        let error = anyhow::Error::new(e).context("starting");
        match self.slivers.destroy(&login) {
            Ok(()) => Err(error),
            Err(clean_up) => Err(error.context(format!("it could not be removed again either ({clean_up})"))),
        }
    }

    fn update(&self, spec: &SliverSpec) -> Result<()> {
        self.slivers.apply_limits(&spec.slice.login(), spec.rspec).context("setting limits")
    }

    fn set_suspended(&self, slice: &SliceName, reason: Option<&str>) -> Result<()> {
        self.slivers.set_suspended(&slice.login(), reason).context("freezing or thawing")
    }

    fn set_admin(&self, slice: &SliceName, admin: &Admin) -> Result<()> {
        self.slivers.set_admin(&slice.login(), admin).context("stopping")
    }

    fn reset(&self, spec: &SliverSpec) -> Result<()> {
        // Before anything is discarded.
        self.ensure_image(&spec.image.name, &spec.image.content)?;
        self.slivers.reset(spec, &spec.image.content.sha256.to_string()).context("discarding its data")
    }

    fn restart(&self, slice: &SliceName, number: u64) -> Result<()> {
        self.slivers.restart(&slice.login(), number).context("stopping")
    }

    fn destroy(&self, slice: &SliceName) -> Result<()> {
        self.slivers.destroy(&slice.login()).context("destroying")
    }

    fn tell(&self, outcome: Outcome, message: String, took: Duration) {
        record("sliver", outcome, message, took);
    }
}

/// The way into slivers.
#[derive(Debug)]
pub struct Door {
    slivers: Arc<Slivers>,
    config: NodeConfig,
}

impl Door {
    /// Finds the slivers there are. Hosts that their users name are looked up as `config` says.
    ///
    /// # Errors
    /// When the data partition cannot be read.
    pub fn open(config: NodeConfig) -> Result<Self> {
        let slivers = Slivers::open(SliverPaths::default()).context("opening the slivers")?;
        Ok(Self { slivers: Arc::new(slivers), config })
    }
}

impl Entrance for Door {
    fn enter(
        &self,
        slice: &SliceName,
        program: Program,
        environment: Vec<(String, String)>,
        request: &SessionRequest,
    ) -> io::Result<Session> {
        let run = match program {
            Program::Shell => Run::Shell,
            Program::Line(line) => Run::Command(line),
            Program::File(path) => Run::Program(vec![path.to_owned()]),
        };
        let pty = request.pty.as_ref().map(|pty| Pty {
            term: pty.term.clone(),
            rows: pty.size.rows,
            columns: pty.size.columns,
        });
        let stdio = [Stdio::piped(), Stdio::piped(), Stdio::piped()];
        let wish = EnterRequest { run, environment, directory: None, pty, stdio };
        let Entered { mut child, pty } = self.slivers.enter(&slice.login(), wish).map_err(chained)?;
        let io = match pty {
            Some(master) => {
                if let Some(wanted) = &request.pty {
                    // A terminal with other keys than the client's is still a terminal.
                    let _ = wanted.apply_to(&master);
                }
                SessionIo::Pty(master)
            }
            None => {
                let lost = || io::Error::other("a pipe that was asked for is missing");
                SessionIo::Pipes {
                    stdin: child.stdin.take().ok_or_else(lost)?.into(),
                    stdout: child.stdout.take().ok_or_else(lost)?.into(),
                    stderr: child.stderr.take().ok_or_else(lost)?.into(),
                }
            }
        };
        Ok(Session { io, process: Process::adopt(child)? })
    }

    fn network(&self, slice: &SliceName) -> Arc<dyn Network> {
        let (slivers, config) = (self.slivers.clone(), self.config.clone());
        Arc::new(SliverNetwork { slivers, login: slice.login(), config })
    }
}

/// The network as one sliver's: its sockets are made inside.
struct SliverNetwork {
    slivers: Arc<Slivers>,
    login: String,
    config: NodeConfig,
}

impl Network for SliverNetwork {
    fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        orrery_transport::lookup(host, &name_servers(&self.config)).map_err(chained)
    }

    fn socket(&self, family: Family) -> io::Result<OwnedFd> {
        let wish = match family {
            Family::V4 => Wish::Tcp4,
            Family::V6 => Wish::Tcp6,
        };
        Ok(self.slivers.socket(&self.login, wish).map_err(chained)?.socket)
    }

    fn agent(&self, path: &Path) -> io::Result<AgentListener> {
        let Made { socket, helper } =
            self.slivers.socket(&self.login, Wish::Listener(path.to_owned())).map_err(chained)?;
        Ok(AgentListener { listener: socket.into(), keep: Box::new(helper) })
    }
}

/// An error with its causes, for somebody who sees only its text.
fn chained(error: impl Into<anyhow::Error>) -> io::Error {
    io::Error::other(format!("{:#}", error.into()))
}

/// Where the installer and the boot stage put an image's archive.
fn archive(image: &ArtifactRef) -> std::path::PathBuf {
    Path::new(paths::INCOMING).join(image.sha256.to_string())
}

/// Shows and reports what became of something.
fn record(stage: &str, outcome: Outcome, message: String, took: Duration) {
    println!("orrery[node] {message} ({:.3}s)", took.as_secs_f64());
    let class = (outcome == Outcome::Failed).then_some(stage);
    events::append(stage, outcome, class, message, took.as_millis() as u64);
}
