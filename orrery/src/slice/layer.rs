//! `orrery slice snapshot`, `export`, `import` and `clone`: what a sliver's users have, kept and moved.
//!
//! The node does the work, for whoever has the slice's key: each task is an ssh subsystem (`LayerTask`).

use std::{
    fs::File,
    io::{self, IsTerminal, Read, Seek, Write, stderr, stdin, stdout},
    os::fd::AsFd,
    process::{Child, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use orrery_protocol::{ExportManifest, LayerSize, LayerTask, SliceName, Snapshot, SnapshotName};
use rustix::termios::{LocalModes, tcgetattr};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;

use super::connect::{Reach, Slivers, Way};
use crate::{
    confirm::Confirm,
    context::Context,
    units::{show_bytes, show_time, table},
};

/// How often it is shown that something still takes time.
const PACE: Duration = Duration::from_millis(200);

/// One sliver.
#[derive(clap::Args)]
pub(crate) struct Sliver {
    /// The slice.
    slice: SliceName,
    /// Id of the node; not needed if the slice is on one only.
    #[arg(long, value_name = "ID")]
    node: Option<String>,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Subcommand)]
pub(crate) enum Snapshots {
    /// Take a snapshot. What runs in the sliver stands still meanwhile.
    Create {
        #[command(flatten)]
        sliver: Sliver,
        /// The snapshot's name.
        name: SnapshotName,
    },
    /// List a sliver's snapshots.
    List {
        #[command(flatten)]
        sliver: Sliver,
    },
    /// Make a sliver what a snapshot is. All that was written since is lost, and all that runs ends.
    Restore {
        #[command(flatten)]
        sliver: Sliver,
        /// The snapshot's name.
        name: SnapshotName,
        #[command(flatten)]
        confirm: Confirm,
    },
    /// Remove a snapshot.
    Delete {
        #[command(flatten)]
        sliver: Sliver,
        /// The snapshot's name.
        name: SnapshotName,
        #[command(flatten)]
        confirm: Confirm,
    },
}

/// Options of `orrery slice export`.
#[derive(clap::Args)]
pub(crate) struct Export {
    #[command(flatten)]
    sliver: Sliver,
    /// A snapshot, instead of the sliver as it is, which stands still while it is exported.
    #[arg(long, value_name = "NAME")]
    snapshot: Option<SnapshotName>,
}

/// Options of `orrery slice import`.
#[derive(clap::Args)]
pub(crate) struct Import {
    #[command(flatten)]
    sliver: Sliver,
    #[command(flatten)]
    confirm: Confirm,
}

/// Options of `orrery slice clone`.
#[derive(clap::Args)]
pub(crate) struct Clone {
    /// The slice whose sliver is cloned.
    from: SliceName,
    /// The slice whose sliver becomes the clone. All that it holds is lost, and all that runs in it ends.
    to: SliceName,
    /// A snapshot, instead of the sliver as it is.
    #[arg(long, value_name = "NAME")]
    snapshot: Option<SnapshotName>,
    /// Id of the node of the sliver that is cloned; not needed if its slice is on one only.
    #[arg(long, value_name = "ID")]
    node: Option<String>,
    /// Id of the node of the clone; not needed if its slice is on one only.
    #[arg(long, value_name = "ID")]
    to_node: Option<String>,
    #[command(flatten)]
    reach: Reach,
    #[command(flatten)]
    confirm: Confirm,
}

/// What a node says of an import.
#[derive(Debug, Serialize, Deserialize)]
struct Imported {
    from: ExportManifest,
    #[serde(flatten)]
    size: LayerSize,
}

impl Sliver {
    fn way(self, context: &Context) -> Result<Way> {
        let slivers = Slivers::of(context, self.slice, self.reach)?;
        slivers.way(&slivers.one(self.node.as_deref())?)
    }
}

impl Snapshots {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        match self {
            Self::Create { sliver, name } => {
                let snapshot: Snapshot = ask(context, &sliver.way(context)?, &LayerTask::Take(name))?;
                context.print(&snapshot, |snapshot| list(std::slice::from_ref(snapshot)))
            }
            Self::List { sliver } => {
                let snapshots: Vec<Snapshot> = ask(context, &sliver.way(context)?, &LayerTask::List)?;
                context.print(&snapshots, |snapshots| list(snapshots))
            }
            Self::Restore { sliver, name, confirm } => {
                let (slice, way) = (sliver.slice.clone(), sliver.way(context)?);
                confirm.ask(|| {
                    let on = &way.node;
                    Ok(format!(
                        "{slice} on {on} becomes what its snapshot {name} is. All that was written since is lost."
                    ))
                })?;
                let size: LayerSize = ask(context, &way, &LayerTask::Restore(name.clone()))?;
                context.print(&size, |size| format!("restored {name}: {}", show(size)))
            }
            Self::Delete { sliver, name, confirm } => {
                let (slice, way) = (sliver.slice.clone(), sliver.way(context)?);
                confirm.ask(|| Ok(format!("The snapshot {name} of {slice} on {} is lost.", way.node)))?;
                let _: serde_json::Value = ask(context, &way, &LayerTask::Delete(name.clone()))?;
                context.print(&json!({ "deleted": name }), |_| format!("deleted {name}"))
            }
        }
    }
}

