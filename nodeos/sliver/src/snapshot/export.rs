//! A layer as one stream: a tar archive, compressed with Zstandard, whose first entry says what it is
//! (`docs/protocol.md`, "Exports").

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
    path::Path,
};

use orrery_image_store::{
    Metadata,
    archive::{
        Extent,
        write::{What, end, head, pad, stored},
    },
};
use orrery_protocol::{EXPORT_FORMAT, EXPORT_LAYER, EXPORT_MANIFEST, ExportManifest, LayerSize, SnapshotName};
use rustix::fs::{FileType, Stat};

use super::{
    SnapshotError, UPPER, Work,
    error::{Within, refused},
    identity::Range,
    layer::{Deadline, Links, Step, examine, examined, next_part, open, walk},
    now,
};

/// How much is read at once.
const PIECE: usize = 1 << 17;
/// Zstandard's own: more costs a node's processor more than it saves of its line.
const LEVEL: i32 = 3;
/// Parts of one sparse file that are told apart; what comes after is taken as a whole.
const PARTS: usize = 16 << 10;

impl Work<'_> {
    /// Writes a snapshot to `out`, or the sliver as it is, which stands still meanwhile.
    ///
    /// # Errors
    /// When there is no such snapshot, or reading or writing fails; what was written then has no end.
    pub fn export(&self, snapshot: Option<&SnapshotName>, out: impl Write) -> Result<LayerSize, SnapshotError> {
        let record = self.record()?;
        let (layer, _still) = match snapshot {
            Some(name) => (self.layer_of(name)?, None),
            None => (self.directory().join(UPPER), Some(self.hold_still()?)),
        };
        let range = Range(record.id_base());
        let manifest = ExportManifest {
            format: EXPORT_FORMAT,
            image: record.image,
            slice: record.spec.slice,
            snapshot: snapshot.cloned(),
            created: now(),
        };
        let mut out = zstd::Encoder::new(out, LEVEL).map_err(SnapshotError::Writing)?;
        out.include_checksum(true).map_err(SnapshotError::Writing)?;
        let size = write(&manifest, &layer, range, &mut out, &self.deadline)?;
        out.finish().and_then(|mut out| out.flush()).map_err(SnapshotError::Writing)?;
        Ok(size)
    }
}

pub(super) fn write(
    manifest: &ExportManifest,
    layer: &Path,
    range: Range,
    out: &mut impl Write,
    deadline: &Deadline,
) -> Result<LayerSize, SnapshotError> {
    let text = serde_json::to_vec(manifest).map_err(|error| SnapshotError::Writing(error.into()))?;
    let plain = Metadata { mode: 0o644, modified: (manifest.created.cast_signed(), 0), ..Metadata::default() };
    let size = text.len() as u64;
    head(out, EXPORT_MANIFEST.as_bytes(), &plain, What::File { size })
        .and_then(|()| out.write_all(&text))
        .and_then(|()| pad(out, size))
        .map_err(SnapshotError::Writing)?;
    let mut export =
        Export { range, out, deadline, links: Links::default(), size: LayerSize::default(), buffer: vec![0; PIECE] };
    walk(layer, |path, step| export.step(path, step))?;
    let size = export.size;
    end(out).map_err(SnapshotError::Writing)?;
    Ok(size)
}

struct Export<'a, W> {
    range: Range,
    out: &'a mut W,
    deadline: &'a Deadline,
    links: Links,
    size: LayerSize,
    buffer: Vec<u8>,
}

impl<W: Write> Export<'_, W> {
    fn step(&mut self, path: &[u8], step: Step<'_>) -> Result<(), SnapshotError> {
        self.deadline.check()?;
        match step {
            Step::Enter(directory) => {
                let metadata = self.inward(examine(directory, path)?, path)?;
                self.size.files += 1;
                let end: &[u8] = if path.is_empty() { b"" } else { b"/" };
                self.head(&[path, end].concat(), &metadata, What::Directory)
            }
            Step::Leave => Ok(()),
            Step::Leaf(directory, name, stat) => {
                if let Some(first) = self.links.first(path, stat)?.map(named) {
                    return self.head(path, &Metadata::default(), What::HardLink(&first));
                }
                let kind = FileType::from_raw_mode(stat.st_mode);
                match kind {
                    // As tar does: a socket is of no use without whoever listens.
                    FileType::Socket => return Ok(()),
                    FileType::RegularFile => self.file(path, &open(directory, name, path)?, stat)?,
                    FileType::CharacterDevice if stat.st_rdev == 0 => {
                        self.head(path, &Metadata::default(), What::Whiteout)?;
                    }
                    FileType::Symlink => {
                        let target = rustix::fs::readlinkat(directory, name, Vec::new()).within("reading", path)?;
                        let metadata = self.inward(examined(stat), path)?;
                        self.head(path, &metadata, What::Symlink(target.as_bytes()))?;
                    }
                    FileType::Fifo => {
                        let metadata = self.inward(examined(stat), path)?;
                        self.head(path, &metadata, What::Fifo)?;
                    }
                    _ => return Err(refused(path, "it is a device node")),
                }
                self.size.files += 1;
                Ok(())
            }
        }
    }

    fn inward(&self, metadata: Metadata, path: &[u8]) -> Result<Metadata, SnapshotError> {
        self.range.inward(metadata).map_err(|reason| refused(path, reason))
    }

    fn head(&mut self, path: &[u8], metadata: &Metadata, what: What<'_>) -> Result<(), SnapshotError> {
        head(self.out, &named(path), metadata, what).map_err(SnapshotError::Writing)
    }

    fn file(&mut self, path: &[u8], file: &File, stat: &Stat) -> Result<(), SnapshotError> {
        let metadata = self.inward(examine(file, path)?, path)?;
        let size = stat.st_size.cast_unsigned();
        let parts = parts(file, size).within("reading", path)?;
        match parts[..] {
            [Extent { offset: 0, length }] if length == size => self.head(path, &metadata, What::File { size })?,
            [] if size == 0 => self.head(path, &metadata, What::File { size })?,
            _ => self.head(path, &metadata, What::Sparse { size, parts: &parts })?,
        }
        for Extent { offset, length } in &parts {
            let mut at = *offset;
            while at < offset + length {
                self.deadline.check()?;
                let most = usize::try_from(offset + length - at).map_or(PIECE, |left| left.min(PIECE));
                let got = file.read_at(&mut self.buffer[..most], at).within("reading", path)?;
                if got == 0 {
                    return Err(refused(path, "it became shorter while it was read"));
                }
                self.out.write_all(&self.buffer[..got]).map_err(SnapshotError::Writing)?;
                at += got as u64;
            }
        }
        self.size.bytes += stored(&parts);
        pad(self.out, stored(&parts)).map_err(SnapshotError::Writing)
    }
}

/// A path's name in the archive.
fn named(path: &[u8]) -> Vec<u8> {
    [EXPORT_LAYER.as_bytes(), path].concat()
}

/// What is no hole of a file of this size.
fn parts(file: &File, size: u64) -> io::Result<Vec<Extent>> {
    let mut parts = Vec::new();
    let mut at = 0;
    while let Some((start, end)) = next_part(file, at)? {
        let end = if parts.len() + 1 < PARTS { end.min(size) } else { size };
        if start >= end {
            break;
        }
        parts.push(Extent { offset: start, length: end - start });
        at = end;
    }
    Ok(parts)
}
