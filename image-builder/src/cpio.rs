//! The `newc` cpio archive that the kernel unpacks into its root file system.
//!
//! Format: the kernel's `Documentation/driver-api/early-userspace/buffer-format.rst`. Entries carry what the
//! caller gives and nothing of the machine that builds: inode numbers count up, owner is root.

use std::ops::Range;

const MAGIC: &[u8] = b"070701";
const HEADER_BYTES: usize = 110;
const TRAILER: &str = "TRAILER!!!";

/// What an entry is, with its file type bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory,
    /// A regular file and its content.
    File(Vec<u8>),
    /// A symbolic link and its target.
    Symlink(String),
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// Writes an archive in the order of its calls; parents must come before children.
pub struct Writer {
    out: Vec<u8>,
    next_inode: u32,
    mtime: u32,
}

impl Writer {
    /// An empty archive whose entries all carry the time `mtime`, in seconds since 1970.
    pub fn new(mtime: u32) -> Self {
        Self { out: Vec::new(), next_inode: 1, mtime }
    }

    /// Appends one entry. `path` has no leading slash; `permissions` are the low twelve mode bits.
    pub fn push(&mut self, path: &str, permissions: u32, node: &Node) {
        let (kind, data, device) = match node {
            Node::Directory => (0o040_000, &[][..], (0, 0)),
            Node::File(data) => (0o100_000, data.as_slice(), (0, 0)),
            Node::Symlink(target) => (0o120_000, target.as_bytes(), (0, 0)),
            Node::CharDevice { major, minor } => (0o020_000, &[][..], (*major, *minor)),
        };
        let links = if *node == Node::Directory { 2 } else { 1 };
        let inode = self.next_inode;
        self.next_inode += 1;
        self.entry(path, [inode, kind | permissions, links, self.mtime], data, device);
    }

    /// Ends the archive and hands it out.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, [0, 0, 1, 0], &[], (0, 0));
        self.out
    }

    fn entry(&mut self, name: &str, [inode, mode, links, mtime]: [u32; 4], data: &[u8], device: (u32, u32)) {
        let size = u32::try_from(data.len()).expect("files of an initramfs are far below 4 GiB");
        let name_size = name.len() as u32 + 1;
        self.out.extend_from_slice(MAGIC);
        for field in [inode, mode, 0, 0, links, mtime, size, 0, 0, device.0, device.1, name_size, 0] {
            self.out.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.out.extend_from_slice(name.as_bytes());
        self.out.push(0);
        self.pad();
        self.out.extend_from_slice(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.out.resize(self.out.len().next_multiple_of(4), 0);
    }
}

/// Where the content of the regular file `path` lies in an uncompressed archive. `None` if the bytes are not
/// an archive or do not hold the file.
pub fn find_file(archive: &[u8], path: &str) -> Option<Range<usize>> {
    let mut at = 0;
    loop {
        let header = archive.get(at..at + HEADER_BYTES)?;
        if !header.starts_with(MAGIC) {
            return None;
        }
        let field = |index: usize| {
            let digits = &header[6 + index * 8..14 + index * 8];
            usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
        };
        let (size, name_size) = (field(6)?, field(11)?);
        let name_at = at + HEADER_BYTES;
        let name = archive.get(name_at..name_at + name_size)?.strip_suffix(&[0])?;
        let data_at = (name_at + name_size).next_multiple_of(4);
        let data = data_at..data_at + size;
        archive.get(data.clone())?;
        if name == path.as_bytes() {
            return Some(data);
        }
        if name == TRAILER.as_bytes() {
            return None;
        }
        at = data.end.next_multiple_of(4);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    use proptest::prelude::*;

    use super::*;

    fn sample() -> Vec<u8> {
        let mut writer = Writer::new(1_700_000_000);
        writer.push("dev", 0o755, &Node::Directory);
        writer.push("dev/console", 0o600, &Node::CharDevice { major: 5, minor: 1 });
        writer.push("etc", 0o755, &Node::Directory);
        writer.push("etc/name", 0o644, &Node::File(b"orrery".to_vec()));
        writer.push("sh", 0o777, &Node::Symlink("bin/busybox".into()));
        writer.finish()
    }

    #[test]
    fn files_are_found_by_path() {
        fn check(path: &str, expect: Option<&[u8]>) {
            let archive = sample();
            assert_eq!(find_file(&archive, path).map(|range| &archive[range]), expect, "{path}");
        }
        check("etc/name", Some(b"orrery"));
        check("sh", Some(b"bin/busybox"));
        check("etc/none", None);
        check("", None);
    }

    #[test]
    fn cpio_lists_what_was_written() {
        let Ok(mut cpio) = Command::new("cpio")
            .args(["-tv", "--numeric-uid-gid", "--quiet"])
            .env("TZ", "UTC")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        else {
            return;
        };
        cpio.stdin.take().unwrap().write_all(&sample()).unwrap();
        let listing = String::from_utf8(cpio.wait_with_output().unwrap().stdout).unwrap();
        let mut words = listing.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        assert_eq!(words.next().unwrap(), "drwxr-xr-x 2 0 0 0 Nov 14 2023 dev");
        assert_eq!(words.next().unwrap(), "crw------- 1 0 0 5, 1 Nov 14 2023 dev/console");
        assert_eq!(words.nth(1).unwrap(), "-rw-r--r-- 1 0 0 6 Nov 14 2023 etc/name");
        assert_eq!(words.next().unwrap(), "lrwxrwxrwx 1 0 0 11 Nov 14 2023 sh -> bin/busybox");
        assert_eq!(words.next(), None);
    }

    proptest! {
        #[test]
        fn parsing_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), header: bool) {
            if header {
                let start = sample();
                let n = bytes.len().min(start.len()).min(130);
                bytes[..n].copy_from_slice(&start[..n]);
            }
            let _ = find_file(&bytes, "etc/name");
        }
    }
}
