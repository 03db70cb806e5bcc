//! Who may operate central: keys, each with a name, held in a folder that is carried to the operator's machine.

use std::{
    fs,
    path::{Path, PathBuf},
};

use orrery_protocol::Digest;
use rusqlite::{Connection, params};
use serde::Serialize;
use thiserror::Error;

use crate::{
    data::{DataError, OperatorConfig, Settings, to_toml, write_file},
    db::{Database, OpenError},
    now,
    pki::{self, PkiError},
};

/// An operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OperatorRecord {
    /// The operator's name.
    pub name: String,
    /// The SHA-256 of the public key.
    pub spki: String,
    /// Since when, in Unix seconds.
    pub created: u64,
}

/// Why operators stay as they are.
#[derive(Debug, Error)]
pub enum OperatorError {
    /// There is one already.
    #[error("there is an operator named `{0}` already")]
    Exists(String),
    /// There is none.
    #[error("there is no operator named `{0}`: `orrery-central operator list` names them")]
    Unknown(String),
    /// Nobody would be left.
    #[error("`{0}` is the only operator: add another one first")]
    Last(String),
    /// A bad name.
    #[error("an operator's name is 1 to 64 letters, digits, `.`, `_`, `-` and `@`")]
    Name,
    /// The folder of the new operator is there already.
    #[error("{path} exists already: name a new folder", path = .0.display())]
    Folder(PathBuf),
    /// The data folder.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The key.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The database.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The database.
    #[error("using the database: {0}")]
    Database(#[from] rusqlite::Error),
}

fn database(data: &Path) -> Result<Database, OperatorError> {
    Settings::read(data)?;
    Ok(Database::open(&data.join("central.db"))?)
}

/// All operators, oldest first.
///
/// # Errors
/// The data folder cannot be read.
pub fn list(data: &Path) -> Result<Vec<OperatorRecord>, OperatorError> {
    database(data)?.now(|db| Ok(all(db)?))
}

fn all(db: &Connection) -> rusqlite::Result<Vec<OperatorRecord>> {
    let mut query = db.prepare("SELECT name, spki, created FROM operators ORDER BY created, name")?;
    let record =
        |row: &rusqlite::Row<'_>| Ok(OperatorRecord { name: row.get(0)?, spki: row.get(1)?, created: row.get(2)? });
    query.query_map([], record)?.collect()
}

/// Adds an operator, and makes the folder to carry away, with a new key. The server may run meanwhile.
///
/// # Errors
/// See [`OperatorError`]. Whoever is in the database has a folder: that is written first.
pub fn add(data: &Path, name: &str, port: u16, folder: &Path) -> Result<(), OperatorError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
    if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
        return Err(OperatorError::Name);
    }
    let database = database(data)?;
    let settings = Settings::read(data)?;
    if database.now(|db| all(db))?.iter().any(|operator| operator.name == name) {
        return Err(OperatorError::Exists(name.into()));
    }
    let key = write_folder(data, &settings.url(port), folder)?;
    database.now(|db| {
        let sql = "INSERT INTO operators (spki, name, created) VALUES (?1, ?2, ?3)";
        db.execute(sql, params![key.to_string(), name, now()])
    })?;
    Ok(())
}

/// Makes an operator's folder, and returns the identity of its key.
pub(crate) fn write_folder(data: &Path, url: &str, folder: &Path) -> Result<Digest, OperatorError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| DataError::Io { path, source }
    };
    match fs::create_dir(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => return Err(OperatorError::Folder(folder.into())),
        made => made.map_err(failed(folder))?,
    }
    let mut authorities = String::new();
    for path in crate::authority_files(data) {
        authorities += &fs::read_to_string(&path).map_err(failed(&path))?;
    }
    let config = to_toml(&OperatorConfig { url, ca: "ca.pem", key: "operator.key" });
    for (name, content) in [("ca.pem", authorities), ("operator.toml", config)] {
        let path = folder.join(name);
        write_file(&path, content.as_bytes(), 0o644).map_err(failed(&path))?;
    }
    Ok(pki::make_operator(&folder.join("operator.key"))?)
}

/// Removes an operator, whose key is refused from the next request on.
///
/// # Errors
/// See [`OperatorError`].
pub fn remove(data: &Path, name: &str) -> Result<(), OperatorError> {
    database(data)?.now(|db| {
        let transaction = db.transaction()?;
        let operators = all(&transaction)?;
        if !operators.iter().any(|operator| operator.name == name) {
            return Err(OperatorError::Unknown(name.into()));
        }
        if operators.len() == 1 {
            return Err(OperatorError::Last(name.into()));
        }
        transaction.execute("DELETE FROM operators WHERE name = ?1", [name])?;
        Ok(transaction.commit()?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{InitOptions, init};

    #[test]
    fn operators_come_and_go_but_for_the_last() {
        let base = tempfile::tempdir().unwrap();
        let data = base.path().join("data");
        init(&InitOptions { data: data.clone(), hosts: vec!["localhost".into()], port: 8443 }).unwrap();
        let names = || list(&data).unwrap().into_iter().map(|operator| operator.name).collect::<Vec<_>>();
        assert_eq!(names(), ["first"]);
        assert!(matches!(remove(&data, "first"), Err(OperatorError::Last(_))));
        let folder = base.path().join("ann");
        add(&data, "ann", 443, &folder).unwrap();
        let config = fs::read_to_string(folder.join("operator.toml")).unwrap();
        assert!(config.contains("https://localhost:443"), "{config}");
        let ca = |folder: &Path| fs::read_to_string(folder.join("ca.pem")).unwrap();
        assert_eq!(ca(&folder), ca(&data.join("operator")));
        assert!(matches!(add(&data, "ann", 443, &base.path().join("b")), Err(OperatorError::Exists(_))));
        assert!(matches!(add(&data, "bob", 443, &folder), Err(OperatorError::Folder(_))));
        assert!(matches!(add(&data, "b\n", 443, &base.path().join("b")), Err(OperatorError::Name)));
        remove(&data, "first").unwrap();
        assert!(matches!(remove(&data, "first"), Err(OperatorError::Unknown(_))));
        assert_eq!(names(), ["ann"]);
    }
}
