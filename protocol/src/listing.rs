//! The listing of an image: what its archive consists of, without the contents of its files.
//!
//! ```text
//! offset  size  field
//!      0     8  magic "ORRYLST1"
//!      8     4  number of frames, little-endian
//!     12     4  number of objects, little-endian
//!     16   8·n  frames of the archive in order: 4 bytes length, 4 bytes length unpacked, little-endian
//!          32·m  objects: the name of each regular file of the archive in order
//!             …  the skeleton, one zstd frame: the archive with the stored content of each entry taken out
//! ```
//!
//! The listing is an artifact itself, named wherever its image is. With it, a node that has most of an image's files fetches only
//! those frames of the archive that hold the others.

use alloc::vec::Vec;
use core::fmt;

use crate::{artifact::ArtifactRef, chunks::MAX_CHUNK, digest::Digest};

const MAGIC: &[u8; 8] = b"ORRYLST1";
const HEADER_BYTES: usize = 16;
const FRAME_BYTES: usize = 8;
const OBJECT_BYTES: usize = 32;

/// One zstd frame of an archive: a piece that is unpacked without the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Where it begins in the archive, in bytes.
    pub offset: u64,
    /// Its length in bytes, 1 to [`MAX_CHUNK`].
    pub length: u32,
    /// Where what it unpacks to begins in the unpacked archive, in bytes.
    pub start: u64,
    /// How many bytes it unpacks to, 1 to [`MAX_CHUNK`].
    pub unpacked: u32,
}

impl Frame {
    /// Where what it unpacks to ends in the unpacked archive, in bytes.
    pub fn end(&self) -> u64 {
        self.start + u64::from(self.unpacked)
    }
}

/// What an archive consists of. Holding one proves that its frames' lengths are sound and add up to the archive's size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing<'a> {
    frames: Vec<Frame>,
    objects: Vec<Digest>,
    skeleton: &'a [u8],
}

/// Bytes that are not the listing of the archive in question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListingError {
    /// It does not start like a listing.
    NotAListing,
    /// Shorter than it says.
    Truncated,
    /// A frame that is empty or longer than [`MAX_CHUNK`], packed or unpacked.
    BadLength,
    /// The frames' lengths do not add up to the archive's size.
    OtherSize {
        /// What they add up to, in bytes.
        sum: u64,
        /// The archive's size, in bytes.
        size: u64,
    },
}

impl fmt::Display for ListingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAListing => f.write_str("not an image listing"),
            Self::Truncated => f.write_str("image listing is shorter than it says"),
            Self::BadLength => write!(f, "image listing names a frame that is empty or longer than {MAX_CHUNK} bytes"),
            Self::OtherSize { sum, size } => write!(f, "image listing is of {sum} bytes, the archive has {size}"),
        }
    }
}

impl core::error::Error for ListingError {}

impl<'a> Listing<'a> {
    /// The longest listing of an archive of `size` bytes that a reader need accept, in bytes: all archives are longer than what
    /// their listing says of them, but for those of hardly anything.
    pub fn max_bytes(size: u64) -> u64 {
        size.saturating_add(1 << 20)
    }

    /// Reads the listing of the archive `image`.
    ///
    /// # Errors
    /// The bytes are no listing, or that of an archive of another size.
    pub fn parse(bytes: &'a [u8], image: &ArtifactRef) -> Result<Self, ListingError> {
        let (header, rest) = bytes.split_at_checked(HEADER_BYTES).ok_or(ListingError::Truncated)?;
        if !header.starts_with(MAGIC) {
            return Err(ListingError::NotAListing);
        }
        let count = |at: usize, bytes: usize| (number(&header[at..]) as usize).checked_mul(bytes);
        let frames = count(8, FRAME_BYTES).and_then(|length| rest.split_at_checked(length));
        let (frames, rest) = frames.ok_or(ListingError::Truncated)?;
        let objects = count(12, OBJECT_BYTES).and_then(|length| rest.split_at_checked(length));
        let (objects, skeleton) = objects.ok_or(ListingError::Truncated)?;
        let (mut offset, mut start) = (0, 0);
        let mut parsed = Vec::with_capacity(frames.len() / FRAME_BYTES);
        for entry in frames.chunks_exact(FRAME_BYTES) {
            let (length, unpacked) = (number(entry), number(&entry[4..]));
            if ![length, unpacked].iter().all(|length| (1..=MAX_CHUNK).contains(length)) {
                return Err(ListingError::BadLength);
            }
            parsed.push(Frame { offset, length, start, unpacked });
            offset += u64::from(length);
            start += u64::from(unpacked);
        }
        if offset != image.size {
            return Err(ListingError::OtherSize { sum: offset, size: image.size });
        }
        let digest = |bytes: &[u8]| {
            let mut sha256 = [0; OBJECT_BYTES];
            sha256.copy_from_slice(bytes);
            Digest(sha256)
        };
        Ok(Self { frames: parsed, objects: objects.chunks_exact(OBJECT_BYTES).map(digest).collect(), skeleton })
    }

