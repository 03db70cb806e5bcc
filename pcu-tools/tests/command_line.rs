//! The `pcu` command as people and programs use it.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

/// Its state is a file named by the address.
const RELAY: &str = r#"case $1 in status) cat "$PCU_ADDRESS" ;; on|off) echo $1 > "$PCU_ADDRESS" ;; test) cat "$PCU_ADDRESS" ;; *) exit 1 ;; esac"#;

/// Three nodes: two that work, and one whose device is not there.
fn inventory(folder: &Path) {
    let method = |name: &str| {
        format!(
            "{{ driver = \"command\", address = {:?}, run = [\"sh\", \"-c\", '''{RELAY}''', \"sh\"] }}",
            folder.join(name)
        )
    };
    let text = format!(
        "[nodes.a]\ngroups = [\"good\"]\nmethods = [{}]\n[nodes.b]\ngroups = [\"good\"]\nmethods = [{}]\n[nodes.c]\nmethods = [{}]\n",
        method("a"),
        method("b"),
        "{ driver = \"qmp\", address = \"unix:/nowhere\" }"
    );
    fs::write(folder.join("pcu.toml"), text).unwrap();
    fs::write(folder.join("a"), "on\n").unwrap();
    fs::write(folder.join("b"), "off\n").unwrap();
}

fn pcu(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pcu"));
    command.args(["--deadline", "3"]).args(arguments).env("PCU_INVENTORY", folder.join("pcu.toml")).output().unwrap()
}

fn check(folder: &Path, arguments: &[&str], status: i32, lines: &[&str]) {
    let output = pcu(folder, arguments);
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {said}{errors}");
    for line in lines {
        assert!(said.contains(line) || errors.contains(line), "{arguments:?}: no {line:?} in {said}{errors}");
    }
}

#[test]
fn status_says_what_is_and_ends_by_class() {
    let folder = tempfile::tempdir().unwrap();
    inventory(folder.path());
    check(folder.path(), &["status", "a", "b"], 0, &["a: on\n", "b: off\n"]);
    check(folder.path(), &["status", "--group", "good"], 0, &["a: on\n", "b: off\n"]);
    check(
        folder.path(),
        &["status", "c"],
        10,
        &["c: connecting to the monitor at unix:/nowhere", "try: check the address"],
    );
    check(folder.path(), &["bootdev", "pxe", "a"], 18, &["bootdev"]);
    check(folder.path(), &["bootdev", "pxe", "a", "c"], 1, &[]);
    check(folder.path(), &["status", "d"], 3, &["the inventory has no node \"d\""]);
    check(folder.path(), &["status"], 2, &[]);
    check(folder.path(), &["frobnicate", "a"], 2, &[]);
}

#[test]
fn a_change_of_everything_needs_a_word() {
    let folder = tempfile::tempdir().unwrap();
    inventory(folder.path());
    check(folder.path(), &["off", "--all"], 1, &["needs --yes"]);
    assert_eq!(fs::read_to_string(folder.path().join("a")).unwrap(), "on\n");
    check(folder.path(), &["off", "a"], 0, &["a: off done and seen"]);
    check(folder.path(), &["off", "a"], 0, &["a: off already"]);
    check(folder.path(), &["on", "--all"], 10, &["a: on done and seen", "b: on done and seen", "c: on failed"]);
}

#[test]
fn programs_get_a_document() {
    let folder = tempfile::tempdir().unwrap();
    inventory(folder.path());
    let output = pcu(folder.path(), &["--json", "on", "a", "b"]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let outcomes: Vec<_> =
        document["nodes"].as_array().unwrap().iter().map(|node| &node["result"]["outcome"]).collect();
    assert_eq!(outcomes, ["already", "changed"]);
    let output = pcu(folder.path(), &["--json", "test", "c"]);
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["nodes"][0]["result"][0]["failure"]["class"], "transport");
    let output = pcu(folder.path(), &["--json", "status", "d"]);
    assert!(serde_json::from_slice::<Value>(&output.stdout).unwrap()["error"].is_string());
}

#[test]
fn a_data_file_that_is_no_driver_is_told() {
    let folder = tempfile::tempdir().unwrap();
    inventory(folder.path());
    let file = folder.path().join("x.toml");
    fs::write(&file, "name = \"x\"\nabout = \"x\"\nsource = \"x\"\n").unwrap();
    check(folder.path(), &["driver", "check", file.to_str().unwrap()], 3, &["x.toml"]);
    check(folder.path(), &["driver", "list"], 0, &["wol", "virsh", "status on off reset"]);
}
