//! Unpacking an archive into objects and a tree.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use orrery_protocol::{Digest, Listing, Sha256};
use rustix::{
    fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Uid},
    io::Errno,
};

use crate::{
    ImportError, Lock, Store, StoreError,
    archive::{Archive, Entry, Kind, PATH_BYTES, display, read_up_to},
    directories::{Directories, components},
    listing,
    object::{self, Examined, Metadata},
};

/// Bytes of directory names and attributes remembered until the end of an import.
const NAME_BYTES: u64 = 64 << 20;
/// Files up to this size are held in memory, and written only when the object is found missing.
const SMALL: u64 = 1 << 20;
/// How a Zstandard frame starts (RFC 8878, section 3.1.1).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The binary logarithm of the most history, in bytes, that a frame may ask the decoder to keep.
const ZSTD_WINDOW_LOG: u32 = 27;

/// What an import brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Imported {
    /// The image was there before; nothing was read, and all else is zero.
    pub present: bool,
    /// Regular files, without hard links among them.
    pub files: u64,
    /// Directories, without the top one.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Further names of regular files.
    pub hard_links: u64,
    /// Content of regular files, in bytes.
    pub bytes: u64,
    /// Those of `files` that the store had before.
    pub shared: u64,
    /// Device nodes, FIFOs and sockets that were left out: a sliver's `/dev` is made when it starts.
    pub skipped_devices: u64,
}

impl Store {
    /// Unpacks a tar archive, plain or compressed with Zstandard, whose digest, as it is read, must be `image`. It may
    /// have up to `limit` bytes when not compressed.
    ///
    /// # Errors
    /// When the archive cannot be read, is hostile or another one, or the disk fails. There is no tree then, and
    /// nothing else is left.
    pub fn import(&self, reader: impl Read, image: &Digest, limit: u64) -> Result<Imported, ImportError> {
        let lock = self.blocking_lock()?;
        if self.tree(image).is_some() {
            return Ok(Imported { present: true, ..Imported::default() });
        }
        self.clean(&lock)?;
        self.import_locked(reader, image, limit, &lock)
    }

    /// Imports an image again, whether it is there or not, and puts the new tree in the place of the old one at once: files
    /// that are damaged or missing come from the archive, all others are those that were there. What still runs on the
    /// image must be stopped first.
    ///
    /// # Errors
    /// As for [`import`](Self::import); the old tree is still there then.
    pub fn repair(&self, reader: impl Read, image: &Digest, limit: u64) -> Result<Imported, ImportError> {
        let lock = self.blocking_lock()?;
        self.clean(&lock)?;
        if self.tree(image).is_some() {
            self.verify_locked(image, &lock)?;
        }
        let imported = self.import_locked(reader, image, limit, &lock)?;
        // The old tree, which has the unfinished one's name now.
        self.clean(&lock)?;
        Ok(imported)
    }

    fn import_locked(
        &self,
        reader: impl Read,
        image: &Digest,
        limit: u64,
        lock: &Lock,
    ) -> Result<Imported, ImportError> {
        self.make_tree(image, lock, |import| import.unpack_proven(reader, image, limit))
    }

    /// Makes a tree by its listing, from objects that are in the store or in the directory `fetched`.
    pub(crate) fn assemble(
        &self,
        image: &Digest,
        listing: &Listing<'_>,
        limit: u64,
        fetched: &OwnedFd,
    ) -> Result<Imported, ImportError> {
        let lock = self.blocking_lock()?;
        self.clean(&lock)?;
        self.make_tree(image, &lock, |import| import.unpack_listed(listing, limit, fetched))
    }

    /// Makes a tree and fills it. There is either all of it in the end, or nothing.
    fn make_tree(
        &self,
        image: &Digest,
        lock: &Lock,
        fill: impl FnOnce(&mut Import) -> Result<(), ImportError>,
    ) -> Result<Imported, ImportError> {
        let result = self.fill_tree(image, lock, fill);
        if result.is_err() {
            // What remains is removed when the store is used next; the cause is what the caller needs.
            let _ = self.clean(lock);
        }
        result
    }

