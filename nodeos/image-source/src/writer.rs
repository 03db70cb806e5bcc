//! A tree as a tar archive: sorted by path, with nothing in it that is not in the tree. The same tree gives the same bytes.

use std::io::{self, Read, Write};

use orrery_image_store::Metadata;
use tar::{EntryType, Header};

use crate::{
    stream::Part,
    tree::{Content, Node, Tree},
};

const BLOCK: u64 = 512;
/// What the field of a size or time can say: eleven octal digits.
const FIELD: u64 = 0o777_7777_7777;
/// The same of an owner: seven.
const ID_FIELD: u32 = 0o777_7777;

/// Writes the whole tree.
///
/// # Errors
/// When writing fails, or a file has 8 GiB: what compresses images takes none.
pub(crate) fn write(tree: &Tree, out: &mut impl Write) -> io::Result<()> {
    let contents = tree.contents()?;
    let mut names: Vec<Option<&[u8]>> = Vec::new();
    for (path, node) in tree.nodes() {
        match node {
            Node::Directory(metadata) => {
                let name = if path.is_empty() { b"./".to_vec() } else { [path, b"/"].concat() };
                header(out, EntryType::Directory, &name, b"", 0, metadata)?;
            }
            Node::Leaf(number) => {
                let leaf = tree.leaf_of(*number);
                if names.len() <= *number {
                    names.resize(number + 1, None);
                }
                if let Some(first) = names[*number] {
                    header(out, EntryType::Link, path, first, 0, &plain(&leaf.metadata))?;
                    continue;
                }
                names[*number] = Some(path);
                match &leaf.content {
                    Content::Symlink(target) => header(out, EntryType::Symlink, path, target, 0, &leaf.metadata)?,
                    Content::File { at, size } => {
                        if *size > FIELD {
                            let message = format!("{} has 8 GiB or more", path.escape_ascii());
                            return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
                        }
                        header(out, EntryType::Regular, path, b"", *size, &leaf.metadata)?;
                        let mut content = Part { at: *at, size: *size, ..contents.clone() };
                        if io::copy(&mut content, out)? != *size {
                            return Err(io::ErrorKind::UnexpectedEof.into());
                        }
                        pad(out, *size)?;
                    }
                }
            }
        }
    }
    out.write_all(&[0; 2 * BLOCK as usize])?;
    out.flush()
}

/// Attributes are the file's, and stand with its first name.
fn plain(metadata: &Metadata) -> Metadata {
    Metadata { attributes: Vec::new(), ..metadata.clone() }
}

fn header(
    out: &mut impl Write,
    kind: EntryType,
    name: &[u8],
    link: &[u8],
    size: u64,
    metadata: &Metadata,
) -> io::Result<()> {
    let mut records = Vec::new();
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(metadata.mode);
    header.set_size(size);
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
    out.write_all(header.as_bytes())
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

fn pad(out: &mut impl Write, size: u64) -> io::Result<()> {
    let padding = (BLOCK - size % BLOCK) % BLOCK;
    io::copy(&mut io::repeat(0).take(padding), out).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
