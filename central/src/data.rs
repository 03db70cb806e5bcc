//! The data folder: how it is laid out, made and locked.
//!
//! ```text
//! central.toml   host names of the server certificate
//! central.db     SQLite
//! ca.pem ca.key  the first certificate authority; ca-2.pem and ca-2.key the second, and so on
//! server.pem     the server certificate with its key, from the first authority; server-2.pem from the second
//! artifacts/     content, by SHA-256; incoming/ below it for uploads under way
//! power/         secrets, programs and certificates that power methods name; drivers/ below it for driver files
//! operator/      what the first operator takes away
//! lock           held by the running server
//! ```

use std::{
    fs::{self, File, Permissions, TryLockError},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    db::{Database, OpenError},
    now,
    operators::{self, OperatorError},
    pki::{self, Authority, PkiError},
};

/// What [`init`] makes.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// The data folder; absent or empty.
    pub data: PathBuf,
    /// Addresses and names that nodes and operators reach central by.
    pub hosts: Vec<String>,
    /// The port written into the operator's URL.
    pub port: u16,
}

/// What [`init`] made.
#[derive(Debug, Clone, Serialize)]
pub struct Initialised {
    /// The data folder.
    pub data: PathBuf,
    /// The first operator's folder.
    pub operator: PathBuf,
    /// The URL written into it.
    pub url: String,
    /// Host names and addresses of the server certificate.
    pub hosts: Vec<String>,
}

