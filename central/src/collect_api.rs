//! What central keeps, and what may go: artifacts that nothing names, releases that nothing needs.

use std::collections::{BTreeMap, BTreeSet};

use axum::{
    Json as Answer,
    extract::{Path, State},
    http::StatusCode,
};
use orrery_central_api::ArtifactRecord;
use orrery_protocol::Digest;
use rusqlite::Connection;

use crate::{
    api_error::ApiError,
    app::{App, Operator, Shared, parse},
    artifacts::Artifacts,
    db::{
        nodes,
        published::{self, Needed},
    },
    now,
};

type Result<T> = std::result::Result<T, ApiError>;

/// By what each artifact is named: for people, and not empty.
fn uses(db: &Connection, artifacts: &Artifacts) -> Result<BTreeMap<Digest, Vec<String>>> {
    let mut uses: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
    let mut note = |sha256, by: String| uses.entry(sha256).or_default().push(by);
    let mut listed = BTreeSet::new();
    for release in published::releases(db)? {
        let name = &release.manifest.release;
        note(release.envelope.sha256, format!("release {name}"));
        for artifact in &release.manifest.artifacts {
            if artifact.listing.is_some() {
                listed.insert(artifact.content.sha256);
            }
            let parts =
                [(Some(artifact.content), ""), (artifact.chunks, ", chunk index"), (artifact.listing, ", listing")];
            for (content, part) in parts {
                if let Some(content) = content {
                    note(content.sha256, format!("release {name}: {}{part}", artifact.name));
                }
            }
        }
    }
    let mut unlisted = BTreeSet::new();
    for (node, status) in nodes::statuses(db)? {
        for sliver in status.slivers {
            note(sliver.image, format!("sliver of {} on {node}", sliver.slice));
            if !listed.contains(&sliver.image) {
                unlisted.insert(sliver.image);
            }
        }
    }
    // Which listing is theirs went with the release: a node that mends one asks for it, so whatever may be it stays.
    for (sha256, size, _) in artifacts.list().map_err(ApiError::internal)? {
        if unlisted.contains(&sha256) {
            for listing in artifacts.listings(size).map_err(ApiError::internal)? {
                note(listing, format!("perhaps the listing of image {sha256}, which a sliver has"));
            }
        }
    }
    Ok(uses)
}

/// `GET /v1/artifacts`.
pub(crate) async fn list_artifacts(State(app): Shared, _: Operator) -> Result<Answer<Vec<ArtifactRecord>>> {
    let App { db, artifacts, .. } = app;
    let listed = db.run(move |db| -> Result<_> {
        let mut uses = uses(db, &artifacts)?;
        let kept = artifacts.list().map_err(ApiError::internal)?;
        let record = |(sha256, size, stored)| ArtifactRecord {
            sha256,
            size,
            stored,
            uses: uses.remove(&sha256).unwrap_or_default(),
        };
        Ok(kept.into_iter().map(record).collect())
    });
    listed.await.map(Answer)
}

/// `DELETE /v1/artifacts/{sha256}`. While it works nothing is published, so that what is named never goes.
pub(crate) async fn remove_artifact(State(app): Shared, _: Operator, Path(sha256): Path<String>) -> Result<StatusCode> {
    let sha256: Digest = parse(&sha256)?;
    let App { db, artifacts, .. } = app;
    let removed = db.run(move |db| -> Result<_> {
        if let Some(by) = uses(db, &artifacts)?.remove(&sha256) {
            return Err(ApiError::conflict("in-use", format!("artifact {sha256} is in use: {}", by.join("; "))));
        }
        artifacts.remove(&sha256).map_err(ApiError::internal)
    });
    match removed.await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(ApiError::not_found(format_args!("artifact {sha256}"))),
    }
}

/// `DELETE /v1/releases/{sha256}`: forgets a release that no valid script names and no slice has its image from. Its artifacts stay
/// until they are removed.
pub(crate) async fn retire_release(State(app): Shared, _: Operator, Path(sha256): Path<String>) -> Result<StatusCode> {
    let sha256: Digest = parse(&sha256)?;
    let retired = app.db.run(move |db| -> Result<_> { Ok(published::retire(db, &sha256, now())?) });
    match retired.await? {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(Needed::Unknown) => Err(ApiError::not_found(format_args!("release {sha256}"))),
        Err(Needed::Script { kind, serial }) => {
            let message = format!("script {kind} with serial {serial} names it and has not expired");
            Err(ApiError::conflict("in-use", message))
        }
        Err(Needed::Slice { slice, image }) => {
            let message =
                format!("{slice} has its image {image:?} from it: publish a later release with that image first");
            Err(ApiError::conflict("in-use", message))
        }
    }
}
