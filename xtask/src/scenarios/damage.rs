//! Bits that flip and power that goes.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use orrery_qemu::{flip_bit, flip_byte};
use serde_json::Value;

use super::{BOOTED, Bench, EARLY, INSTALLED, installed};
use crate::{
    hash,
    lab::{Lab, NodeOptions},
};

/// Where in an installed file a bit is flipped: inside, on no boundary.
const INSIDE: u64 = 1_234_567;

/// Each artifact in turn with a flipped bit, then one cut short and one missing: refused by name and reported; once the
/// server has the truth again, the same boot goes on to a good install.
pub(super) fn damaged_downloads(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let node = lab.add_node("n1", NodeOptions::default())?;
    let artifacts = artifacts(&lab)?;
    // In the order of downloading, since what has arrived is not fetched again.
    let order = [
        ("release manifest", Damage::FlippedBit, "tampered"),
        ("debian index", Damage::FlippedBit, "tampered"),
        ("image", Damage::FlippedBit, "tampered"),
        ("kernel", Damage::FlippedBit, "tampered"),
        ("kernel", Damage::CutShort, "ended after"),
        ("node-os", Damage::FlippedBit, "tampered"),
        ("node-os", Damage::Missing, "404"),
    ];
    let mut cases = Vec::new();
    for (role, damage, said) in order {
        let artifact = artifacts.iter().find(|a| a.role == role).with_context(|| format!("a release has a {role}"))?;
        cases.push((artifact, damage, said));
    }
    let mut vm = node.spec.start()?;
    for (number, (artifact, damage, said)) in cases.iter().enumerate() {
        if number > 0 {
            vm.power_cut();
            vm.start_again()?;
        }
        let served = lab.central.data().join("artifacts").join(&artifact.sha256);
        let truth = damage.inflict(&served)?;
        // The class stands before the artifact's name, everything else behind it.
        let said = if *said == "tampered" { [*said, artifact.shown_as()] } else { [artifact.shown_as(), *said] };
        vm.expect(["stage install FAILED", said[0], said[1]], INSTALLED)?;
        fs::write(&served, truth).context("restoring a served artifact")?;
    }
    vm.expect("stage install ok", INSTALLED)?;
    node.expect_ready(&mut vm, INSTALLED)?;
    node.wait_failure(&lab, "tampered", EARLY).map(drop)
}

/// A flipped bit in each installed file: refused, reported, repaired, with the data left alone.
pub(super) fn damaged_disk(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let (node, mut vm) = installed(&lab, "n1", NodeOptions::default())?;
    for artifact in artifacts(&lab)?.iter().filter(|a| a.role == "kernel" || a.role == "node-os") {
        vm.power_cut();
        damage_copies(&node.disk, &lab.central.data().join("artifacts").join(&artifact.sha256))?;
        vm.start_again()?;
        vm.expect(["stage load FAILED", "tampered"], BOOTED)?;
        vm.expect("stage repair ok", BOOTED)?;
        node.expect_ready(&mut vm, BOOTED)?;
    }
    node.wait_for(EARLY, "two refused loads at central", || {
        Ok(lab.events("n1")?.iter().filter(|e| e["class"] == "tampered" && e["stage"] == "load").count() == 2)
    })
}

/// Power lost in the middle of the install, twice: before and after the first artifact is on the disk.
pub(super) fn power_lost(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let node = lab.add_node("n1", NodeOptions::default())?;
    let mut vm = node.spec.start()?;
    vm.expect("plan: ", INSTALLED)?;
    vm.power_cut();
    vm.start_again()?;
    vm.expect(["kernel: ", " MiB in "], INSTALLED)?;
    vm.power_cut();
    vm.start_again()?;
    vm.expect("stage install ok", INSTALLED)?;
    node.expect_ready(&mut vm, INSTALLED).map(drop)
}

/// An artifact of the published release.
struct Artifact {
    role: String,
    sha256: String,
}

impl Artifact {
    /// What the node calls it.
    fn shown_as(&self) -> &str {
        match self.role.as_str() {
            "node-os" => "nodeos",
            "image" => "debian",
            other => other,
        }
    }
}

/// What a node downloads: the signed manifest, what it names, and an index.
fn artifacts(lab: &Lab) -> Result<Vec<Artifact>> {
    let signed = hash::file(&lab.release())?;
    let path = lab.folder.join("release/manifest.json");
    let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let manifest: Value = serde_json::from_slice(&text).context("reading the release manifest")?;
    let mut found = vec![Artifact { role: "release manifest".into(), sha256: signed }];
    found.extend(manifest["artifacts"].as_array().into_iter().flatten().filter_map(|artifact| {
        Some(Artifact { role: artifact["role"].as_str()?.into(), sha256: artifact["ref"]["sha256"].as_str()?.into() })
    }));
    let images = manifest["artifacts"].as_array().into_iter().flatten().filter(|a| a["role"] == "image");
    found.extend(images.filter_map(|image| {
        Some(Artifact { role: "debian index".into(), sha256: image["chunks"]["sha256"].as_str()?.into() })
    }));
    ensure!(found.len() >= 5, "a release has a manifest, a kernel, a node OS, an image and its index");
    Ok(found)
}

/// What happens to a served artifact.
enum Damage {
    FlippedBit,
    CutShort,
    Missing,
}

impl Damage {
    /// Does it, and returns what the file held.
    fn inflict(&self, path: &Path) -> Result<Vec<u8>> {
        let truth = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let middle = truth.len() as u64 / 2;
        match self {
            Self::FlippedBit => flip_bit(path, middle, 3),
            Self::CutShort => OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(middle)),
            Self::Missing => fs::remove_file(path),
        }
        .with_context(|| format!("damaging {}", path.display()))?;
        Ok(truth)
    }
}

/// Flips a byte in every copy of `content` on `disk`: wherever a block has the content's block around [`INSIDE`].
fn damage_copies(disk: &Path, content: &Path) -> Result<()> {
    const BLOCK: usize = 4096;
    let mut wanted = [0; BLOCK];
    let mut file = File::open(content).with_context(|| format!("reading {}", content.display()))?;
    file.seek(SeekFrom::Start(INSIDE / BLOCK as u64 * BLOCK as u64))?;
    file.read_exact(&mut wanted)?;

    let mut damaged = 0;
    let mut reader = File::open(disk).with_context(|| format!("reading {}", disk.display()))?;
    let mut chunk = vec![0; 256 * BLOCK];
    let mut at = 0;
    loop {
        let got = read_full(&mut reader, &mut chunk)?;
        for (number, block) in chunk[..got].chunks_exact(BLOCK).enumerate() {
            if block == wanted {
                flip_byte(disk, at + (number * BLOCK) as u64 + INSIDE % BLOCK as u64)?;
                damaged += 1;
            }
        }
        if got < chunk.len() {
            break;
        }
        at += got as u64;
    }
    ensure!(damaged > 0, "no copy of {} on {}", content.display(), disk.display());
    Ok(())
}

fn read_full(reader: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..])? {
            0 => break,
            got => filled += got,
        }
    }
    Ok(filled)
}
