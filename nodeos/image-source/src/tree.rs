//! A file tree in memory, whose files' contents are kept in a temporary file, and layers put on it.
//!
//! Layers are changesets (OCI image specification, "Image Layer Filesystem Changeset"): an entry replaces what stood at
//! its path, `.wh.NAME` removes NAME of the layers below, and `.wh..wh..opq` all that they have in a directory. A path is
//! never resolved through a symbolic link, so that no layer decides where another one's files go.

use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    io::{self, Read},
    ops::Bound,
    path::{Path, PathBuf},
    sync::Arc,
};

use orrery_image_store::{
    ImportError, Metadata, StoreError,
    archive::{Archive, Entry, Kind, PATH_BYTES, display},
    components, put_sparse,
};

use crate::{Skipped, Summary, stream::Part};

/// Bytes of names, links and attributes of one image.
const NAME_BYTES: u64 = 256 << 20;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What AUFS kept for itself, and old layers still have.
const AUFS: &[u8] = b".wh..wh.";

/// Whether `.wh.` names mean what they do in a layer, or are just names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whiteouts {
    Obeyed,
    Kept,
}

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    Directory(Metadata),
    /// The number of a file; two paths of one number are hard links.
    Leaf(usize),
}

#[derive(Debug)]
struct Placed {
    node: Node,
    /// The layer it is from.
    layer: u32,
}

/// A file or symbolic link.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) metadata: Metadata,
    pub(crate) content: Content,
}

#[derive(Debug)]
pub(crate) enum Content {
    File { at: u64, size: u64 },
    Symlink(Vec<u8>),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Tree {
    /// By path without leading slash; the top is the empty one.
    nodes: BTreeMap<Vec<u8>, Placed>,
    leaves: Vec<Leaf>,
    layer: u32,
    name_bytes: u64,
    spool: File,
    spooled: u64,
    scratch: PathBuf,
    limit: u64,
    pub(crate) skipped: Skipped,
}

impl Tree {
    /// An empty one. Contents, of up to `limit` bytes, are kept in a nameless file in the folder `scratch`.
    pub(crate) fn new(scratch: &Path, limit: u64) -> io::Result<Self> {
        let mut tree = Self {
            nodes: BTreeMap::new(),
            leaves: Vec::new(),
            layer: 0,
            name_bytes: 0,
            spool: tempfile::tempfile_in(scratch)?,
            spooled: 0,
            scratch: scratch.to_owned(),
            limit,
            skipped: Skipped::default(),
        };
        tree.place(Vec::new(), Node::Directory(implied()));
        Ok(tree)
    }

    /// Puts a layer on top, and reads `stream` to its end.
    pub(crate) fn lay(&mut self, stream: impl Read, whiteouts: Whiteouts) -> Result<(), ImportError> {
        self.layer += 1;
        let mut archive = Archive::new(stream, self.limit);
        while let Some(entry) = archive.next()? {
            self.skipped.attributes += entry.skipped_attributes;
            self.entry(entry, whiteouts)?;
        }
        // A layer has a digest that it is compared with.
        if whiteouts == Whiteouts::Kept && !archive.ended() {
            let message = "the archive breaks off: it has no end marker";
            return Err(ImportError::Reading(io::Error::new(io::ErrorKind::UnexpectedEof, message)));
        }
        archive.finish()
    }

    pub(crate) fn directory(&mut self, path: &[u8], metadata: Metadata) -> Result<(), ImportError> {
        metadata.check(path)?;
        let parts = components(path)?;
        self.parents(&parts)?;
        let key = parts.join(&b'/');
        match self.nodes.get(&key) {
            Some(Placed { node: Node::Leaf(_), layer }) if *layer == self.layer => {
                return Err(ImportError::Malformed { path: display(path), reason: "it would replace a file" });
            }
            _ => self.place(key, Node::Directory(metadata)),
        }
        self.check_names()
    }

    /// Returns the file's number.
    pub(crate) fn file(
        &mut self,
        path: &[u8],
        metadata: Metadata,
        size: u64,
        content: &mut impl Read,
    ) -> Result<usize, ImportError> {
        if self.spooled.checked_add(size).is_none_or(|end| end > self.limit) {
            return Err(ImportError::TooLarge { limit: self.limit, of: "bytes" });
        }
        let at = self.spooled;
        let mut buffer = vec![0; 1 << 16];
        let mut left = size;
        while left > 0 {
            let most = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
            let length = content.read(&mut buffer[..most]).map_err(ImportError::Reading)?;
            if length == 0 {
                return Err(ImportError::Reading(io::ErrorKind::UnexpectedEof.into()));
            }
            put_sparse(&mut self.spool, &buffer[..length]).map_err(|source| StoreError {
                doing: "writing a file in",
                path: self.scratch.clone(),
                source,
            })?;
            left -= length as u64;
        }
        self.spooled += size;
        self.leaf(path, Leaf { metadata, content: Content::File { at, size } })
    }

