//! `cargo xtask clean`: removes outputs, and the cache when asked to.

use std::{fs, path::Path};

use anyhow::Result;

use crate::{
    store,
    ui::{self, size},
    workspace::Workspace,
};

/// The parts of the cache. The folder itself may be the user's, with other things in it.
const CACHE_PARTS: [&str; 6] = ["apt", "build", "locks", "logs", "sources", "store"];

/// Removes `target/orrery`, and with `cache` what the tasks keep outside the checkout.
///
/// # Errors
/// When something cannot be removed.
pub(crate) fn run(workspace: &Workspace, cache: bool) -> Result<()> {
    remove(&workspace.output())?;
    if cache {
        for part in CACHE_PARTS {
            remove(&workspace.cache.join(part))?;
        }
    } else {
        ui::say("clean", &format!("kept the cache {} (--cache removes it)", workspace.cache.display()));
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    let bytes = bytes_in(folder);
    store::remove_folder(folder)?;
    ui::say("clean", &format!("removed {} ({})", folder.display(), size(bytes)));
    Ok(())
}

fn bytes_in(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .filter_map(|entry| entry.ok())
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_in(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}
