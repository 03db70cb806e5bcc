//! What nodes ask and tell.

use axum::{
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use orrery_protocol::{BootState, Digest, EventBatch, Facts, NodeStatus, ScriptKind};

use crate::{
    api_error::ApiError,
    app::{Json, Key, Member, Node, Shared, parse, unknown_node},
    boot_state,
    db::{nodes, published, slices},
    now,
};

/// `POST /v1/node/contact`: facts in, signed script out.
pub(crate) async fn contact(State(app): Shared, Key(key): Key, Json(facts): Json<Facts>) -> Result<Response, ApiError> {
    let answer = app.db.run(move |db| {
        let Some(node) = nodes::by_key(db, &key)? else {
            // All an operator needs to add it, and nothing unbounded.
            let mut said = serde_json::to_string(&facts).unwrap_or_default();
            said.truncate(said.floor_char_boundary(4096));
            tracing::warn!(spki = %key, facts = ?said, "contact of an unknown node");
            return Err(unknown_node(&key));
        };
        if facts.node != node.id {
            let message = format!("this key belongs to node {}, the configuration says {:?}", node.id, facts.node);
            tracing::warn!(node = node.id, %message, "contact refused");
            return Err(ApiError::new(StatusCode::FORBIDDEN, "unknown-node", message));
        }
        let kind = boot_state::script_kind(node.boot_state);
        let script = published::script_for(db, kind, &node.id, now())?;
        let installing = kind == ScriptKind::Install && script.is_some();
        let level = boot_state::run_level_at_contact(kind);
        nodes::contacted(db, &node.id, &facts, level, installing, now())?;
        let served = script.is_some();
        tracing::info!(node = node.id, boot_state = %node.boot_state, %kind, served, boot_id = ?facts.boot_id, "contact");
        script.ok_or_else(|| {
            let message = format!("node {} is to be given a script of kind {kind}, and none is published", node.id);
            ApiError::new(StatusCode::NOT_FOUND, "no-script", message)
        })
    });
    let envelope: Vec<u8> = answer.await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], envelope).into_response())
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
    app.db.run(move |db| nodes::status(db, &node.id, &status, now())).await?;
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

/// `GET` and `HEAD /v1/artifacts/{sha256}`.
pub(crate) async fn artifact(
    State(app): Shared,
    _: Member,
    Path(sha256): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    app.artifacts.send(parse(&sha256)?, &headers).await
}
