//! Keys of nodes: a node is who has one of them.

use orrery_central_api::{KeyRecord, NewKey};
use orrery_protocol::Digest;
use rusqlite::{Connection, OptionalExtension, Row};

use super::{from_word, from_word_option};

/// Whose key one is, and whether it still counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyOf {
    /// The node's id.
    pub(crate) node: String,
    pub(crate) standing: Standing,
}

/// Whether a key counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The node's newest.
    Current,
    /// Replaced, and still good for a while.
    Grace { replaced: u64, ends: u64 },
    /// Replaced, and no longer good.
    Ended { replaced: u64 },
}

pub(crate) fn is_taken(db: &Connection, spki: &Digest) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT 1 FROM node_keys WHERE spki = ?1")?.exists([spki.to_string()])
}

/// Whose key `spki` is.
pub(crate) fn owner(db: &Connection, spki: &Digest, now: u64) -> rusqlite::Result<Option<KeyOf>> {
    db.prepare_cached("SELECT node, replaced, ends FROM node_keys WHERE spki = ?1")?
        .query_row([spki.to_string()], |row| {
            let standing = match (row.get(1)?, row.get(2)?) {
                (Some(replaced), Some(ends)) if ends > now => Standing::Grace { replaced, ends },
                (Some(replaced), _) => Standing::Ended { replaced },
                _ => Standing::Current,
            };
            Ok(KeyOf { node: row.get(0)?, standing })
        })
        .optional()
}

pub(crate) fn insert(db: &Connection, node: &str, spki: &Digest, ends_others: bool, now: u64) -> rusqlite::Result<()> {
    let sql = "INSERT INTO node_keys (spki, node, created, ends_others) VALUES (?1, ?2, ?3, ?4)";
    db.execute(sql, (spki.to_string(), node, now, ends_others)).map(|_| ())
}

/// A key of a node, newest first.
pub(crate) fn list(db: &Connection, node: &str) -> rusqlite::Result<Vec<KeyRecord>> {
    let sql = "SELECT spki, created, replaced, ends FROM node_keys WHERE node = ?1
               ORDER BY replaced IS NOT NULL, created DESC, rowid DESC";
    db.prepare_cached(sql)?.query_map([node], record)?.collect()
}

fn record(row: &Row<'_>) -> rusqlite::Result<KeyRecord> {
    Ok(KeyRecord { spki: from_word(row, 0)?, created: row.get(1)?, replaced: row.get(2)?, ends: row.get(3)? })
}

/// Makes `new` the node's key, and lets the one before it end after the grace.
pub(crate) fn renew(db: &mut Connection, node: &str, new: &NewKey, now: u64) -> rusqlite::Result<()> {
    let transaction = db.transaction()?;
    let sql = "UPDATE node_keys SET replaced = ?2, ends = ?3 WHERE node = ?1 AND replaced IS NULL";
    transaction.execute(sql, (node, now, now.saturating_add(new.grace)))?;
    insert(&transaction, node, &new.spki, new.end_grace, now)?;
    transaction.commit()
}

/// Notes that `spki` was used. Where it was made so that its first use ends the grace of those before it, that happens.
/// Returns the node if so.
pub(crate) fn used(db: &Connection, spki: &Digest, now: u64) -> rusqlite::Result<Option<String>> {
    let sql = "UPDATE node_keys SET ends_others = 0 WHERE spki = ?1 AND ends_others RETURNING node";
    let node: Option<String> = db.prepare_cached(sql)?.query_row([spki.to_string()], |row| row.get(0)).optional()?;
    if let Some(node) = &node {
        db.execute("UPDATE node_keys SET ends = min(ends, ?2) WHERE node = ?1 AND ends IS NOT NULL", (node, now))?;
    }
    Ok(node)
}

/// The newest key of a node, if it has any.
pub(crate) fn current(db: &Connection, node: &str) -> rusqlite::Result<Option<Digest>> {
    let sql = "SELECT spki FROM node_keys WHERE node = ?1 AND replaced IS NULL";
    db.query_row(sql, [node], |row| from_word_option(row, 0)).optional().map(Option::flatten)
}
