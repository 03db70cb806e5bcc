//! The command as an operator types it, against a real central: from nothing to a served install script.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        mpsc::{Receiver, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use orrery_central::{InitOptions, Server, init};
use orrery_protocol::{
    ArtifactRef, ArtifactRole, BootScript, Digest, EnrolRequest, Enrolled, Event, EventBatch, Extras, Facts, LogBatch,
    MinimumHardware, NodeConfig, NodeStatus, Outcome, RecoveryKey, ReleaseArtifact, ReleaseManifest, Restart, RunLevel,
    ScriptContext, ScriptKind, Service, Startup, WantedState,
};
use orrery_sshd::{HostKey, KeyList, Limits, LocalShell, Login, Session, SessionRequest, parse_key, serve_blocking};
use orrery_transport::{Client, Identity, Method, Resolver};
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// `orrery` in `folder` with the words of `line`.
fn command(folder: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orrery"));
    command
        .args(line.split_whitespace())
        .current_dir(folder)
        .env("ORRERY_OPERATOR", folder.join("data/operator"))
        .env_remove("ORRERY_CENTRAL");
    command
}

fn run(folder: &Path, line: &str) -> Output {
    command(folder, line).output().unwrap()
}

#[track_caller]
fn check(folder: &Path, line: &str, status: i32) -> Value {
    let output = run(folder, &format!("{line} --json"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(status), "{line}\n{out}\n{err}");
    let text = if status == 0 { out } else { err };
    // Clap's own messages are for people.
    serde_json::from_str(text.trim()).unwrap_or(Value::Null)
}

/// What a build leaves behind.
fn images(folder: &Path) {
    let artifact = |role, name: &str, path: &str| {
        let (path, content) = (folder.join("images").join(path), name.repeat(2000));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, &content).unwrap();
        let content = ArtifactRef { sha256: Digest::of(content.as_bytes()), size: content.len() as u64 };
        ReleaseArtifact { role, name: name.to_owned(), content, chunks: None, listing: None }
    };
    let manifest = ReleaseManifest {
        version: 1,
        release: "0.1.0".to_owned(),
        cmdline: "quiet".to_owned(),
        artifacts: vec![
            artifact(ArtifactRole::Kernel, "kernel", "node-os/kernel"),
            artifact(ArtifactRole::NodeOs, "nodeos", "node-os/nodeos.img"),
            artifact(ArtifactRole::Image, "debian", "debian.tar.zst"),
        ],
        minimum: MinimumHardware::default(),
    };
    fs::write(folder.join("images/release.json"), manifest.encode().unwrap()).unwrap();
}

/// A central in a folder, which serves until it is dropped.
struct Served {
    url: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    fn start(folder: &Path) -> Self {
        init(&InitOptions { data: folder.join("data"), hosts: vec!["127.0.0.1".to_owned()], port: 1 }).unwrap();
        let server = Server::bind(&folder.join("data"), &["127.0.0.1:0".parse().unwrap()]).unwrap();
        let url = format!("https://{}", server.addresses()[0]);
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(server.run(async move { stopped.await.unwrap_or(()) })).unwrap();
        });
        Self { url, stop: Some(stop), thread: Some(thread) }
    }

    fn node(&self, config: &NodeConfig) -> Client {
        let identity = Identity::from_pem(&config.key).unwrap();
        Client::new(&self.url, &config.central.ca, &identity, Resolver::System).unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn config(folder: &Path, name: &str) -> NodeConfig {
    let path = folder.join(name);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let config: NodeConfig = toml::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    config.check().unwrap();
    config
}

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

#[test]
fn an_image_of_ones_own_goes_into_a_release() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    images(folder);
    fs::create_dir_all(folder.join("tree/bin")).unwrap();
    fs::write(folder.join("tree/bin/tool"), "#!/bin/sh\n").unwrap();
    let made = check(folder, "image import tree --out own.tar.zst", 0);
    assert_eq!((&made["format"], &made["content"]["files"]), (&json!("directory"), &json!(1)), "{made}");
    check(folder, "image import tree --out again.tar.zst", 0);
    let own = fs::read(folder.join("own.tar.zst")).unwrap();
    assert_eq!(own, fs::read(folder.join("again.tar.zst")).unwrap());
    // Nothing is replaced, and nothing is left behind.
    check(folder, "image import tree --out own.tar.zst", 1);
    check(folder, "image import nothing --out other.tar.zst", 1);
    check(folder, "image import tree --limit 1 --out other.tar.zst", 1);
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["again.tar.zst", "images", "own.tar.zst", "tree"]);

    let line = "release assemble --images images --image own=own.tar.zst --image debian=again.tar.zst --out release";
    check(folder, line, 0);
    let manifest = ReleaseManifest::decode(&fs::read(folder.join("release/manifest.json")).unwrap()).unwrap();
    let names: Vec<_> = manifest.artifacts.iter().map(|artifact| artifact.name.as_str()).collect();
    assert_eq!(names, ["kernel", "nodeos", "own", "debian"]);
    let store = folder.join("release/artifacts");
    let artifact = &manifest.artifacts[2];
    assert_eq!(artifact.content.sha256, Digest::of(&own));
    assert_eq!(fs::read(store.join(artifact.content.sha256.to_string())).unwrap(), own);
    let index = fs::read(store.join(artifact.chunks.unwrap().sha256.to_string())).unwrap();
    orrery_protocol::ChunkIndex::parse(&index, &artifact.content).unwrap();
    check(folder, "release assemble --images images --image own --out other", 2);
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

