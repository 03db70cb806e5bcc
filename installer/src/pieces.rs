//! Downloading an artifact piece by piece, by its chunk index.
//!
//! Each piece is proven before it counts, wherever it came from: the file that an earlier attempt left behind, other files of
//! this machine, or the network. So a download goes on where it stopped, even across a power cut; nothing that is here
//! moves again; and a mirror that lies is found out within one piece.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::FileExt,
    path::Path,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread,
};

use orrery_protocol::{ArtifactRef, Chunk, ChunkIndex, Digest, Mismatch};

use crate::{
    error::InstallError,
    fetch::{PACE, fetch_bytes, holds, reserve, sort, sync_dir},
    here::{Here, index_path, read_piece},
    source::{Observer, Patience, Source, TRIES, TransferError},
    verify::{VerifyError, copy_verified},
};

/// The most that one request asks for, in bytes: many pieces, since each request is a round trip, but not so much that giving
/// up a connection in the middle wastes a slow line.
const RUN: u64 = 4 << 20;
/// Pieces on their way to the disk.
const DEPTH: usize = 4;

/// An artifact to download, and where to.
pub(crate) struct Wanted<'a> {
    pub(crate) artifact: ArtifactRef,
    /// Its chunk index.
    pub(crate) chunks: ArtifactRef,
    /// For people.
    pub(crate) name: &'a str,
    pub(crate) path: &'a Path,
}

/// What came over the network, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) struct Fetched(pub(crate) u64);

/// Downloads what is `wanted`, whose file appears only when its content is proven and on the disk.
///
/// # Errors
/// [`InstallError`]; interruptions have then been retried. What has arrived is kept for the next attempt.
pub(crate) fn fetch_pieces(
    source: &dyn Source,
    observer: &dyn Observer,
    wanted: &Wanted<'_>,
    here: &Here,
) -> Result<Fetched, InstallError> {
    let Wanted { artifact, name, path, .. } = *wanted;
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir).map_err(|e| InstallError::io("creating", dir, e))?;
    let (index, index_bytes) = index(source, observer, wanted)?;
    let part = path.with_extension("part");
    if path.exists() {
        // It is something else, or damaged; most of its pieces may be good.
        fs::rename(path, &part).map_err(|e| InstallError::io("renaming", path, e))?;
    }
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&part);
    let file = file.map_err(|e| InstallError::io("creating", &part, e))?;
    let earlier = file.metadata().map_err(|e| InstallError::io("reading", &part, e))?.len() > 0;
    if let Err(error) = size(&file, artifact.size) {
        // Space that is not enough for this is enough for something else. That it cannot be removed is not the news.
        let _ = fs::remove_file(&part);
        return Err(InstallError::io("reserving space for", &part, error));
    }
    let lacks = |chunk: &&Chunk| !earlier || read_piece(&file, chunk).is_none();
    let missing: Vec<Chunk> = index.chunks().iter().filter(lacks).copied().collect();
    let missing = thread_writer(&file, |disk| copy_pieces(here, missing, disk))
        .map_err(|e| InstallError::io("writing", &part, e))?;
    let bytes = missing.iter().map(|chunk| u64::from(chunk.length)).sum();
    let mut transfer = Transfer { source, observer, wanted, bytes, fetched: 0 };
    let run = thread_writer(&file, |disk| transfer.run(&missing, disk));
    let run = run.map_err(|e| InstallError::io("writing", &part, e))?;
    // What has arrived is to be there for the next attempt, whatever happened to the rest.
    file.sync_all().map_err(|e| InstallError::io("writing", &part, e))?;
    run?;
    prove(&part, &artifact, name)?;
    fs::rename(&part, path).map_err(|e| InstallError::io("renaming", &part, e))?;
    sync_dir(dir)?;
    let moved = index_bytes + bytes;
    if bytes < artifact.size {
        observer.note(&format!("{name}: {} of {} MiB fetched, the rest was here", mib(moved), mib(artifact.size)));
    }
    Ok(Fetched(moved))
}

fn mib(bytes: u64) -> String {
    #[allow(clippy::cast_precision_loss)]
    let mib = bytes as f64 / f64::from(1 << 20);
    format!("{mib:.1}")
}

