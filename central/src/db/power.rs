//! How the power of nodes is switched, what tests of it found, and what central is to do by itself.

use orrery_central_api::{
    NodePower, PowerContacts, PowerEvent, PowerPolicy, PowerReport, PowerStanding, PowerTest, PowerTestsAsked,
};
use rusqlite::{Connection, OptionalExtension};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{from_json, nodes, power_records, to_json};

/// Power events kept.
const KEPT_EVENTS: u32 = 10_000;
/// How often the operators' program is tried for one event.
const TRIES: u32 = 3;

/// All that is known of a node's power; none where there is no such node.
pub(crate) fn of_node(db: &Connection, id: &str) -> rusqlite::Result<Option<NodePower>> {
    if !nodes::exists(db, id)? {
        return Ok(None);
    }
    let sql = "SELECT methods, tech, pi, held, tested, tests FROM power WHERE node = ?1";
    let record = power_records::open_of(db, id)?;
    let found = db.prepare_cached(sql)?.query_row([id], |row| {
        Ok(NodePower {
            node: id.to_owned(),
            methods: from_json(row, 0)?,
            contacts: PowerContacts { tech: row.get(1)?, pi: row.get(2)? },
            held: row.get(3)?,
            tested: row.get(4)?,
            tests: from_json(row, 5)?,
            record: record.clone(),
        })
    });
    Ok(Some(found.optional()?.unwrap_or_else(|| NodePower {
        node: id.to_owned(),
        methods: Vec::new(),
        contacts: PowerContacts::default(),
        held: None,
        tested: None,
        tests: Vec::new(),
        record,
    })))
}

/// A node's methods; none where there is no such node.
pub(crate) fn methods(db: &Connection, id: &str) -> rusqlite::Result<Option<Vec<Value>>> {
    Ok(of_node(db, id)?.map(|power| power.methods))
}

/// Sets a node's methods. What a test of others found no longer counts.
pub(crate) fn set_methods(db: &Connection, id: &str, methods: &[Value]) -> rusqlite::Result<bool> {
    let sql = "INSERT INTO power (node, methods) SELECT id, ?2 FROM nodes WHERE id = ?1
               ON CONFLICT (node) DO UPDATE SET methods = ?2, tested = NULL, tests = '[]', test_asked = NULL";
    Ok(db.execute(sql, (id, to_json(&methods)))? > 0)
}

pub(crate) fn set_contacts(db: &Connection, id: &str, contacts: &PowerContacts) -> rusqlite::Result<bool> {
    let sql = "INSERT INTO power (node, tech, pi) SELECT id, ?2, ?3 FROM nodes WHERE id = ?1
               ON CONFLICT (node) DO UPDATE SET tech = ?2, pi = ?3";
    Ok(db.execute(sql, (id, &contacts.tech, &contacts.pi))? > 0)
}

/// Keeps central's hands off a node's power for this reason, or no longer.
pub(crate) fn set_held(db: &Connection, id: &str, reason: Option<&str>) -> rusqlite::Result<bool> {
    let sql = "INSERT INTO power (node, held) SELECT id, ?2 FROM nodes WHERE id = ?1
               ON CONFLICT (node) DO UPDATE SET held = ?2";
    Ok(db.execute(sql, (id, reason))? > 0)
}

/// Asks for tests of these nodes, all with methods if none is named. `Ok(Err)` names a node that has no method, or is not known.
pub(crate) fn ask_tests(
    db: &mut Connection,
    ids: &[String],
    now: u64,
) -> rusqlite::Result<Result<PowerTestsAsked, String>> {
    let transaction = db.transaction()?;
    let sql = "UPDATE power SET test_asked = ?1 WHERE methods <> '[]' AND (?2 IS NULL OR node = ?2) RETURNING node";
    let mut asked = Vec::new();
    {
        let mut update = transaction.prepare(sql)?;
        let mut ask = |id: Option<&String>| -> rusqlite::Result<usize> {
            let before = asked.len();
            for node in update.query_map((now, id), |row| row.get::<_, String>(0))? {
                asked.push(node?);
            }
            Ok(asked.len() - before)
        };
        if ids.is_empty() {
            ask(None)?;
        }
        for id in ids {
            if ask(Some(id))? == 0 {
                return Ok(Err(id.clone()));
            }
        }
    }
    transaction.commit()?;
    asked.sort();
    Ok(Ok(PowerTestsAsked { nodes: asked }))
}

