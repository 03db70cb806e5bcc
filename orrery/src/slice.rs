//! `orrery slice`: slices, their keys, limits and nodes, and what runs in their slivers.

pub(crate) mod connect;
mod copy;
mod exec;
mod layer;
mod logs;
mod slivers;
mod startup;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Subcommand;
use orrery_central_api::{SliceRecord, SliceSpec, SliverRecord, StartOver, StartOverAsked, Suspension};
use orrery_protocol::{Admin, Capability, Rspec, SliceName, Startup, View};
use orrery_transport::{Client, TransportError};
use serde::Serialize;
use serde_json::json;
use ureq::http::Method;

use crate::{
    confirm::{Confirm, some},
    context::Context,
    extras::{self, ExtraArgs},
    files,
    limits::{self, Limits},
    slice::startup::StartupOptions,
    units::{clean, table},
};

/// How central refuses a change of what there is no more.
const CHANGED: &str = "changed";
/// How often a change is tried while others keep changing the same slice.
const TRIES: u32 = 10;

#[derive(Subcommand)]
pub(crate) enum Slice {
    /// Make a slice.
    Add {
        /// Its name, `<authority>/<name>`.
        slice: SliceName,
        /// OpenSSH public keys that may log in.
        #[arg(long = "key", value_name = "FILE.pub", required = true)]
        keys: Vec<PathBuf>,
        /// Limits of each sliver, as mem_limit=256M,cpu_pct=50; `none` lifts one that need not be. All are in the users' guide.
        #[arg(long, value_name = "LIMIT=VALUE,...")]
        rspec: Vec<Limits>,
        #[command(flatten)]
        extras: ExtraArgs,
        /// The reference image that slivers start from.
        #[arg(long, default_value = "debian")]
        image: String,
        /// Ids of nodes to have slivers on.
        #[arg(long = "node", value_name = "ID", value_delimiter = ',')]
        nodes: Vec<String>,
        #[command(flatten)]
        startup: StartupOptions,
    },
    /// Change keys, limits, image or programs of a slice; what is not given stays.
    Set {
        /// Its name.
        slice: SliceName,
        /// OpenSSH public keys, instead of those it has.
        #[arg(long = "key", value_name = "FILE.pub")]
        keys: Vec<PathBuf>,
        /// Limits to change.
        #[arg(long, value_name = "LIMIT=VALUE,...")]
        rspec: Vec<Limits>,
        #[command(flatten)]
        extras: ExtraArgs,
        /// The reference image.
        #[arg(long)]
        image: Option<String>,
        #[command(flatten)]
        startup: StartupOptions,
    },
    /// Give a slice slivers on further nodes.
    Assign {
        /// Its name.
        slice: SliceName,
        /// Ids of the nodes.
        #[arg(long = "node", value_name = "ID", required = true, value_delimiter = ',')]
        nodes: Vec<String>,
    },
    /// Take a slice's slivers off nodes. Their data is lost.
    Unassign {
        /// Its name.
        slice: SliceName,
        /// Ids of the nodes.
        #[arg(long = "node", value_name = "ID", required = true, value_delimiter = ',')]
        nodes: Vec<String>,
        #[command(flatten)]
        confirm: Confirm,
    },
    /// Have all that runs in a slice stand still, and let nobody log in.
    Suspend {
        /// Its name.
        slice: SliceName,
        /// What those who try to log in are told.
        #[arg(long, default_value = "ask your operator")]
        reason: String,
    },
    /// Let a suspended slice go on.
    Resume {
        /// Its name.
        slice: SliceName,
    },
    /// End all that runs in a slice, services as well, and let nobody log in. What it wrote stays.
    Stop {
        /// Its name.
        slice: SliceName,
        /// What those who try to log in are told.
        #[arg(long, default_value = "it is stopped; `orrery slice start` starts it")]
        reason: String,
    },
    /// Let a stopped slice run again. Its initscripts and services start; it is the same as `resume`.
    Start {
        /// Its name.
        slice: SliceName,
    },
    /// Make a slice administrative: let its slivers see and use more of their nodes than any other. All that runs in them ends.
    Admin {
        /// Its name.
        slice: SliceName,
        /// What they see below /node, instead of what they see now: processes, cgroups, hardware, events.
        #[arg(long = "view", value_name = "VIEW", value_delimiter = ',', required_unless_present_any = ["capabilities", "none"])]
        views: Vec<View>,
        /// What they may do, instead of what they may now: net_raw.
        #[arg(long = "capability", value_name = "CAPABILITY", value_delimiter = ',')]
        capabilities: Vec<Capability>,
        /// Make it an ordinary slice.
        #[arg(long, conflicts_with_all = ["views", "capabilities"])]
        none: bool,
    },
    /// Start slivers over from the image. All that they wrote is lost.
    Reset {
        /// Its name.
        slice: SliceName,
        /// Ids of the nodes whose slivers are meant.
        #[arg(long = "node", value_name = "ID", required_unless_present = "all", value_delimiter = ',')]
        nodes: Vec<String>,
        /// All slivers of the slice are meant.
        #[arg(long, conflicts_with = "nodes")]
        all: bool,
        #[command(flatten)]
        confirm: Confirm,
    },
    /// End all that runs in slivers. What they wrote stays.
    Restart {
        /// Its name.
        slice: SliceName,
        /// Ids of the nodes whose slivers are meant; all of the slice by default.
        #[arg(long = "node", value_name = "ID", value_delimiter = ',')]
        nodes: Vec<String>,
    },
    /// Run a command in slivers. On one node, input and output are the command's and so is the exit status; on several, each line
    /// has its node before it, and the exit status is the greatest.
    Exec(exec::Exec),
    /// Log into a sliver.
    Shell(exec::Shell),
    /// Copy files into a sliver or out of it.
    Cp(copy::Copy),
    /// Show what a sliver's initscript and service printed.
    Logs(logs::Logs),
    /// Snapshots of what a sliver has written: take, list, restore, delete. They count towards its disk quota.
    #[command(subcommand)]
    Snapshot(layer::Snapshots),
    /// Write what a sliver has written to standard output, to be imported elsewhere.
    Export(layer::Export),
    /// Make a sliver what an export is that standard input has. All that the sliver holds is lost, and all that runs in it ends.
    Import(layer::Import),
    /// Make a sliver what another one is, of the same image, here or on another node.
    Clone(layer::Clone),
    /// Wait until a slice's slivers are as the slice is to be: made, and with all changes in force. Fails at once if one cannot become so.
    Wait(slivers::Wait),
    /// List all slices.
    List,
    /// Show a slice, and how its slivers are.
    Show {
        /// Its name.
        slice: SliceName,
    },
    /// Remove a slice. All its slivers with their data are lost.
    Remove {
        /// Its name.
        slice: SliceName,
        #[command(flatten)]
        confirm: Confirm,
    },
}