/// A node's ssh server, with the slice's key for the slice's account; what runs in its sliver runs in a folder of its own.
fn gate(folder: &Path, seed: u8) -> (u16, String) {
    let key = parse_key(&fs::read_to_string(folder.join("user.pub")).unwrap()).unwrap();
    let home = folder.join(format!("home{seed}"));
    fs::create_dir(&home).unwrap();
    let login = Arc::new(Layers(LocalShell::new(home, Vec::new()).sftp("/usr/lib/openssh/sftp-server")));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let host_key = HostKey::from_seed(&[seed; 32]);
    let line = host_key.public_line();
    let accounts = Arc::new(KeyList::new("demo_hello", vec![key], login));
    std::thread::spawn(move || serve_blocking(listener, host_key, accounts, Limits::default()));
    (port, line)
}

/// A sliver whose layer is the file `layer`: it does with that what a node's subsystems do, and refuses what begins with `evil`.
struct Layers(LocalShell);

impl Login for Layers {
    fn spawn(&self, request: &SessionRequest) -> std::io::Result<Session> {
        let orrery_sshd::Command::Subsystem(name) = &request.command else { return self.0.spawn(request) };
        let manifest = r#"{"format":1,"image":"i","slice":"demo/hello","snapshot":null,"created":5}"#;
        let line = match &name.split(' ').collect::<Vec<_>>()[..] {
            ["orrery-snapshot", "list"] => r#"echo '[{"name":"a","created":1,"files":2,"bytes":3}]'"#.to_owned(),
            ["orrery-snapshot", "restore", name] => format!("echo 'there is no snapshot `{name}`' >&2; exit 1"),
            ["orrery-snapshot", verb, rest @ ..] => {
                format!("echo {verb} {rest:?} > asked; echo '{{\"files\":1,\"bytes\":2}}'")
            }
            ["orrery-export"] => "cat layer".to_owned(),
            ["orrery-import"] => format!(
                "first=$(head -c 4); test \"$first\" = evil && {{ echo 'nothing good' >&2; exit 1; }}; \
                 {{ printf %s \"$first\"; cat; }} > layer; echo '{{\"from\":{manifest},\"files\":7,\"bytes\":8}}'"
            ),
            _ => return self.0.spawn(request),
        };
        self.0.spawn(&SessionRequest { command: orrery_sshd::Command::Exec(line), ..request.clone() })
    }
}

/// A central with a slice that has slivers on two nodes, and where those are reached. `keys` are those that they report.
fn two_nodes(folder: &Path, keys: impl FnOnce(&[(u16, String); 2]) -> [String; 2]) -> (Served, String) {
    let central = Served::start(folder);
    let ok = |text: &str| check(folder, &format!("{text} --central {}", central.url), 0);
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(folder.join("user"));
    assert!(keygen.stdin(Stdio::null()).status().unwrap().success());
    ok("keys new --out a.key");
    images(folder);
    ok("release assemble --images images --out release");
    ok("release sign --key a.key release/manifest.json");
    ok("release publish release/manifest.signed");

    let gates = [1, 2].map(|seed| gate(folder, seed));
    for (id, key) in ["n1", "n2"].into_iter().zip(keys(&gates)) {
        ok(&format!("node add {id} --out {id}.toml --release-key a.key.pub --state boot"));
        let status = NodeStatus {
            boot_id: "b1".to_owned(),
            run_level: RunLevel::Running,
            release: "0.1.0".to_owned(),
            slot: "a".to_owned(),
            offline: None,
            ssh_host_key: key,
            slivers: Vec::new(),
        };
        let node = central.node(&config(folder, &format!("{id}.toml")));
        node.send(Method::POST, "/v1/node/status", &status).unwrap();
    }
    ok("slice add demo/hello --key user.pub --node n1,n2");

    let places = format!("--address n1=127.0.0.1:{},n2=127.0.0.1:{} -i user", gates[0].0, gates[1].0);
    (central, places)
}

