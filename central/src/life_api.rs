//! What operators ask of slivers that are there: to stand still, to go on, to start over, to have rights over their nodes.

use axum::{
    Json as Answer,
    extract::{Path, State},
    http::StatusCode,
};
use orrery_central_api::{StartOver, StartOverAsked, Suspension};
use orrery_protocol::{Admin, SliceName};

use crate::{
    api_error::ApiError,
    app::{Json, Operator, Shared, parse},
    db::slices::{self, Over, Unasked},
    now,
};

type Result<T> = std::result::Result<T, ApiError>;

/// The longest reason, in bytes.
const MAX_REASON: usize = 200;

fn unknown(slice: &SliceName) -> ApiError {
    ApiError::not_found(format_args!("slice {slice}"))
}

pub(crate) async fn suspend(
    State(app): Shared,
    _: Operator,
    Path((authority, name)): Path<(String, String)>,
    Json(suspension): Json<Suspension>,
) -> Result<StatusCode> {
    let reason = &suspension.reason;
    // It is shown on terminals.
    if reason.is_empty() || reason.len() > MAX_REASON || reason.chars().any(char::is_control) {
        return Err(ApiError::bad_request(format!("a reason is one line of 1 to {MAX_REASON} bytes")));
    }
    set_suspended(app, &format!("{authority}/{name}"), Some(suspension)).await
}

pub(crate) async fn resume(
    State(app): Shared,
    _: Operator,
    Path((authority, name)): Path<(String, String)>,
) -> Result<StatusCode> {
    set_suspended(app, &format!("{authority}/{name}"), None).await
}

async fn set_suspended(app: crate::app::App, slice: &str, suspension: Option<Suspension>) -> Result<StatusCode> {
    let slice: SliceName = parse(slice)?;
    let asked = slice.clone();
    let there = app.db.run(move |db| slices::suspend(db, &asked, suspension.as_ref(), now())).await?;
    if there { Ok(StatusCode::NO_CONTENT) } else { Err(unknown(&slice)) }
}

pub(crate) async fn set_admin(
    State(app): Shared,
    _: Operator,
    Path((authority, name)): Path<(String, String)>,
    Json(admin): Json<Admin>,
) -> Result<StatusCode> {
    let slice: SliceName = parse(&format!("{authority}/{name}"))?;
    let asked = slice.clone();
    let there = app.db.run(move |db| slices::set_admin(db, &asked, &admin)).await?;
    if there { Ok(StatusCode::NO_CONTENT) } else { Err(unknown(&slice)) }
}

pub(crate) async fn reset(
    State(app): Shared,
    _: Operator,
    Path((authority, name)): Path<(String, String)>,
    Json(which): Json<StartOver>,
) -> Result<Answer<StartOverAsked>> {
    start_over(app, &format!("{authority}/{name}"), Over::Reset, which).await
}

pub(crate) async fn restart(
    State(app): Shared,
    _: Operator,
    Path((authority, name)): Path<(String, String)>,
    Json(which): Json<StartOver>,
) -> Result<Answer<StartOverAsked>> {
    start_over(app, &format!("{authority}/{name}"), Over::Restart, which).await
}

async fn start_over(app: crate::app::App, slice: &str, over: Over, which: StartOver) -> Result<Answer<StartOverAsked>> {
    let slice: SliceName = parse(slice)?;
    let asked = slice.clone();
    let none = |place: String| ApiError::conflict("no-sliver", format!("slice {slice} has no sliver {place}"));
    match app.db.run(move |db| slices::start_over(db, &asked, over, &which.nodes, now())).await? {
        Ok(number) => Ok(Answer(StartOverAsked { number })),
        Err(Unasked::Slice) => Err(unknown(&slice)),
        Err(Unasked::Node(node)) => Err(none(format!("on node {node:?}"))),
        Err(Unasked::Nowhere) => Err(none("anywhere".into())),
    }
}
