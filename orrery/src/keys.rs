//! Release keys. Everything here works without a network.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use clap::Subcommand;
use orrery_protocol::{PublicKey, SigningKey};
use serde_json::json;

use crate::{
    context::Context,
    files::{self, Access, Draft},
};

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
}

pub(crate) fn run(context: &Context, command: Keys) -> Result<()> {
    let out = match command {
        Keys::New { out } => out,
        Keys::Show { keys } => return show(context, &keys),
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
