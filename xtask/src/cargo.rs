//! The graph of crates, as `cargo metadata` tells it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{build::rust::TARGET, command};

/// All packages of the workspace, and those they depend on.
pub(crate) struct Graph {
    packages: BTreeMap<String, Package>,
    dependencies: BTreeMap<String, Vec<String>>,
    members: Vec<String>,
}

/// A package, as far as builds and the SBOM care.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Package {
    /// Its name.
    pub(crate) name: String,
    /// Its version.
    pub(crate) version: String,
    /// The `license` field of its manifest.
    pub(crate) licence: Option<String>,
    /// The checksum of the registry; packages of the workspace have none.
    pub(crate) checksum: Option<String>,
    /// Where its manifest stands.
    #[serde(skip)]
    pub(crate) folder: PathBuf,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<MetadataPackage>,
    resolve: Resolve,
    workspace_members: Vec<String>,
}

#[derive(Deserialize)]
struct MetadataPackage {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    manifest_path: PathBuf,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    kind: Option<String>,
}

#[derive(Deserialize)]
struct LockFile {
    package: Vec<LockedPackage>,
}

#[derive(Deserialize)]
struct LockedPackage {
    name: String,
    version: String,
    checksum: Option<String>,
}

impl Graph {
    /// Asks cargo, and reads checksums from `Cargo.lock`. Development dependencies are left out.
    ///
    /// # Errors
    /// When cargo fails, or the lock file is out of date.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let text = command::output(
            Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
                .args(["metadata", "--format-version=1", "--locked", "--filter-platform", TARGET])
                .current_dir(root),
        )
        .context("asking cargo for the crates of the workspace")?;
        let metadata: Metadata = serde_json::from_str(&text).context("parsing cargo's metadata")?;
        let lock = std::fs::read_to_string(root.join("Cargo.lock")).context("reading Cargo.lock")?;
        let lock: LockFile = toml::from_str(&lock).context("parsing Cargo.lock")?;
        let checksums: BTreeMap<_, _> =
            lock.package.into_iter().map(|package| ((package.name, package.version), package.checksum)).collect();
        let packages = metadata.packages.into_iter().map(|package| {
            let checksum = checksums.get(&(package.name.clone(), package.version.clone())).cloned().flatten();
            let folder = package.manifest_path.parent().unwrap_or(Path::new("")).to_path_buf();
            let (name, version, licence) = (package.name, package.version, package.license);
            (package.id, Package { name, version, licence, checksum, folder })
        });
        let dependencies = metadata.resolve.nodes.into_iter().map(|node| {
            let used = |dependency: &&Dependency| dependency.dep_kinds.iter().any(|k| k.kind.as_deref() != Some("dev"));
            let ids = node.deps.iter().filter(used).map(|dependency| dependency.pkg.clone()).collect();
            (node.id, ids)
        });
        Ok(Self {
            packages: packages.collect(),
            dependencies: dependencies.collect(),
            members: metadata.workspace_members,
        })
    }

    /// The packages reachable from the named members of the workspace, themselves included, by name.
    ///
    /// # Errors
    /// When there is no such member.
    pub(crate) fn reachable(&self, names: &[&str]) -> Result<Vec<&Package>> {
        let mut queue = Vec::new();
        for name in names {
            let id = self.members.iter().find(|id| self.packages[*id].name == **name);
            queue.push(id.with_context(|| format!("finding the package {name} in the workspace"))?);
        }
        let mut seen = BTreeSet::new();
        while let Some(id) = queue.pop() {
            if seen.insert(id) {
                queue.extend(self.dependencies.get(id).into_iter().flatten());
            }
        }
        let mut packages: Vec<_> = seen.into_iter().map(|id| &self.packages[id]).collect();
        packages.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
        Ok(packages)
    }

    /// The members of the workspace, each with the members it depends on directly.
    pub(crate) fn members(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let name = |id: &String| self.packages[id].name.as_str();
        let inner = |id: &String| {
            let all = self.dependencies.get(id).into_iter().flatten();
            all.filter(|dependency| self.members.contains(dependency)).map(name).collect()
        };
        self.members.iter().map(|id| (name(id), inner(id))).collect()
    }
}
