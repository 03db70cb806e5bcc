//! Making listings of archives, and finding by them what archives hold.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, BufReader, Read, Write},
    os::unix::fs::FileExt,
};

use orrery_protocol::{ArtifactRef, Digest, Listing, MAX_CHUNK};
use zstd::zstd_safe;

use crate::{
    ImportError,
    archive::{Archive, Kind},
};

/// zstd's level for skeletons, which are made once and fetched by every node.
const LEVEL: i32 = 19;
/// For contents, which are compressed while somebody waits.
const CONTENT_LEVEL: i32 = 6;

/// Makes the listing of an archive that consists of zstd frames, each with its unpacked length in its header and no longer than a
/// chunk may be, packed or not. `None`: it is another archive. Unpacked it may have up to `limit` bytes. Same archive, same bytes.
///
/// # Errors
/// The archive is damaged, hostile or too large, or an owner in it is none that slivers have.
pub fn list(archive: &[u8], limit: u64) -> Result<Option<Vec<u8>>, ImportError> {
    let Some(frames) = frames(archive) else { return Ok(None) };
    let unpacked = || zstd::Decoder::new(archive).map_err(ImportError::Reading);
    let (mut objects, mut stored) = (Vec::new(), Vec::new());
    let mut entries = Archive::new(unpacked()?, limit);
    let mut buffer = vec![0; 1 << 16];
    while let Some(mut entry) = entries.next()? {
        entry.check()?;
        stored.push(entry.position..entry.position + entry.stored);
        if entry.kind == Kind::File {
            let mut hasher = entry.metadata.hasher(entry.size);
            loop {
                match entry.content.read(&mut buffer).map_err(ImportError::Reading)? {
                    0 => break,
                    length => hasher.update(&buffer[..length]),
                }
            }
            objects.push(hasher.finish());
        }
    }
    entries.finish()?;
    let skeleton = || -> io::Result<Vec<u8>> {
        let mut plain = zstd::Decoder::new(archive)?;
        let mut out = zstd::Encoder::new(Vec::new(), LEVEL)?;
        let mut at = 0;
        for stored in stored {
            io::copy(&mut (&mut plain).take(stored.start - at), &mut out)?;
            io::copy(&mut (&mut plain).take(stored.end - stored.start), &mut io::sink())?;
            at = stored.end;
        }
        io::copy(&mut plain, &mut out)?;
        out.finish()
    };
    let skeleton = skeleton().map_err(ImportError::Reading)?;
    Listing::encode(&frames, &objects, &skeleton).map(Some).map_err(|e| ImportError::Reading(io::Error::other(e)))
}

/// Whether `listing` is one of the archive, whatever compressed it. Unpacked the archive may have up to `limit` bytes.
///
/// # Errors
/// As for [`list`].
pub fn lists(listing: &Listing<'_>, archive: &[u8], limit: u64) -> Result<bool, ImportError> {
    let Some(made) = list(archive, limit)? else { return Ok(false) };
    let image = ArtifactRef { sha256: Digest::of(archive), size: archive.len() as u64 };
    let made = Listing::parse(&made, &image).map_err(|e| ImportError::Reading(io::Error::other(e)))?;
    if (made.frames(), made.objects()) != (listing.frames(), listing.objects()) {
        return Ok(false);
    }
    // No longer than the right one, however much it unpacks to.
    let right = zstd::decode_all(made.skeleton()).map_err(ImportError::Reading)?;
    let mut found = Vec::new();
    let longest = right.len() as u64 + 1;
    let unpacked = zstd::Decoder::new(listing.skeleton()).and_then(|plain| plain.take(longest).read_to_end(&mut found));
    Ok(unpacked.is_ok() && found == right)
}

/// The lengths of each frame, packed and unpacked.
fn frames(mut archive: &[u8]) -> Option<Vec<(u32, u32)>> {
    let length = |bytes: u64| u32::try_from(bytes).ok().filter(|length| (1..=MAX_CHUNK).contains(length));
    let mut frames = Vec::new();
    while !archive.is_empty() {
        let packed = zstd_safe::find_frame_compressed_size(archive).ok()?;
        let (frame, rest) = archive.split_at_checked(packed)?;
        let unpacked = zstd_safe::get_frame_content_size(frame).ok()??;
        frames.push((length(packed as u64)?, length(unpacked)?));
        archive = rest;
    }
    Some(frames)
}

