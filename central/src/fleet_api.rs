//! What operators ask of nodes beside their boot state: groups, keys, logs, a restart.

use axum::{
    Json as Answer,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
};
use orrery_central_api::{GroupChange, KeyRecord, LogRecord, NewKey, RebootAsked, checked_groups};
use orrery_protocol::BootState;
use serde::Deserialize;

use crate::{
    api_error::ApiError,
    app::{Json, Operator, Shared},
    db::{
        keys,
        logs::{self, Wanted},
        nodes,
    },
    now,
};

type Result<T> = std::result::Result<T, ApiError>;

/// The longest grace of a replaced key: a year and a day, in seconds.
const MAX_GRACE: u64 = 366 * 24 * 60 * 60;

fn unknown(id: &str) -> ApiError {
    ApiError::not_found(format_args!("node {id:?}"))
}

pub(crate) async fn set_groups(
    State(app): Shared,
    _: Operator,
    Path(id): Path<String>,
    Json(change): Json<GroupChange>,
) -> Result<StatusCode> {
    let groups = checked_groups(&change.groups);
    let groups = groups.map_err(|bad| ApiError::bad_request(format!("{bad:?} cannot name a group")))?;
    let name = id.clone();
    match app.db.run(move |db| nodes::set_groups(db, &id, &groups)).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(unknown(&name)),
    }
}

/// Makes a new key the node's. The one before it counts until the grace is over.
pub(crate) async fn renew_key(
    State(app): Shared,
    _: Operator,
    Path(id): Path<String>,
    Json(new): Json<NewKey>,
) -> Result<(StatusCode, Answer<Vec<KeyRecord>>)> {
    if new.grace > MAX_GRACE {
        return Err(ApiError::bad_request("the grace is longer than 366 days"));
    }
    let renewed = app.db.run(move |db| -> Result<_> {
        if !nodes::exists(db, &id)? {
            return Err(unknown(&id));
        }
        if keys::current(db, &id)?.is_none() {
            let message = format!("node {id} has no key yet: it gets its first one by enrolling");
            return Err(ApiError::conflict("no-key", message));
        }
        if keys::is_taken(db, &new.spki)? {
            return Err(ApiError::conflict("exists", "a node has, or had, this key"));
        }
        keys::renew(db, &id, &new, now())?;
        tracing::info!(target: "audit", node = id, spki = %new.spki, grace = new.grace, "node key renewed");
        Ok(keys::list(db, &id)?)
    });
    renewed.await.map(|keys| (StatusCode::CREATED, Answer(keys)))
}

/// Which lines.
#[derive(Debug, Deserialize)]
pub(crate) struct LogQuery {
    boot: Option<String>,
    role: Option<String>,
    #[serde(default)]
    after: u64,
}

/// `GET /v1/nodes/{id}/log?boot=&role=&after=`: about a mebibyte at a time, oldest first.
pub(crate) async fn node_log(
    State(app): Shared,
    _: Operator,
    Path(id): Path<String>,
    query: std::result::Result<Query<LogQuery>, QueryRejection>,
) -> Result<Answer<Vec<LogRecord>>> {
    let Query(LogQuery { boot, role, after }) = query.map_err(|e| ApiError::bad_request(e.body_text()))?;
    let wanted = Wanted { boot, role, after: after.min(i64::MAX as u64) };
    let lines = app.db.run(move |db| -> Result<_> {
        if !nodes::exists(db, &id)? {
            return Err(unknown(&id));
        }
        Ok(logs::read(db, &id, &wanted)?)
    });
    lines.await.map(Answer)
}

/// Asks the running node OS to restart from its medium.
pub(crate) async fn reboot(State(app): Shared, _: Operator, Path(id): Path<String>) -> Result<Answer<RebootAsked>> {
    let asked = app.db.run(move |db| -> Result<_> {
        let node = nodes::known(db, &id)?.ok_or_else(|| unknown(&id))?;
        if node.boot_state == BootState::Disabled {
            return Err(ApiError::conflict("not-running", format!("node {id} is disabled and asks for nothing")));
        }
        nodes::ask_reboot(db, &id)?.ok_or_else(|| {
            let message = format!("the node OS does not run on {id}: only a running one can be asked");
            ApiError::conflict("not-running", message)
        })
    });
    asked.await.map(|boot_id| Answer(RebootAsked { boot_id }))
}
