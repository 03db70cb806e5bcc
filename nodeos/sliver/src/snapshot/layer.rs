//! Walking through a private layer, and copying it.
//!
//! Who wrote a layer is a stranger: names are any bytes, and a directory is opened in its parent and never by a path through
//! what could be a link. How much memory that takes is bounded.

use std::{
    collections::HashMap,
    fs::File,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use orrery_image_store::{DEPTH, Metadata, archive::PATH_BYTES};
use orrery_protocol::LayerSize;
use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Uid},
    io::Errno,
};

use super::{
    error::{SnapshotError, Within, refused},
    identity::{Range, belongs},
};

/// How much is copied before the clock is looked at, in bytes.
const PIECE: usize = 4 << 20;
/// Bytes of names remembered of files that have several.
const LINK_BYTES: usize = 16 << 20;

/// When work has to be done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    end: Instant,
    patience: Duration,
}

impl Deadline {
    pub(crate) fn after(patience: Duration) -> Self {
        Self { end: Instant::now() + patience, patience }
    }

    pub(crate) fn check(&self) -> Result<(), SnapshotError> {
        if Instant::now() < self.end {
            Ok(())
        } else {
            Err(SnapshotError::TooLong { seconds: self.patience.as_secs() })
        }
    }
}

/// What a walk comes to.
pub(crate) enum Step<'a> {
    /// A directory, before what is in it.
    Enter(&'a OwnedFd),
    /// The directory entered last and not left yet, after what is in it.
    Leave,
    /// Anything else, by its name in this directory.
    Leaf(&'a OwnedFd, &'a [u8], &'a Stat),
}

/// Goes through the directory `top`, itself included. Each step has its path from there, which is empty at the top.
pub(crate) fn walk(
    top: &Path,
    mut each: impl FnMut(&[u8], Step<'_>) -> Result<(), SnapshotError>,
) -> Result<(), SnapshotError> {
    struct Level {
        directory: OwnedFd,
        entries: Dir,
        /// Bytes of the parent's path.
        parent: usize,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let level = |directory: OwnedFd, path: &[u8], parent| -> Result<Level, SnapshotError> {
        let entries = Dir::read_from(&directory).within("listing", path)?;
        Ok(Level { directory, entries, parent })
    };
    let mut path = Vec::new();
    let directory = rustix::fs::openat(CWD, top, flags, Mode::empty()).within("opening", &path)?;
    each(&path, Step::Enter(&directory))?;
    let mut levels = vec![level(directory, &path, 0)?];
    while let Some(Level { directory, entries, parent }) = levels.last_mut() {
        let Some(entry) = entries.read() else {
            each(&path, Step::Leave)?;
            path.truncate(*parent);
            levels.pop();
            continue;
        };
        let entry = entry.within("listing", &path)?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        let before = path.len();
        path.extend((before > 0).then_some(b'/'));
        path.extend_from_slice(name);
        if path.len() > PATH_BYTES {
            return Err(refused(&path, "the path is too long to be copied"));
        }
        let stat = rustix::fs::statat(&*directory, name, AtFlags::SYMLINK_NOFOLLOW).within("examining", &path)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            each(&path, Step::Leaf(directory, name, &stat))?;
            path.truncate(before);
            continue;
        }
        let inner = rustix::fs::openat(&*directory, name, flags, Mode::empty()).within("opening", &path)?;
        if levels.len() > DEPTH {
            return Err(refused(&path, "directories lie too deep in each other to be copied"));
        }
        each(&path, Step::Enter(&inner))?;
        levels.push(level(inner, &path, before)?);
    }
    Ok(())
}

/// The last component of a path.
fn last(path: &[u8]) -> &[u8] {
    path.rsplit(|&byte| byte == b'/').next().unwrap_or_default()
}

/// First names of files that have several.
#[derive(Debug, Default)]
pub(crate) struct Links {
    names: HashMap<u64, Vec<u8>>,
    bytes: usize,
}

impl Links {
    /// The first name of the file that `stat` is of, if this is another one. Otherwise it is remembered.
    pub(crate) fn first(&mut self, path: &[u8], stat: &Stat) -> Result<Option<&[u8]>, SnapshotError> {
        if stat.st_nlink < 2 || self.names.contains_key(&stat.st_ino) {
            return Ok(self.names.get(&stat.st_ino).map(Vec::as_slice));
        }
        self.bytes += path.len();
        if self.bytes > LINK_BYTES {
            return Err(refused(path, "too many files have several names"));
        }
        self.names.insert(stat.st_ino, path.to_vec());
        Ok(None)
    }
}

/// Whose files a copy's are.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Owners {
    /// The same sliver's.
    Same,
    /// Another sliver's.
    Move { from: Range, to: Range },
}

impl Owners {
    fn of_copy(self, metadata: Metadata, directory: bool) -> Result<Metadata, &'static str> {
        match self {
            Self::Same => Ok(metadata),
            Self::Move { from, to } => from.inward(metadata).and_then(|metadata| to.outward(metadata, directory)),
        }
    }
}

/// Opens something of a layer for reading its content and metadata.
pub(crate) fn open(directory: &OwnedFd, name: &[u8], path: &[u8]) -> Result<File, SnapshotError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(directory, name, flags, Mode::empty()).within("opening", path)?.into())
}

/// What a file or directory of a layer has besides content.
pub(crate) fn examine(file: impl AsFd, path: &[u8]) -> Result<Metadata, SnapshotError> {
    Ok(Metadata::keeping(file, belongs).within("examining", path)?.metadata)
}