pub(crate) fn run(context: &Context, command: Slice) -> Result<()> {
    let client = context.client()?;
    let get = |slice: &SliceName| client.get::<SliceRecord>(&path(slice));
    let start_over = |slice: &SliceName, how: &str, nodes| {
        let which = StartOver { nodes };
        let asked: StartOverAsked = client.exchange(Method::POST, &format!("{}/{how}", path(slice)), &which)?;
        let number = asked.number;
        context.print(&asked, |_| {
            format!(
                "asked for {how} {number} of {slice}: within half a minute where a node is up (`orrery slice wait {slice}`)"
            )
        })
    };
    let suspend = |slice: &SliceName, suspension: Suspension| {
        client.send(Method::PUT, &format!("{}/suspension", path(slice)), &suspension)?;
        show(context, &client, slice)
    };
    match command {
        Slice::Add { slice, keys, rspec: limits, extras, image, nodes, startup: options } => {
            let mut rspec = Rspec::default();
            limits.iter().try_for_each(|limits| limits.apply(&mut rspec))?;
            extras.apply(&mut rspec.extras);
            let mut startup = Startup::default();
            options.apply(&mut startup)?;
            rspec.check()?;
            let spec = SliceSpec { version: Some(0), keys: files::ssh_keys(&keys)?, rspec, image, nodes, startup };
            match client.send(Method::PUT, &path(&slice), &spec) {
                Err(TransportError::Refused { class, .. }) if class == CHANGED => {
                    bail!("slice {slice} exists already: change it with `orrery slice set` or `assign`")
                }
                result => result?,
            }
            show(context, &client, &slice)
        }
        Slice::Set { slice, keys, rspec: limits, extras, image, startup: options } => {
            let keys = files::ssh_keys(&keys)?;
            change(&client, &slice, |spec| {
                limits.iter().try_for_each(|limits| limits.apply(&mut spec.rspec))?;
                extras.apply(&mut spec.rspec.extras);
                if let Some(image) = &image {
                    spec.image.clone_from(image);
                }
                options.apply(&mut spec.startup)?;
                if !keys.is_empty() {
                    spec.keys.clone_from(&keys);
                }
                Ok(spec.rspec.check()?)
            })?;
            show(context, &client, &slice)
        }
        Slice::Assign { slice, nodes } => {
            change(&client, &slice, |spec| {
                spec.nodes.extend_from_slice(&nodes);
                spec.nodes.sort();
                spec.nodes.dedup();
                Ok(())
            })?;
            show(context, &client, &slice)
        }
        Slice::Unassign { slice, nodes, confirm } => {
            connect::on_all(&slice, &get(&slice)?.spec.nodes, &nodes)?;
            confirm.ask(|| Ok(format!("All that {slice} holds on {} is lost, with its snapshots.", some(&nodes))))?;
            change(&client, &slice, |spec| {
                spec.nodes.retain(|node| !nodes.contains(node));
                Ok(())
            })?;
            show(context, &client, &slice)
        }
        Slice::Suspend { slice, reason } => suspend(&slice, Suspension { reason, stop: false }),
        Slice::Stop { slice, reason } => suspend(&slice, Suspension { reason, stop: true }),
        Slice::Resume { slice } | Slice::Start { slice } => {
            client.call(Method::DELETE, &format!("{}/suspension", path(&slice)))?;
            show(context, &client, &slice)
        }
        // With `none`, there are neither views nor capabilities.
        Slice::Admin { slice, views, capabilities, none: _ } => {
            let admin = Admin { views: views.into_iter().collect(), capabilities: capabilities.into_iter().collect() };
            client.send(Method::PUT, &format!("{}/admin", path(&slice)), &admin)?;
            show(context, &client, &slice)
        }
        // With `all`, no nodes are named.
        Slice::Reset { slice, nodes, all: _, confirm } => {
            confirm.ask(|| {
                let on = if nodes.is_empty() { some(&get(&slice)?.spec.nodes) } else { some(&nodes) };
                Ok(format!(
                    "{slice} starts over from its image on {on}. All it holds there is lost, with its snapshots."
                ))
            })?;
            start_over(&slice, "reset", nodes)
        }
        Slice::Restart { slice, nodes } => start_over(&slice, "restart", nodes),
        Slice::Exec(exec) => exec.run(context),
        Slice::Shell(shell) => shell.run(context),
        Slice::Cp(copy) => copy.run(context),
        Slice::Logs(logs) => logs.run(context),
        Slice::Snapshot(snapshots) => snapshots.run(context),
        Slice::Export(export) => export.run(context),
        Slice::Import(import) => import.run(context),
        Slice::Clone(clone) => clone.run(context),
        Slice::Wait(wait) => wait.run(context),
        Slice::List => {
            let slices: Vec<SliceRecord> = client.get("/v1/slices")?;
            context.print(&slices, |slices| list(slices))
        }
        Slice::Show { slice } => show(context, &client, &slice),
        Slice::Remove { slice, confirm } => {
            confirm.ask(|| {
                let on = some(&get(&slice)?.spec.nodes);
                Ok(format!("{slice} is removed. All that it holds on its nodes is lost, with its snapshots: {on}."))
            })?;
            client.call(Method::DELETE, &path(&slice))?;
            context.print(&json!({ "removed": slice }), |_| format!("removed {slice}"))
        }
    }
}

