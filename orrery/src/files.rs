//! Reading what the operator names, and writing files that are whole or absent.

use std::{
    fs::{self, File, Permissions},
    io::{Read, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use orrery_protocol::{ArtifactRef, Sha256};
use tempfile::NamedTempFile;

/// Who may read a written file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everyone.
    Public,
    /// Its owner: it holds a private key.
    Secret,
}

/// A file that is on the disk under a temporary name, ready to get its own.
pub(crate) struct Draft {
    file: NamedTempFile,
    path: PathBuf,
}

impl Draft {
    /// Writes `content` beside `path`, which must not exist yet.
    pub(crate) fn new(path: &Path, content: &[u8], access: Access) -> Result<Self> {
        if path.symlink_metadata().is_ok() {
            bail!("{} exists already: remove it or choose another name", path.display());
        }
        let mode = if access == Access::Secret { 0o600 } else { 0o644 };
        let mut file = tempfile::Builder::new()
            .prefix(".orrery-")
            .permissions(Permissions::from_mode(mode))
            .tempfile_in(folder_of(path))
            .with_context(|| format!("making a file in {}", folder_of(path).display()))?;
        file.write_all(content)
            .and_then(|()| file.as_file().sync_all())
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Gives the file its name.
    pub(crate) fn commit(self) -> Result<()> {
        let Self { file, path } = self;
        file.persist_noclobber(&path).with_context(|| format!("naming {}", path.display()))?;
        sync_folder(&folder_of(&path))
    }
}

/// Writes a file that did not exist.
pub(crate) fn write_new(path: &Path, content: &[u8], access: Access) -> Result<()> {
    Draft::new(path, content, access)?.commit()
}

/// Replaces a file by one that is whole.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let folder = folder_of(path);
    let writing = || format!("writing {}", path.display());
    let mut file = tempfile::Builder::new()
        .prefix(".orrery-")
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(&folder)
        .with_context(writing)?;
    file.write_all(content).and_then(|()| file.as_file().sync_all()).with_context(writing)?;
    file.persist(path).with_context(writing)?;
    sync_folder(&folder)
}

pub(crate) fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|f| f.sync_all()).with_context(|| format!("syncing {}", folder.display()))
}

pub(crate) fn folder_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

pub(crate) fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// OpenSSH public keys in files: every line that is neither empty nor a comment.
pub(crate) fn ssh_keys(paths: &[PathBuf]) -> Result<Vec<String>> {
    let mut keys = Vec::new();
    for path in paths {
        let text = read_text(path)?;
        ensure!(!text.contains("PRIVATE KEY"), "{} holds a private key: name its .pub file", path.display());
        let before = keys.len();
        keys.extend(text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).map(str::to_owned));
        ensure!(keys.len() > before, "{} holds no key", path.display());
    }
    Ok(keys)
}

/// Digest and size of a file, read in pieces.
pub(crate) fn measure(path: &Path) -> Result<ArtifactRef> {
    let reading = || format!("reading {}", path.display());
    let mut file = File::open(path).with_context(reading)?;
    let (mut hasher, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 18]);
    loop {
        let got = file.read(&mut buffer).with_context(reading)?;
        if got == 0 {
            return Ok(ArtifactRef { sha256: hasher.finish(), size });
        }
        hasher.update(&buffer[..got]);
        size += got as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_when_committed_and_is_never_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.toml");
        drop(Draft::new(&path, b"x", Access::Secret).unwrap());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
        write_new(&path, b"x", Access::Secret).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(write_new(&path, b"y", Access::Public).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"x");
    }

    #[test]
    fn key_files() {
        let folder = tempfile::tempdir().unwrap();
        let check = |content: &str, expect: Option<&[&str]>| {
            let path = folder.path().join("k");
            fs::write(&path, content).unwrap();
            let got = ssh_keys(&[path]).ok();
            assert_eq!(got.as_deref().map(|g| g.iter().map(String::as_str).collect::<Vec<_>>()).as_deref(), expect);
        };
        check("# mine\nssh-ed25519 AAAA a\n\nssh-rsa AAAA b\n", Some(&["ssh-ed25519 AAAA a", "ssh-rsa AAAA b"]));
        check("\n", None);
        check("-----BEGIN OPENSSH PRIVATE KEY-----\n", None);
    }
}
