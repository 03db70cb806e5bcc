//! Signed documents: releases and boot scripts.

use orrery_central_api::{ReleaseRecord, ScriptRecord};
use orrery_protocol::{ArtifactRef, BootScript, Digest, ImageRef, ReleaseManifest, ScriptKind, SliceName};
use rusqlite::{Connection, Row};

use super::{from_json, from_word, to_json};

/// Adds a release, or makes it the newest if it is known.
pub(crate) fn add_release(
    db: &mut Connection,
    envelope: &ArtifactRef,
    manifest: &ReleaseManifest,
    now: u64,
) -> rusqlite::Result<()> {
    let transaction = db.transaction()?;
    transaction.execute("DELETE FROM releases WHERE sha256 = ?1", [envelope.sha256.to_string()])?;
    let sql = "INSERT INTO releases (sha256, size, published, manifest) VALUES (?1, ?2, ?3, ?4)";
    transaction.execute(sql, (envelope.sha256.to_string(), envelope.size, now, to_json(manifest)))?;
    transaction.commit()
}

/// All releases, newest first.
pub(crate) fn releases(db: &Connection) -> rusqlite::Result<Vec<ReleaseRecord>> {
    db.prepare("SELECT sha256, size, published, manifest FROM releases ORDER BY seq DESC")?
        .query_map([], |row| {
            Ok(ReleaseRecord {
                envelope: ArtifactRef { sha256: from_word(row, 0)?, size: row.get(1)? },
                published: row.get(2)?,
                manifest: from_json(row, 3)?,
            })
        })?
        .collect()
}

/// Why a release is not retired.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Needed {
    /// There is none.
    Unknown,
    /// A script that has not expired names it.
    Script {
        /// The script's kind.
        kind: ScriptKind,
        /// Its serial.
        serial: u64,
    },
    /// New slivers of a slice would start from another image without it.
    Slice {
        /// The slice.
        slice: SliceName,
        /// The image's name.
        image: String,
    },
}

/// Forgets a release that nothing needs.
pub(crate) fn retire(db: &mut Connection, sha256: &Digest, now: u64) -> rusqlite::Result<Result<(), Needed>> {
    let transaction = db.transaction()?;
    let mut slices = Vec::new();
    for record in super::slices::list(&transaction)? {
        let image = image(&transaction, &record.spec.image)?;
        slices.push((record, image));
    }
    if transaction.execute("DELETE FROM releases WHERE sha256 = ?1", [sha256.to_string()])? == 0 {
        return Ok(Err(Needed::Unknown));
    }
    let naming = |script: &&ScriptRecord| script.expires > now && script.release.is_some_and(|r| r.sha256 == *sha256);
    if let Some(ScriptRecord { kind, serial, .. }) = scripts(&transaction)?.iter().find(naming) {
        return Ok(Err(Needed::Script { kind: *kind, serial: *serial }));
    }
    for (record, before) in slices {
        if image(&transaction, &record.spec.image)? != before {
            return Ok(Err(Needed::Slice { slice: record.slice, image: record.spec.image }));
        }
    }
    transaction.commit()?;
    Ok(Ok(()))
}

/// Whether a release was published.
pub(crate) fn has_release(db: &Connection, envelope: &ArtifactRef) -> rusqlite::Result<bool> {
    db.prepare("SELECT 1 FROM releases WHERE sha256 = ?1 AND size = ?2")?
        .exists((envelope.sha256.to_string(), envelope.size))
}

/// The reference image `name`, from the newest release that has it. A release without it must not make
/// nodes destroy the slivers that run from it.
pub(crate) fn image(db: &Connection, name: &str) -> rusqlite::Result<Option<ImageRef>> {
    for release in releases(db)? {
        if let Some(image) = release.manifest.images().find(|image| image.name == name) {
            return Ok(Some(image.image()));
        }
    }
    Ok(None)
}

