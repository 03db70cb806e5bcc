//! `orrery release`: from built images to a published, signed release.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use orrery_central_api::{ReleaseRecord, peek};
use orrery_image_builder::chunk_index;
use orrery_protocol::{
    ArtifactRef, ArtifactRole, Digest, MinimumHardware, PayloadType, ReleaseArtifact, ReleaseManifest,
};
use orrery_transport::{Client, TransportError};
use serde_json::json;
use ureq::http::Method;

use crate::{
    context::Context,
    files::{self, Access},
    sign::Sign,
    trust,
    units::{show_bytes, show_time, table},
};

#[derive(Subcommand)]
pub(crate) enum Release {
    /// Collect a build's artifacts and the manifest to sign into a new folder.
    Assemble {
        /// The build's output with release.json.
        #[arg(long, value_name = "DIR")]
        images: PathBuf,
        /// The release's folder: manifest.json, and artifacts/ by SHA-256.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// A further image for slivers by `orrery image import`, or another one instead of the build's. Any number of times.
        #[arg(long = "image", value_name = "NAME=FILE")]
        more: Vec<NamedImage>,
        #[command(flatten)]
        minimum: Minimum,
    },
    /// Sign a manifest with release keys; works offline.
    Sign(Sign),
    /// Upload a signed manifest, after the artifacts beside it that central lacks.
    Publish {
        /// The signed manifest in its release folder.
        manifest: PathBuf,
    },
    /// List published releases, newest first.
    List,
    /// Have central forget a release that no valid script names and no slice has its image from. `orrery image gc` then frees the
    /// space.
    Retire {
        /// SHA-256 of the signed manifest, as `orrery release list` shows it.
        release: Digest,
    },
}

/// How large an image may be when unpacked, in bytes; nodes take no larger one.
pub(crate) const MAX_IMAGE: u64 = 32 << 30;

/// An image with the name that slices know it by.
#[derive(Clone)]
pub(crate) struct NamedImage {
    name: String,
    file: PathBuf,
}

impl FromStr for NamedImage {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((name, file)) if !name.is_empty() && !file.is_empty() => {
                Ok(Self { name: name.to_owned(), file: file.into() })
            }
            _ => Err("an image is NAME=FILE"),
        }
    }
}

/// The least machine that the release is installed on.
#[derive(Args)]
pub(crate) struct Minimum {
    /// Memory in MiB, as the kernel sees it: some tens less than what is plugged in. The default lets a machine of 256 pass, the
    /// smallest that the node OS is tested on.
    #[arg(long = "min-memory", value_name = "MIB", default_value_t = 192)]
    memory: u32,
    /// Disk in MiB.
    #[arg(long = "min-disk", value_name = "MIB", default_value_t = 2048)]
    disk: u32,
    /// Logical CPUs.
    #[arg(long = "min-cpus", value_name = "N", default_value_t = 1)]
    cpus: u32,
}

impl Minimum {
    fn demand(&self) -> MinimumHardware {
        let bytes = |mib: u32| u64::from(mib) << 20;
        MinimumHardware { memory: bytes(self.memory), disk: bytes(self.disk), cpus: self.cpus }
    }
}

pub(crate) fn run(context: &Context, command: Release) -> Result<()> {
    match command {
        Release::Assemble { images, out, more, minimum } => assemble(context, &images, &out, &more, minimum.demand()),
        Release::Sign(sign) => sign.run(context, Some(PayloadType::ReleaseManifest)),
        Release::Publish { manifest } => publish(context, &manifest),
        Release::Retire { release } => {
            context.client()?.call(Method::DELETE, &format!("/v1/releases/{release}"))?;
            context.print(&json!({ "retired": release }), |_| format!("retired {release}"))
        }
        Release::List => {
            let releases: Vec<ReleaseRecord> = context.client()?.get("/v1/releases")?;
            context.print(&releases, |releases| {
                let mut rows = vec![["RELEASE", "PUBLISHED", "SIGNED MANIFEST"].map(str::to_owned).to_vec()];
                rows.extend(
                    releases.iter().map(|r| {
                        vec![r.manifest.release.clone(), show_time(r.published), r.envelope.sha256.to_string()]
                    }),
                );
                table(&rows)
            })
        }
    }
}