/// The index, from the file beside the artifact's or from the network; and how many bytes the latter moved.
fn index(source: &dyn Source, observer: &dyn Observer, wanted: &Wanted<'_>) -> Result<(ChunkIndex, u64), InstallError> {
    let Wanted { artifact, chunks, name, path } = wanted;
    let damaged = |error| InstallError::Index { name: (*name).into(), error };
    if chunks.size > ChunkIndex::max_bytes(artifact.size) {
        return Err(InstallError::IndexTooLong { name: (*name).into(), size: chunks.size });
    }
    let beside = index_path(path);
    if holds(&beside, chunks) {
        let bytes = fs::read(&beside).map_err(|e| InstallError::io("reading", &beside, e))?;
        return Ok((ChunkIndex::parse(&bytes, artifact).map_err(damaged)?, 0));
    }
    let bytes = fetch_bytes(source, observer, chunks, &format!("{name} index"))?;
    let index = ChunkIndex::parse(&bytes, artifact).map_err(damaged)?;
    fs::write(&beside, &bytes)
        .and_then(|()| File::open(&beside)?.sync_all())
        .map_err(|e| InstallError::io("writing", &beside, e))?;
    Ok((index, chunks.size))
}

/// Gives `file` exactly this size, with the space for it.
fn size(file: &File, bytes: u64) -> io::Result<()> {
    if file.metadata()?.len() > bytes {
        file.set_len(bytes)?;
    }
    reserve(file, bytes)?;
    file.set_len(bytes)
}

/// The digest of the whole, which the manifest names: that of all pieces in order, if the index is right.
fn prove(part: &Path, artifact: &ArtifactRef, name: &str) -> Result<(), InstallError> {
    let file = File::open(part).map_err(|e| InstallError::io("reading", part, e))?;
    let proven = copy_verified(file, *artifact, |_| Ok(()), |_| {});
    if matches!(proven, Err(VerifyError::Mismatch(_))) {
        // All its pieces are what the index names: another attempt would end here again.
        let _ = fs::remove_file(part);
    }
    proven.map_err(|error| match error {
        VerifyError::Read(e) => InstallError::io("reading", part, e),
        other => sort(other, name, part),
    })
}

/// A piece on its way to its place in the file.
type Piece = (u64, Vec<u8>);

/// Runs `produce`, whose pieces a thread of its own writes meanwhile. The error is the file's, whatever `produce` returned.
fn thread_writer<T>(file: &File, produce: impl FnOnce(&SyncSender<Piece>) -> T) -> io::Result<T> {
    let (sender, receiver) = sync_channel(DEPTH);
    thread::scope(|scope| {
        let writer = scope.spawn(move || write(file, &receiver));
        let produced = produce(&sender);
        drop(sender);
        writer.join().unwrap_or_else(|_| Err(io::Error::other("the writer panicked")))?;
        Ok(produced)
    })
}

fn write(file: &File, pieces: &Receiver<Piece>) -> io::Result<()> {
    let mut dirty = 0;
    for (offset, bytes) in pieces {
        file.write_all_at(&bytes, offset)?;
        dirty += bytes.len() as u64;
        if dirty >= PACE {
            dirty = 0;
            file.sync_data()?;
        }
    }
    Ok(())
}

/// Copies the pieces that are here; returns those that are not.
fn copy_pieces(here: &Here, missing: Vec<Chunk>, disk: &SyncSender<Piece>) -> Vec<Chunk> {
    let copied = |chunk: &Chunk| here.read(chunk).is_some_and(|bytes| disk.send((chunk.offset, bytes)).is_ok());
    missing.into_iter().filter(|chunk| !copied(chunk)).collect()
}

/// Pieces coming over the network.
struct Transfer<'a> {
    source: &'a dyn Source,
    observer: &'a dyn Observer,
    wanted: &'a Wanted<'a>,
    /// All that is to come, in bytes.
    bytes: u64,
    /// What has come.
    fetched: u64,
}

/// Why a run ended early.
enum Stopped {
    Transfer(TransferError),
    /// The piece is another, with this digest.
    Lie(Digest),
    /// The file takes no more; its own error tells why.
    Unwritable,
}