/// Adds a script; a known one stays as it is.
pub(crate) fn add_script(
    db: &Connection,
    envelope: &[u8],
    script: &BootScript,
    now: u64,
) -> rusqlite::Result<ScriptRecord> {
    let sql = "INSERT OR IGNORE INTO scripts (sha256, kind, serial, expires, published, script, envelope)
               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    let sha256 = Digest::of(envelope).to_string();
    let row = (&sha256, script.kind.as_str(), script.serial, script.expires, now, to_json(script), envelope);
    db.execute(sql, row)?;
    db.query_row("SELECT sha256, published, script FROM scripts WHERE sha256 = ?1", [&sha256], script_record)
}

fn script_record(row: &Row<'_>) -> rusqlite::Result<ScriptRecord> {
    let script: BootScript = from_json(row, 2)?;
    Ok(ScriptRecord {
        sha256: from_word(row, 0)?,
        kind: script.kind,
        serial: script.serial,
        nodes: script.nodes,
        expires: script.expires,
        published: row.get(1)?,
        release: script.release,
    })
}

/// All scripts, newest first.
pub(crate) fn scripts(db: &Connection) -> rusqlite::Result<Vec<ScriptRecord>> {
    db.prepare("SELECT sha256, published, script FROM scripts ORDER BY seq DESC")?
        .query_map([], script_record)?
        .collect()
}

/// The script a node gets: of its kind, naming the node, one of `groups` or every node, not void, with the highest serial;
/// of several with that serial, the one published last.
pub(crate) fn script_for(
    db: &Connection,
    kind: ScriptKind,
    node: &str,
    groups: &[String],
    now: u64,
) -> rusqlite::Result<Option<Vec<u8>>> {
    let sql = "SELECT script, seq FROM scripts WHERE kind = ?1 AND expires > ?2 ORDER BY serial DESC, seq DESC";
    let mut statement = db.prepare_cached(sql)?;
    let mut rows = statement.query((kind.as_str(), now))?;
    while let Some(row) = rows.next()? {
        if from_json::<BootScript>(row, 0)?.is_for(node, groups) {
            let seq: i64 = row.get(1)?;
            return db.query_row("SELECT envelope FROM scripts WHERE seq = ?1", [seq], |row| row.get(0)).map(Some);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::tests::fresh;

    #[test]
    fn the_script_with_the_highest_serial_for_the_node_is_chosen() {
        let db = fresh();
        let publish = |name: &str, kind, node: &str, serial, expires| {
            let script = BootScript {
                version: 1,
                kind,
                nodes: vec![node.to_owned()],
                serial,
                issued: 0,
                expires,
                release: None,
                ssh_keys: Vec::new(),
                networks: Vec::new(),
                mirrors: Vec::new(),
                waivers: Vec::new(),
            };
            add_script(&db, name.as_bytes(), &script, 1).unwrap();
        };
        publish("for all", ScriptKind::Boot, "*", 3, 100);
        publish("old", ScriptKind::Boot, "n1", 2, 100);
        publish("void", ScriptKind::Boot, "n1", 9, 50);
        publish("for n2", ScriptKind::Boot, "n2", 4, 100);
        publish("again for all", ScriptKind::Boot, "*", 3, 100);
        publish("safe", ScriptKind::Safe, "*", 20, 100);
        publish("for spares", ScriptKind::Upgrade, "@spares", 5, 100);
        publish("for others", ScriptKind::Upgrade, "@others", 6, 100);
        let check = |kind, node, now, expect: Option<&str>| {
            let got = script_for(&db, kind, node, &["spares".to_owned()], now).unwrap();
            assert_eq!(got.as_deref(), expect.map(str::as_bytes), "{node} {now}");
        };
        check(ScriptKind::Boot, "n1", 10, Some("void"));
        check(ScriptKind::Boot, "n1", 50, Some("again for all"));
        check(ScriptKind::Boot, "n2", 50, Some("for n2"));
        check(ScriptKind::Upgrade, "n1", 10, Some("for spares"));
        check(ScriptKind::Boot, "n1", 100, None);
        check(ScriptKind::Install, "n1", 10, None);
    }
}
