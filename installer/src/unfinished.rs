//! The mark of an installation that has begun: an interrupted one goes on with what is on the disk already.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use orrery_protocol::Digest;
use serde::{Deserialize, Serialize};

use crate::{error::InstallError, fetch::sync_dir, installed::installed_slot};

const FILE: &str = "install.json";

/// What was asked for when the disk was made ready. The same request may go on with it; any other starts anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unfinished {
    /// The signed manifest.
    pub(crate) manifest: Digest,
    /// The serial of the script.
    pub(crate) serial: u64,
}

impl Unfinished {
    /// Marks the data partition mounted at `data`.
    pub(crate) fn write(&self, data: &Path) -> Result<(), InstallError> {
        let path = data.join(FILE);
        let bytes = serde_json::to_vec(self).map_err(io::Error::other);
        bytes
            .and_then(|bytes| fs::write(&path, bytes))
            .and_then(|()| File::open(&path)?.sync_all())
            .map_err(|e| InstallError::io("writing", &path, e))?;
        sync_dir(data)
    }

    /// Whether the disk with these partitions was made ready for just this, and not finished.
    pub(crate) fn is_on(&self, boot: &Path, data: &Path) -> bool {
        let mark = fs::read(data.join(FILE)).ok().and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok());
        mark.as_ref() == Some(self) && matches!(installed_slot(boot), Ok(None))
    }

    /// Removes the mark, once nothing is unfinished. One that stays says nothing beside an active slot.
    pub(crate) fn clear(data: &Path) {
        let _ = fs::remove_file(data.join(FILE));
    }
}
