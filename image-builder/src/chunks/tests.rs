use std::collections::BTreeSet;

use orrery_protocol::ArtifactRef;

use super::*;

fn noise(length: usize) -> Vec<u8> {
    let mut state = 7u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

fn pieces(content: &[u8]) -> Vec<(Digest, u32)> {
    let artifact = ArtifactRef { sha256: Digest::of(content), size: content.len() as u64 };
    let index = ChunkIndex::parse(&chunk_index(content), &artifact).unwrap();
    index.chunks().iter().map(|chunk| (chunk.sha256, chunk.length)).collect()
}

#[test]
fn frames_are_the_pieces_of_what_has_them() {
    let content = noise(3 << 20);
    let frames = compress(&cut(&content, ARCHIVE).collect::<Vec<_>>()).unwrap();
    let expect: Vec<_> = frames.iter().map(|frame| (Digest::of(frame), frame.len() as u32)).collect();
    let file = frames.concat();
    assert_eq!(pieces(&file), expect);
    assert!(expect.len() > 6);
    assert_eq!(zstd::decode_all(file.as_slice()).unwrap(), content);
    // One frame that is too long, and no frame at all.
    assert!(pieces(&zstd::encode_all(content.as_slice(), 1).unwrap()).len() > 6);
    assert!(pieces(&content).len() > 6);
    assert_eq!(pieces(b""), []);
}

#[test]
fn an_insertion_changes_the_pieces_beside_it() {
    let old = noise(8 << 20);
    let mut new = old.clone();
    new.splice(4_000_000..4_000_000, *b"some bytes more");
    let (old, new): (BTreeSet<_>, BTreeSet<_>) =
        (pieces(&old).into_iter().collect(), pieces(&new).into_iter().collect());
    assert!(new.difference(&old).count() <= 2, "{} of {}", new.difference(&old).count(), new.len());
}
