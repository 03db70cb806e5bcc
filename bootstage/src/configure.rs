//! Finding out who this node is: `node.toml` from the first place that has one.
//!
//! A place that has a broken one is reported and the next is tried; a node whose every place is broken says so
//! about each, and fails by the first.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use orrery_init_api::{FailureClass, NODE_CONFIG_PATH, Stage};
use orrery_protocol::{AREA_BYTES, NodeConfig, decode_area};
use rustix::{
    io::Errno,
    mount::{MountFlags, UnmountFlags, mount, unmount},
};
use thiserror::Error;

use crate::{StageFailure, events, files::write_json};

/// Where the PXE set's second initramfs puts the config area.
const INITRAMFS_AREA: &str = "/orrery/config-area";
/// The config area's file on the hybrid medium.
const MEDIUM_AREA: &str = "ORRERY.CFG";
/// Volume id of the hybrid medium.
const VOLUME_ID: &str = "ORRERY";
const MEDIUM_MOUNT: &str = "/mnt";

/// USB sticks and optical drives appear seconds after the kernel has started.
const MEDIA_DEADLINE: Duration = Duration::from_secs(10);
const MEDIA_POLL: Duration = Duration::from_millis(50);

/// ISO 9660 (ECMA-119, 8.4): the primary volume descriptor is sector 16; the volume id is 32 bytes from byte 40.
const VOLUME_DESCRIPTOR: u64 = 16 * 2048;

#[derive(Debug, Error)]
enum ConfigError {
    #[error(
        "no configuration found (looked for {INITRAMFS_AREA} and for a medium with volume id {VOLUME_ID} on: {devices})"
    )]
    Missing { devices: String },
    #[error("the configuration in {place} cannot be used: {what}")]
    Invalid { place: String, what: String },
    #[error("reading {place}")]
    Read { place: String, source: std::io::Error },
}

/// Finds the configuration and leaves it in `/run/orrery/node.json`; returns a sentence about it.
///
/// # Errors
/// None was found, or none that can be used.
pub fn run() -> Result<String, StageFailure> {
    let (config, place) = find()?;
    write_json(NODE_CONFIG_PATH, &config).map_err(|e| StageFailure::new(FailureClass::Internal, e))?;
    Ok(format!("{} from {place}", config.id))
}

fn find() -> Result<(NodeConfig, String), StageFailure> {
    let initramfs = match fs::read(INITRAMFS_AREA) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        read => Some((INITRAMFS_AREA.to_owned(), read)),
    };
    let mut broken = match first_good(initramfs) {
        Ok(found) => return Ok(found),
        Err(failure) => failure,
    };
    let end = Instant::now() + MEDIA_DEADLINE;
    loop {
        let devices = block_devices();
        let mut unreadable = None;
        let ours = devices.iter().filter(|device| {
            has_volume_id(device).unwrap_or_else(|source| {
                let place = device.display().to_string();
                unreadable.get_or_insert(ConfigError::Read { place, source });
                false
            })
        });
        match first_good(ours.map(|device| (format!("{MEDIUM_AREA} on {}", device.display()), read_medium(device)))) {
            Ok(found) => return Ok(found),
            Err(failure) => broken = broken.or(failure),
        }
        // PID 1 tries again soon: a medium that is only plugged in now is found then.
        if let Some(failure) = broken {
            return Err(failure);
        }
        if Instant::now() >= end {
            let names = devices.iter().map(|d| d.display().to_string()).collect::<Vec<_>>().join(" ");
            let missing = || StageFailure::new(FailureClass::ConfigMissing, ConfigError::Missing { devices: names });
            return Err(unreadable.map_or_else(missing, |error| StageFailure::new(FailureClass::Media, error)));
        }
        std::thread::sleep(MEDIA_POLL);
    }
}

/// The first configuration among `areas` that can be used. Every one before it is told; without any, the first failure is
/// the answer, if there was an area at all.
fn first_good(
    areas: impl IntoIterator<Item = (String, io::Result<Vec<u8>>)>,
) -> Result<(NodeConfig, String), Option<StageFailure>> {
    let mut first = None;
    for (place, area) in areas {
        let failure = match area {
            Ok(area) => match parse(&area, &place) {
                Ok(config) => return Ok((config, place)),
                Err(error) => StageFailure::new(FailureClass::ConfigInvalid, error),
            },
            Err(source) => StageFailure::new(FailureClass::Media, ConfigError::Read { place, source }),
        };
        events::tell(Stage::Configure, Some(failure.class), failure.chain());
        first.get_or_insert(failure);
    }
    Err(first)
}

fn parse(area: &[u8], place: &str) -> Result<NodeConfig, ConfigError> {
    let refuse = |what: String| ConfigError::Invalid { place: place.into(), what };
    let text = decode_area(area).map_err(|e| refuse(e.to_string()))?;
    parse_toml(text).map_err(refuse)
}

/// Parses and checks a `node.toml`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_toml(text: &str) -> Result<NodeConfig, String> {
    let config: NodeConfig = toml::from_str(text).map_err(|e| e.message().to_owned())?;
    config.check().map_err(|e| e.to_string())?;
    Ok(config)
}

