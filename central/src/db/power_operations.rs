//! What was done with the power of nodes: who asked for it and why, what the device made of it, and whether the node came back.

use orrery_central_api::{NewPowerOperation, PowerAction, PowerAttempt, PowerOperation, PowerOutcome, PowerResult};
use rusqlite::{Connection, OptionalExtension, Row};

use super::{from_json, from_word, from_word_option, to_json, to_word};

/// Operations kept of each node.
const KEPT: u32 = 1000;

/// What the device made of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) outcome: PowerOutcome,
    pub(crate) method: Option<String>,
    pub(crate) attempts: Vec<PowerAttempt>,
}

/// A boot that called home.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Boot<'a> {
    pub(crate) id: &'a str,
    /// When its kernel started, in Unix seconds, where the node says so.
    pub(crate) kernel_started: Option<u64>,
}

const COLUMNS: &str = "id, node, action, who, reason, requested, started, finished, method, outcome, attempts,
    confirm_by, confirmed, result, note";

fn operation(row: &Row<'_>) -> rusqlite::Result<PowerOperation> {
    Ok(PowerOperation {
        id: row.get(0)?,
        node: row.get(1)?,
        action: from_word(row, 2)?,
        who: row.get(3)?,
        reason: row.get(4)?,
        requested: row.get(5)?,
        started: row.get(6)?,
        finished: row.get(7)?,
        method: row.get(8)?,
        outcome: from_word_option(row, 9)?,
        attempts: from_json(row, 10)?,
        confirm_by: row.get(11)?,
        confirmed: row.get(12)?,
        result: from_word(row, 13)?,
        note: row.get(14)?,
    })
}

pub(crate) fn get(db: &Connection, id: u64) -> rusqlite::Result<Option<PowerOperation>> {
    let sql = format!("SELECT {COLUMNS} FROM power_operations WHERE id = ?1");
    db.prepare_cached(&sql)?.query_row([id], operation).optional()
}

/// The newest operations, of one node or of all, newest first.
pub(crate) fn list(db: &Connection, node: Option<&str>, limit: u32) -> rusqlite::Result<Vec<PowerOperation>> {
    let sql = format!("SELECT {COLUMNS} FROM power_operations WHERE ?1 IS NULL OR node = ?1 ORDER BY id DESC LIMIT ?2");
    db.prepare_cached(&sql)?.query_map((node, limit), operation)?.collect()
}

/// Those in one of these states, oldest first.
pub(crate) fn that_are(db: &Connection, result: PowerResult) -> rusqlite::Result<Vec<PowerOperation>> {
    let sql = format!("SELECT {COLUMNS} FROM power_operations WHERE result = ?1 ORDER BY id");
    db.prepare_cached(&sql)?.query_map([to_word(&result)], operation)?.collect()
}

/// Asks for an operation on a node that is known. `Ok(Err)` is the number of the one that is under way.
pub(crate) fn add(
    db: &Connection,
    node: &str,
    new: &NewPowerOperation,
    who: &str,
    now: u64,
) -> rusqlite::Result<Result<PowerOperation, u64>> {
    let sql = "SELECT id FROM power_operations WHERE node = ?1 AND result IN ('pending', 'running')";
    if let Some(other) = db.prepare_cached(sql)?.query_row([node], |row| row.get(0)).optional()? {
        return Ok(Err(other));
    }
    let sql = format!(
        "INSERT INTO power_operations (node, action, who, reason, requested, confirm_within, result)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'pending') RETURNING {COLUMNS}"
    );
    let row = (node, new.action.as_str(), who, &new.reason, now, new.confirm_within);
    let added = db.query_row(&sql, row, operation)?;
    let sql = "DELETE FROM power_operations WHERE node = ?1 AND id <=
               (SELECT id FROM power_operations WHERE node = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)";
    db.execute(sql, (node, KEPT))?;
    Ok(Ok(added))
}

