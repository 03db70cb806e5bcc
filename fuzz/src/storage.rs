//! What is read from media and disks.

use std::io::Cursor;

use orrery_installer::probe;
use orrery_protocol::{AREA_BYTES, ArtifactRef, ChunkIndex, Digest, NodeConfig, decode_area, encode_area, find_area};

/// A configuration as text.
pub(crate) fn node_config(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(config) = toml::from_str::<NodeConfig>(text)
    {
        let _ = config.check();
        let _ = (config.must_enrol(), config.medium_root(), config.trust_root());
    }
}

/// A config area: the input is its start, since most of an area is padding. As content, the input has to come back.
pub(crate) fn config_area(bytes: &[u8]) {
    let mut area = bytes.to_vec();
    area.resize(AREA_BYTES, 0);
    let _ = decode_area(&area);
    let _ = decode_area(bytes);
    let _ = find_area(bytes);
    if let Ok(text) = std::str::from_utf8(bytes)
        && !text.is_empty()
        && let Ok(area) = encode_area(text)
    {
        assert_eq!(decode_area(&area), Ok(text));
    }
}

/// A disk that somebody else wrote.
pub(crate) fn disk_probe(bytes: &[u8]) {
    for sector in [512, 4096] {
        let _ = probe(&mut Cursor::new(bytes), sector);
    }
}

/// A chunk index; the artifact's size goes before it.
pub(crate) fn chunk_index(bytes: &[u8]) {
    let Some((size, bytes)) = bytes.split_first_chunk() else { return };
    let size = u64::from_le_bytes(*size);
    if let Ok(index) = ChunkIndex::parse(bytes, &ArtifactRef { sha256: Digest([0; 32]), size }) {
        let sum: u64 = index.chunks().iter().map(|chunk| u64::from(chunk.length)).sum();
        assert_eq!(sum, size);
    }
}
