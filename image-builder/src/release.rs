//! What a build writes about itself: the release's manifest, and checksums of every file.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use orrery_protocol::{ArtifactRef, ArtifactRole, Digest, MinimumHardware, ReleaseArtifact, ReleaseManifest, Sha256};

use crate::{BuildError, NODE_CMDLINE, chunks};

/// The file with all checksums, in `sha256sum`'s format.
pub const SUMS_FILE: &str = "SHA256SUMS";

/// Where the chunk indexes are, each named as what it is an index of.
const INDEXES: &str = "chunks";

/// Describes the artifacts of a release, in the order kernel, node OS, reference images, and writes their chunk indexes below
/// `folder`.
pub(crate) fn manifest(
    folder: &Path,
    version: &str,
    kernel: &Path,
    node_os: &Path,
    images: &[(String, PathBuf)],
) -> Result<ReleaseManifest, BuildError> {
    let indexes = folder.join(INDEXES);
    fs::create_dir_all(&indexes).map_err(BuildError::writing(&indexes))?;
    let artifact = |role, name: &str, path: &Path| {
        let bytes = fs::read(path).map_err(BuildError::reading(path))?;
        let index = chunks::chunk_index(&bytes);
        let beside = indexes.join(name);
        replace(&beside, &index).map_err(BuildError::writing(&beside))?;
        let refer = |bytes: &[u8]| ArtifactRef { sha256: Digest::of(bytes), size: bytes.len() as u64 };
        Ok(ReleaseArtifact {
            role,
            name: name.to_owned(),
            content: refer(&bytes),
            chunks: Some(refer(&index)),
            listing: None,
        })
    };
    let mut artifacts =
        vec![artifact(ArtifactRole::Kernel, "kernel", kernel)?, artifact(ArtifactRole::NodeOs, "nodeos", node_os)?];
    for (name, path) in images {
        artifacts.push(artifact(ArtifactRole::Image, name, path)?);
    }
    Ok(ReleaseManifest {
        version: 1,
        release: version.to_owned(),
        cmdline: NODE_CMDLINE.to_owned(),
        artifacts,
        minimum: MinimumHardware::default(),
    })
}

/// Writes `SHA256SUMS` over every file below `folder`, sorted by path; check it with `sha256sum -c`. Called
/// again after files were added. Hidden files, as a killed build may leave behind, do not count.
///
/// # Errors
/// A file cannot be read, or the list not written.
pub fn write_sums(folder: &Path) -> Result<(), BuildError> {
    let mut files = Vec::new();
    collect(folder, "", &mut files)?;
    files.sort();
    let mut text = String::new();
    for name in files.iter().filter(|name| *name != SUMS_FILE) {
        let path = folder.join(name);
        let digest = measure(&path).map_err(BuildError::reading(&path))?.sha256;
        text.push_str(&format!("{digest}  {name}\n"));
    }
    let path = folder.join(SUMS_FILE);
    replace(&path, text.as_bytes()).map_err(BuildError::writing(&path))
}

fn collect(folder: &Path, prefix: &str, files: &mut Vec<String>) -> Result<(), BuildError> {
    for entry in fs::read_dir(folder).map_err(BuildError::reading(folder))? {
        let entry = entry.map_err(BuildError::reading(folder))?;
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let name = format!("{prefix}{}", name.to_string_lossy());
        if entry.file_type().map_err(BuildError::reading(folder))?.is_dir() {
            collect(&entry.path(), &format!("{name}/"), files)?;
        } else {
            files.push(name);
        }
    }
    Ok(())
}

/// Digest and size of a file, read in pieces.
fn measure(path: &Path) -> io::Result<ArtifactRef> {
    let mut file = File::open(path)?;
    let (mut hasher, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 16]);
    loop {
        let got = file.read(&mut buffer)?;
        if got == 0 {
            return Ok(ArtifactRef { sha256: hasher.finish(), size });
        }
        hasher.update(&buffer[..got]);
        size += got as u64;
    }
}

/// Writes a file so that at every moment either the old or the new one is there, whole. A file that was there
/// before keeps its permissions.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let permissions = fs::metadata(path).map(|m| m.permissions()).unwrap_or(fs::Permissions::from_mode(0o644));
    let mut file = tempfile::Builder::new().prefix(".orrery-").permissions(permissions).tempfile_in(folder)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(folder)?.sync_all()
}
