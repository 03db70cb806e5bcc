//! Artifacts by digest and size, verified while they stream by.

use core::fmt;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Sha256};

/// An artifact as a signed document names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRef {
    /// SHA-256 of the content.
    pub sha256: Digest,
    /// Size in bytes. Checked before the digest, so that an endless body is cut off.
    pub size: u64,
}

/// Reads an artifact through, and proves at its end that it is the one named.
///
/// Bytes handed out before [`VerifyingReader::finish`] are unproven: a caller writes them where nothing will
/// use them until then.
pub struct VerifyingReader<R> {
    inner: R,
    expected: ArtifactRef,
    seen: u64,
    hasher: Sha256,
}

/// What arrived is not what was named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch {
    /// The stream ended early: bytes received.
    Short {
        /// Bytes received.
        got: u64,
        /// Bytes named.
        expected: u64,
    },
    /// The stream goes on after the last named byte.
    Long {
        /// Bytes named.
        expected: u64,
    },
    /// Right length, other content.
    Content {
        /// The digest of what arrived.
        got: Digest,
        /// The digest named.
        expected: Digest,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short { got, expected } => write!(f, "ended after {got} of {expected} bytes"),
            Self::Long { expected } => write!(f, "goes on after its {expected} bytes"),
            Self::Content { got, expected } => write!(f, "has SHA-256 {got}, expected {expected}"),
        }
    }
}

impl core::error::Error for Mismatch {}

impl<R> VerifyingReader<R> {
    /// Reads `inner` as the artifact `expected`.
    pub fn new(inner: R, expected: ArtifactRef) -> Self {
        Self { inner, expected, seen: 0, hasher: Sha256::new() }
    }

    /// Bytes read so far.
    pub fn position(&self) -> u64 {
        self.seen
    }
}

impl<R: embedded_io::Read> VerifyingReader<R> {
    /// Checks what was read against what was named, and that nothing follows.
    ///
    /// # Errors
    /// A read error of the source, or the [`Mismatch`].
    pub fn finish(mut self) -> Result<Result<(), Mismatch>, R::Error> {
        let ArtifactRef { sha256, size } = self.expected;
        if self.seen < size {
            return Ok(Err(Mismatch::Short { got: self.seen, expected: size }));
        }
        if self.inner.read(&mut [0])? != 0 {
            return Ok(Err(Mismatch::Long { expected: size }));
        }
        let got = self.hasher.finish();
        Ok(if got == sha256 { Ok(()) } else { Err(Mismatch::Content { got, expected: sha256 }) })
    }
}

impl<R: embedded_io::ErrorType> embedded_io::ErrorType for VerifyingReader<R> {
    type Error = R::Error;
}

impl<R: embedded_io::Read> embedded_io::Read for VerifyingReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, R::Error> {
        // Never past the named size: what lies behind it is not the artifact's.
        let left = usize::try_from(self.expected.size - self.seen).unwrap_or(usize::MAX);
        let limit = buf.len().min(left);
        let got = self.inner.read(&mut buf[..limit])?;
        self.hasher.update(&buf[..got]);
        self.seen += got as u64;
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use embedded_io::Read;

    use super::*;

    fn check(content: &[u8], named: &[u8], expect: Result<(), Mismatch>) {
        let expected = ArtifactRef { sha256: Digest::of(named), size: named.len() as u64 };
        let mut reader = VerifyingReader::new(content, expected);
        let mut buf = [0; 3];
        while reader.read(&mut buf).unwrap() > 0 {}
        assert_eq!(reader.finish().unwrap(), expect);
    }

    #[test]
    fn content_length_and_end_are_checked() {
        check(b"hello", b"hello", Ok(()));
        check(b"", b"", Ok(()));
        check(b"hell", b"hello", Err(Mismatch::Short { got: 4, expected: 5 }));
        check(b"hello!", b"hello", Err(Mismatch::Long { expected: 5 }));
        let (got, expected) = (Digest::of(b"jello"), Digest::of(b"hello"));
        check(b"jello", b"hello", Err(Mismatch::Content { got, expected }));
    }
}
