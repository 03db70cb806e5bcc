//! The entries of a tar archive: names and metadata put together from the header and what precedes it.
//!
//! The tar crate parses a header's fields; reading an archive is not left to it: it reads headers of any size into memory, splits
//! binary attribute values at newlines, and loses its place after a sparse file whose own headers are asked for.

mod pax;
mod sparse;
pub mod write;

use std::{
    ffi::OsStr,
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use tar::{EntryType, GnuExtSparseHeader, Header};

pub use self::sparse::Extent;
use self::sparse::Sparse;
use crate::{
    ImportError,
    object::{Metadata, keeps_attribute},
};

/// The longest path, and the longest target of a link.
pub const PATH_BYTES: usize = 4096;
/// Long enough for a path, a link, what ext4 can hold in attributes, and the map of a sparse file.
const HEADER_BYTES: u64 = 1 << 20;
/// Entries of one archive.
const ENTRIES: u64 = 2_000_000;
const BLOCK: u64 = 512;
/// Beyond what any archive has, and far from where adding up sizes would overflow.
const MAX_BYTES: u64 = 1 << 62;

/// What kind of file an entry describes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, and where it points.
    Symlink(Vec<u8>),
    /// A further name of an earlier entry, which it names.
    HardLink(Vec<u8>),
    /// A device node or FIFO.
    Device(Device),
}

/// What is no file, directory or link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// The character device 0:0, by which the upper layer of an overlay says that the lower layer's file is gone.
    Whiteout,
    /// A FIFO.
    Fifo,
    /// A node of some device.
    Other,
}

/// One entry; its content is yet to be read.
#[derive(Debug)]
pub struct Entry<'a, R> {
    /// As the archive has it, and not to be trusted: see [`components`](crate::components).
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// What it has besides content.
    pub metadata: Metadata,
    /// Extended attributes that do not belong into a tree and were left out.
    pub skipped_attributes: u64,
    /// Bytes of content, holes included.
    pub size: u64,
    /// Where the content stands in the archive.
    pub position: u64,
    /// How many bytes of it stand there: those that are in no hole.
    pub stored: u64,
    /// Reads exactly `size` bytes, or fails.
    pub content: Content<Stored<'a, R>>,
}

impl<R> Entry<'_, R> {
    /// Refuses metadata that no file of a tree can have. Hard links and devices have none of their own.
    ///
    /// # Errors
    /// As for [`Metadata::check`].
    pub fn check(&self) -> Result<(), ImportError> {
        match self.kind {
            Kind::HardLink(_) | Kind::Device(_) => Ok(()),
            Kind::File | Kind::Directory | Kind::Symlink(_) => self.metadata.check(&self.name),
        }
    }
}

/// A tar archive that is read from a stream, up to a limit.
#[derive(Debug)]
pub struct Archive<R> {
    stream: R,
    limit: u64,
    /// Which extended attributes are kept.
    keeps: fn(&[u8]) -> bool,
    /// Bytes read.
    position: u64,
    /// Bytes that stand for holes: not in the archive, but as much work.
    holes: u64,
    entries: u64,
    /// What is left of an entry's content, and of the padding behind it.
    content: u64,
    padding: u64,
    /// Whether the block was read that marks the end.
    ended: bool,
    /// Whether entries' contents were taken out of what is read.
    hollow: bool,
}

impl<R: Read> Archive<R> {
    /// At its beginning. It may have `limit` bytes with its holes.
    pub fn new(stream: R, limit: u64) -> Self {
        let (keeps, limit) = (keeps_attribute, limit.min(MAX_BYTES));
        let (position, holes, entries, content, padding) = (0, 0, 0, 0, 0);
        Self { stream, limit, keeps, position, holes, entries, content, padding, ended: false, hollow: false }
    }

    /// With these extended attributes instead of those that belong into an image's tree.
    #[must_use]
    pub fn keeping(self, keeps: fn(&[u8]) -> bool) -> Self {
        Self { keeps, ..self }
    }

    /// At its beginning, where `stream` lacks the `stored` bytes of each entry. Nothing else is different, least of all where
    /// things stand; but contents cannot be read.
    pub(crate) fn hollow(stream: R, limit: u64) -> Self {
        Self { hollow: true, ..Self::new(stream, limit) }
    }

