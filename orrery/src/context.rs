//! What every command needs: where central is, and how to print.

use std::{
    env,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use orrery_transport::{Client, Identity, Resolver};
use serde::{Deserialize, Serialize};

use crate::files;

/// Options common to all commands.
#[derive(clap::Args)]
pub(crate) struct Context {
    /// Print results as JSON.
    #[arg(long, global = true)]
    json: bool,
    /// The operator's folder with operator.toml; without it, `orrery` in the user's configuration folder.
    #[arg(long, global = true, value_name = "DIR", env = "ORRERY_OPERATOR")]
    operator: Option<PathBuf>,
    /// Central's URL instead of the one in operator.toml.
    #[arg(long = "central", global = true, value_name = "URL", env = "ORRERY_CENTRAL")]
    url: Option<String>,
}

/// The operator's folder, read.
#[derive(Debug)]
pub(crate) struct Operator {
    pub(crate) url: String,
    pub(crate) ca: String,
    pub(crate) key: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OperatorConfig {
    url: String,
    ca: PathBuf,
    key: PathBuf,
}

impl Context {
    pub(crate) fn operator(&self) -> Result<Operator> {
        read_operator(&self.folder()?, self.url.as_deref())
    }

    /// The file with the authorities that central's server must chain to.
    pub(crate) fn authorities_file(&self) -> Result<PathBuf> {
        let folder = self.folder()?;
        Ok(folder.join(read_config(&folder)?.ca))
    }

    fn folder(&self) -> Result<PathBuf> {
        match &self.operator {
            Some(folder) => Ok(folder.clone()),
            None => default_folder().context("name the operator's folder with --operator"),
        }
    }

    pub(crate) fn client(&self) -> Result<Client> {
        let Operator { url, ca, key } = self.operator()?;
        let identity = Identity::from_pem(&key).context("reading the operator's key")?;
        Ok(Client::new(&url, &ca, &identity, Resolver::System)?)
    }

    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// Prints a result: as JSON, or for people.
    pub(crate) fn print<T: Serialize + ?Sized>(&self, value: &T, people: impl FnOnce(&T) -> String) -> Result<()> {
        let text = if self.json { serde_json::to_string(value)? } else { people(value) };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{text}").and_then(|()| out.flush()).context("writing to standard output")
    }
}

fn default_folder() -> Option<PathBuf> {
    let config = env::var_os("XDG_CONFIG_HOME").filter(|v| !v.is_empty()).map(PathBuf::from);
    config.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".config"))).map(|c| c.join("orrery"))
}

fn read_config(folder: &Path) -> Result<OperatorConfig> {
    let path = folder.join("operator.toml");
    toml::from_str(&files::read_text(&path)?).with_context(|| format!("reading {}", path.display()))
}

fn read_operator(folder: &Path, url: Option<&str>) -> Result<Operator> {
    let config = read_config(folder)?;
    Ok(Operator {
        url: url.map_or(config.url, str::to_owned).trim_end_matches('/').to_owned(),
        ca: files::read_text(&folder.join(config.ca))?,
        key: files::read_text(&folder.join(config.key))?,
    })
}