impl Transfer<'_> {
    /// Fetches all of `missing`, in requests of neighbours.
    fn run(&mut self, missing: &[Chunk], disk: &SyncSender<Piece>) -> Result<(), InstallError> {
        let mut patience = Patience::new(self.source, self.observer, self.wanted.name);
        let mut lies = (0, 0);
        let mut rest = missing;
        while !rest.is_empty() {
            let mut good = 0;
            let stopped = self.run_once(neighbours(rest), disk, &mut good);
            rest = &rest[good..];
            match stopped {
                Ok(()) => {}
                Err(Stopped::Transfer(source)) => {
                    let at = rest.first().map_or(self.wanted.artifact.size, |chunk| chunk.offset);
                    patience
                        .failed(source, at, self.fetched)
                        .map_err(|source| InstallError::Transfer { name: self.wanted.name.into(), source })?;
                }
                Err(Stopped::Lie(got)) => self.mistrust(&rest[0], got, &mut lies)?,
                Err(Stopped::Unwritable) => return Ok(()),
            }
        }
        Ok(())
    }

    /// One request; `good` counts the pieces of `run` that have come.
    fn run_once(&mut self, run: &[Chunk], disk: &SyncSender<Piece>, good: &mut usize) -> Result<(), Stopped> {
        let [first, last] = [&run[0], &run[run.len() - 1]];
        let range = first.offset..last.offset + u64::from(last.length);
        let mut stream = self.source.open(&self.wanted.artifact, range).map_err(Stopped::Transfer)?;
        for chunk in run {
            let bytes = self.read(&mut *stream, chunk).map_err(Stopped::Transfer)?;
            let got = Digest::of(&bytes);
            if got != chunk.sha256 {
                return Err(Stopped::Lie(got));
            }
            disk.send((chunk.offset, bytes)).map_err(|_| Stopped::Unwritable)?;
            *good += 1;
            self.fetched += u64::from(chunk.length);
            self.observer.progress(self.wanted.name, self.fetched, self.bytes);
        }
        // Only a connection whose answer was read to its end serves the next request. Whatever comes now is of no interest.
        let _ = stream.read(&mut [0]);
        Ok(())
    }

    fn read(&self, stream: &mut dyn Read, chunk: &Chunk) -> Result<Vec<u8>, TransferError> {
        let mut bytes = vec![0; chunk.length as usize];
        let mut got = 0;
        while got < bytes.len() {
            match stream.read(&mut bytes[got..]) {
                Ok(0) => return Err(TransferError::ended(chunk.offset + got as u64, self.wanted.artifact.size)),
                Ok(n) => got += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(TransferError::within(e)),
            }
        }
        Ok(bytes)
    }

    /// Whoever served a wrong piece is passed over; with nobody else to ask, it is asked again a few times. `lies` is where the
    /// last lie was, and how often.
    fn mistrust(&self, chunk: &Chunk, got: Digest, lies: &mut (u64, u32)) -> Result<(), InstallError> {
        let (name, at, place) = (self.wanted.name, chunk.offset, self.source.place());
        let what = format!("{name}: the {} bytes at {at} from {place} are not what the release names", chunk.length);
        if self.source.pass_over() {
            self.observer.note(&format!("{what}; passing over {place}"));
            return Ok(());
        }
        *lies = if lies.0 == at { (at, lies.1 + 1) } else { (at, 1) };
        if lies.1 >= TRIES {
            let mismatch = Mismatch::Content { got, expected: chunk.sha256 };
            return Err(InstallError::Mismatch { name: format!("{name}, {} bytes at {at}", chunk.length), mismatch });
        }
        self.observer.note(&format!("{what}; fetching them again ({} of {TRIES})", lies.1));
        self.observer.pause(lies.1);
        Ok(())
    }
}

/// The first pieces that stand one behind the other, up to [`RUN`].
fn neighbours(pieces: &[Chunk]) -> &[Chunk] {
    let mut bytes = 0;
    let mut end = None;
    let more = pieces.iter().take_while(|chunk| {
        bytes += u64::from(chunk.length);
        let fits = end.is_none_or(|end| end == chunk.offset && bytes <= RUN);
        end = Some(chunk.offset + u64::from(chunk.length));
        fits
    });
    &pieces[..more.count()]
}

#[cfg(test)]
mod tests;
