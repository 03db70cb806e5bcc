//! Nodes that are down, and what counts when central decides about them.

use orrery_central_api::{EscalationLevel, PowerRecord, Rung};
use orrery_protocol::{BootState, RunLevel};
use rusqlite::{Connection, OptionalExtension, Row};

use super::{from_json, from_word, from_word_option, to_word};

/// What of a node counts when central decides whether to do something about its silence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Watched {
    pub(crate) id: String,
    pub(crate) groups: Vec<String>,
    pub(crate) boot_state: BootState,
    pub(crate) once: Option<BootState>,
    pub(crate) run_level: Option<RunLevel>,
    /// Whether it was ever in contact.
    pub(crate) called_home: bool,
    pub(crate) last_seen: Option<u64>,
    /// The drivers of its methods.
    pub(crate) drivers: Vec<String>,
    pub(crate) held: bool,
    /// Whether an operation is under way, or its call home still awaited.
    pub(crate) operating: bool,
    /// Whether an operation took its power away, and it was not heard since.
    pub(crate) switched_off: bool,
    pub(crate) record: Option<PowerRecord>,
}

const RECORD: &str = "r.id, r.node, r.since, r.opened, r.rung, r.rung_at, r.level, r.level_at, r.closed, r.why";

fn record(row: &Row<'_>, first: usize) -> rusqlite::Result<PowerRecord> {
    Ok(PowerRecord {
        id: row.get(first)?,
        node: row.get(first + 1)?,
        since: row.get(first + 2)?,
        opened: row.get(first + 3)?,
        rung: from_word_option(row, first + 4)?,
        rung_at: row.get(first + 5)?,
        level: from_word(row, first + 6)?,
        level_at: row.get(first + 7)?,
        closed: row.get(first + 8)?,
        why: row.get(first + 9)?,
    })
}

/// Every node as the ladder sees it.
pub(crate) fn watched(db: &Connection, now: u64) -> rusqlite::Result<Vec<Watched>> {
    let sql = format!(
        "SELECT nodes.id, member_of, boot_state, once_state, run_level, last_contact IS NOT NULL, last_seen,
         (SELECT json_group_array(value ->> 'driver') FROM json_each(coalesce(methods, '[]'))), held IS NOT NULL,
         EXISTS (SELECT 1 FROM power_operations o WHERE o.node = nodes.id AND
                 (result IN ('pending', 'running') OR (result IN ('unconfirmed', 'unknown') AND confirm_by >= ?1))),
         coalesce((SELECT action = 'off' AND coalesce(last_seen, 0) <= coalesce(finished, requested)
                   FROM power_operations o WHERE o.node = nodes.id AND result NOT IN ('failed', 'pending')
                   ORDER BY o.id DESC LIMIT 1), 0),
         {RECORD}
         FROM nodes LEFT JOIN power ON power.node = nodes.id
         LEFT JOIN power_records r ON r.node = nodes.id AND closed IS NULL ORDER BY nodes.id"
    );
    db.prepare_cached(&sql)?
        .query_map([now], |row| {
            let open: Option<u64> = row.get(11)?;
            Ok(Watched {
                id: row.get(0)?,
                groups: from_json(row, 1)?,
                boot_state: from_word(row, 2)?,
                once: from_word_option(row, 3)?,
                run_level: from_word_option(row, 4)?,
                called_home: row.get(5)?,
                last_seen: row.get(6)?,
                drivers: from_json(row, 7)?,
                held: row.get(8)?,
                operating: row.get(9)?,
                switched_off: row.get(10)?,
                record: open.map(|_| record(row, 11)).transpose()?,
            })
        })?
        .collect()
}

/// The node's record, if it is down.
pub(crate) fn open_of(db: &Connection, node: &str) -> rusqlite::Result<Option<PowerRecord>> {
    let sql = format!("SELECT {RECORD} FROM power_records r WHERE node = ?1 AND closed IS NULL");
    db.prepare_cached(&sql)?.query_row([node], |row| record(row, 0)).optional()
}

/// Records that are open, the longest down first; with `all`, then those that are closed, the last first.
pub(crate) fn list(db: &Connection, all: bool) -> rusqlite::Result<Vec<PowerRecord>> {
    let sql = format!(
        "SELECT {RECORD} FROM power_records r WHERE ?1 OR closed IS NULL
         ORDER BY closed IS NOT NULL, closed DESC, since, node LIMIT 1000"
    );
    db.prepare_cached(&sql)?.query_map([all], |row| record(row, 0))?.collect()
}

