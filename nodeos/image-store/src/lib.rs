//! Content-addressed object store and hard-linked image trees.
//!
//! A store is a directory with `objects/<2 digits>/<digest>`, one file for each different content and metadata;
//! `trees/<digest of the archive>`, one unpacked image each, whose regular files are hard links to objects;
//! `fetched/<digest of the archive>`, objects of an image that is not complete yet; and `tmp`. Images, and versions of an image, thus share what they have in common.
//!
//! A tree is whole or absent, also after a power cut: it is filled under another name, everything is written out,
//! and only then is it renamed. Leftovers go when the store is opened, and with them every object that no tree
//! links to, since such an object may not have reached the disk. What `fetched` has counts only after it was read again.
//!
//! Not done here: fetching and checking signatures, and protecting trees from writers. A tree's symbolic links are
//! those of the archive and may lead anywhere; never follow them outside a root of their own.

pub mod archive;
mod directories;
mod error;
mod fetch;
mod import;
mod listing;
mod object;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use orrery_protocol::Digest;
use rustix::{fs::FlockOperation, io::Errno};

use crate::fetch::FETCHED;
pub use crate::{
    directories::{DEPTH, Directories, components},
    error::{ImportError, StoreError},
    fetch::{Fetched, Supply},
    import::{Imported, put_sparse},
    listing::{list, lists, write_contents},
    object::{Examined, Metadata, OWNERS, SEALED_FROM},
};

/// The end of an unfinished tree's name.
const PARTIAL: &str = ".partial";

/// An object store and its trees. Any number may be open on one directory: changes exclude each other.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// Holds off all other changes to the store until dropped.
#[derive(Debug)]
struct Lock {
    root: File,
}

