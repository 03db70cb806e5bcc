//! Unpacking a verified initramfs into a file system of its own, for machines that do not survive a chain-boot.
//!
//! The format is the kernel's (Documentation/driver-api/early-userspace/buffer-format.rst), as far as Orrery's own images use
//! it: directories, files, symbolic links, character devices; no hard links. What is read here was proven to be what was
//! signed, so that names are checked against accidents only.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink},
    path::{Component, Path, PathBuf},
};

use rustix::fs::{FileType, Mode, makedev, mknodat};

const MAGIC: &[u8] = b"070701";
const HEADER: usize = 110;
const TRAILER: &str = "TRAILER!!!";
/// The kernel takes no longer path either.
const MAX_NAME: usize = 4096;

/// Unpacks one archive below `root`.
///
/// # Errors
/// It is no archive, has an entry of another kind, or the file system is full.
pub(crate) fn unpack(archive: impl Read, root: &Path) -> io::Result<()> {
    entries(archive, |entry, data| entry.make(&root.join(&entry.name), data))
}

/// Shows every entry of one archive to `each`, with its data, of which all has to be read.
///
/// # Errors
/// It is no archive, has an entry whose name leads out of it, or `each` failed.
pub fn entries(
    mut archive: impl Read,
    mut each: impl FnMut(&Entry, &mut dyn Read) -> io::Result<()>,
) -> io::Result<()> {
    loop {
        let mut header = [0; HEADER];
        archive.read_exact(&mut header)?;
        let fields = Fields::parse(&header)?;
        let name = fields.name(&mut archive)?;
        if name == TRAILER {
            return Ok(());
        }
        let entry = Entry { name: inside(&name)?, mode: fields.mode, device: fields.device };
        let mut data = archive.by_ref().take(u64::from(fields.size));
        each(&entry, &mut data).map_err(|e| io::Error::new(e.kind(), format!("{name}: {e}")))?;
        if data.limit() != 0 {
            return Err(wrong("an entry ends early"));
        }
        skip(&mut archive, padding(fields.size as usize))?;
    }
}

/// One entry, but for its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it belongs: a path that stays below wherever it is put.
    pub name: PathBuf,
    /// Kind and permissions, as `st_mode` has them (inode(7)).
    pub mode: u32,
    device: (u32, u32),
}

struct Fields {
    mode: u32,
    size: u32,
    device: (u32, u32),
    name_size: u32,
}

impl Fields {
    fn parse(header: &[u8; HEADER]) -> io::Result<Self> {
        if !header.starts_with(MAGIC) {
            return Err(wrong("it is no cpio archive of the kernel's kind"));
        }
        let field = |index: usize| {
            let digits = header.get(6 + index * 8..14 + index * 8).and_then(|digits| std::str::from_utf8(digits).ok());
            digits
                .and_then(|digits| u32::from_str_radix(digits, 16).ok())
                .ok_or_else(|| wrong("a header has no number"))
        };
        Ok(Self { mode: field(1)?, size: field(6)?, device: (field(9)?, field(10)?), name_size: field(11)? })
    }

    fn name(&self, archive: &mut impl Read) -> io::Result<String> {
        let length = self.name_size as usize;
        if !(2..=MAX_NAME).contains(&length) {
            return Err(wrong("a name has no sensible length"));
        }
        let mut name = vec![0; length];
        archive.read_exact(&mut name)?;
        skip(archive, padding(HEADER + length))?;
        if name.pop() != Some(0) {
            return Err(wrong("a name has no end"));
        }
        String::from_utf8(name).map_err(|_| wrong("a name is not UTF-8"))
    }
}

impl Entry {
    fn make(&self, path: &Path, data: &mut dyn Read) -> io::Result<()> {
        let permissions = self.mode & 0o7777;
        match self.mode & 0o170_000 {
            0o040_000 => {
                fs::create_dir_all(path)?;
                fs::set_permissions(path, fs::Permissions::from_mode(permissions))
            }
            0o100_000 => {
                let mut file = File::options().write(true).create_new(true).mode(permissions).open(path)?;
                io::copy(data, &mut file)?;
                file.flush()?;
                file.set_permissions(fs::Permissions::from_mode(permissions))
            }
            0o120_000 => {
                let mut target = String::new();
                data.read_to_string(&mut target)?;
                symlink(target, path)
            }
            0o020_000 => {
                let device = makedev(self.device.0, self.device.1);
                let mode = Mode::from_raw_mode(permissions);
                Ok(mknodat(rustix::fs::CWD, path, FileType::CharacterDevice, mode, device)?)
            }
            _ => Err(wrong("an entry is of another kind")),
        }
    }
}

/// `name` as a path, if it stays where it is put.
fn inside(name: &str) -> io::Result<PathBuf> {
    let path = Path::new(name);
    let inside = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if inside { Ok(path.to_owned()) } else { Err(wrong("a name leads out of the archive")) }
}

fn padding(length: usize) -> usize {
    length.next_multiple_of(4) - length
}

fn skip(archive: &mut impl Read, bytes: usize) -> io::Result<()> {
    archive.read_exact(&mut [0; 4][..bytes])
}

fn wrong(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(out: &mut Vec<u8>, name: &str, mode: u32, data: &[u8]) {
        let fields = [1, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, 1, 3, name.len() as u32 + 1, 0];
        out.extend_from_slice(MAGIC);
        fields.iter().for_each(|field| out.extend_from_slice(format!("{field:08x}").as_bytes()));
        out.extend_from_slice(name.as_bytes());
        out.push(0);
        out.resize(out.len().next_multiple_of(4), 0);
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(4), 0);
    }

    fn sample() -> Vec<u8> {
        let mut out = Vec::new();
        entry(&mut out, "etc", 0o040_755, b"");
        entry(&mut out, "etc/name", 0o100_640, b"orrery");
        entry(&mut out, "sh", 0o120_777, b"bin/busybox");
        entry(&mut out, TRAILER, 0, b"");
        out
    }

    #[test]
    fn files_come_out_as_they_went_in() {
        let root = tempfile::tempdir().unwrap();
        unpack(sample().as_slice(), root.path()).unwrap();
        assert_eq!(fs::read(root.path().join("etc/name")).unwrap(), b"orrery");
        let mode = fs::metadata(root.path().join("etc/name")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
        assert_eq!(fs::read_link(root.path().join("sh")).unwrap(), Path::new("bin/busybox"));
    }

    #[test]
    fn what_is_no_archive_of_ours_is_refused() {
        let refused = |bytes: &[u8]| unpack(bytes, tempfile::tempdir().unwrap().path()).is_err();
        assert!(refused(b""));
        assert!(refused(&sample()[..200]));
        for (name, mode) in [("../out", 0o100_644), ("/out", 0o100_644), ("socket", 0o140_644)] {
            let mut out = Vec::new();
            entry(&mut out, name, mode, b"");
            entry(&mut out, TRAILER, 0, b"");
            assert!(refused(&out), "{name}");
        }
    }

    proptest! {
        #[test]
        fn damage_never_panics(at: usize, byte: u8) {
            let mut bytes = sample();
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = unpack(bytes.as_slice(), tempfile::tempdir().unwrap().path());
        }
    }
}
