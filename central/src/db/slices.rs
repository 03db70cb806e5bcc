//! Slices, and which nodes have slivers of them.

use orrery_central_api::{EscalationLevel, SliceRecord, SliceSpec, SliverRecord, Suspension};
use orrery_protocol::{Admin, Life, SliceName, SliverSpec, SliverStatus, WantedState};
use rusqlite::{Connection, OptionalExtension, Row};

use super::{from_json, from_json_option, from_word, nodes, power_records, published, to_json};

/// Why a slice was not stored.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unresolved {
    /// It has another version than the change is of.
    Changed,
    /// No release has such an image.
    Image,
    /// No such node.
    Node(String),
    /// The node has been down for so long that it takes no new slivers.
    Down {
        /// Which.
        node: String,
        /// Since when, in Unix seconds.
        since: u64,
    },
}

/// A number that nothing had before: as good as never the same one twice, also for a slice that is made anew or a database that
/// was restored. It is one that every reader of JSON reads as it is (RFC 8259, section 6).
const NEW_NUMBER: &str = "(1 + abs(random() % 9007199254740990))";

/// Makes a slice what `spec` says. `Ok(Err)` leaves everything as it was.
pub(crate) fn put(
    db: &mut Connection,
    slice: &SliceName,
    spec: &SliceSpec,
) -> rusqlite::Result<Result<(), Unresolved>> {
    let transaction = db.transaction()?;
    if published::image(&transaction, &spec.image)?.is_none() {
        return Ok(Err(Unresolved::Image));
    }
    let name = slice.to_string();
    let SliceSpec { version, keys, rspec, image, startup, .. } = spec;
    let there = transaction.query_row("SELECT version FROM slices WHERE name = ?1", [&name], |row| row.get(0));
    if version.is_some_and(|version| version != there.optional().unwrap_or_default().unwrap_or(0)) {
        return Ok(Err(Unresolved::Changed));
    }
    let sql = format!(
        "INSERT INTO slices (name, version, keys, rspec, image, startup) VALUES (?1, {NEW_NUMBER}, ?2, ?3, ?4, ?5)
         ON CONFLICT (name) DO UPDATE SET version = excluded.version, keys = ?2, rspec = ?3, image = ?4, startup = ?5"
    );
    transaction.execute(&sql, (&name, to_json(keys), to_json(rspec), image, to_json(startup)))?;
    // Those that stay keep their numbers.
    let sql = "DELETE FROM slivers WHERE slice = ?1 AND node NOT IN (SELECT value FROM json_each(?2))";
    transaction.execute(sql, (&name, to_json(&spec.nodes)))?;
    for node in &spec.nodes {
        if !nodes::exists(&transaction, node)? {
            return Ok(Err(Unresolved::Node(node.clone())));
        }
        let sql = format!("INSERT OR IGNORE INTO slivers (slice, node, birth) VALUES (?1, ?2, {NEW_NUMBER})");
        let new = transaction.execute(&sql, (&name, node))? > 0;
        if let Some(record) = power_records::open_of(&transaction, node)?.filter(|_| new)
            && record.level >= EscalationLevel::Pi
        {
            return Ok(Err(Unresolved::Down { node: node.clone(), since: record.since }));
        }
    }
    transaction.commit()?;
    Ok(Ok(()))
}

pub(crate) fn remove(db: &Connection, slice: &SliceName) -> rusqlite::Result<bool> {
    Ok(db.execute("DELETE FROM slices WHERE name = ?1", [slice.to_string()])? > 0)
}

/// Suspends a slice, or resumes it. One that is to stop is to restart, too, which ends all. Returns whether there is one.
pub(crate) fn suspend(
    db: &mut Connection,
    slice: &SliceName,
    suspension: Option<&Suspension>,
    now: u64,
) -> rusqlite::Result<bool> {
    let transaction = db.transaction()?;
    let (name, reason) = (slice.to_string(), suspension.map(|suspension| &suspension.reason));
    let sql = format!("UPDATE slices SET suspended = ?2, version = {NEW_NUMBER} WHERE name = ?1");
    let there = transaction.execute(&sql, (&name, reason))? > 0;
    if suspension.is_some_and(|suspension| suspension.stop) {
        transaction.execute("UPDATE slivers SET restart = max(?2, restart + 1) WHERE slice = ?1", (&name, now))?;
    }
    transaction.commit()?;
    Ok(there)
}

/// Makes what a slice sees and may do of nodes what `admin` says. Returns whether there is one.
pub(crate) fn set_admin(db: &Connection, slice: &SliceName, admin: &Admin) -> rusqlite::Result<bool> {
    let sql = format!("UPDATE slices SET admin = ?2, version = {NEW_NUMBER} WHERE name = ?1");
    Ok(db.execute(&sql, (slice.to_string(), to_json(admin)))? > 0)
}

/// Ways to start a sliver over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    /// From the image.
    Reset,
    /// From what it wrote.
    Restart,
}

/// Why nothing was asked of slivers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Unasked {
    /// No such slice.
    Slice,
    /// It has no sliver on this node.
    Node(String),
    /// It has none at all.
    Nowhere,
}

