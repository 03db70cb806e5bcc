//! Writing entries, as [`Archive`](super::Archive) reads them.

use std::io::{self, Read, Write};

use tar::{EntryType, Header};

use super::{BLOCK, sparse::Extent};
use crate::object::Metadata;

/// What the field of a size or time can say: eleven octal digits.
pub const FIELD: u64 = 0o777_7777_7777;
/// The same of an owner: seven.
const ID_FIELD: u32 = 0o777_7777;

/// What an entry is.
#[derive(Debug, Clone, Copy)]
pub enum What<'a> {
    /// A regular file. Its content follows, and [`pad`].
    File {
        /// In bytes.
        size: u64,
    },
    /// A regular file with holes. The content of these parts follows, and [`pad`] of their length.
    Sparse {
        /// With its holes, in bytes.
        size: u64,
        /// What is no hole, in order.
        parts: &'a [Extent],
    },
    /// A directory; its name should end with a slash.
    Directory,
    /// A symbolic link, and where it points.
    Symlink(&'a [u8]),
    /// A further name of the entry of this name.
    HardLink(&'a [u8]),
    /// The character device 0:0.
    Whiteout,
    /// A FIFO.
    Fifo,
}

/// Writes all of an entry but its content.
///
/// # Errors
/// When writing fails.
pub fn head(out: &mut impl Write, name: &[u8], metadata: &Metadata, what: What<'_>) -> io::Result<()> {
    let map = match what {
        What::Sparse { parts, .. } => map(parts),
        _ => Vec::new(),
    };
    let (kind, link, size): (_, &[u8], _) = match what {
        What::File { size } => (EntryType::Regular, b"", size),
        What::Sparse { parts, .. } => (EntryType::Regular, b"", map.len() as u64 + stored(parts)),
        What::Directory => (EntryType::Directory, b"", 0),
        What::Symlink(target) => (EntryType::Symlink, target, 0),
        What::HardLink(first) => (EntryType::Link, first, 0),
        What::Whiteout => (EntryType::Char, b"", 0),
        What::Fifo => (EntryType::Fifo, b"", 0),
    };
    let mut records = Vec::new();
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(metadata.mode);
    // The field of a size that it cannot say is 0.
    header.set_size(if size <= FIELD { size } else { 0 });
    if size > FIELD {
        record(&mut records, b"size", size.to_string().as_bytes());
    }
    if let What::Sparse { size, .. } = what {
        record(&mut records, b"GNU.sparse.major", b"1");
        record(&mut records, b"GNU.sparse.minor", b"0");
        record(&mut records, b"GNU.sparse.name", name);
        record(&mut records, b"GNU.sparse.realsize", size.to_string().as_bytes());
    }
    if let What::Whiteout = what {
        header.set_device_major(0)?;
        header.set_device_minor(0)?;
    }
    let fields = header.as_old_mut();
    for (key, text, field) in [("path", name, &mut fields.name), ("linkpath", link, &mut fields.linkname)] {
        let length = text.len().min(field.len());
        field[..length].copy_from_slice(&text[..length]);
        if text.len() > field.len() {
            record(&mut records, key.as_bytes(), text);
        }
    }
    for (key, id) in [("uid", metadata.owner), ("gid", metadata.group)] {
        let fits = id <= ID_FIELD;
        let field = u64::from(if fits { id } else { 0 });
        if key == "uid" {
            header.set_uid(field)
        } else {
            header.set_gid(field)
        }
        if !fits {
            record(&mut records, key.as_bytes(), id.to_string().as_bytes());
        }
    }
    let (seconds, nanoseconds) = metadata.modified;
    let whole = u64::try_from(seconds).ok().filter(|seconds| *seconds <= FIELD);
    header.set_mtime(whole.unwrap_or(0));
    if whole.is_none() || nanoseconds != 0 {
        record(&mut records, b"mtime", time(seconds, nanoseconds).as_bytes());
    }
    for (name, value) in &metadata.attributes {
        record(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    if !records.is_empty() {
        let mut extended = Header::new_ustar();
        extended.set_entry_type(EntryType::XHeader);
        extended.as_old_mut().name[..9].copy_from_slice(b"PaxHeader");
        extended.set_mode(0o644);
        extended.set_uid(0);
        extended.set_gid(0);
        extended.set_mtime(0);
        extended.set_size(records.len() as u64);
        extended.set_cksum();
        out.write_all(extended.as_bytes())?;
        out.write_all(&records)?;
        pad(out, records.len() as u64)?;
    }
    header.set_cksum();
    out.write_all(header.as_bytes())?;
    out.write_all(&map)
}

/// Adds `LENGTH KEY=VALUE\n`, whose length counts itself (POSIX.1-2017, pax, "pax Extended Header").
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    for part in [b" ", key, b"=", value, b"\n"] {
        records.extend_from_slice(part);
    }
}

/// Seconds with a fraction, for times before 1970 as well.
fn time(seconds: i64, nanoseconds: u32) -> String {
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let sign = if total < 0 { "-" } else { "" };
    let (whole, fraction) = (total.abs() / 1_000_000_000, total.abs() % 1_000_000_000);
    let text = format!("{sign}{whole}.{fraction:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Fills up the last block of content of this size.
///
/// # Errors
/// When writing fails.
pub fn pad(out: &mut impl Write, size: u64) -> io::Result<()> {
    let padding = (BLOCK - size % BLOCK) % BLOCK;
    io::copy(&mut io::repeat(0).take(padding), out).map(drop)
}

/// Writes the end of an archive.
///
/// # Errors
/// When writing fails.
pub fn end(out: &mut impl Write) -> io::Result<()> {
    out.write_all(&[0; 2 * BLOCK as usize])
}

/// How much of a sparse file is no hole, in bytes.
pub fn stored(parts: &[Extent]) -> u64 {
    parts.iter().map(|part| part.length).sum()
}

/// The map of a sparse file in whole blocks (GNU tar manual, "Storing Sparse Files", version 1.0).
fn map(parts: &[Extent]) -> Vec<u8> {
    let numbers = parts.iter().flat_map(|part| [part.offset, part.length]);
    let mut text: String =
        std::iter::once(parts.len() as u64).chain(numbers).map(|number| format!("{number}\n")).collect();
    let padding = text.len().next_multiple_of(BLOCK as usize) - text.len();
    text.extend(std::iter::repeat_n('\0', padding));
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Archive, Device, Kind},
        *,
    };

    #[test]
    fn records_count_themselves() {
        let check = |value: &[u8], length: usize| {
            let mut records = Vec::new();
            record(&mut records, b"k", value);
            assert_eq!(records.len(), length);
            assert!(records.starts_with(format!("{length} k=").as_bytes()));
        };
        check(b"v", 6);
        check(&[b'v'; 4], 9);
        check(&[b'v'; 5], 11);
        check(&[b'v'; 93], 99);
        check(&[b'v'; 94], 101);
    }

    #[test]
    fn times_before_1970() {
        let check = |seconds, nanoseconds, expect| assert_eq!(time(seconds, nanoseconds), expect);
        check(1, 0, "1");
        check(10, 250_000_000, "10.25");
        check(-2, 750_000_000, "-1.25");
        check(-1, 500_000_000, "-0.5");
        check(0, 0, "0");
    }

    #[test]
    fn what_is_written_is_read_again() {
        let metadata = Metadata {
            mode: 0o4755,
            owner: 3_000_000,
            group: 7,
            modified: (-5, 250_000_000),
            attributes: vec![(b"user.a".to_vec(), b"1\n2\0".to_vec())],
        };
        let long = [b'n'; 300];
        let mut archive = Vec::new();
        let parts = [Extent { offset: 4096, length: 3 }, Extent { offset: 1 << 40, length: 2 }];
        head(&mut archive, &long, &metadata, What::Sparse { size: 1 << 41, parts: &parts }).unwrap();
        archive.extend(b"abcde");
        pad(&mut archive, stored(&parts)).unwrap();
        head(&mut archive, b"gone", &metadata, What::Whiteout).unwrap();
        head(&mut archive, b"pipe", &metadata, What::Fifo).unwrap();
        head(&mut archive, b"again", &metadata, What::HardLink(&long)).unwrap();
        end(&mut archive).unwrap();

        let mut reader = Archive::new(archive.as_slice(), 1 << 42);
        let mut entry = reader.next().unwrap().unwrap();
        assert_eq!((entry.name.as_slice(), entry.size, &entry.metadata), (&long[..], 1 << 41, &metadata));
        let mut start = [1; 4100];
        entry.content.read_exact(&mut start).unwrap();
        assert_eq!((&start[4090..4096], &start[4096..]), (&[0; 6][..], &b"abc\0"[..]));
        assert_eq!(reader.next().unwrap().unwrap().kind, Kind::Device(Device::Whiteout));
        assert_eq!(reader.next().unwrap().unwrap().kind, Kind::Device(Device::Fifo));
        assert_eq!(reader.next().unwrap().unwrap().kind, Kind::HardLink(long.to_vec()));
        assert!(reader.next().unwrap().is_none());
    }
}