    /// May leave an unfinished tree.
    fn fill_tree(
        &self,
        image: &Digest,
        lock: &Lock,
        fill: impl FnOnce(&mut Import) -> Result<(), ImportError>,
    ) -> Result<Imported, ImportError> {
        let partial = self.partial_path(image);
        fs::create_dir(&partial).map_err(StoreError::at("making directory", &partial))?;
        let mut import = Import::new(&self.root, &partial)?;
        fill(&mut import)?;
        import.finish_directories()?;

        // Everything has to be on the disk before the name says so. One call instead of one for each file.
        rustix::fs::syncfs(&lock.root).map_err(StoreError::at("writing out", &self.root))?;
        let tree = self.tree_path(image);
        let flags = if tree.is_dir() { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
        rustix::fs::renameat_with(CWD, &partial, CWD, &tree, flags).map_err(StoreError::at("renaming to", &tree))?;
        self.flush_trees()?;
        Ok(import.imported)
    }
}

/// Hashes what is read.
struct Hashing<R> {
    reader: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.reader.read(buffer)?;
        self.hasher.update(&buffer[..length]);
        Ok(length)
    }
}

struct Import {
    objects: OwnedFd,
    temporary: OwnedFd,
    tree: Directories,
    /// Given to the directories once all is in them.
    directories: BTreeMap<Vec<u8>, Metadata>,
    name_bytes: u64,
    imported: Imported,
    buffer: Vec<u8>,
}