fn assemble(context: &Context, images: &Path, out: &Path, more: &[NamedImage], minimum: MinimumHardware) -> Result<()> {
    let described = images.join("release.json");
    let mut manifest = ReleaseManifest::decode(&files::read(&described)?)
        .with_context(|| format!("reading {}", described.display()))?;
    manifest.minimum = minimum;
    ensure!(out.symlink_metadata().is_err(), "{} exists already: choose another name", out.display());
    let mut candidates = Vec::new();
    collect(images, &mut candidates)?;
    let parent = files::folder_of(out);
    let draft = tempfile::Builder::new()
        .prefix(".orrery-")
        .tempdir_in(&parent)
        .with_context(|| format!("making a folder in {}", parent.display()))?;
    let store = draft.path().join("artifacts");
    fs::create_dir(&store).with_context(|| format!("making {}", store.display()))?;
    let indexes = tempfile::tempdir().context("making a temporary folder")?;
    for image in more {
        let artifact = describe(image, indexes.path(), &mut candidates)?;
        manifest.artifacts.retain(|known| known.role != ArtifactRole::Image || known.name != artifact.name);
        manifest.artifacts.push(artifact);
    }
    for image in manifest.artifacts.iter_mut().filter(|artifact| artifact.role == ArtifactRole::Image) {
        let file = find(&candidates, &image.content)?.to_owned();
        image.listing = list(&file, image, indexes.path(), &mut candidates)?;
    }
    for (name, content) in contents(&manifest) {
        let source =
            find(&candidates, &content).with_context(|| format!("looking in {} for {name}", images.display()))?;
        let copy = store.join(content.sha256.to_string());
        fs::copy(source, &copy).with_context(|| format!("copying {}", source.display()))?;
        File::open(&copy).and_then(|f| f.sync_all()).with_context(|| format!("syncing {}", copy.display()))?;
        ensure!(files::measure(&copy)? == content, "{} changed while it was copied", source.display());
    }
    files::write_new(&draft.path().join("manifest.json"), &manifest.encode()?, Access::Public)?;
    files::sync_folder(&store)?;
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(draft.path(), fs::Permissions::from_mode(0o755)).context("opening the folder to readers")?;
    fs::rename(draft.path(), out).with_context(|| format!("naming {}", out.display()))?;
    // It has its final name now; there is nothing left to clean up.
    let _ = draft.keep();
    files::sync_folder(&parent)?;
    let path = out.join("manifest.json");
    let value = json!({ "release": manifest.release, "manifest": path });
    context.print(&value, |_| format!("release {}: sign {}", manifest.release, path.display()))
}

/// An image's artifact. Its file and its chunk index, which is written to `indexes`, are then among the `candidates`.
fn describe(image: &NamedImage, indexes: &Path, candidates: &mut Vec<(u64, PathBuf)>) -> Result<ReleaseArtifact> {
    let NamedImage { name, file } = image;
    let content = files::measure(file)?;
    let index = indexes.join(content.sha256.to_string());
    fs::write(&index, chunk_index(&files::read(file)?)).with_context(|| format!("writing {}", index.display()))?;
    let chunks = files::measure(&index)?;
    candidates.extend([(content.size, file.clone()), (chunks.size, index)]);
    Ok(ReleaseArtifact { role: ArtifactRole::Image, name: name.clone(), content, chunks: Some(chunks), listing: None })
}

