//! Downloading an artifact: resumed after interruptions, started over after mismatches, and named by its digest only once
//! that is proven.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

use orrery_protocol::ArtifactRef;
use thiserror::Error;

use crate::{
    error::InstallError,
    verify::{VerifyError, copy_verified},
};

/// A failed transfer, in the words of whoever transfers.
#[derive(Debug, Error)]
#[error("{message}")]
pub struct TransferError {
    /// Its class, for whoever decides about recovery.
    pub class: &'static str,
    /// For people.
    pub message: String,
    /// Whether trying again may help.
    pub transient: bool,
}

/// Where artifacts come from.
pub trait Source {
    /// The content of `artifact` from byte `from` on, unproven. Its read errors may hold a [`TransferError`].
    ///
    /// # Errors
    /// [`TransferError`].
    fn open(&self, artifact: &ArtifactRef, from: u64) -> Result<Box<dyn Read>, TransferError>;
}

/// Who is told, and who waits.
pub trait Observer {
    /// `done` of `total` bytes of `what` have arrived.
    fn progress(&self, what: &str, done: u64, total: u64);
    /// Something worth telling people and central.
    fn note(&self, text: &str);
    /// Waits before a transfer is tried again for the `failures`th time.
    fn pause(&self, failures: u32);
}

/// Transfers that may fail in a row, and downloads that may not match.
const TRIES: u32 = 3;
/// Progress after which a transfer counts as working again.
const PROGRESS: u64 = 1 << 20;
/// Bytes after which they are made to reach the disk: dirty memory stays bounded, whatever the disk's speed.
const PACE: u64 = 16 << 20;

/// Downloads `artifact` to `path`, which appears only when its content is proven and on the disk.
///
/// # Errors
/// [`InstallError`]; interruptions and mismatches have then been retried.
pub fn fetch(
    source: &dyn Source,
    observer: &dyn Observer,
    artifact: &ArtifactRef,
    name: &str,
    path: &Path,
) -> Result<(), InstallError> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir).map_err(|e| InstallError::io("creating", dir, e))?;
    let part = path.with_extension("part");
    let fetched = fetch_part(source, observer, artifact, name, &part)
        .and_then(|()| fs::rename(&part, path).map_err(|e| InstallError::io("renaming", &part, e)));
    if fetched.is_err() {
        // Nobody would ever finish it, and it has all the space reserved. That it cannot be removed is not the news.
        let _ = fs::remove_file(&part);
    }
    fetched?;
    sync_dir(dir)
}

fn fetch_part(
    source: &dyn Source,
    observer: &dyn Observer,
    artifact: &ArtifactRef,
    name: &str,
    part: &Path,
) -> Result<(), InstallError> {
    let mut tries = 1;
    loop {
        let file = File::create(part).map_err(|e| InstallError::io("creating", part, e))?;
        reserve(&file, artifact.size).map_err(|e| InstallError::io("reserving space for", part, e))?;
        match download(source, observer, artifact, name, paced(&file)) {
            Ok(()) => return file.sync_all().map_err(|e| InstallError::io("writing", part, e)),
            Err(VerifyError::Mismatch(mismatch)) if tries < TRIES => {
                observer.note(&format!("{name} {mismatch}; downloading it again ({tries} of {TRIES})"));
                observer.pause(tries);
                tries += 1;
            }
            Err(error) => return Err(sort(error, name, part)),
        }
    }
}

/// Whether `path` holds `artifact`, by its content. What cannot be read does not.
pub(crate) fn holds(path: &Path, artifact: &ArtifactRef) -> bool {
    let Ok(file) = File::open(path) else { return false };
    // Without reading it all, most that differ are known by their size.
    file.metadata().is_ok_and(|m| m.len() == artifact.size)
        && copy_verified(file, *artifact, |_| Ok(()), |_| {}).is_ok()
}

/// A file that may hold what would be downloaded otherwise.
pub(crate) struct Local<'a>(pub(crate) &'a Path);