impl Import {
    fn new(root: &Path, partial: &Path) -> Result<Self, ImportError> {
        let open = |path: &Path| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty()).map_err(StoreError::at("opening", path))
        };
        let mut directories = BTreeMap::new();
        directories.insert(Vec::new(), Metadata { mode: 0o755, ..ours() });
        Ok(Self {
            objects: open(&root.join("objects"))?,
            temporary: open(&root.join("tmp"))?,
            tree: Directories::new(open(partial)?),
            directories,
            name_bytes: 0,
            imported: Imported::default(),
            buffer: Vec::new(),
        })
    }

    /// Unpacks every entry of an archive, plain or compressed, whose digest must be `image`.
    fn unpack_proven(&mut self, reader: impl Read, image: &Digest, limit: u64) -> Result<(), ImportError> {
        let mut source = Hashing { reader, hasher: Sha256::new() };
        let mut start = Vec::new();
        source.by_ref().take(ZSTD_MAGIC.len() as u64).read_to_end(&mut start).map_err(ImportError::Reading)?;
        let compressed = start == ZSTD_MAGIC;
        let stream = io::Cursor::new(start).chain(&mut source);
        if compressed {
            let mut decoder = zstd::Decoder::new(stream).map_err(ImportError::Reading)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(ImportError::Reading)?;
            self.unpack(decoder, limit)?;
        } else {
            self.unpack(BufReader::with_capacity(1 << 16, stream), limit)?;
        }
        let found = source.hasher.finish();
        if found == *image { Ok(()) } else { Err(ImportError::WrongDigest { expected: *image, found }) }
    }

    /// Unpacks every entry and reads `stream` to its end.
    fn unpack(&mut self, stream: impl Read, limit: u64) -> Result<(), ImportError> {
        let mut archive = Archive::new(stream, limit);
        while let Some(entry) = archive.next()? {
            self.entry(entry, |import, last, entry| import.file(last, entry))?;
        }
        archive.finish()
    }

    /// Makes every entry of a listed archive, of objects that are in the store or in the directory `fetched`.
    fn unpack_listed(&mut self, listing: &Listing<'_>, limit: u64, fetched: &OwnedFd) -> Result<(), ImportError> {
        let mut objects = listing.objects().iter();
        let mut archive = listing::skeleton(listing, limit)?;
        while let Some(entry) = archive.next()? {
            let id = if entry.kind == Kind::File { objects.next() } else { None };
            self.entry(entry, |import, last, entry| {
                let path = display(&entry.name);
                let reason = "the listing has no object for it";
                let id = id.ok_or(ImportError::Malformed { path, reason })?;
                import.object(last, id, &entry, fetched)
            })?;
        }
        archive.finish()
    }

    /// Makes an entry; `file` makes regular files, in the directory entered last.
    fn entry<R: Read>(
        &mut self,
        entry: Entry<'_, R>,
        file: impl FnOnce(&mut Self, &[u8], Entry<'_, R>) -> Result<(), ImportError>,
    ) -> Result<(), ImportError> {
        let name = entry.name.clone();
        let parts = components(&name)?;
        entry.check()?;
        if entry.kind == Kind::Directory {
            return self.directory(&parts, entry.metadata);
        }
        let Some((last, parents)) = parts.split_last() else {
            return Err(ImportError::Malformed { path: display(&name), reason: "the top is not a directory" });
        };
        match entry.kind.clone() {
            Kind::Device(_) => self.imported.skipped_devices += 1,
            Kind::File => {
                self.parents(parents)?;
                file(self, last, entry)?;
            }
            Kind::Symlink(target) => {
                self.parents(parents)?;
                self.symlink(last, &name, &target, &entry.metadata)?;
                self.imported.symlinks += 1;
            }
            Kind::HardLink(target) => {
                self.hard_link(&name, parents, last, &target)?;
                self.imported.hard_links += 1;
            }
            Kind::Directory => {}
        }
        Ok(())
    }

    fn directory(&mut self, parts: &[&[u8]], metadata: Metadata) -> Result<(), ImportError> {
        self.name_bytes +=
            metadata.attributes.iter().map(|(name, value)| (name.len() + value.len()) as u64).sum::<u64>();
        self.parents(parts)?;
        self.directories.insert(parts.join(&b'/'), metadata);
        Ok(())
    }

    /// Enters a directory. Those the archive has no entry for, or not yet, are made as `mkdir` would.
    fn parents(&mut self, parts: &[&[u8]]) -> Result<(), ImportError> {
        let made = self.tree.enter(parts)?;
        self.imported.directories += made;
        for depth in parts.len() - usize::try_from(made).unwrap_or(parts.len())..parts.len() {
            let path = parts[..=depth].join(&b'/');
            self.name_bytes += path.len() as u64;
            self.directories.insert(path, Metadata { mode: 0o755, ..ours() });
        }
        if self.name_bytes > NAME_BYTES {
            return Err(ImportError::TooLarge { limit: NAME_BYTES, of: "bytes of directory names and attributes" });
        }
        Ok(())
    }

    fn file(&mut self, last: &[u8], mut entry: Entry<'_, impl Read>) -> Result<(), ImportError> {
        let mut hasher = entry.metadata.hasher(entry.size);
        let failed = |error| place(&entry.name, error);
        if entry.size <= SMALL {
            self.buffer.clear();
            entry.content.read_to_end(&mut self.buffer).map_err(ImportError::Reading)?;
            hasher.update(&self.buffer);
            let id = hasher.finish();
            if self.link(&id, last).map_err(failed)? {
                self.imported.shared += 1;
            } else {
                let mut object = create(&self.temporary, "object").map_err(failed)?;
                object.write_all(&self.buffer).map_err(failed)?;
                self.keep(object, &id, &entry.metadata, entry.size, last).map_err(failed)?;
            }
        } else {
            let mut object = create(&self.temporary, "object").map_err(failed)?;
            self.buffer.resize(1 << 16, 0);
            loop {
                let length = read_up_to(&mut entry.content, &mut self.buffer).map_err(ImportError::Reading)?;
                if length == 0 {
                    break;
                }
                hasher.update(&self.buffer[..length]);
                put_sparse(&mut object, &self.buffer[..length]).map_err(failed)?;
            }
            object.set_len(entry.size).map_err(failed)?;
            let id = hasher.finish();
            if self.link(&id, last).map_err(failed)? {
                rustix::fs::unlinkat(&self.temporary, "object", AtFlags::empty())
                    .map_err(|errno| failed(errno.into()))?;
                self.imported.shared += 1;
            } else {
                self.keep(object, &id, &entry.metadata, entry.size, last).map_err(failed)?;
            }
        }
        self.imported.files += 1;
        self.imported.bytes += entry.size;
        Ok(())
    }

    /// Links a listed object, which becomes one of the store's if it is none yet.
    fn object<R>(
        &mut self,
        last: &[u8],
        id: &Digest,
        entry: &Entry<'_, R>,
        fetched: &OwnedFd,
    ) -> Result<(), ImportError> {
        let failed = |error| place(&entry.name, error);
        if self.link(id, last).map_err(failed)? {
            self.imported.shared += 1;
        } else {
            let name = object::name(id, 0);
            // Not moved: what was fetched is there until the tree is complete.
            let link = || rustix::fs::linkat(fetched, id.to_string(), &self.objects, &name, AtFlags::empty());
            match with_directory(&self.objects, &name, link) {
                Err(Errno::NOENT) => return Err(ImportError::Gone { path: display(&entry.name) }),
                other => other.map_err(|errno| failed(errno.into()))?,
            }
            self.link(id, last).map_err(failed)?;
        }
        self.imported.files += 1;
        self.imported.bytes += entry.size;
        Ok(())
    }

    /// Makes the temporary file, which has all its content, the object `id`, and links it. Whatever has an object's name is whole
    /// and sealed; that it may not have reached the disk does no harm: until the tree is complete, objects without a tree go with it.
    fn keep(&self, file: File, id: &Digest, metadata: &Metadata, size: u64, last: &[u8]) -> io::Result<()> {
        drop(file);
        object::finish(&self.temporary, "object", size, metadata)?;
        let name = object::name(id, 0);
        with_directory(&self.objects, &name, || {
            rustix::fs::renameat_with(&self.temporary, "object", &self.objects, &name, RenameFlags::NOREPLACE)
        })?;
        self.link(id, last).map(drop)
    }

    /// Links an object into the directory entered last. Returns whether there is such an object.
    fn link(&self, id: &Digest, last: &[u8]) -> io::Result<bool> {
        for sibling in 0.. {
            let name = object::name(id, sibling);
            match put(self.tree.current(), last, || {
                rustix::fs::linkat(&self.objects, &name, self.tree.current(), last, AtFlags::empty())
            }) {
                Err(Errno::NOENT) if sibling == 0 => return Ok(false),
                Err(Errno::NOENT) => {
                    self.copy_object(&object::name(id, 0), &name)?;
                    put(self.tree.current(), last, || {
                        rustix::fs::linkat(&self.objects, &name, self.tree.current(), last, AtFlags::empty())
                    })?;
                    return Ok(true);
                }
                Err(Errno::MLINK) => {}
                other => return Ok(other.map(|()| true)?),
            }
        }
        Ok(false)
    }

    fn copy_object(&self, from: &str, to: &str) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut from = File::from(rustix::fs::openat(&self.objects, from, flags, Mode::empty())?);
        let Examined { metadata, size, .. } = Metadata::of(&from)?;
        let mut copy = create(&self.temporary, "copy")?;
        io::copy(&mut from, &mut copy)?;
        drop(copy);
        object::finish(&self.temporary, "copy", size, &metadata)?;
        Ok(rustix::fs::renameat_with(&self.temporary, "copy", &self.objects, to, RenameFlags::NOREPLACE)?)
    }

    fn symlink(&self, last: &[u8], name: &[u8], target: &[u8], metadata: &Metadata) -> Result<(), ImportError> {
        if target.is_empty() || target.len() >= PATH_BYTES || target.contains(&0) {
            return Err(ImportError::Malformed { path: display(name), reason: "the link's target is not a path" });
        }
        let directory = self.tree.current();
        let make = || -> rustix::io::Result<()> {
            put(directory, last, || rustix::fs::symlinkat(target, directory, last))?;
            let owner = (Some(Uid::from_raw(metadata.owner)), Some(Gid::from_raw(metadata.group)));
            rustix::fs::chownat(directory, last, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?;
            rustix::fs::utimensat(directory, last, &metadata.times(), AtFlags::SYMLINK_NOFOLLOW)
        };
        make().map_err(|errno| place(name, errno.into()))
    }

    fn hard_link(&mut self, name: &[u8], parents: &[&[u8]], last: &[u8], target: &[u8]) -> Result<(), ImportError> {
        let malformed = |reason| ImportError::Malformed { path: display(name), reason };
        let failed = |errno: Errno| place(name, errno.into());
        let target = components(target)?;
        let Some((target_last, target_parents)) = target.split_last() else {
            return Err(malformed("it links to a directory"));
        };
        self.parents(target_parents)?;
        let from = self.tree.current().try_clone_to_owned().map_err(|error| place(name, error))?;
        let stat = match rustix::fs::statat(&from, *target_last, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Err(malformed("it links to no earlier entry")),
            other => other.map_err(failed)?,
        };
        self.parents(parents)?;
        let directory = self.tree.current();
        if let Ok(there) = rustix::fs::statat(directory, last, AtFlags::SYMLINK_NOFOLLOW)
            && (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino)
        {
            // Already the same file, perhaps by this very name, which must not be unlinked then.
            return Ok(());
        }
        let link = || rustix::fs::linkat(&from, *target_last, directory, last, AtFlags::empty());
        match (FileType::from_raw_mode(stat.st_mode), put(directory, last, link)) {
            (FileType::Directory, _) => Err(malformed("it links to a directory")),
            (FileType::RegularFile, Err(Errno::MLINK)) => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&from, *target_last, flags, Mode::empty()).map_err(failed)?;
                let id = object::identify(&File::from(file)).map_err(|error| place(name, error))?;
                match self.link(&id, last) {
                    Ok(true) => Ok(()),
                    Ok(false) => Err(failed(Errno::MLINK)),
                    Err(error) => Err(place(name, error)),
                }
            }
            (_, result) => result.map_err(failed),
        }
    }

    /// Gives all directories their metadata, the deepest first: a parent may then forbid entering it, and nothing
    /// changes in one that has its time already.
    fn finish_directories(&mut self) -> Result<(), ImportError> {
        for (path, metadata) in std::mem::take(&mut self.directories).iter().rev() {
            let parts: Vec<&[u8]> = path.split(|&byte| byte == b'/').filter(|part| !part.is_empty()).collect();
            self.tree.enter(&parts)?;
            let directory = self.tree.reopen().map_err(|error| place(path, error))?;
            metadata.apply(directory).map_err(|error| place(path, error))?;
        }
        Ok(())
    }
}