/// The listing of an image, written to the `folder` and then among the `candidates`. An archive that is not made for nodes to
/// fetch in parts has none.
fn list(
    file: &Path,
    image: &ReleaseArtifact,
    folder: &Path,
    candidates: &mut Vec<(u64, PathBuf)>,
) -> Result<Option<ArtifactRef>> {
    let made = orrery_image_store::list(&files::read(file)?, MAX_IMAGE);
    let Some(listing) = made.with_context(|| format!("listing image {}", image.name))? else { return Ok(None) };
    let path = folder.join(format!("{}.listing", image.content.sha256));
    fs::write(&path, listing).with_context(|| format!("writing {}", path.display()))?;
    let listing = files::measure(&path)?;
    candidates.push((listing.size, path));
    Ok(Some(listing))
}

fn collect(folder: &Path, found: &mut Vec<(u64, PathBuf)>) -> Result<()> {
    let reading = || format!("reading {}", folder.display());
    for entry in fs::read_dir(folder).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        let metadata = path.symlink_metadata().with_context(reading)?;
        if metadata.is_dir() {
            collect(&path, found)?;
        } else if metadata.is_file() {
            found.push((metadata.len(), path));
        }
    }
    Ok(())
}

/// All that a node may ask for, with a name for people: every artifact, its chunk index, and an image's listing.
fn contents(manifest: &ReleaseManifest) -> impl Iterator<Item = (String, ArtifactRef)> {
    manifest.artifacts.iter().flat_map(|artifact| {
        let index = artifact.chunks.map(|chunks| (format!("the chunk index of {}", artifact.name), chunks));
        let listing = artifact.listing.map(|listing| (format!("the listing of {}", artifact.name), listing));
        index.into_iter().chain(listing).chain([(artifact.name.clone(), artifact.content)])
    })
}

/// The file with this content, wherever the build put it.
fn find<'a>(candidates: &'a [(u64, PathBuf)], content: &ArtifactRef) -> Result<&'a Path> {
    for (_, path) in candidates.iter().filter(|(size, _)| *size == content.size) {
        if files::measure(path)? == *content {
            return Ok(path);
        }
    }
    anyhow::bail!("no file has SHA-256 {}: build the images again", content.sha256)
}

fn publish(context: &Context, path: &Path) -> Result<()> {
    let envelope = files::read(path)?;
    let peeked = peek(&envelope).with_context(|| format!("{}: sign the manifest first", path.display()))?;
    ensure!(peeked.payload_type == PayloadType::ReleaseManifest, "{} is not a release manifest", path.display());
    let manifest = ReleaseManifest::decode(peeked.payload)?;
    let client = context.client()?;
    let store = files::folder_of(path).join("artifacts");
    for (name, content) in contents(&manifest) {
        upload(context, &client, &store, &name, content)?;
    }
    trust::warn_unless_known(context, &client)?;
    let record: ReleaseRecord = client.put_bytes("/v1/releases", &envelope)?;
    context.print(&record, |r| format!("published release {} ({})", r.manifest.release, r.envelope.sha256))
}

fn upload(context: &Context, client: &Client, store: &Path, name: &str, content: ArtifactRef) -> Result<()> {
    let ArtifactRef { sha256, size } = content;
    let remote = format!("/v1/artifacts/{sha256}");
    match client.call(Method::HEAD, &remote) {
        Ok(()) => return Ok(()),
        Err(TransportError::Refused { status: 404, .. }) => {}
        Err(e) => return Err(e.into()),
    }
    let local = store.join(sha256.to_string());
    let file = File::open(&local).with_context(|| format!("opening {}", local.display()))?;
    ensure!(files::measure(&local)? == content, "{} is damaged: assemble again", local.display());
    let bar = if context.json() { ProgressBar::hidden() } else { ProgressBar::new(size) };
    if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}") {
        bar.set_style(style);
    }
    bar.set_message(name.to_owned());
    client.put_stream(&remote, &mut bar.wrap_read(file))?;
    bar.finish_and_clear();
    if !context.json() {
        eprintln!("uploaded {name} ({})", show_bytes(size));
    }
    Ok(())
}
