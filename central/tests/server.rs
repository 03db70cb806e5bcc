//! The real server on loopback, and the real client.

use std::{
    io::Read,
    net::SocketAddr,
    path::{Path, PathBuf},
    thread::JoinHandle,
};

use axum::http::Method;
use orrery_central::{InitOptions, ServeError, Server, init};
use orrery_central_api::{BootStateChange, NewNode, NodeDetail, ReleaseRecord, ScriptRecord, SliceSpec, StoredEvent};
use orrery_protocol::{
    ArtifactRef, ArtifactRole, BootScript, BootState, Digest, Event, EventBatch, Facts, MinimumHardware, NodeStatus,
    Outcome, PayloadType, ReleaseArtifact, ReleaseManifest, Rspec, RunLevel, ScriptKind, SigningKey, WantedState, sign,
};
use orrery_transport::{Client, Identity, Resolver, TransportError};
use rcgen::KeyPair;
use tokio::sync::oneshot;

const LIMIT: u64 = 2 << 20;
const SSH_KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA user@home";

/// A central in a folder of its own, and who may talk to it.
struct Central {
    folder: tempfile::TempDir,
    address: SocketAddr,
    operator: Client,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Central {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = InitOptions { data: data(folder.path()), hosts: vec!["127.0.0.1".to_owned()], port: 1 };
        init(&options).unwrap();
        let server = Server::bind(&data(folder.path()), &["127.0.0.1:0".parse().unwrap()]).unwrap();
        let address = server.addresses()[0];
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(server.run(async move { stopped.await.unwrap_or(()) }))
        });
        let key = std::fs::read_to_string(data(folder.path()).join("operator/operator.key")).unwrap();
        let operator = client(folder.path(), address, &Identity::from_pem(&key).unwrap());
        Self { folder, address, operator, stop: Some(stop), thread: Some(thread) }
    }

    fn client(&self, identity: &Identity) -> Client {
        client(self.folder.path(), self.address, identity)
    }

    /// A registered node.
    fn node(&self, id: &str, boot_state: BootState) -> Client {
        let identity = new_identity();
        let node = NewNode { id: id.to_owned(), name: String::new(), spki: identity.spki_sha256(), boot_state };
        let made: NodeDetail = self.operator.exchange(Method::POST, "/v1/nodes", &node).unwrap();
        assert_eq!((made.summary.id.as_str(), made.summary.boot_state), (id, boot_state));
        self.client(&identity)
    }

    fn detail(&self, id: &str) -> NodeDetail {
        self.operator.get(&format!("/v1/nodes/{id}")).unwrap()
    }

    /// A published release with one reference image.
    fn release(&self) -> ReleaseRecord {
        let artifact = |role, name: &str| {
            let content = name.repeat(1000).into_bytes();
            let content_ref = ArtifactRef { sha256: Digest::of(&content), size: content.len() as u64 };
            let path = format!("/v1/artifacts/{}", content_ref.sha256);
            let kept: ArtifactRef = self.operator.put_bytes(&path, &content).unwrap();
            assert_eq!(kept, content_ref);
            ReleaseArtifact { role, name: name.to_owned(), content: content_ref, chunks: None }
        };
        let manifest = ReleaseManifest {
            version: 1,
            release: "0.1.0".to_owned(),
            cmdline: "quiet".to_owned(),
            artifacts: vec![
                artifact(ArtifactRole::Kernel, "kernel"),
                artifact(ArtifactRole::NodeOs, "nodeos"),
                artifact(ArtifactRole::Image, "debian"),
            ],
            minimum: MinimumHardware::default(),
        };
        let envelope = sign(PayloadType::ReleaseManifest, &manifest.encode().unwrap(), &[&release_key()]).unwrap();
        self.operator.put_bytes("/v1/releases", &envelope).unwrap()
    }

    fn script(&self, kind: ScriptKind, release: Option<ArtifactRef>, expires: u64) -> Result<Vec<u8>, TransportError> {
        let script = BootScript {
            version: 1,
            kind,
            nodes: vec!["*".to_owned()],
            serial: 1,
            issued: 0,
            expires,
            release,
            ssh_keys: Vec::new(),
            networks: Vec::new(),
            mirrors: Vec::new(),
            waivers: Vec::new(),
        };
        let envelope = sign(PayloadType::BootScript, &script.encode().unwrap(), &[&release_key()]).unwrap();
        let record: ScriptRecord = self.operator.put_bytes("/v1/scripts", &envelope)?;
        assert_eq!((record.kind, record.sha256), (kind, Digest::of(&envelope)));
        Ok(envelope)
    }
}

