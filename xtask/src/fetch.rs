//! `cargo xtask fetch`: downloads the sources the recipes name, and records what came.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{
    apt::{Apt, Candidate, Freshness},
    build::COMPONENTS,
    command, hash, lock,
    recipe::{Recipe, Source},
    store::{self, SourceFile},
    ui::{self, Step},
    workspace::Workspace,
};

/// The files of a package, in the cache, each matching the hash that apt's signed lists give.
pub(crate) struct Fetched {
    /// The package's version.
    pub(crate) version: String,
    /// The folder they are in.
    pub(crate) folder: PathBuf,
    /// The files.
    pub(crate) files: Vec<SourceFile>,
}

/// Downloads the sources of all recipes.
///
/// # Errors
/// When a package is unknown or cannot be downloaded.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let apt = Apt::open(workspace, Freshness::Daily)?;
    for name in COMPONENTS {
        let recipe = Recipe::read(&workspace.root, name)?;
        let candidate = candidate(&apt, &recipe.source)?;
        let fetched = fetch(workspace, &apt, &recipe.source, &candidate)?;
        ui::say(name, &format!("{} {} in {}", recipe.source.package(), fetched.version, fetched.folder.display()));
        for file in &fetched.files {
            println!("{}  {}", file.sha256, file.name);
        }
    }
    Ok(())
}

/// What would be downloaded now.
///
/// # Errors
/// When the package is unknown.
pub(crate) fn candidate(apt: &Apt, source: &Source) -> Result<Candidate> {
    match source {
        Source::Source { package, .. } => apt.source_candidate(package, &source.choice(apt)),
        Source::Binary { package, .. } => apt.binary_candidate(package),
    }
}

/// Makes sure that a candidate's files are in the cache.
///
/// # Errors
/// When a download fails, or a file is not the one the lists name.
pub(crate) fn fetch(workspace: &Workspace, apt: &Apt, source: &Source, candidate: &Candidate) -> Result<Fetched> {
    let package = source.package();
    let folder = workspace.cache.join("sources").join(format!("{package}_{}", candidate.version));
    let files: Vec<_> =
        candidate.files.iter().map(|f| SourceFile { name: f.name.clone(), sha256: f.sha256.clone() }).collect();
    let fetched = Fetched { version: candidate.version.clone(), folder: folder.clone(), files };
    if folder.exists() {
        return Ok(fetched);
    }
    let _lock = lock::acquire(workspace, "sources")?;
    if folder.exists() {
        return Ok(fetched);
    }
    let step = Step::start(package, "downloading the source");
    let unfinished = folder.with_extension("unfinished");
    store::remove_folder(&unfinished)?;
    fs::create_dir_all(&unfinished).with_context(|| format!("making {}", unfinished.display()))?;
    let mut download = apt.command("apt-get");
    match source {
        Source::Source { .. } => {
            download.args(["-q", "source", "--download-only"]).args(source.choice(apt)).arg(package)
        }
        Source::Binary { .. } => download.args(["-q", "download", package]),
    };
    command::logged(download.current_dir(&unfinished), &workspace.log("fetch")?)
        .with_context(|| format!("downloading {package}"))?;
    let mut bytes = 0;
    for file in &fetched.files {
        bytes += verify(&unfinished, file)?;
    }
    fs::rename(&unfinished, &folder).with_context(|| format!("moving the download to {}", folder.display()))?;
    step.done(&format!("downloaded {} {}, {}", package, fetched.version, ui::size(bytes)));
    Ok(fetched)
}

fn verify(folder: &Path, file: &SourceFile) -> Result<u64> {
    // apt keeps the escape of the epoch's colon in the name of the file it writes.
    let escaped = folder.join(file.name.replace(':', "%3a"));
    let path = folder.join(&file.name);
    if escaped != path && escaped.exists() {
        fs::rename(&escaped, &path).with_context(|| format!("renaming {}", escaped.display()))?;
    }
    let sha256 = hash::file(&path)?;
    if sha256 != file.sha256 {
        bail!("{} has SHA-256 {sha256}, but the package lists say {}: run it again", file.name, file.sha256);
    }
    Ok(fs::metadata(&path).with_context(|| format!("reading {}", path.display()))?.len())
}
