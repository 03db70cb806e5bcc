//! What images central has, and what of all that it has nobody needs.

use anyhow::Result;
use orrery_central_api::{ArtifactRecord, ReleaseRecord, SliceRecord};
use orrery_protocol::{ArtifactRef, SliceName};
use orrery_transport::{Client, TransportError};
use serde::Serialize;
use ureq::http::Method;

use crate::{
    context::Context,
    units::{Seconds, now, show_bytes, show_time, table},
};

/// An image of a published release.
#[derive(Debug, Serialize)]
pub(super) struct Published {
    pub(super) name: String,
    #[serde(rename = "ref")]
    pub(super) content: ArtifactRef,
    pub(super) chunks: Option<ArtifactRef>,
    pub(super) listing: Option<ArtifactRef>,
    /// The newest release that has it.
    release: String,
    /// Whether it is what its name stands for today.
    pub(super) current: bool,
    /// The slices whose new slivers start from it.
    slices: Vec<SliceName>,
}

/// All images that central has: each name's from the newest release on.
pub(super) fn published(client: &Client) -> Result<Vec<Published>> {
    let releases: Vec<ReleaseRecord> = client.get("/v1/releases")?;
    let slices: Vec<SliceRecord> = client.get("/v1/slices")?;
    let mut found: Vec<Published> = Vec::new();
    for release in &releases {
        for image in release.manifest.images() {
            if found.iter().any(|known| known.name == image.name && known.content == image.content) {
                continue;
            }
            let current = !found.iter().any(|known| known.name == image.name);
            let of_it = slices.iter().filter(|slice| current && slice.spec.image == image.name);
            found.push(Published {
                name: image.name.clone(),
                content: image.content,
                chunks: image.chunks,
                listing: image.listing,
                release: release.manifest.release.clone(),
                current,
                slices: of_it.map(|slice| slice.slice.clone()).collect(),
            });
        }
    }
    found.sort_by(|one, other| one.name.cmp(&other.name).then(other.current.cmp(&one.current)));
    Ok(found)
}

pub(super) fn list(context: &Context) -> Result<()> {
    context.print(&published(&context.client()?)?, |images| {
        let mut rows = vec![["IMAGE", "SIZE", "RELEASE", "SHA-256", "SLICES"].map(str::to_owned).to_vec()];
        for image in images {
            let slices: Vec<_> = image.slices.iter().map(ToString::to_string).collect();
            let slices = if image.current { slices.join(" ") } else { "(superseded)".to_owned() };
            let Published { name, content, release, .. } = image;
            let cells = [name.clone(), show_bytes(content.size), release.clone(), content.sha256.to_string(), slices];
            rows.push(cells.to_vec());
        }
        table(&rows)
    })
}

/// What became of a collection.
#[derive(Debug, Serialize)]
struct Collected {
    /// Artifacts that nothing names.
    unused: Vec<ArtifactRecord>,
    /// Together, in bytes.
    bytes: u64,
    removed: bool,
}

pub(super) fn gc(context: &Context, remove: bool, older_than: Seconds) -> Result<()> {
    let client = context.client()?;
    let mut unused: Vec<ArtifactRecord> = client.get("/v1/artifacts")?;
    let before = now().saturating_sub(older_than.0);
    unused.retain(|artifact| artifact.uses.is_empty() && artifact.stored <= before);
    if remove {
        // What came to be needed meanwhile stays.
        let mut removed = Vec::new();
        for artifact in unused {
            match client.call(Method::DELETE, &format!("/v1/artifacts/{}", artifact.sha256)) {
                Ok(()) => removed.push(artifact),
                Err(TransportError::Refused { status: 404 | 409, .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        unused = removed;
    }
    let bytes = unused.iter().map(|artifact| artifact.size).sum();
    context.print(&Collected { unused, bytes, removed: remove }, |Collected { unused, bytes, removed }| {
        let mut rows = vec![["ARTIFACT", "SIZE", "STORED"].map(str::to_owned).to_vec()];
        rows.extend(unused.iter().map(|a| vec![a.sha256.to_string(), show_bytes(a.size), show_time(a.stored)]));
        let verdict = if *removed { "removed" } else { "nobody needs; --remove removes them" };
        format!("{}\n{} artifacts, {}: {verdict}", table(&rows), unused.len(), show_bytes(*bytes))
    })
}
