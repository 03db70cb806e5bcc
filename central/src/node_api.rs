//! What nodes ask and tell.

use std::collections::HashSet;

use axum::{
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{HeaderMap, HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
};
use orrery_protocol::{BootState, Digest, EventBatch, Facts, LogBatch, NodeStatus};
use serde::Deserialize;

use crate::{
    api_error::ApiError,
    app::{Document, Json, Key, Member, Node, Shared, key_replaced, parse, unknown_node},
    boot_state, day,
    db::{
        keys::{self, Standing},
        logs,
        nodes::{self, Contact},
        power_operations::{self, Boot},
        published, slices,
    },
    now,
};

/// One line for the people at a node.
const NOTICE: HeaderName = HeaderName::from_static("orrery-notice");
/// The longest line of a log that is kept, in bytes.
const MAX_LOG_LINE: usize = 4096;

/// `POST /v1/node/contact`: facts in, signed script out.
pub(crate) async fn contact(State(app): Shared, Key(key): Key, Json(facts): Json<Facts>) -> Result<Response, ApiError> {
    let answer = app.db.run(move |db| {
        let Some(owner) = keys::owner(db, &key, now())? else {
            // All an operator needs to add it, and nothing unbounded.
            let mut said = serde_json::to_string(&facts).unwrap_or_default();
            said.truncate(said.floor_char_boundary(4096));
            tracing::warn!(spki = %key, facts = ?said, "contact of an unknown node");
            return Err(unknown_node(&key));
        };
        let notice = match owner.standing {
            Standing::Current => None,
            Standing::Grace { replaced, ends } => Some(format!(
                "this medium's key was replaced on {}; it works until {}: flash the medium made then",
                day(replaced),
                day(ends)
            )),
            Standing::Ended { replaced } => {
                tracing::warn!(node = owner.node, "contact by a key that was replaced");
                return Err(key_replaced(&owner.node, replaced));
            }
        };
        let node = nodes::known(db, &owner.node)?.ok_or_else(|| unknown_node(&key))?;
        if facts.node != node.id {
            let message = format!("this key belongs to node {}, the configuration says {:?}", node.id, facts.node);
            tracing::warn!(node = node.id, %message, "contact refused");
            return Err(ApiError::new(StatusCode::FORBIDDEN, "unknown-node", message));
        }
        if keys::used(db, &key, now())?.is_some() {
            tracing::info!(node = node.id, "the new key was used: the earlier ones end");
        }
        let (state, once) = boot_state::at_contact(node.boot_state, node.once, &facts.boot_id);
        let kind = boot_state::script_kind(state);
        // A group that the node's own configuration does not name would make it refuse the script.
        let named: HashSet<_> = facts.groups.iter().collect();
        let groups: Vec<_> = node.groups.into_iter().filter(|group| named.contains(group)).collect();
        let script = published::script_for(db, kind, &node.id, &groups, now())?;
        let served = script.is_some();
        let handed_out = served && matches!(state, BootState::Reinstall | BootState::Upgrade);
        let level = boot_state::run_level_at_contact(kind);
        let at = now();
        nodes::contacted(db, &node.id, &Contact { facts: &facts, level, handed_out, once }, at)?;
        let boot = Boot { id: &facts.boot_id, kernel_started: Some(at.saturating_sub(facts.uptime_s)) };
        power_operations::called_home(db, &node.id, boot, at)?;
        tracing::info!(node = node.id, boot_state = %state, %kind, served, boot_id = ?facts.boot_id, "contact");
        let script = script.ok_or_else(|| {
            let message = format!("node {} is to be given a script of kind {kind}, and none is published", node.id);
            ApiError::new(StatusCode::NOT_FOUND, "no-script", message)
        })?;
        Ok((script, notice))
    });
    let (envelope, notice): (Vec<u8>, _) = answer.await?;
    let mut response = ([(header::CONTENT_TYPE, "application/octet-stream")], envelope).into_response();
    if let Some(notice) = notice.and_then(|notice| notice.parse().ok()) {
        response.headers_mut().insert(NOTICE, notice);
    }
    Ok(response)
}

/// `POST /v1/node/log`.
pub(crate) async fn log(
    State(app): Shared,
    Node(node): Node,
    Json(mut batch): Json<LogBatch>,
) -> Result<StatusCode, ApiError> {
    let role_ok = ["boot", "node", "previous"].contains(&batch.role.as_str());
    if !role_ok || batch.boot_id.is_empty() || batch.boot_id.len() > 128 || batch.boot_id.contains(char::is_control) {
        return Err(ApiError::bad_request("a log has a boot id, and the role boot, node or previous"));
    }
    if batch.first > 1 << 52 {
        return Err(ApiError::bad_request("no boot has so many lines"));
    }
    for line in &mut batch.lines {
        line.truncate(line.floor_char_boundary(MAX_LOG_LINE));
    }
    app.db.run(move |db| logs::add(db, &node.id, &batch, now())).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /v1/node/events`.
pub(crate) async fn events(
    State(app): Shared,
    Node(node): Node,
    Json(batch): Json<EventBatch>,
) -> Result<StatusCode, ApiError> {
    let id = node.id.clone();
    let changed = app.db.run(move |db| nodes::report(db, &id, &batch.events, now())).await?;
    if let Some(state) = changed {
        tracing::info!(node = node.id, from = %node.boot_state, to = %state, "boot state changed by the node's report");
    }
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /v1/node/status`.
pub(crate) async fn status(
    State(app): Shared,
    Node(node): Node,
    Json(status): Json<NodeStatus>,
) -> Result<StatusCode, ApiError> {
    let noted = app.db.run(move |db| {
        let at = now();
        nodes::status(db, &node.id, &status, at)?;
        // A node that started without central is heard here first.
        power_operations::called_home(db, &node.id, Boot { id: &status.boot_id, kernel_started: None }, at)
    });
    noted.await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /v1/node/wanted`, conditional.
pub(crate) async fn wanted(State(app): Shared, Node(node): Node, headers: HeaderMap) -> Result<Response, ApiError> {
    // An empty list would make the node destroy its slivers; out of service is not the end of their data.
    if node.boot_state == BootState::Disabled {
        return Err(ApiError::forbidden(format!("node {} is disabled", node.id)));
    }
    let wanted = app.db.run(move |db| slices::wanted(db, &node.id)).await?;
    let wanted = wanted.map_err(|image| {
        ApiError::conflict("no-image", format!("no published release has the reference image {image:?}"))
    })?;
    let body = serde_json::to_vec(&wanted).map_err(ApiError::internal)?;
    let tag = format!("\"{}\"", Digest::of(&body));
    let unchanged = headers.get(header::IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == tag.as_bytes());
    let tag = [(header::ETAG, tag)];
    Ok(if unchanged {
        (StatusCode::NOT_MODIFIED, tag).into_response()
    } else {
        (tag, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    })
}

/// The query of [`contents`].
#[derive(Debug, Deserialize)]
pub(crate) struct ContentsQuery {
    listing: String,
}

/// `POST /v1/artifacts/{sha256}/contents?listing=`: numbers of an image's files in, what is stored of them out.
pub(crate) async fn contents(
    State(app): Shared,
    _: Member,
    Path(sha256): Path<String>,
    query: Result<Query<ContentsQuery>, QueryRejection>,
    Document(body): Document,
) -> Result<Response, ApiError> {
    let Query(ContentsQuery { listing }) = query.map_err(|e| ApiError::bad_request(e.body_text()))?;
    let (numbers, rest) = body.as_chunks::<4>();
    let wanted: Vec<u32> = numbers.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect();
    if !rest.is_empty() || !wanted.is_sorted_by(|one, next| one < next) {
        return Err(ApiError::bad_request("the body is to be numbers of four bytes, each greater than the one before"));
    }
    app.artifacts.contents(parse(&sha256)?, parse(&listing)?, wanted).await
}

/// `GET` and `HEAD /v1/artifacts/{sha256}`.
pub(crate) async fn artifact(
    State(app): Shared,
    _: Member,
    Path(sha256): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    app.artifacts.send(parse(&sha256)?, &headers).await
}
