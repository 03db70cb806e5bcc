//! Looking into images, and checking them.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use orrery_image_source::{Format, Image, Item, Options, Skipped, Summary};
use orrery_image_store::{list, lists};
use orrery_protocol::{ArtifactRef, ChunkIndex, Digest, Listing, RunConfig};
use orrery_transport::Client;
use serde::Serialize;
use tempfile::TempDir;

use super::collect::{Published, published};
use crate::{
    context::Context,
    files,
    release::MAX_IMAGE,
    units::{clean, show_bytes, table},
};

/// What an image was found to be.
#[derive(Debug, Serialize)]
struct Examined {
    image: String,
    /// Of a file; a folder has none.
    #[serde(rename = "ref")]
    content: Option<ArtifactRef>,
    format: Format,
    summary: Summary,
    skipped: Skipped,
    run: Option<RunConfig>,
    /// The listing by which nodes fetch it in parts. None: they fetch it as a whole.
    listing: Option<ArtifactRef>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entries: Option<Vec<Item>>,
}

pub(super) fn inspect(context: &Context, image: &str, entries: bool) -> Result<()> {
    let scratch = tempfile::tempdir().context("making a temporary folder")?;
    let path = match local(image) {
        Some(path) => path,
        None => {
            let client = context.client()?;
            let all = published(&client)?;
            download(&client, &current(&all, image)?.content, &scratch)?
        }
    };
    context.print(&examine(image, &path, entries, &scratch)?, show)
}

/// The file or folder that is meant, unless it is a name.
fn local(image: &str) -> Option<PathBuf> {
    Some(PathBuf::from(image)).filter(|path| path.exists())
}

fn current<'a>(all: &'a [Published], name: &str) -> Result<&'a Published> {
    let found = all.iter().find(|image| image.name == name && image.current);
    found.with_context(|| format!("{name} is neither a file nor the name of an image that central has"))
}

/// Reads an image as a whole, which proves its structure.
fn examine(name: &str, path: &Path, entries: bool, scratch: &TempDir) -> Result<Examined> {
    let options = Options { tag: None, limit: MAX_IMAGE, scratch: scratch.path() };
    let image = Image::read(path, &options).with_context(|| format!("reading {name}"))?;
    let (content, listing) = if path.is_file() {
        let listing = list(&files::read(path)?, MAX_IMAGE).with_context(|| format!("listing {name}"));
        // Of a layout in an archive, that would be one of the layout.
        let listing = listing?.filter(|_| image.format == Format::Archive).map(|listing| reference(&listing));
        (Some(files::measure(path)?), listing)
    } else {
        (None, None)
    };
    let (format, summary, skipped) = (image.format, image.summary(), image.skipped());
    let entries = entries.then(|| image.items().collect());
    Ok(Examined { image: name.to_owned(), content, format, summary, skipped, run: image.run, listing, entries })
}

fn reference(bytes: &[u8]) -> ArtifactRef {
    ArtifactRef { sha256: Digest::of(bytes), size: bytes.len() as u64 }
}

/// An artifact of central in a file, proven.
fn download(client: &Client, artifact: &ArtifactRef, scratch: &TempDir) -> Result<PathBuf> {
    let path = scratch.path().join(artifact.sha256.to_string());
    let mut file = File::create(&path).with_context(|| format!("making {}", path.display()))?;
    let mut stream = client.artifact(artifact, 0)?;
    if let Err(e) = io::copy(&mut stream, &mut file) {
        return Err(stream.explain(e).into());
    }
    let got = files::measure(&path)?;
    let ArtifactRef { sha256, size } = got;
    ensure!(
        got == *artifact,
        "central's artifact {} is damaged: it has {size} bytes, SHA-256 {sha256}",
        artifact.sha256
    );
    Ok(path)
}

/// One image that was checked.
#[derive(Debug, Serialize)]
struct Verified {
    image: String,
    #[serde(rename = "ref")]
    content: Option<ArtifactRef>,
    /// Why it is not good.
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<String>,
}

