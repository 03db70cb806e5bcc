//! The command as an operator types it, against a real central: from nothing to a served install script.

mod image;
mod power;
mod slivers;
mod support;

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use orrery_protocol::{
    BootScript, Digest, EnrolRequest, Enrolled, Event, EventBatch, Extras, Facts, LogBatch, NodeConfig, NodeStatus,
    Outcome, RecoveryKey, Restart, RunLevel, ScriptContext, ScriptKind, Service, Startup, WantedState,
};
use orrery_transport::{Client, Identity, Method, Resolver};
use serde_json::{Value, json};

use support::{Served, at_a_terminal, check, command, config, images, run};

#[test]
fn from_nothing_to_a_served_install_script() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path();
    let central = Served::start(folder);
    let url = central.url.clone();
    images(folder);
    fs::write(folder.join("user.pub"), "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA user@home\n").unwrap();
    let ok = |line: &str| check(folder, &format!("{line} --central {url}"), 0);

    ok("keys new --out release.key");
    ok("release assemble --images images --out release");
    ok("release sign --key release.key release/manifest.json");
    ok("release publish release/manifest.signed");
    ok(
        "node add n1 --name First --out n1.toml --release-key release.key.pub --admin-key user.pub --admin-network 192.0.2.0/24,::1/128 --group spares --disk-min 1G --wipe",
    );
    ok("script new --kind install --release release/manifest.signed --node * --serial 3 --expires 30d --out i.json");
    ok("script sign --key release.key --out i.signed i.json");
    ok("script publish i.signed");
    ok(
        "slice add demo/one --key user.pub --rspec mem_limit=64M,pids_limit=64 --device fuse --nesting on --node n1 --service",
    );
    fs::write(folder.join("init.sh"), "#!/bin/sh\n").unwrap();
    ok("slice set demo/one --initscript init.sh --service-restart on-failure");

    // What the node makes of it.
    let text = fs::read_to_string(folder.join("n1.toml")).unwrap();
    let config = config(folder, "n1.toml");
    assert_eq!((config.groups.as_slice(), config.admin_networks.len()), (&["spares".to_owned()][..], 2));
    let recovery: RecoveryKey = fs::read_to_string(folder.join("n1.toml.recovery")).unwrap().trim().parse().unwrap();
    assert!(recovery.is(&config.recovery.unwrap()));
    assert_eq!((config.install.disk.min_bytes, config.install.wipe), (Some(1 << 30), true));
    let node = central.node(&config);
    let facts = Facts { node: "n1".to_owned(), boot_id: "b1".to_owned(), ..Facts::default() };
    let envelope = node.post_for_bytes("/v1/node/contact", &facts, 1 << 20).unwrap();
    let context = ScriptContext { node: "n1", groups: &[], now: 1_800_000_000, accepted: &[] };
    // Judged at a time that the script covers, whatever the clock of this machine says.
    let issued = check(folder, "script show i.signed", 0)["script"]["issued"].as_u64().unwrap();
    let context = ScriptContext { now: issued, ..context };
    let script = BootScript::open(&envelope, &config.trust_root(), &context).unwrap();
    assert_eq!((script.kind, script.serial), (ScriptKind::Install, 3));
    let wanted: WantedState = node.get("/v1/node/wanted").unwrap();
    assert_eq!(wanted.slivers[0].rspec.mem_limit, 64 << 20);
    let service = Service { command: Vec::new(), restart: Restart::OnFailure };
    let startup = Startup { initscript: Some("#!/bin/sh\n".into()), service: Some(service) };
    assert_eq!(wanted.slivers[0].startup, startup);
    ok("slice set demo/one --no-initscript --no-service");
    assert_eq!(ok("slice show demo/one")["startup"], json!({}));
    assert_eq!(wanted.slivers[0].rspec.extras, Extras { fuse: true, tun: false, nesting: true });
    ok("slice set demo/one --device none");
    let wanted: WantedState = node.get("/v1/node/wanted").unwrap();
    assert_eq!(wanted.slivers[0].rspec.extras, Extras { nesting: true, ..Extras::default() });

    // What the operator sees, and what is refused.
    assert_eq!(ok("node show n1")["run_level"], "installing");
    assert_eq!(ok("node list")[0]["boot_state"], "reinstall");
    ok("node set-state safe n1");
    assert_eq!(ok("node show n1")["boot_state"], "safe");
    assert_eq!(ok("slice show demo/one")["nodes"][0], "n1");
    assert_eq!(ok("script list")[0]["serial"], 3);
    assert_eq!(ok("release list")[0]["manifest"]["release"], "0.1.0");
    let refused = |line: &str, status| check(folder, &format!("{line} --central {url}"), status);
    assert_eq!(refused("node show n2", 3)["error"], "not-found");
    assert_eq!(refused("node add n1 --out again.toml --release-key release.key.pub", 3)["error"], "exists");
    assert!(!folder.join("again.toml").exists());
    refused("node add n2 --out n1.toml --release-key release.key.pub", 1);
    refused("slice add demo/one --key user.pub", 1);
    refused("slice set demo/one --service-restart no", 1);
    let unassigned = refused("slice unassign demo/one --node n7", 1);
    assert_eq!(unassigned["message"], "demo/one has no sliver on `n7`: it has some on n1");
    refused("slice reset demo/one", 2);
    refused("slice reset demo/one --all --node n1", 2);
    ok("slice reset demo/one --all");
    ok("slice reset demo/one --node n1 --yes");
    let asked = |line: &str, answer: &str| at_a_terminal(folder, &format!("{line} --central {url}"), answer, None);
    for line in ["node set-state reinstall n1", "slice unassign demo/one --node n1", "slice remove demo/one"] {
        let (status, shown) = asked(line, "y\n");
        assert!(status == Some(1) && shown.contains("n1") && shown.contains("nothing was done"), "{line}: {shown}");
    }
    assert_eq!(ok("node show n1")["boot_state"], "safe");
    assert_eq!(ok("slice show demo/one")["nodes"][0], "n1");
    assert_eq!(asked("slice unassign demo/one --node n1 --yes", "").0, Some(0));
    assert_eq!(asked("slice remove demo/one", "yes\n").0, Some(0));
    refused("slice show demo/one", 3);
    refused("slice set demo/one --service --service-run x", 2);
    refused("keys new --out release.key", 1);
    refused("script publish i.json", 1);
    refused("node add n3", 2);
    refused("node add n3 --out n3.toml --release-key release.key.pub --admin-key user.pub", 2);
    refused("script new --kind safe --node * --out s.json", 2);
    ok("node set-state --once safe n1");
    assert_eq!(ok("node show n1")["once"]["boot_state"], "safe");
    drop(central);
    assert_eq!(refused("node list", 4)["error"], "unreachable");
    assert_eq!(fs::read_to_string(folder.join("n1.toml")).unwrap(), text);
}

