//! What an image consists of, from the descriptions in a layout (OCI image specification 1.1) or in an archive that `docker
//! save` made.
//!
//! Structures of our own and not the `oci-spec` crate: of some dozen fields of its types we read these, and it brings a builder's
//! worth of procedural macros.

use std::collections::BTreeMap;

use orrery_protocol::RunConfig;
use serde::Deserialize;

use crate::{
    SourceError,
    container::{Container, json, sha256},
    stream::Part,
};

/// What `docker save` describes its archive in.
pub(crate) const DOCKER_MANIFEST: &str = "manifest.json";
/// What says that something is a layout.
pub(crate) const LAYOUT: &str = "oci-layout";
const INDEX: &str = "index.json";
/// How deep an index may stand in another.
const DEPTH: usize = 3;

const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFESTS: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
const LAYERS: [&str; 8] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
];
const TAG: &str = "org.opencontainers.image.ref.name";

/// An image's layers, the lowest first, and its configuration.
pub(crate) struct Parts {
    pub(crate) layers: Vec<LayerPart>,
    pub(crate) run: RunConfig,
}

pub(crate) struct LayerPart {
    /// For messages.
    pub(crate) name: String,
    /// Perhaps compressed.
    pub(crate) content: Part,
    /// The digest of the archive when not compressed.
    pub(crate) plain: orrery_protocol::Digest,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
    variant: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Debug, Deserialize)]
struct Configuration {
    architecture: String,
    os: String,
    config: Option<RunConfig>,
    rootfs: RootFs,
}

#[derive(Debug, Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// One image of an archive that `docker save` made.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The image of that tag in a layout, or the only one.
pub(crate) fn of_layout(container: &Container, tag: Option<&str>) -> Result<Parts, SourceError> {
    let Index { mut manifests } = container.json(INDEX)?;
    if let Some(tag) = tag {
        let found = tags(&manifests);
        manifests.retain(|descriptor| descriptor.annotations.get(TAG).is_some_and(|name| name == tag));
        if manifests.is_empty() {
            return Err(SourceError::Tag { found });
        }
    }
    for _ in 0..DEPTH {
        let chosen = choose(manifests)?;
        let part = container.blob(&chosen.digest, chosen.size)?;
        if INDEXES.contains(&chosen.media_type.as_str()) {
            Index { manifests } = json(part, &chosen.digest)?;
        } else {
            return of_manifest(container, json(part, &chosen.digest)?);
        }
    }
    Err(SourceError::Unsupported { what: "index", media_type: format!("more than {DEPTH} indexes in one another") })
}

/// The image of that tag in an archive that `docker save` made, or the only one.
pub(crate) fn of_docker(container: &Container, tag: Option<&str>) -> Result<Parts, SourceError> {
    let images: Vec<DockerImage> = container.json(DOCKER_MANIFEST)?;
    let named = |image: &DockerImage| image.repo_tags.clone().unwrap_or_default();
    let found = images.iter().flat_map(|image| match named(image) {
        tags if tags.is_empty() => vec![image.config.clone()],
        tags => tags,
    });
    let found: Vec<_> = found.collect();
    let wanted = |image: &&DockerImage| tag.is_none_or(|tag| named(image).iter().any(|name| name == tag));
    let mut images = images.iter().filter(wanted);
    let (Some(image), None) = (images.next(), images.next()) else { return Err(SourceError::Tag { found }) };
    let configuration = checked(container.json(&image.config)?)?;
    let content = |name: &String| Ok((name.clone(), container.get(name)?));
    parts(configuration, image.layers.iter().map(content).collect::<Result<_, _>>()?)
}

/// Whether the archive is one that `docker save` made, and not a file tree with a file of that name.
///
/// # Errors
/// When there is such a file, and nobody can say what it is.
pub(crate) fn is_docker(container: &Container) -> Result<bool, SourceError> {
    match container.json::<Vec<DockerImage>>(DOCKER_MANIFEST) {
        Ok(_) => Ok(true),
        Err(SourceError::Missing { .. } | SourceError::TooLong { .. }) => Ok(false),
        // It describes something else.
        Err(SourceError::Json { source, .. }) if source.is_data() => Ok(false),
        Err(error) => Err(error),
    }
}

