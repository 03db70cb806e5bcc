//! `orrery node`: which nodes there are, what is wanted of them, what they said.

mod bundle;
mod config;
mod power;
mod renew;
mod show;
mod upgrade;
mod watch;

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::Subcommand;
use orrery_central_api::{
    BootStateChange, GroupChange, NewNode, NodeDetail, NodeSummary, PowerAction, RebootAsked, checked_groups,
};
use orrery_protocol::{BootState, Digest};
use orrery_transport::Client;
use rcgen::{KeyPair, PublicKeyData};
use serde_json::json;
use ureq::http::Method;

pub(crate) use config::ConfigOptions;
use renew::Renew;
pub(crate) use show::{addresses, host_key, word};
pub(crate) use upgrade::Stopped;
use upgrade::Upgrade;
use watch::LogOptions;

use crate::{
    confirm::{Confirm, some},
    context::Context,
    files::{Access, Draft},
    keys::with_suffix,
};

#[derive(Subcommand)]
pub(crate) enum Node {
    /// Make a key and a configuration for a new node, and register it at central.
    Add(Box<Add>),
    /// List all nodes.
    List,
    /// Show a node with all that it last reported.
    Show {
        /// The node's id.
        id: String,
    },
    /// Say what is wanted of nodes: boot, reinstall, upgrade, safe or disabled.
    SetState {
        /// Wanted of the next boot only; `boot` or `safe`. The standing state stays and counts again after it.
        #[arg(long)]
        once: bool,
        /// The boot state. `reinstall` destroys the nodes' data.
        state: BootState,
        /// The nodes' ids.
        #[arg(required = true)]
        ids: Vec<String>,
        #[command(flatten)]
        confirm: Confirm,
    },
    /// Show what a node reported, oldest first.
    Events {
        /// The node's id.
        id: String,
        /// Only events after this sequence number.
        #[arg(long, value_name = "SEQ")]
        after: Option<u64>,
        /// At most so many.
        #[arg(long, default_value_t = 100)]
        limit: u32,
        /// Keep showing events as they come, until interrupted.
        #[arg(long)]
        follow: bool,
    },
    /// Show events of nodes as they come, one line each, until interrupted.
    Watch {
        /// The nodes' ids; without any, all nodes.
        ids: Vec<String>,
    },
    /// Show a node's log.
    Log(LogOptions),
    /// Pack all that central knows of a node into a tar file. No secret is in it.
    Bundle {
        /// The node's id.
        id: String,
        /// Where the bundle goes.
        #[arg(long, value_name = "FILE.tar")]
        out: PathBuf,
    },
    /// Print lines for ssh's known_hosts: nodes' host keys, before the first login.
    KnownHosts {
        /// The nodes' ids; without any, all nodes.
        ids: Vec<String>,
    },
    /// Say which groups a node is in. Its configuration must name them, too.
    Group {
        /// The node's id.
        id: String,
        /// All its groups; without any, none.
        groups: Vec<String>,
    },
    /// Ask running nodes to restart from their media.
    Reboot {
        /// The nodes' ids.
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// How nodes' power is switched, and what was done with it.
    #[command(subcommand)]
    Power(power::Power),
    /// Give nodes power.
    PowerOn(power::Switch),
    /// Take nodes' power away, at once: what runs there is not asked.
    PowerOff(power::Switch),
    /// Take nodes' power away and give it again. It counts as confirmed when the node calls home.
    PowerCycle(power::Switch),
    /// Reset machines, which keep their power.
    PowerReset(power::Switch),
    /// Ask the devices whether nodes have power.
    PowerStatus {
        /// The nodes' ids.
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Make another key for a node, and a configuration to stamp; its old medium works for a while yet.
    Renew(Renew),
    /// Bring nodes to a release, wave after wave, and stop when one fails.
    Upgrade(Upgrade),
    /// Make central forget a node. Its slivers and events are forgotten, too.
    Remove {
        /// The node's id.
        id: String,
        #[command(flatten)]
        confirm: Confirm,
    },
}

#[derive(clap::Args)]
pub(crate) struct Add {
    /// The node's id: letters, digits, `-` and `.`.
    id: String,
    /// Where the configuration goes. It holds the node's private key.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// A name for people.
    #[arg(long, default_value = "")]
    name: String,
    /// A group that it is in; scripts may be for `@group`.
    #[arg(long = "group", value_name = "GROUP", value_delimiter = ',')]
    groups: Vec<String>,
    #[command(flatten)]
    config: ConfigOptions,
    /// What is wanted of the node first.
    #[arg(long, value_name = "STATE", default_value_t = BootState::Reinstall)]
    state: BootState,
}

pub(crate) fn run(context: &Context, command: Node) -> Result<()> {
    match command {
        Node::Add(add) => add.run(context),
        Node::List => {
            let nodes: Vec<NodeSummary> = context.client()?.get("/v1/nodes")?;
            context.print(&nodes, |nodes| show::list(nodes))
        }
        Node::Show { id } => {
            let node: NodeDetail = context.client()?.get(&format!("/v1/nodes/{}", segment(&id)?))?;
            context.print(&node, show::detail)
        }
        Node::SetState { once, state, ids, confirm } => {
            let client = context.client()?;
            let paths: Vec<_> =
                ids.iter().map(|id| Ok(format!("/v1/nodes/{}/boot-state", segment(id)?))).collect::<Result<_>>()?;
            if state == BootState::Reinstall {
                confirm.ask(|| {
                    let lost = ids.iter().map(|id| slices_of(&client, id)).collect::<Result<Vec<_>>>()?;
                    Ok(format!(
                        "When they boot next, all that these slices hold on these nodes is lost:\n{}",
                        lost.join("\n")
                    ))
                })?;
            }
            for (done, path) in paths.iter().enumerate() {
                client.send(Method::PUT, path, &BootStateChange { boot_state: state, once }).with_context(|| {
                    format!("setting the state of {} (set before it: {})", ids[done], ids[..done].join(", "))
                })?;
            }
            let value = json!({ "nodes": ids, "boot_state": state, "once": once });
            let once = if once { " once" } else { "" };
            context.print(&value, |_| format!("{}: {state}{once}", ids.join(", ")))
        }
        Node::Events { id, after, limit, follow } => watch::events(context, &id, after, limit, follow),
        Node::Watch { ids } => watch::watch(context, &ids),
        Node::Log(options) => watch::log(context, &options),
        Node::Bundle { id, out } => bundle::run(context, &id, &out),
        Node::KnownHosts { ids } => known_hosts(context, &ids),
        Node::Group { id, groups } => {
            let groups = checked_groups(&groups).map_err(|bad| anyhow::anyhow!("`{bad}` cannot name a group"))?;
            let change = GroupChange { groups };
            context.client()?.send(Method::PUT, &format!("/v1/nodes/{}/groups", segment(&id)?), &change)?;
            let value = json!({ "node": id, "groups": change.groups });
            context.print(&value, |_| format!("{id}: {}", change.groups.join(", ")))
        }
        Node::Reboot { ids } => {
            let client = context.client()?;
            for id in &ids {
                let path = format!("/v1/nodes/{}/reboot", segment(id)?);
                let asked: RebootAsked = client.exchange(Method::POST, &path, &json!({}))?;
                let value = json!({ "node": id, "boot_id": asked.boot_id });
                context.print(&value, |_| format!("{id}: asked boot {} to end", asked.boot_id))?;
            }
            Ok(())
        }
        Node::Power(command) => power::run(context, command),
        Node::PowerOn(switch) => switch.run(context, PowerAction::On),
        Node::PowerOff(switch) => switch.run(context, PowerAction::Off),
        Node::PowerCycle(switch) => switch.run(context, PowerAction::Cycle),
        Node::PowerReset(switch) => switch.run(context, PowerAction::Reset),
        Node::PowerStatus { ids } => power::status(context, &ids),
        Node::Renew(renew) => renew.run(context),
        Node::Upgrade(upgrade) => upgrade.run(context),
        Node::Remove { id, confirm } => {
            let client = context.client()?;
            confirm.ask(|| {
                let slices = slices_of(&client, &id)?;
                Ok(format!("{id} is forgotten, with its key, its events, and which slices are on it:\n{slices}"))
            })?;
            client.call(Method::DELETE, &format!("/v1/nodes/{}", segment(&id)?))?;
            context.print(&json!({ "removed": id }), |_| format!("removed {id}"))
        }
    }
}

/// A node's slices, as a line.
fn slices_of(client: &Client, id: &str) -> Result<String> {
    let node: NodeDetail = client.get(&format!("/v1/nodes/{}", segment(id)?))?;
    Ok(format!("  {id}: {}", some(&node.slices)))
}

fn known_hosts(context: &Context, ids: &[String]) -> Result<()> {
    let client = context.client()?;
    let ids = if ids.is_empty() {
        client.get::<Vec<NodeSummary>>("/v1/nodes")?.into_iter().map(|node| node.id).collect()
    } else {
        ids.to_vec()
    };
    let mut lines = Vec::new();
    for id in &ids {
        let node: NodeDetail = client.get(&format!("/v1/nodes/{}", segment(id)?))?;
        lines.extend(show::known_hosts(&node));
    }
    context.print(&lines, |lines| lines.join("\n"))
}

impl Add {
    fn run(&self, context: &Context) -> Result<()> {
        let operator = context.operator()?;
        let key = KeyPair::generate().context("making the node's key")?;
        let spki = Digest::of(&key.subject_public_key_info());
        let (mut config, recovery) = self.config.config(&operator)?;
        config.id.clone_from(&self.id);
        config.name.clone_from(&self.name);
        config.groups.clone_from(&self.groups);
        config.key = key.serialize_pem();
        config.check()?;
        let text = toml::to_string_pretty(&config).context("writing the configuration as TOML")?;
        // The files are on the disk before central knows the key, so that no registered key is ever lost.
        let draft = Draft::new(&self.out, text.as_bytes(), Access::Secret)?;
        let recovery_path = with_suffix(&self.out, ".recovery");
        let recovery = Draft::new(&recovery_path, format!("{recovery}\n").as_bytes(), Access::Secret)?;
        let (id, name, groups) = (self.id.clone(), self.name.clone(), self.groups.clone());
        let node = NewNode { id, name, spki, groups, boot_state: self.state };
        let made: NodeDetail = context.client()?.exchange(Method::POST, "/v1/nodes", &node)?;
        draft.commit()?;
        recovery.commit()?;
        let value = json!({ "node": made.summary, "config": self.out, "recovery": recovery_path });
        context.print(&value, |_| {
            format!(
                "added {}; its configuration with its private key is {}; the key to its console is in {}: keep it apart",
                self.id,
                self.out.display(),
                recovery_path.display()
            )
        })
    }
}

/// An id as a segment of a path.
pub(crate) fn segment(id: &str) -> Result<&str> {
    ensure!(orrery_protocol::is_node_id(id), "`{id}` is not a node id");
    Ok(id)
}
