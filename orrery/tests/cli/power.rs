//! Remote power as an operator types it, with a relay that is a script.

use std::{
    fs,
    os::unix::fs::symlink,
    time::{Duration, Instant},
};

use orrery_protocol::Facts;
use orrery_transport::{Client, Method, TransportError};
use serde_json::{Value, json};

use crate::support::{Served, check, command, config, run};

const RELAY: &str = r#"
case $1 in
status) cat "$0.state" ;;
on|off) echo "$1" > "$0.state" ;;
test) test ! -e "$0.broken" ;;
esac
"#;

fn contact(node: &Client, boot: &str) {
    let facts = Facts { node: "n1".to_owned(), boot_id: boot.to_owned(), ..Facts::default() };
    match node.post_for_bytes("/v1/node/contact", &facts, 1 << 20) {
        Ok(_) | Err(TransportError::Refused { status: 404, .. }) => {}
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_node_is_switched_and_it_is_said_who_could_not_be() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path();
    let central = Served::start(folder);
    let url = central.url.clone();
    let ok = |line: &str| check(folder, &format!("{line} --central {url}"), 0);
    let fails = |line: &str, status| check(folder, &format!("{line} --central {url}"), status);
    ok("keys new --out release.key");
    ok("node add n1 --out n1.toml --release-key release.key.pub");
    ok("node add n2 --out n2.toml --release-key release.key.pub");
    let node = central.node(&config(folder, "n1.toml"));
    contact(&node, "b1");

    assert_eq!(fails("node power-cycle n1 --reason hangs", 3)["error"], "no-power-method");
    fails("node power-cycle n1", 2);
    let power = folder.join("data/power");
    symlink("/bin/sh", power.join("sh")).unwrap();
    let relay = power.join("relay");
    fs::write(&relay, RELAY).unwrap();
    fs::write(power.join("relay.state"), "on\n").unwrap();
    let methods = |run: &str| {
        let text =
            format!("methods = [{{ driver = 'command', address = 'pdu', run = ['{run}', '{}'] }}]", relay.display());
        fs::write(folder.join("methods.toml"), text).unwrap();
    };
    methods("/bin/sh");
    assert_eq!(fails("node power set n1 --file methods.toml", 3)["error"], "bad-request");
    methods("sh");
    ok("node power set n1 --file methods.toml");
    fs::write(folder.join("none.toml"), "methods = []").unwrap();
    fails("node power set n1 --file none.toml", 1);
    fails("node power set n9 --file methods.toml", 3);
    ok("node power contact n1 --tech tech@site-a");
    assert_eq!(ok("node power show n1")["tech"], "tech@site-a");
    assert_eq!(ok("node power-status n1")["state"], "on");

    let both = run(folder, &format!("node power-status n2 n1 --central {url}"));
    assert_eq!((both.status.code(), both.stdout.starts_with(b"n1: on")), (Some(1), true));

    // Waits for the node, and for nothing else.
    let mut line = command(folder, &format!("node power-cycle n1 --wait --json --central {url}"));
    let waiting = line.args(["--reason", "hangs since noon"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let log = || ok("node power log n1");
    let begun = Instant::now();
    while log()[0]["result"] != "unconfirmed" {
        assert!(begun.elapsed() < Duration::from_secs(120), "{}", log());
        std::thread::sleep(Duration::from_millis(50));
    }
    contact(&node, "b2");
    let output = waiting.wait_with_output().unwrap();
    assert!(output.status.success());
    let done: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&done["result"], &done["reason"], &done["who"]),
        (&json!("confirmed"), &json!("hangs since noon"), &json!("first"))
    );
    let people = run(folder, &format!("node power log --central {url}"));
    let people = String::from_utf8(people.stdout).unwrap();
    assert!(people.contains("hangs since noon") && people.contains("confirmed"), "{people}");
    ok("node power-off n1 --reason moved --wait");
    assert_eq!(ok("node power-status n1")["state"], "off");
    fails("node power-on n1 --reason back --wait --confirm-within 1s", 1);
    assert_eq!(log()[0]["result"], "expired");

    // Tests and the report.
    assert_eq!(ok("power test n1")[0]["standing"], "works");
    fs::write(power.join("relay.broken"), "").unwrap();
    assert!(fails("power test", 1)["message"].as_str().unwrap().contains("1 of 1"));
    let report = ok("power report");
    assert_eq!((&report[0]["standing"], &report[1]["standing"]), (&json!("would-fail"), &json!("no-method")));
    ok("power schedule --every 7d");
    assert_eq!(fails("power policy set --silent-after 1m", 3)["error"], "bad-request");
    assert_eq!(fails("power policy set --notify tell", 3)["error"], "bad-request");
    ok("power policy set --ladder on --escalation on --max-at-once 1");
    let policy = ok("power policy show");
    assert_eq!(
        (&policy["ladder"], &policy["test_every"], &policy["max_at_once"]),
        (&json!(true), &json!(604_800), &json!(1))
    );
    ok("power schedule --every off");
    assert_eq!(ok("power policy show")["test_every"], Value::Null);
    assert_eq!(ok("power ladder")["records"], json!([]));
    assert_eq!((ok("power records"), ok("power events")), (json!([]), json!([])));
    ok("node power hold n1 --reason bench");
    assert_eq!(ok("node power show n1")["held"], "bench");
    ok("node power release n1");
    ok("node power clear n1");
    assert_eq!(ok("node power show n1")["methods"], json!([]));
    for people in ["power report", "power policy show", "power ladder", "power records", "node power show n1"] {
        let output = run(folder, &format!("{people} --central {url}"));
        assert!(output.status.success() && !output.stdout.is_empty(), "{people}");
    }
    let by_node = node.send(Method::PUT, "/v1/power/policy", &policy);
    assert!(matches!(by_node, Err(TransportError::Refused { status: 403, .. })));
}
