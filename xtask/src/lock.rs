//! Locks between concurrent tasks: advisory file locks, which the kernel drops when their holder dies.

use std::fs::{self, File, TryLockError};

use anyhow::{Context, Result, bail};

use crate::{ui, workspace::Workspace};

/// Held while it lives.
#[must_use]
pub(crate) struct Lock {
    _file: File,
}

/// Waits for the lock called `name` in the cache, saying so if another task has it.
///
/// # Errors
/// When the lock file cannot be made or locked.
pub(crate) fn acquire(workspace: &Workspace, name: &str) -> Result<Lock> {
    let folder = workspace.cache.join("locks");
    fs::create_dir_all(&folder)
        .with_context(|| format!("making {} (set ORRERY_CACHE to a folder you can write)", folder.display()))?;
    let path = folder.join(name);
    let file = File::create(&path).with_context(|| format!("making {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            ui::say(name, "waiting for another task that is at it");
            file.lock().with_context(|| format!("locking {}", path.display()))?;
        }
        Err(TryLockError::Error(error)) => bail!("locking {}: {error}", path.display()),
    }
    Ok(Lock { _file: file })
}
