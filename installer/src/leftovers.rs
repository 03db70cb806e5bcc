//! Reference images of releases that are in no slot any more.

use std::{collections::BTreeSet, fs, io, path::Path};

use orrery_protocol::{ReleaseManifest, TrustRoot};

use crate::{
    installed::Slot,
    layout::{images_folder, slot_file},
};

/// Removes what was downloaded for releases that neither slot holds, index and unfinished downloads included; returns how
/// many files. Until now they were where pieces could come from. If it is not certain what a slot needs, all stays.
pub(crate) fn remove(boot: &Path, data: &Path, trust: &TrustRoot) -> io::Result<usize> {
    let mut needed = BTreeSet::new();
    for slot in [Slot::A, Slot::B] {
        let manifest = match fs::read(slot_file(boot, slot, "manifest")) {
            Ok(envelope) => ReleaseManifest::open(&envelope, trust),
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let Ok(manifest) = manifest else { return Ok(0) };
        needed.extend(manifest.images().map(|image| image.content.sha256.to_string()));
    }
    let mut removed = 0;
    for entry in fs::read_dir(images_folder(data))? {
        let path = entry?.path();
        if path.file_stem().is_some_and(|stem| !needed.contains(&*stem.to_string_lossy())) {
            fs::remove_file(&path)?;
            removed += 1;
        }
    }
    Ok(removed)
}
