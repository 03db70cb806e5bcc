//! Exports without a sliver.

use std::{
    io::{Read, Write},
    path::Path,
    time::Duration,
};

use orrery_image_store::archive::Archive;
use orrery_protocol::{ExportManifest, LayerSize};

use super::{
    SnapshotError,
    export::write,
    identity::{Range, belongs},
    import::{manifest, unpack},
    layer::Deadline,
};

/// Unpacks into the empty directory `staged` what an export of up to `limit` bytes is when not compressed, and exports it from there.
/// Root's files in it are those of whoever runs this, so that most of it goes without being root.
///
/// # Errors
/// What is wrong with the export.
///
/// # Panics
/// When what was imported cannot be exported.
pub fn reimport(
    stream: impl Read,
    limit: u64,
    staged: &Path,
    mut out: impl Write,
) -> Result<(ExportManifest, LayerSize), SnapshotError> {
    let deadline = Deadline::after(Duration::from_secs(60));
    let range = Range(rustix::process::geteuid().as_raw());
    let mut archive = Archive::new(stream, limit).keeping(belongs);
    let manifest = manifest(&mut archive)?;
    let size = unpack(archive, staged, range, &deadline)?;
    write(&manifest, staged, range, &mut out, &deadline).expect("what was imported can be exported");
    Ok((manifest, size))
}
