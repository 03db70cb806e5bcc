//! `orrery media`: putting a node's configuration into a finished medium.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use orrery_image_builder::media;
use orrery_protocol::NodeConfig;
use serde_json::json;

use crate::{context::Context, files};

#[derive(Subcommand)]
pub(crate) enum Media {
    /// Write a node's configuration into a medium: an ISO file, a USB disk that holds one, or a PXE folder.
    Stamp {
        /// The medium.
        medium: PathBuf,
        /// The configuration, as `orrery node add` wrote it.
        #[arg(long, value_name = "node.toml")]
        config: PathBuf,
        /// Stamp a copy with this name and leave the medium as it is.
        #[arg(long, value_name = "MEDIUM")]
        out: Option<PathBuf>,
    },
    /// Show the configuration in a medium, without its private key or token.
    Show {
        /// The medium.
        medium: PathBuf,
    },
}

pub(crate) fn run(context: &Context, command: Media) -> Result<()> {
    match command {
        Media::Stamp { medium, config, out } => {
            let text = files::read_text(&config)?;
            let stamped = match &out {
                Some(out) => media::stamp_copy(&medium, out, &text),
                None => media::stamp(&medium, &text),
            };
            let node = stamped.with_context(|| format!("stamping {}", config.display()))?;
            let target = out.unwrap_or(medium);
            let value = json!({ "medium": target, "node": node.id });
            context.print(&value, |_| format!("stamped {} with the configuration of {}", target.display(), node.id))
        }
        Media::Show { medium } => {
            let text = media::show(&medium)?;
            let mut config: NodeConfig = toml::from_str(&text).context("reading the configuration in the medium")?;
            if !config.key.is_empty() {
                config.key = "(private key not shown)".to_owned();
            }
            config.enrol_token = config.enrol_token.map(|_| "(token not shown)".to_owned());
            let shown = toml::to_string_pretty(&config).context("writing the configuration as TOML")?;
            context.print(&config, |_| shown.trim_end().to_owned())
        }
    }
}
