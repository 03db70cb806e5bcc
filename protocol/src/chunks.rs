//! The chunk index: an artifact's content as a list of pieces, each with a digest of its own.
//!
//! ```text
//! offset  size  field
//!      0     8  magic "ORRYIDX1"
//!      8     4  number of chunks, little-endian
//!     12  36·n  chunks in order: 32 bytes SHA-256, 4 bytes length, little-endian
//! ```
//!
//! The index is an artifact itself, named by the signed manifest. With it, a reader notices a wrong byte after at most
//! one chunk, goes on where an earlier download stopped, and takes pieces it has already from wherever it has them.

use alloc::vec::Vec;
use core::fmt;

use crate::{artifact::ArtifactRef, digest::Digest};

const MAGIC: &[u8; 8] = b"ORRYIDX1";
const HEADER_BYTES: usize = 12;
const ENTRY_BYTES: usize = 36;

/// The longest chunk, in bytes: what a reader holds in memory before it knows whether to keep it.
pub const MAX_CHUNK: u32 = 1 << 20;

/// One piece of an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// SHA-256 of its bytes as they stand in the artifact.
    pub sha256: Digest,
    /// Where it begins in the artifact, in bytes.
    pub offset: u64,
    /// Its length in bytes, 1 to [`MAX_CHUNK`].
    pub length: u32,
}

/// All pieces of an artifact. Holding one proves that their lengths are sound and add up to the artifact's size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkIndex {
    chunks: Vec<Chunk>,
}

/// Bytes that are not the chunk index of the artifact in question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChunkIndexError {
    /// It does not start like an index.
    NotAnIndex,
    /// Not as long as it says.
    Truncated,
    /// A chunk that is empty or longer than [`MAX_CHUNK`].
    BadLength,
    /// The chunks' lengths do not add up to the artifact's size.
    OtherSize {
        /// What they add up to, in bytes.
        sum: u64,
        /// The artifact's size, in bytes.
        size: u64,
    },
}

impl fmt::Display for ChunkIndexError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnIndex => f.write_str("not a chunk index"),
            Self::Truncated => f.write_str("chunk index has the wrong length"),
            Self::BadLength => write!(f, "chunk index names a chunk that is empty or longer than {MAX_CHUNK} bytes"),
            Self::OtherSize { sum, size } => {
                write!(f, "chunk index is of {sum} bytes, the artifact has {size}")
            }
        }
    }
}

impl core::error::Error for ChunkIndexError {}

impl ChunkIndex {
    /// The longest index of an artifact of `size` bytes that a reader need accept, in bytes: chunks of 4 KiB.
    pub fn max_bytes(size: u64) -> u64 {
        HEADER_BYTES as u64 + (size / 4096 + 1).saturating_mul(ENTRY_BYTES as u64)
    }

    /// Reads the index of `artifact`.
    ///
    /// # Errors
    /// The bytes are no index, or that of an artifact of another size.
    pub fn parse(bytes: &[u8], artifact: &ArtifactRef) -> Result<Self, ChunkIndexError> {
        let (header, entries) = bytes.split_at_checked(HEADER_BYTES).ok_or(ChunkIndexError::Truncated)?;
        if !header.starts_with(MAGIC) {
            return Err(ChunkIndexError::NotAnIndex);
        }
        let count = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        if count.checked_mul(ENTRY_BYTES) != Some(entries.len()) {
            return Err(ChunkIndexError::Truncated);
        }
        let mut offset = 0;
        let mut chunks = Vec::with_capacity(count);
        for entry in entries.chunks_exact(ENTRY_BYTES) {
            let mut sha256 = [0; 32];
            sha256.copy_from_slice(&entry[..32]);
            let length = u32::from_le_bytes([entry[32], entry[33], entry[34], entry[35]]);
            if !(1..=MAX_CHUNK).contains(&length) {
                return Err(ChunkIndexError::BadLength);
            }
            chunks.push(Chunk { sha256: Digest(sha256), offset, length });
            offset += u64::from(length);
        }
        if offset != artifact.size {
            return Err(ChunkIndexError::OtherSize { sum: offset, size: artifact.size });
        }
        Ok(Self { chunks })
    }

