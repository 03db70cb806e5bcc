//! Who may log into which sliver: written by the node manager, read by the ssh gate.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use orrery_installer::replace_file;
use orrery_protocol::{SliceName, SliverState};
use serde::{Deserialize, Serialize};

/// All accounts, by login name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AccountTable {
    /// By login name.
    pub accounts: BTreeMap<String, Account>,
}

/// One account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Whose sliver it leads into.
    pub slice: SliceName,
    /// OpenSSH public keys.
    pub keys: Vec<String>,
    /// The sliver's state.
    pub state: SliverState,
    /// Why there is no sliver, or why it is suspended.
    #[serde(default)]
    pub error: Option<String>,
}

impl AccountTable {
    /// Replaces the file at `path`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        replace_file(path, &serde_json::to_vec(self)?, 0o600)
    }
}

/// The table in a file, read again whenever the file was replaced.
#[derive(Debug)]
pub struct AccountFile {
    path: PathBuf,
    last: Mutex<Option<(Version, Arc<AccountTable>)>>,
}

/// What changes when a file is replaced.
type Version = (u64, i64, i64, u64);

impl AccountFile {
    /// The table in the file at `path`, which need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), last: Mutex::new(None) }
    }

    /// The table as it is now. Nobody may log in while there is none, or a broken one.
    pub fn current(&self) -> Arc<AccountTable> {
        self.read().unwrap_or_else(|e| {
            if e.kind() != io::ErrorKind::NotFound {
                tracing::error!("reading {}: {e}", self.path.display());
            }
            Arc::default()
        })
    }

    fn read(&self) -> io::Result<Arc<AccountTable>> {
        let metadata = fs::metadata(&self.path)?;
        let version = (metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len());
        let mut last = self.last.lock().unwrap_or_else(|e| e.into_inner());
        if let Some((seen, table)) = &*last
            && *seen == version
        {
            return Ok(table.clone());
        }
        let table: Arc<AccountTable> = Arc::new(serde_json::from_slice(&fs::read(&self.path)?)?);
        *last = Some((version, table.clone()));
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_table_is_seen_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("accounts.json");
        let file = AccountFile::new(&path);
        assert!(file.current().accounts.is_empty());
        for count in 1..4 {
            let mut table = AccountTable::default();
            for index in 0..count {
                let slice: SliceName = format!("demo/s{index}").parse().unwrap();
                let account =
                    Account { slice: slice.clone(), keys: Vec::new(), state: SliverState::Creating, error: None };
                table.accounts.insert(slice.login(), account);
            }
            table.write(&path).unwrap();
            assert_eq!(*file.current(), table);
            assert_eq!(*file.current(), table);
        }
        fs::write(&path, "nonsense").unwrap();
        assert!(file.current().accounts.is_empty());
    }
}