#[test]
fn layers_are_kept_and_moved_by_nodes() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path();
    let (central, places) = two_nodes(folder, |gates| [gates[0].1.clone(), gates[1].1.clone()]);
    let line = |text: &str| format!("slice {text} {places} --central {}", central.url);
    let ok = |text: &str| check(folder, &line(text), 0);

    assert_eq!(
        ok("snapshot list demo/hello --node n1")[0],
        json!({ "name": "a", "created": 1, "files": 2, "bytes": 3 })
    );
    let refused = check(folder, &line("snapshot restore demo/hello b --node n1"), 1);
    assert_eq!(refused["message"], "n1: there is no snapshot `b`");
    check(folder, &line("snapshot create demo/hello ../b --node n1"), 2);
    ok("snapshot delete demo/hello b --node n2");
    assert_eq!(fs::read_to_string(folder.join("home2/asked")).unwrap(), "delete [\"b\"]\n".replace('"', ""));

    // More than any buffer on the way.
    let layer: Vec<u8> = (0..3_000_000_u32).map(|i| (1 + i % 251) as u8).collect();
    fs::write(folder.join("home1/layer"), &layer).unwrap();
    let exported = run(folder, &line("export demo/hello --node n1"));
    assert!(exported.status.success() && exported.stdout == layer);
    fs::write(folder.join("export"), &layer).unwrap();
    let import = |from: &str| {
        let mut command = command(folder, &line("import demo/hello --node n2 --json"));
        command.stdin(fs::File::open(folder.join(from)).unwrap()).output().unwrap()
    };
    let imported = import("export");
    let said: Value = serde_json::from_slice(&imported.stdout).unwrap();
    assert_eq!((&said["files"], &said["from"]["slice"]), (&json!(7), &json!("demo/hello")));
    assert!(fs::read(folder.join("home2/layer")).unwrap() == layer);

    // Who refuses does not read to the end; what it says is what counts.
    fs::write(folder.join("evil"), [b"evil", &layer[..]].concat()).unwrap();
    let refused = import("evil");
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("n2: nothing good"), "{said}");
    assert!(fs::read(folder.join("home2/layer")).unwrap() == layer);

    // From node to node through here; on one node, the node does it.
    fs::write(folder.join("home1/layer"), b"another").unwrap();
    assert_eq!(ok("clone demo/hello demo/hello --node n1 --to-node n2")["files"], 7);
    assert_eq!(fs::read(folder.join("home2/layer")).unwrap(), b"another");
    assert_eq!(ok("clone demo/hello demo/hello --node n1 --to-node n1 --snapshot s")["files"], 1);
    assert_eq!(fs::read_to_string(folder.join("home1/asked")).unwrap(), "clone [s, demo_hello]\n");
    fs::remove_file(folder.join("home1/layer")).unwrap();
    let failed = check(folder, &line("clone demo/hello demo/hello --node n1 --to-node n2"), 1);
    assert!(failed["message"].as_str().unwrap().starts_with("n1: cat: layer"), "{failed}");
}

