//! Enrolment: tokens for operators to make, and for machines without a key to use.

use std::{sync::Arc, time::Duration};

use axum::{
    Json as Answer,
    extract::{Path, State},
    http::StatusCode,
};
use orrery_central_api::{EnrolmentRecord, NewEnrolment, TokenUse, checked_groups, token_digest};
use orrery_protocol::{EnrolRequest, Enrolled, is_node_id};
use tokio::sync::Semaphore;

use crate::{
    api_error::ApiError,
    app::{Json, Key, Operator, Shared},
    db::enrolments::{self, Made, Use},
    now,
};

type Result<T> = std::result::Result<T, ApiError>;

/// What a wrong token costs: it is answered after this time, whatever is wrong with it.
const WRONG_TOKEN_PAUSE: Duration = Duration::from_secs(1);
/// So many wait for that at a time. Right tokens do not wait, so nobody is kept out by others' guesses.
const WRONG_TOKENS: usize = 16;

/// Holds back whoever tries tokens.
#[derive(Debug, Clone)]
pub(crate) struct WrongTokens(Arc<Semaphore>);

impl Default for WrongTokens {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(WRONG_TOKENS)))
    }
}

impl WrongTokens {
    async fn refuse(&self) -> ApiError {
        let Ok(_turn) = self.0.try_acquire() else {
            let message = "too many wrong tokens at the moment; try again in a while";
            return ApiError::new(StatusCode::TOO_MANY_REQUESTS, "enrolment", message);
        };
        tokio::time::sleep(WRONG_TOKEN_PAUSE).await;
        let message = "this token is not known, was used, was revoked, or has expired; \
                       an operator can make one with `orrery enrol new`";
        ApiError::new(StatusCode::FORBIDDEN, "enrolment", message)
    }
}

/// `POST /v1/enrol`, by any key.
pub(crate) async fn enrol(
    State(app): Shared,
    Key(key): Key,
    Json(request): Json<EnrolRequest>,
) -> Result<Answer<Enrolled>> {
    let token = token_digest(&request.token);
    match app.db.run(move |db| enrolments::enrol(db, &token, &key, now())).await? {
        Use::Done(enrolled) => {
            let (node, serial) = (&enrolled.node, &request.facts.serial);
            tracing::info!(%node, spki = %key, ?serial, "a machine has begun to enrol");
            Ok(Answer(enrolled))
        }
        Use::Refused => {
            tracing::warn!(spki = %key, serial = ?request.facts.serial, "a wrong enrolment token");
            Err(app.wrong_tokens.refuse().await)
        }
        Use::KeyTaken => {
            let message = "this key belongs to another node: remove it, or let the machine make a new key";
            Err(ApiError::new(StatusCode::FORBIDDEN, "enrolment", message))
        }
    }
}

/// `POST /v1/enrol/confirm`, by the key that enrolled.
pub(crate) async fn confirm(State(app): Shared, Key(key): Key, Json(used): Json<TokenUse>) -> Result<StatusCode> {
    let token = token_digest(&used.token);
    if app.db.run(move |db| enrolments::confirm(db, &token, &key, now())).await? {
        tracing::info!(spki = %key, "a machine has enrolled");
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(app.wrong_tokens.refuse().await)
}

pub(crate) async fn list(State(app): Shared, _: Operator) -> Result<Answer<Vec<EnrolmentRecord>>> {
    Ok(Answer(app.db.run(|db| enrolments::list(db, now())).await?))
}

pub(crate) async fn add(
    State(app): Shared,
    _: Operator,
    Json(mut new): Json<NewEnrolment>,
) -> Result<(StatusCode, Answer<EnrolmentRecord>)> {
    if !is_node_id(&new.node) {
        return Err(ApiError::bad_request("a node's id has 1 to 63 letters, digits, `-` or `.`"));
    }
    if new.name.len() > 256 || i64::try_from(new.expires).is_err() {
        return Err(ApiError::bad_request("the name or the expiry is out of bounds"));
    }
    let groups = checked_groups(&new.groups);
    new.groups = groups.map_err(|bad| ApiError::bad_request(format!("{bad:?} cannot name a group")))?;
    let (node, token) = (new.node.clone(), new.token);
    match app.db.run(move |db| enrolments::add(db, &new, now())).await? {
        Made::Yes => {
            let record = app.db.run(move |db| enrolments::get(db, &token, now())).await?;
            let record = record.ok_or_else(|| ApiError::internal("a token that was just made is gone"))?;
            Ok((StatusCode::CREATED, Answer(record)))
        }
        Made::HasKey => Err(ApiError::conflict("exists", format!("node {node} has a key already"))),
        Made::TokenTaken => Err(ApiError::conflict("exists", "this token was made before")),
    }
}

/// Takes back all open tokens of a node.
pub(crate) async fn revoke(State(app): Shared, _: Operator, Path(node): Path<String>) -> Result<StatusCode> {
    let id = node.clone();
    match app.db.run(move |db| enrolments::revoke(db, &id, now())).await? {
        0 => Err(ApiError::not_found(format_args!("an open token of node {node:?}"))),
        _ => Ok(StatusCode::NO_CONTENT),
    }
}