#[test]
fn trust_moves_on_by_signed_files() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path();
    let central = Served::start(folder);
    let ok = |line: &str| check(folder, &format!("{line} --central {}", central.url), 0);
    let refused = |line: &str, status| check(folder, &format!("{line} --central {}", central.url), status);
    for key in ["a.key", "b.key", "c.key"] {
        ok(&format!("keys new --out {key}"));
    }
    ok("node add n1 --out n1.toml --release-key a.key.pub --release-key b.key.pub --release-threshold 2");
    let new_ca = orrery_central::new_authority(&folder.join("data")).unwrap();
    let (new_ca, old_ca) = (new_ca.display(), folder.join("data/ca.pem"));
    refused(&format!("trust new --from n1.toml --release-key c.key.pub --threshold 2 --out no.json --ca {new_ca}"), 1);
    ok(&format!(
        "trust new --from n1.toml --release-key b.key.pub --release-key c.key.pub --threshold 2 --out one.json --ca {} --ca \
         {new_ca}",
        old_ca.display()
    ));
    // One person after the other, each with a file that the one before made.
    ok("sign --key a.key --out one.a one.json");
    ok("sign --key b.key --out one.ab one.a");
    refused("sign --key b.key --out again one.ab", 1);
    refused("trust verify --from n1.toml one.ab", 1);
    assert_eq!(refused("trust publish one.ab", 3)["error"], "not-signed");
    ok("sign --key c.key --out one.signed one.ab");
    assert_eq!(ok("trust verify --from n1.toml one.signed")["serial"], 1);
    assert_eq!(ok("trust publish one.signed")["update"]["serial"], 1);
    assert_eq!(ok("keys show b.key.pub")[0]["id"], ok("trust verify --from n1.toml one.signed")["keys"][0]);
    assert_eq!(ok("trust adopt --from n1.toml")["serial"], 1);

    // What too few have signed is refused before a node sees it.
    ok("script new --kind safe --node * --network 192.0.2.0/24 --out safe.json");
    ok("sign --key b.key --out safe.b safe.json");
    assert_eq!(refused("script publish safe.b", 3)["error"], "not-signed");
    ok("sign --key c.key --out safe.signed safe.b");
    ok("script publish safe.signed");

    // The server changes over to the new authority, which the operator has adopted.
    ok(&format!(
        "trust new --from one.signed --release-key b.key.pub --release-key c.key.pub --threshold 2 --out two.json --ca {new_ca}"
    ));
    ok("sign --key b.key --key c.key --out two.signed two.json");
    ok("trust publish two.signed");
    assert_eq!(ok("trust adopt --from n1.toml")["serial"], 2);
    assert_eq!(ok("node list")[0]["id"], "n1");
    // Somebody who missed it has the files.
    fs::copy(&old_ca, folder.join("data/operator/ca.pem")).unwrap();
    assert_eq!(refused("node list", 4)["error"], "unreachable");
    ok("trust adopt --from n1.toml one.signed two.signed");
    ok("node list");
}

