//! `orrery node power…`: a node's power, and how it is switched.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Subcommand;
use orrery_central_api::{
    NewPowerOperation, NodePower, PowerAction, PowerContacts, PowerHold, PowerMethods, PowerOperation, PowerOutcome,
    PowerResult, PowerStateRead,
};
use orrery_transport::TransportError;
use serde::Deserialize;
use serde_json::{Value, json};
use ureq::http::Method;

use super::segment;
use crate::{
    context::Context,
    files,
    power::{failure_line, operations_table, test_lines},
    units::{Seconds, clean, show_time, table},
};

/// How often an operation is looked at.
const PACE: Duration = Duration::from_secs(1);

#[derive(Subcommand)]
pub(crate) enum Power {
    /// Say by which methods a node's power is switched. Central uses them: files and programs that they name are in the folder `power`
    /// of central's data folder, and secrets never leave it.
    Set {
        /// The node's id.
        id: String,
        /// A TOML file with `methods = [...]`, as an inventory of `pcu` has them, the preferred one first.
        #[arg(long, value_name = "FILE.toml")]
        file: PathBuf,
    },
    /// Show what central knows of a node's power.
    Show {
        /// The node's id.
        id: String,
    },
    /// Forget by which methods a node's power is switched.
    Clear {
        /// The node's id.
        id: String,
    },
    /// Say who is told when a node stays down; what is not given is forgotten.
    Contact {
        /// The node's id.
        id: String,
        /// Who looks after the machine.
        #[arg(long)]
        tech: Option<String>,
        /// Who answers for the site.
        #[arg(long)]
        pi: Option<String>,
    },
    /// Keep central's hands off a node's power, while somebody works at it.
    Hold {
        /// The node's id.
        id: String,
        /// Why, in one line.
        #[arg(long)]
        reason: String,
    },
    /// Let central look after a node's power again.
    Release {
        /// The node's id.
        id: String,
    },
    /// List what was done with a node's power, or with that of all nodes: by whom, why, and with which success.
    Log {
        /// The node's id; without one, all nodes.
        id: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
}

/// Nodes, a reason, and whether to wait.
#[derive(clap::Args)]
pub(crate) struct Switch {
    /// The nodes' ids.
    #[arg(required = true)]
    ids: Vec<String>,
    /// Why, in one line. It is kept with your name.
    #[arg(long)]
    reason: String,
    /// How long a node may take to call home afterwards.
    #[arg(long, value_name = "SPAN", default_value = "20m")]
    confirm_within: Seconds,
    /// Wait until every node has called home, or will not.
    #[arg(long)]
    wait: bool,
}

/// A file of methods.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MethodsFile {
    methods: Vec<Value>,
}

pub(crate) fn run(context: &Context, command: Power) -> Result<()> {
    let client = context.client()?;
    let path = |id: &str| Ok::<_, anyhow::Error>(format!("/v1/nodes/{}/power", segment(id)?));
    let said = |id: &str, what: &str| context.print(&json!({ "node": id, "power": what }), |_| format!("{id}: {what}"));
    match command {
        Power::Set { id, file } => {
            client.send(Method::PUT, &path(&id)?, &PowerMethods { methods: read_methods(&file)? })?;
            said(&id, "methods set; `orrery power test` tries them")
        }
        Power::Show { id } => {
            let power: NodePower = client.get(&path(&id)?)?;
            context.print(&power, show)
        }
        Power::Clear { id } => {
            client.call(Method::DELETE, &path(&id)?)?;
            said(&id, "no methods any more")
        }
        Power::Contact { id, tech, pi } => {
            client.send(Method::PUT, &format!("{}/contacts", path(&id)?), &PowerContacts { tech, pi })?;
            said(&id, "contacts set")
        }
        Power::Hold { id, reason } => {
            client.send(Method::PUT, &format!("{}/hold", path(&id)?), &PowerHold { reason: Some(reason) })?;
            said(&id, "held: central does nothing with its power by itself")
        }
        Power::Release { id } => {
            client.send(Method::PUT, &format!("{}/hold", path(&id)?), &PowerHold { reason: None })?;
            said(&id, "released")
        }
        Power::Log { id, limit } => {
            let path = match id {
                Some(id) => format!("{}/operations?limit={limit}", path(&id)?),
                None => format!("/v1/power/operations?limit={limit}"),
            };
            let operations: Vec<PowerOperation> = client.get(&path)?;
            context.print(&operations, |operations| operations_table(operations))
        }
    }
}

fn read_methods(file: &Path) -> Result<Vec<Value>> {
    let text = files::read_text(file)?;
    let MethodsFile { methods } = toml::from_str(&text).with_context(|| format!("reading {}", file.display()))?;
    ensure!(!methods.is_empty(), "{} has no method", file.display());
    Ok(methods)
}

