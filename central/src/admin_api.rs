//! What operators ask and change.

use axum::{
    Json as Answer,
    body::Body,
    extract::{Path, Query, State},
    http::StatusCode,
};
use orrery_central_api::{
    BootStateChange, NewNode, NodeDetail, NodeSummary, ReleaseRecord, ScriptRecord, SliceRecord, SliceSpec,
    SliverRecord, StoredEvent, checked_groups, peek,
};
use orrery_protocol::{ArtifactRef, BootScript, PayloadType, ReleaseArtifact, ReleaseManifest, SliceName, is_node_id};
use serde::Deserialize;

use crate::{
    api_error::ApiError,
    app::{App, Document, Json, Operator, Shared, parse},
    boot_state, day,
    db::{
        nodes::{self, Added},
        published,
        slices::{self, Unresolved},
    },
    now, roots_api,
};

type Result<T> = std::result::Result<T, ApiError>;

const MAX_KEYS: usize = 256;
const MAX_KEY_BYTES: usize = 16 * 1024;

pub(crate) async fn list_nodes(State(app): Shared, _: Operator) -> Result<Answer<Vec<NodeSummary>>> {
    Ok(Answer(app.db.run(|db| nodes::list(db)).await?))
}

pub(crate) async fn add_node(
    State(app): Shared,
    operator: Operator,
    Json(mut node): Json<NewNode>,
) -> Result<(StatusCode, Answer<NodeDetail>)> {
    if !is_node_id(&node.id) {
        return Err(ApiError::bad_request("a node's id has 1 to 63 letters, digits, `-` or `.`"));
    }
    if node.name.len() > 256 {
        return Err(ApiError::bad_request("a node's name has at most 256 bytes"));
    }
    let groups = checked_groups(&node.groups);
    node.groups = groups.map_err(|bad| ApiError::bad_request(format!("{bad:?} cannot name a group")))?;
    let id = node.id.clone();
    match app.db.run(move |db| nodes::add(db, &node, now())).await? {
        Added::Yes => Ok((StatusCode::CREATED, get_node(State(app), operator, Path(id)).await?)),
        Added::IdTaken => Err(ApiError::conflict("exists", format!("node {id} exists already"))),
        Added::KeyTaken => Err(ApiError::conflict("exists", "another node has this key")),
    }
}

pub(crate) async fn get_node(State(app): Shared, _: Operator, Path(id): Path<String>) -> Result<Answer<NodeDetail>> {
    let name = id.clone();
    let found = app.db.run(move |db| nodes::detail(db, &id)).await?;
    found.map(Answer).ok_or_else(|| ApiError::not_found(format_args!("node {name:?}")))
}

pub(crate) async fn remove_node(State(app): Shared, _: Operator, Path(id): Path<String>) -> Result<StatusCode> {
    let name = id.clone();
    found(app.db.run(move |db| nodes::remove(db, &id)).await?, format_args!("node {name:?}"))
}

pub(crate) async fn set_boot_state(
    State(app): Shared,
    _: Operator,
    Path(id): Path<String>,
    Json(change): Json<BootStateChange>,
) -> Result<StatusCode> {
    let (name, BootStateChange { boot_state: state, once }) = (id.clone(), change);
    if once && !boot_state::can_be_once(state) {
        return Err(ApiError::bad_request(format!("`{state}` cannot be asked for once; `boot` and `safe` can")));
    }
    let set = if once { nodes::set_once } else { nodes::set_boot_state };
    let known = app.db.run(move |db| set(db, &id, state)).await?;
    tracing::info!(target: "audit", node = ?name, %state, once, known, "boot state asked for");
    found(known, format_args!("node {name:?}"))
}

/// Which events: those after a sequence number, or the newest.
#[derive(Debug, Deserialize)]
pub(crate) struct EventQuery {
    after: Option<u64>,
    #[serde(default = "thousand")]
    limit: u32,
}

fn thousand() -> u32 {
    1000
}

