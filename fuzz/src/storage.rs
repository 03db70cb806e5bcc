//! What is read from media and disks.

use std::io::Cursor;

use orrery_installer::probe;
use orrery_protocol::{AREA_BYTES, ArtifactRef, ChunkIndex, Digest, NodeConfig, decode_area, encode_area, find_area};

/// A configuration as text.
pub(crate) fn node_config(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(config) = toml::from_str::<NodeConfig>(text) else { return false };
    let _ = (config.must_enrol(), config.medium_root(), config.trust_root());
    config.check().is_ok()
}

/// A config area: the input is its start, since most of an area is padding. As content, the input has to come back.
pub(crate) fn config_area(bytes: &[u8]) -> bool {
    let mut area = bytes.to_vec();
    area.resize(AREA_BYTES, 0);
    let accepted = decode_area(&area).is_ok();
    let _ = decode_area(bytes);
    let _ = find_area(bytes);
    if let Ok(text) = std::str::from_utf8(bytes)
        && !text.is_empty()
        && let Ok(area) = encode_area(text)
    {
        assert_eq!(decode_area(&area), Ok(text));
    }
    accepted
}

/// A disk that somebody else wrote.
pub(crate) fn disk_probe(bytes: &[u8]) -> bool {
    [512, 4096].map(|sector| probe(&mut Cursor::new(bytes), sector).is_ok()).contains(&true)
}

/// A chunk index; the artifact's size goes before it.
pub(crate) fn chunk_index(bytes: &[u8]) -> bool {
    let Some((size, bytes)) = bytes.split_first_chunk() else { return false };
    let size = u64::from_le_bytes(*size);
    let artifact = ArtifactRef { sha256: Digest([0; 32]), size };
    let Ok(index) = ChunkIndex::parse(bytes, &artifact) else { return false };
    let sum: u64 = index.chunks().iter().map(|chunk| u64::from(chunk.length)).sum();
    assert_eq!(sum, size);
    true
}
