//! Release keys. Everything here works without a network.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::Subcommand;
use orrery_protocol::{Digest, PublicKey, SigningKey};
use rcgen::{KeyPair, PublicKeyData};
use serde::Serialize;
use serde_json::json;

use crate::{
    context::Context,
    files::{self, Access, Draft},
    node::word,
    units::clean,
};

/// The longest file that can be a key, in bytes; a folder may hold disks and images too.
const MAX_KEY_FILE: u64 = 64 << 10;

#[derive(Subcommand)]
pub(crate) enum Keys {
    /// Make a release key: a private file, and its public half beside it as FILE.pub.
    New {
        /// The private key's file; keep it offline.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Show public keys with their ids, by which documents name who signed them.
    Show {
        /// Public or private release keys; only the public half is shown.
        #[arg(required = true, value_name = "FILE")]
        keys: Vec<PathBuf>,
    },
    /// List the key files in a folder, with what each is for; other files are passed over.
    List {
        /// The folder; its subfolders are not looked into.
        #[arg(default_value = ".", value_name = "DIR")]
        folder: PathBuf,
    },
}

/// What a key file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Role {
    /// Signs documents.
    ReleasePrivate,
    /// Proves what was signed.
    ReleasePublic,
    /// Speaks to central, or for it, over TLS.
    TlsPrivate,
}

/// A key file of a folder.
#[derive(Debug, Serialize)]
struct Listed {
    /// As documents name a release key; of a TLS key, the digest of its public half, by which central knows it.
    id: Digest,
    algorithm: String,
    role: Role,
    path: PathBuf,
}

pub(crate) fn run(context: &Context, command: Keys) -> Result<()> {
    let out = match command {
        Keys::New { out } => out,
        Keys::Show { keys } => return show(context, &keys),
        Keys::List { folder } => return list(context, &folder),
    };
    let key = generate()?;
    let public_path = with_suffix(&out, ".pub");
    let secret: String = key.scalar().iter().map(|b| format!("{b:02x}")).collect();
    let secret = Draft::new(&out, format!("{secret}\n").as_bytes(), Access::Secret)?;
    let public = Draft::new(&public_path, format!("{}\n", key.public()).as_bytes(), Access::Public)?;
    secret.commit()?;
    public.commit()?;
    let value = json!({ "key": out, "public": public_path, "id": key.public().id() });
    context.print(&value, |_| format!("made {} and {}", out.display(), public_path.display()))
}

fn show(context: &Context, paths: &[PathBuf]) -> Result<()> {
    let read = |path: &PathBuf| {
        let text = files::read_text(path)?;
        let public = text.trim().parse::<PublicKey>().or_else(|_| read_private(path).map(|key| key.public()))?;
        Ok(json!({ "file": path, "public": public, "id": public.id() }))
    };
    let keys = paths.iter().map(read).collect::<Result<Vec<_>>>()?;
    context.print(&keys, |keys| {
        let line = |key: &serde_json::Value| format!("{}: id {}", key["file"], key["id"]);
        keys.iter().map(line).collect::<Vec<_>>().join("\n")
    })
}

fn list(context: &Context, folder: &Path) -> Result<()> {
    let reading = || format!("listing {}", folder.display());
    let mut keys = Vec::new();
    for entry in fs::read_dir(folder).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        // A link that leads nowhere is no key either.
        if !fs::metadata(&path).is_ok_and(|found| found.is_file() && found.len() <= MAX_KEY_FILE) {
            continue;
        }
        // Other files need not be text.
        let content = String::from_utf8(files::read(&path)?).unwrap_or_default();
        if let Some((role, id, algorithm)) = recognise(content.trim()) {
            keys.push(Listed { id, algorithm, role, path });
        }
    }
    keys.sort_by(|one, other| one.path.cmp(&other.path));
    context.print(&keys, |keys| {
        let line = |key: &Listed| {
            format!("{} {} {} {}", key.id, key.algorithm, word(&Some(key.role)), clean(&key.path.to_string_lossy()))
        };
        keys.iter().map(line).collect::<Vec<_>>().join("\n")
    })
}

/// The role, the id and the algorithm of the key in a file, if it holds one.
fn recognise(text: &str) -> Option<(Role, Digest, String)> {
    let release = |role, key: PublicKey| (role, key.id(), "ecdsa-p256".to_owned());
    if let Ok(key) = text.parse::<PublicKey>() {
        return Some(release(Role::ReleasePublic, key));
    }
    if let Ok(key) = text.parse::<SigningKey>() {
        return Some(release(Role::ReleasePrivate, key.public()));
    }
    let key = KeyPair::from_pem(text).ok()?;
    let algorithm = match key.algorithm() {
        p256 if *p256 == rcgen::PKCS_ECDSA_P256_SHA256 => "ecdsa-p256".to_owned(),
        other => format!("{other:?}"),
    };
    Some((Role::TlsPrivate, Digest::of(&key.subject_public_key_info()), algorithm))
}

/// Random bytes for a secret.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut random = File::open("/dev/urandom").context("opening /dev/urandom")?;
    random.read_exact(&mut bytes).context("reading /dev/urandom")?;
    Ok(bytes)
}

pub(crate) fn generate() -> Result<SigningKey> {
    loop {
        // One number in 2^32 is not below the group's order.
        if let Ok(key) = SigningKey::from_scalar(&random()?) {
            return Ok(key);
        }
    }
}

/// Public release keys of files.
pub(crate) fn read_public(paths: &[PathBuf]) -> Result<Vec<PublicKey>> {
    let read = |path: &PathBuf| {
        let text = files::read_text(path)?;
        text.trim().parse().with_context(|| format!("{} holds no public release key", path.display()))
    };
    paths.iter().map(read).collect()
}

pub(crate) fn read_private(path: &Path) -> Result<SigningKey> {
    let text = files::read_text(path)?;
    text.trim().parse().with_context(|| format!("{} holds no private release key", path.display()))
}

/// `path` with something appended to its name.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
