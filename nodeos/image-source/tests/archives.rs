//! Archives and layers as other tools write them, and as lines break them off.

use std::{error::Error, fs, path::Path};

use orrery_image_source::{Format, Image, Options};
use orrery_image_store::{
    Metadata,
    archive::write::{What, end, head, pad},
};
use orrery_protocol::Digest;
use serde_json::json;
use tempfile::TempDir;

type Member<'a> = (&'a str, What<'a>, &'a [u8]);

fn file(name: &str) -> Member<'_> {
    (name, What::File { size: 1 }, b"x")
}

/// Without its end.
fn open_archive(members: &[Member<'_>]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, what, content) in members {
        head(&mut archive, name.as_bytes(), &Metadata::default(), *what).unwrap();
        archive.extend_from_slice(content);
        pad(&mut archive, content.len() as u64).unwrap();
    }
    archive
}

fn archive(members: &[Member<'_>]) -> Vec<u8> {
    let mut archive = open_archive(members);
    end(&mut archive).unwrap();
    archive
}

/// The format and the paths, or what is wrong.
fn read(source: &[u8]) -> Result<(Format, Vec<String>), String> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("image.tar");
    fs::write(&path, source).unwrap();
    let options = Options { tag: None, limit: 1 << 20, scratch: folder.path() };
    let message = |error: &dyn Error| error.source().map_or_else(|| error.to_string(), cause);
    let image = Image::read(&path, &options).map_err(|error| message(&error))?;
    Ok((image.format, image.items().map(|item| item.path).collect()))
}

/// The innermost error.
fn cause(error: &(dyn Error + 'static)) -> String {
    error.source().map_or_else(|| error.to_string(), cause)
}

/// An image of one layer.
fn layered(layer: &[u8]) -> Vec<u8> {
    let digest = |bytes: &[u8]| format!("sha256:{}", Digest::of(bytes));
    let describe = |kind: &str, bytes: &[u8]| json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest(bytes), "size": bytes.len() });
    let config =
        json!({ "os": "linux", "architecture": "amd64", "rootfs": { "diff_ids": [digest(layer)] } }).to_string();
    let manifest =
        json!({ "config": describe("config.v1+json", config.as_bytes()), "layers": [describe("layer.v1.tar", layer)] });
    let manifest = manifest.to_string();
    let index = json!({ "manifests": [describe("manifest.v1+json", manifest.as_bytes())] }).to_string();
    let blobs = [layer, config.as_bytes(), manifest.as_bytes()];
    let names = blobs.map(|blob| format!("blobs/sha256/{}", Digest::of(blob)));
    let whole = |content: &'static str| What::File { size: content.len() as u64 };
    let mut members: Vec<Member<'_>> = vec![("oci-layout", whole("{}"), b"{}")];
    members.push(("index.json", What::File { size: index.len() as u64 }, index.as_bytes()));
    for (name, blob) in names.iter().zip(blobs) {
        members.push((name, What::File { size: blob.len() as u64 }, blob));
    }
    archive(&members)
}

#[test]
fn layers_may_have_absolute_paths() {
    let check = |members: &[Member<'_>], expect: Result<&[&str], &str>| {
        let found = read(&layered(&archive(members))).map(|(format, paths)| {
            assert_eq!(format, Format::OciArchive);
            paths
        });
        match expect {
            Ok(paths) => assert_eq!(found.unwrap(), paths),
            Err(reason) => assert!(found.as_ref().unwrap_err().contains(reason), "{found:?}"),
        }
    };
    check(&[("/", What::Directory, b""), file("/app/run"), file("//etc/x")], Ok(&["app", "app/run", "etc", "etc/x"]));
    check(&[file("/a"), ("/b", What::HardLink(b"/a"), b"")], Ok(&["a", "b"]));
    check(&[file("/../a")], Err("upwards"));
    check(&[file("/a"), ("/b", What::HardLink(b"/../a"), b"")], Err("upwards"));
    check(&[("/", What::Symlink(b"x"), b"")], Err("the top"));
    check(&[("a/.wh..wh.plnk/", What::Directory, b""), file(".wh..wh.plnk/123.4"), file("b")], Ok(&["b"]));
    // An archive that is no layer is taken as it is.
    assert!(read(&archive(&[file("/a")])).unwrap_err().contains("absolute"));
    assert_eq!(read(&archive(&[file(".wh..wh.plnk/1")])).unwrap().1, [".wh..wh.plnk", ".wh..wh.plnk/1"]);
}

#[test]
fn an_archive_that_breaks_off_is_refused() {
    let members = [file("a"), file("b")];
    let whole = archive(&members);
    assert!(read(&whole).is_ok());
    // Between two entries, and before the end.
    for length in [1024, 2048] {
        assert_eq!(read(&whole[..length]).unwrap_err(), "the archive breaks off: it has no end marker");
    }
    // Half of the mark is one.
    assert!(read(&whole[..2048 + 512]).is_ok());
    // A layer has a digest.
    assert!(read(&layered(&open_archive(&members))).is_ok());
}

#[test]
fn a_damaged_description_is_no_file_tree() {
    let with = |text: &[u8]| read(&archive(&[("manifest.json", What::File { size: text.len() as u64 }, text)]));
    assert!(with(br#"[{"Config":"c","#).is_err());
    // A program's own.
    assert_eq!(with(br#"{"name":"app"}"#).unwrap().0, Format::Archive);
}

#[test]
fn times_and_attributes_that_no_node_could_keep() {
    let with = |metadata: &Metadata| {
        let mut archive = Vec::new();
        head(&mut archive, b"a", metadata, What::File { size: 0 }).unwrap();
        end(&mut archive).unwrap();
        archive
    };
    let attribute = |name: &str, length| (name.as_bytes().to_vec(), vec![0; length]);
    let large = with(&Metadata { attributes: vec![attribute("user.a", 5000)], ..Metadata::default() });
    assert!(read(&large).unwrap_err().contains("refusing image entry a: its extended attributes"));
    let twice = vec![attribute("user.a", 1), attribute("user.a", 2)];
    let twice = with(&Metadata { attributes: twice, ..Metadata::default() });
    assert!(read(&twice).unwrap_err().contains("one name"));

    let folder = TempDir::new().unwrap();
    let flat = |archive: &[u8]| {
        let path: &Path = &folder.path().join("image.tar");
        fs::write(path, archive).unwrap();
        let options = Options { tag: None, limit: 1 << 20, scratch: folder.path() };
        let mut out = Vec::new();
        Image::read(path, &options).unwrap().write_tar(&mut out).unwrap();
        out
    };
    let at = |seconds, nanoseconds| flat(&with(&Metadata { modified: (seconds, nanoseconds), ..Metadata::default() }));
    assert!(at(i64::MAX / 2, 5) == at((1 << 34) - 1 - (1 << 31), 0));
    assert!(at(-(1 << 40), 5) == at(-(1 << 31), 0));
    assert!(at(-5, 5) != at(-5, 0));
}