/// Begins an operation: from now on, only boots that are not known yet confirm it, and nothing confirms those before it.
pub(crate) fn start(db: &mut Connection, id: u64, now: u64) -> rusqlite::Result<bool> {
    let transaction = db.transaction()?;
    let sql = "UPDATE power_operations SET result = 'running', started = ?2,
               boots = (SELECT json_array(facts ->> 'boot_id', status ->> 'boot_id') FROM nodes
                        WHERE nodes.id = power_operations.node)
               WHERE id = ?1 AND result = 'pending' RETURNING node";
    let Some(node) = transaction.query_row(sql, (id, now), |row| row.get::<_, String>(0)).optional()? else {
        return Ok(false);
    };
    let sql =
        "UPDATE power_operations SET confirm_by = NULL, note = coalesce(note || '; ', '') || 'operation ' || ?2 ||
               ' began before it was confirmed', result = CASE result WHEN 'unknown' THEN result ELSE 'superseded' END
               WHERE node = ?1 AND id < ?2 AND (result = 'unconfirmed' OR (result = 'unknown' AND confirm_by >= ?3))";
    transaction.execute(sql, (node, id, now))?;
    transaction.commit()?;
    Ok(true)
}

/// Notes what the device made of an operation that runs, and what has to follow. The call home may have been faster than the
/// device.
pub(crate) fn finish(db: &mut Connection, id: u64, done: &Done, now: u64) -> rusqlite::Result<()> {
    let transaction = db.transaction()?;
    let Some(PowerOperation { action, result: PowerResult::Running, node, started, .. }) = get(&transaction, id)?
    else {
        return Ok(());
    };
    let result = match (done.outcome, action) {
        (PowerOutcome::Failed, _) => PowerResult::Failed,
        (PowerOutcome::Already, _) | (PowerOutcome::Changed, PowerAction::Off) => PowerResult::Confirmed,
        (PowerOutcome::Changed | PowerOutcome::Accepted, _) => PowerResult::Unconfirmed,
    };
    let awaited = result == PowerResult::Unconfirmed && action != PowerAction::Off;
    let sql = "UPDATE power_operations SET finished = ?2, method = ?3, outcome = ?4, attempts = ?5, result = ?6,
               confirmed = CASE ?6 WHEN 'confirmed' THEN ?2 END, confirm_by = CASE WHEN ?7 THEN ?2 + confirm_within END
               WHERE id = ?1";
    let Done { outcome, method, attempts } = done;
    transaction.execute(sql, (id, now, method, to_word(outcome), to_json(attempts), to_word(&result), awaited))?;
    let sql = "SELECT facts ->> 'boot_id', last_contact, facts ->> 'uptime_s' FROM nodes WHERE id = ?1";
    let (boot, contact, uptime): (Option<String>, Option<u64>, Option<u64>) =
        transaction.query_row(sql, [&node], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    if let (Some(boot), Some(contact)) = (boot, contact)
        && contact >= started.unwrap_or(now)
    {
        let kernel_started = Some(contact.saturating_sub(uptime.unwrap_or(0)));
        called_home(&transaction, &node, Boot { id: &boot, kernel_started }, now)?;
    }
    transaction.commit()
}

/// A node called home: if that is in a boot that an operation was awaiting, this confirms it. A boot whose kernel started before the
/// operation did is not its doing; seconds are rounded on both sides.
pub(crate) fn called_home(db: &Connection, node: &str, boot: Boot<'_>, now: u64) -> rusqlite::Result<()> {
    let sql = "UPDATE power_operations SET result = 'confirmed', confirmed = ?3
               WHERE node = ?1 AND result IN ('unconfirmed', 'unknown') AND confirm_by >= ?3
               AND (?4 IS NULL OR ?4 + 2 >= started)
               AND NOT EXISTS (SELECT 1 FROM json_each(boots) WHERE value = ?2)";
    db.prepare_cached(sql)?.execute((node, boot.id, now, boot.kernel_started)).map(|_| ())
}

/// Ends the wait of those whose time is over.
pub(crate) fn expire(db: &Connection, now: u64) -> rusqlite::Result<()> {
    let sql = "UPDATE power_operations SET result = 'expired' WHERE result = 'unconfirmed' AND confirm_by < ?1";
    db.prepare_cached(sql)?.execute([now]).map(|_| ())
}

/// What an earlier run of central left behind. Returns what may have left nodes without the power that they were to have.
pub(crate) fn interrupted(db: &Connection, now: u64) -> rusqlite::Result<Vec<PowerOperation>> {
    let sql =
        "UPDATE power_operations SET result = 'failed', finished = ?1, note = 'central was stopped before it began'
               WHERE result = 'pending'";
    db.execute(sql, [now])?;
    let sql = format!(
        "UPDATE power_operations SET result = 'unknown', note = 'central was stopped while it ran',
         confirm_by = CASE WHEN action <> 'off' THEN ?1 + confirm_within END
         WHERE result = 'running' RETURNING {COLUMNS}"
    );
    let running: Vec<_> = db.prepare(&sql)?.query_map([now], operation)?.collect::<rusqlite::Result<_>>()?;
    let to_be_on = |action| matches!(action, PowerAction::Cycle | PowerAction::On);
    Ok(running.into_iter().filter(|operation| to_be_on(operation.action)).collect())
}

/// Notes how turning on after an interruption went.
pub(crate) fn resumed(db: &Connection, id: u64, done: &Done) -> rusqlite::Result<()> {
    let how = match done.outcome {
        PowerOutcome::Failed => "; turning the power on again failed",
        PowerOutcome::Already => "; the power is on",
        PowerOutcome::Changed => "; the power was off, and is on again",
        PowerOutcome::Accepted => "; the power was asked to be on",
    };
    let sql = "UPDATE power_operations SET note = note || ?2, method = ?3, attempts = ?4 WHERE id = ?1";
    db.execute(sql, (id, how, &done.method, to_json(&done.attempts))).map(|_| ())
}

/// How many operations this one asked for since.
pub(crate) fn count_since(db: &Connection, who: &str, since: u64) -> rusqlite::Result<u32> {
    let sql = "SELECT count(*) FROM power_operations WHERE who = ?1 AND requested > ?2";
    db.prepare_cached(sql)?.query_row((who, since), |row| row.get(0))
}

#[cfg(test)]
mod tests {
    use orrery_protocol::{BootState, Facts, RunLevel};

    use super::*;
    use crate::db::{nodes, tests::fresh};

    fn with_node() -> Connection {
        let db = fresh();
        nodes::insert(&db, "n1", "", &[], BootState::Boot, 1).unwrap();
        db
    }

    fn contact(db: &Connection, boot: &str, uptime_s: u64, now: u64) {
        let facts = Facts { boot_id: boot.to_owned(), uptime_s, ..Facts::default() };
        let contact = nodes::Contact { facts: &facts, level: RunLevel::Booting, handed_out: false, once: None };
        nodes::contacted(db, "n1", &contact, now).unwrap();
        called_home(db, "n1", Boot { id: boot, kernel_started: Some(now - uptime_s) }, now).unwrap();
    }

    fn begin(db: &mut Connection, action: PowerAction, now: u64) -> u64 {
        let new = NewPowerOperation { action, reason: "hangs".to_owned(), confirm_within: 100 };
        let id = add(db, "n1", &new, "ann", now).unwrap().unwrap().id;
        assert_eq!(add(db, "n1", &new, "ben", now).unwrap(), Err(id));
        assert!(start(db, id, now).unwrap());
        assert!(!start(db, id, now).unwrap());
        id
    }

    fn done(outcome: PowerOutcome) -> Done {
        Done { outcome, method: Some("m".to_owned()), attempts: Vec::new() }
    }

    fn result(db: &Connection, id: u64) -> PowerResult {
        get(db, id).unwrap().unwrap().result
    }

    #[test]
    fn only_a_boot_that_began_later_confirms() {
        let check = |boot: &str, uptime: u64, at: u64, expect| {
            let mut db = with_node();
            contact(&db, "b1", 5, 500);
            let id = begin(&mut db, PowerAction::Cycle, 1000);
            finish(&mut db, id, &done(PowerOutcome::Changed), 1010).unwrap();
            assert_eq!(result(&db, id), PowerResult::Unconfirmed);
            contact(&db, boot, uptime, at);
            assert_eq!(result(&db, id), expect, "{boot} {uptime} {at}");
        };
        check("b2", 30, 1050, PowerResult::Confirmed);
        check("b2", 40, 1110, PowerResult::Confirmed);
        check("b2", 40, 1111, PowerResult::Unconfirmed);
        check("b1", 550, 1050, PowerResult::Unconfirmed);
        // It had started by itself just before its power was cut.
        check("b2", 60, 1050, PowerResult::Unconfirmed);
    }

    #[test]
    fn a_call_home_may_be_faster_than_the_device() {
        let mut db = with_node();
        let id = begin(&mut db, PowerAction::Reset, 1000);
        contact(&db, "b1", 3, 1005);
        assert_eq!(result(&db, id), PowerResult::Running);
        finish(&mut db, id, &done(PowerOutcome::Accepted), 1010).unwrap();
        assert_eq!(result(&db, id), PowerResult::Confirmed);
        // The boot that is known by now does not confirm the next.
        let id = begin(&mut db, PowerAction::Reset, 1020);
        finish(&mut db, id, &done(PowerOutcome::Accepted), 1021).unwrap();
        contact(&db, "b1", 40, 1040);
        assert_eq!(result(&db, id), PowerResult::Unconfirmed);
        expire(&db, 1121).unwrap();
        assert_eq!(result(&db, id), PowerResult::Unconfirmed);
        expire(&db, 1122).unwrap();
        assert_eq!(result(&db, id), PowerResult::Expired);
    }

    #[test]
    fn what_is_read_back_needs_no_call_home() {
        let check = |action, outcome, expect, awaited: bool| {
            let mut db = with_node();
            let id = begin(&mut db, action, 1000);
            finish(&mut db, id, &done(outcome), 1010).unwrap();
            let found = get(&db, id).unwrap().unwrap();
            assert_eq!((found.result, found.confirm_by.is_some()), (expect, awaited), "{action:?} {outcome:?}");
        };
        check(PowerAction::Off, PowerOutcome::Changed, PowerResult::Confirmed, false);
        check(PowerAction::Off, PowerOutcome::Accepted, PowerResult::Unconfirmed, false);
        check(PowerAction::On, PowerOutcome::Already, PowerResult::Confirmed, false);
        check(PowerAction::On, PowerOutcome::Changed, PowerResult::Unconfirmed, true);
        check(PowerAction::Cycle, PowerOutcome::Failed, PowerResult::Failed, false);
    }

    #[test]
    fn a_later_operation_ends_the_wait_of_an_earlier() {
        let mut db = with_node();
        let first = begin(&mut db, PowerAction::Cycle, 1000);
        finish(&mut db, first, &done(PowerOutcome::Changed), 1010).unwrap();
        let second = begin(&mut db, PowerAction::Reset, 1020);
        assert_eq!(result(&db, first), PowerResult::Superseded);
        finish(&mut db, second, &done(PowerOutcome::Accepted), 1021).unwrap();
        contact(&db, "b1", 1, 1030);
        assert_eq!((result(&db, first), result(&db, second)), (PowerResult::Superseded, PowerResult::Confirmed));
    }

    #[test]
    fn a_stopped_central_leaves_no_operation_open() {
        let mut db = with_node();
        let new = NewPowerOperation { action: PowerAction::Cycle, reason: "x".to_owned(), confirm_within: 100 };
        let pending = add(&db, "n1", &new, "ann", 1000).unwrap().unwrap().id;
        assert!(interrupted(&db, 1001).unwrap().is_empty());
        assert_eq!(result(&db, pending), PowerResult::Failed);
        let running = begin(&mut db, PowerAction::Cycle, 1002);
        assert_eq!(interrupted(&db, 1010).unwrap()[0].id, running);
        // A thread of the earlier run says nothing any more.
        finish(&mut db, running, &done(PowerOutcome::Failed), 1011).unwrap();
        assert_eq!(result(&db, running), PowerResult::Unknown);
        resumed(&db, running, &done(PowerOutcome::Changed)).unwrap();
        contact(&db, "b1", 1, 1020);
        let found = get(&db, running).unwrap().unwrap();
        assert_eq!(found.result, PowerResult::Confirmed);
        assert!(found.note.unwrap().ends_with("was off, and is on again"));
    }
}
