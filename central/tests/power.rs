//! Remote power, with the real program, the real client, and relays that are scripts.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use axum::http::Method;
use orrery_central::{InitOptions, init, operators};
use orrery_central_api::{
    LadderStanding, NewNode, NewPowerOperation, NodeDetail, NodePower, PowerAction, PowerContacts, PowerEvent,
    PowerHold, PowerMethods, PowerOperation, PowerOutcome, PowerPolicy, PowerReport, PowerResult, PowerStanding,
    PowerStateRead, PowerTestRequest, PowerTestsAsked, Rung, ScriptRecord,
};
use orrery_protocol::{BootScript, BootState, Facts, NodeStatus, PayloadType, RunLevel, ScriptKind, SigningKey, sign};
use orrery_transport::{Client, Identity, Resolver, TransportError};
use rcgen::KeyPair;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// Longer than any wait of a test, on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(120);

/// A relay that remembers what it was told. While `stuck-on` is there, it hangs when it is to turn on, and fails after that.
const RELAY: &str = r#"
read -r password
echo "$1" >> "$0.calls"
test ! -e "$0.broken" || { echo "no relay" >&2; exit 1; }
case $1 in
status) cat "$0.state" ;;
on)
    if test -e "$0.stuck"; then
        while test -e "$0.stuck"; do sleep 0.02; done
        exit 1
    fi
    echo on > "$0.state" ;;
off) echo off > "$0.state" ;;
test) echo "outlet $PCU_OUTLET, password of ${#password}" ;;
esac
"#;

/// A central of its own process, in a folder of its own.
struct Central {
    folder: tempfile::TempDir,
    child: Child,
    url: String,
    operator: Client,
}

