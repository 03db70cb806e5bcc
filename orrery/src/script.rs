//! `orrery script`: boot scripts.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::{Subcommand, ValueEnum};
use orrery_central_api::{ScriptRecord, peek};
use orrery_protocol::{ArtifactRef, BootScript, Cidr, Digest, PayloadType, ReleaseManifest, ScriptKind, is_node_id};
use serde_json::json;

use crate::{
    context::Context,
    files::{self, Access},
    keys::Sign,
    units::{Seconds, clean, now, show_time, table},
};

#[derive(Subcommand)]
pub(crate) enum Script {
    /// Write a boot script to sign; works offline.
    New {
        /// What nodes are to do.
        #[arg(long, value_enum)]
        kind: Kind,
        /// The signed release manifest to install or to repair from; not for kind `safe`.
        #[arg(long, value_name = "SIGNED", required_if_eq_any([("kind", "install"), ("kind", "boot")]))]
        release: Option<PathBuf>,
        /// Ids of the nodes it is for; `*` is every node.
        #[arg(long = "node", value_name = "ID", required = true, value_delimiter = ',')]
        nodes: Vec<String>,
        /// Must not be below that of an earlier script of this kind; without it, the current Unix time.
        #[arg(long, value_name = "N")]
        serial: Option<u64>,
        /// How long it is valid, as 12h or 30d.
        #[arg(long, value_name = "SPAN", default_value = "30d")]
        expires: Seconds,
        /// OpenSSH public keys that safe mode admits.
        #[arg(long = "ssh-key", value_name = "FILE.pub")]
        ssh_keys: Vec<PathBuf>,
        /// Networks that safe mode can be reached from, as 192.0.2.0/24. Without any, it can be reached from nowhere but
        /// those of the node's own configuration.
        #[arg(long = "network", value_name = "CIDR", value_parser = network)]
        networks: Vec<Cidr>,
        /// Where the script goes.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Sign a script with release keys; works offline.
    Sign(Sign),
    /// Upload a signed script. Nodes get it at their next boot.
    Publish {
        /// The signed script.
        script: PathBuf,
    },
    /// Show a script, signed or not.
    Show {
        /// The script.
        script: PathBuf,
    },
    /// List published scripts, newest first.
    List,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Install the release, then boot it.
    Install,
    /// Boot what is installed; the release is there to repair from.
    Boot,
    /// Wait for an administrator.
    Safe,
}

pub(crate) fn run(context: &Context, command: Script) -> Result<()> {
    match command {
        Script::New { kind, release, nodes, serial, expires, ssh_keys, networks, out } => {
            if let Some(bad) = nodes.iter().find(|n| *n != "*" && !is_node_id(n)) {
                anyhow::bail!("`{bad}` is not a node id");
            }
            let issued = now();
            let script = BootScript {
                version: 1,
                kind: match kind {
                    Kind::Install => ScriptKind::Install,
                    Kind::Boot => ScriptKind::Boot,
                    Kind::Safe => ScriptKind::Safe,
                },
                nodes,
                serial: serial.unwrap_or(issued),
                issued,
                expires: issued.checked_add(expires.0).context("it would never expire")?,
                release: release.as_deref().map(release_ref).transpose()?,
                ssh_keys: files::ssh_keys(&ssh_keys)?,
                networks,
                mirrors: Vec::new(),
                waivers: Vec::new(),
            };
            files::write_new(&out, &script.encode()?, Access::Public)?;
            context.print(&script, |_| format!("wrote {}: sign it", out.display()))
        }
        Script::Sign(sign) => sign.run(context, PayloadType::BootScript),
        Script::Publish { script } => {
            let envelope = files::read(&script)?;
            let peeked = peek(&envelope).with_context(|| format!("{}: sign the script first", script.display()))?;
            ensure!(peeked.payload_type == PayloadType::BootScript, "{} is not a boot script", script.display());
            let record: ScriptRecord = context.client()?.put_bytes("/v1/scripts", &envelope)?;
            context.print(&record, |r| format!("published {} script, serial {}", r.kind, r.serial))
        }
        Script::Show { script } => show(context, &script),
        Script::List => {
            let scripts: Vec<ScriptRecord> = context.client()?.get("/v1/scripts")?;
            context.print(&scripts, |scripts| {
                let mut rows = vec![["KIND", "SERIAL", "NODES", "EXPIRES", "PUBLISHED"].map(str::to_owned).to_vec()];
                rows.extend(scripts.iter().map(|s| {
                    let nodes = s.nodes.join(",");
                    vec![s.kind.to_string(), s.serial.to_string(), nodes, show_time(s.expires), show_time(s.published)]
                }));
                table(&rows)
            })
        }
    }
}

fn network(text: &str) -> Result<Cidr, String> {
    text.parse().map_err(|error: orrery_protocol::CidrError| error.to_string())
}

/// How a script names a release: by its signed manifest.
fn release_ref(path: &Path) -> Result<ArtifactRef> {
    let envelope = files::read(path)?;
    let peeked = peek(&envelope).with_context(|| format!("{}: sign the manifest first", path.display()))?;
    ensure!(peeked.payload_type == PayloadType::ReleaseManifest, "{} is not a release manifest", path.display());
    ReleaseManifest::decode(peeked.payload)?;
    Ok(ArtifactRef { sha256: Digest::of(&envelope), size: envelope.len() as u64 })
}

fn show(context: &Context, path: &Path) -> Result<()> {
    let bytes = files::read(path)?;
    let peeked = peek(&bytes).ok();
    let signers = peeked.as_ref().map(|p| p.signers.clone()).unwrap_or_default();
    let script = BootScript::decode(peeked.map_or(&bytes[..], |p| p.payload))?;
    context.print(&json!({ "script": script, "signers": signers }), |_| {
        let mut rows = vec![
            ("kind", script.kind.to_string()),
            ("nodes", script.nodes.join(", ")),
            ("serial", script.serial.to_string()),
            ("issued", show_time(script.issued)),
            ("expires", show_time(script.expires)),
        ];
        rows.extend(script.release.map(|r| ("release", r.sha256.to_string())));
        rows.extend(script.ssh_keys.iter().map(|key| ("ssh key", key.clone())));
        rows.extend(script.networks.iter().map(|network| ("network", network.to_string())));
        rows.extend(signers.iter().map(|id| ("signed by", format!("{id} (not verified here)"))));
        table(&rows.into_iter().map(|(name, value)| vec![name.to_owned(), clean(&value)]).collect::<Vec<_>>())
    })
}
