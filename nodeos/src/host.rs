//! The real machine behind [`Host`] and [`Entrance`].

use std::{
    collections::BTreeMap,
    convert::Infallible,
    ffi::OsString,
    fs, io,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    process::{Child, ExitCode, ExitStatus, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use orrery_bootstage::{events, name_servers};
use orrery_init_api::SLIVERS_CGROUP;
use orrery_protocol::{Admin, Digest, ImageRef, LayerTask, NodeConfig, Outcome, SliceName, SliverSpec};
use orrery_sliver::{
    EnterRequest, Entered, Made, Pty, Run, SliverPaths, Slivers, Stream, Wish, internal_main, prepare_node,
};
use orrery_sshd::{AgentListener, Elsewhere, Family, Network, Process, Session, SessionIo, SessionRequest};
use rustix::{
    event::{PollFd, PollFlags},
    process::{Pid, PidfdFlags, Signal, kill_process},
};

use crate::{
    admission::Capacity,
    busy::BusyWatch,
    central::Central,
    gate::{Entrance, Program},
    idle::IdleWatch,
    images::{self, Images},
    memory::{self, Alarm, MemoryWatch, Verdict},
    paths,
    plan::Existing,
    reconcile::Host,
    supervisor::Supervisor,
};

/// How often slivers are looked at whether they are used.
const LOOK: Duration = Duration::from_secs(10);

/// How long a sliver that could not be ended is left alone when memory is short, so that others are tried.
const SPARED: Duration = Duration::from_secs(300);

/// Does the work of a sliver's helper if this process was made for that, and says what to exit with. To be called before
/// there are threads, with all arguments of the process.
pub fn run_inside(arguments: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    internal_main(arguments)
}

/// This machine's slivers and images.
#[derive(Debug)]
pub struct LinuxHost {
    slivers: Arc<Slivers>,
    supervisor: Arc<Supervisor>,
    images: Images,
    capacity: Capacity,
}

impl LinuxHost {
    /// Sets the kernel up for slivers, and finds those there are.
    ///
    /// # Errors
    /// When this kernel or the data partition does not do.
    pub fn open(central: Arc<Central>) -> Result<Self> {
        prepare_node(Path::new(SLIVERS_CGROUP)).context("setting the kernel up for slivers")?;
        let slivers = Arc::new(Slivers::open(SliverPaths::default()).context("opening the slivers")?);
        let supervisor = Arc::new(Supervisor::new(slivers.clone()).context("watching the slivers")?);
        let capacity = capacity().context("finding out what this machine has")?;
        Ok(Self { slivers, supervisor, images: Images::open(central)?, capacity })
    }

    /// Keeps what slivers run by themselves running, for ever.
    pub fn supervise(&self) -> ! {
        self.supervisor.run()
    }

    /// The images of slivers.
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// Stops slivers that nobody uses, and weighs guarantees against those that are busy, for ever.
    pub fn look_after(&self) -> ! {
        let (mut watch, mut busy) = (IdleWatch::default(), BusyWatch::default());
        loop {
            let activity = |login: String| self.slivers.activity(&login).map(|activity| (login, activity));
            let mut running: BTreeMap<_, _> = self.slivers.running().into_iter().filter_map(activity).collect();
            let records: Vec<_> = running.keys().filter_map(|login| self.slivers.get(login).ok()).collect();
            if let Err(e) = self.slivers.balance(&records, &busy.look(Instant::now(), &running)) {
                tracing::warn!("weighing guarantees: {:#}", anyhow::Error::from(e));
            }
            // A service that is about to be started again takes no time.
            running.retain(|login, _| !self.supervisor.holds(login));
            for (login, activity) in watch.look(Instant::now(), running) {
                match self.slivers.stop_unused(&login, activity) {
                    Ok(true) => println!("orrery[node] sliver {login} stopped: unused"),
                    Ok(false) => (),
                    Err(e) => tracing::warn!("stopping {login}, which is unused: {:#}", anyhow::Error::from(e)),
                }
            }
            thread::sleep(LOOK);
        }
    }

    /// Keeps slivers from using up the node's memory, for ever.
    ///
    /// # Errors
    /// When this kernel does not tell how its memory is.
    pub fn watch_memory(&self) -> Result<Infallible> {
        let alarm = Alarm::set().context("asking for an alarm when memory is short")?;
        let mut watch = MemoryWatch::default();
        let mut spared: BTreeMap<String, Instant> = BTreeMap::new();
        loop {
            alarm.wait().context("waiting for memory to be short")?;
            let memory = match memory::now() {
                Ok(memory) => memory,
                Err(e) => {
                    tracing::warn!("looking at the node's memory: {e:#}");
                    thread::sleep(LOOK);
                    continue;
                }
            };
            spared.retain(|_, since| since.elapsed() < SPARED);
            let mut held = self.slivers.memory_held();
            held.retain(|held| !spared.contains_key(&held.login));
            let verdict = watch.judge(Instant::now(), &memory, &held);
            match verdict {
                Verdict::Calm => (),
                Verdict::Tell => report("memory", Outcome::Info, format!("memory is tight: {memory}"), Duration::ZERO),
                Verdict::Stop(held) => {
                    let why = format!("it held {} MiB, more than any other; {memory}", held.bytes >> 20);
                    if !self.relieve(&held.login, "memory is short", &why) {
                        spared.insert(held.login, Instant::now());
                    }
                }
                Verdict::Overdrawn(held) => {
                    let why = format!("{} MiB of {}, most likely for sockets", held.bytes >> 20, held.limit >> 20);
                    if !self.relieve(&held.login, "it held far more memory than it may", &why) {
                        spared.insert(held.login, Instant::now());
                    }
                }
                Verdict::Reboot => {
                    let message = format!("no sliver is to blame for it, so the machine starts over: {memory}");
                    report("memory", Outcome::Failed, message, Duration::ZERO);
                    kill_process(Pid::INIT, Signal::TERM).context("asking PID 1 for a reboot")?;
                }
            }
        }
    }

    /// Ends everything in a sliver that holds too much memory. Returns whether it ended.
    fn relieve(&self, login: &str, cause: &str, why: &str) -> bool {
        let started = Instant::now();
        let stopped = {
            let _apart = self.supervisor.apart(login);
            // Memory is short now: nothing is waited for that could itself wait for memory.
            self.slivers.kill(login).and_then(|()| self.slivers.stop(login))
        };
        let ended = stopped.is_ok();
        let message = match stopped {
            Ok(()) => format!("ended all that ran in {login}, as {cause}: {why}"),
            Err(e) => format!("{login} could not be ended ({:#}), and {cause}: {why}", anyhow::Error::from(e)),
        };
        report("memory", Outcome::Failed, message, started.elapsed());
        ended
    }

    /// Removes images that nothing needs and looks after the others, for ever. `release` are those of the release that runs.
    pub fn tend_images(&self, release: &[ImageRef]) -> ! {
        let needed = || {
            let records = self.slivers.list().context("reading the slivers' records")?;
            images::needed(release, &records, Path::new(paths::WANTED))
        };
        let at_rest = |image: &Digest, work: &dyn Fn() -> Result<()>| {
            let done = self.slivers.at_rest(&image.to_string(), work).context("keeping slivers from starting")?;
            done.map_or(Ok(false), |done| done.map(|()| true))
        };
        self.images.tend(needed, &at_rest)
    }
}

impl Host for Arc<LinuxHost> {
    fn capacity(&self) -> Capacity {
        self.capacity
    }

    fn list(&self) -> Result<Vec<Existing>> {
        let records = self.slivers.list().context("reading the slivers' records")?;
        let existing = records.into_iter().map(|record| Existing {
            image: record.image.parse().unwrap_or(record.spec.image.content.sha256),
            slice: record.spec.slice,
            rspec: record.spec.rspec,
            startup: record.spec.startup,
            life: record.spec.life,
            admin: record.spec.admin,
        });
        Ok(existing.collect())
    }

    fn create(&self, spec: &SliverSpec) -> Result<()> {
        self.images.ensure(&spec.image)?;
        let login = spec.slice.login();
        let _apart = self.supervisor.apart(&login);
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
        let login = spec.slice.login();
        let _apart = self.supervisor.apart(&login);
        self.slivers.apply_limits(&login, spec.rspec).context("setting limits")?;
        self.slivers.set_startup(&login, spec.startup.clone()).context("noting what runs by itself")
    }

    fn set_suspended(&self, slice: &SliceName, reason: Option<&str>) -> Result<()> {
        let _apart = self.supervisor.apart(&slice.login());
        self.slivers.set_suspended(&slice.login(), reason).context("freezing or thawing")
    }

    fn stop(&self, slice: &SliceName, reason: &str, number: u64) -> Result<()> {
        let _apart = self.supervisor.apart(&slice.login());
        self.slivers.shut(&slice.login(), reason, number).context("stopping")
    }

    fn set_admin(&self, slice: &SliceName, admin: &Admin) -> Result<()> {
        let login = slice.login();
        let _apart = self.supervisor.apart(&login);
        self.slivers.set_admin(&login, admin).context("stopping")
    }

    fn reset(&self, spec: &SliverSpec) -> Result<()> {
        // Before anything is discarded.
        self.images.ensure(&spec.image)?;
        let _apart = self.supervisor.apart(&spec.slice.login());
        self.slivers.reset(spec, &spec.image.content.sha256.to_string()).context("discarding its data")
    }

    fn restart(&self, slice: &SliceName, number: u64) -> Result<()> {
        let _apart = self.supervisor.apart(&slice.login());
        self.slivers.restart(&slice.login(), number).context("stopping")
    }

    fn destroy(&self, slice: &SliceName) -> Result<()> {
        let _apart = self.supervisor.apart(&slice.login());
        self.slivers.destroy(&slice.login()).context("destroying")
    }

    fn tell(&self, outcome: Outcome, message: String, took: Duration) {
        report("sliver", outcome, message, took);
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
            Program::Script(script) => Run::Program(["/bin/sh", "-c", script].map(str::to_owned).to_vec()),
        };
        let pty = request.pty.as_ref().map(|pty| Pty {
            term: pty.term.clone(),
            rows: pty.size.rows,
            columns: pty.size.columns,
            modes: pty.modes.clone(),
        });
        let stdio = [Stream::Piped, Stream::Piped, Stream::Piped];
        let wish = EnterRequest { run, environment, directory: None, user: None, pty, stdio };
        let Entered { mut session, pty } = self.slivers.enter(&slice.login(), wish).map_err(chained)?;
        let io = match pty {
            Some(master) => SessionIo::Pty(master),
            None => SessionIo::Pipes {
                stdin: session.stdin.take().ok_or_else(lost)?.into(),
                stdout: session.stdout.take().ok_or_else(lost)?.into(),
                stderr: session.stderr.take().ok_or_else(lost)?.into(),
            },
        };
        Ok(Session { io, process: Process::Elsewhere(Box::new(Inside(session))) })
    }

    fn log(&self, slice: &SliceName, follow: bool) -> io::Result<Session> {
        let stdio = [Stdio::piped(), Stdio::piped(), Stdio::piped()];
        let mut child = self.slivers.print_log(&slice.login(), follow, stdio).map_err(chained)?;
        Ok(Session { io: pipes(&mut child)?, process: Process::adopt(child)? })
    }

    fn work(&self, slice: &SliceName, task: LayerTask) -> io::Result<Session> {
        let login = slice.login();
        tracing::info!("{login}: {task}");
        let mut child = self.slivers.begin_work(&login, task).map_err(chained)?;
        let ended = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        let io = pipes(&mut child)?;
        let slivers = self.slivers.clone();
        thread::spawn(move || {
            // Whoever waits for it is told, too; this is for a sliver that it left standing still, should it have been killed.
            let mut wait = [PollFd::new(&ended, PollFlags::IN)];
            let cleared = rustix::io::retry_on_intr(|| rustix::event::poll(&mut wait, None))
                .map_err(io::Error::from)
                .and_then(|_| slivers.work_ended(&login).map_err(chained));
            if let Err(e) = cleared {
                tracing::warn!("after work on the layer of {login}: {e}");
            }
        });
        Ok(Session { io, process: Process::adopt(child)? })
    }

    fn network(&self, slice: &SliceName) -> Arc<dyn Network> {
        let (slivers, config) = (self.slivers.clone(), self.config.clone());
        Arc::new(SliverNetwork { slivers, login: slice.login(), config })
    }
}

/// What runs inside, for the ssh server.
#[derive(Debug)]
struct Inside(orrery_sliver::Session);

impl AsFd for Inside {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Elsewhere for Inside {
    fn try_wait(&self) -> io::Result<Option<ExitStatus>> {
        self.0.try_wait()
    }

    fn signal(&self, signal: Signal) {
        if let Err(e) = self.0.signal(signal) {
            tracing::debug!("sending a session {signal:?}: {e}");
        }
    }

    fn end(&self) {
        // Unless it has ended.
        let _ = self.0.end();
    }
}

fn lost() -> io::Error {
    io::Error::other("a pipe that was asked for is missing")
}

/// A child's standard input, output and error, which are pipes.
fn pipes(child: &mut Child) -> io::Result<SessionIo> {
    Ok(SessionIo::Pipes {
        stdin: child.stdin.take().ok_or_else(lost)?.into(),
        stdout: child.stdout.take().ok_or_else(lost)?.into(),
        stderr: child.stderr.take().ok_or_else(lost)?.into(),
    })
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
        let Made { socket, keep } =
            self.slivers.socket(&self.login, Wish::Listener(path.to_owned())).map_err(chained)?;
        Ok(AgentListener { listener: socket.into(), keep: Box::new(keep) })
    }
}

/// An error with its causes, for somebody who sees only its text.
fn chained(error: impl Into<anyhow::Error>) -> io::Error {
    io::Error::other(format!("{:#}", error.into()))
}

/// What this machine has for slivers.
fn capacity() -> Result<Capacity> {
    let online = "/sys/devices/system/cpu/online";
    let text = fs::read_to_string(online).with_context(|| format!("reading {online}"))?;
    let cpus = text.trim().parse().with_context(|| format!("understanding {online}, which says {text:?}"))?;
    let data = rustix::fs::statvfs(paths::DATA).with_context(|| format!("asking for the size of {}", paths::DATA))?;
    Ok(Capacity { cpus, memory: memory::now()?.total, disk: data.f_blocks * data.f_frsize })
}

/// Shows and reports what became of something.
pub(crate) fn report(stage: &str, outcome: Outcome, message: String, took: Duration) {
    println!("orrery[node] {message} ({:.3}s)", took.as_secs_f64());
    let class = (outcome == Outcome::Failed).then_some(stage);
    events::append(stage, outcome, class, message, took.as_millis() as u64);
}