/// The listed archive, whose entries have no content.
pub(crate) fn skeleton<'a>(
    listing: &Listing<'a>,
    limit: u64,
) -> Result<Archive<zstd::Decoder<'static, BufReader<&'a [u8]>>>, ImportError> {
    Ok(Archive::hollow(zstd::Decoder::new(listing.skeleton()).map_err(ImportError::Reading)?, limit))
}

/// Writes what is stored of some regular files of an archive, one after the other, as one zstd stream: of those with the numbers
/// `wanted`, counted in the archive's order and given in it. Together they may have up to `limit` bytes.
///
/// # Errors
/// [`ImportError::TooLarge`]; the archive cannot be read, is not the listed one, or has no such files; or writing fails.
pub fn write_contents(
    archive: &File,
    listing: &Listing<'_>,
    wanted: &[u32],
    limit: u64,
    out: impl Write,
) -> Result<(), ImportError> {
    let mut out = zstd::Encoder::new(out, CONTENT_LEVEL).map_err(ImportError::Reading)?;
    let mut frames = Frames { archive, listing, unpacked: Vec::new(), current: None };
    let mut left = limit;
    let mut entries = skeleton(listing, u64::MAX)?;
    let mut wanted = wanted.iter().peekable();
    let mut number = 0;
    while wanted.peek().is_some() {
        let Some(entry) = entries.next()? else {
            return Err(ImportError::Reading(io::Error::other("files are wanted that the archive does not have")));
        };
        if entry.kind != Kind::File {
            continue;
        }
        if wanted.next_if_eq(&&number).is_some() {
            left = left.checked_sub(entry.stored).ok_or(ImportError::TooLarge { limit, of: "bytes" })?;
            frames.copy(entry.position, entry.stored, &mut out).map_err(ImportError::Reading)?;
        }
        number += 1;
    }
    out.finish().map(drop).map_err(ImportError::Reading)
}

/// An archive that is unpacked frame by frame.
struct Frames<'a> {
    archive: &'a File,
    listing: &'a Listing<'a>,
    /// What the current frame holds.
    unpacked: Vec<u8>,
    current: Option<usize>,
}

impl Frames<'_> {
    fn copy(&mut self, mut at: u64, mut length: u64, out: &mut impl Write) -> io::Result<()> {
        while length > 0 {
            let frames = self.listing.frames();
            let number = frames.partition_point(|frame| frame.end() <= at);
            let frame = frames.get(number).ok_or(io::ErrorKind::UnexpectedEof)?;
            if self.current != Some(number) {
                let mut packed = vec![0; frame.length as usize];
                self.archive.read_exact_at(&mut packed, frame.offset)?;
                self.unpacked = zstd::bulk::decompress(&packed, frame.unpacked as usize)?;
                if self.unpacked.len() != frame.unpacked as usize {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame is not as long as listed"));
                }
                self.current = Some(number);
            }
            let piece = length.min(frame.end() - at);
            let from = usize::try_from(at - frame.start).expect("frames are short");
            out.write_all(&self.unpacked[from..from + usize::try_from(piece).expect("frames are short")])?;
            at += piece;
            length -= piece;
        }
        Ok(())
    }
}

/// The regular files whose object `lacks`, each object once: number, and how many bytes of it are stored.
pub(crate) fn lacking(
    listing: &Listing<'_>,
    limit: u64,
    mut lacks: impl FnMut(&Digest) -> bool,
) -> Result<Vec<(u32, u64)>, ImportError> {
    let mut seen = HashSet::new();
    let mut lacking = Vec::new();
    let mut objects = (0..).zip(listing.objects());
    let mut entries = skeleton(listing, limit)?;
    while let Some(entry) = entries.next()? {
        entry.check()?;
        if entry.kind == Kind::File
            && let Some((number, id)) = objects.next()
            && seen.insert(id.0)
            && lacks(id)
        {
            lacking.push((number, entry.stored));
        }
    }
    Ok(lacking)
}
