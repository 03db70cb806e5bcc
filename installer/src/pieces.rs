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
    sync::mpsc::{Receiver, sync_channel},
    thread,
};

use orrery_protocol::{ArtifactRef, Chunk, ChunkIndex, Digest, Mismatch, Sha256};

use crate::{
    error::InstallError,
    fetch::{PACE, fetch_bytes, holds, reserve, sync_dir},
    here::{Here, index_path, read_piece},
    source::{Observer, Patience, Source, TRIES, TransferError},
};

/// Pieces that have come and are not proven yet.
const DEPTH: usize = 16;

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
    let writing = |e| InstallError::io("writing", &part, e);
    let mut place = Place { file: &file, dirty: 0, whole: Sha256::new(), hashed: 0 };
    let missing = copy_pieces(here, missing, &mut place).map_err(writing)?;
    let bytes = missing.iter().map(|chunk| u64::from(chunk.length)).sum();
    let run = Transfer { source, observer, wanted, bytes, fetched: 0 }.run(&missing, &mut place);
    // What has arrived is to be there for the next attempt, whatever happened to the rest.
    file.sync_all().map_err(writing)?;
    run?;
    let got = place.digest(artifact.size).map_err(|e| InstallError::io("reading", &part, e))?;
    if got != artifact.sha256 {
        // All its pieces are what the index names: another attempt would end here again.
        let _ = fs::remove_file(&part);
        let mismatch = Mismatch::Content { got, expected: artifact.sha256 };
        return Err(InstallError::Mismatch { name: name.into(), mismatch });
    }
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

/// Where proven pieces are put.
struct Place<'a> {
    file: &'a File,
    /// Bytes that may not have reached the disk.
    dirty: u64,
    /// The digest of the file's first `hashed` bytes, which pieces that come in order need not be read again for.
    whole: Sha256,
    hashed: u64,
}

impl Place<'_> {
    fn put(&mut self, chunk: &Chunk, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, chunk.offset)?;
        if chunk.offset == self.hashed {
            self.whole.update(bytes);
            self.hashed += bytes.len() as u64;
        }
        self.dirty += bytes.len() as u64;
        if self.dirty >= PACE {
            self.dirty = 0;
            self.file.sync_data()?;
        }
        Ok(())
    }

    /// The digest of the whole, which the manifest names: that of all pieces in order, if the index is right.
    fn digest(mut self, size: u64) -> io::Result<Digest> {
        let mut bytes = vec![0; 1 << 20];
        while self.hashed < size {
            let room = bytes.len().min(usize::try_from(size - self.hashed).unwrap_or(usize::MAX));
            self.file.read_exact_at(&mut bytes[..room], self.hashed)?;
            self.whole.update(&bytes[..room]);
            self.hashed += room as u64;
        }
        Ok(self.whole.finish())
    }
}

/// Copies the pieces that are here; returns those that are not.
fn copy_pieces(here: &Here, missing: Vec<Chunk>, place: &mut Place<'_>) -> io::Result<Vec<Chunk>> {
    let mut left = Vec::new();
    for chunk in missing {
        match here.read(&chunk) {
            Some(bytes) => place.put(&chunk, &bytes)?,
            None => left.push(chunk),
        }
    }
    Ok(left)
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
    /// The file takes no more.
    Unwritable(io::Error),
}

impl Transfer<'_> {
    /// Fetches all of `missing`, in requests of neighbours.
    fn run(&mut self, missing: &[Chunk], place: &mut Place<'_>) -> Result<(), InstallError> {
        let mut patience = Patience::new(self.source, self.observer, self.wanted.name);
        let mut lies = (0, 0);
        let mut rest = missing;
        while !rest.is_empty() {
            let (good, stopped) = self.run_once(neighbours(rest), place);
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
                Err(Stopped::Unwritable(e)) => {
                    return Err(InstallError::io("writing", self.wanted.path.with_extension("part"), e));
                }
            }
        }
        Ok(())
    }

    /// One request; how many of its pieces are in their place, and what ended it before all were.
    ///
    /// A thread of its own proves and writes what has come: receiving and decrypting keep one processor about as busy as
    /// hashing and writing keep another.
    fn run_once(&mut self, run: &[Chunk], place: &mut Place<'_>) -> (usize, Result<(), Stopped>) {
        let (sender, receiver) = sync_channel(DEPTH);
        let before = self.fetched;
        let (good, stopped) = thread::scope(|scope| {
            let prover = scope.spawn(move || prove(run, &receiver, place));
            let received = self.receive(run, |bytes| sender.send(bytes).is_ok());
            drop(sender);
            let panicked = |_| (0, Err(Stopped::Unwritable(io::Error::other("the writer panicked"))));
            let (good, proven) = prover.join().unwrap_or_else(panicked);
            (good, proven.and(received.map_err(Stopped::Transfer)))
        });
        // What came behind a wrong piece does not count.
        self.fetched = before + run[..good].iter().map(|chunk| u64::from(chunk.length)).sum::<u64>();
        (good, stopped)
    }

    /// Hands over the bytes of one piece of `run` after the other, until they are not wanted any more.
    fn receive(&mut self, run: &[Chunk], mut wanted: impl FnMut(Vec<u8>) -> bool) -> Result<(), TransferError> {
        let [first, last] = [&run[0], &run[run.len() - 1]];
        let range = first.offset..last.offset + u64::from(last.length);
        let mut stream = self.source.open(&self.wanted.artifact, range)?;
        for chunk in run {
            let bytes = self.read(&mut *stream, chunk)?;
            if !wanted(bytes) {
                return Ok(());
            }
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

/// Puts the pieces of `run` in their place; how many were right, and what was wrong with the next.
fn prove(run: &[Chunk], received: &Receiver<Vec<u8>>, place: &mut Place<'_>) -> (usize, Result<(), Stopped>) {
    for (good, chunk) in run.iter().enumerate() {
        let Ok(bytes) = received.recv() else { return (good, Ok(())) };
        let got = Digest::of(&bytes);
        if got != chunk.sha256 {
            return (good, Err(Stopped::Lie(got)));
        }
        if let Err(e) = place.put(chunk, &bytes) {
            return (good, Err(Stopped::Unwritable(e)));
        }
    }
    (run.len(), Ok(()))
}

/// The first pieces that stand one behind the other: one request, since each is a round trip.
fn neighbours(pieces: &[Chunk]) -> &[Chunk] {
    let mut end = None;
    let more = pieces.iter().take_while(|chunk| {
        let fits = end.is_none_or(|end| end == chunk.offset);
        end = Some(chunk.offset + u64::from(chunk.length));
        fits
    });
    &pieces[..more.count()]
}

#[cfg(test)]
mod tests;