    /// Returns the link's number.
    pub(crate) fn symlink(&mut self, path: &[u8], metadata: Metadata, target: Vec<u8>) -> Result<usize, ImportError> {
        if target.is_empty() || target.len() >= PATH_BYTES || target.contains(&0) {
            return Err(ImportError::Malformed { path: display(path), reason: "the link's target is not a path" });
        }
        self.name_bytes += target.len() as u64;
        self.leaf(path, Leaf { metadata, content: Content::Symlink(target) })
    }

    /// Gives a file another name.
    pub(crate) fn link(&mut self, path: &[u8], leaf: usize) -> Result<(), ImportError> {
        let parts = components(path)?;
        self.parents(&parts)?;
        let key = parts.join(&b'/');
        if key.is_empty() {
            return Err(ImportError::Malformed { path: display(path), reason: "the top is not a directory" });
        }
        self.make_room(&key)?;
        self.place(key, Node::Leaf(leaf));
        self.check_names()
    }

    /// Removes a path with all beneath it, of whatever layer.
    pub(crate) fn remove(&mut self, path: &[u8]) {
        self.layer += 1;
        self.remove_lower(path);
    }

    /// Everything, parents first.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (&[u8], &Node)> {
        self.nodes.iter().map(|(path, placed)| (path.as_slice(), &placed.node))
    }

    pub(crate) fn leaf_of(&self, number: usize) -> &Leaf {
        &self.leaves[number]
    }

    /// All that files contain; a file's content is a part of it.
    pub(crate) fn contents(&self) -> io::Result<Part> {
        self.spool.set_len(self.spooled)?;
        Ok(Part { file: Arc::new(self.spool.try_clone()?), at: 0, size: self.spooled })
    }

    /// The content of the file at `path`, if there is one.
    pub(crate) fn content(&self, path: &[u8]) -> io::Result<Option<Part>> {
        let Some(Placed { node: Node::Leaf(leaf), .. }) = self.nodes.get(path) else { return Ok(None) };
        let Content::File { at, size } = self.leaves[*leaf].content else { return Ok(None) };
        Ok(Some(Part { at, size, ..self.contents()? }))
    }

    pub(crate) fn summary(&self) -> Summary {
        let mut summary = Summary::default();
        let mut seen = HashSet::new();
        for (_, node) in self.nodes().filter(|(path, _)| !path.is_empty()) {
            match node {
                Node::Directory(_) => summary.directories += 1,
                Node::Leaf(leaf) if !seen.insert(*leaf) => summary.hard_links += 1,
                Node::Leaf(leaf) => match self.leaves[*leaf].content {
                    Content::File { size, .. } => {
                        summary.files += 1;
                        summary.bytes += size;
                    }
                    Content::Symlink(_) => summary.symlinks += 1,
                },
            }
        }
        summary
    }

    fn entry(&mut self, entry: Entry<'_, impl Read>, whiteouts: Whiteouts) -> Result<(), ImportError> {
        let Entry { name, kind, metadata, size, mut content, .. } = entry;
        let path = |path| if whiteouts == Whiteouts::Obeyed { beneath_top(path) } else { path };
        let name = path(&name);
        let parts = components(name)?;
        let of_aufs = |part: &&[u8]| part.starts_with(AUFS) && **part != *OPAQUE;
        if whiteouts == Whiteouts::Obeyed && parts.iter().any(of_aufs) {
            self.skipped.others += 1;
            return Ok(());
        }
        if let Some((last, parents)) = parts.split_last()
            && whiteouts == Whiteouts::Obeyed
            && let Some(removed) = last.strip_prefix(WHITEOUT)
        {
            if *last == OPAQUE {
                self.remove_beneath(&parents.join(&b'/'));
            } else if matches!(removed, b"" | b"." | b"..") {
                return Err(ImportError::Malformed { path: display(name), reason: "it removes what is not a name" });
            } else {
                self.remove_lower(&[parents, &[removed]].concat().join(&b'/'));
            }
            return Ok(());
        }
        match kind {
            Kind::Directory => self.directory(name, metadata),
            Kind::File => self.file(name, metadata, size, &mut content).map(drop),
            Kind::Symlink(target) => self.symlink(name, metadata, target).map(drop),
            Kind::HardLink(target) => {
                let malformed = |reason| Err(ImportError::Malformed { path: display(name), reason });
                match self.nodes.get(&components(path(&target))?.join(&b'/')) {
                    None => malformed("it links to no earlier entry"),
                    Some(Placed { node: Node::Directory(_), .. }) => malformed("it links to a directory"),
                    Some(Placed { node: Node::Leaf(leaf), .. }) => {
                        let leaf = *leaf;
                        self.link(name, leaf)
                    }
                }
            }
            Kind::Device(_) => {
                self.skipped.devices += 1;
                self.make_room(&parts.join(&b'/'))
            }
        }
    }

