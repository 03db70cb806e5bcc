//! Nodes and what they reported.

use orrery_central_api::{NewNode, NodeDetail, NodeSummary, OnceRecord, StoredEvent};
use orrery_protocol::{BootState, Digest, Event, Facts, NodeStatus, RunLevel};
use rusqlite::{Connection, OptionalExtension, Row};

use super::{from_json, from_json_option, from_word, from_word_option, keys, to_json, to_word};
use crate::boot_state::{self, Once};

/// Events kept of each node.
const KEPT_EVENTS: u32 = 10_000;

/// A node as requests of its own need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KnownNode {
    pub(crate) id: String,
    pub(crate) boot_state: BootState,
    pub(crate) once: Option<Once>,
    pub(crate) groups: Vec<String>,
}

/// Whether a node was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Added {
    Yes,
    IdTaken,
    KeyTaken,
}

/// The node of that id.
pub(crate) fn known(db: &Connection, id: &str) -> rusqlite::Result<Option<KnownNode>> {
    db.prepare_cached("SELECT id, boot_state, once_state, once_boot, member_of FROM nodes WHERE id = ?1")?
        .query_row([id], |row| {
            let once = from_word_option(row, 2)?.map(|state| (state, row.get(3)));
            let once = once.map(|(state, boot)| Ok::<_, rusqlite::Error>(Once { state, boot: boot? })).transpose()?;
            Ok(KnownNode { id: row.get(0)?, boot_state: from_word(row, 1)?, once, groups: from_json(row, 4)? })
        })
        .optional()
}

pub(crate) fn add(db: &mut Connection, node: &NewNode, now: u64) -> rusqlite::Result<Added> {
    let transaction = db.transaction()?;
    if exists(&transaction, &node.id)? {
        return Ok(Added::IdTaken);
    }
    if keys::is_taken(&transaction, &node.spki)? {
        return Ok(Added::KeyTaken);
    }
    insert(&transaction, &node.id, &node.name, &node.groups, node.boot_state, now)?;
    keys::insert(&transaction, &node.id, &node.spki, false, now)?;
    transaction.commit()?;
    Ok(Added::Yes)
}

/// A node, still without a key.
pub(crate) fn insert(
    db: &Connection,
    id: &str,
    name: &str,
    groups: &[String],
    state: BootState,
    now: u64,
) -> rusqlite::Result<()> {
    let sql = "INSERT INTO nodes (id, name, member_of, boot_state, created) VALUES (?1, ?2, ?3, ?4, ?5)";
    db.execute(sql, (id, name, to_json(&groups), state.as_str(), now)).map(|_| ())
}

pub(crate) fn remove(db: &Connection, id: &str) -> rusqlite::Result<bool> {
    Ok(db.execute("DELETE FROM nodes WHERE id = ?1", [id])? > 0)
}

pub(crate) fn exists(db: &Connection, id: &str) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT 1 FROM nodes WHERE id = ?1")?.exists([id])
}

const SUMMARY: &str = "id, name,
    (SELECT spki FROM node_keys WHERE node = nodes.id ORDER BY replaced IS NOT NULL, created DESC, rowid DESC LIMIT 1),
    boot_state, run_level, created, last_seen, last_contact, member_of, once_state, once_boot";

fn summary(row: &Row<'_>) -> rusqlite::Result<NodeSummary> {
    Ok(NodeSummary {
        id: row.get(0)?,
        name: row.get(1)?,
        spki: from_word_option(row, 2)?,
        boot_state: from_word(row, 3)?,
        run_level: from_word_option(row, 4)?,
        created: row.get(5)?,
        last_seen: row.get(6)?,
        last_contact: row.get(7)?,
        groups: from_json(row, 8)?,
        once: match from_word_option(row, 9)? {
            Some(boot_state) => Some(OnceRecord { boot_state, boot_id: row.get(10)? }),
            None => None,
        },
    })
}

pub(crate) fn list(db: &Connection) -> rusqlite::Result<Vec<NodeSummary>> {
    db.prepare(&format!("SELECT {SUMMARY} FROM nodes ORDER BY id"))?.query_map([], summary)?.collect()
}

pub(crate) fn detail(db: &Connection, id: &str) -> rusqlite::Result<Option<NodeDetail>> {
    let sql = format!("SELECT {SUMMARY}, facts, status, reboot FROM nodes WHERE id = ?1");
    let keys = keys::list(db, id)?;
    let slices = db
        .prepare("SELECT slice FROM slivers WHERE node = ?1 ORDER BY slice")?
        .query_map([id], |row| from_word(row, 0))?
        .collect::<rusqlite::Result<_>>()?;
    db.query_row(&sql, [id], |row| {
        Ok(NodeDetail {
            summary: summary(row)?,
            keys,
            slices,
            facts: from_json_option(row, 11)?,
            status: from_json_option(row, 12)?,
            reboot: row.get(13)?,
        })
    })
    .optional()
}

/// Sets what is wanted of a node from now on. A script handed out before no longer counts, nor does a one-shot state.
pub(crate) fn set_boot_state(db: &Connection, id: &str, state: BootState) -> rusqlite::Result<bool> {
    let sql = "UPDATE nodes SET boot_state = ?2, handed_out = NULL, once_state = NULL, once_boot = NULL WHERE id = ?1";
    Ok(db.execute(sql, (id, state.as_str()))? > 0)
}

