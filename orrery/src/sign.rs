//! `orrery sign`: signing documents, by one person after the other. Works without a network.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};
use orrery_central_api::peek;
use orrery_protocol::{BootScript, Digest, PayloadType, ReleaseManifest, SigningKey, TrustUpdate, sign};
use serde_json::json;

use crate::{
    confirm::Confirm,
    context::Context,
    files::{self, Access},
    keys::read_private,
    units::{clean, show_time, table},
};

/// Signs a document, or adds signatures to a signed one; `sign`, and `release sign` and `script sign` that take one type.
#[derive(clap::Args)]
pub(crate) struct Sign {
    /// Private release keys.
    #[arg(long = "key", value_name = "FILE", required = true)]
    keys: Vec<PathBuf>,
    /// Where the signed document goes; without it, beside the document, ending in `.signed`.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    confirm: Confirm,
    /// The document; a signed one gets further signatures.
    document: PathBuf,
}

impl Sign {
    /// Signs a document of `expected` type, or of whichever it is.
    pub(crate) fn run(self, context: &Context, expected: Option<PayloadType>) -> Result<()> {
        let bytes = files::read(&self.document)?;
        let signing = || format!("signing {}", self.document.display());
        let document = Document::read(&bytes).with_context(signing)?;
        if expected.is_some_and(|expected| expected != document.payload_type()) {
            bail!("{} is another type of document", self.document.display());
        }
        let keys = self.keys.iter().map(|path| read_private(path)).collect::<Result<Vec<_>>>()?;
        let out = match &self.out {
            Some(out) => out.clone(),
            None => self.document.with_extension("signed"),
        };
        self.confirm.ask(|| {
            let earlier = peek(&bytes).map(|peeked| peeked.signers.len()).unwrap_or(0);
            let ids = keys.iter().map(|key| key.public().id().to_string()).collect::<Vec<_>>().join("\n  ");
            Ok(format!("{}\nIt has {earlier} signatures. It will be signed with\n  {ids}", document.describe()))
        })?;
        let signed = add_signatures(&bytes, document.payload_type(), &keys).with_context(signing)?;
        files::write_new(&out, &signed, Access::Public)?;
        let signers = peek(&signed)?.signers;
        let value = json!({ "signed": out, "signers": signers, "document": document.describe() });
        context.print(&value, |_| format!("signed {} ({} signatures)", out.display(), signers.len()))
    }
}

/// A document of any type that is signed.
pub(crate) enum Document {
    Script(BootScript),
    Release(ReleaseManifest),
    Trust(TrustUpdate),
}

impl Document {
    /// Reads a document, signed or not. Of one that is not signed, the type is what it parses as: the types have no required
    /// fields in common but the version.
    pub(crate) fn read(bytes: &[u8]) -> Result<Self> {
        if let Ok(peeked) = peek(bytes) {
            return Ok(match peeked.payload_type {
                PayloadType::BootScript => Self::Script(BootScript::decode(peeked.payload)?),
                PayloadType::ReleaseManifest => Self::Release(ReleaseManifest::decode(peeked.payload)?),
                PayloadType::TrustUpdate => Self::Trust(TrustUpdate::decode(peeked.payload)?),
            });
        }
        let value: serde_json::Value = serde_json::from_slice(bytes).context("it is neither signed nor JSON")?;
        match ["kind", "release_keys", "artifacts"].map(|field| value.get(field).is_some()) {
            [true, false, false] => Ok(Self::Script(BootScript::decode(bytes)?)),
            [false, true, false] => Ok(Self::Trust(TrustUpdate::decode(bytes)?)),
            [false, false, true] => Ok(Self::Release(ReleaseManifest::decode(bytes)?)),
            _ => bail!("it is no boot script, release manifest or trust update"),
        }
    }

    pub(crate) fn payload_type(&self) -> PayloadType {
        match self {
            Self::Script(_) => PayloadType::BootScript,
            Self::Release(_) => PayloadType::ReleaseManifest,
            Self::Trust(_) => PayloadType::TrustUpdate,
        }
    }

    /// What it makes nodes do, in words.
    pub(crate) fn describe(&self) -> String {
        let mut rows: Vec<(&str, String)> = Vec::new();
        match self {
            Self::Script(script) => {
                rows.push(("boot script", format!("{} for {}", script.kind, script.nodes.join(", "))));
                rows.push(("serial", script.serial.to_string()));
                rows.push(("issued", show_time(script.issued)));
                rows.push(("expires", show_time(script.expires)));
                rows.extend(script.release.map(|release| ("release", release.sha256.to_string())));
                rows.extend(script.ssh_keys.iter().map(|key| ("ssh key", key.clone())));
                rows.extend(script.networks.iter().map(|network| ("ssh from", network.to_string())));
                rows.extend(script.mirrors.iter().map(|mirror| ("mirror", mirror.clone())));
                rows.extend(script.waivers.iter().map(|waiver| ("waived", waiver.to_string())));
            }
            Self::Release(manifest) => {
                rows.push(("release", manifest.release.clone()));
                rows.push(("command line", manifest.cmdline.clone()));
                let artifact = |a: &orrery_protocol::ReleaseArtifact| format!("{} {}", a.name, a.content.sha256);
                rows.extend(manifest.artifacts.iter().map(|a| ("artifact", artifact(a))));
            }
            Self::Trust(update) => {
                rows.push(("trust root", update.serial.to_string()));
                rows.push(("issued", show_time(update.issued)));
                let (needed, of) = (update.release_threshold, update.release_keys.len());
                rows.push(("threshold", format!("{needed} of {of} keys must sign what nodes do")));
                rows.extend(update.release_keys.iter().map(|key| ("release key", key.id().to_string())));
                rows.push(("authorities", format!("SHA-256 of the file {}", Digest::of(update.ca.as_bytes()))));
            }
        }
        table(&rows.into_iter().map(|(name, value)| vec![name.to_owned(), clean(&value)]).collect::<Vec<_>>())
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

#[cfg(test)]
mod tests {
    use orrery_protocol::{Envelope, ScriptKind, TrustRoot};

    use super::*;
    use crate::keys::generate;

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