impl Export {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        ensure!(!stdout().is_terminal(), "an export is no text: send it to a file, as `> FILE`");
        let way = self.sliver.way(context)?;
        let mut export = Task::begin(&way, &LayerTask::Export(self.snapshot))?;
        let bar = progress(context, None);
        let (mut from, mut to) = (bar.wrap_read(export.output()?), stdout().lock());
        let copied = io::copy(&mut from, &mut to).and_then(|bytes| to.flush().map(|()| bytes));
        bar.finish_and_clear();
        // Nobody takes the rest, and the client would wait for that.
        let bytes = copied.context("writing the export to standard output")?;
        export.end()?;
        if !context.json() {
            eprintln!("exported {}", show_bytes(bytes));
        }
        Ok(())
    }
}

impl Import {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        ensure!(!stdin().is_terminal(), "the export is read from standard input, as `< FILE`");
        let (slice, way) = (self.sliver.slice.clone(), self.sliver.way(context)?);
        self.confirm.ask_beside_input(|| {
            Ok(format!("{slice} on {} becomes what the export is. All that it holds is lost.", way.node))
        })?;
        let mut import = Task::begin(&way, &LayerTask::Import)?;
        let bar = progress(context, size_of_input()?);
        let sent = import.feed(bar.wrap_read(stdin().lock()));
        let imported: Result<Imported> = import.answer();
        bar.finish_and_clear();
        // A node that refuses does not read on, and says why.
        let imported = imported?;
        sent.context("reading the export")?;
        context.print(&imported, |imported| format!("imported {}: {}", imported.from.slice, show(&imported.size)))
    }
}

impl Clone {
    pub(crate) fn run(self, context: &Context) -> Result<()> {
        let sliver = |slice: &SliceName, node| Sliver { slice: slice.clone(), node, reach: self.reach.clone() };
        let from = sliver(&self.from, self.node.clone()).way(context)?;
        let to = sliver(&self.to, self.to_node.clone()).way(context)?;
        self.confirm.ask(|| {
            let (source, target) = (&from.node, &to.node);
            Ok(format!("{} on {target} becomes what {} on {source} is. All that it holds is lost.", self.to, self.from))
        })?;
        let size = match self.snapshot {
            // Nothing has to travel.
            Some(name) if from.node == to.node => ask(context, &from, &LayerTask::Clone(name, self.to.login()))?,
            snapshot => {
                let mut export = Task::begin(&from, &LayerTask::Export(snapshot))?;
                let mut import = Task::begin(&to, &LayerTask::Import)?;
                let bar = progress(context, None);
                let sent = import.feed(bar.wrap_read(export.output()?));
                let imported: Result<Imported> = import.answer();
                bar.finish_and_clear();
                // An export that ended by itself may have failed, which is why there is no import then. Of one that is refused,
                // nobody takes the rest.
                if sent.is_ok() {
                    export.end()?;
                }
                let Imported { size, .. } = imported?;
                sent.context("passing the export on")?;
                size
            }
        };
        context.print(&size, |size| format!("cloned {} to {}: {}", self.from, self.to, show(size)))
    }
}

/// A task that a node is at. Its client ends with it, whatever it waits for.
struct Task {
    node: String,
    client: Child,
    errors: Option<JoinHandle<io::Result<String>>>,
}