/// Sets what is wanted of the next boot to contact.
pub(crate) fn set_once(db: &Connection, id: &str, state: BootState) -> rusqlite::Result<bool> {
    let sql = "UPDATE nodes SET once_state = ?2, once_boot = NULL WHERE id = ?1";
    Ok(db.execute(sql, (id, state.as_str()))? > 0)
}

/// Takes back a one-shot state that no boot has got yet.
pub(crate) fn forget_once(db: &Connection, id: &str) -> rusqlite::Result<()> {
    let sql = "UPDATE nodes SET once_state = NULL WHERE id = ?1 AND once_boot IS NULL";
    db.execute(sql, [id]).map(|_| ())
}

/// Sets the groups that a node is in.
pub(crate) fn set_groups(db: &Connection, id: &str, groups: &[String]) -> rusqlite::Result<bool> {
    Ok(db.execute("UPDATE nodes SET member_of = ?2 WHERE id = ?1", (id, to_json(&groups)))? > 0)
}

/// Asks the boot that a running node last reported to end. `None` where it does not run.
pub(crate) fn ask_reboot(db: &Connection, id: &str) -> rusqlite::Result<Option<String>> {
    let sql = "UPDATE nodes SET reboot = status ->> 'boot_id'
               WHERE id = ?1 AND status IS NOT NULL AND run_level = 'running' RETURNING reboot";
    db.query_row(sql, [id], |row| row.get(0)).optional()
}

/// The boot that an operator asked to end.
pub(crate) fn asked_reboot(db: &Connection, id: &str) -> rusqlite::Result<Option<String>> {
    db.prepare_cached("SELECT reboot FROM nodes WHERE id = ?1")?.query_row([id], |row| row.get(0))
}

/// A contact, and what central made of it.
#[derive(Debug)]
pub(crate) struct Contact<'a> {
    pub(crate) facts: &'a Facts,
    pub(crate) level: RunLevel,
    /// Whether the node was handed the script that its standing state will end by.
    pub(crate) handed_out: bool,
    pub(crate) once: Option<Once>,
}

/// Notes a contact.
pub(crate) fn contacted(db: &Connection, id: &str, contact: &Contact<'_>, now: u64) -> rusqlite::Result<()> {
    let sql = "UPDATE nodes SET facts = ?2, run_level = ?3, last_seen = ?4, last_contact = ?4,
               handed_out = CASE WHEN ?5 THEN ?6 ELSE handed_out END, once_state = ?7, once_boot = ?8,
               reboot = CASE WHEN reboot = ?6 THEN reboot END WHERE id = ?1";
    let Contact { facts, level, handed_out, once } = contact;
    let (once_state, once_boot) = once.as_ref().map(|o| (o.state.as_str(), o.boot.as_deref())).unzip();
    let once_boot = once_boot.flatten();
    db.execute(sql, (id, to_json(facts), to_word(level), now, handed_out, &facts.boot_id, once_state, once_boot))
        .map(|_| ())
}

/// Keeps events, and moves the boot state as they say. Returns the new state if it changed.
pub(crate) fn report(db: &mut Connection, id: &str, events: &[Event], now: u64) -> rusqlite::Result<Option<BootState>> {
    let transaction = db.transaction()?;
    let (before, handed_out): (BootState, Option<String>) =
        transaction.query_row("SELECT boot_state, handed_out FROM nodes WHERE id = ?1", [id], |row| {
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
            state = boot_state::after_event(state, handed_out.as_deref(), event);
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

/// What each node said of itself last.
pub(crate) fn statuses(db: &Connection) -> rusqlite::Result<Vec<(String, NodeStatus)>> {
    db.prepare("SELECT id, status FROM nodes WHERE status IS NOT NULL ORDER BY id")?
        .query_map([], |row| Ok((row.get(0)?, from_json(row, 1)?)))?
        .collect()
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
        let mut db = fresh();
        let node = |id: &str, key| NewNode {
            id: id.to_owned(),
            name: String::new(),
            spki: Digest([key; 32]),
            groups: Vec::new(),
            boot_state: BootState::Reinstall,
        };
        assert_eq!(add(&mut db, &node("n1", 1), 5).unwrap(), Added::Yes);
        assert_eq!(add(&mut db, &node("n1", 2), 5).unwrap(), Added::IdTaken);
        assert_eq!(add(&mut db, &node("n2", 1), 5).unwrap(), Added::KeyTaken);
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
        let contact = Contact { facts: &facts, level: RunLevel::Installing, handed_out: true, once: None };
        contacted(&db, "n1", &contact, 6).unwrap();
        assert_eq!(report(&mut db, "n1", &[event(1, "install")], 7).unwrap(), Some(BootState::Boot));
        set_boot_state(&db, "n1", BootState::Reinstall).unwrap();
        assert_eq!(report(&mut db, "n1", &[event(1, "install"), event(2, "install")], 8).unwrap(), None);
        assert_eq!(detail(&db, "n1").unwrap().unwrap().summary.boot_state, BootState::Reinstall);
    }
}
