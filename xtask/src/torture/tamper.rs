//! Torture by tampering: every signed or hashed thing a node reads, changed at random, and given to the code that verifies it.

use std::{
    fs::{self, File},
    io::Read,
    path::Path,
};

use anyhow::{Context, Result, bail};
use orrery_installer::copy_verified;
use orrery_protocol::{
    ArtifactRef, ArtifactRole, BootScript, ChunkIndex, Digest, MinimumHardware, PayloadType, ReleaseArtifact,
    ReleaseManifest, Root, ScriptContext, ScriptKind, SigningKey, TrustRoot, TrustUpdate, decode_area, encode_area,
    sign,
};
use tempfile::TempDir;

use super::Random;
use crate::ui;

/// A verifier: whether it takes bytes for true.
type Accepts = dyn Fn(&[u8]) -> Result<bool>;

/// Something that is signed or hashed, and the code that proves it.
struct Thing {
    name: &'static str,
    truth: Vec<u8>,
    /// How many bytes from its start are protected; what is behind them is padding that nobody reads.
    protected: usize,
    /// Whether bytes are taken for the truth, or for any other truth.
    accepts: Box<Accepts>,
}

impl Thing {
    fn new(name: &'static str, truth: Vec<u8>, accepts: impl Fn(&[u8]) -> Result<bool> + 'static) -> Self {
        Self { name, protected: truth.len(), truth, accepts: Box::new(accepts) }
    }
}

/// How bytes are changed.
#[derive(Debug, Clone, Copy)]
enum Change {
    FlipBit,
    SetByte,
    Truncate,
    Insert,
    Duplicate,
    SwapBlocks,
}

const CHANGES: [Change; 6] =
    [Change::FlipBit, Change::SetByte, Change::Truncate, Change::Insert, Change::Duplicate, Change::SwapBlocks];
/// The longest stretch that is inserted, duplicated or swapped, in bytes.
const LONGEST: usize = 256;
/// An artifact large enough for several chunks, small enough for a thousand hashings.
const ARTIFACT: usize = 64 << 10;
const CHUNK: usize = 10_000;
const NODE: &str = "n1";
const NOW: u64 = 1500;

/// `runs` changes, one thing and one change at a time, against the verifying code itself.
///
/// # Errors
/// A change was accepted, or a truth was not.
pub(crate) fn direct(runs: u32, seed: u64) -> Result<()> {
    let folder = tempfile::tempdir().context("making a folder for what stands on a disk")?;
    let things = things(&folder)?;
    let mut counts = vec![0_u32; things.len()];
    let mut faults = Vec::new();
    for run in 0..runs {
        let at = run as usize % things.len();
        let thing = &things[at];
        let mut random = Random::new(seed, run);
        let (changed, change) = tampered(thing, &mut random);
        if (thing.accepts)(&changed)? {
            faults.push(format!("{}: {change:?} was accepted (run {run} of seed {seed})", thing.name));
        }
        // What a refusal leaves behind must not keep the truth out.
        if !(thing.accepts)(&thing.truth)? {
            faults.push(format!("{}: the truth is refused after run {run} of seed {seed}", thing.name));
        }
        counts[at] += 1;
    }
    for (thing, count) in things.iter().zip(&counts) {
        ui::say("tamper", &format!("{count:>5} changes of {}", thing.name));
    }
    if !faults.is_empty() {
        bail!("{} of {runs} runs failed:\n{}", faults.len(), faults.join("\n"));
    }
    ui::say("tamper", &format!("none of {runs} changes was accepted (seed {seed}); every truth was"));
    Ok(())
}

/// A copy of the truth with one change that makes it differ.
fn tampered(thing: &Thing, random: &mut Random) -> (Vec<u8>, Change) {
    loop {
        let change = random.one_of(&CHANGES);
        let mut bytes = thing.truth.clone();
        let at = random.below(thing.protected);
        let length = 1 + random.below(LONGEST.min(thing.protected - at));
        match change {
            Change::FlipBit => bytes[at] ^= 1 << random.below(8),
            Change::SetByte => bytes[at] = random.byte(),
            Change::Truncate => bytes.truncate(at),
            Change::Insert => {
                let new: Vec<u8> = (0..length).map(|_| random.byte()).collect();
                bytes.splice(at..at, new);
            }
            Change::Duplicate => {
                let again = bytes[at..at + length].to_vec();
                bytes.splice(at..at, again);
            }
            Change::SwapBlocks => {
                let other = random.below(thing.protected - length + 1);
                for i in 0..length {
                    bytes.swap(at + i, other + i);
                }
            }
        }
        if bytes != thing.truth {
            return (bytes, change);
        }
    }
}

