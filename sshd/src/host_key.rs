//! The server's own key.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use russh::keys::{
    PrivateKey,
    ssh_key::{
        self, LineEnding,
        private::{Ed25519Keypair, KeypairData},
    },
};
use rustix::rand::GetRandomFlags;

/// An Ed25519 host key.
#[derive(Clone)]
pub struct HostKey(pub(crate) PrivateKey);

/// A host key that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    /// The kernel gave no random bytes.
    #[error("drawing a host key: {0}")]
    Random(#[source] io::Error),
    /// The file could not be read.
    #[error("reading host key {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds no private key. It is left as it is: a new key would look like an attack to every client.
    #[error("parsing host key {path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ssh_key::Error,
    },
    /// The file could not be written.
    #[error("writing host key {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl HostKey {
    /// A new key.
    ///
    /// # Errors
    /// When the kernel gives no random bytes.
    pub fn generate() -> Result<Self, HostKeyError> {
        let mut seed = [0; 32];
        let mut filled = 0;
        while filled < seed.len() {
            filled += rustix::rand::getrandom(&mut seed[filled..], GetRandomFlags::empty())
                .map_err(|e| HostKeyError::Random(e.into()))?;
        }
        Ok(Self::from_seed(&seed))
    }

    /// The one key that follows from `seed`, so that whoever knows the seed knows the key before it was ever used. The
    /// seed is as secret as the key.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let pair = KeypairData::from(Ed25519Keypair::from_seed(seed));
        Self(PrivateKey::new(pair, "").expect("an Ed25519 key pair is a private key"))
    }

    /// The key in the file at `path`; a new one is put there first if there is no file.
    ///
    /// # Errors
    /// When the file cannot be read or written, or holds something else.
    pub fn load_or_create(path: &Path) -> Result<Self, HostKeyError> {
        match fs::read_to_string(path) {
            Ok(text) => match PrivateKey::from_openssh(&text) {
                Ok(key) => Ok(Self(key)),
                Err(source) => Err(HostKeyError::Parse { path: path.to_owned(), source }),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let key = Self::generate()?;
                key.write(path).map_err(|source| HostKeyError::Write { path: path.to_owned(), source })?;
                Ok(key)
            }
            Err(source) => Err(HostKeyError::Read { path: path.to_owned(), source }),
        }
    }

    /// The public half in OpenSSH's one-line form.
    pub fn public_line(&self) -> String {
        self.0.public_key().to_openssh().expect("an Ed25519 key has an OpenSSH form")
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let text = self.0.to_openssh(LineEnding::LF).map_err(io::Error::other)?;
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".new");
        let temporary = PathBuf::from(temporary);
        // A file left by a power cut may have other permissions: never write into it.
        match fs::remove_file(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => (),
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        match path.parent() {
            Some(folder) if folder != Path::new("") => File::open(folder)?.sync_all(),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let first = HostKey::load_or_create(&path).unwrap().public_line();
        assert!(first.starts_with("ssh-ed25519 "), "{first}");
        assert_eq!(HostKey::load_or_create(&path).unwrap().public_line(), first);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_ne!(HostKey::generate().unwrap().public_line(), first);
    }

    #[test]
    fn a_seed_is_one_key() {
        let line = HostKey::from_seed(&[7; 32]).public_line();
        assert_eq!(HostKey::from_seed(&[7; 32]).public_line(), line);
        assert_ne!(HostKey::from_seed(&[8; 32]).public_line(), line);
        // RFC 8032, section 7.1, test 1: a mistake in deriving would otherwise only be the same mistake twice.
        let seed: [u8; 32] = [
            0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44, 0x49,
            0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
        ];
        let public = HostKey::from_seed(&seed).0.public_key().key_data().ed25519().unwrap().0;
        assert_eq!((public[..4].to_vec(), public[31]), (vec![0xd7, 0x5a, 0x98, 0x01], 0x1a));
    }

    #[test]
    fn a_broken_key_is_an_error_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, "nonsense").unwrap();
        assert!(matches!(HostKey::load_or_create(&path), Err(HostKeyError::Parse { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"nonsense");
    }
}
