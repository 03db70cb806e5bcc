//! What every request goes through: routes, who is asking, limits.

use std::time::{Duration, Instant};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{FromRequest, FromRequestParts, Request, State},
    http::{Method, StatusCode, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get, post, put},
};
use orrery_protocol::Digest;
use serde::de::DeserializeOwned;

use crate::{
    admin_api,
    api_error::ApiError,
    artifacts::Artifacts,
    authorities::Certificates,
    collect_api, day,
    db::{
        self, Database,
        keys::{self, Standing},
        nodes::{self, KnownNode},
    },
    enrol_api::{self, WrongTokens},
    fleet_api, life_api, node_api, now,
    power::Power,
    power_api, roots_api,
    tls::ClientIdentity,
};

/// No document is larger; artifacts are no documents.
const MAX_BODY: usize = 8 << 20;
/// Any request but an artifact's is answered within this, its body included.
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);
/// The body of a request that is refused may take so long.
const DRAIN: Duration = Duration::from_secs(5);

/// What handlers share.
#[derive(Debug, Clone)]
pub(crate) struct App {
    pub(crate) db: Database,
    pub(crate) artifacts: Artifacts,
    pub(crate) certificates: Certificates,
    pub(crate) wrong_tokens: WrongTokens,
    pub(crate) power: Power,
}

/// All routes.
pub(crate) fn router(app: App) -> Router {
    let artifact = Router::new()
        .route("/v1/artifacts/{sha256}", get(node_api::artifact).put(admin_api::put_artifact))
        .route("/v1/artifacts/{sha256}", delete(collect_api::remove_artifact))
        .route_layer(middleware::from_fn_with_state(app.clone(), changes_by_operators))
        .route_layer(middleware::from_fn(audit));
    let node = Router::new()
        .route("/v1/node/contact", post(node_api::contact))
        .route("/v1/node/events", post(node_api::events))
        .route("/v1/node/wanted", get(node_api::wanted))
        .route("/v1/node/status", post(node_api::status))
        .route("/v1/node/log", post(node_api::log))
        .route("/v1/artifacts/{sha256}/contents", post(node_api::contents))
        .route("/v1/enrol", post(enrol_api::enrol))
        .route("/v1/enrol/confirm", post(enrol_api::confirm))
        .route_layer(middleware::from_fn(deadline));
    let admin = Router::new()
        .route("/v1/nodes", get(admin_api::list_nodes).post(admin_api::add_node))
        .route("/v1/nodes/{id}", get(admin_api::get_node).delete(admin_api::remove_node))
        .route("/v1/nodes/{id}/boot-state", put(admin_api::set_boot_state))
        .route("/v1/nodes/{id}/events", get(admin_api::node_events))
        .route("/v1/nodes/{id}/groups", put(fleet_api::set_groups))
        .route("/v1/nodes/{id}/keys", post(fleet_api::renew_key))
        .route("/v1/nodes/{id}/log", get(fleet_api::node_log))
        .route("/v1/nodes/{id}/reboot", post(fleet_api::reboot))
        .route("/v1/enrolments", get(enrol_api::list).post(enrol_api::add))
        .route("/v1/enrolments/{node}", delete(enrol_api::revoke))
        .route("/v1/roots", get(roots_api::chain).put(roots_api::publish))
        .route("/v1/slices", get(admin_api::list_slices))
        .route("/v1/slices/{authority}/{name}", get(admin_api::get_slice).put(admin_api::put_slice))
        .route("/v1/slices/{authority}/{name}", delete(admin_api::remove_slice))
        .route("/v1/slices/{authority}/{name}/slivers", get(admin_api::slivers))
        .route("/v1/slices/{authority}/{name}/suspension", put(life_api::suspend).delete(life_api::resume))
        .route("/v1/slices/{authority}/{name}/admin", put(life_api::set_admin))
        .route("/v1/slices/{authority}/{name}/reset", post(life_api::reset))
        .route("/v1/slices/{authority}/{name}/restart", post(life_api::restart))
        .route("/v1/artifacts", get(collect_api::list_artifacts))
        .route("/v1/releases/{sha256}", delete(collect_api::retire_release))
        .route("/v1/releases", get(admin_api::list_releases).put(admin_api::put_release))
        .route("/v1/scripts", get(admin_api::list_scripts).put(admin_api::put_script))
        .merge(power())
        .route_layer(middleware::from_fn_with_state(app.clone(), changes_by_operators))
        .route_layer(middleware::from_fn(audit))
        .route_layer(middleware::from_fn(deadline));
    Router::new()
        .merge(artifact)
        .merge(node)
        .merge(admin)
        .fallback(async || ApiError::not_found("this path"))
        .method_not_allowed_fallback(async || {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "this path takes other methods")
        })
        .with_state(app)
}

/// Routes of remote power.
fn power() -> Router<App> {
    let node = get(power_api::get).put(power_api::set_methods).delete(power_api::clear_methods);
    Router::new()
        .route("/v1/nodes/{id}/power", node)
        .route("/v1/nodes/{id}/power/contacts", put(power_api::set_contacts))
        .route("/v1/nodes/{id}/power/hold", put(power_api::set_hold))
        .route("/v1/nodes/{id}/power/operations", get(power_api::of_node).post(power_api::operate))
        .route("/v1/nodes/{id}/power/state", get(power_api::state))
        .route("/v1/power/operations", get(power_api::list))
        .route("/v1/power/operations/{number}", get(power_api::operation))
        .route("/v1/power/policy", get(power_api::policy).put(power_api::set_policy))
        .route("/v1/power/tests", post(power_api::test))
        .route("/v1/power/report", get(power_api::report))
        .route("/v1/power/ladder", get(power_api::ladder))
        .route("/v1/power/records", get(power_api::records))
        .route("/v1/power/events", get(power_api::events))
}

