//! Artifacts in pieces: how a reference image is compressed, and the chunk index of any file.
//!
//! Pieces are cut where the content says so (FastCDC, Xia et al., 2020), so that what is inserted or removed moves no cut but
//! those beside it: two releases share every piece that did not change.

use std::{
    fs::{self, File},
    io::{self, Write},
    num::NonZero,
    path::Path,
    thread,
};

use fastcdc::v2020::FastCDC;
use orrery_protocol::{ChunkIndex, Digest, MAX_CHUNK};

use crate::{BuildError, archive_order};

/// Least, average and greatest length of a piece of an archive, before compression. Each is a zstd frame that knows nothing of
/// the others: shorter ones make the image longer, longer ones make a small change move more bytes.
const ARCHIVE: [usize; 3] = [32 << 10, 128 << 10, 512 << 10];
/// The same for files that are compressed already.
const FILE: [usize; 3] = [16 << 10, 64 << 10, 256 << 10];
/// zstd's level: releases are built once and fetched by every node.
const LEVEL: i32 = 19;

/// Compresses a tar archive of a Debian tree into `out`, in pieces and with its files in the order of their packages. What comes
/// out is a plain `.tar.zst` to anybody else. Same archive, same bytes.
///
/// # Errors
/// A file cannot be read or written, or is no tar archive.
pub fn compress_image(tar: &Path, out: &Path) -> Result<(), BuildError> {
    let archive = fs::read(tar).map_err(BuildError::reading(tar))?;
    let groups = archive_order::groups(&archive).ok_or_else(|| {
        BuildError::reading(tar)(io::Error::new(io::ErrorKind::InvalidData, "this is no tar archive"))
    })?;
    drop(archive);
    let pieces: Vec<&[u8]> = groups.iter().flat_map(|group| cut(group, ARCHIVE)).collect();
    let frames = compress(&pieces).map_err(BuildError::writing(out))?;
    let write = || {
        let mut file = File::create(out)?;
        frames.iter().try_for_each(|frame| file.write_all(frame))?;
        file.sync_all()
    };
    write().map_err(BuildError::writing(out))
}

fn cut(content: &[u8], [least, average, most]: [usize; 3]) -> impl Iterator<Item = &[u8]> {
    FastCDC::new(content, least, average, most).map(|chunk| &content[chunk.offset..chunk.offset + chunk.length])
}

/// Every piece as a frame of its own, in order. Several threads share the work; they do not change the result.
fn compress(pieces: &[&[u8]]) -> io::Result<Vec<Vec<u8>>> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let share = pieces.len().div_ceil(threads).max(1);
    let one = |pieces: &[&[u8]]| -> io::Result<Vec<_>> {
        let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
        pieces.iter().map(|piece| compressor.compress(piece)).collect()
    };
    thread::scope(|scope| {
        let workers: Vec<_> = pieces.chunks(share).map(|share| scope.spawn(move || one(share))).collect();
        let mut frames = Vec::new();
        for worker in workers {
            frames.extend(worker.join().unwrap_or_else(|_| Err(io::Error::other("a compressing thread panicked")))?);
        }
        Ok(frames)
    })
}

/// The chunk index of `content`: the frames, where it consists of zstd frames that are no longer than a chunk may be; else
/// pieces as the content says.
pub fn chunk_index(content: &[u8]) -> Vec<u8> {
    let pieces = frames(content).unwrap_or_else(|| cut(content, FILE).collect());
    let lengths: Vec<_> = pieces
        .iter()
        .map(|piece| (Digest::of(piece), u32::try_from(piece.len()).expect("a piece is no longer than a chunk may be")))
        .collect();
    ChunkIndex::encode(&lengths).expect("no piece is empty or longer than a chunk may be")
}

fn frames(mut content: &[u8]) -> Option<Vec<&[u8]>> {
    let mut frames = Vec::new();
    while !content.is_empty() {
        let length = zstd::zstd_safe::find_frame_compressed_size(content).ok()?;
        let (frame, rest) = content.split_at_checked(length)?;
        if frame.is_empty() || length > MAX_CHUNK as usize {
            return None;
        }
        frames.push(frame);
        content = rest;
    }
    Some(frames)
}

#[cfg(test)]
mod tests;
