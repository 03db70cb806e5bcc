//! Reads images as their users have them, and makes one flat archive of each, which is all that a node knows.
//!
//! A node verifies an archive piece by piece against a signed manifest, and unpacks it. What can be done before is done before,
//! on the operator's machine: layers, whiteouts, digests, gzip and JSON are none of a node's business.
//!
//! What a sliver cannot use is left out and counted: device nodes, since its `/dev` is made when it starts, and extended
//! attributes that mean something to the kernel of a node or to the machine the image was made on. File capabilities and
//! access lists are kept.
//!
//! Not done here: fetching images from registries, and compressing what comes out.

mod container;
mod entries;
mod error;
mod folder;
mod manifest;
mod stream;
mod tree;
mod writer;

use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

use orrery_image_store::{ImportError, Metadata};
use orrery_protocol::RunConfig;
use serde::Serialize;

use crate::{
    container::Container,
    manifest::{LAYOUT, LayerPart, Parts},
    stream::{Compression, Hashing, Part, decompress},
    tree::{Tree, Whiteouts},
};
pub use crate::{entries::Item, error::SourceError};

/// Where an image says how it is to be run. In the tree, so that it goes wherever the image goes, under the same digest and
/// signature, and is there for whoever is in the sliver. A node reads it only for a service that is asked for.
pub const RUN_CONFIG: &str = RunConfig::PATH;

/// In what form an image was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// A tar archive of a file tree.
    Archive,
    /// A file tree in a directory.
    Directory,
    /// An OCI image layout in a directory.
    OciLayout,
    /// One in a tar archive.
    OciArchive,
    /// What `docker save` wrote before it wrote layouts.
    DockerArchive,
}

/// What was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Skipped {
    /// Device nodes, FIFOs and sockets.
    pub devices: u64,
    /// Extended attributes.
    pub attributes: u64,
    /// What a layer has for the tool that made it.
    pub others: u64,
}

/// What is in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Summary {
    /// Regular files, without hard links among them.
    pub files: u64,
    /// Directories, without the top one.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Further names of files.
    pub hard_links: u64,
    /// Content of regular files, in bytes.
    pub bytes: u64,
}

/// An image that was read as a whole; its files' contents are in a temporary file.
#[derive(Debug)]
pub struct Image {
    /// How it was found.
    pub format: Format,
    /// How to run it, if it says so.
    pub run: Option<RunConfig>,
    tree: Tree,
}

/// How to read an image.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// Which one, of a source with several.
    pub tag: Option<&'a str>,
    /// How many bytes it may have, unpacked.
    pub limit: u64,
    /// A folder with that much space.
    pub scratch: &'a Path,
}

impl Image {
    /// Reads a tar archive or directory of a file tree, an OCI image layout as directory or archive, or what `docker save`
    /// wrote; archives plain or compressed with gzip or zstd. What it is, its content says.
    ///
    /// # Errors
    /// When it cannot be read, is none of these, is damaged or hostile, or is not for nodes.
    pub fn read(source: &Path, options: &Options<'_>) -> Result<Self, SourceError> {
        let Options { tag, limit, scratch } = *options;
        let mut tree = Tree::new(scratch, limit).map_err(SourceError::at("making a file in", scratch))?;
        let examining = || SourceError::at("examining", source);
        if std::fs::metadata(source).map_err(examining())?.is_dir() {
            let container = Container::Folder(source.to_owned());
            if container.has(LAYOUT) {
                return Self::stacked(Format::OciLayout, manifest::of_layout(&container, tag)?, tree);
            }
            folder::read(source, &mut tree)?;
            return Self::finished(Format::Directory, None, tree);
        }
        let file = File::open(source).and_then(Part::whole).map_err(SourceError::at("opening", source))?;
        let archive = unpacked(file, options)?;
        let container = Container::archive(archive.clone(), limit)?;
        if container.has(LAYOUT) {
            Self::stacked(Format::OciArchive, manifest::of_layout(&container, tag)?, tree)
        } else if manifest::is_docker(&container)? {
            Self::stacked(Format::DockerArchive, manifest::of_docker(&container, tag)?, tree)
        } else {
            tree.lay(archive, Whiteouts::Kept).map_err(SourceError::within("the archive"))?;
            Self::finished(Format::Archive, None, tree)
        }
    }

