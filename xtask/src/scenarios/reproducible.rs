//! The same sources in another folder, compiled there, give the same images.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use super::Bench;
use crate::command;

/// The checksums of an image set.
const SUMS: &str = "SHA256SUMS";

/// Builds the whole image set from a copy of the checkout in a folder of another name, with its own target folder for the
/// Rust programs, and compares checksums. Kernel, C programs and reference image come from the shared cache.
pub(super) fn images(bench: &Bench<'_>) -> Result<()> {
    let copy = bench.folder.join("another-checkout");
    fs::create_dir_all(&copy).with_context(|| format!("making {}", copy.display()))?;
    copy_sources(&bench.workspace.root, &copy)?;
    // The store would hand out the programs that are there already: a store without them is made of links to the others.
    let cache = bench.folder.join("cache");
    link_cache(&bench.workspace.cache, &cache)?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.current_dir(&copy).env("ORRERY_CACHE", &cache).env_remove("CARGO_TARGET_DIR").args([
        "run",
        "--locked",
        "--package",
        "xtask",
        "--",
        "image",
    ]);
    command::logged(&mut build, &bench.folder.join("build.log")).context("building the images once more")?;
    let ours = sums(&bench.images.folder)?;
    let theirs = sums(&copy.join("target/orrery/images"))?;
    let differ: Vec<_> = ours.lines().filter(|line| !theirs.lines().any(|other| other == *line)).collect();
    ensure!(ours == theirs, "these differ from those built in {}:\n{}", copy.display(), differ.join("\n"));
    Ok(())
}

fn sums(images: &Path) -> Result<String> {
    let path = images.join(SUMS);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    ensure!(text.lines().count() > 3, "{} names next to nothing", path.display());
    Ok(text)
}

/// Copies what git knows and what it would add: no outputs.
fn copy_sources(from: &Path, to: &Path) -> Result<()> {
    let mut list = Command::new("git");
    list.current_dir(from).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let files = list.stdin(Stdio::null()).output().context("asking git for the sources")?;
    ensure!(files.status.success(), "git does not know the sources in {}", from.display());
    for name in files.stdout.split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        let name = str::from_utf8(name).context("reading a file name")?;
        // A file that was removed and not yet committed is no source any more.
        let Ok(metadata) = from.join(name).symlink_metadata() else { continue };
        ensure!(metadata.is_file(), "{name} is no ordinary file");
        let target = to.join(name);
        let folder = target.parent().context("a file without a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        fs::copy(from.join(name), &target).with_context(|| format!("copying {name}"))?;
    }
    Ok(())
}

/// A cache with everything that stands in `from` but the Rust programs.
fn link_cache(from: &Path, to: &Path) -> Result<()> {
    let store = to.join("store");
    fs::create_dir_all(&store).with_context(|| format!("making {}", store.display()))?;
    let link = |from: &Path, to: &Path| {
        std::os::unix::fs::symlink(from, to).with_context(|| format!("linking {}", from.display()))
    };
    for (folder, target, left_out) in [(from.to_path_buf(), to, "store"), (from.join("store"), &store, "rust-")] {
        for entry in fs::read_dir(&folder).with_context(|| format!("listing {}", folder.display()))? {
            let entry = entry.with_context(|| format!("listing {}", folder.display()))?;
            let name = entry.file_name();
            let Some(text) = name.to_str() else { bail!("a file of no name in {}", folder.display()) };
            // Locks stay apart: this task holds none of them, and the other build must not wait for one that waits for it.
            if !text.starts_with(left_out) && text != "locks" && text != "logs" {
                link(&entry.path(), &target.join(text))?;
            }
        }
    }
    Ok(())
}
