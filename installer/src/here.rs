//! Pieces of artifacts that are on this machine already.

use std::{
    collections::HashMap,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use orrery_protocol::{ArtifactRef, Chunk, ChunkIndex, Digest};

use crate::{installed::Slot, layout::slot_file};

/// Where a downloaded file's chunk index is kept, for the day when a later release shares pieces with it.
pub(crate) fn index_path(file: &Path) -> PathBuf {
    file.with_extension("chunks")
}

/// Pieces of files that have their index beside them. Neither is proven: what is read is compared with the digest that the
/// signed index names, so a wrong index only costs a download.
#[derive(Debug, Default)]
pub(crate) struct Here {
    files: Vec<File>,
    pieces: HashMap<Digest, (usize, Chunk)>,
}

impl Here {
    /// The pieces of what is installed: both slots, and every reference image on the data partition.
    pub(crate) fn installed(boot: &Path, images: &Path) -> Self {
        let mut here = Self::default();
        for slot in [Slot::A, Slot::B] {
            for name in ["kernel", "nodeos"] {
                here.add(&slot_file(boot, slot, name));
            }
        }
        for entry in fs::read_dir(images).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_none() {
                here.add(&path);
            }
        }
        here
    }

    /// Adds the pieces of `path`. A file without a usable index has none.
    fn add(&mut self, path: &Path) {
        let Ok(file) = File::open(path) else { return };
        let Ok(size) = file.metadata().map(|m| m.len()) else { return };
        let index = index_path(path);
        if fs::metadata(&index).map_or(true, |m| m.len() > ChunkIndex::max_bytes(size)) {
            return;
        }
        let Ok(bytes) = fs::read(&index) else { return };
        let Ok(index) = ChunkIndex::parse(&bytes, &ArtifactRef { sha256: Digest([0; 32]), size }) else { return };
        let number = self.files.len();
        self.files.push(file);
        self.pieces.extend(index.chunks().iter().map(|chunk| (chunk.sha256, (number, *chunk))));
    }

    /// The bytes of `chunk`, proven, if they are here.
    pub(crate) fn read(&self, chunk: &Chunk) -> Option<Vec<u8>> {
        let (file, place) = self.pieces.get(&chunk.sha256)?;
        if place.length != chunk.length {
            return None;
        }
        read_piece(&self.files[*file], place)
    }
}

/// The bytes that `file` has where `chunk` stands, if they are the chunk's.
pub(crate) fn read_piece(file: &File, chunk: &Chunk) -> Option<Vec<u8>> {
    let mut bytes = vec![0; chunk.length as usize];
    file.read_exact_at(&mut bytes, chunk.offset).ok()?;
    (Digest::of(&bytes) == chunk.sha256).then_some(bytes)
}