fn path(slice: &SliceName) -> String {
    format!("/v1/slices/{slice}")
}

/// Changes a slice, and again if somebody else changed it meanwhile.
fn change(client: &Client, slice: &SliceName, change: impl Fn(&mut SliceSpec) -> Result<()>) -> Result<()> {
    let mut tries = 0;
    loop {
        let mut spec = client.get::<SliceRecord>(&path(slice))?.spec;
        change(&mut spec)?;
        tries += 1;
        match client.send(Method::PUT, &path(slice), &spec) {
            Err(TransportError::Refused { class, .. }) if class == CHANGED && tries < TRIES => {}
            result => return Ok(result?),
        }
    }
}

/// A slice, and how its slivers are.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    record: SliceRecord,
    slivers: Vec<SliverRecord>,
}

fn show(context: &Context, client: &Client, slice: &SliceName) -> Result<()> {
    let record = client.get(&path(slice))?;
    context.print(&Shown { record, slivers: slivers::fetch(client, slice)? }, rows)
}

fn list(slices: &[SliceRecord]) -> String {
    let mut rows = vec![["SLICE", "LOGIN", "IMAGE", "NODES"].map(str::to_owned).to_vec()];
    for SliceRecord { slice, spec, .. } in slices {
        rows.push(vec![slice.to_string(), slice.login(), spec.image.clone(), spec.nodes.len().to_string()]);
    }
    table(&rows)
}

fn rows(Shown { record: SliceRecord { slice, suspended, admin, spec }, slivers }: &Shown) -> String {
    let mut rows = vec![("slice", slice.to_string()), ("login", slice.login()), ("image", spec.image.clone())];
    rows.extend(limits::show(&spec.rspec));
    rows.extend(startup::rows(&spec.startup));
    rows.extend(extras::show(spec.rspec.extras));
    rows.extend(suspended.iter().map(|reason| ("suspended", reason.clone())));
    rows.extend(admin.views.iter().map(|view| ("view", view.to_string())));
    rows.extend(admin.capabilities.iter().map(|capability| ("capability", capability.to_string())));
    rows.extend(slivers.iter().map(|sliver| ("node", slivers::line(sliver))));
    rows.extend(spec.keys.iter().map(|key| ("key", key.clone())));
    table(&rows.into_iter().map(|(name, value)| vec![name.to_owned(), clean(&value)]).collect::<Vec<_>>())
}
