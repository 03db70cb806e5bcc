//! Fetching an image by its listing: only the objects that the store lacks.
//!
//! What has come is kept in `fetched/<digest of the archive>/`, each object under its name, until the tree is complete. An
//! interrupted fetch thus goes on where it stopped. After a power cut a file there may be another than its name says: what an
//! earlier fetch left is read before it counts.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read},
    os::fd::OwnedFd,
    path::Path,
};

use orrery_protocol::{Digest, Listing};
use rustix::{
    fs::{AtFlags, FlockOperation, Mode, OFlags},
    io::Errno,
};

use crate::{
    ImportError, Imported, Store, StoreError,
    archive::{Content, Kind, display, read_up_to},
    import::{create, put_sparse},
    listing, object,
};

/// The folder of what has been fetched.
pub(crate) const FETCHED: &str = "fetched";
/// An object that is not whole yet. No object has such a name.
const PART: &str = "part";
/// What is asked for at once: objects, and bytes of them. A server makes the whole answer before it gives it.
const BATCH: usize = 1 << 16;
const BATCH_BYTES: u64 = 32 << 20;
/// What a file's size is rounded up to on the disk, in bytes.
const DISK_BLOCK: u64 = 4096;
/// What a fetch leaves free, in bytes, or a twentieth of the disk if that is less: slivers that are here already write, too.
const RESERVE: u64 = 1 << 30;
/// Times that objects may go away, with their last image, between being found here and being used.
const TRIES: u32 = 3;

/// What a fetch brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fetched {
    /// The image.
    pub imported: Imported,
    /// Objects that came, now.
    pub objects: u64,
    /// Their content as it was stored in the archive, in bytes.
    pub bytes: u64,
}

/// Somebody who has the archive: asked for regular files by their numbers in it, in order, yields what
/// [`write_contents`](crate::write_contents) writes of them. What it yields is unproven.
pub type Supply<'a> = dyn FnMut(&[u32]) -> io::Result<Box<dyn Read + 'a>> + 'a;

impl Store {
    /// Makes the tree of an image by its `listing`, which the caller vouches for as for the digest `image`. Objects that are not
    /// here come from `supply`; each is proven before it counts. Unpacked the archive may have up to `limit` bytes.
    ///
    /// # Errors
    /// As for [`import`](Self::import); [`ImportError::Reading`] when `supply` fails. There is no tree then, and what has come is
    /// kept for the next attempt. [`ImportError::NoRoom`] before anything is asked for; when the disk is full all the same, what
    /// has come is removed.
    pub fn fetch(
        &self,
        image: &Digest,
        listing: &Listing<'_>,
        limit: u64,
        supply: &mut Supply<'_>,
    ) -> Result<Fetched, ImportError> {
        if self.tree(image).is_some() {
            return Ok(Fetched { imported: Imported { present: true, ..Imported::default() }, ..Fetched::default() });
        }
        self.fetch_anew(image, listing, limit, RESERVE, supply)
    }

    /// Makes the tree of an image again, whether it is there or not, and puts it in the place of the old one at once: as
    /// [`repair`](Self::repair) does, but only objects that are damaged or missing come from `supply`. What still runs on the image
    /// must be stopped first.
    ///
    /// # Errors
    /// As for [`fetch`](Self::fetch); the old tree is still there then.
    pub fn fetch_again(
        &self,
        image: &Digest,
        listing: &Listing<'_>,
        limit: u64,
        supply: &mut Supply<'_>,
    ) -> Result<Fetched, ImportError> {
        if self.tree(image).is_some() {
            self.verify(image)?;
        }
        // Nothing that was not here before: a disk with little room is no reason to leave an image damaged.
        self.fetch_anew(image, listing, limit, 0, supply)
    }

