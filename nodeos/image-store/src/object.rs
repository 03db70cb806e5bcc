//! Objects: files named by a digest of their content and metadata.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd},
    thread,
    time::Duration,
};

use orrery_protocol::{Digest, Sha256};
use orrery_sys::verity::enable_verity;
use rustix::{
    fs::{Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, fchmod, fchown, fsetxattr, futimens},
    io::Errno,
};

use crate::{ImportError, archive::display};

/// Hashed before everything else. To be changed whenever what is hashed changes.
const FORMAT: &[u8] = b"orrery object 1\n";

/// Files of this size in bytes, and larger ones, are sealed where the file system can. It takes a block or two of a sealed file's
/// own, and writing out each file by itself (`ARCHITECTURE.md`, *Decisions*, has the figures).
pub const SEALED_FROM: u64 = 16 << 10;

/// How long, in milliseconds, is waited before sealing a file is tried again that seems to be open for writing: a child that another
/// thread made has it until it runs its own program.
const SEAL_PAUSES: [u64; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];

/// Seconds since 1970 that ext4 can say, with inodes of 256 bytes (Linux: `fs/ext4/ext4.h`, `EXT4_TIMESTAMP_MIN` and
/// `EXT4_EXTRA_TIMESTAMP_MAX`).
const TIMES: (i64, i64) = (-(1 << 31), (1 << 34) - 1 - (1 << 31));

/// What the one block has room for in which ext4 keeps a file's extended attributes, in bytes: without its header and the mark of
/// the end (Linux: `fs/ext4/xattr.h`).
const ATTRIBUTE_BYTES: usize = 4096 - 32 - 4;

/// How many users, and groups, a sliver has: from 0 on. What somebody else owned could be seen inside, and nothing more.
pub const OWNERS: u32 = 65_536;

/// What a file has besides its content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata {
    /// Permissions with the set-id and sticky bits.
    pub mode: u32,
    /// Its user's id.
    pub owner: u32,
    /// Its group's id.
    pub group: u32,
    /// When it was modified: seconds since 1970 and nanoseconds.
    pub modified: (i64, u32),
    /// Extended attributes, sorted by name.
    pub attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a file or directory on this machine was found to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// What belongs into a tree.
    pub metadata: Metadata,
    /// In bytes.
    pub size: u64,
    /// Extended attributes that do not belong into a tree.
    pub skipped_attributes: u64,
}

/// Whether an extended attribute belongs into a tree. The others mean something to the kernel of the node, such as
/// `trusted.overlay.redirect`, or to the machine the archive was made on.
pub(crate) fn keeps_attribute(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || [b"security.capability".as_slice(), b"system.posix_acl_access", b"system.posix_acl_default"].contains(&name)
}

impl Metadata {
    /// A hasher that has seen all but the content.
    pub(crate) fn hasher(&self, size: u64) -> Sha256 {
        let mut hasher = Sha256::new();
        hasher.update(FORMAT);
        for id in [self.mode, self.owner, self.group, self.modified.1] {
            hasher.update(&id.to_be_bytes());
        }
        hasher.update(&self.modified.0.to_be_bytes());
        hasher.update(&size.to_be_bytes());
        hasher.update(&(self.attributes.len() as u64).to_be_bytes());
        for (name, value) in &self.attributes {
            for part in [name, value] {
                hasher.update(&(part.len() as u64).to_be_bytes());
                hasher.update(part);
            }
        }
        hasher
    }

    /// Refuses an owner that no sliver has, and more attributes than a file can have. `name` is the entry's.
    ///
    /// # Errors
    /// [`ImportError::Owner`] and [`ImportError::Malformed`].
    pub fn check(&self, name: &[u8]) -> Result<(), ImportError> {
        // Of a name, what is before the first dot takes no space.
        let short = |name: &[u8]| name.iter().position(|&byte| byte == b'.').map_or(0, |dot| name.len() - dot - 1);
        let room =
            |(name, value): &(Vec<u8>, Vec<u8>)| 16 + short(name).next_multiple_of(4) + value.len().next_multiple_of(4);
        if self.attributes.iter().map(room).sum::<usize>() > ATTRIBUTE_BYTES {
            let reason = "its extended attributes take more than the 4 KiB that a file has for all of them";
            return Err(ImportError::Malformed { path: display(name), reason });
        }
        match [("user", self.owner), ("group", self.group)].into_iter().find(|(_, id)| *id >= OWNERS) {
            Some((whose, id)) => Err(ImportError::Owner { path: display(name), whose, id }),
            None => Ok(()),
        }
    }

