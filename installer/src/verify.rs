//! Copying while verifying: one thread receives, another proves and writes.

use std::{
    fmt,
    io::{self, Read},
    sync::mpsc::{Receiver, Sender, channel, sync_channel},
    thread,
};

use orrery_protocol::{ArtifactRef, Mismatch, VerifyingReader};
use thiserror::Error;

/// Bytes handed over at once: enough that neither side waits for the other's overhead.
const CHUNK: usize = 1 << 20;
/// Chunks on their way. With one more in the writer's hands, all the memory a copy takes, whatever its size.
const DEPTH: usize = 4;

/// A `std` reader for code that is generic over `embedded-io`.
pub struct StdRead<R>(pub R);

/// A read error in the terms of `embedded-io`.
#[derive(Debug)]
pub struct ReadError(pub(crate) io::Error);

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for ReadError {}

impl embedded_io::Error for ReadError {
    fn kind(&self) -> embedded_io::ErrorKind {
        embedded_io::ErrorKind::Other
    }
}

impl<R> embedded_io::ErrorType for StdRead<R> {
    type Error = ReadError;
}

impl<R: Read> embedded_io::Read for StdRead<R> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, ReadError> {
        loop {
            match self.0.read(buf) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map_err(ReadError),
            }
        }
    }
}

/// Why a copy is not what it should be.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// The source.
    #[error("reading: {0}")]
    Read(#[source] io::Error),
    /// The destination.
    #[error("writing: {0}")]
    Write(#[source] io::Error),
    /// The content.
    #[error("content {0}")]
    Mismatch(Mismatch),
}

/// Copies `source` to `sink`, and proves at the end that it was the artifact `expected`. What `sink` got is unproven until
/// then. `progress` is told the bytes so far.
///
/// A thread of its own hashes and writes while the caller's reads on: receiving and decrypting keep one processor about as
/// busy as hashing and writing keep another.
///
/// # Errors
/// [`VerifyError`].
pub fn copy_verified(
    source: impl Read,
    expected: ArtifactRef,
    mut sink: impl FnMut(&[u8]) -> io::Result<()> + Send,
    mut progress: impl FnMut(u64),
) -> Result<(), VerifyError> {
    let mut source = StdRead(source);
    let chunk = usize::try_from(expected.size).unwrap_or(CHUNK).clamp(1, CHUNK);
    let (full_in, full) = sync_channel(DEPTH);
    let (empty, empty_out) = channel();
    for _ in 0..DEPTH {
        // Fails only without a receiver, which is right here.
        let _ = empty.send(vec![0; chunk]);
    }
    thread::scope(|scope| {
        let writer = scope.spawn(move || {
            let received = Received { full, empty, current: Vec::new(), length: 0, at: 0 };
            let mut reader = VerifyingReader::new(StdRead(received), expected);
            let mut buffer = vec![0; chunk];
            while reader.position() < expected.size {
                match fill(&mut reader, &mut buffer).map_err(|ReadError(e)| VerifyError::Read(e))? {
                    0 => break,
                    length => sink(&buffer[..length]).map_err(VerifyError::Write)?,
                }
            }
            reader.finish().map_err(|ReadError(e)| VerifyError::Read(e))?.map_err(VerifyError::Mismatch)
        });
        // One byte past the named size shows that the source goes on; more of it is nobody's concern.
        let mut left = expected.size.saturating_add(1);
        while left > 0 {
            // Without a writer there is no use in going on; why it went is told below.
            let Ok(mut buffer) = empty_out.recv() else { break };
            let room = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let got = fill(&mut source, &mut buffer[..room]);
            let length = *got.as_ref().unwrap_or(&0);
            let next = got.map(|length| (buffer, length)).map_err(|ReadError(e)| e);
            if full_in.send(next).is_err() || length == 0 {
                break;
            }
            left -= length as u64;
            if left > 0 {
                progress(expected.size - (left - 1));
            }
        }
        drop(full_in);
        writer.join().unwrap_or_else(|_| Err(VerifyError::Write(io::Error::other("the writer panicked"))))
    })
}

/// What the caller's thread has read, on the writer's.
struct Received {
    full: Receiver<io::Result<(Vec<u8>, usize)>>,
    empty: Sender<Vec<u8>>,
    current: Vec<u8>,
    length: usize,
    at: usize,
}

impl Read for Received {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == self.length {
            // A reader that hung up has told of its end.
            let Ok(next) = self.full.recv() else { return Ok(0) };
            let (buffer, length) = next?;
            let used = std::mem::replace(&mut self.current, buffer);
            if !used.is_empty() {
                // The reader may have seen the end already.
                let _ = self.empty.send(used);
            }
            (self.length, self.at) = (length, 0);
        }
        let got = buf.len().min(self.length - self.at);
        buf[..got].copy_from_slice(&self.current[self.at..self.at + got]);
        self.at += got;
        Ok(got)
    }
}