/// Asks slivers of a slice to start over, all if no node is named, and returns the request's number. It is the time `now`, so
/// that it is greater than any before even where a sliver outlived its row, unless that would repeat one.
pub(crate) fn start_over(
    db: &mut Connection,
    slice: &SliceName,
    over: Over,
    nodes: &[String],
    now: u64,
) -> rusqlite::Result<Result<u64, Unasked>> {
    let transaction = db.transaction()?;
    let name = slice.to_string();
    if transaction.execute(&format!("UPDATE slices SET version = {NEW_NUMBER} WHERE name = ?1"), [&name])? == 0 {
        return Ok(Err(Unasked::Slice));
    }
    let column = match over {
        Over::Reset => "reset",
        Over::Restart => "restart",
    };
    let sql = format!("SELECT max({column}) FROM slivers WHERE slice = ?1");
    let Some(last) = transaction.query_row(&sql, [&name], |row| row.get::<_, Option<u64>>(0))? else {
        return Ok(Err(Unasked::Nowhere));
    };
    let number = now.max(last + 1);
    if nodes.is_empty() {
        transaction.execute(&format!("UPDATE slivers SET {column} = ?2 WHERE slice = ?1"), (&name, number))?;
    }
    let sql = format!("UPDATE slivers SET {column} = ?2 WHERE slice = ?1 AND node = ?3");
    for node in nodes {
        if transaction.execute(&sql, (&name, number, node))? == 0 {
            return Ok(Err(Unasked::Node(node.clone())));
        }
    }
    transaction.commit()?;
    Ok(Ok(number))
}

const COLUMNS: &str = "name, keys, rspec, image, suspended, startup, admin, version";

fn record(db: &Connection, row: &Row<'_>) -> rusqlite::Result<SliceRecord> {
    let slice: SliceName = from_word(row, 0)?;
    let nodes = db
        .prepare_cached("SELECT node FROM slivers WHERE slice = ?1 ORDER BY node")?
        .query_map([slice.to_string()], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let (keys, rspec, startup) = (from_json(row, 1)?, from_json(row, 2)?, from_json(row, 5)?);
    let spec = SliceSpec { version: Some(row.get(7)?), keys, rspec, image: row.get(3)?, nodes, startup };
    Ok(SliceRecord { slice, suspended: row.get(4)?, admin: from_json(row, 6)?, spec })
}

pub(crate) fn list(db: &Connection) -> rusqlite::Result<Vec<SliceRecord>> {
    db.prepare(&format!("SELECT {COLUMNS} FROM slices ORDER BY name"))?.query_map([], |row| record(db, row))?.collect()
}

pub(crate) fn get(db: &Connection, slice: &SliceName) -> rusqlite::Result<Option<SliceRecord>> {
    let sql = format!("SELECT {COLUMNS} FROM slices WHERE name = ?1");
    db.query_row(&sql, [slice.to_string()], |row| record(db, row)).optional()
}

/// How the slivers of a slice are, by node. None if there is no such slice.
pub(crate) fn slivers(db: &Connection, slice: &SliceName) -> rusqlite::Result<Option<Vec<SliverRecord>>> {
    let name = slice.to_string();
    let version = db.query_row("SELECT version FROM slices WHERE name = ?1", [&name], |row| row.get::<_, u64>(0));
    let Some(version) = version.optional()? else { return Ok(None) };
    let sql = "SELECT node, last_seen, birth,
               (SELECT value FROM json_each(status, '$.slivers') WHERE value ->> 'slice' = slice)
               FROM slivers JOIN nodes ON id = node WHERE slice = ?1 ORDER BY node";
    let record = |row: &Row<'_>| {
        let birth: u64 = row.get(2)?;
        let status: Option<SliverStatus> = from_json_option(row, 3)?;
        let status = status.filter(|status| status.birth == birth);
        let told = status.as_ref().is_some_and(|status| status.version == version);
        Ok(SliverRecord {
            node: row.get(0)?,
            last_seen: row.get(1)?,
            state: status.as_ref().map(|status| status.state),
            image: status.as_ref().map(|status| status.image),
            told,
            settled: told && status.as_ref().is_some_and(|status| status.settled),
            error: status.and_then(|status| status.error),
        })
    };
    db.prepare_cached(sql)?.query_map([&name], record)?.collect::<rusqlite::Result<_>>().map(Some)
}

/// All slivers a node should have. `Ok(Err)` names an image that no release has: an incomplete answer would
/// make the node destroy slivers.
pub(crate) fn wanted(db: &Connection, node: &str) -> rusqlite::Result<Result<WantedState, String>> {
    let sql = "SELECT name, keys, rspec, image, suspended, reset, restart, startup, admin, version, birth
               FROM slices JOIN slivers ON slice = name WHERE node = ?1 ORDER BY name";
    let mut statement = db.prepare_cached(sql)?;
    let mut rows = statement.query([node])?;
    let mut slivers = Vec::new();
    while let Some(row) = rows.next()? {
        let name: String = row.get(3)?;
        let Some(image) = published::image(db, &name)? else {
            return Ok(Err(name));
        };
        let (slice, keys, rspec) = (from_word(row, 0)?, from_json(row, 1)?, from_json(row, 2)?);
        let life = Life { suspended: row.get(4)?, birth: row.get(10)?, reset: row.get(5)?, restart: row.get(6)? };
        let (startup, admin) = (from_json(row, 7)?, from_json(row, 8)?);
        slivers.push(SliverSpec { slice, version: row.get(9)?, keys, image, rspec, startup, life, admin });
    }
    Ok(Ok(WantedState { slivers, reboot: nodes::asked_reboot(db, node)? }))
}