impl Task {
    fn begin(way: &Way, task: &LayerTask) -> Result<Self> {
        let mut ssh = way.ssh(&["-T", "-s"], &task.to_string());
        ssh.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut client = ssh.spawn().context("running ssh (is OpenSSH's client installed?)")?;
        let errors = client.stderr.take().context("no output")?;
        let errors = thread::spawn(move || io::read_to_string(errors));
        Ok(Self { node: way.node.clone(), client, errors: Some(errors) })
    }

    fn output(&mut self) -> Result<impl Read + use<>> {
        self.client.stdout.take().context("no output")
    }

    /// Gives it all that is read, as far as it takes it.
    fn feed(&mut self, mut from: impl Read) -> io::Result<u64> {
        let mut to = self.client.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        io::copy(&mut from, &mut to)
    }

    /// Waits for its end, and takes what the node answers.
    fn answer<T: DeserializeOwned>(mut self) -> Result<T> {
        // It may wait for more.
        drop(self.client.stdin.take());
        let answer = io::read_to_string(self.output()?);
        self.end()?;
        serde_json::from_str(&answer.context("reading the node's answer")?).context("reading the node's answer")
    }

    /// Waits for its end, and says why if it failed.
    fn end(mut self) -> Result<()> {
        // It may wait for either.
        drop((self.client.stdin.take(), self.client.stdout.take()));
        let ended = self.client.wait().context("waiting for ssh")?;
        let said = self.errors.take().and_then(|errors| errors.join().ok()?.ok()).unwrap_or_default();
        match said.trim() {
            _ if ended.success() => Ok(()),
            "" => bail!("{}: ended with {ended}", self.node),
            said => bail!("{}: {said}", self.node),
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // One that was waited for is not there any more.
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

/// Has a node do something, and takes what it answers. Until it is done, which may take an hour, nothing is heard of it.
fn ask<T: DeserializeOwned>(context: &Context, way: &Way, task: &LayerTask) -> Result<T> {
    let task = Task::begin(way, task)?;
    let bar = bar(context, None, "{spinner} waiting for {msg}, {elapsed}").with_message(way.node.clone());
    let (done, wait) = mpsc::channel::<()>();
    let answer = thread::scope(|scope| {
        let bar = &bar;
        scope.spawn(move || {
            loop {
                // Without echo, the client asks for a passphrase: its question must not be drawn over.
                if tcgetattr(stderr()).is_ok_and(|terminal| terminal.local_modes.contains(LocalModes::ECHO)) {
                    bar.tick();
                }
                if wait.recv_timeout(PACE) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
            }
        });
        let answer = task.answer();
        drop(done);
        answer
    });
    bar.finish_and_clear();
    answer
}

/// How much there is to read from standard input, if that is a file.
fn size_of_input() -> Result<Option<u64>> {
    let examine = || {
        let mut input = File::from(stdin().as_fd().try_clone_to_owned()?);
        let metadata = input.metadata()?;
        // Somebody may have read of it before.
        metadata.is_file().then(|| Ok(metadata.len().saturating_sub(input.stream_position()?))).transpose()
    };
    let size: io::Result<_> = examine();
    size.context("examining standard input")
}

/// How far something is that is `total` bytes, if anybody knows that.
fn progress(context: &Context, total: Option<u64>) -> ProgressBar {
    let template = match total {
        Some(_) => "{bar:30} {percent}% {bytes}/{total_bytes} {bytes_per_sec}, {eta} left",
        None => "{spinner} {bytes} {bytes_per_sec}",
    };
    bar(context, total, template)
}

fn bar(context: &Context, total: Option<u64>, template: &str) -> ProgressBar {
    let bar = match total {
        _ if context.json() => ProgressBar::hidden(),
        Some(total) => ProgressBar::new(total),
        None => ProgressBar::new_spinner(),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn show(LayerSize { files, bytes }: &LayerSize) -> String {
    format!("{files} files, {}", show_bytes(*bytes))
}

fn list(snapshots: &[Snapshot]) -> String {
    let mut rows = vec![["NAME", "TAKEN", "FILES", "BYTES"].map(str::to_owned).to_vec()];
    for Snapshot { name, created, size } in snapshots {
        rows.push(vec![name.to_string(), show_time(*created), size.files.to_string(), show_bytes(size.bytes)]);
    }
    table(&rows)
}
