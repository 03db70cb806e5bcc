//! Archives that other tools write.

use std::{error::Error, fs, path::Path};

use orrery_image_source::{Format, Image, Options};
use orrery_image_store::{
    Metadata,
    archive::write::{What, end, head},
};
use tempfile::TempDir;

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