fn key(n: u8) -> Result<SigningKey> {
    SigningKey::from_scalar(&[n; 32]).context("making a signing key")
}

/// Two of these three keys must sign, and no more than two do: a third signature could be changed without harm.
fn root() -> Result<TrustRoot> {
    Ok(TrustRoot { keys: vec![key(1)?.public(), key(2)?.public(), key(3)?.public()], threshold: 2 })
}

fn signed(kind: PayloadType, payload: &[u8], signers: &[u8]) -> Result<Vec<u8>> {
    let keys = signers.iter().map(|n| key(*n)).collect::<Result<Vec<_>>>()?;
    sign(kind, payload, &keys.iter().collect::<Vec<_>>()).context("signing")
}

fn reference(bytes: &[u8]) -> ArtifactRef {
    ArtifactRef { sha256: Digest::of(bytes), size: bytes.len() as u64 }
}

fn is(source: impl Read, expected: ArtifactRef) -> bool {
    copy_verified(source, expected, |_| Ok(()), |_| {}).is_ok()
}

fn things(folder: &TempDir) -> Result<Vec<Thing>> {
    let mut random = Random::new(0, 0);
    let artifact: Vec<u8> = (0..ARTIFACT).map(|_| random.byte()).collect();
    let manifest = manifest(&artifact)?;
    let script = script(&manifest)?;
    let trusted = root()?;
    let mut things = vec![
        Thing::new("boot script", script.clone(), opens),
        Thing::new("release manifest", manifest, move |bytes| Ok(ReleaseManifest::open(bytes, &trusted).is_ok())),
        chain()?,
        config_area()?,
    ];
    things.extend(chunked(&artifact)?);
    things.push(on_disk("script kept on the disk", folder.path(), script, |path| {
        opens(&fs::read(path).context("reading the script kept")?)
    }));
    for name in ["kernel on the disk", "node OS on the disk", "reference image on the disk"] {
        let expected = reference(&artifact);
        things.push(on_disk(name, folder.path(), artifact.clone(), move |path| {
            Ok(is(File::open(path).context("opening an installed file")?, expected))
        }));
    }
    Ok(things)
}

/// A thing that is proven as a file.
fn on_disk(
    name: &'static str,
    folder: &Path,
    truth: Vec<u8>,
    accepts: impl Fn(&Path) -> Result<bool> + 'static,
) -> Thing {
    let path = folder.join(name.replace(' ', "-"));
    Thing::new(name, truth, move |bytes| {
        fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
        accepts(&path)
    })
}

fn opens(bytes: &[u8]) -> Result<bool> {
    let accepted = [(ScriptKind::Install, 7), (ScriptKind::Boot, 7)];
    let context = ScriptContext { node: NODE, groups: &[], now: NOW, accepted: &accepted };
    Ok(BootScript::open(bytes, &root()?, &context).is_ok())
}

fn script(manifest: &[u8]) -> Result<Vec<u8>> {
    let script = BootScript {
        version: 1,
        kind: ScriptKind::Install,
        nodes: vec![NODE.into()],
        serial: 7,
        issued: NOW - 500,
        expires: NOW + 500,
        release: Some(reference(manifest)),
        ssh_keys: vec!["ssh-ed25519 AAAA somebody".into()],
        networks: vec!["192.0.2.0/24".parse().context("parsing a network")?],
        mirrors: vec!["http://mirror.example/orrery".into()],
        waivers: Vec::new(),
    };
    signed(PayloadType::BootScript, &script.encode().context("encoding a script")?, &[1, 2])
}