fn of_manifest(container: &Container, manifest: Manifest) -> Result<Parts, SourceError> {
    let Manifest { config, layers } = manifest;
    supported("configuration", &config, &CONFIGS)?;
    let configuration = checked(json(container.blob(&config.digest, config.size)?, &config.digest)?)?;
    let content = |layer: Descriptor| {
        supported("layer", &layer, &LAYERS)?;
        Ok((layer.digest.clone(), container.blob(&layer.digest, layer.size)?))
    };
    parts(configuration, layers.into_iter().map(content).collect::<Result<_, _>>()?)
}

fn supported(what: &'static str, descriptor: &Descriptor, known: &[&str]) -> Result<(), SourceError> {
    if known.contains(&descriptor.media_type.as_str()) {
        return Ok(());
    }
    Err(SourceError::Unsupported { what, media_type: descriptor.media_type.clone() })
}

/// The image for nodes among several. Those that say no platform count if no other does.
fn choose(manifests: Vec<Descriptor>) -> Result<Descriptor, SourceError> {
    let (fitting, rest): (Vec<_>, Vec<_>) = manifests.into_iter().partition(|descriptor| {
        descriptor.platform.as_ref().is_some_and(|platform| {
            // Later variants need newer processors than a node may have.
            (platform.os.as_str(), platform.architecture.as_str()) == ("linux", "amd64")
                && platform.variant.as_deref().is_none_or(|variant| variant == "v1")
        })
    });
    let (silent, others): (Vec<_>, Vec<_>) = rest.into_iter().partition(|descriptor| descriptor.platform.is_none());
    let mut candidates = if fitting.is_empty() { silent } else { fitting };
    candidates.dedup_by(|one, other| one.digest == other.digest);
    let Some(chosen) = candidates.pop() else {
        let show = |Platform { os, architecture, variant }: Platform| match variant {
            Some(variant) => format!("{os}/{architecture}/{variant}"),
            None => format!("{os}/{architecture}"),
        };
        let found: Vec<_> = others.into_iter().filter_map(|descriptor| descriptor.platform).map(show).collect();
        return Err(SourceError::Platform {
            found: if found.is_empty() { "nothing".into() } else { found.join(", ") },
        });
    };
    if !candidates.is_empty() {
        candidates.push(chosen);
        return Err(SourceError::Tag { found: tags(&candidates) });
    }
    supported("manifest", &chosen, &[INDEXES, MANIFESTS].concat())?;
    Ok(chosen)
}

/// What people may call them.
fn tags(manifests: &[Descriptor]) -> Vec<String> {
    manifests.iter().map(|d| d.annotations.get(TAG).unwrap_or(&d.digest).clone()).collect()
}

fn checked(configuration: Configuration) -> Result<Configuration, SourceError> {
    let Configuration { os, architecture, .. } = &configuration;
    if (os.as_str(), architecture.as_str()) != ("linux", "amd64") {
        return Err(SourceError::Platform { found: format!("{os}/{architecture}") });
    }
    Ok(configuration)
}

fn parts(configuration: Configuration, layers: Vec<(String, Part)>) -> Result<Parts, SourceError> {
    let Configuration { config, rootfs: RootFs { diff_ids }, .. } = configuration;
    if layers.len() != diff_ids.len() {
        return Err(SourceError::Layers { layers: layers.len(), named: diff_ids.len() });
    }
    let layer = |((name, content), plain): ((String, Part), String)| {
        Ok(LayerPart { name: format!("layer {name}"), content, plain: sha256(&plain)? })
    };
    let layers = layers.into_iter().zip(diff_ids).map(layer).collect::<Result<_, _>>()?;
    Ok(Parts { layers, run: config.unwrap_or_default() })
}