impl Drop for Central {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.unwrap().unwrap();
            }
        }
    }
}

fn data(folder: &Path) -> PathBuf {
    folder.join("data")
}

fn new_identity() -> Identity {
    Identity::from_pem(&KeyPair::generate().unwrap().serialize_pem()).unwrap()
}

fn release_key() -> SigningKey {
    SigningKey::from_scalar(&[7; 32]).unwrap()
}

fn client(folder: &Path, address: SocketAddr, identity: &Identity) -> Client {
    let ca = std::fs::read_to_string(data(folder).join("operator/ca.pem")).unwrap();
    Client::new(&format!("https://{address}"), &ca, identity, Resolver::System).unwrap()
}

fn facts(node: &str, boot_id: &str) -> Facts {
    Facts { node: node.to_owned(), boot_id: boot_id.to_owned(), ..Facts::default() }
}

fn contact(client: &Client, facts: &Facts) -> Result<Vec<u8>, TransportError> {
    client.post_for_bytes("/v1/node/contact", facts, LIMIT)
}

fn installed(boot_id: &str) -> EventBatch {
    let event = Event {
        boot_id: boot_id.to_owned(),
        at_ms: 4000,
        wall: 1_800_000_000,
        role: "boot".to_owned(),
        stage: "install".to_owned(),
        outcome: Outcome::Ok,
        class: None,
        message: "installed 0.1.0".to_owned(),
        duration_ms: 900,
    };
    EventBatch { events: vec![event] }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, TransportError>, expect: (u16, &str)) {
    match result {
        Err(TransportError::Refused { status, class, .. }) => assert_eq!((status, class.as_str()), expect),
        other => panic!("expected {expect:?}, got {other:?}"),
    }
}

#[test]
fn a_node_is_served_by_its_boot_state() {
    let central = Central::start();
    let node = central.node("n1", BootState::Reinstall);
    refused(contact(&node, &facts("n1", "b1")), (404, "no-script"));

    let release = central.release().envelope;
    let install = central.script(ScriptKind::Install, Some(release), u64::MAX >> 1).unwrap();
    let boot = central.script(ScriptKind::Boot, Some(release), u64::MAX >> 1).unwrap();
    let safe = central.script(ScriptKind::Safe, None, u64::MAX >> 1).unwrap();
    let served = |state| {
        let change = BootStateChange { boot_state: state };
        central.operator.send(Method::PUT, "/v1/nodes/n1/boot-state", &change).unwrap();
        contact(&node, &facts("n1", "b1")).unwrap()
    };
    assert_eq!(served(BootState::Boot), boot);
    assert_eq!(served(BootState::Safe), safe);
    assert_eq!(served(BootState::Disabled), safe);
    refused(node.get::<WantedState>("/v1/node/wanted"), (403, "forbidden"));
    assert_eq!(served(BootState::Reinstall), install);
    assert_eq!(central.detail("n1").summary.run_level, Some(RunLevel::Installing));

    // Of another boot, then of the one that was given the script, twice.
    node.send(Method::POST, "/v1/node/events", &installed("b0")).unwrap();
    assert_eq!(central.detail("n1").summary.boot_state, BootState::Reinstall);
    node.send(Method::POST, "/v1/node/events", &installed("b1")).unwrap();
    node.send(Method::POST, "/v1/node/events", &installed("b1")).unwrap();
    assert_eq!(central.detail("n1").summary.boot_state, BootState::Boot);
    let events: Vec<StoredEvent> = central.operator.get("/v1/nodes/n1/events").unwrap();
    assert_eq!(events.len(), 2);
    let later: Vec<StoredEvent> =
        central.operator.get(&format!("/v1/nodes/n1/events?after={}", events[0].seq)).unwrap();
    assert_eq!(later, events[1..]);
    assert_eq!(contact(&node, &facts("n1", "b2")).unwrap(), boot);
    assert_eq!(central.detail("n1").facts, Some(facts("n1", "b2")));
}