fn manifest(artifact: &[u8]) -> Result<Vec<u8>> {
    let part = |role, name: &str| ReleaseArtifact {
        role,
        name: name.into(),
        content: reference(artifact),
        chunks: None,
        listing: None,
    };
    let manifest = ReleaseManifest {
        version: 1,
        release: "0.1.0".into(),
        cmdline: "quiet".into(),
        artifacts: vec![part(ArtifactRole::Kernel, "kernel"), part(ArtifactRole::NodeOs, "node-os")],
        minimum: MinimumHardware::default(),
    };
    signed(PayloadType::ReleaseManifest, &manifest.encode().context("encoding a manifest")?, &[2, 3])
}

/// Two updates, one after the other. A change may cut the way short, as a lost file would, and must never lead elsewhere.
fn chain() -> Result<Thing> {
    let ca = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n";
    let zero = Root { serial: 0, trust: root()?, ca: ca.into() };
    let update = |serial: u64, keys: [u8; 2], signers: &[u8]| {
        let keys = keys.iter().map(|n| Ok(key(*n)?.public())).collect::<Result<Vec<_>>>()?;
        let update =
            TrustUpdate { version: 1, serial, issued: NOW, release_keys: keys, release_threshold: 2, ca: ca.into() };
        signed(PayloadType::TrustUpdate, &update.encode().context("encoding a trust update")?, signers)
    };
    let first = update(1, [2, 4], &[1, 2, 4])?;
    let second = update(2, [4, 5], &[2, 4, 5])?;
    let one = zero.follow(&first).0;
    let truth = [first, second].concat();
    let two = zero.follow(&truth).0;
    if (one.serial, two.serial) != (1, 2) {
        bail!("the chain of trust updates does not hold by itself");
    }
    Ok(Thing::new("trust chain", truth, move |bytes| {
        let (reached, _) = zero.follow(bytes);
        Ok(reached != zero && reached != one)
    }))
}

fn config_area() -> Result<Thing> {
    let text = "id = 'n1'\n".repeat(40);
    let area = encode_area(&text).context("making a config area")?;
    let protected =
        area.windows(text.len()).position(|w| w == text.as_bytes()).context("finding the text")? + text.len();
    let accepts = |bytes: &[u8]| Ok(decode_area(bytes).is_ok());
    Ok(Thing { protected, ..Thing::new("config area", area, accepts) })
}

/// The index of an artifact, and the pieces it is verified by.
fn chunked(artifact: &[u8]) -> Result<[Thing; 2]> {
    let pieces: Vec<_> = artifact.chunks(CHUNK).map(|piece| (Digest::of(piece), piece.len() as u32)).collect();
    let bytes = ChunkIndex::encode(&pieces).context("encoding a chunk index")?;
    let (whole, expected) = (reference(artifact), reference(&bytes));
    let index = ChunkIndex::parse(&bytes, &whole).context("parsing a chunk index")?;
    let by_pieces = move |bytes: &[u8]| {
        let mut end = 0;
        let all = index.chunks().iter().all(|chunk| {
            let start = chunk.offset as usize;
            end = start + chunk.length as usize;
            let expected = ArtifactRef { sha256: chunk.sha256, size: chunk.length.into() };
            bytes.get(start..end).is_some_and(|piece| is(piece, expected))
        });
        Ok(all && end == bytes.len())
    };
    let accepts = move |bytes: &[u8]| Ok(is(bytes, expected) && ChunkIndex::parse(bytes, &whole).is_ok());
    Ok([Thing::new("chunk index", bytes, accepts), Thing::new("artifact by its chunks", artifact.to_vec(), by_pieces)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_changed_is_accepted() {
        direct(200, 1).unwrap();
    }

    #[test]
    fn a_blind_verifier_is_found_out() {
        let blind = Thing::new("anything", b"truth".to_vec(), |_| Ok(true));
        let (changed, _) = tampered(&blind, &mut Random::new(1, 1));
        assert_ne!(changed, blind.truth);
        assert!((blind.accepts)(&changed).unwrap());
    }

    #[test]
    fn changes_follow_from_the_seed() {
        let thing = Thing::new("anything", vec![7; 1000], |_| Ok(false));
        let draw = |seed| tampered(&thing, &mut Random::new(seed, 5)).0;
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }
}