/// Nodes whose test is due: those asked for first, then those whose last one is the oldest; at most `limit`, and none of `busy`.
pub(crate) fn tests_due(
    db: &Connection,
    every: Option<u64>,
    busy: &[String],
    limit: usize,
    now: u64,
) -> rusqlite::Result<Vec<(String, Vec<Value>)>> {
    let before = every.map(|every| now.saturating_sub(every));
    let sql = "SELECT node, methods FROM power
               WHERE methods <> '[]' AND node NOT IN (SELECT value FROM json_each(?2))
               AND (test_asked IS NOT NULL OR (?1 IS NOT NULL AND (tested IS NULL OR tested <= ?1)))
               ORDER BY test_asked IS NULL, test_asked, tested IS NOT NULL, tested, node LIMIT ?3";
    db.prepare_cached(sql)?
        .query_map((before, to_json(&busy), limit), |row| Ok((row.get(0)?, from_json(row, 1)?)))?
        .collect()
}

/// Keeps what a test of `methods` found, unless the node has other ones by now.
pub(crate) fn tested(
    db: &Connection,
    id: &str,
    methods: &[Value],
    tests: &[PowerTest],
    now: u64,
) -> rusqlite::Result<bool> {
    let sql = "UPDATE power SET tested = ?4, tests = ?3, test_asked = NULL WHERE node = ?1 AND methods = ?2";
    Ok(db.execute(sql, (id, to_json(&methods), to_json(&tests), now))? > 0)
}

/// Of every node, whether its power could be switched.
pub(crate) fn report(db: &Connection) -> rusqlite::Result<Vec<PowerReport>> {
    let sql = "SELECT id, coalesce(json_array_length(methods), 0), tested, coalesce(tests, '[]'),
               test_asked IS NOT NULL FROM nodes LEFT JOIN power ON node = id ORDER BY id";
    db.prepare_cached(sql)?
        .query_map([], |row| {
            let tests: Vec<PowerTest> = from_json(row, 3)?;
            Ok(PowerReport {
                node: row.get(0)?,
                standing: PowerStanding::of(row.get(1)?, &tests),
                testing: row.get(4)?,
                tested: row.get(2)?,
                tests,
            })
        })?
        .collect()
}

/// What central is to do by itself.
pub(crate) fn policy(db: &Connection) -> rusqlite::Result<PowerPolicy> {
    Ok(setting(db, "policy")?.unwrap_or_default())
}

pub(crate) fn set_policy(db: &Connection, policy: &PowerPolicy) -> rusqlite::Result<()> {
    set(db, "policy", policy)
}

/// Since when central has listened without an outage.
pub(crate) fn calm_since(db: &Connection) -> rusqlite::Result<u64> {
    Ok(setting(db, "calm-since")?.unwrap_or(u64::MAX >> 1))
}

pub(crate) fn set_calm_since(db: &Connection, since: u64) -> rusqlite::Result<()> {
    set(db, "calm-since", &since)
}

/// Why central holds still.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holding {
    /// For people.
    pub(crate) why: String,
    /// Whether that is an outage, or the time of listening after one.
    pub(crate) outage: bool,
}

/// Why central holds still, as was said last.
pub(crate) fn holding(db: &Connection) -> rusqlite::Result<Option<Holding>> {
    Ok(setting::<Option<Holding>>(db, "holding")?.flatten())
}

pub(crate) fn set_holding(db: &Connection, holding: Option<&Holding>) -> rusqlite::Result<()> {
    set(db, "holding", &holding)
}

fn setting<T: DeserializeOwned>(db: &Connection, name: &str) -> rusqlite::Result<Option<T>> {
    db.prepare_cached("SELECT value FROM power_settings WHERE name = ?1")?
        .query_row([name], |row| from_json(row, 0))
        .optional()
}

fn set<T: Serialize>(db: &Connection, name: &str, value: &T) -> rusqlite::Result<()> {
    let sql = "INSERT INTO power_settings (name, value) VALUES (?1, ?2) ON CONFLICT (name) DO UPDATE SET value = ?2";
    db.execute(sql, (name, to_json(value))).map(|_| ())
}

/// Notes something that central did or noticed, with the node's contacts.
pub(crate) fn note(db: &Connection, node: Option<&str>, kind: &str, message: &str, now: u64) -> rusqlite::Result<()> {
    tracing::info!(target: "power", node, kind, message, "power event");
    // Without a program, nobody is to be told later of what is old by then.
    let told = policy(db)?.notify.is_none().then_some(now);
    let sql = "INSERT INTO power_events (at, node, kind, message, tech, pi, told) VALUES (?1, ?2, ?3, ?4,
               (SELECT tech FROM power WHERE node = ?2), (SELECT pi FROM power WHERE node = ?2), ?5)";
    db.execute(sql, (now, node, kind, message, told))?;
    let sql =
        "DELETE FROM power_events WHERE seq <= (SELECT seq FROM power_events ORDER BY seq DESC LIMIT 1 OFFSET ?1)";
    db.execute(sql, [KEPT_EVENTS]).map(|_| ())
}