#[test]
fn everyone_stays_in_their_role() {
    let central = Central::start();
    let node = central.node("n1", BootState::Boot);
    let stranger = central.client(&new_identity());
    refused(contact(&stranger, &facts("n1", "b1")), (403, "unknown-node"));
    refused(contact(&node, &facts("n2", "b1")), (403, "unknown-node"));
    refused(contact(&central.operator, &facts("n1", "b1")), (403, "unknown-node"));
    refused(stranger.get::<WantedState>("/v1/node/wanted"), (403, "unknown-node"));
    refused(node.get::<serde_json::Value>("/v1/nodes"), (403, "forbidden"));
    refused(stranger.get::<serde_json::Value>("/v1/nodes/n1"), (403, "forbidden"));
    let change = BootStateChange { boot_state: BootState::Safe };
    refused(node.send(Method::PUT, "/v1/nodes/n1/boot-state", &change), (403, "forbidden"));
    let path = format!("/v1/artifacts/{}", Digest::of(b"x"));
    refused(node.put_bytes::<ArtifactRef>(&path, b"x"), (403, "forbidden"));
    refused(stranger.call(Method::GET, &path), (403, "unknown-node"));
    refused(central.operator.call(Method::GET, "/v1/nothing"), (404, "not-found"));
    refused(central.operator.call(Method::DELETE, "/v1/nodes"), (405, "method-not-allowed"));
}

