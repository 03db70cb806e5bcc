//! One-time tokens by which machines without a key become nodes.

use orrery_central_api::{EnrolmentRecord, EnrolmentStanding, NewEnrolment};
use orrery_protocol::{Digest, Enrolled};
use rusqlite::{Connection, OptionalExtension, Row};

use super::{from_json, from_word, from_word_option, keys, nodes};

/// Whether a token was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Made {
    Yes,
    /// The node has a key already.
    HasKey,
    /// The token exists.
    TokenTaken,
}

/// What a token was good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Use {
    Done(Enrolled),
    /// Unknown, spent by another key, revoked or expired; which of these is not said to whoever asks.
    Refused,
    /// The key belongs to another node.
    KeyTaken,
}

const COLUMNS: &str = "token, node, created, expires, spki, spent, revoked";

fn record(row: &Row<'_>, now: u64) -> rusqlite::Result<EnrolmentRecord> {
    let spki: Option<Digest> = from_word_option(row, 4)?;
    let (expires, spent, revoked): (u64, Option<u64>, Option<u64>) = (row.get(3)?, row.get(5)?, row.get(6)?);
    let standing = match (spent, revoked, spki) {
        (Some(_), _, _) => EnrolmentStanding::Spent,
        (None, Some(_), _) => EnrolmentStanding::Revoked,
        (None, None, _) if expires <= now => EnrolmentStanding::Expired,
        (None, None, Some(_)) => EnrolmentStanding::Begun,
        (None, None, None) => EnrolmentStanding::Open,
    };
    Ok(EnrolmentRecord { token: from_word(row, 0)?, node: row.get(1)?, created: row.get(2)?, expires, spki, standing })
}

pub(crate) fn add(db: &mut Connection, new: &NewEnrolment, now: u64) -> rusqlite::Result<Made> {
    let transaction = db.transaction()?;
    if get(&transaction, &new.token, now)?.is_some() {
        return Ok(Made::TokenTaken);
    }
    if keys::current(&transaction, &new.node)?.is_some() {
        return Ok(Made::HasKey);
    }
    if !nodes::exists(&transaction, &new.node)? {
        nodes::insert(&transaction, &new.node, &new.name, &new.groups, new.boot_state, now)?;
    }
    let sql = "INSERT INTO enrolments (token, node, created, expires) VALUES (?1, ?2, ?3, ?4)";
    transaction.execute(sql, (new.token.to_string(), &new.node, now, new.expires))?;
    transaction.commit()?;
    Ok(Made::Yes)
}

pub(crate) fn get(db: &Connection, token: &Digest, now: u64) -> rusqlite::Result<Option<EnrolmentRecord>> {
    let sql = format!("SELECT {COLUMNS} FROM enrolments WHERE token = ?1");
    db.prepare_cached(&sql)?.query_row([token.to_string()], |row| record(row, now)).optional()
}

/// All tokens, newest first.
pub(crate) fn list(db: &Connection, now: u64) -> rusqlite::Result<Vec<EnrolmentRecord>> {
    let sql = format!("SELECT {COLUMNS} FROM enrolments ORDER BY created DESC, node");
    db.prepare(&sql)?.query_map([], |row| record(row, now))?.collect()
}

/// Takes back the tokens of a node that were not spent. Returns how many there were.
pub(crate) fn revoke(db: &Connection, node: &str, now: u64) -> rusqlite::Result<usize> {
    let sql = "UPDATE enrolments SET revoked = ?2 WHERE node = ?1 AND spent IS NULL AND revoked IS NULL";
    db.execute(sql, (node, now))
}

/// Whether a token may be used by the key `spki`: an unspent one by any key, since power may go before a key is kept; a spent
/// one by the key that spent it, since an answer may be lost.
fn usable(record: &EnrolmentRecord, spki: &Digest) -> bool {
    match record.standing {
        EnrolmentStanding::Open | EnrolmentStanding::Begun => true,
        EnrolmentStanding::Spent => record.spki.as_ref() == Some(spki),
        EnrolmentStanding::Revoked | EnrolmentStanding::Expired => false,
    }
}

/// A machine with the key `spki` shows a token. The key does not count before it is confirmed.
pub(crate) fn enrol(db: &mut Connection, token: &Digest, spki: &Digest, now: u64) -> rusqlite::Result<Use> {
    let transaction = db.transaction()?;
    let Some(record) = get(&transaction, token, now)?.filter(|record| usable(record, spki)) else {
        return Ok(Use::Refused);
    };
    if keys::owner(&transaction, spki, now)?.is_some_and(|owner| owner.node != record.node) {
        return Ok(Use::KeyTaken);
    }
    transaction.execute("UPDATE enrolments SET spki = ?2 WHERE token = ?1", (token.to_string(), spki.to_string()))?;
    let enrolled =
        transaction.query_row("SELECT id, name, member_of FROM nodes WHERE id = ?1", [&record.node], |row| {
            Ok(Enrolled { node: row.get(0)?, name: row.get(1)?, groups: from_json(row, 2)? })
        })?;
    transaction.commit()?;
    Ok(Use::Done(enrolled))
}

/// The machine has kept its key: from now on it is the node's, and the token is spent. Says whether that is so.
pub(crate) fn confirm(db: &mut Connection, token: &Digest, spki: &Digest, now: u64) -> rusqlite::Result<bool> {
    let transaction = db.transaction()?;
    let Some(record) = get(&transaction, token, now)?.filter(|record| usable(record, spki)) else {
        return Ok(false);
    };
    if record.standing == EnrolmentStanding::Spent {
        return Ok(true);
    }
    // Another token of the same node may have been spent meanwhile.
    let free = keys::current(&transaction, &record.node)?.is_none() && !keys::is_taken(&transaction, spki)?;
    if record.spki.as_ref() != Some(spki) || !free {
        return Ok(false);
    }
    transaction.execute("UPDATE enrolments SET spent = ?2 WHERE token = ?1", (token.to_string(), now))?;
    keys::insert(&transaction, &record.node, spki, false, now)?;
    transaction.commit()?;
    Ok(true)
}
