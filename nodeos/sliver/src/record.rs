//! What is kept about a sliver: one small file, replaced whole.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
};

use orrery_image_store::OWNERS;
use orrery_protocol::SliverSpec;
use serde::{Deserialize, Serialize};

use crate::error::{At, SliverError};

/// Identities a sliver has.
pub(crate) const IDS: u32 = OWNERS;
/// Ranges of that size after the node's own.
pub(crate) const MAX_INDEX: u32 = 65_533;

/// The quota project of the sliver with this number.
pub(crate) fn project(index: u32) -> u32 {
    index + 1
}

/// A sliver as it is recorded on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number on this node, from which identities and the quota project follow. Reused once it is destroyed.
    pub index: u32,
    /// The identifier its root's tree has in the image store.
    pub image: String,
    /// What central asked for. Its life is what was made of that: a suspension that is in force, and the last reset and restart
    /// that were carried out.
    pub spec: SliverSpec,
}

impl Record {
    /// The account name, also the name of its directory and its control group.
    pub fn login(&self) -> String {
        self.spec.slice.login()
    }

    /// The node's user and group ID that is 0 inside.
    pub fn id_base(&self) -> u32 {
        IDS * (self.index + 1)
    }

    /// The quota project of its files.
    pub fn project(&self) -> u32 {
        project(self.index)
    }

    /// The host name it sees: its login without characters host names lack.
    pub fn host_name(&self) -> String {
        self.login().replace('_', "-")
    }

    pub(crate) fn load(path: &Path) -> Result<Self, SliverError> {
        let text = fs::read(path).at("reading", path)?;
        serde_json::from_slice(&text).map_err(|source| SliverError::Record { path: path.into(), source })
    }

    /// Replaces the file so that a power cut leaves the old or the new.
    pub(crate) fn store(&self, path: &Path) -> Result<(), SliverError> {
        let new = path.with_extension("json.new");
        self.write(&new)?;
        fs::rename(&new, path).at("replacing", path)?;
        let parent = path.parent().unwrap_or(Path::new("/"));
        File::open(parent).and_then(|d| d.sync_all()).at("flushing", parent)
    }

    /// Makes the file, flushed: whoever finds it under a name that it is given later finds all of it.
    pub(crate) fn write(&self, path: &Path) -> Result<(), SliverError> {
        let text =
            serde_json::to_vec_pretty(self).map_err(|source| SliverError::Record { path: path.into(), source })?;
        let mut file = File::create(path).at("making", path)?;
        file.write_all(&text).at("writing", path)?;
        file.sync_all().at("flushing", path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(index: u32) -> Record {
        let spec = r#"{"slice":"a/b","keys":[],"image":{"name":"debian","ref":{"sha256":"","size":1}}}"#;
        let spec = spec.replace(r#""sha256":"""#, &format!(r#""sha256":"{}""#, "0".repeat(64)));
        Record { index, image: "tree".into(), spec: serde_json::from_str(&spec).expect("parsing a specification") }
    }

    #[test]
    fn identities_do_not_overlap() {
        let check = |index, base, project| {
            assert_eq!((record(index).id_base(), record(index).project()), (base, project));
        };
        check(0, 65_536, 1);
        check(1, 131_072, 2);
        check(MAX_INDEX, u32::MAX - 2 * IDS + 1, MAX_INDEX + 1);
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let path = std::env::temp_dir().join(format!("orrery-sliver-record-{}.json", std::process::id()));
        record(7).store(&path).expect("writing");
        let read = Record::load(&path);
        fs::remove_file(&path).expect("removing");
        assert_eq!(read.expect("reading"), record(7));
        assert_eq!(record(7).host_name(), "a-b");
    }
}