async fn deadline(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_DEADLINE, next.run(request)).await {
        Ok(response) => response,
        Err(_) => ApiError::new(StatusCode::REQUEST_TIMEOUT, "too-slow", "the request took too long").into_response(),
    }
}

/// Refuses changes by others once their body is here: a client that is still sending would see a broken connection instead of
/// the refusal.
async fn changes_by_operators(State(app): Shared, request: Request, next: Next) -> Response {
    if request.method() == Method::GET || request.method() == Method::HEAD {
        return next.run(request).await;
    }
    let (mut parts, body) = request.into_parts();
    match Operator::from_request_parts(&mut parts, &app).await {
        Ok(_) => next.run(Request::from_parts(parts, body)).await,
        Err(refusal) => {
            // More than this is not worth waiting for.
            let _ = tokio::time::timeout(DRAIN, axum::body::to_bytes(body, 64 * 1024)).await;
            refusal.into_response()
        }
    }
}

/// One line for everything an operator changed, or tried to.
async fn audit(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let identity = request.extensions().get::<ClientIdentity>().map(|i| i.0.to_string());
    let start = Instant::now();
    let response = next.run(request).await;
    if method != Method::GET && method != Method::HEAD {
        let (status, ms) = (response.status().as_u16(), start.elapsed().as_millis() as u64);
        tracing::info!(target: "audit", key = identity, %method, ?path, status, ms, "operator request");
    }
    response
}

fn identity(parts: &Parts) -> Result<Digest, ApiError> {
    let identity = parts.extensions.get::<ClientIdentity>();
    Ok(identity.ok_or_else(|| ApiError::internal("a request without an identity"))?.0)
}

/// The public key a request comes from, whoever that is.
pub(crate) struct Key(pub(crate) Digest);

impl FromRequestParts<App> for Key {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        identity(parts).map(Self)
    }
}

/// A request of a node. Holding one proves that its key is registered.
pub(crate) struct Node(pub(crate) KnownNode);

impl FromRequestParts<App> for Node {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let key = identity(parts)?;
        let found = app.db.run(move |db| match keys::owner(db, &key, now())? {
            Some(owner) => match owner.standing {
                Standing::Ended { replaced } => Err(key_replaced(&owner.node, replaced)),
                Standing::Current | Standing::Grace { .. } => Ok(nodes::known(db, &owner.node)?),
            },
            None => Ok(None),
        });
        found.await?.map(Self).ok_or_else(|| unknown_node(&key))
    }
}

/// The refusal of a key that another one has taken the place of.
pub(crate) fn key_replaced(node: &str, replaced: u64) -> ApiError {
    let message = format!("the key of node {node} was replaced on {}: flash the medium made then", day(replaced));
    ApiError::new(StatusCode::FORBIDDEN, "key-replaced", message)
}

/// The refusal of a key that no node has.
pub(crate) fn unknown_node(key: &Digest) -> ApiError {
    let message = format!("no node has the key with SHA-256 {key}; an operator can add it with `orrery node add`");
    ApiError::new(StatusCode::FORBIDDEN, "unknown-node", message)
}

/// A request of an operator, with that operator's name. Holding one proves that its key is an operator's.
pub(crate) struct Operator(pub(crate) String);

impl FromRequestParts<App> for Operator {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let key = identity(parts)?;
        let name = app.db.run(move |db| db::operator(db, &key)).await?;
        let refused = || ApiError::forbidden(format!("the key with SHA-256 {key} is not an operator's"));
        name.map(Self).ok_or_else(refused)
    }
}

/// A request of a node or of an operator.
pub(crate) struct Member;

impl FromRequestParts<App> for Member {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let key = identity(parts)?;
        let known = app.db.run(move |db| -> Result<bool, ApiError> {
            match keys::owner(db, &key, now())? {
                Some(keys::KeyOf { node, standing: Standing::Ended { replaced } }) => {
                    Err(key_replaced(&node, replaced))
                }
                Some(_) => Ok(true),
                None => Ok(db::operator(db, &key)?.is_some()),
            }
        });
        if known.await? { Ok(Self) } else { Err(unknown_node(&key)) }
    }
}

/// A bounded body.
pub(crate) struct Document(pub(crate) Bytes);

impl FromRequest<App> for Document {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &App) -> Result<Self, ApiError> {
        let body: Body = request.into_body();
        axum::body::to_bytes(body, MAX_BODY).await.map(Self).map_err(|e| {
            let message = format!("the body broke off or is longer than {MAX_BODY} bytes: {e}");
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", message)
        })
    }
}

/// A bounded body of JSON.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<App> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        let Document(body) = Document::from_request(request, app).await?;
        serde_json::from_slice(&body)
            .map(Self)
            .map_err(|e| ApiError::bad_request(format!("the body is not valid: {e}")))
    }
}

/// A path segment, as it must look.
pub(crate) fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, ApiError> {
    text.parse().map_err(|e| ApiError::bad_request(format!("{text:?}: {e}")))
}

pub(crate) type Shared = State<App>;