/// What a directory has that the archive says nothing about.
fn ours() -> Metadata {
    Metadata {
        owner: rustix::process::geteuid().as_raw(),
        group: rustix::process::getegid().as_raw(),
        ..Metadata::default()
    }
}

/// An error at an entry of the archive.
fn place(name: &[u8], error: io::Error) -> ImportError {
    let path = display(name);
    match Errno::from_io_error(&error) {
        Some(Errno::ISDIR) => ImportError::Malformed { path, reason: "it would replace a directory" },
        _ => StoreError::at("unpacking", path)(error).into(),
    }
}

/// Makes something named `last`. The later of two entries of one name counts, unless the earlier is a directory.
fn put(directory: impl AsFd, last: &[u8], make: impl Fn() -> rustix::io::Result<()>) -> rustix::io::Result<()> {
    match make() {
        Err(Errno::EXIST) => {
            rustix::fs::unlinkat(directory, last, AtFlags::empty())?;
            make()
        }
        other => other,
    }
}

/// Writes the next piece of a file, or leaves a hole where it is nothing but zeros. The file's length has to be set in the end.
pub fn put_sparse(file: &mut File, piece: &[u8]) -> io::Result<()> {
    if piece.iter().all(|&byte| byte == 0) {
        file.seek(SeekFrom::Current(piece.len().try_into().map_err(io::Error::other)?)).map(drop)
    } else {
        file.write_all(piece)
    }
}

/// A new file that only its maker may read for now.
pub(crate) fn create(directory: &OwnedFd, name: &str) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    Ok(with_directory(directory, name, || rustix::fs::openat(directory, name, flags, mode))?.into())
}

/// Makes an object's directory if that is why `attempt` failed.
fn with_directory<T>(
    objects: &OwnedFd,
    name: &str,
    attempt: impl Fn() -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    match (attempt(), name.split_once('/')) {
        (Err(Errno::NOENT), Some((directory, _))) => {
            match rustix::fs::mkdirat(objects, directory, Mode::RWXU) {
                // It is not for want of it.
                Err(Errno::EXIST) => Err(Errno::NOENT),
                made => made.and_then(|()| attempt()),
            }
        }
        (other, _) => other,
    }
}
