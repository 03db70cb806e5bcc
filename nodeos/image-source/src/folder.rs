//! A directory of this machine as an image.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::{self, File},
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, OpenOptionsExt},
    },
    path::Path,
};

use orrery_image_store::{Examined, ImportError, Metadata};
use rustix::fs::OFlags;

use crate::{SourceError, tree::Tree};

/// Reads all that is in `folder` on the file system that it is on: what is mounted in it, as `/proc`, is not part of it.
pub(crate) fn read(folder: &Path, tree: &mut Tree) -> Result<(), SourceError> {
    let device = fs::metadata(folder).map_err(SourceError::at("examining", folder))?.dev();
    let mut numbers = HashMap::new();
    let mut pending = vec![Vec::new()];
    while let Some(path) = pending.pop() {
        let real = folder.join(OsStr::from_bytes(&path));
        let Examined { metadata, skipped_attributes, .. } =
            open(&real).and_then(|directory| Metadata::of(&directory)).map_err(SourceError::at("examining", &real))?;
        tree.skipped.attributes += skipped_attributes;
        let placed = |source: ImportError| SourceError::within(&folder.display().to_string())(source);
        tree.directory(if path.is_empty() { b"." } else { &path }, metadata).map_err(placed)?;
        for entry in fs::read_dir(&real).map_err(SourceError::at("listing", &real))? {
            let entry = entry.map_err(SourceError::at("listing", &real))?;
            let name = entry.file_name();
            let path = if path.is_empty() { name.as_bytes().to_vec() } else { [&path, name.as_bytes()].join(&b'/') };
            let real = entry.path();
            let stat = fs::symlink_metadata(&real).map_err(SourceError::at("examining", &real))?;
            if let Some(number) = numbers.get(&(stat.dev(), stat.ino())) {
                tree.link(&path, *number).map_err(placed)?;
                continue;
            }
            let number = if stat.is_dir() {
                if stat.dev() == device {
                    pending.push(path);
                } else {
                    tree.directory(&path, Metadata { mode: 0o755, ..Metadata::default() }).map_err(placed)?;
                }
                continue;
            } else if stat.is_symlink() {
                let target = fs::read_link(&real).map_err(SourceError::at("reading", &real))?;
                let metadata = Metadata {
                    mode: 0o777,
                    owner: stat.uid(),
                    group: stat.gid(),
                    modified: Metadata::time(stat.mtime(), u32::try_from(stat.mtime_nsec()).unwrap_or(0)),
                    attributes: Vec::new(),
                };
                tree.symlink(&path, metadata, target.as_os_str().as_bytes().to_vec()).map_err(placed)?
            } else if stat.is_file() {
                let mut file = open(&real).map_err(SourceError::at("opening", &real))?;
                let Examined { metadata, size, skipped_attributes } =
                    Metadata::of(&file).map_err(SourceError::at("examining", &real))?;
                tree.skipped.attributes += skipped_attributes;
                tree.file(&path, metadata, size, &mut file)
                    .map_err(|source| SourceError::within(&real.display().to_string())(source))?
            } else {
                tree.skipped.devices += 1;
                continue;
            };
            if stat.nlink() > 1 {
                numbers.insert((stat.dev(), stat.ino()), number);
            }
        }
    }
    Ok(())
}

/// Never through a link, and never waiting for a FIFO's other end.
fn open(path: &Path) -> std::io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    File::options().read(true).custom_flags(flags).open(path)
}
