//! The `pcu` command as people and programs use it.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
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

/// A `pcu` that has just turned off node `a`, for an hour.
fn cycling(folder: &Path, arguments: &[&str]) -> Child {
    // Whoever runs tests in the background has them ignore ^C.
    let mut command = Command::new("env");
    command
        .args(["--default-signal", env!("CARGO_BIN_EXE_pcu"), "--deadline", "7200", "cycle", "--off-time", "3600"])
        .args(arguments);
    command.env("PCU_INVENTORY", folder.join("pcu.toml")).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let limit = Instant::now() + Duration::from_secs(60);
    while fs::read_to_string(folder.join("a")).unwrap() != "off\n" {
        if Instant::now() > limit || child.try_wait().unwrap().is_some() {
            let _ = child.kill();
            panic!("it does not turn off: {:?}", child.wait_with_output());
        }
        thread::sleep(Duration::from_millis(5));
    }
    child
}

fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn an_interrupted_cycle_leaves_nothing_off() {
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let folder = tempfile::tempdir().unwrap();
        inventory(folder.path());
        fs::write(folder.path().join("b"), "on\n").unwrap();
        let child = cycling(folder.path(), &["--parallel", "1", "a", "b"]);
        send(&child, signal);
        let output = child.wait_with_output().unwrap();
        let (said, errors) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert_eq!(output.status.code(), Some(status), "{said}{errors}");
        assert!(errors.starts_with("interrupted: turning a on again"), "{errors}");
        assert!(said.contains("a: cycle done and seen") && said.contains("b: cycle failed: using"), "{said}");
        // The other node was not begun.
        let state = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!((state("a").as_str(), state("b").as_str()), ("on\n", "on\n"));
    }
}

#[test]
fn nobody_has_to_listen_for_a_cycle_to_end_well() {
    let folder = tempfile::tempdir().unwrap();
    inventory(folder.path());
    let mut child = cycling(folder.path(), &["--verbose", "a"]);
    // As when the terminal is gone.
    drop((child.stdout.take(), child.stderr.take()));
    send(&child, Signal::HUP);
    // The results could not be printed.
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(fs::read_to_string(folder.path().join("a")).unwrap(), "on\n");
}

#[test]
fn a_second_signal_ends_at_once_and_says_what_is_off() {
    let folder = tempfile::tempdir().unwrap();
    inventory(folder.path());
    // Turning on takes until the folder is gone.
    let text = fs::read_to_string(folder.path().join("pcu.toml")).unwrap();
    let text = text.replace("on|off)", "on) while [ -e \"$PCU_ADDRESS\" ]; do sleep 0.1; done ;; off)");
    fs::write(folder.path().join("pcu.toml"), text).unwrap();
    let mut child = cycling(folder.path(), &["a"]);
    send(&child, Signal::TERM);
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    errors.read_line(&mut line).unwrap();
    assert!(line.starts_with("interrupted: turning a on again"), "{line}");
    send(&child, Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    errors.read_to_string(&mut line).unwrap();
    assert!(line.ends_with("\nended; left off: a\n"), "{line}");
    assert_eq!(fs::read_to_string(folder.path().join("a")).unwrap(), "off\n");
}

#[test]
fn what_is_to_be_ignored_is_ignored() {
    let folder = tempfile::tempdir().unwrap();
    inventory(folder.path());
    let nohup = r#"trap "" HUP; exec "$0" cycle --off-time 1 a"#;
    let mut command = Command::new("sh");
    command.args(["-c", nohup, env!("CARGO_BIN_EXE_pcu")]).env("PCU_INVENTORY", folder.path().join("pcu.toml"));
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    while fs::read_to_string(folder.path().join("a")).unwrap() != "off\n" && child.try_wait().unwrap().is_none() {
        thread::sleep(Duration::from_millis(5));
    }
    send(&child, Signal::HUP);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(fs::read_to_string(folder.path().join("a")).unwrap(), "on\n");
}
