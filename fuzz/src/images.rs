//! What users bring: images in every form, listings of them, and exports of slivers' layers.

use std::{
    fs::File,
    io::{Cursor, Write},
    os::fd::AsRawFd,
    path::Path,
};

use orrery_image_source::{Image, Options, SourceError};
use orrery_image_store::{
    Metadata, Store,
    archive::write::{What, end, head, pad},
    list, write_contents,
};
use orrery_protocol::{ArtifactRef, Digest, ExportManifest, Listing};
use orrery_sliver::fuzzing::reimport;
use rustix::fs::MemfdFlags;
use serde_json::json;
use tempfile::TempDir;

/// Holes cost no input.
const LIMIT: u64 = 256 << 10;
/// What comes out has headers of its own, and holes no more.
const MADE_LIMIT: u64 = 1 << 30;
/// Where files are made, so that no disk is written to.
const SCRATCH: &str = "/dev/shm";

/// A tar archive whose headers have the checksum that they should have: no mutation would get it right.
fn mended(bytes: &[u8]) -> Vec<u8> {
    /// Bytes of a header, where its checksum stands, and where its format.
    const HEADER: usize = 512;
    const CHECKSUM: std::ops::Range<usize> = 148..156;
    const MAGIC: std::ops::Range<usize> = 257..262;
    let mut bytes = bytes.to_vec();
    for header in bytes.chunks_exact_mut(HEADER).filter(|block| &block[MAGIC] == b"ustar") {
        header[CHECKSUM].fill(b' ');
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    bytes
}

fn folder() -> TempDir {
    TempDir::new_in(SCRATCH).expect("there is room")
}

/// A file in memory.
fn file(bytes: &[u8]) -> File {
    let file = rustix::fs::memfd_create("input", MemfdFlags::CLOEXEC).expect("there is room");
    let mut file = File::from(file);
    file.write_all(bytes).expect("there is room");
    file
}

fn read(bytes: &[u8], limit: u64) -> Result<Image, SourceError> {
    let file = file(bytes);
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Image::read(Path::new(&path), &Options { tag: None, limit, scratch: Path::new(SCRATCH) })
}

/// An image in any form, as one file: what is made of it is an image itself, and the same one.
pub(crate) fn image_archive(bytes: &[u8]) -> bool {
    /// What makes an archive something else than a file tree.
    const FORMS: [&str; 2] = ["oci-layout", "manifest.json"];
    let Ok(image) = read(&mended(bytes), LIMIT) else { return false };
    for item in image.items() {
        assert!(item.path.split('/').all(|part| !matches!(part, "" | "." | "..")), "{}", item.path);
    }
    let mut flat = Vec::new();
    image.write_tar(&mut flat).expect("a vector takes it");
    if image.items().any(|item| FORMS.contains(&item.path.as_str())) {
        return true;
    }
    let again = read(&flat, MADE_LIMIT).expect("an archive of ours is one");
    assert_eq!((image.summary(), &image.run), (again.summary(), &again.run));
    let mut twice = Vec::new();
    again.write_tar(&mut twice).expect("a vector takes it");
    assert!(flat == twice, "the same tree gives other bytes");
    true
}

/// The layers of an image, each with its length before it: digests are right, whatever the layers are.
pub(crate) fn image_layers(mut bytes: &[u8]) -> bool {
    let mut archive = Vec::new();
    let mut blob = |content: &[u8]| {
        let digest = Digest::of(content);
        put(&mut archive, &format!("blobs/sha256/{digest}"), content);
        (format!("sha256:{digest}"), content.len())
    };
    let mut layers = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let (layer, rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
        layers.push(blob(&mended(layer)));
        bytes = rest;
    }
    let digests: Vec<_> = layers.iter().map(|(digest, _)| digest).collect();
    let described = |media_type: &str, (digest, size): &(String, usize)| json!({ "mediaType": format!("application/vnd.oci.image.{media_type}"), "digest": digest, "size": size });
    let config = json!({ "os": "linux", "architecture": "amd64", "rootfs": { "diff_ids": digests } });
    let config = blob(config.to_string().as_bytes());
    let layers: Vec<_> = layers.iter().map(|layer| described("layer.v1.tar", layer)).collect();
    let manifest = json!({ "config": described("config.v1+json", &config), "layers": layers });
    let manifest = blob(manifest.to_string().as_bytes());
    let index = json!({ "manifests": [described("manifest.v1+json", &manifest)] });
    put(&mut archive, "index.json", index.to_string().as_bytes());
    put(&mut archive, "oci-layout", b"{}");
    end(&mut archive).expect("a vector takes it");
    image_archive(&archive)
}

fn put(archive: &mut Vec<u8>, name: &str, content: &[u8]) {
    let size = content.len() as u64;
    head(archive, name.as_bytes(), &Metadata::default(), What::File { size }).expect("a vector takes it");
    archive.extend_from_slice(content);
    pad(archive, size).expect("a vector takes it");
}

/// The listing of an image, whose size goes before it, with a skeleton that is not compressed. Contents come of none of its objects.
pub(crate) fn image_listing(bytes: &[u8]) -> bool {
    let Some((size, bytes)) = bytes.split_first_chunk() else { return false };
    let image = ArtifactRef { sha256: Digest([0; 32]), size: u64::from_le_bytes(*size) };
    let Ok(listing) = Listing::parse(bytes, &image) else { return false };
    let frames: Vec<_> = listing.frames().iter().map(|frame| (frame.length, frame.unpacked)).collect();
    assert_eq!(Listing::encode(&frames, listing.objects(), listing.skeleton()).as_deref(), Ok(bytes));
    let Ok(skeleton) = zstd::bulk::compress(&mended(listing.skeleton()), 1) else { return false };
    let listing = Listing::encode(&frames, listing.objects(), &skeleton).expect("what was parsed can be written");
    let listing = Listing::parse(&listing, &image).expect("a listing of ours is one");
    let store = folder();
    let store = Store::open(store.path()).expect("there is room");
    let fetched = store.fetch(&image.sha256, &listing, LIMIT, &mut |_| Ok(Box::new(std::io::empty())));
    let mut out = Vec::new();
    let wanted: Vec<u32> = (0..).zip(listing.objects()).map(|(number, _)| number).collect();
    let written = write_contents(&file(&[]), &listing, &wanted, LIMIT, &mut out);
    assert!(out.len() as u64 <= LIMIT + 1024);
    fetched.is_ok() || written.is_ok()
}

/// An image on its way into a store, by its archive and by its listing: either way it is the same tree, or refused.
pub(crate) fn image_import(bytes: &[u8]) -> bool {
    if bytes.is_empty() {
        // An archive of nothing is one, and has no listing.
        return false;
    }
    let Ok(archive) = zstd::bulk::compress(&mended(bytes), 1) else { return false };
    let image = ArtifactRef { sha256: Digest::of(&archive), size: archive.len() as u64 };
    let (whole, listed) = (folder(), folder());
    let [whole, listed] = [&whole, &listed].map(|folder| Store::open(folder.path()).expect("there is room"));
    let imported = whole.import(archive.as_slice(), &image.sha256, LIMIT);
    let Ok(Some(listing)) = list(&archive, LIMIT) else {
        assert!(imported.is_err(), "an archive without listing is imported");
        return false;
    };
    let listing = Listing::parse(&listing, &image).expect("a listing of ours is one");
    let archive = file(&archive);
    let fetched = listed.fetch(&image.sha256, &listing, LIMIT, &mut |wanted| {
        let mut contents = Vec::new();
        write_contents(&archive, &listing, wanted, LIMIT, &mut contents).map_err(std::io::Error::other)?;
        Ok(Box::new(Cursor::new(contents)))
    });
    match (&imported, &fetched) {
        (Ok(imported), Ok(fetched)) => {
            // What comes is in the store once, however often the image has it.
            assert_eq!(imported.files, fetched.imported.files);
            assert_eq!(
                (imported.directories, imported.symlinks),
                (fetched.imported.directories, fetched.imported.symlinks)
            );
            assert_eq!((imported.hard_links, imported.bytes), (fetched.imported.hard_links, fetched.imported.bytes));
            for store in [&whole, &listed] {
                assert!(store.verify(&image.sha256).is_ok_and(|damaged| damaged.is_empty()));
            }
        }
        (Err(_), Err(_)) => {}
        _ => panic!("by archive: {imported:?}\nby listing: {fetched:?}"),
    }
    // Nobody but root gives files away.
    imported.is_ok() || !rustix::process::geteuid().is_root()
}

/// An export of a sliver, when not compressed: what is imported can be exported, and imported again.
pub(crate) fn sliver_export(bytes: &[u8]) -> bool {
    let import = |bytes: &[u8], limit| {
        let folder = folder();
        let mut again = Vec::new();
        let found: (ExportManifest, _) = reimport(bytes, limit, folder.path(), &mut again).ok()?;
        Some((found, again))
    };
    let Some((found, exported)) = import(&mended(bytes), LIMIT) else { return false };
    let (again, _) = import(&exported, MADE_LIMIT).expect("an export of ours is one");
    assert_eq!((&found.0, found.1.files), (&again.0, again.1.files));
    true
}