pub(super) fn verify(context: &Context, images: &[String]) -> Result<()> {
    let mut verified = Vec::new();
    let mut note = |image: String, content, outcome: Result<()>| {
        verified.push(Verified { image, content, fault: outcome.err().map(|e| format!("{e:#}")) });
    };
    for path in images.iter().filter(|image| local(image).is_some()) {
        let scratch = tempfile::tempdir().context("making a temporary folder")?;
        let examined = examine(path, Path::new(path), false, &scratch);
        let content = examined.as_ref().ok().and_then(|examined| examined.content);
        note(path.clone(), content, examined.map(drop));
    }
    let names: Vec<_> = images.iter().filter(|image| local(image).is_none()).collect();
    if images.is_empty() || !names.is_empty() {
        let client = context.client()?;
        let all = published(&client)?;
        let chosen = if names.is_empty() {
            all.iter().collect()
        } else {
            names.into_iter().map(|name| current(&all, name)).collect::<Result<Vec<_>>>()?
        };
        for image in chosen {
            note(image.name.clone(), Some(image.content), whole(&client, image));
        }
    }
    let faults = verified.iter().filter(|image| image.fault.is_some()).count();
    context.print(&verified, |verified| {
        let mut rows = Vec::new();
        for Verified { image, content, fault } in verified {
            let digest = content.map(|content| content.sha256.to_string()).unwrap_or_default();
            rows.push(vec![image.clone(), digest, fault.as_deref().map_or("good".to_owned(), clean)]);
        }
        table(&rows)
    })?;
    if faults > 0 {
        bail!("{faults} of {} images are not good", verified.len());
    }
    Ok(())
}

/// Checks an image of central with all that goes with it.
fn whole(client: &Client, image: &Published) -> Result<()> {
    let scratch = tempfile::tempdir().context("making a temporary folder")?;
    let archive = download(client, &image.content, &scratch)?;
    examine(&image.name, &archive, false, &scratch)?;
    let content = files::read(&archive)?;
    if let Some(chunks) = &image.chunks {
        let index = files::read(&download(client, chunks, &scratch)?)?;
        let index = ChunkIndex::parse(&index, &image.content)?;
        let mut rest = content.as_slice();
        for chunk in index.chunks() {
            let (piece, behind) = rest.split_at(chunk.length as usize);
            ensure!(Digest::of(piece) == chunk.sha256, "its chunk index is that of another archive");
            rest = behind;
        }
    }
    if let Some(listing) = &image.listing {
        let listing = files::read(&download(client, listing, &scratch)?)?;
        let listing = Listing::parse(&listing, &image.content)?;
        ensure!(lists(&listing, &content, MAX_IMAGE)?, "its listing is that of another archive");
    }
    Ok(())
}

fn show(examined: &Examined) -> String {
    let Examined { image, content, format, summary, skipped, run, listing, entries } = examined;
    let of = |name: &str, value: String| vec![name.to_owned(), clean(&value)];
    let mut rows = vec![of("image", image.clone()), of("format", format!("{format:?}"))];
    if let Some(content) = content {
        rows.push(of("sha256", content.sha256.to_string()));
        rows.push(of("size", show_bytes(content.size)));
    }
    for (name, count) in [
        ("files", summary.files),
        ("directories", summary.directories),
        ("symlinks", summary.symlinks),
        ("hard links", summary.hard_links),
        ("device nodes, left out", skipped.devices),
        ("attributes, left out", skipped.attributes),
    ] {
        rows.push(of(name, count.to_string()));
    }
    rows.push(of("unpacked", show_bytes(summary.bytes)));
    let parts =
        listing.map_or("as a whole".to_owned(), |l| format!("in parts, by a listing of {}", show_bytes(l.size)));
    rows.push(of("fetched by nodes", parts));
    if let Some(run) = run {
        rows.push(of("run", serde_json::to_string(run).unwrap_or_default()));
    }
    let mut text = table(&rows);
    for Item { path, kind, mode, owner, group, size, target } in entries.iter().flatten() {
        let mark = if *kind == "directory" { "/" } else { "" };
        let target = target.as_ref().map(|target| format!(" -> {target}")).unwrap_or_default();
        text.push_str(&format!("\n{mode:04o} {owner}:{group} {size:>10} {}", clean(&format!("{path}{mark}{target}"))));
    }
    text
}
