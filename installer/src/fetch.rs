//! Downloading an artifact as a whole: resumed after interruptions, started over after mismatches, and named by its digest
//! only once that is proven.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    ops::Range,
    path::Path,
};

use orrery_protocol::ArtifactRef;

use crate::{
    error::InstallError,
    source::{Observer, Patience, Source, TRIES, TransferError},
    verify::{VerifyError, copy_verified},
};

/// Bytes after which they are made to reach the disk: dirty memory stays bounded, whatever the disk's speed, and so does what
/// a power cut costs.
pub(crate) const PACE: u64 = 8 << 20;

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
            Err(error) => mistrust(source, observer, name, error, &mut tries).map_err(|e| sort(e, name, part))?,
        }
    }
}

/// Whoever served what does not match is passed over; with nobody else to ask, `tries` counts up to the end. Any other error
/// is the last word.
fn mistrust(
    source: &dyn Source,
    observer: &dyn Observer,
    name: &str,
    error: VerifyError,
    tries: &mut u32,
) -> Result<(), VerifyError> {
    let VerifyError::Mismatch(mismatch) = error else { return Err(error) };
    let place = source.place();
    if source.pass_over() {
        observer.note(&format!("{name} {mismatch}; passing over {place}, downloading it again elsewhere"));
    } else if *tries < TRIES {
        observer.note(&format!("{name} {mismatch}; downloading it again ({tries} of {TRIES})"));
        observer.pause(*tries);
        *tries += 1;
    } else {
        return Err(VerifyError::Mismatch(mismatch));
    }
    Ok(())
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
    fn open(&self, _: &ArtifactRef, range: Range<u64>) -> Result<Box<dyn Read>, TransferError> {
        let open = || {
            let mut file = File::open(self.0)?;
            file.seek(SeekFrom::Start(range.start))?;
            Ok(Box::new(file) as Box<dyn Read>)
        };
        open().map_err(|e: io::Error| TransferError { class: "io", message: e.to_string(), transient: false })
    }

    fn place(&self) -> String {
        self.0.display().to_string()
    }

    fn pass_over(&self) -> bool {
        false
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
    let mut tries = 1;
    loop {
        let mut bytes = Vec::new();
        let sink = |chunk: &[u8]| {
            bytes.extend_from_slice(chunk);
            Ok(())
        };
        match download(source, observer, artifact, name, sink) {
            Ok(()) => return Ok(bytes),
            Err(error) => {
                mistrust(source, observer, name, error, &mut tries).map_err(|e| sort(e, name, Path::new("memory")))?
            }
        }
    }
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
    let patience = Patience::new(source, observer, name);
    let reader = Resuming { source, artifact, stream: None, at: 0, patience };
    copy_verified(reader, *artifact, sink, |done| observer.progress(name, done, artifact.size))
}

/// A full disk is better known before the download than after it.
pub(crate) fn reserve(file: &File, size: u64) -> io::Result<()> {
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

pub(crate) fn sort(error: VerifyError, name: &str, path: &Path) -> InstallError {
    match error {
        VerifyError::Read(e) => InstallError::Transfer { name: name.into(), source: TransferError::within(e) },
        VerifyError::Write(e) => InstallError::io("writing", path, e),
        VerifyError::Mismatch(mismatch) => InstallError::Mismatch { name: name.into(), mismatch },
    }
}

/// A stream that is opened again where it broke off.
struct Resuming<'a> {
    source: &'a dyn Source,
    artifact: &'a ArtifactRef,
    stream: Option<Box<dyn Read>>,
    at: u64,
    patience: Patience<'a>,
}

impl Resuming<'_> {
    fn failed(&mut self, error: TransferError) -> io::Result<()> {
        self.stream = None;
        self.patience.failed(error, self.at, self.at).map_err(io::Error::other)
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
                match self.source.open(self.artifact, self.at..size) {
                    Ok(stream) => self.stream = Some(stream),
                    Err(error) => self.failed(error)?,
                }
                continue;
            };
            match stream.read(buf) {
                Ok(0) if self.at < size && !buf.is_empty() => self.failed(TransferError::ended(self.at, size))?,
                Ok(got) => {
                    self.at += got as u64;
                    return Ok(got);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => self.failed(TransferError::within(e))?,
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
        /// Mirrors before the server of the last resort. They share the deeds.
        pub(crate) mirrors: Cell<u32>,
    }

    impl Source for Server {
        fn open(&self, artifact: &ArtifactRef, range: Range<u64>) -> Result<Box<dyn Read>, TransferError> {
            self.requests.borrow_mut().push(range.start);
            let gone = TransferError { class: "http", message: "404".into(), transient: false };
            let content = self.artifacts.iter().find(|a| Digest::of(a) == artifact.sha256).ok_or(gone)?;
            let mut rest = content[range.start as usize..range.end as usize].to_vec();
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

        fn place(&self) -> String {
            format!("server {}", self.mirrors.get())
        }

        fn pass_over(&self) -> bool {
            let left = self.mirrors.get();
            self.mirrors.set(left.saturating_sub(1));
            left > 0
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