    /// Gives the file or directory all of it. Changing the owner clears set-id bits and capabilities, so the owner
    /// comes first; whatever writes content has to be over, for the same reason.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn apply(&self, file: impl AsFd) -> io::Result<()> {
        fchown(&file, Some(Uid::from_raw(self.owner)), Some(Gid::from_raw(self.group)))?;
        fchmod(&file, Mode::from_raw_mode(self.mode))?;
        for (name, value) in &self.attributes {
            fsetxattr(&file, name.as_slice(), value, XattrFlags::empty())?;
        }
        futimens(file, &self.times())?;
        Ok(())
    }

    /// The time, or the end of what ext4 can say that is nearest to it: the kernel does this without a word (Linux: `fs/inode.c`,
    /// `timestamp_truncate`), and an object with another time would never be what its name says.
    pub fn time(seconds: i64, nanoseconds: u32) -> (i64, u32) {
        match seconds.clamp(TIMES.0, TIMES.1) {
            end if end == TIMES.0 || end == TIMES.1 => (end, 0),
            seconds => (seconds, nanoseconds),
        }
    }

    /// As the kernel takes them.
    pub fn times(&self) -> Timestamps {
        let time = Timespec { tv_sec: self.modified.0, tv_nsec: i64::from(self.modified.1) };
        Timestamps { last_access: time, last_modification: time }
    }

    /// Examines a file or directory.
    ///
    /// # Errors
    /// When it cannot be examined.
    pub fn of(file: &File) -> io::Result<Examined> {
        Self::keeping(file, keeps_attribute)
    }

    /// The same, with these extended attributes instead of those that belong into an image's tree.
    ///
    /// # Errors
    /// When it cannot be examined.
    pub fn keeping(file: impl AsFd, keeps: fn(&[u8]) -> bool) -> io::Result<Examined> {
        let file = file.as_fd();
        let stat = rustix::fs::fstat(file)?;
        let mut names = vec![0; rustix::fs::flistxattr_query(file)?];
        let length = rustix::fs::flistxattr(file, names.as_mut_slice())?;
        let mut attributes = Vec::new();
        let mut skipped_attributes = 0;
        for name in names[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
            if !keeps(name) {
                skipped_attributes += 1;
                continue;
            }
            let mut value = vec![0; rustix::fs::fgetxattr_query(file, name)?];
            let length = rustix::fs::fgetxattr(file, name, value.as_mut_slice())?;
            value.truncate(length);
            attributes.push((name.to_vec(), value));
        }
        attributes.sort();
        let metadata = Self {
            mode: stat.st_mode & 0o7777,
            owner: stat.st_uid,
            group: stat.st_gid,
            modified: Self::time(stat.st_mtime, stat.st_mtime_nsec as u32),
            attributes,
        };
        Ok(Examined { metadata, size: stat.st_size.cast_unsigned(), skipped_attributes })
    }
}

/// The name that an object with this file's content and metadata has.
pub(crate) fn identify(mut file: &File) -> io::Result<Digest> {
    let Examined { metadata, size, .. } = Metadata::of(file)?;
    let mut hasher = metadata.hasher(size);
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            length => hasher.update(&buffer[..length]),
        }
    }
}

/// An object's path beneath the directory of objects. Siblings beyond the first hold the same: ext4 allows a file
/// 65,000 links only.
pub(crate) fn name(id: &Digest, sibling: u32) -> String {
    let id = id.to_string();
    let directory = &id[..2];
    if sibling == 0 { format!("{directory}/{id}") } else { format!("{directory}/{id}.{sibling}") }
}

/// Gives the file `name`, which has its content, all else that an object has. Where that is worth it and the file system can, the
/// content is final then: nobody opens it for writing any more, and reading a block that the disk has lost fails. Nobody may have
/// the file open for writing.
pub(crate) fn finish(directory: impl AsFd, name: &str, size: u64, metadata: &Metadata) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, Mode::empty())?;
    if size >= SEALED_FROM {
        // Before the metadata, since sealing is a modification. A file that is not sealed is as good as all were before.
        seal(file.as_fd())?;
    }
    metadata.apply(&file)?;
    // What the file system makes something else of would be found damaged at every look.
    let kept = Metadata::of(&File::from(file))?;
    if (&kept.metadata, kept.size) != (metadata, size) {
        let found = kept.metadata;
        return Err(io::Error::other(format!("the file system made {found:?} of {metadata:?}")));
    }
    Ok(())
}

fn seal(file: BorrowedFd<'_>) -> io::Result<bool> {
    for pause in SEAL_PAUSES {
        match enable_verity(file) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::TXTBSY) => {
                thread::sleep(Duration::from_millis(pause));
            }
            other => return other,
        }
    }
    enable_verity(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_what_ext4_can_say() {
        let check = |time: (i64, u32), expect| assert_eq!(Metadata::time(time.0, time.1), expect);
        check((0, 5), (0, 5));
        check((-1, 999_999_999), (-1, 999_999_999));
        check((-2_147_483_647, 1), (-2_147_483_647, 1));
        check((-2_147_483_648, 1), (-2_147_483_648, 0));
        check((i64::MIN, 1), (-2_147_483_648, 0));
        check((15_032_385_534, 1), (15_032_385_534, 1));
        check((15_032_385_535, 1), (15_032_385_535, 0));
        check((i64::MAX, 1), (15_032_385_535, 0));
    }

    #[test]
    fn attributes_have_one_block() {
        let check = |attributes: &[(&str, usize)], fits| {
            let attributes = attributes.iter().map(|(name, length)| (name.as_bytes().to_vec(), vec![0; *length]));
            let metadata = Metadata { attributes: attributes.collect(), ..Metadata::default() };
            assert_eq!(metadata.check(b"file").is_ok(), fits, "{metadata:?}");
        };
        check(&[], true);
        check(&[("user.a", 4040)], true);
        check(&[("user.a", 4041)], false);
        check(&[("user.abcde", 4036)], true);
        check(&[("user.abcde", 4037)], false);
        check(&[("user.a", 2000), ("user.b", 2020)], true);
        check(&[("user.a", 2000), ("user.b", 2021)], false);
    }
}