fn events_where(db: &Connection, which: &str, limit: u32) -> rusqlite::Result<Vec<PowerEvent>> {
    let sql = format!("SELECT seq, at, node, kind, message, tech, pi FROM power_events {which} LIMIT ?1");
    db.prepare_cached(&sql)?
        .query_map([limit], |row| {
            Ok(PowerEvent {
                seq: row.get(0)?,
                at: row.get(1)?,
                node: row.get(2)?,
                kind: row.get(3)?,
                message: row.get(4)?,
                contacts: PowerContacts { tech: row.get(5)?, pi: row.get(6)? },
            })
        })?
        .collect()
}

/// The newest events, oldest first.
pub(crate) fn events(db: &Connection, limit: u32) -> rusqlite::Result<Vec<PowerEvent>> {
    let mut events = events_where(db, "ORDER BY seq DESC", limit)?;
    events.reverse();
    Ok(events)
}

/// The oldest event that the operators' program was not told of.
pub(crate) fn untold(db: &Connection) -> rusqlite::Result<Option<PowerEvent>> {
    Ok(events_where(db, "WHERE told IS NULL ORDER BY seq", 1)?.pop())
}

/// Notes whether the operators' program took an event. After some tries it counts as told.
pub(crate) fn told(db: &Connection, seq: u64, took: bool, now: u64) -> rusqlite::Result<()> {
    let sql = "UPDATE power_events SET tries = tries + 1, told = CASE WHEN ?2 OR tries + 1 >= ?3 THEN ?4 END
               WHERE seq = ?1";
    db.execute(sql, (seq, took, TRIES, now)).map(|_| ())
}

#[cfg(test)]
mod tests {
    use orrery_protocol::BootState;
    use serde_json::json;

    use super::*;
    use crate::db::tests::fresh;

    fn with_nodes() -> Connection {
        let db = fresh();
        for id in ["n1", "n2", "n3"] {
            nodes::insert(&db, id, "", &[], BootState::Boot, 1).unwrap();
        }
        db
    }

    #[test]
    fn tests_are_due_when_asked_for_or_old() {
        let mut db = with_nodes();
        let methods = [json!({ "driver": "manual" })];
        for id in ["n1", "n2"] {
            assert!(set_methods(&db, id, &methods).unwrap());
        }
        assert!(!set_methods(&db, "n9", &methods).unwrap());
        let due = |db: &Connection, every, busy: &[&str], now| {
            let busy: Vec<_> = busy.iter().map(|id| (*id).to_owned()).collect();
            let due = tests_due(db, every, &busy, 9, now).unwrap();
            due.into_iter().map(|(node, _)| node).collect::<Vec<_>>()
        };
        assert!(due(&db, None, &[], 100).is_empty());
        assert_eq!(due(&db, Some(50), &[], 100), ["n1", "n2"]);
        assert!(tested(&db, "n1", &methods, &[], 100).unwrap());
        assert_eq!(due(&db, Some(50), &[], 149), ["n2"]);
        assert_eq!(due(&db, Some(50), &[], 150), ["n2", "n1"]);
        assert_eq!(due(&db, Some(50), &["n2"], 150), ["n1"]);
        assert_eq!(ask_tests(&mut db, &["n1".into(), "n3".into()], 151).unwrap(), Err("n3".into()));
        assert_eq!(due(&db, None, &[], 151), [""; 0]);
        assert_eq!(ask_tests(&mut db, &[], 151).unwrap().unwrap().nodes, ["n1", "n2"]);
        // Who was never tested comes first.
        assert_eq!(due(&db, None, &[], 151), ["n2", "n1"]);
        // What was found of methods that were replaced meanwhile says nothing.
        set_methods(&db, "n1", &[json!({ "driver": "x" })]).unwrap();
        assert!(!tested(&db, "n1", &methods, &[], 152).unwrap());
        assert_eq!(of_node(&db, "n1").unwrap().unwrap().tested, None);
    }

    #[test]
    fn an_event_is_told_or_given_up() {
        let db = with_nodes();
        note(&db, Some("n1"), "ladder", "nobody listens", 1).unwrap();
        assert_eq!(untold(&db).unwrap(), None);
        set_policy(&db, &PowerPolicy { notify: Some("tell".into()), ..PowerPolicy::default() }).unwrap();
        set_contacts(&db, "n1", &PowerContacts { tech: Some("t@x".into()), pi: None }).unwrap();
        note(&db, Some("n1"), "ladder", "one", 2).unwrap();
        note(&db, None, "holding", "two", 3).unwrap();
        let first = untold(&db).unwrap().unwrap();
        assert_eq!((first.message.as_str(), first.contacts.tech.as_deref()), ("one", Some("t@x")));
        told(&db, first.seq, true, 4).unwrap();
        let second = untold(&db).unwrap().unwrap();
        for _ in 0..TRIES {
            assert_eq!(untold(&db).unwrap().as_ref(), Some(&second));
            told(&db, second.seq, false, 5).unwrap();
        }
        assert_eq!(untold(&db).unwrap(), None);
        assert_eq!(events(&db, 2).unwrap()[0].message, "one");
    }
}