#[test]
fn machines_enrol_and_keys_are_renewed() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path();
    let central = Served::start(folder);
    let ok = |line: &str| check(folder, &format!("{line} --central {}", central.url), 0);
    ok("keys new --out a.key");
    let token = ok("enrol new --node n1 --group spares --expires 7d")["token"].as_str().unwrap().to_owned();
    ok(&format!("enrol config --out public.toml --release-key a.key.pub --token {token}"));
    let public = config(folder, "public.toml");
    assert!(public.must_enrol() && public.id.is_empty());
    assert_eq!(ok("enrol list")[0]["standing"], "open");

    ok("node add n2 --out n2.toml --release-key a.key.pub");
    let old = config(folder, "n2.toml");
    // The key of a node that is none yet: any will do.
    fs::rename(folder.join("n2.toml"), folder.join("old.toml")).unwrap();
    let enrolled = {
        let identity = Identity::from_pem(&old.key).unwrap();
        let client = Client::new(&central.url, &old.central.ca, &identity, Resolver::System).unwrap();
        let request = EnrolRequest { token: token.clone(), facts: Facts::default() };
        client.exchange::<Enrolled>(Method::POST, "/v1/enrol", &request)
    };
    assert!(enrolled.is_err(), "the key of n2 is not that of n1: {enrolled:?}");
    ok("enrol revoke n1");
    assert_eq!(ok("enrol list")[0]["standing"], "revoked");

    let renewed = ok("node renew n2 --from old.toml --out n2.toml --grace 1d");
    let new = config(folder, "n2.toml");
    assert_eq!((new.id.as_str(), new.key == old.key), ("n2", false));
    let (created, ends) = (&renewed["keys"][1]["replaced"], &renewed["keys"][1]["ends"]);
    assert_eq!(ends.as_u64().unwrap() - created.as_u64().unwrap(), 86_400);
    let facts = Facts { node: "n2".to_owned(), boot_id: "b1".to_owned(), ..Facts::default() };
    let contact = |config: &NodeConfig| central.node(config).post_for_bytes("/v1/node/contact", &facts, 1 << 20);
    for config in [&new, &old] {
        assert!(contact(config).unwrap_err().to_string().contains("no-script"));
    }
}

