//! What operators ask of nodes' power, and what central is to do with it by itself.

use axum::{
    Json as Answer,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::StatusCode,
};
use orrery_central_api::{
    LadderStanding, NewPowerOperation, NodePower, PowerContacts, PowerEvent, PowerHold, PowerMethods, PowerOperation,
    PowerPolicy, PowerRecord, PowerReport, PowerStateRead, PowerTestRequest, PowerTestsAsked,
};
use serde::Deserialize;

use crate::{
    api_error::ApiError,
    app::{App, Json, Operator, Shared},
    db::{nodes, power, power_operations as operations, power_records as records},
    now,
    power::NoState,
};

type Result<T> = std::result::Result<T, ApiError>;
type Asked<T> = std::result::Result<Query<T>, QueryRejection>;

/// The longest reason or contact, in bytes.
const MAX_LINE: usize = 200;
/// The longest time in which a call home confirms something: a day, in seconds.
const MAX_CONFIRM: u64 = 24 * 60 * 60;

fn unknown(id: &str) -> ApiError {
    ApiError::not_found(format_args!("node {id:?}"))
}

fn no_methods(id: &str) -> ApiError {
    let message =
        format!("node {id:?} is not known, or has no power method: give it some with `orrery node power set`");
    ApiError::conflict("no-power-method", message)
}

/// One line, which is shown on terminals.
fn line(what: &str, text: &str) -> Result<()> {
    if text.trim().is_empty() || text.len() > MAX_LINE || text.chars().any(char::is_control) {
        return Err(ApiError::bad_request(format!("a {what} is one line of 1 to {MAX_LINE} bytes")));
    }
    Ok(())
}

pub(crate) async fn get(State(app): Shared, _: Operator, Path(id): Path<String>) -> Result<Answer<NodePower>> {
    let name = id.clone();
    app.db.run(move |db| power::of_node(db, &id)).await?.map(Answer).ok_or_else(|| unknown(&name))
}

pub(crate) async fn set_methods(
    State(app): Shared,
    _: Operator,
    Path(id): Path<String>,
    Json(PowerMethods { methods }): Json<PowerMethods>,
) -> Result<StatusCode> {
    app.power.check_methods(&methods).map_err(ApiError::bad_request)?;
    changed(&app, id, move |db, id| power::set_methods(db, id, &methods)).await
}

pub(crate) async fn clear_methods(State(app): Shared, _: Operator, Path(id): Path<String>) -> Result<StatusCode> {
    changed(&app, id, |db, id| power::set_methods(db, id, &[])).await
}

pub(crate) async fn set_contacts(
    State(app): Shared,
    _: Operator,
    Path(id): Path<String>,
    Json(contacts): Json<PowerContacts>,
) -> Result<StatusCode> {
    [&contacts.tech, &contacts.pi].into_iter().flatten().try_for_each(|contact| line("contact", contact))?;
    changed(&app, id, move |db, id| power::set_contacts(db, id, &contacts)).await
}

pub(crate) async fn set_hold(
    State(app): Shared,
    _: Operator,
    Path(id): Path<String>,
    Json(PowerHold { reason }): Json<PowerHold>,
) -> Result<StatusCode> {
    reason.as_deref().map_or(Ok(()), |reason| line("reason", reason))?;
    changed(&app, id, move |db, id| power::set_held(db, id, reason.as_deref())).await
}

async fn changed(
    app: &App,
    id: String,
    change: impl FnOnce(&rusqlite::Connection, &str) -> rusqlite::Result<bool> + Send + 'static,
) -> Result<StatusCode> {
    let name = id.clone();
    let known = app.db.run(move |db| change(db, &id)).await?;
    app.power.wake();
    if known { Ok(StatusCode::NO_CONTENT) } else { Err(unknown(&name)) }
}

/// Asks for an operation. It is recorded before anything is done.
pub(crate) async fn operate(
    State(app): Shared,
    Operator(who): Operator,
    Path(id): Path<String>,
    Json(new): Json<NewPowerOperation>,
) -> Result<(StatusCode, Answer<PowerOperation>)> {
    line("reason", &new.reason)?;
    if !(1..=MAX_CONFIRM).contains(&new.confirm_within) {
        return Err(ApiError::bad_request(format!("confirm_within is from 1 to {MAX_CONFIRM} seconds")));
    }
    let added = app.db.run(move |db| -> Result<_> {
        match power::methods(db, &id)? {
            None => Err(unknown(&id)),
            Some(methods) if methods.is_empty() => Err(no_methods(&id)),
            Some(_) => operations::add(db, &id, &new, &who, now())?.map_err(|other| {
                let message = format!("operation {other} is under way on node {id}");
                ApiError::conflict("power-busy", message)
            }),
        }
    });
    let added = added.await?;
    app.power.wake();
    Ok((StatusCode::CREATED, Answer(added)))
}

/// How many.
#[derive(Debug, Deserialize)]
pub(crate) struct Limit {
    #[serde(default = "hundred")]
    limit: u32,
}

fn hundred() -> u32 {
    100
}

impl Limit {
    fn of(query: Asked<Self>) -> Result<u32> {
        query.map(|Query(Self { limit })| limit.min(1000)).map_err(|e| ApiError::bad_request(e.body_text()))
    }
}

