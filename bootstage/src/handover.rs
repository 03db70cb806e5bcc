//! What the boot stage leaves to the node OS: in memory only, as a cpio archive behind the verified image.

use std::fs;

use anyhow::{Context, Result, ensure};
use orrery_init_api::{HANDOVER_CPIO_PATH, NODE_CONFIG_PATH};
use orrery_protocol::{ArtifactRef, NodeConfig, ReleaseManifest};
use serde::{Deserialize, Serialize};

use crate::files::write_json;

/// Everything the node OS starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// The node's configuration.
    pub config: NodeConfig,
    /// The id of this boot.
    pub boot_id: String,
    /// Version of the medium.
    pub medium_version: String,
    /// The slot that runs.
    pub slot: String,
    /// The release that runs.
    pub release: ReleaseManifest,
    /// Why the last good script decided this boot instead of central, if it did.
    #[serde(default)]
    pub offline: Option<String>,
    /// Whether the release is on trial: it becomes the active one when it says that it is healthy.
    #[serde(default)]
    pub trial: bool,
}

impl Handover {
    /// The running release's reference images by name.
    pub fn image(&self, name: &str) -> Option<ArtifactRef> {
        self.release.images().find(|image| image.name == name).map(|image| image.content)
    }

    /// What a boot stage left, with a configuration that makes sense.
    ///
    /// # Errors
    /// It is no handover, or one of a boot stage that is not understood.
    pub fn decode(json: &[u8]) -> Result<Self> {
        let handover: Self = serde_json::from_slice(json).context("understanding the handover")?;
        handover.config.check().context("checking the configuration that was handed over")?;
        Ok(handover)
    }

    /// A cpio archive that puts this at [`HANDOVER_CPIO_PATH`].
    ///
    /// # Errors
    /// It cannot be encoded.
    pub fn to_cpio(&self) -> Result<Vec<u8>> {
        let json = serde_json::to_vec(self).context("encoding the handover")?;
        let mut out = Vec::new();
        let name = HANDOVER_CPIO_PATH.trim_start_matches('/');
        if let Some((folder, _)) = name.rsplit_once('/') {
            cpio_entry(&mut out, folder, 0o040_700, b"");
        }
        cpio_entry(&mut out, name, 0o100_600, &json);
        cpio_entry(&mut out, "TRAILER!!!", 0, b"");
        Ok(out)
    }
}

/// One entry of the "new ASCII" format (Linux: Documentation/driver-api/early-userspace/buffer-format.rst).
fn cpio_entry(out: &mut Vec<u8>, name: &str, mode: u32, content: &[u8]) {
    let pad = |out: &mut Vec<u8>| out.resize(out.len().next_multiple_of(4), 0);
    let fields = [0, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0];
    out.extend_from_slice(b"070701");
    fields.iter().for_each(|field| out.extend_from_slice(format!("{field:08x}").as_bytes()));
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(content);
    pad(out);
}

/// Takes up what the boot stage left: checks it, and leaves the configuration where the stages look for it.
///
/// # Errors
/// The node OS was not chain-booted by a boot stage, or by one that it does not understand.
pub fn take_up() -> Result<Handover> {
    let handover = read()?;
    write_json(NODE_CONFIG_PATH, &handover.config)?;
    Ok(handover)
}

/// What the boot stage left.
///
/// # Errors
/// As [`take_up`].
pub fn read() -> Result<Handover> {
    let json = fs::read(HANDOVER_CPIO_PATH).with_context(|| format!("reading {HANDOVER_CPIO_PATH}"))?;
    Handover::decode(&json).with_context(|| format!("taking up {HANDOVER_CPIO_PATH}"))
}

/// The version in `/etc/orrery-release`.
pub(crate) fn image_version() -> String {
    let release = fs::read_to_string(orrery_init_api::RELEASE_PATH).unwrap_or_default();
    release.lines().find_map(|line| line.strip_prefix("version=")).unwrap_or("unknown").to_owned()
}

/// Refuses a kernel command line that would not fit, in bytes.
pub(crate) fn check_cmdline(cmdline: &str) -> Result<()> {
    // x86's COMMAND_LINE_SIZE.
    ensure!(cmdline.len() < 2048, "the kernel command line has {} bytes, 2047 are possible", cmdline.len());
    ensure!(!cmdline.contains('\0'), "the kernel command line contains a zero byte");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_entries_are_aligned_and_named() {
        let mut out = Vec::new();
        cpio_entry(&mut out, "orrery/a", 0o100_600, b"hello");
        assert_eq!(out.len() % 4, 0);
        assert!(out.starts_with(b"07070100000000000081800000000000000000000000010000000000000005"));
        assert!(out[110..].starts_with(b"orrery/a\0"));
    }
}