impl Store {
    /// Opens the store in the directory `root`, made if missing, and removes what interrupted changes left, unless
    /// a change is under way.
    ///
    /// # Errors
    /// When a directory cannot be made, or a leftover not be removed.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        for (name, mode) in [("", 0o700), ("objects", 0o700), ("trees", 0o755), ("tmp", 0o700), (FETCHED, 0o700)] {
            let path = root.join(name);
            if !path.is_dir() {
                fs::create_dir_all(&path).map_err(StoreError::at("making directory", &path))?;
                if !name.is_empty() {
                    let mode = fs::Permissions::from_mode(mode);
                    fs::set_permissions(&path, mode).map_err(StoreError::at("setting the mode of", &path))?;
                }
            }
        }
        let store = Self { root: root.to_owned() };
        if let Some(lock) = store.lock(FlockOperation::NonBlockingLockExclusive)? {
            store.clean(&lock)?;
        }
        Ok(store)
    }

    /// The directory an image is unpacked in.
    pub fn tree(&self, image: &Digest) -> Option<PathBuf> {
        Some(self.tree_path(image)).filter(|path| path.is_dir())
    }

    /// All images that are unpacked.
    ///
    /// # Errors
    /// When the directory of trees cannot be read.
    pub fn images(&self) -> Result<Vec<Digest>, StoreError> {
        let mut images: Vec<Digest> = digests(&self.root.join("trees"))?.into_iter().map(|(image, _)| image).collect();
        images.sort_by_key(|image| image.0);
        Ok(images)
    }

    /// Removes an image and the objects that no other image has. Nothing happens if there is no such image. What
    /// still runs on it must be stopped first.
    ///
    /// # Errors
    /// When something cannot be removed; the image is gone all the same once its tree was renamed, and the rest is
    /// removed when the store is opened next.
    pub fn remove(&self, image: &Digest) -> Result<(), StoreError> {
        let lock = self.blocking_lock()?;
        let tree = self.tree_path(image);
        match fs::rename(&tree, self.partial_path(image)) {
            Ok(()) => {
                self.clean(&lock)?;
                self.flush_trees()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(StoreError::at("removing tree", &tree)(error)),
        }
    }

    /// Removes all images, and all that was fetched of one, that are not `wanted`, with the objects that no other has. Returns the
    /// images that are gone. What still runs on one must be stopped first.
    ///
    /// # Errors
    /// As for [`remove`](Self::remove).
    pub fn retain(&self, wanted: impl Fn(&Digest) -> bool) -> Result<Vec<Digest>, StoreError> {
        let lock = self.blocking_lock()?;
        self.clean(&lock)?;
        let mut gone = self.images()?;
        gone.retain(|image| !wanted(image));
        for image in &gone {
            let tree = self.tree_path(image);
            fs::rename(&tree, self.partial_path(image)).map_err(StoreError::at("removing tree", &tree))?;
        }
        for (image, path) in digests(&self.root.join(FETCHED))? {
            if !wanted(&image) && !fetch::in_use(&path)? {
                // What is cleaned away as an unfinished tree is not forgotten half-way.
                fs::rename(&path, self.partial_path(&image)).map_err(StoreError::at("removing", &path))?;
            }
        }
        self.clean(&lock)?;
        Ok(gone)
    }

    /// Reads all regular files of an image again and returns those whose content or metadata is not what it was, or that the disk
    /// does not give any more, as paths in the tree. Their objects are taken out of the store, so that
    /// [`repair`](Self::repair) replaces them. Missing files are not noticed.
    ///
    /// # Errors
    /// When there is no such image, or it cannot be read.
    pub fn verify(&self, image: &Digest) -> Result<Vec<PathBuf>, StoreError> {
        let lock = self.blocking_lock()?;
        self.verify_locked(image, &lock)
    }

    fn verify_locked(&self, image: &Digest, _lock: &Lock) -> Result<Vec<PathBuf>, StoreError> {
        let tree = self.tree_path(image);
        let mut good = HashSet::new();
        let mut bad = HashSet::new();
        let mut damaged = Vec::new();
        let mut pending = vec![tree.clone()];
        while let Some(directory) = pending.pop() {
            for path in paths(&directory)? {
                let stat = fs::symlink_metadata(&path).map_err(StoreError::at("examining", &path))?;
                if stat.is_dir() {
                    pending.push(path);
                } else if stat.is_file() && !good.contains(&stat.ino()) {
                    let id = match File::open(&path).and_then(|file| object::identify(&file)) {
                        Ok(id) => Some(id),
                        // The disk, or a checksum of the file system, says that the content is lost.
                        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::IO | Errno::BADMSG)) => None,
                        Err(error) => return Err(StoreError::at("reading", &path)(error)),
                    };
                    if id.map_or(Ok(false), |id| self.is_object(&id, &stat))? {
                        good.insert(stat.ino());
                    } else {
                        bad.insert(stat.ino());
                        damaged.push(path.strip_prefix(&tree).unwrap_or(&path).to_owned());
                    }
                }
            }
        }
        if !bad.is_empty() {
            self.remove_objects(|stat| bad.contains(&stat.ino()))?;
        }
        damaged.sort();
        Ok(damaged)
    }

    /// Whether the file is the object `id` or one of its siblings, of which any may have gone with its last tree.
    fn is_object(&self, id: &Digest, stat: &fs::Metadata) -> Result<bool, StoreError> {
        let first = self.root.join("objects").join(object::name(id, 0));
        let same = |path: &Path| {
            fs::symlink_metadata(path).is_ok_and(|object| (object.dev(), object.ino()) == (stat.dev(), stat.ino()))
        };
        if same(&first) {
            return Ok(true);
        }
        let Some(directory) = first.parent().filter(|directory| directory.is_dir()) else { return Ok(false) };
        let id = id.to_string();
        Ok(paths(directory)?.iter().any(|path| path.file_stem().is_some_and(|stem| *stem == *id) && same(path)))
    }

    fn tree_path(&self, image: &Digest) -> PathBuf {
        self.root.join("trees").join(image.to_string())
    }

    fn partial_path(&self, image: &Digest) -> PathBuf {
        self.root.join("trees").join(format!("{image}{PARTIAL}"))
    }

    /// Makes names in the directory of trees last.
    fn flush_trees(&self) -> Result<(), StoreError> {
        let trees = self.root.join("trees");
        File::open(&trees).and_then(|trees| trees.sync_all()).map_err(StoreError::at("writing out", &trees))
    }

    fn blocking_lock(&self) -> Result<Lock, StoreError> {
        let lock = self.lock(FlockOperation::LockExclusive)?;
        Ok(lock.expect("a blocking lock is only returned when held"))
    }

    /// Returns nothing if the lock would have to be waited for and `operation` says not to.
    fn lock(&self, operation: FlockOperation) -> Result<Option<Lock>, StoreError> {
        let root = File::open(&self.root).map_err(StoreError::at("opening", &self.root))?;
        loop {
            match rustix::fs::flock(&root, operation) {
                Ok(()) => return Ok(Some(Lock { root })),
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(StoreError::at("locking", &self.root)(errno)),
            }
        }
    }

    /// Removes unfinished trees, temporary files, and all objects of no tree if there were any of those. The
    /// unfinished tree's directory itself goes last: while it is there, an interrupted cleaning is taken up again.
    fn clean(&self, _lock: &Lock) -> Result<(), StoreError> {
        let mut leftovers = paths(&self.root.join("trees"))?;
        leftovers.retain(|path| path.to_str().is_some_and(|path| path.ends_with(PARTIAL)));
        for path in leftovers.iter().map(|tree| paths(tree)).collect::<Result<Vec<_>, _>>()?.iter().flatten() {
            let removed =
                if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            removed.map_err(StoreError::at("removing", path))?;
        }
        for (image, path) in digests(&self.root.join(FETCHED))? {
            // Its objects are all in the tree.
            if self.tree(&image).is_some() && !fetch::in_use(&path)? {
                fs::remove_dir_all(&path).map_err(StoreError::at("removing", &path))?;
            }
        }
        for path in paths(&self.root.join("tmp"))? {
            fs::remove_file(&path).map_err(StoreError::at("removing", &path))?;
        }
        if !leftovers.is_empty() {
            // An object that came by its listing has a name among what was fetched, which is no tree.
            let fetched = self.fetched_links()?;
            self.remove_objects(|stat| stat.nlink() == 1 + fetched.get(&stat.ino()).copied().unwrap_or(0))?;
        }
        for tree in leftovers {
            fs::remove_dir(&tree).map_err(StoreError::at("removing", &tree))?;
        }
        Ok(())
    }

    /// By inode: how many names it has among what was fetched.
    fn fetched_links(&self) -> Result<HashMap<u64, u64>, StoreError> {
        let mut links = HashMap::new();
        for (_, folder) in digests(&self.root.join(FETCHED))? {
            for path in paths(&folder)? {
                match fs::symlink_metadata(&path) {
                    Ok(stat) => *links.entry(stat.ino()).or_default() += 1,
                    // Somebody fetches into the folder, and gave the file its name.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(StoreError::at("examining", &path)(error)),
                }
            }
        }
        Ok(links)
    }

    fn remove_objects(&self, condemned: impl Fn(&fs::Metadata) -> bool) -> Result<(), StoreError> {
        for directory in paths(&self.root.join("objects"))? {
            for path in paths(&directory)? {
                let stat = fs::symlink_metadata(&path).map_err(StoreError::at("examining", &path))?;
                if condemned(&stat) {
                    fs::remove_file(&path).map_err(StoreError::at("removing", &path))?;
                }
            }
        }
        Ok(())
    }
}

/// What is in a directory and named by a digest.
fn digests(directory: &Path) -> Result<Vec<(Digest, PathBuf)>, StoreError> {
    let named = |path: PathBuf| Some((path.file_name()?.to_str()?.parse().ok()?, path));
    Ok(paths(directory)?.into_iter().filter_map(named).collect())
}

/// The paths of all that is in a directory.
fn paths(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .map_err(StoreError::at("listing", directory))
}