/// Opens a record for a node that was last heard at `since`.
pub(crate) fn open(db: &Connection, node: &str, since: u64, now: u64) -> rusqlite::Result<()> {
    let sql = "INSERT INTO power_records (node, since, opened, level, level_at) VALUES (?1, ?2, ?3, ?4, ?3)";
    db.execute(sql, (node, since, now, to_word(&EscalationLevel::Down))).map(|_| ())
}

pub(crate) fn set_rung(db: &Connection, id: u64, rung: Rung, now: u64) -> rusqlite::Result<()> {
    let sql = "UPDATE power_records SET rung = ?2, rung_at = ?3 WHERE id = ?1";
    db.execute(sql, (id, to_word(&rung), now)).map(|_| ())
}

pub(crate) fn set_level(db: &Connection, id: u64, level: EscalationLevel, now: u64) -> rusqlite::Result<()> {
    let sql = "UPDATE power_records SET level = ?2, level_at = ?3 WHERE id = ?1";
    db.execute(sql, (id, to_word(&level), now)).map(|_| ())
}

pub(crate) fn close(db: &Connection, id: u64, why: &str, now: u64) -> rusqlite::Result<()> {
    db.execute("UPDATE power_records SET closed = ?2, why = ?3 WHERE id = ?1", (id, now, why)).map(|_| ())
}

#[cfg(test)]
mod tests {
    use orrery_central_api::SliceSpec;
    use orrery_protocol::{
        ArtifactRef, ArtifactRole, Digest, MinimumHardware, ReleaseArtifact, ReleaseManifest, Rspec, Startup,
    };

    use super::*;
    use crate::db::{
        nodes, published,
        slices::{self, Unresolved},
        tests::fresh,
    };

    #[test]
    fn a_node_that_is_long_down_takes_no_new_slivers() {
        let mut db = fresh();
        let content = ArtifactRef { sha256: Digest([1; 32]), size: 1 };
        let image = ReleaseArtifact {
            role: ArtifactRole::Image,
            name: "debian".to_owned(),
            content,
            chunks: None,
            listing: None,
        };
        let manifest = ReleaseManifest {
            version: 1,
            release: "1".to_owned(),
            cmdline: String::new(),
            artifacts: vec![image],
            minimum: MinimumHardware::default(),
        };
        published::add_release(&mut db, &content, &manifest, 1).unwrap();
        nodes::insert(&db, "n1", "", &[], BootState::Boot, 1).unwrap();
        let put = |db: &mut Connection, slice: &str| {
            let spec = SliceSpec {
                version: None,
                keys: Vec::new(),
                rspec: Rspec::default(),
                image: "debian".to_owned(),
                nodes: vec!["n1".to_owned()],
                startup: Startup::default(),
            };
            slices::put(db, &slice.parse().unwrap(), &spec).unwrap()
        };
        assert_eq!(put(&mut db, "a/one"), Ok(()));
        open(&db, "n1", 5, 10).unwrap();
        let record = open_of(&db, "n1").unwrap().unwrap();
        set_level(&db, record.id, EscalationLevel::Tech, 11).unwrap();
        assert_eq!(put(&mut db, "a/two"), Ok(()));
        set_level(&db, record.id, EscalationLevel::Pi, 12).unwrap();
        assert_eq!(put(&mut db, "a/three"), Err(Unresolved::Down { node: "n1".to_owned(), since: 5 }));
        // What it has, it keeps.
        assert_eq!(put(&mut db, "a/one"), Ok(()));
        close(&db, record.id, "it was heard again", 13).unwrap();
        assert_eq!(put(&mut db, "a/three"), Ok(()));
    }

    #[test]
    fn a_node_that_was_turned_off_is_not_dead_until_it_was_heard_again() {
        let db = fresh();
        nodes::insert(&db, "n1", "", &[], BootState::Boot, 1).unwrap();
        let off = |result: &str, finished: u64| {
            let sql =
                "INSERT INTO power_operations (node, action, who, reason, requested, confirm_within, finished, result)
                       VALUES ('n1', 'off', 'ann', 'moved', 90, 1, ?1, ?2)";
            db.execute(sql, (finished, result)).unwrap();
        };
        let switched_off = || watched(&db, 1000).unwrap()[0].switched_off;
        let seen = |at: u64| db.execute("UPDATE nodes SET last_seen = ?1", [at]).unwrap();
        seen(80);
        assert!(!switched_off());
        off("failed", 100);
        assert!(!switched_off());
        off("confirmed", 100);
        assert!(switched_off());
        seen(101);
        assert!(!switched_off());
    }
}