pub(crate) async fn node_events(
    State(app): Shared,
    _: Operator,
    Path(id): Path<String>,
    query: std::result::Result<Query<EventQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Answer<Vec<StoredEvent>>> {
    let Query(query) = query.map_err(|e| ApiError::bad_request(e.body_text()))?;
    let name = id.clone();
    let events = app.db.run(move |db| -> Result<_> {
        if !nodes::exists(db, &id)? {
            return Err(ApiError::not_found(format_args!("node {name:?}")));
        }
        Ok(nodes::events(db, &id, query.after, query.limit.min(10_000))?)
    });
    events.await.map(Answer)
}

pub(crate) async fn list_slices(State(app): Shared, _: Operator) -> Result<Answer<Vec<SliceRecord>>> {
    Ok(Answer(app.db.run(|db| slices::list(db)).await?))
}

pub(crate) async fn get_slice(
    State(app): Shared,
    _: Operator,
    Path((authority, name)): Path<(String, String)>,
) -> Result<Answer<SliceRecord>> {
    let slice: SliceName = parse(&format!("{authority}/{name}"))?;
    let asked = slice.clone();
    let found = app.db.run(move |db| slices::get(db, &asked)).await?;
    found.map(Answer).ok_or_else(|| ApiError::not_found(format_args!("slice {slice}")))
}

pub(crate) async fn slivers(
    State(app): Shared,
    _: Operator,
    Path((authority, name)): Path<(String, String)>,
) -> Result<Answer<Vec<SliverRecord>>> {
    let slice: SliceName = parse(&format!("{authority}/{name}"))?;
    let asked = slice.clone();
    let found = app.db.run(move |db| slices::slivers(db, &asked)).await?;
    found.map(Answer).ok_or_else(|| ApiError::not_found(format_args!("slice {slice}")))
}

pub(crate) async fn put_slice(
    State(app): Shared,
    _: Operator,
    Path((authority, name)): Path<(String, String)>,
    Json(spec): Json<SliceSpec>,
) -> Result<StatusCode> {
    let slice: SliceName = parse(&format!("{authority}/{name}"))?;
    spec.rspec.check().map_err(|e| ApiError::bad_request(e.to_string()))?;
    spec.startup.check().map_err(|e| ApiError::bad_request(e.to_string()))?;
    if spec.keys.is_empty() || spec.keys.len() > MAX_KEYS {
        return Err(ApiError::bad_request(format!("a slice has 1 to {MAX_KEYS} keys")));
    }
    if let Some(key) = spec.keys.iter().find(|key| !is_ssh_key(key)) {
        return Err(ApiError::bad_request(format!("not an OpenSSH public key: {key:?}")));
    }
    let image = spec.image.clone();
    match app.db.run(move |db| slices::put(db, &slice, &spec)).await? {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(Unresolved::Changed) => {
            let message = "the slice is not what it was any more: somebody else changed, made or removed it";
            Err(ApiError::conflict("changed", message.to_owned()))
        }
        Err(Unresolved::Image) => {
            let message = format!("no published release has a reference image {image:?}; publish one first");
            Err(ApiError::conflict("no-image", message))
        }
        Err(Unresolved::Node(id)) => Err(ApiError::conflict("unknown-node", format!("node {id:?} is not known"))),
        Err(Unresolved::Down { node, since }) => {
            let message = format!("node {node} is down since {}: it takes no new slivers until it is back", day(since));
            Err(ApiError::conflict("node-down", message))
        }
    }
}

pub(crate) async fn remove_slice(
    State(app): Shared,
    _: Operator,
    Path((authority, name)): Path<(String, String)>,
) -> Result<StatusCode> {
    let slice: SliceName = parse(&format!("{authority}/{name}"))?;
    let asked = slice.clone();
    found(app.db.run(move |db| slices::remove(db, &asked)).await?, format_args!("slice {slice}"))
}

pub(crate) async fn put_artifact(
    State(app): Shared,
    _: Operator,
    Path(sha256): Path<String>,
    body: Body,
) -> Result<(StatusCode, Answer<ArtifactRef>)> {
    let sha256 = match parse(&sha256) {
        Ok(sha256) => sha256,
        Err(refusal) => {
            // A client that is still sending would see a broken connection instead of the refusal.
            let _ = axum::body::to_bytes(body, 64 * 1024).await;
            return Err(refusal);
        }
    };
    let artifact = app.artifacts.receive(sha256, body).await?;
    Ok((StatusCode::CREATED, Answer(artifact)))
}

pub(crate) async fn list_releases(State(app): Shared, _: Operator) -> Result<Answer<Vec<ReleaseRecord>>> {
    Ok(Answer(app.db.run(|db| published::releases(db)).await?))
}

/// Publishes a signed manifest. Everything it names must be here already, so that no node is sent to fetch
/// what does not exist. Signatures are for nodes to judge; where a trust
/// root was published, central knows what they would say.
pub(crate) async fn put_release(
    State(app): Shared,
    _: Operator,
    Document(envelope): Document,
) -> Result<(StatusCode, Answer<ReleaseRecord>)> {
    let payload = payload(&envelope, PayloadType::ReleaseManifest)?;
    let manifest = ReleaseManifest::decode(payload).map_err(|e| ApiError::bad_request(e.to_string()))?;
    let App { db, artifacts, .. } = app;
    let answer = db.run(move |db| -> Result<_> {
        roots_api::vouched(db, &envelope, PayloadType::ReleaseManifest)?;
        let named = |a: &ReleaseArtifact| [Some(a.content), a.chunks, a.listing].into_iter().flatten();
        let missing = manifest.artifacts.iter().filter(|a| named(a).any(|content| !artifacts.has(&content)));
        let missing: Vec<_> = missing.map(|a| format!("{} ({})", a.name, a.content.sha256)).collect();
        if !missing.is_empty() {
            let message = format!("upload its artifacts first; missing: {}", missing.join(", "));
            return Err(ApiError::conflict("missing-artifacts", message));
        }
        let kept = artifacts.keep(&envelope).map_err(ApiError::internal)?;
        let published = now();
        published::add_release(db, &kept, &manifest, published)?;
        Ok(ReleaseRecord { envelope: kept, published, manifest })
    });
    answer.await.map(|record| (StatusCode::CREATED, Answer(record)))
}

pub(crate) async fn list_scripts(State(app): Shared, _: Operator) -> Result<Answer<Vec<ScriptRecord>>> {
    Ok(Answer(app.db.run(|db| published::scripts(db)).await?))
}

/// Publishes a signed boot script. The release it names must be published.
pub(crate) async fn put_script(
    State(app): Shared,
    _: Operator,
    Document(envelope): Document,
) -> Result<(StatusCode, Answer<ScriptRecord>)> {
    let payload = payload(&envelope, PayloadType::BootScript)?;
    let script = BootScript::decode(payload).map_err(|e| ApiError::bad_request(e.to_string()))?;
    if script.expires <= now() {
        return Err(ApiError::conflict("expired", "the script has expired already"));
    }
    if i64::try_from(script.serial).is_err() || i64::try_from(script.expires).is_err() {
        return Err(ApiError::bad_request("serial or expiry is beyond 2^63"));
    }
    let publish = app.db.run(move |db| -> Result<_> {
        roots_api::vouched(db, &envelope, PayloadType::BootScript)?;
        if let Some(release) = &script.release
            && !published::has_release(db, release)?
        {
            let message = format!("publish the release with SHA-256 {} first", release.sha256);
            return Err(ApiError::conflict("unknown-release", message));
        }
        tracing::info!(target: "audit", kind = %script.kind, serial = script.serial, "publishing a script");
        Ok(published::add_script(db, &envelope, &script, now())?)
    });
    publish.await.map(|record| (StatusCode::CREATED, Answer(record)))
}

pub(crate) fn payload(envelope: &[u8], expected: PayloadType) -> Result<&[u8]> {
    let peeked = peek(envelope).map_err(|e| ApiError::bad_request(e.to_string()))?;
    if peeked.payload_type != expected {
        return Err(ApiError::bad_request("the envelope holds another type of document"));
    }
    Ok(peeked.payload)
}

fn found(found: bool, what: std::fmt::Arguments<'_>) -> Result<StatusCode> {
    if found { Ok(StatusCode::NO_CONTENT) } else { Err(ApiError::not_found(what)) }
}

/// One line: a known type, base64, and perhaps a comment. Options, which could run commands, are not keys.
fn is_ssh_key(line: &str) -> bool {
    const TYPES: [&str; 7] = [
        "ssh-ed25519",
        "ssh-rsa",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
        "sk-ssh-ed25519@openssh.com",
        "sk-ecdsa-sha2-nistp256@openssh.com",
    ];
    let mut words = line.split(' ');
    let (kind, blob) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    line.len() <= MAX_KEY_BYTES
        && !line.chars().any(char::is_control)
        && TYPES.contains(&kind)
        && blob.starts_with("AAAA")
        && blob.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ssh_keys() {
        let check = |line: &str, expect: bool| assert_eq!(is_ssh_key(line), expect, "{line:?}");
        check("ssh-ed25519 AAAAC3Nz+/= me@home and more", true);
        check("ssh-ed25519 AAAAC3Nz", true);
        check("ssh-ed25519", false);
        check("command=\"sh\" ssh-ed25519 AAAAC3Nz", false);
        check("ssh-ed25519 AAAAC3Nz\nssh-ed25519 AAAA", false);
        check("", false);
    }
}