fn show(power: &NodePower) -> String {
    let mut rows = vec![vec!["node".to_owned(), power.node.clone()]];
    let mut add = |name: &str, value: String| rows.push(vec![name.to_owned(), clean(&value)]);
    for method in &power.methods {
        add("method", method.to_string());
    }
    if power.methods.is_empty() {
        add("method", "none: its power cannot be switched from here".to_owned());
    }
    add("tested", power.tested.map_or_else(|| "never".to_owned(), show_time));
    power.tests.iter().flat_map(test_lines).for_each(|line| add("test", line));
    power.contacts.tech.iter().for_each(|tech| add("tech", tech.clone()));
    power.contacts.pi.iter().for_each(|pi| add("pi", pi.clone()));
    power.held.iter().for_each(|why| add("HELD", why.clone()));
    if let Some(record) = &power.record {
        add("DOWN", crate::power::record_line(record));
    }
    table(&rows)
}

impl Switch {
    pub(crate) fn run(self, context: &Context, action: PowerAction) -> Result<()> {
        let client = context.client()?;
        let Self { ids, reason, confirm_within: Seconds(confirm_within), wait } = self;
        let new = NewPowerOperation { action, reason, confirm_within };
        let paths: Vec<_> =
            ids.iter().map(|id| Ok(format!("/v1/nodes/{}/power/operations", segment(id)?))).collect::<Result<_>>()?;
        let mut open = BTreeMap::new();
        for (done, path) in paths.iter().enumerate() {
            let asked: PowerOperation = client
                .exchange(Method::POST, path, &new)
                .with_context(|| format!("node {} (asked before it: {})", ids[done], ids[..done].join(", ")))?;
            if !wait {
                let line = format!("{}: operation {} asked for; see `orrery node power log`", ids[done], asked.id);
                context.print(&asked, |_| line)?;
            }
            open.insert(asked.id, None);
        }
        let mut failed = Vec::new();
        while wait && !open.is_empty() {
            for (id, known) in std::mem::take(&mut open) {
                let operation: PowerOperation = client.get(&format!("/v1/power/operations/{id}"))?;
                // Turning off without a state to read is over once the device has accepted it.
                let awaited = operation.result != PowerResult::Unconfirmed || operation.confirm_by.is_some();
                let over = !operation.result.is_open() || !awaited;
                if over || (known != Some(operation.result) && !context.json()) {
                    context.print(&operation, progress)?;
                }
                let accepted = !awaited && operation.outcome == Some(PowerOutcome::Accepted);
                if over && operation.result != PowerResult::Confirmed && !accepted {
                    failed.push(operation.node);
                } else if !over {
                    open.insert(id, Some(operation.result));
                }
            }
            if !open.is_empty() {
                std::thread::sleep(PACE);
            }
        }
        if !failed.is_empty() {
            bail!("not confirmed on {}", failed.join(", "));
        }
        Ok(())
    }
}

/// Where an operation stands, as a line.
fn progress(operation: &PowerOperation) -> String {
    let by = operation.method.as_ref().map(|method| format!(" by {method}")).unwrap_or_default();
    let why = operation.attempts.last().and_then(|last| last.failure.as_ref()).map(failure_line);
    let what = match operation.result {
        PowerResult::Pending => "asked for".to_owned(),
        PowerResult::Running => "talking to the device".to_owned(),
        PowerResult::Unconfirmed if operation.confirm_by.is_none() => format!("accepted{by}, not seen"),
        PowerResult::Unconfirmed => format!("done{by}; waiting for the node to call home"),
        PowerResult::Confirmed => format!("confirmed{by}"),
        PowerResult::Expired => format!("done{by}, but the node did not call home in time"),
        PowerResult::Failed => format!("FAILED: {}", why.unwrap_or_else(|| "no method did it".to_owned())),
        PowerResult::Unknown => "central was stopped in the middle".to_owned(),
        PowerResult::Superseded => "another operation began before it was confirmed".to_owned(),
    };
    clean(&format!("{}: {} {what}", operation.node, operation.action.as_str()))
}

/// `orrery node power-status`.
pub(crate) fn status(context: &Context, ids: &[String]) -> Result<()> {
    let client = context.client()?;
    let paths: Vec<_> =
        ids.iter().map(|id| Ok(format!("/v1/nodes/{}/power/state", segment(id)?))).collect::<Result<_>>()?;
    let mut failed = Vec::new();
    for (id, path) in ids.iter().zip(paths) {
        match client.get::<PowerStateRead>(&path) {
            Ok(PowerStateRead { state, method }) => {
                let value = json!({ "node": id, "state": state, "method": method });
                context.print(&value, |_| clean(&format!("{id}: {state} ({method})")))?;
            }
            // The others are asked all the same.
            Err(TransportError::Refused { message, .. }) if ids.len() > 1 => failed.push(message),
            Err(error) => return Err(error.into()),
        }
    }
    ensure!(failed.is_empty(), "{}", clean(&failed.join("; ")));
    Ok(())
}
