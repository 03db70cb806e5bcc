//! Release keys, and signing with them. Everything here works without a network.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Subcommand;
use orrery_central_api::peek;
use orrery_protocol::{BootScript, PayloadType, PublicKey, ReleaseManifest, SigningKey, TrustUpdate, sign};
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
}

pub(crate) fn run(context: &Context, command: Keys) -> Result<()> {
    let Keys::New { out } = command;
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

fn generate() -> Result<SigningKey> {
    let mut random = File::open("/dev/urandom").context("opening /dev/urandom")?;
    loop {
        let mut scalar = [0; 32];
        random.read_exact(&mut scalar).context("reading /dev/urandom")?;
        // One number in 2^32 is not below the group's order.
        if let Ok(key) = SigningKey::from_scalar(&scalar) {
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

fn read_private(path: &Path) -> Result<SigningKey> {
    let text = files::read_text(path)?;
    text.trim().parse().with_context(|| format!("{} holds no private release key", path.display()))
}

/// Signs a document, or adds signatures to a signed one; `release sign` and `script sign`.
#[derive(clap::Args)]
pub(crate) struct Sign {
    /// Private release keys.
    #[arg(long = "key", value_name = "FILE", required = true)]
    keys: Vec<PathBuf>,
    /// Where the signed document goes; without it, beside the document, ending in `.signed`.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The document; a signed one gets further signatures.
    document: PathBuf,
}

impl Sign {
    pub(crate) fn run(self, context: &Context, payload_type: PayloadType) -> Result<()> {
        let bytes = files::read(&self.document)?;
        let keys = self.keys.iter().map(|path| read_private(path)).collect::<Result<Vec<_>>>()?;
        let out = self.out.unwrap_or_else(|| self.document.with_extension("signed"));
        let signed = add_signatures(&bytes, payload_type, &keys)
            .with_context(|| format!("signing {}", self.document.display()))?;
        files::write_new(&out, &signed, Access::Public)?;
        let signers = peek(&signed)?.signers;
        let value = json!({ "signed": out, "signers": signers });
        context.print(&value, |_| format!("signed {} ({} signatures)", out.display(), signers.len()))
    }
}

fn add_signatures(bytes: &[u8], payload_type: PayloadType, keys: &[SigningKey]) -> Result<Vec<u8>> {
    let earlier = peek(bytes).ok();
    let payload = earlier.as_ref().map_or(bytes, |e| e.payload);
    if earlier.as_ref().is_some_and(|e| e.payload_type != payload_type) {
        bail!("it is signed as another type of document");
    }
    match payload_type {
        PayloadType::BootScript => drop(BootScript::decode(payload)?),
        PayloadType::ReleaseManifest => drop(ReleaseManifest::decode(payload)?),
        PayloadType::TrustUpdate => drop(TrustUpdate::decode(payload)?),
    }
    let mut signers = earlier.map(|e| e.signers).unwrap_or_default();
    let before = signers.len();
    for key in keys {
        ensure!(!signers.contains(&key.public().id()), "key {} has signed it already", key.public().id());
        signers.push(key.public().id());
    }
    ensure!(signers.len() <= 16, "an envelope holds at most 16 signatures");
    let mut signed = sign(payload_type, payload, &keys.iter().collect::<Vec<_>>())?;
    // Earlier signatures stand at the end of the envelope they came in; byte 9 counts them all.
    signed[9] = signers.len() as u8;
    signed.extend_from_slice(&bytes[bytes.len() - before * (32 + 64)..]);
    Ok(signed)
}

/// `path` with something appended to its name.
fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use orrery_protocol::{Envelope, ScriptKind, TrustRoot};

    use super::*;

    #[test]
    fn signatures_of_several_people_add_up() {
        let script = BootScript {
            version: 1,
            kind: ScriptKind::Safe,
            nodes: vec!["*".to_owned()],
            serial: 1,
            issued: 0,
            expires: 9,
            release: None,
            ssh_keys: Vec::new(),
            networks: Vec::new(),
            mirrors: Vec::new(),
            waivers: Vec::new(),
        };
        let payload = script.encode().unwrap();
        let [a, b, c] = [1u8, 2, 3].map(|n| SigningKey::from_scalar(&[n; 32]).unwrap());
        let root = TrustRoot { keys: vec![a.public(), b.public(), c.public()], threshold: 3 };
        let kind = PayloadType::BootScript;
        let first = add_signatures(&payload, kind, std::slice::from_ref(&a)).unwrap();
        assert!(Envelope::parse(&first).unwrap().verify(kind, &root).is_err());
        let all = add_signatures(&first, kind, &[b, c]).unwrap();
        assert_eq!(Envelope::parse(&all).unwrap().verify(kind, &root).unwrap().payload(), payload);
        assert!(add_signatures(&all, kind, &[a]).is_err());
        assert!(add_signatures(&first, PayloadType::ReleaseManifest, &[generate().unwrap()]).is_err());
        assert!(add_signatures(b"{}", kind, &[generate().unwrap()]).is_err());
    }
}
