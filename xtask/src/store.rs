//! The content-addressed store: `<cache>/store/<name>-<key>/`, where the key is the hash of every input.
//!
//! An entry is complete or absent: it is made under a temporary name and renamed. Entries are never changed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{
    hash::{self, Inputs},
    lock,
    workspace::Workspace,
};

const RECORD: &str = "orrery-entry.json";

/// A finished entry.
pub(crate) struct Entry {
    /// Its folder.
    pub(crate) folder: PathBuf,
    /// What is known of it.
    pub(crate) record: Record,
    /// It was there already.
    pub(crate) reused: bool,
}

/// Where a component came from; the SBOM is made of these.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The component.
    pub(crate) name: String,
    /// The version of its source.
    pub(crate) version: String,
    /// An SPDX licence expression.
    pub(crate) licence: String,
    /// The Debian source package, if it came from one.
    pub(crate) source_package: Option<String>,
    /// The files it was built from.
    pub(crate) sources: Vec<SourceFile>,
    /// Packages of the build machine of which parts are inside the outputs.
    pub(crate) links: Vec<LinkedPackage>,
    /// SHA-256 of the outputs by name, added when the entry is finished.
    #[serde(default)]
    pub(crate) outputs: Vec<SourceFile>,
}

/// A file and its SHA-256.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct SourceFile {
    /// The file's name.
    pub(crate) name: String,
    /// In hexadecimal.
    pub(crate) sha256: String,
}

/// A package whose code is in an output.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LinkedPackage {
    /// Debian's source package.
    pub(crate) source: String,
    /// Its version.
    pub(crate) version: String,
}

/// Returns the entry of these inputs, building it if it is not there.
///
/// `build` fills the folder it is given and returns what is known of the result.
///
/// # Errors
/// What `build` returns, or a failure to write the store.
pub(crate) fn get_or_build(
    workspace: &Workspace,
    name: &str,
    inputs: &Inputs,
    build: impl FnOnce(&Path) -> Result<Record>,
) -> Result<Entry> {
    let folder = workspace.cache.join("store").join(format!("{name}-{}", inputs.key()));
    if let Some(record) = read_record(&folder)? {
        return Ok(Entry { folder, record, reused: true });
    }
    let _lock = lock::acquire(workspace, name)?;
    if let Some(record) = read_record(&folder)? {
        return Ok(Entry { folder, record, reused: true });
    }
    let unfinished = folder.with_extension("unfinished");
    remove_folder(&unfinished)?;
    fs::create_dir_all(&unfinished).with_context(|| format!("making {}", unfinished.display()))?;
    let built = build(&unfinished);
    if built.is_err() {
        remove_folder(&unfinished)?;
    }
    let mut record = built?;
    record.name = name.to_owned();
    for file in fs::read_dir(&unfinished).with_context(|| format!("listing {}", unfinished.display()))? {
        let file = file.with_context(|| format!("listing {}", unfinished.display()))?;
        let sha256 = hash::file(&file.path())?;
        record.outputs.push(SourceFile { name: file.file_name().to_string_lossy().into_owned(), sha256 });
    }
    record.outputs.sort_by(|a, b| a.name.cmp(&b.name));
    fs::write(unfinished.join("inputs.txt"), inputs.text()).context("writing the list of inputs")?;
    fs::write(unfinished.join(RECORD), serde_json::to_vec_pretty(&record).context("writing the record as JSON")?)
        .context("writing the record")?;
    fs::rename(&unfinished, &folder).with_context(|| format!("moving the result to {}", folder.display()))?;
    Ok(Entry { folder, record, reused: false })
}

fn read_record(folder: &Path) -> Result<Option<Record>> {
    let path = folder.join(RECORD);
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let record = serde_json::from_slice(&text).with_context(|| {
        format!("parsing {} (damaged? remove the folder {} to build it again)", path.display(), folder.display())
    })?;
    Ok(Some(record))
}

/// Removes a folder that may not exist.
///
/// # Errors
/// When it exists and cannot be removed.
pub(crate) fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", folder.display()))
        }
        _ => Ok(()),
    }
}
