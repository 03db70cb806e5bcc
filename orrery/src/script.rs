//! `orrery script`: boot scripts.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::{Subcommand, ValueEnum};
use orrery_central_api::{ScriptRecord, checked_groups, peek};
use orrery_protocol::{
    ArtifactRef, BootScript, Cidr, Digest, PayloadType, ReleaseManifest, ScriptKind, Waiver, is_node_id,
};
use serde_json::json;

use crate::{
    context::Context,
    files::{self, Access},
    sign::{Document, Sign},
    trust,
    units::{Seconds, now, show_time, table},
};

#[derive(Subcommand)]
pub(crate) enum Script {
    /// Write a boot script to sign; works offline.
    New {
        /// What nodes are to do.
        #[arg(long, value_enum)]
        kind: Kind,
        /// The signed release manifest to install or to repair from; not for kind `safe`.
        #[arg(long, value_name = "SIGNED", required_if_eq_any([("kind", "install"), ("kind", "upgrade"), ("kind", "boot")]))]
        release: Option<PathBuf>,
        /// Ids of the nodes it is for; `*` is every node.
        #[arg(long = "node", value_name = "ID", required_unless_present = "groups", value_delimiter = ',')]
        nodes: Vec<String>,
        /// Groups that it is for.
        #[arg(long = "group", value_name = "GROUP", value_delimiter = ',')]
        groups: Vec<String>,
        /// Must not be below that of an earlier script of this kind; without it, the current Unix time.
        #[arg(long, value_name = "N")]
        serial: Option<u64>,
        /// How long it is valid, as 12h or 30d.
        #[arg(long, value_name = "SPAN", default_value = "30d")]
        expires: Seconds,
        /// OpenSSH public keys that safe mode admits.
        #[arg(long = "ssh-key", value_name = "FILE.pub")]
        ssh_keys: Vec<PathBuf>,
        /// Networks that safe mode's sshd can be reached from, as 192.0.2.0/24. From anywhere is 0.0.0.0/0,::/0.
        #[arg(long = "network", value_name = "CIDR", value_delimiter = ',', required_if_eq("kind", "safe"))]
        networks: Vec<Cidr>,
        /// Servers that have the release's artifacts, too; asked before central.
        #[arg(long = "mirror", value_name = "URL")]
        mirrors: Vec<String>,
        /// What the nodes need not fulfil: minimum-hardware or kexec.
        #[arg(long = "waive", value_name = "DEMAND", value_delimiter = ',')]
        waivers: Vec<Waiver>,
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
    /// Try the release in the other slot; slivers and their data stay.
    Upgrade,
    /// Boot what is installed; the release is there to repair from.
    Boot,
    /// Wait for an administrator.
    Safe,
}

pub(crate) fn run(context: &Context, command: Script) -> Result<()> {
    match command {
        Script::New {
            kind,
            release,
            mut nodes,
            groups,
            serial,
            expires,
            ssh_keys,
            networks,
            mirrors,
            waivers,
            out,
        } => {
            if let Some(bad) = nodes.iter().find(|n| *n != "*" && !is_node_id(n)) {
                anyhow::bail!("`{bad}` is not a node id");
            }
            let groups = checked_groups(&groups).map_err(|bad| anyhow::anyhow!("`{bad}` cannot name a group"))?;
            nodes.extend(groups.into_iter().map(|group| format!("@{group}")));
            if let Some(bad) = mirrors.iter().find(|url| !url.starts_with("http://") && !url.starts_with("https://")) {
                anyhow::bail!("`{bad}` is no http:// or https:// URL");
            }
            let issued = now();
            let script = BootScript {
                version: 1,
                kind: match kind {
                    Kind::Install => ScriptKind::Install,
                    Kind::Upgrade => ScriptKind::Upgrade,
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
                mirrors,
                waivers,
            };
            files::write_new(&out, &script.encode()?, Access::Public)?;
            context.print(&script, |_| format!("wrote {}: sign it", out.display()))
        }
        Script::Sign(sign) => sign.run(context, Some(PayloadType::BootScript)),
        Script::Publish { script } => {
            let envelope = files::read(&script)?;
            let peeked = peek(&envelope).with_context(|| format!("{}: sign the script first", script.display()))?;
            ensure!(peeked.payload_type == PayloadType::BootScript, "{} is not a boot script", script.display());
            let client = context.client()?;
            trust::warn_unless_known(context, &client)?;
            let record: ScriptRecord = client.put_bytes("/v1/scripts", &envelope)?;
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
    let document = Document::read(&bytes)?;
    let Document::Script(script) = &document else {
        anyhow::bail!("{} is not a boot script", path.display());
    };
    context.print(&json!({ "script": script, "signers": signers }), |_| {
        let by = signers.iter().map(|id| format!("\nsigned by  {id} (not verified here)"));
        document.describe() + &by.collect::<String>()
    })
}