    /// The index as bytes, of chunks given by digest and length.
    ///
    /// # Errors
    /// A length is out of range, or there are more than 2^32 chunks.
    pub fn encode(chunks: &[(Digest, u32)]) -> Result<Vec<u8>, ChunkIndexError> {
        let count = u32::try_from(chunks.len()).map_err(|_| ChunkIndexError::BadLength)?;
        let mut out = Vec::with_capacity(HEADER_BYTES + chunks.len() * ENTRY_BYTES);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&count.to_le_bytes());
        for (sha256, length) in chunks {
            if !(1..=MAX_CHUNK).contains(length) {
                return Err(ChunkIndexError::BadLength);
            }
            out.extend_from_slice(&sha256.0);
            out.extend_from_slice(&length.to_le_bytes());
        }
        Ok(out)
    }

    /// The pieces, in the artifact's order.
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(chunks: &[(Digest, u32)], size: u64, expect: Result<usize, ChunkIndexError>) {
        let artifact = ArtifactRef { sha256: Digest([0; 32]), size };
        let parsed = ChunkIndex::encode(chunks).and_then(|bytes| ChunkIndex::parse(&bytes, &artifact));
        assert_eq!(parsed.map(|index| index.chunks().len()), expect);
    }

    #[test]
    fn lengths_must_add_up() {
        let digest = Digest([7; 32]);
        check(&[], 0, Ok(0));
        check(&[(digest, 3), (digest, 4)], 7, Ok(2));
        check(&[(digest, 3), (digest, 4)], 8, Err(ChunkIndexError::OtherSize { sum: 7, size: 8 }));
        check(&[(digest, 0)], 0, Err(ChunkIndexError::BadLength));
        check(&[(digest, MAX_CHUNK + 1)], 7, Err(ChunkIndexError::BadLength));
        let artifact = ArtifactRef { sha256: digest, size: 0 };
        assert_eq!(ChunkIndex::parse(b"ORRYIDX1", &artifact), Err(ChunkIndexError::Truncated));
        assert_eq!(ChunkIndex::parse(b"ORRYIDX2\0\0\0\0", &artifact), Err(ChunkIndexError::NotAnIndex));
        assert_eq!(ChunkIndex::parse(b"ORRYIDX1\x01\0\0\0", &artifact), Err(ChunkIndexError::Truncated));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), count in 0u32..8) {
            if bytes.len() >= HEADER_BYTES {
                bytes[..8].copy_from_slice(MAGIC);
                bytes[8..12].copy_from_slice(&count.to_le_bytes());
            }
            let _ = ChunkIndex::parse(&bytes, &ArtifactRef { sha256: Digest([0; 32]), size: 1000 });
        }

        #[test]
        fn round_trips(lengths in proptest::collection::vec(1..=MAX_CHUNK, 0..20)) {
            let chunks: Vec<_> = lengths.iter().map(|length| (Digest([9; 32]), *length)).collect();
            let size = lengths.iter().map(|length| u64::from(*length)).sum();
            let bytes = ChunkIndex::encode(&chunks).unwrap();
            let index = ChunkIndex::parse(&bytes, &ArtifactRef { sha256: Digest([0; 32]), size }).unwrap();
            let again: Vec<_> = index.chunks().iter().map(|chunk| (chunk.sha256, chunk.length)).collect();
            prop_assert_eq!(again, chunks);
            let offsets: Vec<_> = index.chunks().iter().map(|chunk| chunk.offset).collect();
            prop_assert!(offsets.is_sorted());
            prop_assert_eq!(offsets.first().copied(), (!lengths.is_empty()).then_some(0));
        }
    }
}
