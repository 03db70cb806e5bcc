//! `orrery node`: which nodes there are, what is wanted of them, what they said.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Subcommand, ValueEnum};
use orrery_central_api::{BootStateChange, NewNode, NodeDetail, NodeSummary, StoredEvent};
use orrery_protocol::{
    Addressing, BootState, Central, Digest, DiskRule, Install, Network, NodeConfig, Outcome, StaticAddress,
};
use rcgen::{KeyPair, PublicKeyData};
use serde_json::json;
use ureq::http::Method;

use crate::{
    context::{Context, Operator},
    files::{self, Access, Draft},
    keys,
    units::{Bytes, clean, now, show_bytes, show_time, table},
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
    /// Say what is wanted of nodes: boot, reinstall, safe or disabled.
    SetState {
        /// The boot state. `reinstall` destroys the nodes' data.
        state: BootState,
        /// The nodes' ids.
        #[arg(required = true)]
        ids: Vec<String>,
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
    /// Make central forget a node. Its slivers and events are forgotten, too.
    Remove {
        /// The node's id.
        id: String,
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
    /// Base URLs of boot servers as the node reaches them; without any, the operator's.
    #[arg(long = "url", value_name = "URL")]
    urls: Vec<String>,
    /// Public release keys that the node obeys.
    #[arg(long = "release-key", value_name = "FILE.pub", required = true)]
    release_keys: Vec<PathBuf>,
    /// How many of them must sign.
    #[arg(long, value_name = "N", default_value_t = 1)]
    release_threshold: u8,
    /// How the node gets its address.
    #[arg(long, value_enum, default_value_t = NetworkKind::Dhcp)]
    network: NetworkKind,
    /// The static address with its prefix, as 192.0.2.7/24.
    #[arg(long, value_name = "ADDR/PREFIX", required_if_eq("network", "static"))]
    address: Option<String>,
    /// The default gateway of a static address.
    #[arg(long, value_name = "ADDR", requires = "address")]
    gateway: Option<Ipv4Addr>,
    /// The interface by kernel name or MAC address; without it, the first with a link.
    #[arg(long)]
    interface: Option<String>,
    /// Name servers.
    #[arg(long, value_name = "ADDR")]
    dns: Vec<IpAddr>,
    /// Time servers.
    #[arg(long, value_name = "HOST[:PORT]")]
    ntp: Vec<String>,
    /// Install on the disk with this serial number.
    #[arg(long, value_name = "SERIAL")]
    disk_serial: Option<String>,
    /// Install on the disk with this World Wide Identifier.
    #[arg(long, value_name = "WWID")]
    disk_wwid: Option<String>,
    /// Install on the disk whose model contains this.
    #[arg(long, value_name = "TEXT")]
    disk_model: Option<String>,
    /// Install on a disk of at least this size, as 8G.
    #[arg(long, value_name = "SIZE")]
    disk_min: Option<Bytes>,
    /// Install on a disk of at most this size.
    #[arg(long, value_name = "SIZE")]
    disk_max: Option<Bytes>,
    /// Allow overwriting somebody else's data on the disk.
    #[arg(long)]
    wipe: bool,
    /// OpenSSH public keys that safe mode admits.
    #[arg(long = "admin-key", value_name = "FILE.pub")]
    admin_keys: Vec<PathBuf>,
    /// What is wanted of the node first.
    #[arg(long, value_name = "STATE", default_value_t = BootState::Reinstall)]
    state: BootState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum NetworkKind {
    Dhcp,
    Static,
}

pub(crate) fn run(context: &Context, command: Node) -> Result<()> {
    match command {
        Node::Add(add) => add.run(context),
        Node::List => {
            let nodes: Vec<NodeSummary> = context.client()?.get("/v1/nodes")?;
            context.print(&nodes, |nodes| list(nodes))
        }
        Node::Show { id } => {
            let node: NodeDetail = context.client()?.get(&format!("/v1/nodes/{}", segment(&id)?))?;
            context.print(&node, detail)
        }
        Node::SetState { state, ids } => {
            let client = context.client()?;
            let paths: Vec<_> =
                ids.iter().map(|id| Ok(format!("/v1/nodes/{}/boot-state", segment(id)?))).collect::<Result<_>>()?;
            for (done, path) in paths.iter().enumerate() {
                client.send(Method::PUT, path, &BootStateChange { boot_state: state, once: false }).with_context(
                    || format!("setting the state of {} (set before it: {})", ids[done], ids[..done].join(", ")),
                )?;
            }
            let value = json!({ "nodes": ids, "boot_state": state });
            context.print(&value, |_| format!("{}: {state}", ids.join(", ")))
        }
        Node::Events { id, after, limit, follow } => events(context, &id, after, limit, follow),
        Node::Remove { id } => {
            context.client()?.call(Method::DELETE, &format!("/v1/nodes/{}", segment(&id)?))?;
            context.print(&json!({ "removed": id }), |_| format!("removed {id}"))
        }
    }
}

impl Add {
    fn run(&self, context: &Context) -> Result<()> {
        let operator = context.operator()?;
        let key = KeyPair::generate().context("making the node's key")?;
        let spki = Digest::of(&key.subject_public_key_info());
        let config = self.config(&operator, key.serialize_pem())?;
        let text = toml::to_string_pretty(&config).context("writing the configuration as TOML")?;
        // The file is on the disk before central knows its key, so that no registered key is ever lost.
        let draft = Draft::new(&self.out, text.as_bytes(), Access::Secret)?;
        let node =
            NewNode { id: self.id.clone(), name: self.name.clone(), spki, boot_state: self.state, groups: Vec::new() };
        let made: NodeDetail = context.client()?.exchange(Method::POST, "/v1/nodes", &node)?;
        draft.commit()?;
        let value = json!({ "node": made.summary, "config": self.out });
        context.print(&value, |_| {
            format!("added {}; its configuration with its private key is {}", self.id, self.out.display())
        })
    }

    fn config(&self, operator: &Operator, key: String) -> Result<NodeConfig> {
        let addressing = match (self.network, &self.address) {
            (NetworkKind::Static, Some(address)) => Addressing::Static(self.static_address(address)?),
            (NetworkKind::Static, None) => bail!("a static network needs --address"),
            (NetworkKind::Dhcp, None) => Addressing::Dhcp,
            (NetworkKind::Dhcp, Some(_)) => bail!("--address goes with --network static"),
        };
        let urls = if self.urls.is_empty() { vec![operator.url.clone()] } else { self.urls.clone() };
        let config = NodeConfig {
            id: self.id.clone(),
            name: self.name.clone(),
            key,
            enrol_token: None,
            groups: Vec::new(),
            central: Central {
                urls,
                ca: operator.ca.clone(),
                release_keys: keys::read_public(&self.release_keys)?,
                release_threshold: self.release_threshold,
            },
            network: Network {
                interface: self.interface.clone(),
                addressing,
                dns: self.dns.clone(),
                ntp: self.ntp.clone(),
            },
            install: Install {
                disk: DiskRule {
                    serial: self.disk_serial.clone(),
                    wwid: self.disk_wwid.clone(),
                    model: self.disk_model.clone(),
                    min_bytes: self.disk_min.map(|b| b.0),
                    max_bytes: self.disk_max.map(|b| b.0),
                },
                wipe: self.wipe,
            },
            admin_keys: files::ssh_keys(&self.admin_keys)?,
            admin_networks: Vec::new(),
            recovery: None,
            waivers: Vec::new(),
        };
        config.check()?;
        Ok(config)
    }

    fn static_address(&self, text: &str) -> Result<StaticAddress> {
        let parsed = text.split_once('/').and_then(|(a, p)| Some((a.parse().ok()?, p.parse().ok()?)));
        let (address, prefix) = parsed.with_context(|| format!("`{text}` is not an address like 192.0.2.7/24"))?;
        Ok(StaticAddress { address, prefix, gateway: self.gateway })
    }
}

/// An id as a segment of a path.
fn segment(id: &str) -> Result<&str> {
    ensure!(orrery_protocol::is_node_id(id), "`{id}` is not a node id");
    Ok(id)
}

fn events(context: &Context, id: &str, mut after: Option<u64>, limit: u32, follow: bool) -> Result<()> {
    let client = context.client()?;
    loop {
        let from = after.map(|seq| format!("&after={seq}")).unwrap_or_default();
        let events: Vec<StoredEvent> = client.get(&format!("/v1/nodes/{}/events?limit={limit}{from}", segment(id)?))?;
        if !follow {
            return context.print(&events, |events| events.iter().map(event_line).collect::<Vec<_>>().join("\n"));
        }
        for event in &events {
            context.print(event, event_line)?;
        }
        after = events.last().map(|e| e.seq).or(after).or(Some(0));
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn event_line(stored: &StoredEvent) -> String {
    let event = &stored.event;
    let outcome = match event.outcome {
        Outcome::Ok => "ok".to_owned(),
        Outcome::Info => "-".to_owned(),
        Outcome::Failed => format!("FAILED {}", event.class.as_deref().unwrap_or("")),
    };
    let (seconds, millis) = (event.at_ms / 1000, event.at_ms % 1000);
    let boot = event.boot_id.get(..8).unwrap_or(&event.boot_id);
    clean(&format!(
        "{} {boot} {} +{seconds}.{millis:03}s {} {outcome} {}",
        show_time(stored.received),
        event.role,
        event.stage,
        event.message
    ))
}

fn list(nodes: &[NodeSummary]) -> String {
    let mut rows = vec![["ID", "NAME", "WANTED", "RUN LEVEL", "LAST SEEN"].map(str::to_owned).to_vec()];
    for node in nodes {
        rows.push(vec![
            node.id.clone(),
            clean(&node.name),
            node.boot_state.to_string(),
            word(&node.run_level),
            node.last_seen.map_or_else(|| "never".to_owned(), ago),
        ]);
    }
    table(&rows)
}

fn detail(node: &NodeDetail) -> String {
    let s = &node.summary;
    let mut rows: Vec<(&str, String)> = vec![
        ("id", s.id.clone()),
        ("name", s.name.clone()),
        ("wanted", s.boot_state.to_string()),
        ("run level", word(&s.run_level)),
        ("last seen", s.last_seen.map_or_else(|| "never".to_owned(), |t| format!("{} ({})", show_time(t), ago(t)))),
        ("key", s.spki.map_or_else(|| "none yet".to_owned(), |spki| spki.to_string())),
    ];
    if let Some(f) = &node.facts {
        rows.push(("machine", format!("{} {} (serial {}), {} firmware", f.vendor, f.product, f.serial, f.firmware)));
        rows.push(("cpu", format!("{} × {}", f.cpus, f.cpu_model)));
        rows.push(("memory", show_bytes(f.memory.total)));
        rows.push(("medium", format!("{}, kernel {}, clock from {}", f.medium_version, f.kernel, f.clock)));
        rows.push(("installed", f.installed.clone().unwrap_or_else(|| "nothing".to_owned())));
        rows.extend(f.disks.iter().map(|d| ("disk", format!("{} {} {}", d.name, show_bytes(d.size), d.stable_id))));
        rows.extend(f.nics.iter().map(|n| {
            let link = if n.link { "link" } else { "no link" };
            ("interface", format!("{} {} {link} {}", n.name, n.mac, n.addresses.join(" ")))
        }));
    }
    if let Some(status) = &node.status {
        rows.push(("release", status.release.clone()));
        rows.push(("ssh host key", status.ssh_host_key.clone()));
        rows.extend(status.slivers.iter().map(|s| {
            let error = s.error.as_deref().map(|e| format!(": {e}")).unwrap_or_default();
            ("sliver", format!("{} {}{error}", s.slice, word(&Some(s.state))))
        }));
    }
    rows.extend(node.slices.iter().map(|slice| ("wanted slice", slice.to_string())));
    table(&rows.into_iter().map(|(name, value)| vec![name.to_owned(), clean(&value)]).collect::<Vec<_>>())
}

/// The word for a value such as a run level.
fn word<T: serde::Serialize>(value: &Option<T>) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => "unknown".to_owned(),
    }
}

fn ago(unix: u64) -> String {
    match now().saturating_sub(unix) {
        s if s < 120 => format!("{s} s ago"),
        s if s < 7200 => format!("{} min ago", s / 60),
        s if s < 172_800 => format!("{} h ago", s / 3600),
        s => format!("{} days ago", s / 86400),
    }
}
