//! The database: opening, migrating, and running work on it off the async threads.

pub(crate) mod enrolments;
pub(crate) mod keys;
pub(crate) mod logs;
pub(crate) mod nodes;
pub(crate) mod power;
pub(crate) mod power_operations;
pub(crate) mod power_records;
pub(crate) mod published;
pub(crate) mod roots;
pub(crate) mod slices;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use orrery_protocol::Digest;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, types::Type};
use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;

/// Marks an SQLite file as central's (`PRAGMA application_id`): "Orry".
const APPLICATION_ID: i32 = 0x4f72_7279;

/// Each entry takes the schema one version further; the version is `PRAGMA user_version`. Entries that were
/// released never change.
const MIGRATIONS: &[&str] = &[
    include_str!("db/schema-1.sql"),
    include_str!("db/schema-2.sql"),
    include_str!("db/schema-3.sql"),
    include_str!("db/schema-4.sql"),
    include_str!("db/schema-5.sql"),
    include_str!("db/schema-6.sql"),
];

/// Larger databases are not read through at every start.
const CHECKED_BYTES: u64 = 64 << 20;

/// Why the database was not opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// There is none.
    #[error("{path} does not exist: restore it from a backup", path = .0.display())]
    Missing(PathBuf),
    /// SQLite cannot use it.
    #[error("opening the database {path}: {source}", path = .path.display())]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: rusqlite::Error,
    },
    /// Another program's database.
    #[error("{path} is not a database of orrery-central", path = .0.display())]
    Foreign(PathBuf),
    /// Written by a later version.
    #[error("{path} has schema version {found}, this program knows up to {known}: use a newer one", path = .path.display())]
    TooNew {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: usize,
        /// The newest known.
        known: usize,
    },
    /// Pages do not fit together.
    #[error("{path} is damaged ({finding}): restore it from a backup", path = .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        finding: String,
    },
}

/// The open database; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Database(Arc<Mutex<Connection>>);

impl Database {
    /// Makes a database with its first operator.
    pub(crate) fn create(path: &Path, operator: &Digest, now: u64) -> Result<(), OpenError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
        let make = || -> rusqlite::Result<()> {
            let mut connection = Connection::open_with_flags(path, flags)?;
            connection.pragma_update(None, "application_id", APPLICATION_ID)?;
            configure(&connection)?;
            migrate(&mut connection, 0)?;
            let sql = "INSERT INTO operators (spki, name, created) VALUES (?1, 'first', ?2)";
            connection.execute(sql, (operator.to_string(), now))?;
            connection.close().map_err(|(_, e)| e)
        };
        make().map_err(|source| OpenError::Sqlite { path: path.to_owned(), source })
    }

    /// Opens the database, brought to the newest schema.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Sqlite { path: path.to_owned(), source };
        let size = fs::metadata(path).map_err(|_| OpenError::Missing(path.to_owned()))?.len();
        let mut connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed)?;
        let number = |connection: &Connection, pragma: &str| {
            connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0)).map_err(failed)
        };
        if number(&connection, "application_id")? != i64::from(APPLICATION_ID) {
            return Err(OpenError::Foreign(path.to_owned()));
        }
        let found = usize::try_from(number(&connection, "user_version")?).unwrap_or(usize::MAX);
        if found > MIGRATIONS.len() {
            return Err(OpenError::TooNew { path: path.to_owned(), found, known: MIGRATIONS.len() });
        }
        if size <= CHECKED_BYTES {
            let finding: String =
                connection.pragma_query_value(None, "quick_check", |row| row.get(0)).map_err(failed)?;
            if finding != "ok" {
                return Err(OpenError::Damaged { path: path.to_owned(), finding });
            }
        }
        configure(&connection).and_then(|()| migrate(&mut connection, found)).map_err(failed)?;
        Ok(Self(Arc::new(Mutex::new(connection))))
    }

    /// Runs `work` on this thread, which may block.
    pub(crate) fn now<T, E>(&self, work: impl FnOnce(&mut Connection) -> Result<T, E>) -> Result<T, E> {
        // A panic elsewhere rolled its transaction back; the connection is as good as before.
        work(&mut self.0.lock().unwrap_or_else(|e| e.into_inner()))
    }

    /// Runs `work` on a thread that may block. It runs to its end even if the caller goes away.
    pub(crate) async fn run<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: FnOnce(&mut Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        let database = self.clone();
        match tokio::task::spawn_blocking(move || database.now(work)).await {
            Ok(result) => result,
            Err(e) => std::panic::resume_unwind(e.into_panic()),
        }
    }
}

fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // An answer that says "done" must survive a power cut.
    connection.pragma_update(None, "synchronous", "FULL")
}

/// Brings the schema to its newest version; foreign keys hold from then on. They do not while it works: a table that is made
/// anew must not take with it what refers to it (<https://www.sqlite.org/lang_altertable.html#otheralter>).
fn migrate(connection: &mut Connection, from: usize) -> rusqlite::Result<()> {
    connection.pragma_update(None, "foreign_keys", false)?;
    for (index, sql) in MIGRATIONS.iter().enumerate().skip(from) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(sql)?;
        transaction.pragma_update(None, "user_version", index as i64 + 1)?;
        transaction.commit()?;
    }
    connection.pragma_update(None, "foreign_keys", true)
}

/// The name of the operator whose key is `spki`.
pub(crate) fn operator(connection: &Connection, spki: &Digest) -> rusqlite::Result<Option<String>> {
    let sql = "SELECT name FROM operators WHERE spki = ?1";
    connection.prepare_cached(sql)?.query_row([spki.to_string()], |row| row.get(0)).optional()
}

/// A value kept as JSON.
fn to_json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("the types kept as JSON have string keys only")
}

fn from_json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(e)))
}

fn from_json_option<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>> {
    Ok(if row.get_ref(column)?.data_type() == Type::Null { None } else { Some(from_json(row, column)?) })
}

/// A word such as a boot state, kept as plain text.
fn from_word<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_value(serde_json::Value::String(text))
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(e)))
}

fn from_word_option<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<T>> {
    Ok(if row.get_ref(column)?.data_type() == Type::Null { None } else { Some(from_word(row, column)?) })
}

/// The word for a value such as a run level.
fn to_word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => unreachable!("only enums without fields are kept as words"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A fresh database without a file.
    pub(crate) fn fresh() -> Connection {
        let mut connection = Connection::open_in_memory().unwrap();
        configure(&connection).unwrap();
        migrate(&mut connection, 0).unwrap();
        connection
    }

    #[test]
    fn nodes_keep_their_keys_and_events_across_the_second_schema() {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(MIGRATIONS[0]).unwrap();
        let spki = Digest([7; 32]);
        let old = format!(
            "INSERT INTO nodes (id, name, spki, boot_state, created) VALUES ('n1', 'One', '{spki}', 'boot', 5);
             INSERT INTO events (node, received, digest, event) VALUES ('n1', 6, 'd', '{{}}');"
        );
        connection.execute_batch(&old).unwrap();
        migrate(&mut connection, 1).unwrap();
        let node = nodes::detail(&connection, "n1").unwrap().unwrap();
        assert_eq!((node.summary.spki, node.summary.name.as_str(), node.summary.created), (Some(spki), "One", 5));
        let events = |connection: &Connection| -> u32 {
            connection.query_row("SELECT count(*) FROM events", [], |row| row.get(0)).unwrap()
        };
        assert_eq!(events(&connection), 1);
        let broken = connection.prepare("PRAGMA foreign_key_check").unwrap().exists([]).unwrap();
        assert!(!broken);
        assert!(nodes::remove(&connection, "n1").unwrap());
        assert_eq!(events(&connection), 0);
    }

    fn check(prepare: impl FnOnce(&Path), expect: &str) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("central.db");
        Database::create(&path, &Digest([1; 32]), 5).unwrap();
        prepare(&path);
        let got = Database::open(&path).map_or_else(|e| e.to_string(), |_| "ok".to_owned());
        assert!(got.contains(expect), "{got}");
    }

    #[test]
    fn only_a_whole_database_of_ours_opens() {
        let sql = |sql: &'static str| move |path: &Path| Connection::open(path).unwrap().execute_batch(sql).unwrap();
        check(|_| (), "ok");
        check(|path| fs::remove_file(path).unwrap(), "does not exist");
        check(|path| fs::write(path, "garbage, and a lot of it".repeat(100)).unwrap(), "not a database");
        check(|path| fs::write(path, "").unwrap(), "not a database of orrery-central");
        check(sql("PRAGMA application_id = 7"), "not a database of orrery-central");
        check(sql("PRAGMA user_version = 99"), "schema version 99");
        check(
            |path| {
                let file = fs::File::options().write(true).open(path).unwrap();
                file.set_len(file.metadata().unwrap().len() - 8192).unwrap();
            },
            "central.db",
        );
    }
}
