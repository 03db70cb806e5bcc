//! `orrery node renew`: another key for a node, while its old medium still works for a while.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use orrery_central_api::{KeyRecord, NewKey};
use orrery_protocol::{Digest, NodeConfig};
use rcgen::{KeyPair, PublicKeyData};
use serde_json::json;
use ureq::http::Method;

use super::segment;
use crate::{
    context::Context,
    files::{self, Access, Draft},
    units::{Seconds, show_time},
};

/// Options of `orrery node renew`.
#[derive(clap::Args)]
pub(crate) struct Renew {
    /// The node's id.
    id: String,
    /// The configuration it has now, or that of any node like it: all but its identity is taken over.
    #[arg(long, value_name = "node.toml")]
    from: PathBuf,
    /// Where the new configuration goes. It holds the node's new private key.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// How long the old key still works.
    #[arg(long, value_name = "SPAN", default_value = "30d")]
    grace: Seconds,
    /// Let the first contact by the new key end that time.
    #[arg(long)]
    end_grace: bool,
}

impl Renew {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        let text = files::read_text(&self.from)?;
        let mut config: NodeConfig =
            toml::from_str(&text).with_context(|| format!("reading {}", self.from.display()))?;
        let key = KeyPair::generate().context("making the node's key")?;
        ensure!(
            config.id.is_empty() || config.id == self.id,
            "{} is the configuration of {}: name that of {}",
            self.from.display(),
            config.id,
            self.id
        );
        config.id.clone_from(&self.id);
        config.key = key.serialize_pem();
        config.enrol_token = None;
        config.check()?;
        let text = toml::to_string_pretty(&config).context("writing the configuration as TOML")?;
        // On the disk before central knows its key, so that no registered key is ever lost.
        let draft = Draft::new(&self.out, text.as_bytes(), Access::Secret)?;
        let spki = Digest::of(&key.subject_public_key_info());
        let new = NewKey { spki, grace: self.grace.0, end_grace: self.end_grace };
        let path = format!("/v1/nodes/{}/keys", segment(&self.id)?);
        let keys: Vec<KeyRecord> = context.client()?.exchange(Method::POST, &path, &new)?;
        draft.commit()?;
        let ends = keys.iter().skip(1).filter_map(|key| key.ends).max();
        let value = json!({ "node": self.id, "config": self.out, "keys": keys });
        context.print(&value, |_| {
            let until =
                ends.map(|ends| format!("; the old medium works until {}", show_time(ends))).unwrap_or_default();
            format!("stamp a medium with {}{until}", self.out.display())
        })
    }
}
