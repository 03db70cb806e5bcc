//! Who this node is: its key, and what follows from it.
//!
//! A medium that anybody may have carries a one-time token instead of a key. The node makes its key itself, becomes the node
//! that the token stands for, and keeps the key on its disk; only then is the token spent. Until then it may be used
//! again, since the power may go before the key is anywhere.

use std::{
    fs::{self, File},
    path::Path,
};

use orrery_init_api::{FailureClass, NODE_CONFIG_PATH, Stage};
use orrery_installer::{KeptIdentity, read_identity, write_identity};
use orrery_protocol::{Digest, EnrolRequest, Enrolled, NodeConfig, Sha256};
use orrery_transport::{Method, new_key_pem};
use serde::Serialize;

use crate::{
    StageFailure, central, disks, events, facts,
    files::{write_json, write_private},
};

/// A key that is not kept on a disk yet.
const NEW_KEY: &str = "/run/orrery/enrol.key";

/// `POST /v1/enrol/confirm`.
#[derive(Serialize)]
struct Confirm<'a> {
    token: &'a str,
}

/// The configuration with the key that this machine keeps, or with a new one where it has to enrol. As it is, where the medium has
/// a key.
///
/// # Errors
/// No key can be made.
pub(crate) fn take_up(config: &NodeConfig) -> Result<NodeConfig, StageFailure> {
    if !config.must_enrol() {
        return Ok(config.clone());
    }
    // A node that has enrolled must not do so again because its disk is slow.
    disks::wait_for_any();
    if let Some((disk, kept)) = disks::identity_places(config).into_iter().find_map(|disk| kept_on(config, &disk)) {
        let config = with_identity(config, &kept);
        events::tell(Stage::Contact, None, format!("node {} by the key that {disk} keeps", config.id));
        leave(&config)?;
        return Ok(config);
    }
    let internal = |e: anyhow::Error| StageFailure::new(FailureClass::Internal, e);
    let key = match fs::read_to_string(NEW_KEY) {
        Ok(key) => key,
        Err(_) => {
            let key = new_key_pem().map_err(|e| internal(e.into()))?;
            write_private(NEW_KEY, key.as_bytes()).map_err(internal)?;
            key
        }
    };
    Ok(NodeConfig { key, ..config.clone() })
}

/// Makes `config`, which [`take_up`] gave, that of a node which the server at `url` knows: enrols if this machine is nobody
/// yet, and spends the token once the key is kept.
///
/// # Errors
/// The server does not accept the token, or cannot be reached.
pub(crate) fn settle(config: NodeConfig, url: &str) -> Result<NodeConfig, StageFailure> {
    let Some(token) = config.enrol_token.clone().filter(|token| !token.is_empty()) else { return Ok(config) };
    if !config.id.is_empty() {
        confirm_kept(&config, &token, url);
        return Ok(config);
    }
    let request = EnrolRequest { token: token.clone(), facts: facts::gather(&config) };
    let enrolled: Enrolled = central::client(&config, url)?.exchange(Method::POST, "/v1/enrol", &request)?;
    let mut groups = config.groups.clone();
    groups.extend(enrolled.groups.into_iter().filter(|group| !config.groups.contains(group)));
    let config = NodeConfig { id: enrolled.node, name: enrolled.name, groups, ..config };
    config.check().map_err(|e| StageFailure::new(FailureClass::Enrolment, e))?;
    events::tell(Stage::Contact, None, format!("enrolled as node {} at {url}", config.id));
    leave(&config)?;
    confirm_kept(&config, &token, url);
    Ok(config)
}

/// Keeps the key of a node that enrolled on the disk that it was just installed on, and spends the token then.
pub(crate) fn settle_installed(config: &NodeConfig) {
    let token = config.enrol_token.as_ref().filter(|token| !token.is_empty());
    if let (Some(token), Some(url)) = (token, config.central.urls.first()) {
        confirm_kept(config, token, url);
    }
}

/// Keeps the key if there is a place for it, and tells central so. Neither is needed to go on: it is tried again at the next
/// contact, and at the next boot.
fn confirm_kept(config: &NodeConfig, token: &str, url: &str) {
    let Some(mut kept) = keep(config) else { return };
    if kept.confirmed {
        return;
    }
    let confirmed = central::client(config, url)
        .and_then(|client| Ok(client.send(Method::POST, "/v1/enrol/confirm", &Confirm { token })?));
    match confirmed {
        Ok(()) => {
            kept.confirmed = true;
            write_to(config, &kept);
            events::tell(Stage::Contact, None, format!("the key of node {} is kept, its token is spent", config.id));
        }
        Err(failure) => events::tell(Stage::Contact, Some(failure.class), failure.chain()),
    }
}