    fn leaf(&mut self, path: &[u8], leaf: Leaf) -> Result<usize, ImportError> {
        leaf.metadata.check(path)?;
        self.name_bytes += bytes_of(&leaf.metadata);
        let number = self.leaves.len();
        self.leaves.push(leaf);
        self.link(path, number)?;
        Ok(number)
    }

    /// Makes missing directories above the last of `parts`.
    fn parents(&mut self, parts: &[&[u8]]) -> Result<(), ImportError> {
        for depth in 1..parts.len() {
            let key = parts[..depth].join(&b'/');
            match self.nodes.get(&key) {
                Some(Placed { node: Node::Directory(_), .. }) => {}
                Some(Placed { node: Node::Leaf(_), .. }) => {
                    let reason = "the path passes through what is not a directory";
                    return Err(ImportError::Hostile { path: display(&parts.join(&b'/')), reason });
                }
                None => self.place(key, Node::Directory(implied())),
            }
        }
        Ok(())
    }

    /// Removes what stands at `key`. A directory may be replaced only by a later layer that has nothing in it.
    fn make_room(&mut self, key: &[u8]) -> Result<(), ImportError> {
        if let Some(Placed { node: Node::Directory(_), .. }) = self.nodes.get(key) {
            self.remove_lower(key);
            if self.nodes.contains_key(key) {
                return Err(ImportError::Malformed { path: display(key), reason: "it would replace a directory" });
            }
        } else {
            self.nodes.remove(key);
        }
        Ok(())
    }

    /// Removes from lower layers what stands at `key`, and all beneath it.
    fn remove_lower(&mut self, key: &[u8]) {
        self.remove_beneath(key);
        let lower = self.nodes.get(key).is_some_and(|placed| placed.layer < self.layer);
        if lower && !key.is_empty() && self.beneath(key).next().is_none() {
            self.nodes.remove(key);
        }
    }

    /// Removes from lower layers all beneath `key`, but for directories in which this layer has something.
    fn remove_beneath(&mut self, key: &[u8]) {
        let lower: Vec<_> = self
            .beneath(key)
            .filter(|(path, placed)| placed.layer < self.layer && !path.is_empty())
            .map(|(path, _)| path.clone())
            .collect();
        for path in lower.iter().rev() {
            if self.beneath(path).next().is_none() {
                self.nodes.remove(path);
            }
        }
    }

    fn beneath(&self, key: &[u8]) -> impl Iterator<Item = (&Vec<u8>, &Placed)> {
        // All that starts with `key/`; '0' follows '/'.
        let bounds = if key.is_empty() {
            (Bound::Excluded(Vec::new()), Bound::Unbounded)
        } else {
            (Bound::Excluded([key, b"/"].concat()), Bound::Excluded([key, b"0"].concat()))
        };
        self.nodes.range(bounds)
    }

    fn place(&mut self, key: Vec<u8>, node: Node) {
        self.name_bytes += key.len() as u64;
        if let Node::Directory(metadata) = &node {
            self.name_bytes += bytes_of(metadata);
        }
        self.nodes.insert(key, Placed { node, layer: self.layer });
    }

    fn check_names(&self) -> Result<(), ImportError> {
        if self.name_bytes > NAME_BYTES {
            return Err(ImportError::TooLarge { limit: NAME_BYTES, of: "bytes of names and attributes" });
        }
        Ok(())
    }
}

/// A path of a layer from its top: some tools write absolute ones.
fn beneath_top(path: &[u8]) -> &[u8] {
    match path.iter().position(|&byte| byte != b'/') {
        Some(start) => &path[start..],
        None if path.is_empty() => path,
        None => b".",
    }
}

fn bytes_of(metadata: &Metadata) -> u64 {
    metadata.attributes.iter().map(|(name, value)| (name.len() + value.len()) as u64).sum()
}

/// What a directory has that no entry describes.
fn implied() -> Metadata {
    Metadata { mode: 0o755, ..Metadata::default() }
}
