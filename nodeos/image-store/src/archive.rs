//! The entries of a tar archive: names and metadata put together from the header and what precedes it.
//!
//! The tar crate's own assembly of long names and PAX headers is not used: it reads headers of any size into memory
//! and splits binary attribute values at newlines. Headers, checksums and the position in the stream are its part.

use std::{
    ffi::OsStr,
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use tar::EntryType;

use crate::{
    ImportError,
    object::{Metadata, keeps_attribute},
    pax,
};

/// The longest path, and the longest target of a link.
pub(crate) const PATH_BYTES: usize = 4096;
/// Long enough for a path, a link and what ext4 can hold in attributes.
const HEADER_BYTES: u64 = 1 << 20;

/// What kind of file an entry describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Device,
    /// Tells nothing about a file of its own.
    Comment,
}

/// One entry; its content is yet to be read.
pub(crate) struct Entry<'a, R: Read> {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) metadata: Metadata,
    /// Bytes of content.
    pub(crate) size: u64,
    pub(crate) content: tar::Entry<'a, R>,
}

/// The next entry, or `None` at the end of the archive.
pub(crate) fn next<'a, R: Read>(entries: &mut tar::Entries<'a, R>) -> Result<Option<Entry<'a, R>>, ImportError> {
    let mut long_name = None;
    let mut long_link = None;
    let mut extended = None;
    loop {
        let Some(mut entry) = entries.next().transpose().map_err(ImportError::Reading)? else {
            return if long_name.is_none() && long_link.is_none() && extended.is_none() {
                Ok(None)
            } else {
                Err(ImportError::Reading(io::ErrorKind::UnexpectedEof.into()))
            };
        };
        let slot = match entry.header().entry_type() {
            EntryType::GNULongName => &mut long_name,
            EntryType::GNULongLink => &mut long_link,
            EntryType::XHeader => &mut extended,
            _ => return assemble(entry, long_name, long_link, extended.as_deref().unwrap_or_default()).map(Some),
        };
        let name = || display(&entry.path_bytes());
        if slot.is_some() {
            return Err(ImportError::Malformed { path: name(), reason: "two headers of a kind describe one entry" });
        }
        if entry.size() > HEADER_BYTES {
            return Err(ImportError::Malformed { path: name(), reason: "its header is too long" });
        }
        let mut body = Vec::new();
        entry.read_to_end(&mut body).map_err(ImportError::Reading)?;
        *slot = Some(body);
    }
}

/// A name for a message.
pub(crate) fn display(name: &[u8]) -> PathBuf {
    Path::new(OsStr::from_bytes(&name[..name.len().min(PATH_BYTES)])).to_owned()
}

fn assemble<'a, R: Read>(
    content: tar::Entry<'a, R>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    extended: &[u8],
) -> Result<Entry<'a, R>, ImportError> {
    let header = content.header();
    let mut name = long_name.map_or_else(|| header.path_bytes().into_owned(), until_nul);
    let mut link =
        long_link.map_or_else(|| header.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default(), until_nul);
    let size = header.entry_size().map_err(ImportError::Reading)?;
    let kind = header.entry_type();
    if matches!(kind, EntryType::XGlobalHeader) {
        return Ok(Entry { name, kind: Kind::Comment, metadata: Metadata::default(), size, content });
    }
    let mut metadata = Metadata {
        mode: header.mode().map_err(ImportError::Reading)? & 0o7777,
        owner: number(header.uid(), &name)?,
        group: number(header.gid(), &name)?,
        modified: (header.mtime().map_err(ImportError::Reading)?.cast_signed(), 0),
        attributes: Vec::new(),
    };

    let malformed = |reason| ImportError::Malformed { path: display(&name), reason };
    let mut path = None;
    for (key, value) in pax::records(extended).ok_or_else(|| malformed("its PAX header is malformed"))? {
        let small = || pax::number(value).and_then(|id| u32::try_from(id).ok());
        match key {
            b"path" => path = Some(value.to_vec()),
            b"linkpath" => link = value.to_vec(),
            b"uid" => metadata.owner = small().ok_or_else(|| malformed("its owner is not a number"))?,
            b"gid" => metadata.group = small().ok_or_else(|| malformed("its group is not a number"))?,
            b"mtime" => metadata.modified = pax::time(value).ok_or_else(|| malformed("its time is not a number"))?,
            // Needed from 8 GiB on. Two sizes could make two readers see two archives.
            b"size" if pax::number(value) != Some(size) => return Err(malformed("its headers give two sizes")),
            _ if key.starts_with(b"GNU.sparse.") => return Err(malformed("sparse files are not supported")),
            _ => {
                if let Some(attribute) = key.strip_prefix(b"SCHILY.xattr.").filter(|name| keeps_attribute(name)) {
                    metadata.attributes.push((attribute.to_vec(), value.to_vec()));
                }
            }
        }
    }
    metadata.attributes.sort();
    name = path.unwrap_or(name);
    let kind = match kind {
        // How archives older than POSIX mark a directory.
        EntryType::Regular if name.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink(link),
        EntryType::Link => Kind::HardLink(link),
        EntryType::Char | EntryType::Block | EntryType::Fifo => Kind::Device,
        _ => {
            return Err(ImportError::Malformed { path: display(&name), reason: "this type of entry is not supported" });
        }
    };
    Ok(Entry { name, kind, metadata, size, content })
}

fn number(id: io::Result<u64>, name: &[u8]) -> Result<u32, ImportError> {
    u32::try_from(id.map_err(ImportError::Reading)?)
        .map_err(|_| ImportError::Malformed { path: display(name), reason: "its owner is not a number" })
}

fn until_nul(mut name: Vec<u8>) -> Vec<u8> {
    name.truncate(name.iter().position(|&byte| byte == 0).unwrap_or(name.len()));
    name
}
