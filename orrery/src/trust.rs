//! `orrery trust`: replacing release keys and certificate authorities on nodes that nobody can drive to.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Subcommand;
use orrery_central_api::RootRecord;
use orrery_protocol::{NodeConfig, Root, TrustRoot, TrustUpdate};
use orrery_transport::Client;
use serde_json::json;

use crate::{
    context::Context,
    files::{self, Access},
    keys,
    sign::Document,
    units::now,
};

/// A chain of a thousand updates is far shorter.
const MAX_CHAIN: u64 = 8 << 20;

#[derive(Subcommand)]
pub(crate) enum Trust {
    /// Write the next trust update to sign; works offline. Keys and authorities it does not name lose their power.
    New {
        /// The root it replaces: a node's configuration where there was no update before, or the newest update.
        #[arg(long, value_name = "FILE")]
        from: PathBuf,
        /// Public release keys from then on.
        #[arg(long = "release-key", value_name = "FILE.pub", required = true)]
        release_keys: Vec<PathBuf>,
        /// How many of them must sign.
        #[arg(long, value_name = "K")]
        threshold: u8,
        /// Certificates of the authorities from then on; without any, those of the root it replaces.
        #[arg(long = "ca", value_name = "FILE.pem")]
        authorities: Vec<PathBuf>,
        /// Where the update goes.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Show an update, signed or not.
    Show {
        /// The update.
        update: PathBuf,
    },
    /// Follow signed updates from a root as a node would; works offline.
    Verify {
        /// Where to begin: a node's configuration.
        #[arg(long, value_name = "node.toml")]
        from: PathBuf,
        /// Signed updates, oldest first.
        #[arg(required = true)]
        updates: Vec<PathBuf>,
    },
    /// Upload a signed update. Nodes follow it at their next contact.
    Publish {
        /// The signed update.
        update: PathBuf,
    },
    /// Put the authorities that the updates lead to into the operator's own folder.
    Adopt {
        /// Where to begin: a node's configuration.
        #[arg(long, value_name = "node.toml")]
        from: PathBuf,
        /// Signed updates, oldest first; without any, those that central has published.
        updates: Vec<PathBuf>,
    },
}

pub(crate) fn run(context: &Context, command: Trust) -> Result<()> {
    match command {
        Trust::New { from, release_keys, threshold, authorities, out } => {
            let root = read_root(&from)?;
            let ca = if authorities.is_empty() {
                root.ca
            } else {
                authorities.iter().map(|path| files::read_text(path)).collect::<Result<Vec<_>>>()?.concat()
            };
            let update = TrustUpdate {
                version: 1,
                serial: root.serial + 1,
                issued: now(),
                release_keys: keys::read_public(&release_keys)?,
                release_threshold: threshold,
                ca,
            };
            let payload = update.encode()?;
            // Refused now rather than by every node.
            TrustUpdate::decode(&payload)?;
            files::write_new(&out, &payload, Access::Public)?;
            let (old, new) = (root.trust.threshold, update.release_threshold);
            context.print(&update, |_| {
                format!(
                    "wrote {}: it needs the signatures of {old} of the keys in force and {new} of its own",
                    out.display()
                )
            })
        }
        Trust::Show { update } => {
            let bytes = files::read(&update)?;
            let document = Document::read(&bytes)?;
            let Document::Trust(trust) = &document else {
                bail!("{} is not a trust update", update.display());
            };
            context.print(trust, |_| document.describe())
        }
        Trust::Verify { from, updates } => print(context, &follow(&read_root(&from)?, &read_chain(&updates)?)?),
        Trust::Publish { update } => {
            let envelope = files::read(&update)?;
            let record: RootRecord = context.client()?.put_bytes("/v1/roots", &envelope)?;
            context.print(&record, |r| format!("published trust root {}", r.update.serial))
        }
        Trust::Adopt { from, updates } => {
            let chain = if updates.is_empty() {
                context.client()?.get_bytes("/v1/roots?after=0", MAX_CHAIN).context(
                    "fetching the trust roots; where central has changed over already, name the updates' files instead",
                )?
            } else {
                read_chain(&updates)?
            };
            let root = follow(&read_root(&from)?, &chain)?;
            files::replace(&context.authorities_file()?, root.ca.as_bytes())?;
            print(context, &root)
        }
    }
}

fn print(context: &Context, root: &Root) -> Result<()> {
    let keys: Vec<_> = root.trust.keys.iter().map(|key| key.id()).collect();
    let value = json!({ "serial": root.serial, "threshold": root.trust.threshold, "keys": keys, "ca": root.ca });
    context.print(&value, |_| {
        format!("trust root {}: {} of {} release keys", root.serial, root.trust.threshold, keys.len())
    })
}

fn read_chain(updates: &[PathBuf]) -> Result<Vec<u8>> {
    Ok(updates.iter().map(|path| files::read(path)).collect::<Result<Vec<_>>>()?.concat())
}

/// The root in a node's configuration, or that which an update leads to.
fn read_root(path: &Path) -> Result<Root> {
    let bytes = files::read(path)?;
    if let Some(config) = std::str::from_utf8(&bytes).ok().and_then(|text| toml::from_str::<NodeConfig>(text).ok()) {
        return Ok(config.medium_root());
    }
    match Document::read(&bytes).with_context(|| format!("reading {}", path.display()))? {
        Document::Trust(update) => Ok(Root {
            serial: update.serial,
            trust: TrustRoot { keys: update.release_keys, threshold: update.release_threshold },
            ca: update.ca,
        }),
        _ => bail!("{} is neither a node's configuration nor a trust update", path.display()),
    }
}

/// Where a chain leads to, if it holds to its end.
fn follow(root: &Root, chain: &[u8]) -> Result<Root> {
    let (reached, left) = root.follow(chain);
    if let Some(why) = left {
        bail!("after trust root {}: {why}", reached.serial);
    }
    ensure!(!chain.is_empty(), "there is no trust update to follow");
    Ok(reached)
}

/// Central holds documents against the newest root that was published. Where none was, people are told that nobody checks.
pub(crate) fn warn_unless_known(context: &Context, client: &Client) -> Result<()> {
    if client.get_bytes("/v1/roots?after=0", MAX_CHAIN)?.is_empty() && !context.json() {
        eprintln!("central knows no trust root, so only nodes will check the signatures");
    }
    Ok(())
}