#[test]
fn slivers_are_reached_by_the_keys_that_central_knows() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path();
    // The second node's gate is another than the one that reports to central.
    let reported = |gates: &[(u16, String); 2]| [gates[0].1.clone(), HostKey::from_seed(&[3; 32]).public_line()];
    let (central, places) = two_nodes(folder, reported);
    let slice = |verb: &str, rest: &str| {
        // `--json` has to stand before the command.
        let mut command = command(folder, &format!("slice {verb} --central {} demo/hello {places}", central.url));
        command.args(rest.split('|'));
        command
    };
    let output = |mut command: Command| {
        let output = command.stdin(Stdio::null()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };

    // One node: as if it ran here.
    let (status, out, err) = output(slice("exec --node n1", "echo one; echo two >&2; exit 7"));
    assert_eq!((status, out.as_str()), (7, "one\n"), "{err}");
    assert!(err.ends_with("two\n"), "{err}");
    let (status, out, err) = output(slice("exec --node n1", "printf|%s,|a b|$HOME"));
    assert_eq!((status, out.as_str()), (0, "a b,$HOME,"), "{err}");
    let mut wc = slice("exec --node n1", "wc -c");
    let mut child = wc.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&[0; 100_000]).unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"100000\n");

    // A host that cannot show the key which central knows is not told anything; the other node is not held up by it.
    let (status, out, err) = output(slice("exec", "echo a; echo b"));
    assert_eq!((status, out.as_str()), (255, "n1: a\nn1: b\n"), "{err}");
    assert!(err.lines().any(|line| line.starts_with("n2: ") && line.contains("Host key verification failed")), "{err}");
    let (status, out, err) = output(slice("exec --json --at-once 1", "echo a; exit 3"));
    let results: Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}"));
    assert_eq!((status, &results[0]["node"], &results[0]["status"]), (255, &json!("n1"), &json!(3)));
    assert_eq!((&results[0]["stdout"], &results[1]["status"]), (&json!("a\n"), &json!(255)));

    // A node that is not the slice's, and a shell that could be on either.
    let (status, _, err) = output(slice("exec --node n3", "true"));
    assert!(status == 1 && err.contains("n1, n2"), "{err}");
    let (status, _, err) = output(slice("shell", "--json"));
    assert!(status == 1 && err.contains("several nodes"), "{err}");

    // Files, both ways.
    fs::create_dir(folder.join("tree")).unwrap();
    fs::write(folder.join("tree/a:b"), "content").unwrap();
    let (status, _, err) = output(slice("cp -r", "tree|n1:there"));
    assert_eq!(status, 0, "{err}");
    assert_eq!(fs::read_to_string(folder.join("home1/there/a:b")).unwrap(), "content");
    let (status, out, err) = output(slice("cp --json", "n1:there/a:b|./back:again"));
    assert_eq!(status, 0, "{err}");
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["copied"], 1);
    assert_eq!(fs::read_to_string(folder.join("back:again")).unwrap(), "content");
    assert_ne!(output(slice("cp", "n1:nothing|.")).0, 0);
}

/// A program called `mmdebstrap` that packs the folder `tree`, unless it is to be root.
fn mmdebstrap(folder: &Path) {
    fs::create_dir_all(folder.join("bin")).unwrap();
    fs::create_dir_all(folder.join("tree/etc")).unwrap();
    fs::write(folder.join("tree/etc/hostname"), "sliver\n").unwrap();
    let script = r#"#!/bin/sh
        case "$*" in *--mode=root*) echo "root is not allowed" >&2; exit 1;; esac
        for word; do last="$tar" tar="$suite" suite="$word"; done
        echo "$*" > said
        tar --numeric-owner --mtime=@$SOURCE_DATE_EPOCH -cf "$tar" -C tree ."#;
    let program = folder.join("bin/mmdebstrap");
    fs::write(&program, script).unwrap();
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn images_are_built_from_packages() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path();
    mmdebstrap(folder);
    let build = |out: &str, path: &str| {
        let line =
            format!("image build debian --suite trixie --include a,b --mirror m --date 2026-01-31 -o {out} --json");
        command(folder, &line).env("PATH", path).output().unwrap()
    };
    let path = format!("{}:{}", folder.join("bin").display(), std::env::var("PATH").unwrap());
    let built = build("one.tar.zst", &path);
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let value: Value = serde_json::from_slice(&built.stdout).unwrap();
    assert_eq!((&value["content"]["files"], &value["format"]), (&json!(1), &json!("archive")));
    let said = fs::read_to_string(folder.join("said")).unwrap();
    assert!(
        said.contains(",a,b ") && said.trim_end().ends_with("tree.tar m") && said.contains("Valid-Until"),
        "{said}"
    );
    assert!(build("two.tar.zst", &path).status.success());
    assert_eq!(fs::read(folder.join("one.tar.zst")).unwrap(), fs::read(folder.join("two.tar.zst")).unwrap());
    assert!(!build("two.tar.zst", &path).status.success());
    let missing = build("three.tar.zst", "/nonexistent");
    assert!(String::from_utf8_lossy(&missing.stderr).contains("apt install mmdebstrap"));
    let left: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with('.')), "{left:?}");

    let inspected = check(folder, "image inspect --entries one.tar.zst", 0);
    let entries: Vec<_> = inspected["entries"].as_array().unwrap().iter().map(|e| e["path"].clone()).collect();
    assert_eq!(entries, ["etc", "etc/hostname"]);
    assert!(inspected["listing"]["size"].as_u64().unwrap() > 50);
    assert_eq!(check(folder, "image verify one.tar.zst two.tar.zst", 0)[0]["fault"], Value::Null);
    let mut damaged = fs::read(folder.join("one.tar.zst")).unwrap();
    damaged.truncate(damaged.len() - 20);
    fs::write(folder.join("two.tar.zst"), damaged).unwrap();
    check(folder, "image verify one.tar.zst two.tar.zst", 1);
}