/// What anything else has.
pub(crate) fn examined(stat: &Stat) -> Metadata {
    Metadata {
        mode: stat.st_mode & 0o7777,
        owner: stat.st_uid,
        group: stat.st_gid,
        modified: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
        attributes: Vec::new(),
    }
}

/// Where the next part of a file that is no hole begins and ends, from `at` on.
pub(crate) fn next_part(file: &File, at: u64) -> rustix::io::Result<Option<(u64, u64)>> {
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Err(Errno::NXIO) => return Ok(None),
        result => result?,
    };
    Ok(Some((start, rustix::fs::seek(file, SeekFrom::Hole(start))?)))
}

/// Copies what is in the layer `from` into the empty directory `to`, with all that the copy's files are to have.
pub(crate) fn copy(from: &Path, to: &Path, owners: Owners, deadline: &Deadline) -> Result<LayerSize, SnapshotError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::openat(CWD, to, flags, Mode::empty()).within("opening", b"")?;
    let mut copy =
        Copy { owners, deadline, links: Links::default(), size: LayerSize::default(), open: Vec::new(), top };
    walk(from, |path, step| copy.step(path, step))?;
    Ok(copy.size)
}

struct Copy<'a> {
    owners: Owners,
    deadline: &'a Deadline,
    links: Links,
    size: LayerSize,
    /// The directories on the way, each with what it gets once all is in it.
    open: Vec<(OwnedFd, Metadata)>,
    top: OwnedFd,
}

impl Copy<'_> {
    fn step(&mut self, path: &[u8], step: Step<'_>) -> Result<(), SnapshotError> {
        self.deadline.check()?;
        match step {
            Step::Enter(directory) => {
                let metadata = self.of_copy(examine(directory, path)?, true, path)?;
                let target = match self.open.last() {
                    None => self.top.try_clone().within("opening", path)?,
                    Some((parent, _)) => {
                        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                        rustix::fs::mkdirat(parent, last(path), Mode::RWXU).within("making", path)?;
                        rustix::fs::openat(parent, last(path), flags, Mode::empty()).within("opening", path)?
                    }
                };
                self.open.push((target, metadata));
                self.size.files += 1;
            }
            Step::Leave => {
                if let Some((target, metadata)) = self.open.pop() {
                    metadata.apply(target).within("finishing", path)?;
                }
            }
            Step::Leaf(directory, name, stat) => self.leaf(path, directory, name, stat)?,
        }
        Ok(())
    }

    fn of_copy(&self, metadata: Metadata, directory: bool, path: &[u8]) -> Result<Metadata, SnapshotError> {
        self.owners.of_copy(metadata, directory).map_err(|reason| refused(path, reason))
    }

    fn leaf(&mut self, path: &[u8], from: &OwnedFd, name: &[u8], stat: &Stat) -> Result<(), SnapshotError> {
        let Some((to, _)) = self.open.last() else { return Ok(()) };
        if let Some(first) = self.links.first(path, stat)? {
            // Of directories that this made itself, so that there is no link on the way.
            return rustix::fs::linkat(&self.top, first, to, name, AtFlags::empty()).within("linking", path);
        }
        self.size.files += 1;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let made = match kind {
            FileType::RegularFile => {
                let file = open(from, name, path)?;
                let metadata = self.of_copy(examine(&file, path)?, false, path)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let target = rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR).within("making", path)?;
                let target = File::from(target);
                self.size.bytes += content(&file, &target, path, self.deadline)?;
                // Writing clears set-id bits and capabilities, so it has to be over.
                return metadata.apply(&target).within("finishing", path);
            }
            FileType::CharacterDevice if stat.st_rdev == 0 => {
                // What removes a file of the image is the overlay's own.
                return rustix::fs::mknodat(to, name, kind, Mode::empty(), 0).within("making", path);
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, name, Vec::new()).within("reading", path)?;
                rustix::fs::symlinkat(target, to, name)
            }
            FileType::Fifo | FileType::Socket => rustix::fs::mknodat(to, name, kind, Mode::RUSR | Mode::WUSR, 0),
            _ => return Err(refused(path, "it is a device node")),
        };
        made.within("making", path)?;
        let metadata = self.of_copy(examined(stat), false, path)?;
        own(to, name, &metadata, kind).within("finishing", path)
    }
}

/// Gives what is neither file nor directory its owner, permissions and times.
pub(crate) fn own(directory: impl AsFd, name: &[u8], metadata: &Metadata, kind: FileType) -> rustix::io::Result<()> {
    let directory = directory.as_fd();
    let (owner, group) = (Uid::from_raw(metadata.owner), Gid::from_raw(metadata.group));
    rustix::fs::chownat(directory, name, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
    if kind != FileType::Symlink {
        rustix::fs::chmodat(directory, name, Mode::from_raw_mode(metadata.mode), AtFlags::empty())?;
    }
    rustix::fs::utimensat(directory, name, &metadata.times(), AtFlags::SYMLINK_NOFOLLOW)
}

/// Copies what is no hole, in the kernel. Returns how much that was.
fn content(from: &File, to: &File, path: &[u8], deadline: &Deadline) -> Result<u64, SnapshotError> {
    let (mut at, mut copied) = (0, 0);
    while let Some((start, end)) = next_part(from, at).within("reading", path)? {
        let (mut read, mut written) = (start, start);
        while read < end {
            deadline.check()?;
            let length = usize::try_from(end - read).map_or(PIECE, |left| left.min(PIECE));
            if rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut written), length)
                .within("writing", path)?
                == 0
            {
                return Err(refused(path, "it became shorter while it was copied"));
            }
        }
        copied += end - start;
        at = end;
    }
    let size = from.metadata().within("examining", path)?.len();
    to.set_len(size).within("writing", path)?;
    Ok(copied)
}
