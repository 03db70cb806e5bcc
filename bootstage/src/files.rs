//! Files shared between stages: small, private, never half-written.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use orrery_init_api::{BOOT_ID_PATH, FailureClass, NODE_CONFIG_PATH};
use orrery_installer::replace_file;
use orrery_protocol::NodeConfig;
use serde::{Serialize, de::DeserializeOwned};

use crate::StageFailure;

/// Replaces `path` by `bytes`, readable by root alone; a reader sees the old content or the new, and so does whoever
/// comes after a power cut.
///
/// # Errors
/// The file cannot be written.
pub fn write_private(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    replace_file(path, bytes, 0o600).with_context(|| format!("writing {}", path.display()))
}

pub(crate) fn write_json(path: &str, value: &impl Serialize) -> Result<()> {
    let bytes = serde_json::to_vec(value).with_context(|| format!("encoding {path}"))?;
    write_private(path, &bytes)
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &str) -> Result<T> {
    let bytes = fs::read(path).with_context(|| format!("reading {path}"))?;
    serde_json::from_slice(&bytes).with_context(|| format!("understanding {path}"))
}

/// The configuration that the configure stage found.
///
/// # Errors
/// It has not run.
pub fn node_config() -> Result<NodeConfig, StageFailure> {
    read_json(NODE_CONFIG_PATH).map_err(|e| StageFailure::new(FailureClass::Internal, e))
}

/// The id of this boot.
///
/// # Errors
/// PID 1 has left none.
pub fn boot_id() -> Result<String> {
    let text = fs::read_to_string(BOOT_ID_PATH).with_context(|| format!("reading {BOOT_ID_PATH}"))?;
    Ok(text.trim().to_owned())
}
