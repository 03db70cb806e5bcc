//! The processes that are killed: the node manager and the ssh gate, with their real parts, doing as they are told.
//!
//! Orders come as lines on a socket, which is standard input; for each there is an answer once it is carried out.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    sync::{Arc, mpsc},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use orrery_image_store::Store;
use orrery_nodeos::{
    central::Central,
    host::LinuxHost,
    manager, paths,
    reconcile::{Progress, Reconciler},
};
use orrery_protocol::{Digest, ImageRef, NodeConfig, WantedState};
use orrery_sliver::{EnterRequest, Run, SliverPaths, Slivers, Stream};
use serde::{Deserialize, Serialize};

use crate::operations::{Lane, Op, Role, content, slice};

/// What a user's files are in.
pub(crate) const FILES: &str = "w";
/// The end of what a command inside prints.
const ALL_WELL: &str = "ok";

/// What a process is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) lane: Lane,
    pub(crate) op: Op,
    pub(crate) images: Vec<ImageRef>,
}

/// What a process says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// It is up, and everything is as what central wants, which is this. The gate knows nothing of that.
    Ready(Option<WantedState>),
    /// The order is carried out; what was read.
    Done(Lane, Files),
    /// It could not be.
    Failed(Lane, String),
}

/// Digests of files by number.
pub(crate) type Files = BTreeMap<u32, Digest>;

/// What carries the orders of a lane out.
type Work = Box<dyn FnMut(Order) -> Result<Files> + Send>;

/// The line to the driver.
#[derive(Clone)]
struct Line(Arc<UnixStream>);

impl Line {
    fn open() -> Result<Self> {
        let socket = std::io::stdin().as_fd().try_clone_to_owned().context("duplicating the line to the driver")?;
        Ok(Self(Arc::new(socket.into())))
    }

    /// In one write, so that answers do not mix.
    fn say(&self, answer: &Answer) -> Result<()> {
        let text = serde_json::to_string(answer)? + "\n";
        (&*self.0).write_all(text.as_bytes()).context("answering the driver")
    }

    /// Carries orders out, those of each lane on a thread of their own, until the driver hangs up.
    fn obey(&self, mut lanes: BTreeMap<Lane, Work>) -> Result<()> {
        let mut inboxes = BTreeMap::new();
        while let Some((lane, mut work)) = lanes.pop_first() {
            let (inbox, orders) = mpsc::channel::<Order>();
            inboxes.insert(lane, inbox);
            let line = self.clone();
            thread::spawn(move || {
                for order in orders {
                    let answer = match work(order) {
                        Ok(read) => Answer::Done(lane, read),
                        Err(error) => Answer::Failed(lane, format!("{error:#}")),
                    };
                    if let Err(error) = line.say(&answer) {
                        eprintln!("{error:#}");
                    }
                }
            });
        }
        for line in BufReader::new(&*self.0).lines() {
            let order: Order = serde_json::from_str(&line.context("hearing the driver")?)?;
            inboxes[&order.lane].send(order)?;
        }
        Ok(())
    }
}

fn log() {
    tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_target(false).with_ansi(false).init();
}