/// Fills `buffer`, except at the source's end.
fn fill(source: &mut impl embedded_io::Read<Error = ReadError>, buffer: &mut [u8]) -> Result<usize, ReadError> {
    let mut length = 0;
    while length < buffer.len() {
        match source.read(&mut buffer[length..])? {
            0 => break,
            got => length += got,
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use orrery_protocol::Digest;

    use super::*;

    fn check(content: &[u8], named: &[u8], expect: &str) {
        let expected = ArtifactRef { sha256: Digest::of(named), size: named.len() as u64 };
        let mut copy = Vec::new();
        let mut told = Vec::new();
        let sink = |bytes: &[u8]| {
            copy.extend_from_slice(bytes);
            Ok(())
        };
        let result = match copy_verified(content, expected, sink, |done| told.push(done)) {
            Ok(()) => "ok",
            Err(VerifyError::Mismatch(Mismatch::Short { .. })) => "short",
            Err(VerifyError::Mismatch(Mismatch::Long { .. })) => "long",
            Err(VerifyError::Mismatch(Mismatch::Content { .. })) => "content",
            Err(_) => "io",
        };
        assert_eq!(result, expect);
        assert_eq!(copy, content[..content.len().min(named.len())]);
        assert!(told.is_sorted_by(|a, b| a < b), "{told:?}");
        if expect == "ok" && !content.is_empty() {
            assert_eq!(told.last(), Some(&expected.size));
        }
    }

    #[test]
    fn copies_are_proven() {
        let big = vec![7; 3 * CHUNK + 5];
        check(&big, &big, "ok");
        check(&big[..2 * CHUNK], &big[..2 * CHUNK], "ok");
        check(b"", b"", "ok");
        check(b"", &big, "short");
        check(&big[1..], &big, "short");
        check(b"hello!", b"hello", "long");
        check(b"jello", b"hello", "content");
    }

    /// Gives its bytes one at a time, and then breaks.
    struct Breaking(u8);

    impl Read for Breaking {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::ConnectionReset)?;
            buf[0] = self.0;
            Ok(1)
        }
    }

    #[test]
    fn a_failing_source_is_told_from_one_that_ends() {
        let expected = ArtifactRef { sha256: Digest::of(b""), size: 10 };
        let result = copy_verified(Breaking(5), expected, |_| Ok(()), |_| {});
        assert!(matches!(result, Err(VerifyError::Read(e)) if e.kind() == io::ErrorKind::ConnectionReset));
    }

    #[test]
    fn a_failing_destination_ends_the_copy() {
        let content = vec![1; 20 * CHUNK];
        let expected = ArtifactRef { sha256: Digest::of(&content), size: content.len() as u64 };
        let full = |_: &[u8]| Err(io::ErrorKind::StorageFull.into());
        let result = copy_verified(&content[..], expected, full, |_| {});
        assert!(matches!(result, Err(VerifyError::Write(e)) if e.kind() == io::ErrorKind::StorageFull));
    }
}