#[test]
fn a_release_goes_over_nodes_in_waves_until_one_fails() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path();
    let central = Served::start(folder);
    let ok = |line: &str| check(folder, &format!("{line} --central {}", central.url), 0);
    let refused = |line: &str, status| check(folder, &format!("{line} --central {}", central.url), status);
    images(folder);
    ok("keys new --out a.key");
    ok("release assemble --images images --out release");
    ok("sign --key a.key release/manifest.json");
    ok("release publish release/manifest.signed");
    let nodes = ["n1", "n2", "n3"].map(|id| {
        ok(&format!("node add {id} --out {id}.toml --release-key a.key.pub --state boot --group site"));
        central.node(&config(folder, &format!("{id}.toml")))
    });
    let upgrade = "node upgrade --release 0.1.0 --wave 1,100% --timeout 1s @site";
    // It says how to make the script that is missing.
    let told = refused(upgrade, 1)["message"].to_string();
    assert!(told.contains("orrery script new --kind upgrade"), "{told}");
    ok("script new --kind upgrade --release release/manifest.signed --node n1 --group site --out u.json");
    ok("sign --key a.key --out u.signed u.json");
    ok("script publish u.signed");
    let runs = |node: usize, release: &str| {
        let status = NodeStatus {
            boot_id: "b1".to_owned(),
            run_level: RunLevel::Running,
            release: release.to_owned(),
            slot: "a".to_owned(),
            offline: None,
            ssh_host_key: "ssh-ed25519 AAAA".to_owned(),
            slivers: Vec::new(),
        };
        nodes[node].send(Method::POST, "/v1/node/status", &status).unwrap();
    };
    runs(0, "0.1.0");
    runs(1, "0.0.9");
    runs(2, "0.0.9");
    // The first one is there; the second is started, asked to restart, and is not healthy in time; the third is left alone.
    let stopped = refused(upgrade, 5)["message"].to_string();
    assert!(stopped.contains("stopped at node n2") && stopped.contains("1 nodes were not started"), "{stopped}");
    let states = |id: &str| ok(&format!("node show {id}"))["boot_state"].clone();
    assert_eq!((states("n1"), states("n2"), states("n3")), ("boot".into(), "upgrade".into(), "boot".into()));
    assert_eq!(ok("node show n2")["reboot"], "b1");

    // It comes up on the new release and the last one falls back.
    ok("node set-state boot n2");
    runs(1, "0.1.0");
    let event = Event {
        boot_id: "b2".to_owned(),
        at_ms: 1,
        wall: 1,
        role: "boot".to_owned(),
        stage: "load".to_owned(),
        outcome: Outcome::Failed,
        class: Some("unhealthy".to_owned()),
        message: "release 0.1.0 in slot b fell back: it panicked".to_owned(),
        duration_ms: 1,
    };
    let fall_back = std::thread::scope(|scope| {
        let run = scope.spawn(|| refused(&upgrade.replace("1s", "60s"), 5)["message"].to_string());
        while states("n3") != "upgrade" {
            std::thread::yield_now();
        }
        nodes[2].send(Method::POST, "/v1/node/events", &EventBatch { events: vec![event] }).unwrap();
        run.join().unwrap()
    });
    assert!(fall_back.contains("it panicked"), "{fall_back}");

    // What helps to find out why.
    let lines = vec!["Kernel panic".to_owned()];
    let log = LogBatch { boot_id: "b2".to_owned(), role: "previous".to_owned(), first: 0, lines };
    nodes[2].send(Method::POST, "/v1/node/log", &log).unwrap();
    assert_eq!(ok("node log n3 --previous")["lines"][0], "Kernel panic");
    assert_eq!(ok("node known-hosts n3")[0], "n3 ssh-ed25519 AAAA");
    ok("node bundle n3 --out n3.tar");
    let bundle = fs::read(folder.join("n3.tar")).unwrap();
    let has = |text: &str| bundle.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(has("n3/events.jsonl") && has("Kernel panic") && has("it panicked") && !has("PRIVATE KEY"));
}