    /// Writes the image as a flat tar archive. The same image gives the same bytes.
    ///
    /// # Errors
    /// When writing fails, or a file is too large for one.
    pub fn write_tar(&self, out: &mut impl Write) -> io::Result<()> {
        writer::write(&self.tree, out)
    }

    /// What is in it.
    pub fn summary(&self) -> Summary {
        self.tree.summary()
    }

    /// What was left out.
    pub fn skipped(&self) -> Skipped {
        self.tree.skipped
    }

    /// Lays layers on one another.
    fn stacked(format: Format, parts: Parts, mut tree: Tree) -> Result<Self, SourceError> {
        for LayerPart { name, content, plain: expected } in parts.layers {
            let (_, plain) = decompress(content, &name)?;
            let mut plain = Hashing::new(plain);
            tree.lay(&mut plain, Whiteouts::Obeyed).map_err(SourceError::within(&name))?;
            let found = plain.finish();
            if found != expected {
                let (expected, found) = (expected.to_string(), found.to_string());
                return Err(SourceError::Damaged { name, expected, found });
            }
        }
        let run = Some(parts.run).filter(|run| *run != RunConfig::default());
        Self::finished(format, run, tree)
    }

    /// Notes in the tree how to run it, or finds it there.
    fn finished(format: Format, run: Option<RunConfig>, mut tree: Tree) -> Result<Self, SourceError> {
        let run = match run {
            Some(run) => {
                note(&run, &mut tree).map_err(SourceError::within(RUN_CONFIG))?;
                Some(run)
            }
            None => {
                let there = tree.content(RUN_CONFIG.as_bytes());
                let there = there.map_err(SourceError::at("reading", Path::new(RUN_CONFIG)))?;
                there.map(|part| container::json(part, RUN_CONFIG)).transpose()?
            }
        };
        Ok(Self { format, run, tree })
    }
}

fn note(run: &RunConfig, tree: &mut Tree) -> Result<(), ImportError> {
    let text = serde_json::to_vec_pretty(run).map_err(|error| ImportError::Reading(error.into()))?;
    tree.remove(b".orrery");
    tree.directory(b".orrery", Metadata { mode: 0o755, ..Metadata::default() })?;
    let metadata = Metadata { mode: 0o644, ..Metadata::default() };
    tree.file(RUN_CONFIG.as_bytes(), metadata, text.len() as u64, &mut text.as_slice()).map(drop)
}

/// The archive itself, or a temporary file with what it is when not compressed.
fn unpacked(file: Part, options: &Options<'_>) -> Result<Part, SourceError> {
    const NAME: &str = "the archive";
    let (compression, mut plain) = decompress(file.clone(), NAME)?;
    if compression == Compression::None {
        return Ok(file);
    }
    let making = || SourceError::at("making a file in", options.scratch);
    let mut spool = tempfile::tempfile_in(options.scratch).map_err(making())?;
    let mut buffer = vec![0; 1 << 16];
    let mut size = 0;
    loop {
        let length = plain.read(&mut buffer).map_err(|e| SourceError::within(NAME)(ImportError::Reading(e)))?;
        size += length as u64;
        if size > options.limit {
            return Err(SourceError::within(NAME)(ImportError::TooLarge { limit: options.limit, of: "bytes" }));
        }
        if length == 0 {
            return Part::whole(spool).map_err(making());
        }
        spool.write_all(&buffer[..length]).map_err(SourceError::at("writing a file in", options.scratch))?;
    }
}