#[test]
fn artifacts_are_kept_whole_and_served_in_parts() {
    let central = Central::start();
    let node = central.node("n1", BootState::Boot);
    let content = vec![0x5a; 300_000];
    let artifact = ArtifactRef { sha256: Digest::of(&content), size: content.len() as u64 };
    let path = format!("/v1/artifacts/{}", artifact.sha256);
    refused(central.operator.put_bytes::<ArtifactRef>(&path, &content[1..]), (422, "wrong-content"));
    refused(central.operator.put_bytes::<ArtifactRef>("/v1/artifacts/xyz", b"x"), (400, "bad-request"));
    refused(node.call(Method::GET, &path), (404, "not-found"));
    let left: Vec<_> = std::fs::read_dir(data(central.folder.path()).join("artifacts/incoming")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");

    central.operator.put_stream(&path, &mut &content[..]).unwrap();
    let read = |from| {
        let mut got = Vec::new();
        node.artifact(&artifact, from).unwrap().read_to_end(&mut got).unwrap();
        got
    };
    assert_eq!(read(0), content);
    assert_eq!(read(299_990), content[299_990..]);
    assert!(matches!(node.artifact(&artifact, 300_000), Err(TransportError::Refused { status: 416, .. })));
    central.operator.call(Method::HEAD, &path).unwrap();
}

#[test]
fn documents_are_published_in_order() {
    let central = Central::start();
    let nowhere = ArtifactRef { sha256: Digest([1; 32]), size: 1 };
    refused(central.script(ScriptKind::Install, Some(nowhere), u64::MAX >> 1), (409, "unknown-release"));
    refused(central.script(ScriptKind::Safe, None, 1000), (409, "expired"));
    refused(central.operator.put_bytes::<ScriptRecord>("/v1/scripts", b"nonsense"), (400, "bad-request"));
    let release = central.release();
    let mut manifest = release.manifest.clone();
    manifest.artifacts[0].content.sha256 = Digest([9; 32]);
    let envelope = sign(PayloadType::ReleaseManifest, &manifest.encode().unwrap(), &[&release_key()]).unwrap();
    refused(central.operator.put_bytes::<ReleaseRecord>("/v1/releases", &envelope), (409, "missing-artifacts"));
    refused(central.operator.put_bytes::<ScriptRecord>("/v1/scripts", &envelope), (400, "bad-request"));

    // The signed manifest is itself an artifact.
    let node = central.node("n1", BootState::Boot);
    let mut got = Vec::new();
    node.artifact(&release.envelope, 0).unwrap().read_to_end(&mut got).unwrap();
    assert_eq!(Digest::of(&got), release.envelope.sha256);
}

#[test]
fn slices_become_the_wanted_state() {
    let central = Central::start();
    let node = central.node("n1", BootState::Boot);
    assert_eq!(node.get::<WantedState>("/v1/node/wanted").unwrap(), WantedState::default());
    let spec = SliceSpec {
        keys: vec![SSH_KEY.to_owned()],
        rspec: Rspec { mem_limit: 64 << 20, ..Rspec::default() },
        image: "debian".to_owned(),
        nodes: vec!["n1".to_owned()],
    };
    let put = |change: fn(&mut SliceSpec)| {
        let mut spec = spec.clone();
        change(&mut spec);
        central.operator.send(Method::PUT, "/v1/slices/demo/one", &spec)
    };
    refused(put(|_| ()), (409, "no-image"));
    let image = central.release().manifest.artifacts[2].clone();
    refused(put(|s| s.nodes.push("n9".to_owned())), (409, "unknown-node"));
    refused(put(|s| s.keys.clear()), (400, "bad-request"));
    refused(put(|s| s.keys[0].push('\n')), (400, "bad-request"));
    refused(put(|s| s.rspec.mem_limit = 1), (400, "bad-request"));
    refused(central.operator.send(Method::PUT, "/v1/slices/Demo/one", &spec), (400, "bad-request"));
    assert_eq!(node.get::<WantedState>("/v1/node/wanted").unwrap(), WantedState::default());

    put(|_| ()).unwrap();
    let wanted: WantedState = node.get("/v1/node/wanted").unwrap();
    let [sliver] = &wanted.slivers[..] else { panic!("{wanted:?}") };
    assert_eq!((sliver.slice.to_string().as_str(), &sliver.keys), ("demo/one", &spec.keys));
    assert_eq!((&sliver.image.content, sliver.rspec.mem_limit), (&image.content, 64 << 20));

    let status = NodeStatus {
        boot_id: "b1".to_owned(),
        run_level: RunLevel::Running,
        release: "0.1.0".to_owned(),
        ssh_host_key: SSH_KEY.to_owned(),
        slivers: Vec::new(),
        slot: "a".to_owned(),
        offline: None,
    };
    node.send(Method::POST, "/v1/node/status", &status).unwrap();
    let detail = central.detail("n1");
    assert_eq!((detail.status, detail.summary.run_level), (Some(status), Some(RunLevel::Running)));
    assert_eq!(detail.slices.len(), 1);

    central.operator.call(Method::DELETE, "/v1/slices/demo/one").unwrap();
    assert_eq!(node.get::<WantedState>("/v1/node/wanted").unwrap(), WantedState::default());
    central.operator.call(Method::DELETE, "/v1/nodes/n1").unwrap();
    refused(node.get::<WantedState>("/v1/node/wanted"), (403, "unknown-node"));
}

#[test]
fn a_broken_data_folder_is_refused() {
    let check = |prepare: fn(&Path), expect: &str| {
        let folder = tempfile::tempdir().unwrap();
        let data = data(folder.path());
        init(&InitOptions { data: data.clone(), hosts: vec!["localhost".to_owned()], port: 1 }).unwrap();
        prepare(&data);
        let error = Server::bind(&data, &["127.0.0.1:0".parse().unwrap()]).err().expect("a refusal").to_string();
        assert!(error.contains(expect), "{error}");
    };
    check(|data| std::fs::write(data.join("central.db"), "no database at all".repeat(99)).unwrap(), "central.db");
    check(|data| std::fs::remove_file(data.join("central.db")).unwrap(), "does not exist");
    check(|data| std::fs::remove_file(data.join("central.toml")).unwrap(), "orrery-central init");
    check(|data| std::fs::write(data.join("central.toml"), "hosts = 7").unwrap(), "central.toml");
    check(|data| std::fs::write(data.join("server.pem"), "").unwrap(), "server.pem");
}
