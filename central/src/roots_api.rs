//! Trust roots: published by operators, handed to anybody.

use axum::{
    Json as Answer,
    extract::{Query, State, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use orrery_central_api::RootRecord;
use orrery_protocol::{Digest, Envelope, PayloadType, Root, TrustRoot, TrustUpdate};
use rusqlite::Connection;
use serde::Deserialize;

use crate::{
    admin_api::payload,
    api_error::ApiError,
    app::{Document, Key, Operator, Shared},
    db::roots::{self, Published},
    now,
};

type Result<T> = std::result::Result<T, ApiError>;

/// Behind which serial.
#[derive(Debug, Deserialize)]
pub(crate) struct ChainQuery {
    #[serde(default)]
    after: u64,
}

/// `GET /v1/roots?after=N`: envelopes, one after the other. For any key: only their signatures count, and who needs them most
/// cannot even verify this server.
pub(crate) async fn chain(
    State(app): Shared,
    _: Key,
    query: std::result::Result<Query<ChainQuery>, QueryRejection>,
) -> Result<Response> {
    let Query(ChainQuery { after }) = query.map_err(|e| ApiError::bad_request(e.body_text()))?;
    let after = after.min(i64::MAX as u64);
    let chain = app.db.run(move |db| roots::chain(db, after)).await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], chain).into_response())
}

/// `PUT /v1/roots`: publishes the next trust update. From then on the server shows a certificate that this root allows.
pub(crate) async fn publish(
    State(app): Shared,
    _: Operator,
    Document(envelope): Document,
) -> Result<(StatusCode, Answer<RootRecord>)> {
    let update = TrustUpdate::decode(payload(&envelope, PayloadType::TrustUpdate)?)
        .map_err(|e| ApiError::bad_request(e.to_string()))?;
    if !app.certificates.can_serve(&update.ca).map_err(ApiError::internal)? {
        let message = "it names no certificate authority of this central, so no node could reach it any more; \
                       make the next one with `orrery-central ca new` and name it in the update";
        return Err(ApiError::conflict("unknown-authority", message));
    }
    let ca = update.ca.clone();
    let stored = app.db.run(move |db| -> Result<_> {
        let newest = roots::newest(db)?;
        if let Some(known) = newest.as_ref().filter(|known| known.envelope == envelope) {
            return Ok((false, record(&envelope, known.published, update)));
        }
        judge(newest.as_ref(), &envelope, &update)?;
        let published = now();
        roots::add(db, update.serial, &envelope, published)?;
        tracing::info!(target: "audit", serial = update.serial, "trust root published");
        Ok((true, record(&envelope, published, update)))
    });
    let (new, record) = stored.await?;
    app.certificates.follow(Some(&ca)).map_err(ApiError::internal)?;
    Ok((if new { StatusCode::CREATED } else { StatusCode::OK }, Answer(record)))
}

fn record(envelope: &[u8], published: u64, update: TrustUpdate) -> RootRecord {
    RootRecord { sha256: Digest::of(envelope), published, update }
}

/// Refuses what no node could follow. The root of the media is not known here: of the first update, only its own keys can be
/// judged.
fn judge(newest: Option<&Published>, envelope: &[u8], update: &TrustUpdate) -> Result<()> {
    let current = newest.map_or(0, |known| known.serial);
    if update.serial != current + 1 || i64::try_from(update.serial).is_err() {
        let message = format!("it has serial {}, the next one is {}", update.serial, current + 1);
        return Err(ApiError::conflict("serial", message));
    }
    let refused = |why: String| ApiError::conflict("not-signed", why);
    match newest {
        Some(known) => root_of(&known.envelope)?.advance(envelope).map(drop).map_err(|e| refused(e.to_string())),
        None => {
            let own = TrustRoot { keys: update.release_keys.clone(), threshold: update.release_threshold };
            let verified = Envelope::parse(envelope).and_then(|e| e.verify(PayloadType::TrustUpdate, &own).map(drop));
            verified.map_err(|e| refused(format!("trust update: by its own keys: {e}")))
        }
    }
}

/// The root that a published update leads to.
fn root_of(envelope: &[u8]) -> Result<Root> {
    let update = TrustUpdate::decode(payload(envelope, PayloadType::TrustUpdate)?).map_err(ApiError::internal)?;
    let trust = TrustRoot { keys: update.release_keys, threshold: update.release_threshold };
    Ok(Root { serial: update.serial, trust, ca: update.ca })
}

/// Refuses a document that the newest published root does not vouch for. Without a published root, the nodes alone know whom
/// they obey.
pub(crate) fn vouched(db: &Connection, envelope: &[u8], payload_type: PayloadType) -> Result<()> {
    let Some(newest) = roots::newest(db)? else {
        return Ok(());
    };
    let root = root_of(&newest.envelope)?;
    let verified = Envelope::parse(envelope).and_then(|e| e.verify(payload_type, &root.trust).map(drop));
    verified.map_err(|e| {
        let message = format!("nodes at trust root {} would refuse it: {e}; let more people sign it", root.serial);
        ApiError::conflict("not-signed", message)
    })
}

/// The authorities that the newest published root allows, in PEM; none before a root was published.
pub(crate) fn allowed_authorities(db: &mut Connection) -> rusqlite::Result<Option<String>> {
    let newest = roots::newest(db)?;
    // It was decoded before it was stored.
    Ok(newest.and_then(|known| root_of(&known.envelope).ok()).map(|root| root.ca))
}
