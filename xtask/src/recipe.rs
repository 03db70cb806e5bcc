//! Recipes: how a C program is built from a Debian package, as data in `packages/<name>/recipe.toml`.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::apt::Apt;

/// A component built by steps of shell.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Recipe {
    /// The component: the name of the recipe's folder.
    #[serde(skip)]
    pub(crate) name: String,
    /// What the file says, without comments and layout: a better comment builds no kernel.
    #[serde(skip)]
    pub(crate) content: String,
    /// What it is, in a few words.
    pub(crate) summary: String,
    /// An SPDX licence expression.
    pub(crate) licence: String,
    /// Development packages of the build machine whose code ends up in the outputs.
    #[serde(default)]
    pub(crate) links: Vec<String>,
    /// Where the source comes from.
    pub(crate) source: Source,
    /// Files beside the recipe that change the source, in order. What they are for is in their heads.
    #[serde(default)]
    pub(crate) patches: Vec<PathBuf>,
    /// A configuration made from fragments, for programs configured as the kernel is.
    pub(crate) kconfig: Option<Kconfig>,
    /// How it is built.
    pub(crate) build: Build,
    /// Built files, and the names they get in the store.
    pub(crate) outputs: BTreeMap<PathBuf, String>,
}

/// A Debian package that holds the source.
#[derive(Debug, Deserialize)]
#[serde(tag = "kind", deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) enum Source {
    /// A source package.
    #[serde(rename_all = "kebab-case")]
    Source {
        /// Its name.
        package: String,
        /// Take the stable release's own version, where a newer one stands in its backports or security archive: for
        /// programs whose newer versions bring what we have no use for.
        #[serde(default)]
        stable: bool,
    },
    /// A binary package with a tarball in it.
    #[serde(rename_all = "kebab-case")]
    Binary {
        /// Its name.
        package: String,
        /// The source package it was built from.
        source_package: String,
        /// The tarball inside.
        tarball: PathBuf,
    },
}

impl Source {
    /// The package that is downloaded.
    pub(crate) fn package(&self) -> &str {
        let (Self::Source { package, .. } | Self::Binary { package, .. }) = self;
        package
    }

    /// Options of `apt-get` that choose the version.
    pub(crate) fn choice(&self, apt: &Apt) -> Vec<String> {
        match self {
            Self::Source { stable: true, .. } => vec![format!("--target-release={}", apt.codename)],
            _ => Vec::new(),
        }
    }

    /// The source package, for the SBOM.
    pub(crate) fn source_package(&self) -> &str {
        match self {
            Self::Source { package, .. } => package,
            Self::Binary { source_package, .. } => source_package,
        }
    }
}

/// How a configuration is made.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kconfig {
    /// The make target that decides what no fragment mentions.
    pub(crate) base: String,
    /// The make target that takes over what is put into `.config`, for programs whose `KCONFIG_ALLCONFIG`
    /// forgets requests below a menu that the base target has off.
    pub(crate) merge: Option<String>,
    /// A folder of the workspace; its `*.config` files are used in the order of their names.
    pub(crate) fragments: PathBuf,
}

/// How a program is built.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Build {
    /// Environment variables, beside `JOBS`, `SOURCE_DATE_EPOCH` and a fixed `PATH`.
    #[serde(default)]
    pub(crate) environment: BTreeMap<String, String>,
    /// Shell commands, run in the source tree.
    pub(crate) steps: Vec<String>,
}

impl Recipe {
    /// Reads `packages/<name>/recipe.toml`.
    ///
    /// # Errors
    /// When there is no such recipe, or it is not understood.
    pub(crate) fn read(root: &Path, name: &str) -> Result<Self> {
        let path = Self::path(root, name);
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let mut recipe: Self = toml::from_str(&text).with_context(|| format!("parsing {}", path.display()))?;
        let table: toml::Table = toml::from_str(&text).with_context(|| format!("parsing {}", path.display()))?;
        recipe.content = serde_json::to_string(&table).context("writing the recipe as JSON")?;
        name.clone_into(&mut recipe.name);
        Ok(recipe)
    }

    fn path(root: &Path, name: &str) -> PathBuf {
        root.join("packages").join(name).join("recipe.toml")
    }

    /// The patches, where they are.
    pub(crate) fn patches(&self, root: &Path) -> impl Iterator<Item = PathBuf> {
        let folder = root.join("packages").join(&self.name);
        self.patches.iter().map(move |patch| folder.join(patch))
    }
}

impl Kconfig {
    /// The fragments, in order.
    ///
    /// # Errors
    /// When the folder cannot be read or holds none.
    pub(crate) fn files(&self, root: &Path) -> Result<Vec<PathBuf>> {
        let folder = root.join(&self.fragments);
        let mut files = Vec::new();
        for entry in fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))? {
            let path = entry.with_context(|| format!("listing {}", folder.display()))?.path();
            if path.extension().is_some_and(|e| e == "config") {
                files.push(path);
            }
        }
        if files.is_empty() {
            bail!("{} holds no *.config fragment", folder.display());
        }
        files.sort();
        Ok(files)
    }
}
