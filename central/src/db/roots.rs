//! Published trust updates.

use rusqlite::{Connection, OptionalExtension};

/// A published update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Published {
    pub(crate) serial: u64,
    pub(crate) published: u64,
    pub(crate) envelope: Vec<u8>,
}

/// The newest one.
pub(crate) fn newest(db: &Connection) -> rusqlite::Result<Option<Published>> {
    let sql = "SELECT serial, published, envelope FROM roots ORDER BY serial DESC LIMIT 1";
    db.prepare_cached(sql)?
        .query_row([], |row| Ok(Published { serial: row.get(0)?, published: row.get(1)?, envelope: row.get(2)? }))
        .optional()
}

pub(crate) fn add(db: &Connection, serial: u64, envelope: &[u8], now: u64) -> rusqlite::Result<()> {
    let sql = "INSERT INTO roots (serial, published, envelope) VALUES (?1, ?2, ?3)";
    db.execute(sql, (serial, now, envelope)).map(|_| ())
}

/// The envelopes of all updates behind `after`, one after the other.
pub(crate) fn chain(db: &Connection, after: u64) -> rusqlite::Result<Vec<u8>> {
    let mut statement = db.prepare_cached("SELECT envelope FROM roots WHERE serial > ?1 ORDER BY serial")?;
    let mut rows = statement.query([after])?;
    let mut chain = Vec::new();
    while let Some(row) = rows.next()? {
        chain.extend_from_slice(row.get_ref(0)?.as_blob()?);
    }
    Ok(chain)
}