    /// The next entry, or `None` at the end of the archive.
    ///
    /// # Errors
    /// When the stream cannot be read, is no tar archive, has an entry that makes no sense, or is too large.
    #[expect(clippy::should_implement_trait, reason = "an entry borrows the archive")]
    pub fn next(&mut self) -> Result<Option<Entry<'_, R>>, ImportError> {
        let mut long_name = None;
        let mut long_link = None;
        let mut extended = None;
        let header = loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return if long_name.is_none() && long_link.is_none() && extended.is_none() {
                    Ok(None)
                } else {
                    Err(ImportError::Reading(io::ErrorKind::UnexpectedEof.into()))
                };
            };
            let slot = match header.entry_type() {
                EntryType::GNULongName => &mut long_name,
                EntryType::GNULongLink => &mut long_link,
                EntryType::XHeader => &mut extended,
                // A comment on the archive as a whole.
                EntryType::XGlobalHeader => continue,
                _ => break header,
            };
            let malformed = |reason| ImportError::Malformed { path: display(&header.path_bytes()), reason };
            if slot.is_some() {
                return Err(malformed("two headers of a kind describe one entry"));
            }
            if self.content > HEADER_BYTES {
                return Err(malformed("its header is too long"));
            }
            let mut body = vec![0; usize::try_from(self.content).expect("no longer than HEADER_BYTES")];
            self.content(&mut body)?;
            *slot = Some(body);
        };
        self.assemble(&header, long_name, long_link, extended.as_deref().unwrap_or_default()).map(Some)
    }

    /// Whether the end was come to and is marked. Every tool marks it, but readers do not insist: without the mark the archive may
    /// have been cut off between two entries.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Reads what follows the last entry: padding, and for a compressed archive the checksum of its last frame.
    ///
    /// # Errors
    /// When it cannot be read, or goes beyond the limit.
    pub fn finish(self) -> Result<(), ImportError> {
        let mut rest = self.stream.take(self.limit.saturating_add(1));
        if io::copy(&mut rest, &mut io::sink()).map_err(ImportError::Reading)? > self.limit {
            return Err(ImportError::TooLarge { limit: self.limit, of: "bytes" });
        }
        Ok(())
    }

    /// Goes to the end of the current entry.
    fn skip(&mut self) -> Result<(), ImportError> {
        let left = self.content + self.padding;
        let skipped = io::copy(&mut (&mut self.stream).take(left), &mut io::sink()).map_err(ImportError::Reading)?;
        if skipped != left {
            return Err(ImportError::Reading(io::ErrorKind::UnexpectedEof.into()));
        }
        self.position += left;
        (self.content, self.padding) = (0, 0);
        Ok(())
    }

    /// Reads a header whose checksum is right and whose content is within the limit. `None`: the archive ends here.
    fn header(&mut self) -> Result<Option<Header>, ImportError> {
        let mut header = Header::new_old();
        let got = read_up_to(&mut self.stream, header.as_mut_bytes()).map_err(ImportError::Reading)?;
        if got == 0 || header.as_bytes().iter().all(|&byte| byte == 0) {
            self.ended = got == header.as_bytes().len();
            return Ok(None);
        }
        if got < header.as_bytes().len() {
            return Err(ImportError::Reading(io::ErrorKind::UnexpectedEof.into()));
        }
        self.position += BLOCK;
        let sum: u32 = header.as_bytes().iter().map(|&byte| u32::from(byte)).sum();
        let field: u32 = header.as_old().cksum.iter().map(|&byte| u32::from(byte)).sum();
        // The field counts as spaces (POSIX.1-2017, pax, "ustar Interchange Format").
        if header.cksum().ok() != Some(sum - field + 8 * u32::from(b' ')) {
            let message = "a header's checksum is wrong: this is no tar archive, or a damaged one";
            return Err(ImportError::Reading(io::Error::new(io::ErrorKind::InvalidData, message)));
        }
        self.entries += 1;
        if self.entries > ENTRIES {
            return Err(ImportError::TooLarge { limit: ENTRIES, of: "entries" });
        }
        self.expect(header.entry_size().map_err(ImportError::Reading)?)?;
        Ok(Some(header))
    }

    /// Notes that content of this length follows.
    fn expect(&mut self, size: u64) -> Result<(), ImportError> {
        let end = (self.position + self.holes).checked_add(size).filter(|end| *end <= self.limit);
        if end.is_none() {
            return Err(ImportError::TooLarge { limit: self.limit, of: "bytes" });
        }
        self.content = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
        Ok(())
    }

    /// Fills `buffer` with content of the current entry.
    fn content(&mut self, buffer: &mut [u8]) -> Result<(), ImportError> {
        if self.content < buffer.len() as u64 {
            return Err(ImportError::Reading(io::ErrorKind::UnexpectedEof.into()));
        }
        self.stream.read_exact(buffer).map_err(ImportError::Reading)?;
        self.content -= buffer.len() as u64;
        self.position += buffer.len() as u64;
        Ok(())
    }

    fn assemble(
        &mut self,
        header: &Header,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
        extended: &[u8],
    ) -> Result<Entry<'_, R>, ImportError> {
        let mut name = long_name.map_or_else(|| header.path_bytes().into_owned(), until_nul);
        let mut link = long_link
            .map_or_else(|| header.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default(), until_nul);
        let mut metadata = Metadata {
            mode: header.mode().map_err(ImportError::Reading)? & 0o7777,
            owner: number(header.uid(), &name)?,
            group: number(header.gid(), &name)?,
            modified: (header.mtime().map_err(ImportError::Reading)?.cast_signed(), 0),
            attributes: Vec::new(),
        };

        let malformed = |reason| ImportError::Malformed { path: display(&name), reason };
        let mut path = None;
        let mut skipped_attributes = 0;
        let mut sparse: Option<Sparse> = None;
        for (key, value) in pax::records(extended).ok_or_else(|| malformed("its PAX header is malformed"))? {
            let small = || pax::number(value).and_then(|id| u32::try_from(id).ok());
            match key {
                b"path" => path = Some(value.to_vec()),
                b"linkpath" => link = value.to_vec(),
                b"uid" => metadata.owner = small().ok_or_else(|| malformed("its owner is not a number"))?,
                b"gid" => metadata.group = small().ok_or_else(|| malformed("its group is not a number"))?,
                b"mtime" => {
                    metadata.modified = pax::time(value).ok_or_else(|| malformed("its time is not a number"))?
                }
                // Needed from 8 GiB on, where some leave the header's zero. Two sizes could make two readers see two archives.
                b"size" => match pax::number(value) {
                    Some(size) if size == self.content => {}
                    Some(size) if self.content == 0 => self.expect(size)?,
                    _ => return Err(malformed("its headers give two sizes")),
                },
                _ => {
                    if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                        let taken = sparse.get_or_insert_default().record(key, value);
                        taken.ok_or_else(|| malformed("its map of holes is malformed"))?;
                    } else if let Some(attribute) = key.strip_prefix(b"SCHILY.xattr.") {
                        if (self.keeps)(attribute) {
                            metadata.attributes.push((attribute.to_vec(), value.to_vec()));
                        } else {
                            skipped_attributes += 1;
                        }
                    } else if key.starts_with(b"SCHILY.acl.") {
                        skipped_attributes += 1;
                    }
                }
            }
        }
        metadata.attributes.sort();
        if metadata.attributes.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(malformed("two of its attributes have one name"));
        }
        metadata.modified = Metadata::time(metadata.modified.0, metadata.modified.1);
        let kind = match header.entry_type() {
            EntryType::GNUSparse => {
                self.sparse_header(header, sparse.get_or_insert_default())
                    .and_then(|known| known.ok_or_else(|| malformed("its map of holes is malformed")))?;
                Kind::File
            }
            // How archives older than POSIX mark a directory.
            EntryType::Regular if path.as_ref().unwrap_or(&name).ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Directory => Kind::Directory,
            EntryType::Symlink => Kind::Symlink(link),
            EntryType::Link => Kind::HardLink(link),
            EntryType::Char
                if (header.device_major().ok(), header.device_minor().ok()) == (Some(Some(0)), Some(Some(0))) =>
            {
                Kind::Device(Device::Whiteout)
            }
            EntryType::Fifo => Kind::Device(Device::Fifo),
            EntryType::Char | EntryType::Block => Kind::Device(Device::Other),
            _ => return Err(malformed("this type of entry is not supported")),
        };
        let mut size = self.content;
        let mut extents = vec![Extent { offset: 0, length: size }];
        if let Some(mut sparse) = sparse {
            if sparse.map_in_content {
                self.sparse_map(&mut sparse.numbers)?.ok_or_else(|| malformed("its map of holes is malformed"))?;
            }
            let known = sparse.extents(self.content).filter(|_| kind == Kind::File);
            let stored = self.content;
            (extents, size) = known.ok_or_else(|| malformed("its map of holes is malformed"))?;
            self.holes = self.holes.saturating_add(size - stored);
            if self.position.saturating_add(self.holes).saturating_add(stored) > self.limit {
                return Err(ImportError::TooLarge { limit: self.limit, of: "bytes" });
            }
            path = sparse.name.or(path);
        }
        name = path.unwrap_or(name);
        let (position, stored) = (self.position, self.content);
        if self.hollow {
            self.position += stored;
            self.content = 0;
        }
        let content = Content::new(Stored { archive: self }, extents, size);
        Ok(Entry { name, kind, metadata, skipped_attributes, size, position, stored, content })
    }

    /// Reads what an old header of a sparse file says, and the blocks that go on with it. `None`: it makes no sense.
    fn sparse_header(&mut self, header: &Header, sparse: &mut Sparse) -> Result<Option<()>, ImportError> {
        let mut more = sparse.header(header);
        while more == Some(true) {
            let mut block = GnuExtSparseHeader::new();
            self.stream.read_exact(block.as_mut_bytes()).map_err(ImportError::Reading)?;
            self.position += BLOCK;
            more = sparse.extension(&block).filter(|_| (sparse.numbers.len() as u64) < HEADER_BYTES);
        }
        Ok(more.map(|_| ()))
    }

    /// Reads the map that stands before the content: a line for the number of extents and for each number, padded to whole
    /// blocks. `None`: it makes no sense.
    fn sparse_map(&mut self, numbers: &mut Vec<u64>) -> Result<Option<()>, ImportError> {
        let (mut text, mut lines, mut wanted) = (Vec::new(), Vec::new(), 1);
        while (lines.len() as u64) < wanted {
            let mut block = [0; BLOCK as usize];
            self.content(&mut block)?;
            for byte in block {
                if byte != b'\n' {
                    text.push(byte);
                } else if (lines.len() as u64) < wanted {
                    let Some(number) = pax::number(&text).filter(|_| !text.is_empty()) else { return Ok(None) };
                    if lines.is_empty() {
                        wanted = number.saturating_mul(2).saturating_add(1);
                    }
                    lines.push(number);
                    text.clear();
                }
            }
            if lines.len() as u64 > HEADER_BYTES || text.len() as u64 > BLOCK {
                return Ok(None);
            }
        }
        numbers.extend(&lines[1..]);
        Ok(Some(()))
    }
}

