//! Where things are: the workspace, its outputs, the cache outside it, and the release being built.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// The folders a task works in.
pub(crate) struct Workspace {
    /// The root of the checkout.
    pub(crate) root: PathBuf,
    /// What outlives a checkout: sources, built components, apt lists.
    pub(crate) cache: PathBuf,
    /// What is being built.
    pub(crate) release: Release,
}

/// `release.toml`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Release {
    /// The version all artifacts carry.
    pub(crate) version: String,
    /// Unix seconds: the time stamp of everything in the images.
    pub(crate) epoch: u64,
}

impl Workspace {
    /// Finds the workspace this program was compiled in, and the cache.
    ///
    /// # Errors
    /// When `release.toml` cannot be read, or no folder for the cache can be named.
    pub(crate) fn open() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("finding the workspace root")?.to_path_buf();
        let path = root.join("release.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let release = toml::from_str(&text).with_context(|| format!("parsing {}", path.display()))?;
        Ok(Self { root, cache: cache_folder()?, release })
    }

    /// `target/orrery`, where everything a task produces goes.
    pub(crate) fn output(&self) -> PathBuf {
        self.root.join("target/orrery")
    }

    /// `target/orrery/images`.
    pub(crate) fn images(&self) -> PathBuf {
        self.output().join("images")
    }

    /// A log file in the cache; its folder exists.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub(crate) fn log(&self, name: &str) -> Result<PathBuf> {
        let folder = self.cache.join("logs");
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(folder.join(format!("{name}.log")))
    }
}

fn cache_folder() -> Result<PathBuf> {
    let named = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = if let Some(folder) = named("ORRERY_CACHE") {
        folder
    } else if let Some(folder) = named("XDG_CACHE_HOME") {
        folder.join("orrery")
    } else if let Some(home) = named("HOME") {
        home.join(".cache/orrery")
    } else {
        bail!("no folder for the cache: set ORRERY_CACHE to one with about 10 GB of room");
    };
    std::path::absolute(&folder).with_context(|| format!("resolving {}", folder.display()))
}
