//! How much of a reference image moves to a node that has the one before.

use std::{
    collections::HashSet,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use orrery_image_builder as builder;
use orrery_image_store::{list, write_contents};
use orrery_protocol::{ArtifactRef, Digest, Listing};

use super::Figures;
use crate::{build::reference_image, command, image::Images, ui, workspace::Workspace};

/// Bytes of a chunk index before its entries, and of an entry: a digest and a length.
const INDEX: [usize; 2] = [12, 36];

/// More than an unpacked image has, in bytes.
const MAX_IMAGE: u64 = 32 << 30;

/// What is changed.
#[derive(Debug, Clone, Copy)]
enum Change {
    /// Every file of some packages, as an update does.
    Packages,
    /// Single files all over, as nothing does: the worst case.
    Files,
}

/// Measures and prints.
///
/// The image that was built is unpacked; one percent of its bytes is changed in as many rounds as asked for, each with another
/// choice of packages or files; it is compressed again as the build does. What moves is every piece that the image before
/// does not have, and the index; or, by the image's listing, every object that it does not have, and the listing.
pub(super) fn run(workspace: &Workspace, images: &Images, runs: usize) -> Result<Vec<Figures>> {
    let folder = workspace.output().join("bench/upgrade");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let tar = folder.join("image.tar");
    let archive = images.folder.join(reference_image::ARCHIVE);
    command::output(Command::new("zstd").args(["-q", "-d", "-f", "-o"]).arg(&tar).arg(&archive))?;
    let content = fs::read(&tar).context("reading the unpacked image")?;
    let before = compressed(&content, &folder)?;
    let had: HashSet<_> = Listed::new(&before)?.parsed()?.objects().iter().map(|object| object.0).collect();
    let before = pieces(&before);
    let mut figures = Vec::new();
    for (name, by_listing, change) in [
        ("moved, 1 % changed as whole packages", "by listing, 1 % changed as whole packages", Change::Packages),
        ("moved, 1 % changed as single files", "by listing, 1 % changed as single files", Change::Files),
    ] {
        let (mut shares, mut listed_shares) = (Vec::new(), Vec::new());
        for round in 1..=runs {
            let step = ui::Step::start("bench", &format!("{name}: round {round} of {runs}"));
            let mut changed = content.clone();
            let bytes = apply(&mut changed, change, round)?;
            let after = compressed(&changed, &folder)?;
            let index = builder::chunk_index(&after);
            let moved: usize = pieces(&after).iter().filter(|p| !before.contains(*p)).map(|p| p.1).sum();
            shares.push(percent(moved + index.len(), after.len()));
            listed_shares.push(percent(Listed::new(&after)?.moved(&had, &folder)?, after.len()));
            step.done(&format!("{name}: {bytes} bytes of {} changed", content.len()));
        }
        figures.push(Figures::new(name, "%", shares));
        figures.push(Figures::new(by_listing, "%", listed_shares));
    }
    fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    figures.iter().for_each(Figures::print);
    Ok(figures)
}

fn compressed(content: &[u8], folder: &Path) -> Result<Vec<u8>> {
    let [tar, out]: [PathBuf; 2] = ["changed.tar", "changed.tar.zst"].map(|name| folder.join(name));
    fs::write(&tar, content).context("writing the changed image")?;
    builder::compress_image(&tar, &out).context("compressing the changed image")?;
    fs::read(&out).context("reading the compressed image")
}

/// An image with its listing.
struct Listed<'a> {
    image: &'a [u8],
    listing: Vec<u8>,
}

impl<'a> Listed<'a> {
    fn new(image: &'a [u8]) -> Result<Self> {
        let listing = list(image, MAX_IMAGE)?.context("the image is not made of frames")?;
        Ok(Self { image, listing })
    }

    fn parsed(&self) -> Result<Listing<'_>> {
        let image = ArtifactRef { sha256: Digest::of(self.image), size: self.image.len() as u64 };
        Ok(Listing::parse(&self.listing, &image)?)
    }

    /// How many bytes go to a node that has the objects `had`, as central sends them.
    fn moved(&self, had: &HashSet<[u8; 32]>, folder: &Path) -> Result<usize> {
        let listing = self.parsed()?;
        let mut seen = had.clone();
        let numbers = (0..).zip(listing.objects()).filter(|(_, object)| seen.insert(object.0));
        let wanted: Vec<u32> = numbers.map(|(number, _)| number).collect();
        let path = folder.join("listed.tar.zst");
        fs::write(&path, self.image).context("writing the image")?;
        let mut contents = Vec::new();
        write_contents(&File::open(&path)?, &listing, &wanted, MAX_IMAGE, &mut contents)?;
        Ok(self.listing.len() + contents.len())
    }
}

/// Digest and length of every piece, from the index.
fn pieces(image: &[u8]) -> HashSet<(Vec<u8>, usize)> {
    let index = builder::chunk_index(image);
    let entries = index[INDEX[0]..].chunks_exact(INDEX[1]);
    entries.map(|e| (e[..32].to_vec(), u32::from_le_bytes([e[32], e[33], e[34], e[35]]) as usize)).collect()
}

/// Changes one percent of `tar`, give or take a tenth of that; returns how many bytes.
fn apply(tar: &mut [u8], change: Change, seed: usize) -> Result<usize> {
    let packages = builder::package_contents(tar).context("the image is no tar archive")?;
    let mut units: Vec<Vec<_>> = match change {
        Change::Packages => packages.into_values().collect(),
        Change::Files => packages.into_values().flatten().map(|file| vec![file]).collect(),
    };
    let wanted = tar.len() / 100;
    let (mut changed, mut state) = (0, seed as u64);
    while changed < wanted * 9 / 10 {
        ensure!(!units.is_empty(), "no choice of packages makes up one percent");
        // Knuth's MMIX generator: any spread will do, as long as it is the same each time.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let unit = units.swap_remove((state >> 33) as usize % units.len());
        let bytes: usize = unit.iter().map(ExactSizeIterator::len).sum();
        if changed + bytes <= wanted * 11 / 10 {
            unit.into_iter().for_each(|range| tar[range].iter_mut().for_each(|byte| *byte ^= 0x5a));
            changed += bytes;
        }
    }
    Ok(changed)
}

#[allow(clippy::cast_precision_loss)]
fn percent(part: usize, whole: usize) -> f64 {
    part as f64 * 100.0 / whole as f64
}
