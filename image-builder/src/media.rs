//! Stamping a node's configuration into a finished medium, and reading it back.
//!
//! A medium is a hybrid ISO, in a file or already on a USB disk, or a PXE folder with its `config.img`. Only
//! the 64 KiB of the config area change. A write cut short leaves an area that its checksum tells apart and
//! that can be stamped again.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use orrery_protocol::{AREA_BYTES, AreaError, NodeConfig, NodeConfigError, decode_area, encode_area, find_area};
use thiserror::Error;

use crate::{
    CONFIG_AREA_PATH, CONFIG_IMAGE, cpio,
    iso::CONFIG_FILE,
    iso9660::{self, Iso9660Error},
    release::replace,
};

/// A PXE config image holds one area and little else.
const MAX_CONFIG_IMAGE: u64 = 1 << 20;

/// Why a medium was not stamped or read. Nothing has changed unless the error is `Io` or `NotKept`.
#[derive(Debug, Error)]
pub enum MediaError {
    /// The text is not a node configuration.
    #[error("the configuration is not valid: {0}")]
    Syntax(#[from] toml::de::Error),
    /// It is one that cannot be meant.
    #[error("the configuration is not valid: {0}")]
    Config(#[from] NodeConfigError),
    /// The text does not fit, or the area has no readable content.
    #[error("{path}: {source}", path = .path.display())]
    Area {
        /// The medium.
        path: PathBuf,
        /// What is wrong with its area.
        source: AreaError,
    },
    /// The file is neither kind of medium.
    #[error("{path} is not an Orrery medium: {source}", path = .path.display())]
    Iso {
        /// The file.
        path: PathBuf,
        /// What is missing.
        source: Iso9660Error,
    },
    /// The medium's config file has another size, or is no area.
    #[error("{path} is not an Orrery medium: its {CONFIG_FILE} is not a config area", path = .path.display())]
    NotAnArea {
        /// The medium.
        path: PathBuf,
    },
    /// What was written does not read back.
    #[error("{path} did not keep what was written: the medium is failing or write-protected", path = .path.display())]
    NotKept {
        /// The medium.
        path: PathBuf,
    },
    /// The copy would overwrite something.
    #[error("{path} exists already: remove it or choose another name", path = .path.display())]
    Exists {
        /// The copy's path.
        path: PathBuf,
    },
    /// The medium cannot be read or written.
    #[error("accessing {path}: {source}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// A medium, found to have a config area.
enum Medium {
    /// An ISO, and its area's offset.
    Iso { path: PathBuf, offset: u64 },
    /// A PXE config image: content, and its area's offset.
    ConfigImage { path: PathBuf, bytes: Vec<u8>, offset: usize },
}

/// Writes `toml_text` into the config area of the medium at `path` and reads it back.
///
/// # Errors
/// See [`MediaError`]. A text that no node would accept is refused before the medium is touched.
pub fn stamp(path: &Path, toml_text: &str) -> Result<NodeConfig, MediaError> {
    let (config, area) = prepare(path, toml_text)?;
    match Medium::open(path)? {
        Medium::Iso { path, offset } => overwrite(&path, offset, &area).map_err(failed(&path))?,
        Medium::ConfigImage { path, mut bytes, offset } => {
            bytes[offset..offset + AREA_BYTES].copy_from_slice(&area);
            replace(&path, &bytes).map_err(failed(&path))?;
        }
    }
    if show(path)? != toml_text {
        return Err(MediaError::NotKept { path: path.to_owned() });
    }
    Ok(config)
}

/// Stamps a copy of the medium at `path`, which stays as it is. `out` appears only when finished. A copied ISO
/// is readable by its owner alone, for it holds the node's key.
///
/// # Errors
/// See [`MediaError`]; `out` must not exist.
pub fn stamp_copy(path: &Path, out: &Path, toml_text: &str) -> Result<NodeConfig, MediaError> {
    prepare(path, toml_text)?;
    Medium::open(path)?;
    if out.symlink_metadata().is_ok() {
        return Err(MediaError::Exists { path: out.to_owned() });
    }
    let folder = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.is_dir() {
        let copy = tempfile::Builder::new().prefix(".orrery-").tempdir_in(folder).map_err(failed(folder))?;
        for entry in fs::read_dir(path).map_err(failed(path))? {
            let source = entry.map_err(failed(path))?.path();
            if let (true, Some(name)) = (source.is_file(), source.file_name()) {
                fs::copy(&source, copy.path().join(name)).map_err(failed(&source))?;
            }
        }
        let config = stamp(copy.path(), toml_text)?;
        // A PXE folder is for a server to read.
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(copy.path(), fs::Permissions::from_mode(0o755)).map_err(failed(copy.path()))?;
        fs::rename(copy.path(), out).map_err(failed(out))?;
        // It has its final name now; there is nothing left to clean up.
        let _ = copy.keep();
        return Ok(config);
    }
    let mut copy = tempfile::Builder::new().prefix(".orrery-").tempfile_in(folder).map_err(failed(folder))?;
    let mut source = File::open(path).map_err(failed(path))?;
    io::copy(&mut source, &mut copy).map_err(failed(copy.path()))?;
    let config = stamp(copy.path(), toml_text)?;
    copy.persist_noclobber(out).map_err(|e| failed(out)(e.error))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed(folder))?;
    Ok(config)
}

/// The configuration text in the medium at `path`.
///
/// # Errors
/// Not a medium, or its area is blank or damaged.
pub fn show(path: &Path) -> Result<String, MediaError> {
    let (path, area) = match Medium::open(path)? {
        Medium::Iso { path, offset } => {
            let area = File::open(&path).and_then(|mut file| read_area(&mut file, offset)).map_err(failed(&path))?;
            (path, area)
        }
        Medium::ConfigImage { path, bytes, offset } => (path, bytes[offset..offset + AREA_BYTES].to_vec()),
    };
    decode_area(&area).map(str::to_owned).map_err(|source| MediaError::Area { path, source })
}

fn prepare(path: &Path, toml_text: &str) -> Result<(NodeConfig, Vec<u8>), MediaError> {
    let config: NodeConfig = toml::from_str(toml_text)?;
    config.check()?;
    let area = encode_area(toml_text).map_err(|source| MediaError::Area { path: path.to_owned(), source })?;
    Ok((config, area))
}

impl Medium {
    fn open(path: &Path) -> Result<Self, MediaError> {
        let path = if path.is_dir() { path.join(CONFIG_IMAGE) } else { path.to_owned() };
        let mut file = File::open(&path).map_err(failed(&path))?;
        let mut magic = [0; 6];
        let is_cpio = file.read_exact(&mut magic).is_ok() && &magic == b"070701";
        if !is_cpio {
            return Self::open_iso(path, &mut file);
        }
        let mut bytes = magic.to_vec();
        file.take(MAX_CONFIG_IMAGE).read_to_end(&mut bytes).map_err(failed(&path))?;
        let area = cpio::find_file(&bytes, CONFIG_AREA_PATH).filter(|range| is_area(&bytes[range.clone()]));
        match area {
            Some(range) => Ok(Self::ConfigImage { path, offset: range.start, bytes }),
            None => Err(MediaError::NotAnArea { path }),
        }
    }

    fn open_iso(path: PathBuf, file: &mut File) -> Result<Self, MediaError> {
        let record = match iso9660::find(file, &[CONFIG_FILE]) {
            Ok(record) => record,
            Err(Iso9660Error::Io(source)) => return Err(MediaError::Io { path, source }),
            Err(source) => return Err(MediaError::Iso { path, source }),
        };
        if !record.is_file() || record.size as usize != AREA_BYTES {
            return Err(MediaError::NotAnArea { path });
        }
        let offset = record.offset();
        let area = read_area(file, offset).map_err(failed(&path))?;
        if is_area(&area) { Ok(Self::Iso { path, offset }) } else { Err(MediaError::NotAnArea { path }) }
    }
}

/// Stamped, blank or damaged: an area whose write was cut short still begins with its magic, because that
/// never changes.
fn is_area(bytes: &[u8]) -> bool {
    bytes.len() == AREA_BYTES && find_area(bytes) == Some(0)
}

fn read_area(file: &mut File, offset: u64) -> io::Result<Vec<u8>> {
    let mut area = vec![0; AREA_BYTES];
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(&mut area)?;
    Ok(area)
}

fn overwrite(path: &Path, offset: u64, area: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    file.write_all(area)?;
    file.sync_all()
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> MediaError {
    let path = path.to_owned();
    move |source| MediaError::Io { path, source }
}
