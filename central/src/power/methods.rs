//! Methods as operators send them: checked, and bound to central's own folder.
//!
//! Who may switch power is not by that who may run programs on central's machine, or read its files. So what a method names there, a secret's
//! file, a program, a certificate, stands in the folder `power` of the data folder, where whoever has that machine put it.

use std::path::{Component, Path, PathBuf};

use orrery_pcu::{Method, PcuError};
use serde::Serialize;
use serde_json::Value;

use super::perform::Devices;

/// Most methods of a node.
const MOST: usize = 8;

/// Keys of methods whose value is a path.
const PATHS: [&str; 3] = ["ca", "key", "record"];

/// Checks the methods of a node as far as is possible without talking to a device.
pub(super) fn check(devices: &Devices, folder: &Path, methods: &[Value]) -> Result<(), String> {
    if methods.is_empty() || methods.len() > MOST {
        return Err(format!("a node has 1 to {MOST} methods"));
    }
    let methods = bind(folder, methods)?;
    methods
        .iter()
        .flat_map(|method| std::iter::once(method).chain(&method.feeds))
        .try_for_each(|method| devices.check(method).map_err(|error: PcuError| error.to_string()))
}

/// The methods as this machine can use them.
pub(super) fn bind(folder: &Path, methods: &[Value]) -> Result<Vec<Method>, String> {
    let bound = methods.iter().enumerate().map(|(index, method)| {
        let method = walk(folder, method.clone())
            .and_then(|value| serde_json::from_value::<Method>(value).map_err(|error| error.to_string()));
        method.map_err(|error| format!("method {}: {error}", index + 1))
    });
    bound.collect()
}

/// Binds every path and program in `value`, however deep.
fn walk(folder: &Path, value: Value) -> Result<Value, String> {
    let table = match value {
        Value::Array(values) => {
            return values.into_iter().map(|value| walk(folder, value)).collect::<Result<_, _>>().map(Value::Array);
        }
        Value::Object(table) => table,
        other => return Ok(other),
    };
    // A secret's source is a table with one of these alone.
    let secret = table.len() == 1;
    let bound = table.into_iter().map(|(key, value)| {
        let value = match (key.as_str(), value) {
            ("env", Value::String(_)) if secret => {
                return Err("central has no environment of yours: put the secret into a file".to_owned());
            }
            ("file", Value::String(path)) if secret => within(folder, &path)?,
            ("command", Value::Array(words)) if secret => program(folder, words)?,
            ("run", Value::Array(words)) => program(folder, words)?,
            // libvirt runs what a URI's parameter `command` names.
            ("uri", Value::String(uri)) if uri.contains('?') => {
                return Err(format!("uri: {uri:?} has parameters, which central does not allow"));
            }
            (key, Value::String(path)) if PATHS.contains(&key) => within(folder, &path)?,
            (_, other) => walk(folder, other)?,
        };
        Ok((key, value))
    });
    bound.collect::<Result<_, _>>().map(Value::Object)
}

fn program(folder: &Path, words: Vec<Value>) -> Result<Value, String> {
    let mut words = words;
    match words.first_mut() {
        Some(Value::String(name)) => words[0] = within(folder, &name.clone())?,
        _ => return Err("a command begins with the name of a program".to_owned()),
    }
    Ok(Value::Array(words))
}

/// A path in the folder: by its name there, or whole.
fn within(folder: &Path, path: &str) -> Result<Value, String> {
    let inside = inside(folder, path)?;
    Ok(Value::String(inside.display().to_string()))
}

/// A path in the folder: by its name there, or whole.
pub(super) fn inside(folder: &Path, path: &str) -> Result<PathBuf, String> {
    let full = folder.join(path);
    let plain = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
    match full.strip_prefix(folder) {
        Ok(name) if plain(name) && name.components().next().is_some() => Ok(full),
        _ => Err(format!("{path:?} is not in central's folder {}; put it there", folder.display())),
    }
}

/// The word of an enum without fields.
pub(super) fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use orrery_pcu::Registry;
    use serde_json::json;

    use super::*;

    fn checked(method: Value) -> Result<(), String> {
        check(&Devices::new(Registry::builtin()), Path::new("/data/power"), &[method])
    }

    #[test]
    fn what_methods_name_stands_in_the_folder() {
        let bound = |method: Value| walk(Path::new("/data/power"), method);
        let check = |method: Value, expect: Value| assert_eq!(bound(method), Ok(expect));
        check(json!({ "password": { "file": "n1" } }), json!({ "password": { "file": "/data/power/n1" } }));
        check(
            json!({ "feeds": [{ "kg": { "command": ["/data/power/a/b", "../x"] } }], "ca": "pdu.pem" }),
            json!({ "feeds": [{ "kg": { "command": ["/data/power/a/b", "../x"] } }], "ca": "/data/power/pdu.pem" }),
        );
        check(json!({ "run": ["relay", "1"], "user": "u" }), json!({ "run": ["/data/power/relay", "1"], "user": "u" }));
        check(json!({ "uri": "qemu+ssh://root@h/system" }), json!({ "uri": "qemu+ssh://root@h/system" }));
        for refused in [
            json!({ "password": { "file": "/etc/shadow" } }),
            json!({ "password": { "file": "../central.db" } }),
            json!({ "password": { "file": "/data/power/../ca.key" } }),
            json!({ "password": { "file": "" } }),
            json!({ "password": { "env": "HOME" } }),
            json!({ "password": { "command": ["/bin/cat", "/etc/shadow"] } }),
            json!({ "password": { "command": [] } }),
            json!({ "run": ["/bin/sh", "-c", "id"] }),
            json!({ "feeds": [{ "run": ["/bin/sh"] }] }),
            json!({ "record": "/etc/passwd" }),
            json!({ "key": "/etc/ssh/id_ed25519" }),
            json!({ "uri": "qemu+ext:///system?command=/bin/id" }),
        ] {
            assert!(bound(refused.clone()).is_err(), "{refused}");
        }
    }

    #[test]
    fn what_no_driver_can_use_is_refused() {
        assert_eq!(checked(json!({ "driver": "command", "run": ["relay"] })), Ok(()));
        assert!(checked(json!({ "driver": "no-such", "address": "x" })).unwrap_err().contains("no-such"));
        assert!(checked(json!({ "address": "x" })).unwrap_err().contains("driver"));
        assert!(checked(json!({ "driver": "command", "run": ["/bin/sh"] })).unwrap_err().contains("/data/power"));
        assert!(check(&Devices::new(Registry::builtin()), Path::new("/p"), &[]).is_err());
    }
}
