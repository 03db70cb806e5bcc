//! What can be wrong with an image.

use std::{
    io,
    path::{Path, PathBuf},
};

use orrery_image_store::ImportError;

/// Why an image could not be read, or not be written as a flat archive.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A file of this machine.
    #[error("{doing} {}", path.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// An archive that is damaged or hostile, or has what no tree can have.
    #[error("unpacking {name}")]
    Archive {
        /// The layer, or the archive as a whole.
        name: String,
        /// What is wrong with it.
        source: ImportError,
    },
    /// A compression that is not one of those read here.
    #[error("{name} is compressed with {compression}: compress it with gzip or zstd, or not at all")]
    Compression {
        /// The layer, or the archive as a whole.
        name: String,
        /// How it is compressed.
        compression: &'static str,
    },
    /// Something that the image refers to.
    #[error("the image has no {name}: it is incomplete, fetch or save it again")]
    Missing {
        /// Its name in the image.
        name: String,
    },
    /// A description of the image.
    #[error("reading {name} of the image")]
    Json {
        /// Its name in the image.
        name: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// Something longer than anything of its kind.
    #[error("{name} of the image has {size} bytes, more than {limit}")]
    TooLong {
        /// Its name.
        name: String,
        /// How long it is.
        size: u64,
        /// How long it may be.
        limit: u64,
    },
    /// Content that is not what its digest says.
    #[error("{name} of the image is damaged: it should have digest {expected}, and has {found}")]
    Damaged {
        /// Its name in the image.
        name: String,
        /// What refers to it says this.
        expected: String,
        /// And this is so.
        found: String,
    },
    /// A kind of content that is no container image's.
    #[error("the image's {what} has the unsupported type {media_type:?}")]
    Unsupported {
        /// What part of the image it is.
        what: &'static str,
        /// Its media type, digest algorithm or version.
        media_type: String,
    },
    /// No image for the processors and the kernel that nodes have.
    #[error("nodes run images for linux/amd64; this one is for {found}")]
    Platform {
        /// What there is.
        found: String,
    },
    /// Several images, or none of that tag.
    #[error("the source has {}: name one of them with --tag", found.join(", "))]
    Tag {
        /// Tags or digests that there are.
        found: Vec<String>,
    },
    /// Layers that the configuration does not know of, or the other way round.
    #[error("the image has {layers} layers, but its configuration names {named}")]
    Layers {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        named: usize,
    },
}

impl SourceError {
    /// For `map_err`.
    pub(crate) fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, path: path.to_owned(), source }
    }

    /// For `map_err`.
    pub(crate) fn within(name: &str) -> impl FnOnce(ImportError) -> Self {
        move |source| Self::Archive { name: name.to_owned(), source }
    }
}