#[test]
fn key_files_are_found_among_others() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path();
    check(folder, "keys new --out a.key", 0);
    let tls = rcgen::KeyPair::generate().unwrap();
    fs::write(folder.join("b.pem"), tls.serialize_pem()).unwrap();
    fs::write(folder.join("c.txt"), "no key").unwrap();
    fs::write(folder.join("d.bin"), [0xff; 32]).unwrap();
    fs::create_dir(folder.join("e.key")).unwrap();
    std::os::unix::fs::symlink("nowhere", folder.join("f.key")).unwrap();

    let release = check(folder, "keys show a.key", 0)[0]["id"].clone();
    let spki = Digest::of(&rcgen::PublicKeyData::subject_public_key_info(&tls)).to_string();
    let key =
        |id: &Value, role: &str, path: &str| json!({ "id": id, "algorithm": "ecdsa-p256", "role": role, "path": path });
    let expect = json!([
        key(&release, "release-private", "./a.key"),
        key(&release, "release-public", "./a.key.pub"),
        key(&spki.into(), "tls-private", "./b.pem"),
    ]);
    assert_eq!(check(folder, "keys list", 0), expect);
    assert_eq!(check(folder, "keys list e.key", 0), json!([]));
    check(folder, "keys list missing", 1);
    let people = String::from_utf8(run(folder, "keys list").stdout).unwrap();
    assert!(people.contains("release-private ./a.key\n"), "{people}");
    let secret = fs::read_to_string(folder.join("a.key")).unwrap();
    assert!(!people.contains(secret.trim()) && !expect.to_string().contains(secret.trim()));
}

/// A command that goes on until this is dropped, and the lines it prints.
struct Following {
    child: Child,
    lines: Receiver<String>,
}

impl Following {
    fn start(folder: &Path, line: &str) -> Self {
        let mut child = command(folder, line).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines }
    }

    fn next(&self, within: Duration) -> Option<String> {
        self.lines.recv_timeout(within).ok()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_node_is_watched_grouped_and_asked_to_restart() {
    const PATIENCE: Duration = Duration::from_secs(30);
    let base = tempfile::tempdir().unwrap();
    let folder = base.path();
    let central = Served::start(folder);
    let line = |line: &str| format!("{line} --central {}", central.url);
    let ok = |text: &str| check(folder, &line(text), 0);
    ok("keys new --out a.key");
    ok("node add n1 --out n1.toml --release-key a.key.pub --state boot");
    let node = central.node(&config(folder, "n1.toml"));

    ok("node group n1 site spares");
    assert_eq!(ok("node show n1")["groups"], json!(["site", "spares"]));

    assert_eq!(check(folder, &line("node reboot n1"), 3)["error"], "not-running");
    let status = NodeStatus {
        boot_id: "b1".to_owned(),
        run_level: RunLevel::Running,
        release: "0.1.0".to_owned(),
        slot: "a".to_owned(),
        offline: None,
        ssh_host_key: "ssh-ed25519 AAAA".to_owned(),
        slivers: Vec::new(),
    };
    node.send(Method::POST, "/v1/node/status", &status).unwrap();
    assert_eq!(ok("node reboot n1")["boot_id"], "b1");
    assert_eq!(node.get::<WantedState>("/v1/node/wanted").unwrap().reboot.as_deref(), Some("b1"));

    // What happened before somebody watches is not shown; so things happen until something is.
    let watching = Following::start(folder, &line("node watch"));
    let started = Instant::now();
    let seen = (0..).find_map(|number| {
        assert!(started.elapsed() < PATIENCE, "nothing is shown");
        let event = Event {
            boot_id: "b1".to_owned(),
            at_ms: number,
            wall: 1,
            role: "node".to_owned(),
            stage: "sliver".to_owned(),
            outcome: Outcome::Ok,
            class: None,
            message: format!("event {number}"),
            duration_ms: 1,
        };
        node.send(Method::POST, "/v1/node/events", &EventBatch { events: vec![event] }).unwrap();
        watching.next(Duration::from_millis(200))
    });
    let seen = seen.unwrap();
    assert!(seen.starts_with("n1 ") && seen.contains("event "), "{seen}");

    let send = |first, text: &str| {
        let lines = vec![text.to_owned()];
        let log = LogBatch { boot_id: "b1".to_owned(), role: "node".to_owned(), first, lines };
        node.send(Method::POST, "/v1/node/log", &log).unwrap();
    };
    send(0, "first line");
    let following = Following::start(folder, &line("node log n1 --follow"));
    assert!(following.next(PATIENCE).unwrap().contains("first line"));
    send(1, "second line");
    assert!(following.next(PATIENCE).unwrap().contains("second line"));
}