fn block_devices() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir("/sys/class/block") else { return Vec::new() };
    let mut names: Vec<_> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| !["loop", "ram", "zram"].iter().any(|skip| name.starts_with(skip)))
        .collect();
    names.sort();
    names.iter().map(|name| Path::new("/dev").join(name)).collect()
}

/// Whether a device is our medium. A drive without a medium, or a disk too short, is not, and that is no error.
fn has_volume_id(device: &Path) -> io::Result<bool> {
    let mut descriptor = [0; 72];
    let read = File::open(device).and_then(|mut file| {
        file.seek(SeekFrom::Start(VOLUME_DESCRIPTOR))?;
        file.read_exact(&mut descriptor)
    });
    match read {
        Ok(()) => Ok(descriptor.starts_with(b"\x01CD001") && descriptor[40..].trim_ascii_end() == VOLUME_ID.as_bytes()),
        Err(error) if is_absent(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether there is nothing to read, as opposed to something that cannot be read.
fn is_absent(error: &io::Error) -> bool {
    let absent = [Errno::NOMEDIUM, Errno::MEDIUMTYPE, Errno::NXIO, Errno::NODEV, Errno::NOENT];
    error.kind() == ErrorKind::UnexpectedEof || Errno::from_io_error(error).is_some_and(|errno| absent.contains(&errno))
}

fn read_medium(device: &Path) -> std::io::Result<Vec<u8>> {
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount(device, MEDIUM_MOUNT, "iso9660", flags, None)?;
    let read = (|| -> std::io::Result<Vec<u8>> {
        let name = fs::read_dir(MEDIUM_MOUNT)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.file_name().is_some_and(|n| n.eq_ignore_ascii_case(MEDIUM_AREA)))
            .ok_or(std::io::ErrorKind::NotFound)?;
        let mut area = Vec::with_capacity(AREA_BYTES);
        File::open(name)?.take(AREA_BYTES as u64 + 1).read_to_end(&mut area)?;
        Ok(area)
    })();
    let unmounted = unmount(MEDIUM_MOUNT, UnmountFlags::empty());
    let area = read?;
    unmounted?;
    Ok(area)
}

#[cfg(test)]
pub(crate) mod tests {
    use orrery_protocol::{SigningKey, blank_area, encode_area};
    use proptest::prelude::*;

    use super::*;

    fn check(area: &[u8], expect: &str) {
        let got = parse(area, "here").map(|c| c.id).unwrap_or_else(|e| e.to_string());
        assert!(got.contains(expect), "{got:?} has no {expect:?}");
    }

    #[test]
    fn what_is_wrong_with_a_configuration_is_said() {
        check(&blank_area(), "blank");
        check(b"short", "no config area");
        check(&encode_area("id = ").unwrap(), "cannot be used");
        check(&encode_area("id = 'n1'\nunknown = 1").unwrap(), "unknown");
        check(&encode_area("id = 'n1'").unwrap(), "missing field");
    }

    /// A configuration that can be used, of a node that obeys `key`.
    pub(crate) fn sample(key: &SigningKey) -> String {
        let pem = |what: &str| format!("'''-----BEGIN {what}-----'''");
        format!(
            "id = 'n1'\nkey = {}\n[central]\nurls = ['https://c']\nca = {}\nrelease_keys = ['{}']\n",
            pem("PRIVATE KEY"),
            pem("CERTIFICATE"),
            key.public(),
        )
    }

    #[test]
    fn a_broken_place_does_not_hide_a_good_one() {
        let eio = || Err(Errno::IO.into());
        let blank = || Ok(blank_area());
        let check = |areas: Vec<io::Result<Vec<u8>>>, expect: &str| {
            let areas = areas.into_iter().enumerate().map(|(number, area)| (format!("place {number}"), area));
            let got = match first_good(areas) {
                Ok((config, place)) => format!("{} from {place}", config.id),
                Err(failure) => failure.map_or_else(|| "none".into(), |failure| failure.to_string()),
            };
            assert!(got.contains(expect), "{got:?} has no {expect:?}");
        };
        let text = sample(&SigningKey::from_scalar(&[9; 32]).unwrap());
        let good = || Ok(encode_area(&text).unwrap());
        check(vec![], "none");
        check(vec![blank(), good()], "n1 from place 1");
        check(vec![eio(), blank(), good(), good()], "n1 from place 2");
        check(vec![blank(), eio()], "config-invalid: the configuration in place 0 cannot be used: ");
        check(vec![eio(), blank()], "media: reading place 0: ");
    }

    #[test]
    fn a_medium_is_known_by_its_volume_id() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device");
        let check = |content: &[u8], expect: bool| {
            fs::write(&path, content).unwrap();
            assert_eq!(has_volume_id(&path).unwrap(), expect);
        };
        let mut image = vec![0; 17 * 2048];
        check(&image[..2048], false);
        check(&image, false);
        image[16 * 2048..][..6].copy_from_slice(b"\x01CD001");
        image[16 * 2048 + 40..][..32].copy_from_slice(format!("{VOLUME_ID:32}").as_bytes());
        check(&image, true);
        fs::remove_file(&path).unwrap();
        assert!(!has_volume_id(&path).unwrap());
        assert!(has_volume_id(folder.path()).is_err());
        assert!(is_absent(&Errno::NOMEDIUM.into()) && !is_absent(&Errno::IO.into()));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC{0,200}") {
            let _ = parse_toml(&text);
        }
    }
}