/// The node manager, whose central is never reached: what that wants comes as orders.
pub(crate) fn manager() -> Result<()> {
    log();
    let line = Line::open()?;
    let config: NodeConfig = serde_json::from_str(r#"{"central":{"urls":[],"ca":"","release_keys":[]}}"#)?;
    let host = Arc::new(LinuxHost::open(Arc::new(Central::new(&config)?))?);
    let mut wanted = manager::load(Path::new(paths::WANTED))?.unwrap_or_default();
    let mut reconciler = Reconciler::new(host.clone());
    settle(&mut reconciler, &wanted)?;
    let slivers = Slivers::open(SliverPaths::default())?;
    let store = Store::open(Path::new(paths::DATA))?;
    line.say(&Answer::Ready(Some(wanted.clone())))?;

    let wishes = move |order: Order| {
        order.op.wish(&mut wanted, &order.images);
        manager::save(Path::new(paths::WANTED), &wanted)?;
        settle(&mut reconciler, &wanted)?;
        Ok(Files::new())
    };
    let images = move |order: Order| change_store(&host, &store, &order).map(|()| Files::new());
    let rest = move |order: Order| {
        let login = order.op.slot().map(slice).context("no sliver to stop")?.login();
        if let Some(activity) = slivers.activity(&login) {
            slivers.stop_unused(&login, activity)?;
        }
        Ok(Files::new())
    };
    line.obey(BTreeMap::from([
        (Lane::Wishes, Box::new(wishes) as Work),
        (Lane::Store, Box::new(images)),
        (Lane::Rest, Box::new(rest)),
    ]))
}

/// Works until all is as wanted. Nothing may fail here.
fn settle(reconciler: &mut Reconciler<Arc<LinuxHost>>, wanted: &WantedState) -> Result<()> {
    loop {
        match reconciler.step(wanted, Instant::now()) {
            Progress::Worked => {}
            Progress::Idle(None) => return Ok(()),
            Progress::Idle(Some(_)) => bail!("a step failed: {:?}", reconciler.status(wanted)),
        }
    }
}

fn change_store(host: &Arc<LinuxHost>, store: &Store, Order { op, images, .. }: &Order) -> Result<()> {
    let image = &images[op.image().context("no image to change")?];
    let digest = &image.content.sha256;
    match op {
        Op::Import { .. } => {
            host.images().unpack_ahead(image);
            ensure!(store.tree(digest).is_some(), "the image was not unpacked");
        }
        Op::Remove { .. } => store.remove(digest)?,
        Op::Repair { .. } => {
            let path = Path::new(paths::INCOMING).join(digest.to_string());
            store.repair(
                File::open(&path).with_context(|| format!("opening {}", path.display()))?,
                digest,
                u64::MAX,
            )?;
        }
        Op::Verify { .. } => {
            let damaged = store.verify(digest)?;
            ensure!(damaged.is_empty(), "{damaged:?} are damaged");
        }
        _ => bail!("the store cannot do {op:?}"),
    }
    Ok(())
}

/// The ssh gate behind its protocol.
pub(crate) fn gate() -> Result<()> {
    log();
    let line = Line::open()?;
    let slivers = Arc::new(Slivers::open(SliverPaths::default())?);
    line.say(&Answer::Ready(None))?;
    let session = |slivers: Arc<Slivers>| Box::new(move |order: Order| enter(&slivers, &order.op)) as Work;
    line.obey(BTreeMap::from([(Lane::Session, session(slivers.clone())), (Lane::OtherSession, session(slivers))]))
}

/// Runs a command in a sliver, as a login does, and returns what it read.
fn enter(slivers: &Slivers, op: &Op) -> Result<Files> {
    let (slot, line) = match op {
        Op::Write { slot, number } => (*slot, format!("write {number}")),
        Op::Read { slot } => (*slot, "read".to_owned()),
        _ => bail!("no session can do {op:?}"),
    };
    let stdio = [Stream::Null, Stream::Piped, Stream::Piped];
    let request = EnterRequest {
        run: Run::Command(line.into()),
        environment: Vec::new(),
        directory: None,
        user: None,
        pty: None,
        stdio,
    };
    let output = slivers.enter(&slice(slot).login(), request)?.session.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut read = BTreeMap::new();
    for line in text.lines() {
        if let Some((number, digest)) = line.split_once(' ') {
            read.insert(number.parse()?, digest.parse().map_err(|e| anyhow::anyhow!("{e}"))?);
        }
    }
    let well = output.status.success() && text.lines().last() == Some(ALL_WELL);
    ensure!(well, "{}: {text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(read)
}

/// A command inside a sliver.
pub(crate) fn inside(line: &str) -> Result<()> {
    let directory = Path::new("/").join(FILES);
    match line.split_once(' ') {
        Some(("write", number)) => {
            if let Err(error) = fs::create_dir(&directory)
                && error.kind() != std::io::ErrorKind::AlreadyExists
            {
                return Err(error).context("making the directory");
            }
            let mut file = File::create(directory.join(number)).context("making the file")?;
            file.write_all(&content(number.parse()?)).context("writing")?;
            file.sync_all().context("flushing the file")?;
            for directory in [directory.as_path(), Path::new("/")] {
                File::open(directory)?.sync_all().context("flushing its directory")?;
            }
        }
        None if line == "read" => {
            for entry in fs::read_dir(&directory).into_iter().flatten() {
                let entry = entry?;
                let mut content = Vec::new();
                File::open(entry.path())?.read_to_end(&mut content)?;
                println!("{} {}", entry.file_name().to_string_lossy(), Digest::of(&content));
            }
        }
        _ => bail!("no such command: {line}"),
    }
    println!("{ALL_WELL}");
    Ok(())
}

impl Role {
    /// The argument that makes this program a process of this role.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Manager => "manager",
            Self::Gate => "gate",
        }
    }
}
