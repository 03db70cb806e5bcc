//! Nodes and what they reported.

use orrery_central_api::{NewNode, NodeDetail, NodeSummary, StoredEvent};
use orrery_protocol::{BootState, Digest, Event, Facts, NodeStatus, RunLevel};
use rusqlite::{Connection, OptionalExtension, Row};

use super::{from_json, from_json_option, from_word, from_word_option, to_json, to_word};
use crate::boot_state;

/// Events kept of each node.
const KEPT_EVENTS: u32 = 10_000;

/// A node as requests of its own need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KnownNode {
    pub(crate) id: String,
    pub(crate) boot_state: BootState,
}

/// Whether a node was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Added {
    Yes,
    IdTaken,
    KeyTaken,
}

/// The node that has the key.
pub(crate) fn by_key(db: &Connection, spki: &Digest) -> rusqlite::Result<Option<KnownNode>> {
    db.prepare_cached("SELECT id, boot_state FROM nodes WHERE spki = ?1")?
        .query_row([spki.to_string()], |row| Ok(KnownNode { id: row.get(0)?, boot_state: from_word(row, 1)? }))
        .optional()
}

pub(crate) fn add(db: &Connection, node: &NewNode, now: u64) -> rusqlite::Result<Added> {
    let exists = |sql: &str, value: &str| db.prepare(sql)?.exists([value]);
    if exists("SELECT 1 FROM nodes WHERE id = ?1", &node.id)? {
        return Ok(Added::IdTaken);
    }
    let spki = node.spki.to_string();
    if exists("SELECT 1 FROM nodes WHERE spki = ?1", &spki)? {
        return Ok(Added::KeyTaken);
    }
    let sql = "INSERT INTO nodes (id, name, spki, boot_state, created) VALUES (?1, ?2, ?3, ?4, ?5)";
    db.execute(sql, (&node.id, &node.name, spki, node.boot_state.as_str(), now))?;
    Ok(Added::Yes)
}

pub(crate) fn remove(db: &Connection, id: &str) -> rusqlite::Result<bool> {
    Ok(db.execute("DELETE FROM nodes WHERE id = ?1", [id])? > 0)
}

pub(crate) fn exists(db: &Connection, id: &str) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT 1 FROM nodes WHERE id = ?1")?.exists([id])
}

const SUMMARY: &str = "id, name, spki, boot_state, run_level, created, last_seen, last_contact";

fn summary(row: &Row<'_>) -> rusqlite::Result<NodeSummary> {
    Ok(NodeSummary {
        id: row.get(0)?,
        name: row.get(1)?,
        spki: from_word(row, 2)?,
        boot_state: from_word(row, 3)?,
        run_level: from_word_option(row, 4)?,
        created: row.get(5)?,
        last_seen: row.get(6)?,
        last_contact: row.get(7)?,
    })
}

pub(crate) fn list(db: &Connection) -> rusqlite::Result<Vec<NodeSummary>> {
    db.prepare(&format!("SELECT {SUMMARY} FROM nodes ORDER BY id"))?.query_map([], summary)?.collect()
}

pub(crate) fn detail(db: &Connection, id: &str) -> rusqlite::Result<Option<NodeDetail>> {
    let sql = format!("SELECT {SUMMARY}, facts, status FROM nodes WHERE id = ?1");
    let slices = db
        .prepare("SELECT slice FROM slivers WHERE node = ?1 ORDER BY slice")?
        .query_map([id], |row| from_word(row, 0))?
        .collect::<rusqlite::Result<_>>()?;
    db.query_row(&sql, [id], |row| {
        Ok(NodeDetail {
            summary: summary(row)?,
            slices,
            facts: from_json_option(row, 8)?,
            status: from_json_option(row, 9)?,
        })
    })
    .optional()
}

/// Sets what is wanted of a node. An install handed out before no longer counts.
pub(crate) fn set_boot_state(db: &Connection, id: &str, state: BootState) -> rusqlite::Result<bool> {
    let sql = "UPDATE nodes SET boot_state = ?2, installing = NULL WHERE id = ?1";
    Ok(db.execute(sql, (id, state.as_str()))? > 0)
}

/// Notes a contact. `installing` is given when the node was handed the install script.
pub(crate) fn contacted(
    db: &Connection,
    id: &str,
    facts: &Facts,
    level: RunLevel,
    installing: bool,
    now: u64,
) -> rusqlite::Result<()> {
    let sql = "UPDATE nodes SET facts = ?2, run_level = ?3, last_seen = ?4, last_contact = ?4,
               installing = CASE WHEN ?5 THEN ?6 ELSE installing END WHERE id = ?1";
    db.execute(sql, (id, to_json(facts), to_word(&level), now, installing, &facts.boot_id)).map(|_| ())
}