impl Central {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        init(&InitOptions { data: data.clone(), hosts: vec!["127.0.0.1".to_owned()], port: 1 }).unwrap();
        // Run by its interpreter: a script that this process wrote could still be open in a child of another test's.
        symlink("/bin/sh", data.join("power/sh")).unwrap();
        Self::serve(folder)
    }

    fn serve(folder: tempfile::TempDir) -> Self {
        let data = folder.path().join("data");
        let mut child = Command::new(env!("CARGO_BIN_EXE_orrery-central"))
            .args(["--json", "serve", "--log", "error", "--listen", "127.0.0.1:0", "--data"])
            .arg(&data)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line).unwrap();
        let url = said["listening"].as_str().unwrap().to_owned();
        let key = fs::read_to_string(data.join("operator/operator.key")).unwrap();
        let ca = fs::read_to_string(data.join("operator/ca.pem")).unwrap();
        let operator = Client::new(&url, &ca, &Identity::from_pem(&key).unwrap(), Resolver::System).unwrap();
        Self { folder, child, url, operator }
    }

    /// The same central after a crash, or after its end.
    fn crashed(mut self) -> Self {
        // It may have ended by itself.
        let _ = self.child.kill();
        self.child.wait().unwrap();
        Self::serve(std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap()))
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn client(&self, key: &str) -> Client {
        let ca = fs::read_to_string(self.data().join("operator/ca.pem")).unwrap();
        Client::new(&self.url, &ca, &Identity::from_pem(key).unwrap(), Resolver::System).unwrap()
    }

    /// A node, and its key.
    fn node(&self, id: &str) -> (Client, String) {
        let key = KeyPair::generate().unwrap().serialize_pem();
        let node = NewNode {
            id: id.to_owned(),
            name: String::new(),
            spki: Identity::from_pem(&key).unwrap().spki_sha256(),
            groups: Vec::new(),
            boot_state: BootState::Boot,
        };
        let _: NodeDetail = self.operator.exchange(Method::POST, "/v1/nodes", &node).unwrap();
        (self.client(&key), key)
    }

    /// A node that a relay switches, and where the relay's files begin.
    fn with_relay(&self, id: &str) -> (Client, String, PathBuf) {
        let (node, key) = self.node(id);
        let relay = self.data().join("power").join(format!("relay-{id}"));
        fs::write(&relay, RELAY).unwrap();
        fs::write(relay.with_extension("state"), "on\n").unwrap();
        let method = json!({ "driver": "command", "address": id, "outlet": "7", "run": ["sh", relay] });
        self.set_methods(id, &[method]).unwrap();
        (node, key, relay)
    }

    fn set_methods(&self, id: &str, methods: &[Value]) -> Result<(), TransportError> {
        let methods = PowerMethods { methods: methods.to_vec() };
        self.operator.send(Method::PUT, &format!("/v1/nodes/{id}/power"), &methods)
    }

    fn ask(&self, id: &str, action: PowerAction, confirm_within: u64) -> Result<PowerOperation, TransportError> {
        let new = NewPowerOperation { action, reason: "hangs".to_owned(), confirm_within };
        self.operator.exchange(Method::POST, &format!("/v1/nodes/{id}/power/operations"), &new)
    }

    fn operation(&self, id: u64) -> PowerOperation {
        self.operator.get(&format!("/v1/power/operations/{id}")).unwrap()
    }

    /// Waits until an operation stands like this.
    #[track_caller]
    fn until(&self, id: u64, result: PowerResult) -> PowerOperation {
        let start = Instant::now();
        loop {
            let operation = self.operation(id);
            if operation.result == result {
                return operation;
            }
            assert!(start.elapsed() < PATIENCE, "never {result:?}: {operation:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn state(&self, id: &str) -> Result<PowerStateRead, TransportError> {
        self.operator.get(&format!("/v1/nodes/{id}/power/state"))
    }

    fn report(&self) -> Vec<PowerReport> {
        self.operator.get("/v1/power/report").unwrap()
    }

    fn ladder(&self) -> LadderStanding {
        self.operator.get("/v1/power/ladder").unwrap()
    }

    fn set_policy(&self, policy: &PowerPolicy) -> Result<(), TransportError> {
        self.operator.send(Method::PUT, "/v1/power/policy", policy)
    }

    /// Changes what central knows, as time would.
    fn turn_back(&self, sql: &str) {
        let db = rusqlite::Connection::open(self.data().join("central.db")).unwrap();
        db.busy_timeout(PATIENCE).unwrap();
        db.execute_batch(sql).unwrap();
    }
}

impl Drop for Central {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn contact(node: &Client, id: &str, boot: &str) {
    let facts = Facts { node: id.to_owned(), boot_id: boot.to_owned(), ..Facts::default() };
    match node.post_for_bytes("/v1/node/contact", &facts, 1 << 20) {
        Ok(_) | Err(TransportError::Refused { status: 404, .. }) => {}
        Err(error) => panic!("{error}"),
    }
}

fn status(node: &Client, boot: &str) {
    let status = NodeStatus {
        boot_id: boot.to_owned(),
        run_level: RunLevel::Running,
        release: "0.1.0".to_owned(),
        slot: "a".to_owned(),
        offline: None,
        ssh_host_key: String::new(),
        slivers: Vec::new(),
    };
    node.send(Method::POST, "/v1/node/status", &status).unwrap();
}

#[track_caller]
fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn calls(relay: &std::path::Path) -> Vec<String> {
    let text = fs::read_to_string(relay.with_extension("calls")).unwrap_or_default();
    text.lines().filter(|call| *call != "status").map(str::to_owned).collect()
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, TransportError>, expect: (u16, &str)) -> String {
    match result {
        Err(TransportError::Refused { status, class, message, .. }) => {
            assert_eq!((status, class.as_str()), expect);
            message
        }
        other => panic!("expected {expect:?}, got {other:?}"),
    }
}

#[test]
fn a_power_cycle_is_confirmed_by_a_call_home_alone() {
    let central = Central::start();
    refused(central.ask("n1", PowerAction::Cycle, 60), (404, "not-found"));
    let (bare, _) = central.node("n0");
    refused(central.ask("n0", PowerAction::Cycle, 60), (409, "no-power-method"));
    let (node, _, relay) = central.with_relay("n1");
    contact(&node, "n1", "b1");
    status(&node, "b1");
    let new = NewPowerOperation { action: PowerAction::Off, reason: "x".to_owned(), confirm_within: 60 };
    let by_node: Result<PowerOperation, _> = bare.exchange(Method::POST, "/v1/nodes/n1/power/operations", &new);
    refused(by_node, (403, "forbidden"));
    for (reason, confirm_within) in [("", 60), ("a\nb", 60), ("x", 0), ("x", 1 << 40)] {
        let new = NewPowerOperation { reason: reason.to_owned(), confirm_within, ..new.clone() };
        let asked: Result<PowerOperation, _> =
            central.operator.exchange(Method::POST, "/v1/nodes/n1/power/operations", &new);
        refused(asked, (400, "bad-request"));
    }
    assert_eq!(calls(&relay), [""; 0]);

    let asked = central.ask("n1", PowerAction::Cycle, 3600).unwrap();
    assert_eq!((asked.who.as_str(), asked.reason.as_str(), asked.result), ("first", "hangs", PowerResult::Pending));
    refused(central.ask("n1", PowerAction::On, 60), (409, "power-busy"));
    let done = central.until(asked.id, PowerResult::Unconfirmed);
    assert_eq!(done.outcome, Some(PowerOutcome::Changed));
    assert_eq!((done.attempts.len(), done.confirm_by), (1, done.finished.map(|at| at + 3600)));
    assert_eq!(calls(&relay), ["off", "on"]);
    // The boot that is known is not the one that is awaited.
    status(&node, "b1");
    contact(&node, "n1", "b1");
    assert_eq!(central.operation(asked.id).result, PowerResult::Unconfirmed);
    contact(&node, "n1", "b2");
    let confirmed = central.operation(asked.id);
    assert_eq!((confirmed.result, confirmed.confirmed.is_some()), (PowerResult::Confirmed, true));
    let log: Vec<PowerOperation> = central.operator.get("/v1/nodes/n1/power/operations").unwrap();
    assert_eq!(log, [confirmed]);

    // Another operator's name; a node that does not come back; a reset; one that started without central.
    let folder = central.folder.path().join("ann");
    operators::add(&central.data(), "ann", 1, &folder).unwrap();
    let ann = central.client(&fs::read_to_string(folder.join("operator.key")).unwrap());
    let new = NewPowerOperation { action: PowerAction::Reset, reason: "again".to_owned(), confirm_within: 1 };
    let asked: PowerOperation = ann.exchange(Method::POST, "/v1/nodes/n1/power/operations", &new).unwrap();
    assert_eq!(asked.who, "ann");
    assert_eq!(central.until(asked.id, PowerResult::Expired).outcome, Some(PowerOutcome::Accepted));
    contact(&node, "n1", "b3");
    assert_eq!(central.operation(asked.id).result, PowerResult::Expired);
    let first = central.ask("n1", PowerAction::Reset, 3600).unwrap().id;
    central.until(first, PowerResult::Unconfirmed);
    let second = central.ask("n1", PowerAction::Reset, 3600).unwrap().id;
    central.until(second, PowerResult::Unconfirmed);
    status(&node, "b4");
    assert_eq!(central.operation(second).result, PowerResult::Confirmed);
    assert_eq!(central.operation(first).result, PowerResult::Superseded);
}

#[test]
fn off_is_confirmed_by_the_device_and_failures_say_what_was_tried() {
    let central = Central::start();
    let (_, _, relay) = central.with_relay("n1");
    assert_eq!(central.state("n1").unwrap().state, "on");
    let off = central.ask("n1", PowerAction::Off, 60).unwrap().id;
    let done = central.until(off, PowerResult::Confirmed);
    assert_eq!((done.outcome, done.confirm_by), (Some(PowerOutcome::Changed), None));
    assert_eq!(central.state("n1").unwrap().state, "off");
    let on = central.ask("n1", PowerAction::On, 3600).unwrap().id;
    central.until(on, PowerResult::Unconfirmed);
    let on = central.ask("n1", PowerAction::On, 3600).unwrap().id;
    assert_eq!(central.until(on, PowerResult::Confirmed).outcome, Some(PowerOutcome::Already));

    fs::write(relay.with_extension("broken"), "").unwrap();
    let failed = central.ask("n1", PowerAction::Cycle, 3600).unwrap().id;
    let done = central.until(failed, PowerResult::Failed);
    let failure = done.attempts.last().unwrap().failure.clone().unwrap();
    assert_eq!((failure.class.as_str(), done.method), ("refused", None));
    assert!(failure.message.contains("no relay"), "{failure:?}");
    let said = refused(central.state("n1"), (502, "power-failed"));
    assert!(said.contains("no relay"), "{said}");

    // By the next method, then.
    let spare = central.data().join("power/spare");
    fs::write(&spare, RELAY).unwrap();
    fs::write(spare.with_extension("state"), "on\n").unwrap();
    let method = |file: &PathBuf| json!({ "driver": "command", "address": "n1", "run": ["sh", file] });
    central.set_methods("n1", &[method(&relay), method(&spare)]).unwrap();
    let off = central.ask("n1", PowerAction::Off, 60).unwrap().id;
    assert_eq!(central.until(off, PowerResult::Confirmed).attempts.len(), 2);
    assert_eq!(calls(&spare), ["off"]);
    central.operator.call(Method::DELETE, "/v1/nodes/n1/power").unwrap();
    refused(central.state("n1"), (409, "no-power-method"));
}

#[test]
fn a_central_that_is_killed_in_the_middle_leaves_no_node_without_power() {
    let central = Central::start();
    let (_, key, relay) = central.with_relay("n1");
    fs::write(relay.with_extension("stuck"), "").unwrap();
    let cycle = central.ask("n1", PowerAction::Cycle, 3600).unwrap().id;
    wait_for("off, and stuck", || calls(&relay) == ["off", "on"]);
    let central = central.crashed();
    let operation = central.operation(cycle);
    assert_eq!((operation.result, operation.finished), (PowerResult::Unknown, None));
    assert!(operation.note.unwrap().starts_with("central was stopped"));
    wait_for("asked to turn on once more", || calls(&relay) == ["off", "on", "on"]);
    assert_eq!(fs::read_to_string(relay.with_extension("state")).unwrap(), "off\n");
    // This fails, too; the next try does not.
    fs::remove_file(relay.with_extension("stuck")).unwrap();
    wait_for("on again", || fs::read_to_string(relay.with_extension("state")).unwrap() == "on\n");
    wait_for("noted", || central.operation(cycle).note.unwrap().ends_with("on again"));
    assert_eq!(central.operation(cycle).result, PowerResult::Unknown);
    contact(&central.client(&key), "n1", "b9");
    assert_eq!(central.operation(cycle).result, PowerResult::Confirmed);
}

#[test]
fn a_central_that_is_stopped_in_order_ends_what_it_began() {
    let mut central = Central::start();
    let (_, _, relay) = central.with_relay("n1");
    let cycle = central.ask("n1", PowerAction::Cycle, 3600).unwrap().id;
    wait_for("off", || calls(&relay) == ["off"]);
    kill_process(Pid::from_child(&central.child), Signal::TERM).unwrap();
    assert!(central.child.wait().unwrap().success());
    assert_eq!(fs::read_to_string(relay.with_extension("state")).unwrap(), "on\n");
    let central = central.crashed();
    assert_eq!(central.operation(cycle).result, PowerResult::Unconfirmed);
}

#[test]
fn tests_say_whose_power_could_not_be_switched() {
    let central = Central::start();
    let (_, _, _) = central.with_relay("n1");
    let (_, _, broken) = central.with_relay("n2");
    fs::write(broken.with_extension("broken"), "").unwrap();
    central.node("n3");
    let (_, _, late) = central.with_relay("n4");
    let methods: NodePower = central.operator.get("/v1/nodes/n4/power").unwrap();
    let secret = central.data().join("power/n4.secret");
    fs::write(&secret, "s3cr3t-word\n").unwrap();
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let mut method = methods.methods[0].clone();
    method["password"] = json!({ "file": "n4.secret" });
    central.set_methods("n4", &[method.clone()]).unwrap();
    for wrong in [json!({ "file": "/etc/hostname" }), json!({ "file": "../ca.key" }), json!({ "env": "HOME" })] {
        method["password"] = wrong;
        refused(central.set_methods("n4", &[method.clone()]), (400, "bad-request"));
    }
    refused(central.set_methods("n4", &[json!({ "driver": "command", "run": ["/bin/sh"] })]), (400, "bad-request"));

    let standing = || central.report().iter().map(|node| node.standing).collect::<Vec<_>>();
    use PowerStanding::{NoMethod, Untested, Works, WouldFail};
    assert_eq!(standing(), [Untested, Untested, NoMethod, Untested]);
    let test = |nodes: &[&str]| -> Result<PowerTestsAsked, _> {
        let nodes = nodes.iter().map(|&node| node.to_owned()).collect();
        central.operator.exchange(Method::POST, "/v1/power/tests", &PowerTestRequest { nodes })
    };
    refused(test(&["n1", "n3"]), (409, "no-power-method"));
    assert_eq!(test(&["n1", "n2"]).unwrap().nodes, ["n1", "n2"]);
    wait_for("tested", || standing() == [Works, WouldFail, NoMethod, Untested]);
    let report = central.report();
    assert!(report[1].tests[0].failure.as_ref().unwrap().message.contains("no relay"), "{:?}", report[1]);
    assert!(report[0].tested.is_some() && report[3].tested.is_none());

    // What nobody asked for is tested on schedule, and nothing was switched.
    central.set_policy(&PowerPolicy { test_every: Some(3600), ..PowerPolicy::default() }).unwrap();
    wait_for("tested on schedule", || standing() == [Works, WouldFail, NoMethod, Works]);
    assert_eq!(calls(&late), ["test"]);
    let proof = &central.report()[3].tests[0].proofs[0];
    assert!(proof.contains("outlet 7, password of 11"), "{proof}");
    let shown = serde_json::to_string(&central.report()).unwrap()
        + &central.operator.get::<Value>("/v1/nodes/n4/power").unwrap().to_string();
    assert!(!shown.contains("s3cr3t-word"));
    let first = central.report()[0].tested.unwrap();
    central.turn_back("UPDATE power SET tested = tested - 3600 WHERE node = 'n1'");
    wait_for("tested again", || central.report()[0].tested.is_some_and(|tested| tested >= first));
}

#[test]
fn a_dead_node_climbs_and_an_outage_switches_nothing() {
    let central = Central::start();
    let (node, _, relay) = central.with_relay("n1");
    let others: Vec<_> = ["n2", "n3", "n4", "n5"].map(|id| central.with_relay(id)).into();
    contact(&node, "n1", "b1");
    for (n, (other, _, _)) in others.iter().enumerate() {
        contact(other, &format!("n{}", n + 2), "b1");
    }
    let safe = safe_script(&central);
    let policy = PowerPolicy { ladder: true, notify: Some("tell".to_owned()), ..PowerPolicy::default() };
    refused(central.set_policy(&PowerPolicy { silent_after: 60, ..policy.clone() }), (400, "bad-request"));
    refused(central.set_policy(&policy), (400, "bad-request"));
    let tell = central.data().join("power/tell");
    let write = "printf '#!/bin/sh\\ncat >> \"$0.got\"\\n' > \"$1\" && chmod 755 \"$1\"";
    assert!(Command::new("sh").args(["-c", write, "sh"]).arg(&tell).status().unwrap().success());
    central.set_policy(&policy).unwrap();
    let contacts = PowerContacts { tech: Some("tech@site-a".to_owned()), pi: None };
    central.operator.send(Method::PUT, "/v1/nodes/n1/power/contacts", &contacts).unwrap();

    // Each change of the policy has central look at once.
    let look = || central.set_policy(&policy).unwrap();
    let asked = || -> Vec<(String, PowerAction)> {
        let all: Vec<PowerOperation> = central.operator.get("/v1/power/operations").unwrap();
        assert!(all.iter().all(|operation| operation.who == "central (ladder)"), "{all:?}");
        all.into_iter().rev().map(|operation| (operation.node, operation.action)).collect()
    };
    central.turn_back("UPDATE nodes SET last_seen = last_seen - 2000 WHERE id = 'n1'");
    look();
    // It has not listened for long enough.
    wait_for("holding", || central.ladder().holding.is_some());
    assert_eq!((asked(), central.ladder().records), (Vec::new(), Vec::new()));
    let listened = "UPDATE power_settings SET value = '1' WHERE name = 'calm-since'";
    central.turn_back(listened);
    let n1 = "n1".to_owned();
    let rungs =
        [(Rung::Reset, PowerAction::Reset), (Rung::Cycle, PowerAction::Cycle), (Rung::Safe, PowerAction::Cycle)];
    for (count, (rung, _)) in rungs.iter().enumerate() {
        // First the record, then the rung.
        let expect: Vec<_> = rungs[..=count].iter().map(|(_, action)| (n1.clone(), *action)).collect();
        wait_for("the rung", || {
            look();
            central.ladder().records.first().is_some_and(|record| record.rung == Some(*rung))
        });
        assert_eq!(asked(), expect);
        let last: Vec<PowerOperation> = central.operator.get("/v1/power/operations?limit=1").unwrap();
        central.until(last[0].id, PowerResult::Unconfirmed);
        // Not before its time.
        look();
        look();
        assert_eq!(asked(), expect);
        if *rung < Rung::Safe {
            central.turn_back("UPDATE power_operations SET confirm_by = 1; UPDATE power_records SET rung_at = 1");
            central.until(last[0].id, PowerResult::Expired);
        }
    }
    assert_eq!(calls(&relay), ["reset", "off", "on", "off", "on"]);
    // It comes back, into safe mode, once.
    let facts = Facts { node: n1.clone(), boot_id: "b2".to_owned(), ..Facts::default() };
    assert_eq!(node.post_for_bytes("/v1/node/contact", &facts, 1 << 20).unwrap(), safe);
    wait_for("closed", || {
        look();
        central.ladder().records.is_empty()
    });

    // All fall silent: central's network, and not the nodes.
    central.turn_back("UPDATE nodes SET last_seen = last_seen - 4000");
    look();
    wait_for("holding", || central.ladder().holding.is_some_and(|why| why.starts_with("no node is heard")));
    // Most of them come back: those that do not yet are no less well.
    for (n, (other, _, _)) in others.iter().enumerate().take(3) {
        contact(other, &format!("n{}", n + 2), "b1");
    }
    wait_for("listening", || {
        look();
        central.ladder().holding.is_some_and(|why| why.starts_with("listening"))
    });
    assert_eq!(asked().len(), rungs.len());
    // Who is held, is switched off, or is in another state, is left alone even then.
    let hold = PowerHold { reason: Some("at the bench".to_owned()) };
    central.operator.send(Method::PUT, "/v1/nodes/n1/power/hold", &hold).unwrap();
    let change = orrery_central_api::BootStateChange { boot_state: BootState::Disabled, once: false };
    central.operator.send(Method::PUT, "/v1/nodes/n5/boot-state", &change).unwrap();
    central.turn_back(listened);
    wait_for("calm", || {
        look();
        central.ladder().holding.is_none()
    });
    look();
    assert_eq!((asked().len(), central.ladder().records), (rungs.len(), Vec::new()));

    let events: Vec<PowerEvent> = central.operator.get("/v1/power/events").unwrap();
    let kinds: Vec<_> = events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["down", "ladder", "ladder", "ladder", "closed", "holding", "calm"]);
    wait_for("told of all", || {
        let got = fs::read_to_string(tell.with_extension("got")).unwrap_or_default();
        let told: Vec<PowerEvent> = got.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        told == events
    });
    assert_eq!(events[0].contacts, contacts);
}

/// A published script for safe mode.
fn safe_script(central: &Central) -> Vec<u8> {
    let script = BootScript {
        version: 1,
        kind: ScriptKind::Safe,
        nodes: vec!["*".to_owned()],
        serial: 1,
        issued: 0,
        expires: u64::MAX >> 1,
        release: None,
        ssh_keys: Vec::new(),
        networks: Vec::new(),
        mirrors: Vec::new(),
        waivers: Vec::new(),
    };
    let key = SigningKey::from_scalar(&[7; 32]).unwrap();
    let envelope = sign(PayloadType::BootScript, &script.encode().unwrap(), &[&key]).unwrap();
    let _: ScriptRecord = central.operator.put_bytes("/v1/scripts", &envelope).unwrap();
    envelope
}