#[test]
fn central_keeps_what_is_needed() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path();
    let central = Served::start(folder);
    let run = |line: &str, status| check(folder, &format!("{line} --central {}", central.url), status);
    let ok = |line: &str| run(line, 0);
    images(folder);
    fs::write(folder.join("user.pub"), "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA user@home\n").unwrap();
    ok("keys new --out release.key");
    let publish = |name: &str, file: &str| {
        fs::create_dir_all(folder.join(name)).unwrap();
        fs::write(folder.join(name).join(file), name).unwrap();
        ok(&format!("image import {name} --out {name}.tar.zst"));
        ok(&format!("release assemble --images images --image own={name}.tar.zst --out {name}.release"));
        ok(&format!("release sign --key release.key {name}.release/manifest.json"));
        let record = ok(&format!("release publish {name}.release/manifest.signed"));
        record["envelope"]["sha256"].as_str().unwrap().to_owned()
    };
    let one = publish("one", "first");
    ok("slice add demo/own --image own --key user.pub");
    let listed = ok("image list");
    assert_eq!(listed.as_array().unwrap().len(), 2);
    assert_eq!((&listed[1]["name"], &listed[1]["slices"]), (&json!("own"), &json!(["demo/own"])));
    assert_eq!(run(&format!("release retire {one}"), 3)["error"], "in-use");
    let two = publish("two", "second");
    assert_eq!(ok("image inspect own")["summary"]["files"], 1);
    assert_eq!(ok("image verify own")[0]["fault"], Value::Null);
    run("image inspect other", 1);

    // Nothing goes while a release names it, and nothing that is new.
    fs::write(folder.join("stray"), "stray").unwrap();
    let stray = Digest::of(b"stray").to_string();
    let artifacts = folder.join("data/artifacts");
    fs::copy(folder.join("stray"), artifacts.join(&stray)).unwrap();
    let unused = |line: &str| -> Vec<String> {
        let artifacts = ok(line)["unused"].as_array().unwrap().clone();
        artifacts.iter().map(|a| a["sha256"].as_str().unwrap().to_owned()).collect()
    };
    assert!(unused("image gc").is_empty());
    assert_eq!(unused("image gc --older-than 0s"), [stray.clone()]);
    assert!(artifacts.join(&stray).exists());
    assert_eq!(unused("image gc --older-than 0s --remove"), [stray.clone()]);
    assert!(!artifacts.join(&stray).exists());

    // With the first release go its manifest, image, chunk index and listing. Everything else is the second's too.
    let first = ok("release list")[1]["manifest"]["artifacts"][3].clone();
    ok(&format!("release retire {one}"));
    assert_eq!(run(&format!("release retire {one}"), 3)["error"], "not-found");
    assert_eq!(run(&format!("release retire {two}"), 3)["error"], "in-use");
    let mut expect: Vec<_> =
        ["ref", "chunks", "listing"].map(|part| first[part]["sha256"].as_str().unwrap().to_owned()).into();
    expect.push(one);
    expect.sort();
    assert_eq!(unused("image gc --older-than 0s --remove"), expect);
    assert!(unused("image gc --older-than 0s").is_empty());

    // A disk that rots.
    assert_eq!(ok("image verify own")[0]["fault"], Value::Null);
    let listing = ok("release list")[0]["manifest"]["artifacts"][3]["listing"]["sha256"].as_str().unwrap().to_owned();
    let path = artifacts.join(listing);
    let mut bytes = fs::read(&path).unwrap();
    bytes[40] ^= 1;
    fs::write(&path, bytes).unwrap();
    run("image verify own", 1);
}