/// Keeps events, and moves the boot state as they say. Returns the new state if it changed.
pub(crate) fn report(db: &mut Connection, id: &str, events: &[Event], now: u64) -> rusqlite::Result<Option<BootState>> {
    let transaction = db.transaction()?;
    let (before, installing): (BootState, Option<String>) =
        transaction.query_row("SELECT boot_state, installing FROM nodes WHERE id = ?1", [id], |row| {
            Ok((from_word(row, 0)?, row.get(1)?))
        })?;
    let (mut state, mut level) = (before, None);
    for event in events {
        // One line of bounded length, whatever the node sent.
        let line = String::from_utf8_lossy(&event.to_json_line()).trim_end().to_owned();
        let digest = Digest::of(line.as_bytes()).to_string();
        let sql = "INSERT OR IGNORE INTO events (node, received, digest, event) VALUES (?1, ?2, ?3, ?4)";
        let new = transaction.prepare_cached(sql)?.execute((id, now, digest, line))? > 0;
        if new {
            state = boot_state::after_event(state, installing.as_deref(), event);
            level = boot_state::run_level(event).or(level);
        }
    }
    let sql = "DELETE FROM events WHERE node = ?1 AND seq <=
               (SELECT seq FROM events WHERE node = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2)";
    transaction.prepare_cached(sql)?.execute((id, KEPT_EVENTS))?;
    let sql = "UPDATE nodes SET boot_state = ?2, run_level = coalesce(?3, run_level), last_seen = ?4 WHERE id = ?1";
    transaction.execute(sql, (id, state.as_str(), level.map(|l| to_word(&l)), now))?;
    transaction.commit()?;
    Ok((state != before).then_some(state))
}

/// Notes a status.
pub(crate) fn status(db: &Connection, id: &str, status: &NodeStatus, now: u64) -> rusqlite::Result<()> {
    let sql = "UPDATE nodes SET status = ?2, run_level = ?3, last_seen = ?4 WHERE id = ?1";
    db.execute(sql, (id, to_json(status), to_word(&status.run_level), now)).map(|_| ())
}

/// Events after `after`, oldest first; without it, the newest ones. At most `limit`.
pub(crate) fn events(db: &Connection, id: &str, after: Option<u64>, limit: u32) -> rusqlite::Result<Vec<StoredEvent>> {
    let order = if after.is_some() { "ASC" } else { "DESC" };
    let sql =
        format!("SELECT seq, received, event FROM events WHERE node = ?1 AND seq > ?2 ORDER BY seq {order} LIMIT ?3");
    let mut events: Vec<StoredEvent> = db
        .prepare_cached(&sql)?
        .query_map((id, after.unwrap_or(0), limit), |row| {
            Ok(StoredEvent { seq: row.get(0)?, received: row.get(1)?, event: from_json(row, 2)? })
        })?
        .collect::<rusqlite::Result<_>>()?;
    if after.is_none() {
        events.reverse();
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use orrery_protocol::Outcome;

    use super::*;
    use crate::db::tests::fresh;

    fn event(n: u64, stage: &str) -> Event {
        Event {
            boot_id: "b".to_owned(),
            at_ms: n,
            wall: 0,
            role: "boot".to_owned(),
            stage: stage.to_owned(),
            outcome: Outcome::Ok,
            class: None,
            message: String::new(),
            duration_ms: 0,
        }
    }

    fn with_node() -> Connection {
        let db = fresh();
        let node = |id: &str, key| NewNode {
            id: id.to_owned(),
            name: String::new(),
            spki: Digest([key; 32]),
            boot_state: BootState::Reinstall,
        };
        assert_eq!(add(&db, &node("n1", 1), 5).unwrap(), Added::Yes);
        assert_eq!(add(&db, &node("n1", 2), 5).unwrap(), Added::IdTaken);
        assert_eq!(add(&db, &node("n2", 1), 5).unwrap(), Added::KeyTaken);
        db
    }

    #[test]
    fn the_newest_events_are_kept_and_repeats_ignored() {
        let mut db = with_node();
        let batch: Vec<_> = (0..u64::from(KEPT_EVENTS) + 7).map(|n| event(n, "network")).collect();
        report(&mut db, "n1", &batch, 6).unwrap();
        let kept = events(&db, "n1", Some(0), u32::MAX).unwrap();
        assert_eq!(kept.len(), KEPT_EVENTS as usize);
        assert_eq!(kept[0].event.at_ms, 7);
        report(&mut db, "n1", &batch[100..], 7).unwrap();
        assert_eq!(events(&db, "n1", Some(0), u32::MAX).unwrap(), kept);
        let newest = events(&db, "n1", None, 2).unwrap();
        assert_eq!(newest, kept[kept.len() - 2..]);
    }

    #[test]
    fn an_install_ends_a_reinstall_once() {
        let mut db = with_node();
        let facts = Facts { boot_id: "b".to_owned(), ..Facts::default() };
        contacted(&db, "n1", &facts, RunLevel::Installing, true, 6).unwrap();
        assert_eq!(report(&mut db, "n1", &[event(1, "install")], 7).unwrap(), Some(BootState::Boot));
        set_boot_state(&db, "n1", BootState::Reinstall).unwrap();
        assert_eq!(report(&mut db, "n1", &[event(1, "install"), event(2, "install")], 8).unwrap(), None);
        assert_eq!(detail(&db, "n1").unwrap().unwrap().summary.boot_state, BootState::Reinstall);
    }
}