impl Source for Local<'_> {
    fn open(&self, _: &ArtifactRef, from: u64) -> Result<Box<dyn Read>, TransferError> {
        let open = || {
            let mut file = File::open(self.0)?;
            file.seek(SeekFrom::Start(from))?;
            Ok(Box::new(file) as Box<dyn Read>)
        };
        open().map_err(|e: io::Error| TransferError { class: "io", message: e.to_string(), transient: false })
    }
}

/// Downloads a small `artifact` into memory.
///
/// # Errors
/// As [`fetch`].
pub(crate) fn fetch_bytes(
    source: &dyn Source,
    observer: &dyn Observer,
    artifact: &ArtifactRef,
    name: &str,
) -> Result<Vec<u8>, InstallError> {
    let mut bytes = Vec::new();
    let sink = |chunk: &[u8]| {
        bytes.extend_from_slice(chunk);
        Ok(())
    };
    download(source, observer, artifact, name, sink).map_err(|e| sort(e, name, Path::new("memory")))?;
    Ok(bytes)
}

/// Makes a directory's entries reach the disk.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), InstallError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|e| InstallError::io("writing", dir, e))
}

fn download(
    source: &dyn Source,
    observer: &dyn Observer,
    artifact: &ArtifactRef,
    name: &str,
    sink: impl FnMut(&[u8]) -> io::Result<()> + Send,
) -> Result<(), VerifyError> {
    let reader = Resuming { source, observer, artifact, name, stream: None, at: 0, failures: 0, failed_at: 0 };
    copy_verified(reader, *artifact, sink, |done| observer.progress(name, done, artifact.size))
}

/// A full disk is better known before the download than after it.
fn reserve(file: &File, size: u64) -> io::Result<()> {
    if size == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, size) {
        // Not every file system can.
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
        other => Ok(other?),
    }
}

fn paced(mut file: &File) -> impl FnMut(&[u8]) -> io::Result<()> + Send {
    let mut dirty = 0;
    move |chunk| {
        file.write_all(chunk)?;
        dirty += chunk.len() as u64;
        if dirty >= PACE {
            dirty = 0;
            file.sync_data()?;
        }
        Ok(())
    }
}

fn sort(error: VerifyError, name: &str, path: &Path) -> InstallError {
    match error {
        VerifyError::Read(e) => InstallError::Transfer { name: name.into(), source: transfer(e) },
        VerifyError::Write(e) => InstallError::io("writing", path, e),
        VerifyError::Mismatch(mismatch) => InstallError::Mismatch { name: name.into(), mismatch },
    }
}

/// The transfer error inside a read error.
fn transfer(error: io::Error) -> TransferError {
    match error.downcast::<TransferError>() {
        Ok(inner) => inner,
        Err(other) => TransferError { class: "short-read", message: other.to_string(), transient: true },
    }
}

/// A stream that is opened again where it broke off.
struct Resuming<'a> {
    source: &'a dyn Source,
    observer: &'a dyn Observer,
    artifact: &'a ArtifactRef,
    name: &'a str,
    stream: Option<Box<dyn Read>>,
    at: u64,
    failures: u32,
    failed_at: u64,
}

impl Resuming<'_> {
    fn failed(&mut self, error: TransferError) -> io::Result<()> {
        self.stream = None;
        if self.at >= self.failed_at + PROGRESS {
            self.failures = 0;
        }
        self.failures += 1;
        self.failed_at = self.at;
        if !error.transient || self.failures >= TRIES {
            return Err(io::Error::other(error));
        }
        let Self { name, at, failures, .. } = self;
        self.observer.note(&format!("{name}: {error}; going on from byte {at} ({failures} of {TRIES})"));
        self.observer.pause(*failures);
        Ok(())
    }
}

