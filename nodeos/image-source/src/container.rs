//! The named files that a layout or an archive of one consists of.

use std::{
    collections::HashMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use orrery_image_store::{
    archive::{Archive, Kind},
    components,
};
use orrery_protocol::Digest;
use serde::de::DeserializeOwned;

use crate::{SourceError, stream::Part};

/// More than any image's description has.
const JSON_BYTES: u64 = 4 << 20;
/// More than any image has blobs. An archive with more entries is a file tree.
const ENTRIES: usize = 10_000;
/// How many links one after the other lead to a file.
const LINKS: usize = 4;

/// Where named files are.
pub(crate) enum Container {
    /// In a directory. Only names made here are looked up, never one that an image gives.
    Folder(PathBuf),
    /// In an archive.
    Archive { file: Part, entries: HashMap<Vec<u8>, Place> },
}

pub(crate) enum Place {
    Content {
        at: u64,
        size: u64,
    },
    /// The same as another name: old archives have layers once only, and link to them.
    Link(Vec<u8>),
}

impl Container {
    /// Looks through an archive that is not compressed.
    ///
    /// # Errors
    /// When it is no archive.
    pub(crate) fn archive(file: Part, limit: u64) -> Result<Self, SourceError> {
        let mut entries = HashMap::new();
        let mut archive = Archive::new(file.clone(), limit);
        let failed = || SourceError::within("the archive");
        while let Some(entry) = archive.next().map_err(failed())? {
            // A name that cannot be one is nothing that an image could refer to.
            let Ok(parts) = components(&entry.name) else { continue };
            let place = match &entry.kind {
                Kind::File => Place::Content { at: entry.position, size: entry.size },
                Kind::HardLink(target) => Place::Link(join(&[], target)),
                Kind::Symlink(target) => Place::Link(join(&parts[..parts.len().saturating_sub(1)], target)),
                Kind::Directory | Kind::Device(_) => continue,
            };
            entries.insert(parts.join(&b'/'), place);
            if entries.len() > ENTRIES {
                break;
            }
        }
        Ok(Self::Archive { file, entries })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        matches!(self.open(name), Ok(Some(_)))
    }

    /// The file's content.
    pub(crate) fn get(&self, name: &str) -> Result<Part, SourceError> {
        self.open(name)?.ok_or_else(|| SourceError::Missing { name: name.to_owned() })
    }

    /// The file's content as a description of type `T`.
    pub(crate) fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T, SourceError> {
        json(self.get(name)?, name)
    }

    /// The blob with this digest and size, which it was found to have. Nothing of a blob is interpreted before.
    pub(crate) fn blob(&self, digest: &str, size: u64) -> Result<Part, SourceError> {
        let expected = sha256(digest)?;
        let name = format!("blobs/sha256/{expected}");
        let part = self.get(&name)?;
        let found = part.digest().map_err(SourceError::at("reading", Path::new(&name)))?;
        if (found, part.size) != (expected, size) {
            let show = |digest: Digest, size| format!("{digest} and {size} bytes");
            return Err(SourceError::Damaged { name, expected: show(expected, size), found: show(found, part.size) });
        }
        Ok(part)
    }

    fn open(&self, name: &str) -> Result<Option<Part>, SourceError> {
        match self {
            Self::Folder(folder) => {
                let path = folder.join(name);
                if !path.is_file() {
                    return Ok(None);
                }
                File::open(&path).and_then(Part::whole).map(Some).map_err(SourceError::at("opening", &path))
            }
            Self::Archive { file, entries } => {
                let mut place = entries.get(name.as_bytes());
                for _ in 0..LINKS {
                    match place {
                        Some(Place::Link(target)) => place = entries.get(target),
                        _ => break,
                    }
                }
                let Some(Place::Content { at, size }) = place else { return Ok(None) };
                Ok(Some(Part { at: *at, size: *size, ..file.clone() }))
            }
        }
    }
}

/// A description of type `T`.
pub(crate) fn json<T: DeserializeOwned>(mut part: Part, name: &str) -> Result<T, SourceError> {
    if part.size > JSON_BYTES {
        return Err(SourceError::TooLong { name: name.to_owned(), size: part.size, limit: JSON_BYTES });
    }
    let mut text = Vec::new();
    part.read_to_end(&mut text).map_err(SourceError::at("reading", Path::new(name)))?;
    serde_json::from_slice(&text).map_err(|source| SourceError::Json { name: name.to_owned(), source })
}

/// The digest in `sha256:…`.
pub(crate) fn sha256(digest: &str) -> Result<Digest, SourceError> {
    let known = digest.strip_prefix("sha256:").and_then(|digest| digest.parse().ok());
    known.ok_or_else(|| SourceError::Unsupported { what: "digest", media_type: digest.to_owned() })
}

/// Where a link in `folder` leads. One that leads out of the archive leads to nothing in it.
fn join(folder: &[&[u8]], target: &[u8]) -> Vec<u8> {
    let mut parts = folder.to_vec();
    for part in target.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}
