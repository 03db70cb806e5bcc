//! Reading directories of an ISO 9660 image (ECMA-119), and pointing a directory record elsewhere.
//!
//! Only what stamping and the shared kernel need: names of the primary tree, files of one extent.

use std::io::{self, Read, Seek, SeekFrom, Write};

use thiserror::Error;

/// Bytes of a logical sector.
pub const SECTOR: u64 = 2048;
/// The system area's sixteen sectors come before the first volume descriptor.
const FIRST_DESCRIPTOR: u64 = 16;
const MAX_DESCRIPTORS: u64 = 32;
/// Our directories have a handful of entries; whoever claims more is not ours.
const MAX_DIRECTORY_BYTES: u32 = 1 << 20;
const FLAG_DIRECTORY: u8 = 2;
const FLAG_MULTI_EXTENT: u8 = 0x80;

/// A directory record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Offset of the record itself in the image.
    pub position: u64,
    /// First sector of the content.
    pub extent: u32,
    /// Bytes of the content.
    pub size: u32,
    flags: u8,
}

/// Why something was not found in an image.
#[derive(Debug, Error)]
pub enum Iso9660Error {
    /// The image cannot be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// There is no primary volume descriptor where it must be.
    #[error("not an ISO 9660 image")]
    NotIso,
    /// A directory's structure is broken.
    #[error("the directory at byte {0} is damaged")]
    Damaged(u64),
    /// There is no such file.
    #[error("there is no {0} in it")]
    Missing(String),
}

impl Record {
    /// Offset of the content in the image.
    pub fn offset(&self) -> u64 {
        u64::from(self.extent) * SECTOR
    }

    /// Whether this is a regular file in one piece.
    pub fn is_file(&self) -> bool {
        self.flags & (FLAG_DIRECTORY | FLAG_MULTI_EXTENT) == 0
    }

    fn parse(bytes: &[u8], position: u64) -> Option<Self> {
        let long = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        Some(Self { position, extent: long(2)?, size: long(10)?, flags: *bytes.get(25)? })
    }
}

/// Follows `path` (components in the case they are stored, without version numbers) from the root directory.
///
/// # Errors
/// See [`Iso9660Error`].
pub fn find<I: Read + Seek>(image: &mut I, path: &[&str]) -> Result<Record, Iso9660Error> {
    let mut record = root(image)?;
    for (depth, name) in path.iter().enumerate() {
        if record.flags & FLAG_DIRECTORY == 0 {
            return Err(Iso9660Error::Missing(path[..=depth].join("/")));
        }
        record = lookup(image, &record, name)?.ok_or_else(|| Iso9660Error::Missing(path[..=depth].join("/")))?;
    }
    Ok(record)
}

/// The identifier of the primary volume, without its padding.
///
/// # Errors
/// See [`Iso9660Error`].
pub fn volume_id<I: Read + Seek>(image: &mut I) -> Result<String, Iso9660Error> {
    let (descriptor, _) = primary(image)?;
    Ok(String::from_utf8_lossy(&descriptor[40..72]).trim_end().to_owned())
}

/// Makes the file at `record` consist of `size` bytes from sector `extent` on.
///
/// # Errors
/// The image cannot be written.
pub fn repoint<I: Write + Seek>(image: &mut I, record: &Record, extent: u32, size: u32) -> io::Result<()> {
    image.seek(SeekFrom::Start(record.position + 2))?;
    for value in [extent, size] {
        // Every number stands twice, in both byte orders.
        image.write_all(&value.to_le_bytes())?;
        image.write_all(&value.to_be_bytes())?;
    }
    Ok(())
}

fn root<I: Read + Seek>(image: &mut I) -> Result<Record, Iso9660Error> {
    let (descriptor, position) = primary(image)?;
    let record = Record::parse(&descriptor[156..190], position + 156).ok_or(Iso9660Error::NotIso)?;
    if record.flags & FLAG_DIRECTORY == 0 { Err(Iso9660Error::NotIso) } else { Ok(record) }
}

fn primary<I: Read + Seek>(image: &mut I) -> Result<([u8; SECTOR as usize], u64), Iso9660Error> {
    let mut sector = [0; SECTOR as usize];
    for index in FIRST_DESCRIPTOR..FIRST_DESCRIPTOR + MAX_DESCRIPTORS {
        image.seek(SeekFrom::Start(index * SECTOR))?;
        match image.read_exact(&mut sector) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(Iso9660Error::NotIso),
            other => other?,
        }
        match (&sector[1..6], sector[0]) {
            (b"CD001", 1) => return Ok((sector, index * SECTOR)),
            (b"CD001", kind) if kind != 0xff => {}
            _ => break,
        }
    }
    Err(Iso9660Error::NotIso)
}

