//! Copying while verifying, reading and writing at the same time.

use std::{
    fmt,
    io::{self, Read},
    sync::mpsc::{channel, sync_channel},
    thread,
};

use embedded_io::Read as _;
use orrery_protocol::{ArtifactRef, Mismatch, VerifyingReader};
use thiserror::Error;

/// Bytes handed over at once: enough that neither side waits for the other's overhead.
const CHUNK: usize = 1 << 20;
/// Chunks on their way. Together with [`CHUNK`] all the memory a copy takes, whatever its size.
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

/// Copies `source` to `sink`, which is called on a thread of its own with one chunk after the other, and proves at the end that
/// it was the artifact `expected`. What `sink` got is unproven until then. `progress` is told the bytes so far.
///
/// # Errors
/// [`VerifyError`].
pub fn copy_verified(
    source: impl Read,
    expected: ArtifactRef,
    mut sink: impl FnMut(&[u8]) -> io::Result<()> + Send,
    mut progress: impl FnMut(u64),
) -> Result<(), VerifyError> {
    let mut reader = VerifyingReader::new(StdRead(source), expected);
    let chunk = usize::try_from(expected.size).unwrap_or(CHUNK).clamp(1, CHUNK);
    let (full_in, full_out) = sync_channel::<(Vec<u8>, usize)>(DEPTH);
    let (empty_in, empty_out) = channel();
    for _ in 0..DEPTH {
        // Fails only without a receiver, which is right here.
        let _ = empty_in.send(vec![0; chunk]);
    }
    thread::scope(|scope| {
        let writer = scope.spawn(move || {
            for (buffer, length) in full_out {
                sink(&buffer[..length])?;
                // The reader may have seen the end already.
                let _ = empty_in.send(buffer);
            }
            Ok(())
        });
        let mut read = || {
            while reader.position() < expected.size {
                // Without a writer there is no use in going on; why it went is told below.
                let Ok(mut buffer) = empty_out.recv() else { break };
                let mut length = 0;
                while length < buffer.len() {
                    match reader.read(&mut buffer[length..])? {
                        0 => break,
                        got => length += got,
                    }
                }
                if length == 0 || full_in.send((buffer, length)).is_err() {
                    break;
                }
                progress(reader.position());
            }
            Ok(())
        };
        let read = read();
        drop(full_in);
        let written = writer.join().unwrap_or_else(|_| Err(io::Error::other("the writer panicked")));
        written.map_err(VerifyError::Write)?;
        read.map_err(|ReadError(e)| VerifyError::Read(e))?;
        reader.finish().map_err(|ReadError(e)| VerifyError::Read(e))?.map_err(VerifyError::Mismatch)
    })
}

#[cfg(test)]
mod tests {
    use orrery_protocol::Digest;

    use super::*;

    fn check(content: &[u8], named: &[u8], expect: &str) {
        let expected = ArtifactRef { sha256: Digest::of(named), size: named.len() as u64 };
        let mut copy = Vec::new();
        let sink = |bytes: &[u8]| {
            copy.extend_from_slice(bytes);
            Ok(())
        };
        let result = match copy_verified(content, expected, sink, |_| {}) {
            Ok(()) => "ok",
            Err(VerifyError::Mismatch(Mismatch::Short { .. })) => "short",
            Err(VerifyError::Mismatch(Mismatch::Long { .. })) => "long",
            Err(VerifyError::Mismatch(Mismatch::Content { .. })) => "content",
            Err(_) => "io",
        };
        assert_eq!(result, expect);
        assert_eq!(copy, content[..content.len().min(named.len())]);
    }

    #[test]
    fn copies_are_proven() {
        let big = vec![7; 3 * CHUNK + 5];
        check(&big, &big, "ok");
        check(b"", b"", "ok");
        check(&big[1..], &big, "short");
        check(b"hello!", b"hello", "long");
        check(b"jello", b"hello", "content");
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