impl Read for Resuming<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let size = self.artifact.size;
            let Some(stream) = &mut self.stream else {
                // Nothing is left to ask for, and a server need not answer an empty range.
                if self.at >= size && size > 0 {
                    return Ok(0);
                }
                match self.source.open(self.artifact, self.at) {
                    Ok(stream) => self.stream = Some(stream),
                    Err(error) => self.failed(error)?,
                }
                continue;
            };
            match stream.read(buf) {
                Ok(0) if self.at < size && !buf.is_empty() => {
                    let message = format!("the stream ended after {} of {size} bytes", self.at);
                    self.failed(TransferError { class: "short-read", message, transient: true })?;
                }
                Ok(got) => {
                    self.at += got as u64;
                    return Ok(got);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => self.failed(transfer(e))?,
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        cell::{Cell, RefCell},
        collections::VecDeque,
    };

    use orrery_protocol::Digest;

    use super::*;

    /// What a server does with one request.
    #[derive(Debug, Clone, Copy)]
    pub(crate) enum Deed {
        Serve,
        BreakAfter(usize),
        Garble,
        Refuse,
    }

    /// A server with a list of deeds; when that is over, it serves.
    #[derive(Default)]
    pub(crate) struct Server {
        pub(crate) artifacts: Vec<Vec<u8>>,
        pub(crate) deeds: RefCell<VecDeque<Deed>>,
        pub(crate) requests: RefCell<Vec<u64>>,
    }

    impl Source for Server {
        fn open(&self, artifact: &ArtifactRef, from: u64) -> Result<Box<dyn Read>, TransferError> {
            self.requests.borrow_mut().push(from);
            let gone = TransferError { class: "http", message: "404".into(), transient: false };
            let content = self.artifacts.iter().find(|a| Digest::of(a) == artifact.sha256).ok_or(gone)?;
            let mut rest = content[from as usize..].to_vec();
            match self.deeds.borrow_mut().pop_front().unwrap_or(Deed::Serve) {
                Deed::Serve => {}
                Deed::BreakAfter(n) => rest.truncate(n),
                Deed::Garble => rest[0] ^= 1,
                Deed::Refuse => {
                    return Err(TransferError { class: "refused", message: "refused".into(), transient: true });
                }
            }
            Ok(Box::new(io::Cursor::new(rest)))
        }
    }

    #[derive(Default)]
    pub(crate) struct Quiet {
        pub(crate) notes: Cell<usize>,
    }

    impl Observer for Quiet {
        fn progress(&self, _: &str, _: u64, _: u64) {}
        fn note(&self, _: &str) {
            self.notes.set(self.notes.get() + 1);
        }
        fn pause(&self, _: u32) {}
    }

    fn check(deeds: &[Deed], expect: &str, requests: &[u64]) {
        let dir = tempfile::tempdir().unwrap();
        let content = b"0123456789".to_vec();
        let artifact = ArtifactRef { sha256: Digest::of(&content), size: 10 };
        let server = Server {
            artifacts: vec![content.clone()],
            deeds: RefCell::new(deeds.to_vec().into()),
            ..Server::default()
        };
        let path = dir.path().join("new").join("file");
        let result = match fetch(&server, &Quiet::default(), &artifact, "file", &path) {
            Ok(()) => {
                assert_eq!(fs::read(&path).unwrap(), content);
                "ok"
            }
            Err(InstallError::Transfer { source, .. }) => source.class,
            Err(InstallError::Mismatch { .. }) => "mismatch",
            Err(_) => "other",
        };
        assert_eq!(result, expect);
        assert_eq!(path.exists(), expect == "ok");
        assert!(!path.with_extension("part").exists());
        assert_eq!(*server.requests.borrow(), requests);
    }

    #[test]
    fn interruptions_are_resumed_and_mismatches_start_over() {
        use Deed::{BreakAfter, Garble, Refuse, Serve};
        check(&[Serve], "ok", &[0]);
        check(&[Refuse, BreakAfter(4), Serve], "ok", &[0, 0, 4]);
        check(&[BreakAfter(4), BreakAfter(2), Refuse], "refused", &[0, 4, 6]);
        check(&[BreakAfter(0), BreakAfter(0), BreakAfter(0)], "short-read", &[0, 0, 0]);
        check(&[Garble, Serve], "ok", &[0, 0]);
        check(&[Garble, Garble, Garble], "mismatch", &[0, 0, 0]);
    }
}