    fn fetch_anew(
        &self,
        image: &Digest,
        listing: &Listing<'_>,
        limit: u64,
        reserve: u64,
        supply: &mut Supply<'_>,
    ) -> Result<Fetched, ImportError> {
        let folder = Folder::open(&self.root.join(FETCHED).join(image.to_string()))?;
        let fetched = self.fetch_into(&folder, image, listing, limit, reserve, supply);
        if let Err(ImportError::DiskFull { .. }) = fetched {
            // The cause is what the caller needs.
            let _ = folder.clear();
        }
        drop(folder);
        let fetched = fetched?;
        // All that came is in the tree, and nobody's any more.
        let lock = self.blocking_lock()?;
        self.clean(&lock)?;
        Ok(fetched)
    }

    fn fetch_into(
        &self,
        folder: &Folder,
        image: &Digest,
        listing: &Listing<'_>,
        limit: u64,
        reserve: u64,
        supply: &mut Supply<'_>,
    ) -> Result<Fetched, ImportError> {
        let mut fetched = Fetched::default();
        let mut good = folder.proven()?;
        for attempt in 1.. {
            let lacks = |id: &Digest| !good.contains(&id.0) && !self.has(id);
            let lacking = listing::lacking(listing, limit, lacks)?;
            self.check_room(&lacking, reserve)?;
            for batch in batches(&lacking) {
                let stream = supply(&batch).and_then(zstd::Decoder::new).map_err(ImportError::Reading)?;
                folder.receive(stream, &batch, listing, limit, |id, stored| {
                    good.insert(id.0);
                    fetched.objects += 1;
                    fetched.bytes += stored;
                })?;
            }
            match self.assemble(image, listing, limit, &folder.directory) {
                Err(ImportError::Gone { .. }) if attempt < TRIES => {}
                imported => {
                    fetched.imported = imported?;
                    break;
                }
            }
        }
        Ok(fetched)
    }

    /// Refuses what the disk has no space for beside `reserve` bytes.
    fn check_room(&self, lacking: &[(u32, u64)], reserve: u64) -> Result<(), ImportError> {
        let on_disk = |(_, bytes): &(u32, u64)| bytes.div_ceil(DISK_BLOCK).saturating_mul(DISK_BLOCK);
        let needed = lacking.iter().map(on_disk).fold(0, u64::saturating_add);
        let disk = rustix::fs::statvfs(&self.root).map_err(StoreError::at("examining the disk of", &self.root))?;
        let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        let (free, reserve) = (bytes(disk.f_bavail), reserve.min(bytes(disk.f_blocks) / 20));
        match needed > 0 && needed.saturating_add(reserve) > free {
            true => Err(ImportError::NoRoom { needed, reserve, free }),
            false => Ok(()),
        }
    }

    fn has(&self, id: &Digest) -> bool {
        self.root.join("objects").join(object::name(id, 0)).is_file()
    }
}

/// Whether somebody fetches into the folder `path`.
pub(crate) fn in_use(path: &Path) -> Result<bool, StoreError> {
    let folder = File::open(path).map_err(StoreError::at("opening", path))?;
    match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(false),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(errno) => Err(StoreError::at("locking", path)(errno)),
    }
}

/// The numbers to ask for at once.
fn batches(mut lacking: &[(u32, u64)]) -> impl Iterator<Item = Vec<u32>> {
    std::iter::from_fn(move || {
        let (mut bytes, mut count) = (0_u64, 0);
        while count < lacking.len().min(BATCH) && (count == 0 || bytes.saturating_add(lacking[count].1) <= BATCH_BYTES)
        {
            bytes = bytes.saturating_add(lacking[count].1);
            count += 1;
        }
        let (batch, rest) = lacking.split_at(count);
        lacking = rest;
        (count > 0).then(|| batch.iter().map(|(number, _)| *number).collect())
    })
}

/// Where the objects of one image gather. While it is held, nobody else fetches into it, or removes it.
struct Folder {
    directory: OwnedFd,
}