/// The stored bytes of the current entry.
#[derive(Debug)]
pub struct Stored<'a, R> {
    archive: &'a mut Archive<R>,
}

impl<R: Read> Read for Stored<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.archive.content).map_or(buffer.len(), |left| left.min(buffer.len()));
        let length = self.archive.stream.read(&mut buffer[..room])?;
        self.archive.content -= length as u64;
        self.archive.position += length as u64;
        Ok(length)
    }
}

/// A file's content, with the holes of a sparse file read as zeros.
#[derive(Debug)]
pub struct Content<R> {
    /// What is stored of it, one extent after the other.
    stored: R,
    extents: std::vec::IntoIter<Extent>,
    /// The extent that is read or comes next.
    extent: Option<Extent>,
    at: u64,
    size: u64,
}

impl<R> Content<R> {
    pub(crate) fn new(stored: R, extents: Vec<Extent>, size: u64) -> Self {
        Self { stored, extents: extents.into_iter(), extent: None, at: 0, size }
    }

    /// Where the stored parts stand in the file.
    pub(crate) fn extents(&self) -> &[Extent] {
        self.extents.as_slice()
    }
}

impl<R: Read> Read for Content<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.extent.is_none_or(|extent| extent.offset + extent.length <= self.at) {
            self.extent = self.extents.next();
            if self.extent.is_none() {
                break;
            }
        }
        let (at, room) = (self.at, buffer.len());
        let within = |end: u64| usize::try_from(end - at).map_or(room, |left| left.min(room));
        let length = match self.extent {
            Some(Extent { offset, length }) if offset <= self.at => {
                let buffer = &mut buffer[..within(offset + length)];
                let length = self.stored.read(buffer)?;
                if length == 0 && !buffer.is_empty() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                length
            }
            hole => {
                let length = within(hole.map_or(self.size, |extent| extent.offset));
                buffer[..length].fill(0);
                length
            }
        };
        self.at += length as u64;
        Ok(length)
    }
}

/// A name for a message.
pub fn display(name: &[u8]) -> PathBuf {
    Path::new(OsStr::from_bytes(&name[..name.len().min(PATH_BYTES)])).to_owned()
}

/// Reads until `buffer` is full or the stream ends.
pub(crate) fn read_up_to(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match stream.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(length) => got += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

fn number(id: io::Result<u64>, name: &[u8]) -> Result<u32, ImportError> {
    u32::try_from(id.map_err(ImportError::Reading)?)
        .map_err(|_| ImportError::Malformed { path: display(name), reason: "its owner is not a number" })
}

fn until_nul(mut name: Vec<u8>) -> Vec<u8> {
    name.truncate(name.iter().position(|&byte| byte == 0).unwrap_or(name.len()));
    name
}
