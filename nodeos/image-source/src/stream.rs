//! Streams: parts of files, digests, decompression.

use std::{
    fs::File,
    io::{self, BufReader, Cursor, Read},
    os::unix::fs::FileExt,
    sync::Arc,
};

use flate2::bufread::MultiGzDecoder;
use orrery_protocol::{Digest, Sha256};

use crate::SourceError;

/// The binary logarithm of the most history, in bytes, that a frame may ask the decoder to keep.
const ZSTD_WINDOW_LOG: u32 = 27;

/// Part of a file. Any number may read one file at a time.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) file: Arc<File>,
    pub(crate) at: u64,
    /// Bytes that are left.
    pub(crate) size: u64,
}

impl Part {
    /// All of a file.
    pub(crate) fn whole(file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), at: 0, size })
    }

    /// What its content's digest is.
    pub(crate) fn digest(&self) -> io::Result<Digest> {
        let mut hashing = Hashing::new(self.clone());
        io::copy(&mut hashing, &mut io::sink())?;
        Ok(hashing.finish())
    }
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.size).map_or(buffer.len(), |left| left.min(buffer.len()));
        let length = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += length as u64;
        self.size -= length as u64;
        Ok(length)
    }
}

/// Hashes what is read.
pub(crate) struct Hashing<R> {
    reader: R,
    hasher: Sha256,
}

impl<R> Hashing<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { reader, hasher: Sha256::new() }
    }

    pub(crate) fn finish(self) -> Digest {
        self.hasher.finish()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.reader.read(buffer)?;
        self.hasher.update(&buffer[..length]);
        Ok(length)
    }
}

/// How a stream is compressed, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
    /// One that is not read here.
    Other(&'static str),
}

impl Compression {
    /// Of a stream that starts with these bytes (RFC 1952; RFC 8878, section 3.1.1).
    fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', ..] => Self::Other("xz"),
            [b'B', b'Z', b'h', ..] => Self::Other("bzip2"),
            _ => Self::None,
        }
    }
}

/// What a stream is when not compressed, and how it was. Its first bytes decide, not what it is called: media types are often
/// wrong. `name` is for messages.
pub(crate) fn decompress<'a>(
    mut stream: impl Read + 'a,
    name: &str,
) -> Result<(Compression, Box<dyn Read + 'a>), SourceError> {
    let reading = |source| SourceError::Archive {
        name: name.to_owned(),
        source: orrery_image_store::ImportError::Reading(source),
    };
    let mut start = Vec::new();
    stream.by_ref().take(4).read_to_end(&mut start).map_err(reading)?;
    let compression = Compression::of(&start);
    let stream = BufReader::with_capacity(1 << 16, Cursor::new(start).chain(stream));
    let plain: Box<dyn Read> = match compression {
        Compression::None => Box::new(stream),
        // Of any number of members: some tools compress in parallel, or piece by piece.
        Compression::Gzip => Box::new(BufReader::with_capacity(1 << 16, MultiGzDecoder::new(stream))),
        Compression::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(stream).map_err(reading)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(reading)?;
            Box::new(BufReader::with_capacity(1 << 16, decoder))
        }
        Compression::Other(compression) => {
            return Err(SourceError::Compression { name: name.to_owned(), compression });
        }
    };
    Ok((compression, plain))
}