impl Folder {
    fn open(path: &Path) -> Result<Self, ImportError> {
        fs::create_dir_all(path).map_err(StoreError::at("making directory", path))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty()).map_err(StoreError::at("opening", path))?;
        while let Err(errno) = rustix::fs::flock(&directory, FlockOperation::LockExclusive) {
            if errno != Errno::INTR {
                return Err(StoreError::at("locking", path)(errno).into());
            }
        }
        Ok(Self { directory })
    }

    /// The objects that are here. All others are removed.
    fn proven(&self) -> Result<BTreeSet<[u8; 32]>, ImportError> {
        self.sift(|name| {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&self.directory, name, flags, Mode::empty()).ok()?;
            // Not whole, or lost by the disk.
            object::identify(&File::from(file)).ok().filter(|id| id.to_string().as_bytes() == name)
        })
    }

    fn clear(&self) -> Result<(), ImportError> {
        self.sift(|_| None).map(drop)
    }

    /// Removes all that `keep` gives no name, and returns the others'.
    fn sift(&self, keep: impl Fn(&[u8]) -> Option<Digest>) -> Result<BTreeSet<[u8; 32]>, ImportError> {
        let mut kept = BTreeSet::new();
        let failed = |name: &[u8]| {
            let name = display(name);
            move |error: io::Error| ImportError::from(StoreError::at("examining", name)(error))
        };
        let entries = rustix::fs::Dir::read_from(&self.directory).map_err(|errno| failed(b".")(errno.into()))?;
        for entry in entries {
            let entry = entry.map_err(|errno| failed(b".")(errno.into()))?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            match keep(name) {
                Some(id) => drop(kept.insert(id.0)),
                None => rustix::fs::unlinkat(&self.directory, name, AtFlags::empty())
                    .map_err(|errno| failed(name)(errno.into()))?,
            }
        }
        Ok(kept)
    }

    /// Takes the objects with the numbers `wanted` from `stream`, and tells `kept` of each with the length it was stored in.
    fn receive(
        &self,
        mut stream: impl Read,
        wanted: &[u32],
        listing: &Listing<'_>,
        limit: u64,
        mut kept: impl FnMut(&Digest, u64),
    ) -> Result<(), ImportError> {
        let mut wanted = wanted.iter().peekable();
        let mut objects = (0..).zip(listing.objects());
        let mut entries = listing::skeleton(listing, limit)?;
        let mut buffer = vec![0; 1 << 16];
        while wanted.peek().is_some() {
            let malformed = |name: &[u8], reason| ImportError::Malformed { path: display(name), reason };
            let entry = entries.next()?.ok_or_else(|| malformed(b"", "the listing has more objects than entries"))?;
            if entry.kind != Kind::File {
                continue;
            }
            let (number, id) =
                objects.next().ok_or_else(|| malformed(&entry.name, "the listing has no object for it"))?;
            if wanted.next_if_eq(&&number).is_none() {
                continue;
            }
            let failed = |error: io::Error| ImportError::from(StoreError::at("writing", display(&entry.name))(error));
            let content = (&mut stream).take(entry.stored);
            let mut content = Content::new(content, entry.content.extents().to_vec(), entry.size);
            let mut hasher = entry.metadata.hasher(entry.size);
            let mut file = create(&self.directory, PART).map_err(failed)?;
            loop {
                let length = read_up_to(&mut content, &mut buffer).map_err(ImportError::Reading)?;
                if length == 0 {
                    break;
                }
                hasher.update(&buffer[..length]);
                put_sparse(&mut file, &buffer[..length]).map_err(failed)?;
            }
            file.set_len(entry.size).map_err(failed)?;
            let found = hasher.finish();
            if found != *id {
                return Err(ImportError::WrongObject { path: display(&entry.name), expected: *id, found });
            }
            drop(file);
            object::finish(&self.directory, PART, entry.size, &entry.metadata).map_err(failed)?;
            rustix::fs::renameat(&self.directory, PART, &self.directory, id.to_string())
                .map_err(|errno| failed(errno.into()))?;
            kept(id, entry.stored);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