    /// The listing as bytes, of frames given by their length packed and unpacked.
    ///
    /// # Errors
    /// A length is out of range, or there are more than 2^32 of something.
    pub fn encode(frames: &[(u32, u32)], objects: &[Digest], skeleton: &[u8]) -> Result<Vec<u8>, ListingError> {
        let mut out = Vec::with_capacity(
            HEADER_BYTES + frames.len() * FRAME_BYTES + objects.len() * OBJECT_BYTES + skeleton.len(),
        );
        out.extend_from_slice(MAGIC);
        for count in [frames.len(), objects.len()] {
            out.extend_from_slice(&u32::try_from(count).map_err(|_| ListingError::BadLength)?.to_le_bytes());
        }
        for length in frames.iter().flat_map(|(length, unpacked)| [length, unpacked]) {
            if !(1..=MAX_CHUNK).contains(length) {
                return Err(ListingError::BadLength);
            }
            out.extend_from_slice(&length.to_le_bytes());
        }
        for object in objects {
            out.extend_from_slice(&object.0);
        }
        out.extend_from_slice(skeleton);
        Ok(out)
    }

    /// The archive's frames, in order.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// The objects of the archive's regular files, in order. The same one may be there several times.
    pub fn objects(&self) -> &[Digest] {
        &self.objects
    }

    /// The archive without contents, compressed.
    pub fn skeleton(&self) -> &'a [u8] {
        self.skeleton
    }
}

/// The first four bytes, which must be there, as a number.
fn number(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn image(size: u64) -> ArtifactRef {
        ArtifactRef { sha256: Digest([0; 32]), size }
    }

    fn check(frames: &[(u32, u32)], size: u64, expect: Result<usize, ListingError>) {
        let parsed = Listing::encode(frames, &[Digest([1; 32])], b"rest")
            .and_then(|bytes| Listing::parse(&bytes, &image(size)).map(|listing| listing.frames().len()));
        assert_eq!(parsed, expect);
    }

    #[test]
    fn lengths_must_add_up() {
        check(&[], 0, Ok(0));
        check(&[(3, 30), (4, 1)], 7, Ok(2));
        check(&[(3, 30), (4, 1)], 8, Err(ListingError::OtherSize { sum: 7, size: 8 }));
        check(&[(0, 1)], 0, Err(ListingError::BadLength));
        check(&[(1, 0)], 1, Err(ListingError::BadLength));
        check(&[(1, MAX_CHUNK + 1)], 1, Err(ListingError::BadLength));
        let parse = |bytes: &[u8]| Listing::parse(bytes, &image(0)).map(|_| ());
        assert_eq!(parse(b"ORRYLST1"), Err(ListingError::Truncated));
        assert_eq!(parse(b"ORRYLST2\0\0\0\0\0\0\0\0"), Err(ListingError::NotAListing));
        assert_eq!(parse(b"ORRYLST1\0\0\0\0\x01\0\0\0rest"), Err(ListingError::Truncated));
        assert_eq!(parse(b"ORRYLST1\xff\xff\xff\xff\xff\xff\xff\xff"), Err(ListingError::Truncated));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), frames in 0u32..8) {
            if bytes.len() >= HEADER_BYTES {
                bytes[..8].copy_from_slice(MAGIC);
                bytes[8..12].copy_from_slice(&frames.to_le_bytes());
                bytes[13..16].fill(0);
            }
            let _ = Listing::parse(&bytes, &image(1000));
        }

        #[test]
        fn round_trips(
            frames in proptest::collection::vec((1..=MAX_CHUNK, 1..=MAX_CHUNK), 0..20),
            objects in proptest::collection::vec(any::<[u8; 32]>().prop_map(Digest), 0..20),
            skeleton in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let size = frames.iter().map(|(length, _)| u64::from(*length)).sum();
            let bytes = Listing::encode(&frames, &objects, &skeleton).unwrap();
            let listing = Listing::parse(&bytes, &image(size)).unwrap();
            let again: Vec<_> = listing.frames().iter().map(|frame| (frame.length, frame.unpacked)).collect();
            prop_assert_eq!(again, frames);
            prop_assert_eq!(listing.objects(), objects);
            prop_assert_eq!(listing.skeleton(), skeleton);
            let mut end = 0;
            for frame in listing.frames() {
                prop_assert_eq!(frame.start, end);
                end = frame.end();
            }
        }
    }
}
