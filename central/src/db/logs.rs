//! What nodes log, bounded for each of them.

use orrery_central_api::LogRecord;
use orrery_protocol::LogBatch;
use rusqlite::{Connection, OptionalExtension};

use super::{from_json, to_json};

/// Kept of each node, in bytes, with [`ROW_BYTES`] for each batch.
const KEPT_BYTES: u64 = 8 << 20;
/// What a batch counts beside its lines: many small ones must not cost more than they say.
const ROW_BYTES: u64 = 128;
/// About so much is answered at a time, in bytes.
const PAGE_BYTES: usize = 1 << 20;

/// Which lines are asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Wanted {
    /// Of this boot; `last` is the boot that sent something last.
    pub(crate) boot: Option<String>,
    /// Of this role.
    pub(crate) role: Option<String>,
    /// Behind this sequence number.
    pub(crate) after: u64,
}

/// Keeps what is new in a batch. Lines that are here already are passed over, so that a batch may be posted again.
pub(crate) fn add(db: &mut Connection, node: &str, batch: &LogBatch, now: u64) -> rusqlite::Result<()> {
    let transaction = db.transaction()?;
    let sql = "SELECT max(next) FROM logs WHERE node = ?1 AND boot = ?2 AND role = ?3";
    let known: Option<u64> =
        transaction.prepare_cached(sql)?.query_row((node, &batch.boot_id, &batch.role), |row| row.get(0))?;
    let skip = known.unwrap_or(0).saturating_sub(batch.first);
    let new = usize::try_from(skip).ok().and_then(|skip| batch.lines.get(skip..)).unwrap_or_default();
    if !new.is_empty() {
        let (first, lines) = (batch.first + skip, to_json(&new));
        let sql = "INSERT INTO logs (node, received, boot, role, first, next, weight, lines)
                   VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
        let weight = lines.len() as u64 + ROW_BYTES;
        let next = first + new.len() as u64;
        transaction.prepare_cached(sql)?.execute((
            node,
            now,
            &batch.boot_id,
            &batch.role,
            first,
            next,
            weight,
            lines,
        ))?;
        // The oldest go, once those behind them fill the node's part.
        let sql = "DELETE FROM logs WHERE node = ?1 AND seq <= (
                       SELECT seq FROM (
                           SELECT seq, sum(weight) OVER (ORDER BY seq DESC) AS kept FROM logs WHERE node = ?1
                       ) WHERE kept > ?2 ORDER BY seq DESC LIMIT 1)";
        transaction.prepare_cached(sql)?.execute((node, KEPT_BYTES))?;
    }
    transaction.execute("UPDATE nodes SET last_seen = ?2 WHERE id = ?1", (node, now))?;
    transaction.commit()
}

/// Batches in the order of their arrival, about a mebibyte of them.
pub(crate) fn read(db: &Connection, node: &str, wanted: &Wanted) -> rusqlite::Result<Vec<LogRecord>> {
    let role = wanted.role.as_deref();
    let boot = match wanted.boot.as_deref() {
        Some("last") => {
            let sql = "SELECT boot FROM logs WHERE node = ?1 AND (?2 IS NULL OR role = ?2) ORDER BY seq DESC LIMIT 1";
            match db.query_row(sql, (node, role), |row| row.get::<_, String>(0)).optional()? {
                Some(boot) => Some(boot),
                None => return Ok(Vec::new()),
            }
        }
        other => other.map(str::to_owned),
    };
    let sql = "SELECT seq, received, boot, role, first, lines FROM logs
               WHERE node = ?1 AND seq > ?2 AND (?3 IS NULL OR boot = ?3) AND (?4 IS NULL OR role = ?4) ORDER BY seq";
    let mut statement = db.prepare_cached(sql)?;
    let mut rows = statement.query((node, wanted.after, boot, role))?;
    let (mut records, mut bytes) = (Vec::new(), 0);
    while let Some(row) = rows.next()? {
        let lines: Vec<String> = from_json(row, 5)?;
        bytes += lines.iter().map(String::len).sum::<usize>();
        records.push(LogRecord {
            seq: row.get(0)?,
            received: row.get(1)?,
            boot_id: row.get(2)?,
            role: row.get(3)?,
            first: row.get(4)?,
            lines,
        });
        if bytes >= PAGE_BYTES {
            break;
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use orrery_protocol::{BootState, Digest};

    use super::*;
    use crate::db::{keys, nodes, tests::fresh};

    fn with_node() -> Connection {
        let db = fresh();
        nodes::insert(&db, "n1", "", &[], BootState::Boot, 1).unwrap();
        keys::insert(&db, "n1", &Digest([1; 32]), false, 1).unwrap();
        db
    }

    fn batch(boot: &str, first: u64, lines: Vec<String>) -> LogBatch {
        LogBatch { boot_id: boot.to_owned(), role: "boot".to_owned(), first, lines }
    }

    fn lines(db: &Connection, wanted: &Wanted) -> Vec<String> {
        read(db, "n1", wanted).unwrap().into_iter().flat_map(|r| r.lines).collect()
    }

    #[test]
    fn a_batch_may_come_again_and_overlap() {
        let mut db = with_node();
        let words = |words: &[&str]| words.iter().map(|w| w.to_string()).collect::<Vec<_>>();
        add(&mut db, "n1", &batch("b1", 0, words(&["a", "b"])), 2).unwrap();
        add(&mut db, "n1", &batch("b1", 0, words(&["a", "b"])), 3).unwrap();
        add(&mut db, "n1", &batch("b1", 1, words(&["b", "c"])), 4).unwrap();
        add(&mut db, "n1", &batch("b2", 0, words(&["x"])), 5).unwrap();
        // What the node could not send is missing; what follows is not.
        add(&mut db, "n1", &batch("b1", 9, words(&["j"])), 6).unwrap();
        let of = |boot: &str| Wanted { boot: Some(boot.to_owned()), ..Wanted::default() };
        assert_eq!(lines(&db, &of("b1")), ["a", "b", "c", "j"]);
        assert_eq!(lines(&db, &of("b2")), ["x"]);
        assert_eq!(lines(&db, &of("last")), ["a", "b", "c", "j"]);
        assert_eq!(read(&db, "n1", &of("b1")).unwrap()[1].first, 2);
        let last = Wanted { after: read(&db, "n1", &of("b1")).unwrap()[1].seq, ..of("b1") };
        assert_eq!(lines(&db, &last), ["j"]);
    }

    #[test]
    fn each_node_has_its_bound() {
        let mut db = with_node();
        for n in 0..20 {
            add(&mut db, "n1", &batch("b1", n, vec![format!("{n} {}", "x".repeat(1 << 20))]), 2).unwrap();
        }
        let kept: u64 = db.query_row("SELECT sum(weight) FROM logs", [], |row| row.get(0)).unwrap();
        assert!((KEPT_BYTES - (2 << 20)..=KEPT_BYTES).contains(&kept), "{kept}");
        let mut found = Vec::new();
        let mut wanted = Wanted::default();
        loop {
            let page = read(&db, "n1", &wanted).unwrap();
            let Some(last) = page.last() else { break };
            wanted.after = last.seq;
            found.extend(page);
        }
        assert_eq!(found.last().unwrap().first, 19);
        assert_eq!(found.len(), 7);
    }
}
