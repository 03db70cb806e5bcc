//! The support bundle: a tar archive of what explains a failure, bounded, and without anything secret.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use orrery_init_api::{CLOCK_PATH, EVENTS_PATH, NETWORK_PATH, PLAN_PATH, RELEASE_PATH, RUN_DIR};
use orrery_protocol::NodeConfig;

use super::NodeState;
use crate::{facts, node_config};

/// Of every file its last bytes, at most so many: the end is where it went wrong.
const MAX_FILE: u64 = 1 << 20;
/// Records of earlier boots, at most so many.
const MAX_RECORDS: usize = 16;
/// What earlier boots left in reserved memory.
const PSTORE: &str = "/sys/fs/pstore";

/// Writes the bundle to `path`, which may exist.
///
/// # Errors
/// It cannot be written.
pub(super) fn to_file(path: &Path) -> Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    write(file.with_context(|| format!("creating {}", path.display()))?)?;
    println!("wrote {}", path.display());
    Ok(())
}

/// Writes the bundle.
///
/// # Errors
/// It cannot be written.
pub(super) fn write(to: impl Write) -> Result<()> {
    let mut bundle = Bundle(tar::Builder::new(to));
    let state = NodeState::gather();
    bundle.json("state.json", &state)?;
    bundle.add("state.txt", state.to_string().as_bytes())?;
    if let Ok(config) = node_config() {
        bundle.json("facts.json", &facts::gather(&config))?;
        bundle.json("node.json", &without_secrets(config))?;
    }
    bundle.add("dmesg.txt", &dmesg())?;
    let firewall = format!("{RUN_DIR}/firewall.nft");
    let proc = ["cmdline", "meminfo", "mounts", "partitions", "interrupts"].map(|name| format!("/proc/{name}"));
    let ours = [EVENTS_PATH, NETWORK_PATH, CLOCK_PATH, PLAN_PATH, RELEASE_PATH, "/etc/resolv.conf", firewall.as_str()];
    for path in ours.into_iter().chain(proc.iter().map(String::as_str)) {
        bundle.file(Path::new(path))?;
    }
    for path in records() {
        bundle.file(&path)?;
    }
    bundle.0.into_inner().and_then(|mut to| to.flush()).context("writing the bundle")
}

/// The configuration, as far as anybody may see it.
fn without_secrets(config: NodeConfig) -> NodeConfig {
    NodeConfig { key: String::new(), enrol_token: config.enrol_token.map(|_| String::new()), ..config }
}

fn dmesg() -> Vec<u8> {
    let output = Command::new("/bin/dmesg").stdin(Stdio::null()).output();
    output.map_or_else(|error| format!("running dmesg: {error}\n").into_bytes(), |output| output.stdout)
}

fn records() -> Vec<PathBuf> {
    let entries = fs::read_dir(PSTORE).into_iter().flatten().flatten();
    let mut records: Vec<_> = entries.map(|entry| entry.path()).collect();
    records.sort();
    records.truncate(MAX_RECORDS);
    records
}

struct Bundle<W: Write>(tar::Builder<W>);

impl<W: Write> Bundle<W> {
    fn json(&mut self, name: &str, value: &impl serde::Serialize) -> Result<()> {
        let json = serde_json::to_vec_pretty(value).with_context(|| format!("writing {name} as JSON"))?;
        self.add(name, &json)
    }

    /// A file that is not there is left out.
    fn file(&mut self, path: &Path) -> Result<()> {
        let Ok(content) = tail(path) else { return Ok(()) };
        self.add(&path.to_string_lossy().trim_start_matches('/').replace('/', "-"), &content)
    }

    fn add(&mut self, name: &str, content: &[u8]) -> Result<()> {
        let most = usize::try_from(MAX_FILE).unwrap_or(usize::MAX);
        let content = content.get(content.len().saturating_sub(most)..).unwrap_or_default();
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(std::time::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs()));
        let path = format!("orrery-bundle/{name}");
        self.0.append_data(&mut header, &path, content).with_context(|| format!("writing {path}"))
    }
}

/// The last bytes of a file. What procfs makes up has no length, and is read from its beginning.
fn tail(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(MAX_FILE)))?;
    let mut content = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use orrery_protocol::SigningKey;

    use super::*;
    use crate::configure::{parse_toml, tests::sample};

    #[test]
    fn secrets_stay_here() {
        let config = parse_toml(&sample(&SigningKey::from_scalar(&[9; 32]).unwrap())).unwrap();
        let config = NodeConfig { enrol_token: Some("a token".into()), ..config };
        let shown = serde_json::to_string(&without_secrets(config)).unwrap();
        assert!(!shown.contains("PRIVATE KEY") && !shown.contains("a token"), "{shown}");
        assert!(shown.contains("\"n1\""), "{shown}");
    }

    #[test]
    fn every_file_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let long = vec![b'a'; 3 << 20];
        fs::write(&path, [&long[..], b"end"].concat()).unwrap();
        let mut out = Vec::new();
        let mut bundle = Bundle(tar::Builder::new(&mut out));
        bundle.file(&path).unwrap();
        bundle.file(Path::new("/nowhere")).unwrap();
        bundle.add("dmesg.txt", &long).unwrap();
        bundle.0.finish().unwrap();
        drop(bundle);
        assert!(out.len() < 3 << 20, "{}", out.len());
        let mut archive = tar::Archive::new(&out[..]);
        let mut entries = archive.entries().unwrap();
        let mut content = Vec::new();
        entries.next().unwrap().unwrap().read_to_end(&mut content).unwrap();
        assert!(content.ends_with(b"aend") && content.len() == 1 << 20);
        assert_eq!(entries.count(), 1);
    }
}