/// Why no data folder was made. None is half-made.
#[derive(Debug, Error)]
pub enum InitError {
    /// Something is there already.
    #[error("{path} is not empty: name a new folder", path = .0.display())]
    NotEmpty(PathBuf),
    /// No host.
    #[error("name at least one host that nodes reach central by")]
    NoHost,
    /// The folder of an earlier init.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The first operator's folder.
    #[error(transparent)]
    Operator(#[from] OperatorError),
    /// Certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The database.
    #[error(transparent)]
    Database(#[from] OpenError),
    /// A file or folder.
    #[error("making {path}: {source}", path = .path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// `central.toml`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    pub(crate) hosts: Vec<String>,
}

impl Settings {
    /// Those of a data folder.
    pub(crate) fn read(data: &Path) -> Result<Self, DataError> {
        let path = data.join("central.toml");
        let text = match fs::read_to_string(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(DataError::NotInitialised(data.to_owned())),
            Err(source) => return Err(DataError::Io { path, source }),
            Ok(text) => text,
        };
        toml::from_str(&text).map_err(|source| DataError::Settings { path, source })
    }

    /// The URL by which operators reach the server on this port.
    pub(crate) fn url(&self, port: u16) -> String {
        let host = self.hosts.first().map_or("localhost", String::as_str);
        if host.contains(':') { format!("https://[{host}]:{port}") } else { format!("https://{host}:{port}") }
    }
}

/// The host names and addresses that the server's certificate is for.
///
/// # Errors
/// The folder was not made by [`init`], or cannot be read.
pub fn hosts(data: &Path) -> Result<Vec<String>, DataError> {
    Ok(Settings::read(data)?.hosts)
}

/// Changes the host names and addresses that the server's certificate is for, and returns them. The server takes them up when it starts.
///
/// # Errors
/// A name is none, none would be left, or the folder was not made by [`init`].
pub fn change_hosts(data: &Path, add: &[String], remove: &[String]) -> Result<Vec<String>, InitError> {
    let mut settings = Settings::read(data)?;
    pki::check_hosts(add)?;
    settings.hosts.retain(|host| !remove.contains(host) && !add.contains(host));
    settings.hosts.extend_from_slice(add);
    if settings.hosts.is_empty() {
        return Err(InitError::NoHost);
    }
    let path = data.join("central.toml");
    write_file(&path, to_toml(&settings).as_bytes(), 0o644).map_err(making(&path))?;
    Ok(settings.hosts)
}

/// An operator's `operator.toml`.
#[derive(Serialize)]
pub(crate) struct OperatorConfig<'a> {
    pub(crate) url: &'a str,
    pub(crate) ca: &'a str,
    pub(crate) key: &'a str,
}

/// Makes a data folder: built beside its final name, then renamed, so that it is whole or absent.
///
/// # Errors
/// See [`InitError`].
pub fn init(options: &InitOptions) -> Result<Initialised, InitError> {
    let data = std::path::absolute(&options.data).map_err(making(&options.data))?;
    if options.hosts.is_empty() {
        return Err(InitError::NoHost);
    }
    pki::check_hosts(&options.hosts)?;
    match fs::read_dir(&data).map(|mut entries| entries.next().is_some()) {
        Ok(true) => return Err(InitError::NotEmpty(data)),
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(making(&data)(e)),
        _ => {}
    }
    let parent = data.parent().unwrap_or(Path::new("/")).to_owned();
    fs::create_dir_all(&parent).map_err(making(&parent))?;
    let draft = tempfile::Builder::new().prefix(".orrery-central-").tempdir_in(&parent).map_err(making(&parent))?;
    // Private keys, and what nodes reported, are nobody else's business.
    fs::set_permissions(draft.path(), Permissions::from_mode(0o700)).map_err(making(draft.path()))?;
    let settings = Settings { hosts: options.hosts.clone() };
    let url = settings.url(options.port);
    fill(draft.path(), &settings, &url)?;
    // Replaces an empty folder; anything that appeared in it meanwhile makes this fail.
    fs::rename(draft.path(), &data).map_err(making(&data))?;
    let _ = draft.keep();
    sync_folder(&parent).map_err(making(&parent))?;
    Ok(Initialised { operator: data.join("operator"), data, url, hosts: options.hosts.clone() })
}

fn fill(folder: &Path, settings: &Settings, url: &str) -> Result<(), InitError> {
    pki::make_ca(folder, Authority::FIRST, now())?;
    pki::make_server(folder, Authority::FIRST, &settings.hosts, now())?;
    for name in ["artifacts", "artifacts/incoming", "power"] {
        let path = folder.join(name);
        fs::create_dir(&path).map_err(making(&path))?;
    }
    let path = folder.join("central.toml");
    write_file(&path, to_toml(settings).as_bytes(), 0o644).map_err(making(&path))?;
    let operator = operators::write_folder(folder, url, &folder.join("operator"))?;
    Database::create(&folder.join("central.db"), &operator, now())?;
    Ok(())
}

/// Makes the next certificate authority in a data folder, beside those that are there, and returns its certificate's file. The
/// server may run meanwhile: it changes over when a trust root demands it.
///
/// # Errors
/// The folder was not made by [`init`], or the files cannot be written.
pub fn new_authority(data: &Path) -> Result<PathBuf, InitError> {
    if !Authority::FIRST.certificate(data).exists() {
        return Err(InitError::Data(DataError::NotInitialised(data.to_owned())));
    }
    let next = pki::next_authority(data);
    pki::make_ca(data, next, now())?;
    Ok(next.certificate(data))
}

/// The certificates of all authorities in a data folder, oldest first.
pub fn authorities(data: &Path) -> Vec<PathBuf> {
    pki::authorities(data).map(|authority| authority.certificate(data)).collect()
}

pub(crate) fn to_toml<T: Serialize>(value: &T) -> String {
    toml::to_string(value).expect("strings and lists of strings are TOML")
}

fn making(path: &Path) -> impl FnOnce(io::Error) -> InitError + use<> {
    let path = path.to_owned();
    move |source| InitError::Io { path, source }
}

/// A data folder in use. Holding one proves that no other server uses it.
#[derive(Debug)]
pub(crate) struct DataFolder {
    path: PathBuf,
    hosts: Vec<String>,
    _lock: File,
}

/// Why a data folder cannot be used.
#[derive(Debug, Error)]
pub enum DataError {
    /// It was not made by `init`.
    #[error("{path} is not a data folder of central: make one with `orrery-central init`", path = .0.display())]
    NotInitialised(PathBuf),
    /// Another server runs on it.
    #[error("{path} is in use by another orrery-central", path = .0.display())]
    InUse(PathBuf),
    /// `central.toml` is broken.
    #[error("{path} is not valid: {source}", path = .path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: toml::de::Error,
    },
    /// A file cannot be read.
    #[error("accessing {path}: {source}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

impl DataFolder {
    /// Takes the folder at `path` into use, and clears away uploads that were cut short.
    pub(crate) fn open(path: &Path) -> Result<Self, DataError> {
        let failed = |path: PathBuf| move |source| DataError::Io { path, source };
        let settings = Settings::read(path)?;
        let lock_path = path.join("lock");
        let lock = File::create(&lock_path).map_err(failed(lock_path.clone()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DataError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(DataError::Io { path: lock_path, source }),
        }
        // Folders made before there was remote power lack it.
        let power = path.join("power");
        if !power.exists() {
            fs::create_dir(&power).map_err(failed(power.clone()))?;
        }
        let incoming = path.join("artifacts/incoming");
        for entry in fs::read_dir(&incoming).map_err(failed(incoming.clone()))?.flatten() {
            fs::remove_file(entry.path()).map_err(failed(entry.path()))?;
        }
        Ok(Self { path: path.to_owned(), hosts: settings.hosts, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn hosts(&self) -> &[String] {
        &self.hosts
    }
}

/// Writes a file that is whole or absent.
pub(crate) fn write_file(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file =
        tempfile::Builder::new().prefix(".orrery-").permissions(Permissions::from_mode(mode)).tempfile_in(folder)?;
    file.write_all(content)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    sync_folder(folder)
}

/// Makes what was renamed in `folder` survive a power cut.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(data: &Path, hosts: &[&str]) -> InitOptions {
        InitOptions { data: data.to_owned(), hosts: hosts.iter().map(|h| h.to_string()).collect(), port: 8443 }
    }

    #[test]
    fn init_makes_a_whole_folder_or_none() {
        let base = tempfile::tempdir().unwrap();
        let data = base.path().join("a/data");
        assert!(matches!(init(&options(&data, &["not a host"])), Err(InitError::Pki(PkiError::Host(_)))));
        assert!(matches!(init(&options(&data, &[])), Err(InitError::NoHost)));
        assert!(!data.exists());

        let made = init(&options(&data, &["::1", "localhost"])).unwrap();
        assert_eq!(made.url, "https://[::1]:8443");
        let key = fs::metadata(made.operator.join("operator.key")).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
        assert!(matches!(init(&options(&data, &["localhost"])), Err(InitError::NotEmpty(_))));
        let names: Vec<_> = fs::read_dir(base.path().join("a")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["data"]);

        let open = DataFolder::open(&data).unwrap();
        assert_eq!(open.hosts(), ["::1", "localhost"]);
        assert!(matches!(DataFolder::open(&data), Err(DataError::InUse(_))));
        assert!(matches!(DataFolder::open(base.path()), Err(DataError::NotInitialised(_))));

        let change = |add: &[&str], remove: &[&str]| {
            let [add, remove] = [add, remove].map(|hosts| hosts.iter().map(|h| h.to_string()).collect::<Vec<_>>());
            change_hosts(&data, &add, &remove)
        };
        assert_eq!(change(&["192.0.2.1"], &["localhost"]).unwrap(), ["::1", "192.0.2.1"]);
        assert!(matches!(change(&["not a host"], &[]), Err(InitError::Pki(PkiError::Host(_)))));
        assert!(matches!(change(&[], &["::1", "192.0.2.1"]), Err(InitError::NoHost)));
        assert_eq!(Settings::read(&data).unwrap().hosts, ["::1", "192.0.2.1"]);
    }
}