/// Makes sure that the node's disk keeps its key, and returns what it keeps; none while there is no disk for it.
fn keep(config: &NodeConfig) -> Option<KeptIdentity> {
    let place = disks::identity_places(config).into_iter().next()?;
    if let Some((_, kept)) = kept_on(config, &place).filter(|(_, kept)| kept.key == config.key) {
        return Some(kept);
    }
    let kept = KeptIdentity {
        node: config.id.clone(),
        name: config.name.clone(),
        groups: config.groups.clone(),
        key: config.key.clone(),
        central: central_digest(config),
        confirmed: false,
    };
    write_to(config, &kept).then_some(kept)
}

fn write_to(config: &NodeConfig, kept: &KeptIdentity) -> bool {
    let Some(disk) = disks::identity_places(config).into_iter().next() else { return false };
    match write_synced(&disk, kept) {
        Ok(()) => true,
        Err(error) => {
            let message = format!("keeping the node's key on {}: {error}", disk.display());
            events::tell(Stage::Contact, Some(FailureClass::Io), message);
            false
        }
    }
}

fn write_synced(disk: &Path, kept: &KeptIdentity) -> std::io::Result<()> {
    let mut file = File::options().read(true).write(true).open(disk)?;
    write_identity(&mut file, kept)?;
    file.sync_all()
}

/// The identity on `disk`, if it is one of this medium's central.
fn kept_on(config: &NodeConfig, disk: &Path) -> Option<(String, KeptIdentity)> {
    let kept = read_identity(&mut File::open(disk).ok()?).ok()??;
    (kept.central == central_digest(config)).then(|| (disk.display().to_string(), kept))
}

/// By what a medium's central is known: the authority that the medium pins, whatever has replaced it since.
fn central_digest(config: &NodeConfig) -> Digest {
    Digest::of(config.medium_root().ca.trim().as_bytes())
}

fn with_identity(config: &NodeConfig, kept: &KeptIdentity) -> NodeConfig {
    NodeConfig {
        id: kept.node.clone(),
        name: kept.name.clone(),
        groups: kept.groups.clone(),
        key: kept.key.clone(),
        ..config.clone()
    }
}

fn leave(config: &NodeConfig) -> Result<(), StageFailure> {
    write_json(NODE_CONFIG_PATH, config).map_err(|e| StageFailure::new(FailureClass::Internal, e))
}

/// Separates the seed from every other use of the node key.
const HOST_KEY_DOMAIN: &[u8] = b"orrery-ssh-host-key-v1\0";

/// The seed of the key by which this node's sshd proves itself, in safe mode as in the node OS. It follows from the node key,
/// so that it needs no place to be kept, survives a reinstallation, and central can know its public half before the
/// first login.
pub fn host_key_seed(config: &NodeConfig) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(HOST_KEY_DOMAIN);
    hash.update(config.key.trim().as_bytes());
    hash.finish().0
}

#[cfg(test)]
mod tests {
    use orrery_protocol::SigningKey;

    use super::*;
    use crate::configure::{parse_toml, tests::sample};

    #[test]
    fn a_disk_makes_a_node_of_its_own_central_only() {
        let text = sample(&SigningKey::from_scalar(&[9; 32]).unwrap());
        let medium = parse_toml(&text).unwrap();
        let medium = NodeConfig { id: String::new(), key: String::new(), enrol_token: Some("t".into()), ..medium };
        assert!(medium.must_enrol());
        let disk = tempfile::NamedTempFile::new().unwrap();
        disk.as_file().set_len(1 << 20).unwrap();
        assert_eq!(kept_on(&medium, disk.path()), None);
        let kept = KeptIdentity {
            node: "n7".into(),
            name: "seven".into(),
            groups: vec!["edge".into()],
            key: "-----BEGIN PRIVATE KEY-----".into(),
            central: central_digest(&medium),
            confirmed: false,
        };
        write_synced(disk.path(), &kept).unwrap();
        let (_, found) = kept_on(&medium, disk.path()).unwrap();
        let node = with_identity(&medium, &found);
        assert_eq!((node.id.as_str(), node.name.as_str(), node.must_enrol()), ("n7", "seven", false));
        assert_eq!(node.groups, ["edge"]);
        node.check().unwrap();
        write_synced(disk.path(), &KeptIdentity { central: Digest([1; 32]), ..kept }).unwrap();
        assert_eq!(kept_on(&medium, disk.path()), None);
    }

    #[test]
    fn the_seed_follows_from_the_key_and_nothing_else() {
        let config = parse_toml(&sample(&SigningKey::from_scalar(&[9; 32]).unwrap())).unwrap();
        let expect = Digest::of(b"orrery-ssh-host-key-v1\0-----BEGIN PRIVATE KEY-----").0;
        assert_eq!(host_key_seed(&config), expect);
        let padded = NodeConfig { key: format!("\n{}\n", config.key), name: "another".into(), ..config.clone() };
        assert_eq!(host_key_seed(&padded), expect);
        assert_ne!(host_key_seed(&NodeConfig { key: "another".into(), ..config }), expect);
    }
}