/// `GET /v1/nodes/{id}/power/operations?limit=`: newest first.
pub(crate) async fn of_node(
    State(app): Shared,
    _: Operator,
    Path(id): Path<String>,
    query: Asked<Limit>,
) -> Result<Answer<Vec<PowerOperation>>> {
    let limit = Limit::of(query)?;
    let found = app.db.run(move |db| -> Result<_> {
        if !nodes::exists(db, &id)? {
            return Err(unknown(&id));
        }
        Ok(operations::list(db, Some(&id), limit)?)
    });
    found.await.map(Answer)
}

/// `GET /v1/power/operations?limit=`: newest first.
pub(crate) async fn list(State(app): Shared, _: Operator, query: Asked<Limit>) -> Result<Answer<Vec<PowerOperation>>> {
    let limit = Limit::of(query)?;
    Ok(Answer(app.db.run(move |db| operations::list(db, None, limit)).await?))
}

pub(crate) async fn operation(
    State(app): Shared,
    _: Operator,
    Path(number): Path<String>,
) -> Result<Answer<PowerOperation>> {
    let unknown = || ApiError::not_found(format_args!("operation {number:?}"));
    let id: u64 = number.parse().map_err(|_| unknown())?;
    app.db.run(move |db| operations::get(db, id.min(i64::MAX as u64))).await?.map(Answer).ok_or_else(unknown)
}

/// Asks the devices, while the client waits.
pub(crate) async fn state(State(app): Shared, _: Operator, Path(id): Path<String>) -> Result<Answer<PowerStateRead>> {
    let name = id.clone();
    let methods = app.db.run(move |db| power::methods(db, &id)).await?;
    let methods = methods.ok_or_else(|| unknown(&name))?;
    if methods.is_empty() {
        return Err(no_methods(&name));
    }
    let failed = |message: String| ApiError::new(StatusCode::BAD_GATEWAY, "power-failed", message);
    app.power.state(&methods).await.map(Answer).map_err(|why| match why {
        NoState::Methods(message) => failed(message),
        NoState::Busy => failed("too many states are being read; try again".to_owned()),
        NoState::Slow => failed(format!("no device of node {name} has answered yet: it is slow, or in use; try again")),
        NoState::Failed(attempts) => {
            let said = attempts.iter().filter_map(|attempt| attempt.failure.as_ref()).map(|f| f.message.as_str());
            let mut said: Vec<_> = said.collect();
            said.dedup();
            failed(format!("no method says whether node {name} has power: {}", said.join("; ")))
        }
    })
}

pub(crate) async fn policy(State(app): Shared, _: Operator) -> Result<Answer<PowerPolicy>> {
    Ok(Answer(app.db.run(|db| power::policy(db)).await?))
}

/// Sets all of the policy. What is turned on begins by listening.
pub(crate) async fn set_policy(State(app): Shared, _: Operator, Json(policy): Json<PowerPolicy>) -> Result<StatusCode> {
    policy.check().map_err(ApiError::bad_request)?;
    if let Some(program) = &policy.notify {
        app.power.check_program(program).map_err(ApiError::bad_request)?;
    }
    app.db
        .run(move |db| -> Result<()> {
            let before = power::policy(db)?;
            if (policy.ladder && !before.ladder) || (policy.escalation && !before.escalation) {
                power::set_calm_since(db, now())?;
            }
            Ok(power::set_policy(db, &policy)?)
        })
        .await?;
    app.power.wake();
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn test(
    State(app): Shared,
    _: Operator,
    Json(PowerTestRequest { nodes }): Json<PowerTestRequest>,
) -> Result<Answer<PowerTestsAsked>> {
    let asked = app.db.run(move |db| power::ask_tests(db, &nodes, now())).await?;
    app.power.wake();
    asked.map(Answer).map_err(|id| no_methods(&id))
}

pub(crate) async fn report(State(app): Shared, _: Operator) -> Result<Answer<Vec<PowerReport>>> {
    Ok(Answer(app.db.run(|db| power::report(db)).await?))
}

pub(crate) async fn ladder(State(app): Shared, _: Operator) -> Result<Answer<LadderStanding>> {
    let standing = app.db.run(|db| -> rusqlite::Result<_> {
        let PowerPolicy { ladder, escalation, .. } = power::policy(db)?;
        let holding = if ladder || escalation { power::holding(db)?.map(|holding| holding.why) } else { None };
        let (calm_since, records) = (power::calm_since(db)?, records::list(db, false)?);
        Ok(LadderStanding { ladder, escalation, holding, calm_since, records })
    });
    Ok(Answer(standing.await?))
}

/// `GET /v1/power/records`: nodes that are or were down.
pub(crate) async fn records(State(app): Shared, _: Operator) -> Result<Answer<Vec<PowerRecord>>> {
    Ok(Answer(app.db.run(|db| records::list(db, true)).await?))
}

/// `GET /v1/power/events?limit=`: the newest, oldest first.
pub(crate) async fn events(State(app): Shared, _: Operator, query: Asked<Limit>) -> Result<Answer<Vec<PowerEvent>>> {
    let limit = Limit::of(query)?;
    Ok(Answer(app.db.run(move |db| power::events(db, limit)).await?))
}