fn lookup<I: Read + Seek>(image: &mut I, directory: &Record, name: &str) -> Result<Option<Record>, Iso9660Error> {
    let damaged = || Iso9660Error::Damaged(directory.offset());
    if directory.size > MAX_DIRECTORY_BYTES {
        return Err(damaged());
    }
    let mut bytes = vec![0; directory.size as usize];
    image.seek(SeekFrom::Start(directory.offset()))?;
    image.read_exact(&mut bytes)?;
    let mut at = 0;
    while let Some(&length) = bytes.get(at) {
        // Records do not cross sectors; a zero says that the rest of this one is unused.
        if length == 0 {
            at = (at + 1).next_multiple_of(SECTOR as usize);
            continue;
        }
        let record = bytes.get(at..at + usize::from(length)).filter(|r| r.len() >= 34).ok_or_else(damaged)?;
        let stored = record.get(33..33 + usize::from(record[32])).ok_or_else(damaged)?;
        if matches_name(stored, name) {
            return Record::parse(record, directory.offset() + at as u64).map(Some).ok_or_else(damaged);
        }
        at += usize::from(length);
    }
    Ok(None)
}

/// A file is stored as `NAME.EXT;1`, one without extension as `NAME.;1`.
fn matches_name(stored: &[u8], name: &str) -> bool {
    let base = stored.split(|&b| b == b';').next().unwrap_or_default();
    base.strip_suffix(b".").unwrap_or(base) == name.as_bytes()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    /// An image whose root directory holds `files`, each one extent.
    pub(crate) fn image(files: &[(&str, &[u8])]) -> Vec<u8> {
        let sector = SECTOR as usize;
        let mut bytes = vec![0; 19 * sector];
        bytes[16 * sector..16 * sector + 6].copy_from_slice(b"\x01CD001");
        bytes[16 * sector + 40..16 * sector + 72].copy_from_slice(b"ORRERY                          ");
        bytes[17 * sector..17 * sector + 6].copy_from_slice(b"\xffCD001");
        let record = |name: &[u8], extent: usize, size: usize, flags: u8| {
            let length = (33 + name.len()).next_multiple_of(2);
            let mut record = vec![0; length];
            record[0] = length as u8;
            record[2..6].copy_from_slice(&(extent as u32).to_le_bytes());
            record[10..14].copy_from_slice(&(size as u32).to_le_bytes());
            record[25] = flags;
            record[32] = name.len() as u8;
            record[33..33 + name.len()].copy_from_slice(name);
            record
        };
        let root = record(&[0], 18, sector, FLAG_DIRECTORY);
        bytes[16 * sector + 156..16 * sector + 190].copy_from_slice(&root);
        let mut directory = root.clone();
        directory.extend(record(&[1], 18, sector, FLAG_DIRECTORY));
        for (name, content) in files {
            directory.extend(record(name.as_bytes(), bytes.len() / sector, content.len(), 0));
            bytes.extend_from_slice(content);
            bytes.resize(bytes.len().next_multiple_of(sector), 0);
        }
        bytes[18 * sector..18 * sector + directory.len()].copy_from_slice(&directory);
        bytes
    }

    #[test]
    fn files_are_found_and_repointed() {
        let mut image = Cursor::new(image(&[("A.TXT;1", b"one"), ("KERNEL.;1", b"two")]));
        let record = find(&mut image, &["KERNEL"]).unwrap();
        assert!(record.is_file());
        assert_eq!((record.offset(), record.size), (20 * SECTOR, 3));
        assert_eq!(volume_id(&mut image).unwrap(), "ORRERY");
        repoint(&mut image, &record, 19, 2).unwrap();
        let record = find(&mut image, &["KERNEL"]).unwrap();
        assert_eq!((record.extent, record.size), (19, 2));
        let check = |image: &mut Cursor<Vec<u8>>, path: &[&str], expect: &str| {
            assert_eq!(find(image, path).unwrap_err().to_string(), expect);
        };
        check(&mut image, &["NONE"], "there is no NONE in it");
        check(&mut image, &["A.TXT", "B"], "there is no A.TXT/B in it");
        check(&mut Cursor::new(vec![0; 10]), &["A"], "not an ISO 9660 image");
        check(&mut Cursor::new(vec![0; 100_000]), &["A"], "not an ISO 9660 image");
    }

    proptest! {
        #[test]
        fn broken_images_never_panic(at in 16 * 2048usize..19 * 2048, value: u8) {
            let mut bytes = image(&[("A.TXT;1", b"one")]);
            bytes[at] = value;
            let _ = find(&mut Cursor::new(bytes), &["A.TXT"]);
        }
    }
}
