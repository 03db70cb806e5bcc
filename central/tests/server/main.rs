//! The real server on loopback, and the real client.

mod slices;

use std::{
    io::Read,
    net::SocketAddr,
    path::{Path, PathBuf},
    thread::JoinHandle,
};

use axum::http::Method;
use orrery_central::{InitOptions, ServeError, Server, change_hosts, init, operators};
use orrery_central_api::{
    BootStateChange, EnrolmentRecord, EnrolmentStanding, GroupChange, KeyRecord, LogRecord, NewEnrolment, NewKey,
    NewNode, NodeDetail, OnceRecord, RebootAsked, ReleaseRecord, RootRecord, ScriptRecord, SliceRecord, SliceSpec,
    SliverRecord, StartOver, StartOverAsked, StoredEvent, Suspension, TokenUse, token_digest,
};
use orrery_protocol::{
    Admin, ArtifactRef, ArtifactRole, BootScript, BootState, Capability, Digest, EnrolRequest, Enrolled, Event,
    EventBatch, Facts, Life, Listing, LogBatch, MAX_INITSCRIPT, MinimumHardware, NodeStatus, Outcome, PayloadType,
    ReleaseArtifact, ReleaseManifest, Root, Rspec, RunLevel, ScriptKind, SigningKey, SliverSpec, SliverState,
    SliverStatus, Startup, TrustRoot, TrustUpdate, View, WantedState, sign,
};
use orrery_transport::{Client, Identity, Resolver, TransportError};
use rcgen::KeyPair;
use serde_json::{Value, json};
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
        Self::serve(folder)
    }

    fn serve(folder: tempfile::TempDir) -> Self {
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
        let node = NewNode {
            id: id.to_owned(),
            name: String::new(),
            spki: identity.spki_sha256(),
            groups: Vec::new(),
            boot_state,
        };
        let made: NodeDetail = self.operator.exchange(Method::POST, "/v1/nodes", &node).unwrap();
        assert_eq!((made.summary.id.as_str(), made.summary.boot_state), (id, boot_state));
        self.client(&identity)
    }

    /// A script for `target`.
    fn script_for(&self, kind: ScriptKind, target: &str, serial: u64, release: Option<ArtifactRef>) -> Vec<u8> {
        let script = BootScript { nodes: vec![target.to_owned()], serial, ..script(kind, release, u64::MAX >> 1) };
        let envelope = sign(PayloadType::BootScript, &script.encode().unwrap(), &[&release_key()]).unwrap();
        let _: ScriptRecord = self.operator.put_bytes("/v1/scripts", &envelope).unwrap();
        envelope
    }

    fn set_state(&self, id: &str, boot_state: BootState, once: bool) -> Result<(), TransportError> {
        let change = BootStateChange { boot_state, once };
        self.operator.send(Method::PUT, &format!("/v1/nodes/{id}/boot-state"), &change)
    }

    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(data(self.folder.path()).join(name)).unwrap()
    }

    /// The same central after a restart.
    fn restarted(mut self) -> Self {
        self.end();
        let spare = tempfile::tempdir().unwrap();
        Self::serve(std::mem::replace(&mut self.folder, spare))
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.unwrap().unwrap();
            }
        }
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
            ReleaseArtifact { role, name: name.to_owned(), content: content_ref, chunks: None, listing: None }
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
        let script = script(kind, release, expires);
        let envelope = sign(PayloadType::BootScript, &script.encode().unwrap(), &[&release_key()]).unwrap();
        let record: ScriptRecord = self.operator.put_bytes("/v1/scripts", &envelope)?;
        assert_eq!((record.kind, record.sha256), (kind, Digest::of(&envelope)));
        Ok(envelope)
    }
}

impl Drop for Central {
    fn drop(&mut self) {
        self.end();
    }
}

fn script(kind: ScriptKind, release: Option<ArtifactRef>, expires: u64) -> BootScript {
    BootScript {
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
        let change = BootStateChange { boot_state: state, once: false };
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
    let change = BootStateChange { boot_state: BootState::Safe, once: false };
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
fn a_state_may_count_for_one_boot() {
    let central = Central::start();
    let node = central.node("n1", BootState::Boot);
    let release = central.release().envelope;
    let boot = central.script(ScriptKind::Boot, Some(release), u64::MAX >> 1).unwrap();
    let safe = central.script(ScriptKind::Safe, None, u64::MAX >> 1).unwrap();
    let served = |boot_id: &str| contact(&node, &facts("n1", boot_id)).unwrap();
    refused(central.set_state("n1", BootState::Reinstall, true), (400, "bad-request"));
    central.set_state("n1", BootState::Safe, true).unwrap();
    let once =
        |boot_id: Option<&str>| Some(OnceRecord { boot_state: BootState::Safe, boot_id: boot_id.map(str::to_owned) });
    assert_eq!(central.detail("n1").summary.once, once(None));
    assert_eq!((served("b1"), served("b1")), (safe.clone(), safe.clone()));
    assert_eq!(central.detail("n1").summary.once, once(Some("b1")));
    assert_eq!(central.detail("n1").summary.boot_state, BootState::Boot);
    assert_eq!((served("b2"), served("b1")), (boot.clone(), boot.clone()));
    assert_eq!(central.detail("n1").summary.once, None);
    // Saying what is wanted for good ends it, too.
    central.set_state("n1", BootState::Safe, true).unwrap();
    central.set_state("n1", BootState::Boot, false).unwrap();
    assert_eq!(served("b3"), boot);
}

#[test]
fn an_upgrade_ends_when_its_release_is_healthy() {
    let central = Central::start();
    let node = central.node("n1", BootState::Upgrade);
    let release = central.release().envelope;
    let upgrade = central.script(ScriptKind::Upgrade, Some(release), u64::MAX >> 1).unwrap();
    assert_eq!(contact(&node, &facts("n1", "b1")).unwrap(), upgrade);
    let say = |boot_id: &str, role: &str, stage: &str, outcome, message: &str| {
        let [event] = <[Event; 1]>::try_from(installed(boot_id).events).unwrap();
        let (role, stage, message) = (role.to_owned(), stage.to_owned(), message.to_owned());
        let batch = EventBatch { events: vec![Event { role, stage, outcome, message, ..event }] };
        node.send(Method::POST, "/v1/node/events", &batch).unwrap();
        central.detail("n1").summary.boot_state
    };
    assert_eq!(say("b1", "boot", "upgrade", Outcome::Ok, "trial 0.2.0 slot b"), BootState::Upgrade);
    assert_eq!(say("b1", "boot", "load", Outcome::Failed, "release 0.2.0 in slot b fell back"), BootState::Upgrade);
    assert_eq!(say("b0", "node", "health", Outcome::Ok, "promoted 0.2.0 slot b"), BootState::Upgrade);
    assert_eq!(say("b1", "node", "health", Outcome::Ok, "promoted 0.2.0 slot b"), BootState::Boot);
}

#[test]
fn scripts_are_for_groups_that_both_sides_name() {
    let central = Central::start();
    let node = central.node("n1", BootState::Safe);
    let all = central.script_for(ScriptKind::Safe, "*", 1, None);
    let group = central.script_for(ScriptKind::Safe, "@spares", 2, None);
    let served = |groups: &[&str]| {
        let groups = groups.iter().map(|g| g.to_string()).collect();
        contact(&node, &Facts { groups, ..facts("n1", "b1") }).unwrap()
    };
    assert_eq!(served(&["spares"]), all);
    let set = |groups: &[&str]| {
        let groups = groups.iter().map(|g| g.to_string()).collect();
        central.operator.send(Method::PUT, "/v1/nodes/n1/groups", &GroupChange { groups })
    };
    refused(set(&["@spares"]), (400, "bad-request"));
    set(&["spares", "site-a"]).unwrap();
    assert_eq!(central.detail("n1").summary.groups, ["site-a", "spares"]);
    assert_eq!(served(&["spares"]), group);
    // A configuration without the group would refuse it.
    assert_eq!(served(&[]), all);
}

#[test]
fn trust_roots_move_the_server_to_another_authority() {
    let central = Central::start();
    let stranger = central.client(&new_identity());
    let roots = |after: u64| stranger.get_bytes(&format!("/v1/roots?after={after}"), LIMIT).unwrap();
    assert!(roots(0).is_empty());
    let next_ca = orrery_central::new_authority(&data(central.folder.path())).unwrap();
    let (old, new) = (central.file("ca.pem"), std::fs::read_to_string(next_ca).unwrap());
    let key = |n: u8| SigningKey::from_scalar(&[n; 32]).unwrap();
    let update = |serial, keys: &[u8], threshold, ca: &str, signers: &[u8]| {
        let release_keys = keys.iter().map(|n| key(*n).public()).collect();
        let ca = ca.to_owned();
        let update = TrustUpdate { version: 1, serial, issued: 1, release_keys, release_threshold: threshold, ca };
        let signers: Vec<_> = signers.iter().map(|n| key(*n)).collect();
        sign(PayloadType::TrustUpdate, &update.encode().unwrap(), &signers.iter().collect::<Vec<_>>()).unwrap()
    };
    let put = |envelope: &[u8]| central.operator.put_bytes::<RootRecord>("/v1/roots", envelope);
    let both = format!("{old}{new}");
    let one = update(1, &[7, 8], 2, &both, &[7, 8]);
    refused(stranger.put_bytes::<RootRecord>("/v1/roots", &one), (403, "forbidden"));
    refused(put(&update(2, &[7, 8], 2, &both, &[7, 8])), (409, "serial"));
    refused(put(&update(1, &[7, 8], 2, &both, &[7])), (409, "not-signed"));
    let foreign = rcgen::generate_simple_self_signed(["x".to_owned()]).unwrap().cert.pem();
    refused(put(&update(1, &[7], 1, &foreign, &[7])), (409, "unknown-authority"));
    put(&one).unwrap();
    assert_eq!(put(&one).unwrap().update.serial, 1);
    assert_eq!(roots(0), one);

    // Documents are held against the newest root from then on.
    refused(central.script(ScriptKind::Safe, None, u64::MAX >> 1), (409, "not-signed"));

    // The root that drops the old authority makes the server change over, and later starts begin there.
    let reaches = |address: SocketAddr, ca: &str| {
        let client = Client::new(&format!("https://{address}"), ca, &new_identity(), Resolver::System).unwrap();
        client.get_bytes("/v1/roots?after=0", LIMIT)
    };
    assert!(matches!(reaches(central.address, &new), Err(TransportError::Tls { .. })));
    assert_eq!(reaches(central.address, &both).unwrap(), one);
    refused(put(&update(2, &[9], 1, &new, &[7, 9])), (409, "not-signed"));
    let two = update(2, &[9], 1, &new, &[7, 8, 9]);
    put(&two).unwrap();
    let chain = [one.clone(), two.clone()].concat();
    assert!(matches!(reaches(central.address, &old), Err(TransportError::Tls { .. })));
    assert_eq!(reaches(central.address, &new).unwrap(), chain);
    assert_eq!(reaches(central.address, &both).unwrap(), chain);
    let again = central.restarted();
    assert!(matches!(reaches(again.address, &old), Err(TransportError::Tls { .. })));
    assert_eq!(reaches(again.address, &new).unwrap(), chain);

    let medium = Root {
        serial: 0,
        trust: TrustRoot { keys: vec![key(7).public(), key(8).public()], threshold: 2 },
        ca: old.clone(),
    };
    let (root, left) = medium.follow(&chain);
    assert_eq!((root.serial, root.ca, left), (2, new, None));
}

#[test]
fn a_machine_enrols_with_a_token_once() {
    let central = Central::start();
    let token = "AAAAA-BBBBB";
    let new = NewEnrolment {
        token: token_digest(token),
        node: "n1".to_owned(),
        name: "First".to_owned(),
        groups: vec!["spares".to_owned()],
        boot_state: BootState::Reinstall,
        expires: u64::MAX >> 1,
    };
    let add = |new: &NewEnrolment| central.operator.exchange::<EnrolmentRecord>(Method::POST, "/v1/enrolments", new);
    add(&new).unwrap();
    refused(add(&new), (409, "exists"));
    let late = NewEnrolment { token: token_digest("late"), node: "n2".to_owned(), expires: 1000, ..new.clone() };
    add(&late).unwrap();
    assert_eq!(central.detail("n1").summary.spki, None);

    let (lost, kept, other) = (new_identity(), new_identity(), new_identity());
    let enrol = |identity: &Identity, token: &str| {
        let request = EnrolRequest { token: token.to_owned(), facts: facts("", "b1") };
        central.client(identity).exchange::<Enrolled>(Method::POST, "/v1/enrol", &request)
    };
    let confirm = |identity: &Identity| {
        let used = TokenUse { token: token.to_owned() };
        central.client(identity).send(Method::POST, "/v1/enrol/confirm", &used)
    };
    refused(enrol(&other, "wrong"), (403, "enrolment"));
    refused(enrol(&other, "late"), (403, "enrolment"));
    refused(confirm(&kept), (403, "enrolment"));
    // Power went before the first key was kept.
    enrol(&lost, token).unwrap();
    let enrolled = enrol(&kept, "aaaaa bbbbb").unwrap();
    assert_eq!((enrolled.node.as_str(), enrolled.groups.as_slice()), ("n1", &["spares".to_owned()][..]));
    refused(confirm(&lost), (403, "enrolment"));
    refused(contact(&central.client(&kept), &facts("n1", "b1")), (403, "unknown-node"));
    confirm(&kept).unwrap();
    refused(contact(&central.client(&kept), &facts("n1", "b1")), (404, "no-script"));
    assert_eq!(central.detail("n1").summary.spki, Some(kept.spki_sha256()));

    // It is spent, but for the key that spent it: an answer may have been lost.
    confirm(&kept).unwrap();
    enrol(&kept, token).unwrap();
    refused(enrol(&other, token), (403, "enrolment"));
    refused(add(&NewEnrolment { token: token_digest("more"), ..new }), (409, "exists"));

    let open = NewEnrolment { token: token_digest("open"), expires: u64::MAX >> 1, ..late };
    add(&open).unwrap();
    central.operator.call(Method::DELETE, "/v1/enrolments/n2").unwrap();
    refused(central.operator.call(Method::DELETE, "/v1/enrolments/n2"), (404, "not-found"));
    refused(enrol(&other, "open"), (403, "enrolment"));
    let all: Vec<EnrolmentRecord> = central.operator.get("/v1/enrolments").unwrap();
    let standing = |token: &str| all.iter().find(|e| e.token == token_digest(token)).unwrap().standing;
    assert_eq!(standing(token), EnrolmentStanding::Spent);
    assert_eq!((standing("open"), standing("late")), (EnrolmentStanding::Revoked, EnrolmentStanding::Revoked));
}

#[test]
fn a_replaced_key_has_its_grace() {
    let central = Central::start();
    let old = central.node("n1", BootState::Safe);
    central.script(ScriptKind::Safe, None, u64::MAX >> 1).unwrap();
    let renew = |identity: &Identity, grace, end_grace| {
        let new = NewKey { spki: identity.spki_sha256(), grace, end_grace };
        central.operator.exchange::<Vec<KeyRecord>>(Method::POST, "/v1/nodes/n1/keys", &new)
    };
    let second = new_identity();
    let keys = renew(&second, 3600, true).unwrap();
    assert_eq!((keys[0].spki, keys[0].ends), (second.spki_sha256(), None));
    assert_eq!(keys[1].ends.unwrap() - keys[1].replaced.unwrap(), 3600);
    refused(renew(&second, 1, false), (409, "exists"));
    refused(renew(&new_identity(), u64::MAX, false), (400, "bad-request"));
    let at_contact = |client: &Client| {
        client.post_for_answer("/v1/node/contact", &facts("n1", "b1"), LIMIT).map(|answer| answer.notice)
    };
    let notice = at_contact(&old).unwrap().unwrap();
    assert!(notice.starts_with("this medium's key was replaced on 2"), "{notice}");
    // The new key's first contact ends the old one's time, as it was asked to.
    assert_eq!(at_contact(&central.client(&second)).unwrap(), None);
    refused(contact(&old, &facts("n1", "b1")), (403, "key-replaced"));
    refused(old.get::<WantedState>("/v1/node/wanted"), (403, "key-replaced"));
    refused(old.call(Method::GET, &format!("/v1/artifacts/{}", Digest::of(b"x"))), (403, "key-replaced"));

    let third = new_identity();
    renew(&third, 3600, false).unwrap();
    contact(&central.client(&third), &facts("n1", "b1")).unwrap();
    assert!(at_contact(&central.client(&second)).unwrap().is_some());
    renew(&new_identity(), 0, false).unwrap();
    refused(contact(&central.client(&third), &facts("n1", "b1")), (403, "key-replaced"));
}

#[test]
fn logs_are_kept_once() {
    let central = Central::start();
    let node = central.node("n1", BootState::Boot);
    let post = |boot_id: &str, role: &str, first, lines: &[&str]| {
        let lines = lines.iter().map(|l| l.to_string()).collect();
        let batch = LogBatch { boot_id: boot_id.to_owned(), role: role.to_owned(), first, lines };
        node.send(Method::POST, "/v1/node/log", &batch)
    };
    post("b1", "boot", 0, &["one", "two"]).unwrap();
    post("b1", "boot", 1, &["two", "three"]).unwrap();
    post("b2", "previous", 0, &["kernel panic"]).unwrap();
    refused(post("b2", "else", 0, &["x"]), (400, "bad-request"));
    let read = |query: &str| {
        let records: Vec<LogRecord> = central.operator.get(&format!("/v1/nodes/n1/log?{query}")).unwrap();
        records.into_iter().flat_map(|r| r.lines).collect::<Vec<_>>()
    };
    assert_eq!(read("boot=b1"), ["one", "two", "three"]);
    assert_eq!(read("boot=last&role=boot"), ["one", "two", "three"]);
    assert_eq!(read("role=previous"), ["kernel panic"]);
    refused(node.get::<serde_json::Value>("/v1/nodes/n1/log"), (403, "forbidden"));
    refused(central.operator.get::<serde_json::Value>("/v1/nodes/n2/log"), (404, "not-found"));
}

#[test]
fn a_running_node_is_asked_to_restart_until_it_did() {
    let central = Central::start();
    let node = central.node("n1", BootState::Boot);
    central.script(ScriptKind::Boot, Some(central.release().envelope), u64::MAX >> 1).unwrap();
    let ask = || {
        let nothing = serde_json::json!({});
        central.operator.exchange::<RebootAsked>(Method::POST, "/v1/nodes/n1/reboot", &nothing)
    };
    let wanted = || node.get::<WantedState>("/v1/node/wanted").unwrap().reboot;
    refused(ask(), (409, "not-running"));
    let status = NodeStatus {
        boot_id: "b1".to_owned(),
        run_level: RunLevel::Running,
        release: "0.1.0".to_owned(),
        slot: "a".to_owned(),
        offline: None,
        ssh_host_key: SSH_KEY.to_owned(),
        slivers: Vec::new(),
    };
    node.send(Method::POST, "/v1/node/status", &status).unwrap();
    assert_eq!(ask().unwrap().boot_id, "b1");
    assert_eq!(wanted().as_deref(), Some("b1"));
    contact(&node, &facts("n1", "b2")).unwrap();
    assert_eq!(wanted(), None);
    refused(ask(), (409, "not-running"));
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

#[test]
fn a_running_server_follows_its_operators() {
    let central = Central::start();
    let folder = central.folder.path().join("ann");
    operators::add(&data(central.folder.path()), "ann", 1, &folder).unwrap();
    let key = std::fs::read_to_string(folder.join("operator.key")).unwrap();
    let ann = central.client(&Identity::from_pem(&key).unwrap());
    let nodes = |client: &Client| client.get::<serde_json::Value>("/v1/nodes");
    assert!(nodes(&ann).is_ok());
    operators::remove(&data(central.folder.path()), "first").unwrap();
    assert!(matches!(nodes(&central.operator), Err(TransportError::Refused { status: 403, .. })));
    assert!(nodes(&ann).is_ok());
}

#[test]
fn another_name_is_in_the_certificate_after_a_restart() {
    let central = Central::start();
    let name = "localhost".to_owned();
    let key = central.file("operator/operator.key");
    let by_name = |central: &Central| {
        let url = format!("https://localhost:{}", central.address.port());
        let identity = Identity::from_pem(&key).unwrap();
        let client = Client::new(&url, &central.file("ca.pem"), &identity, Resolver::System).unwrap();
        client.get::<serde_json::Value>("/v1/nodes")
    };
    assert!(by_name(&central).unwrap_err().to_string().contains("certificate"), "{:?}", by_name(&central));
    change_hosts(&data(central.folder.path()), &[name], &[]).unwrap();
    let central = central.restarted();
    assert!(by_name(&central).is_ok(), "{:?}", by_name(&central));
}

#[test]
fn contents_are_of_images_by_their_listing() {
    let central = Central::start();
    let node = central.node("n1", BootState::Boot);
    let upload = |bytes: &[u8]| -> ArtifactRef {
        central.operator.put_bytes(&format!("/v1/artifacts/{}", Digest::of(bytes)), bytes).unwrap()
    };
    let nothing = upload(&Listing::encode(&[], &[], &[]).unwrap());
    let image = upload(b"no image");
    let ask = |image: &Digest, listing: &Digest, body: &[u8]| {
        let path = format!("/v1/artifacts/{image}/contents?listing={listing}");
        node.post_for_stream(&path, body, LIMIT).map(drop)
    };
    let absent = Digest([1; 32]);
    refused(ask(&absent, &nothing.sha256, b""), (404, "not-found"));
    refused(ask(&image.sha256, &absent, b""), (404, "not-found"));
    // Of an image of another size.
    refused(ask(&image.sha256, &nothing.sha256, b""), (400, "bad-request"));
    refused(ask(&image.sha256, &image.sha256, b""), (400, "bad-request"));
    for numbers in [&b"123"[..], &[1, 0, 0, 0, 1, 0, 0, 0], &[2, 0, 0, 0, 1, 0, 0, 0]] {
        refused(ask(&image.sha256, &nothing.sha256, numbers), (400, "bad-request"));
    }
    let stranger = central.client(&new_identity());
    let path = format!("/v1/artifacts/{}/contents?listing={}", image.sha256, nothing.sha256);
    refused(stranger.post_for_stream(&path, b"", LIMIT).map(drop), (403, "unknown-node"));
    refused(node.post_for_stream(&path[..path.len() - 70], b"", LIMIT).map(drop), (400, "bad-request"));
    refused(node.get::<serde_json::Value>("/v1/artifacts"), (403, "forbidden"));
    refused(node.call(Method::DELETE, &format!("/v1/artifacts/{}", image.sha256)), (403, "forbidden"));
}

#[test]
fn an_image_that_a_sliver_runs_on_is_kept() {
    let central = Central::start();
    let node = central.node("n1", BootState::Boot);
    let image: ArtifactRef =
        central.operator.put_bytes(&format!("/v1/artifacts/{}", Digest::of(b"old")), b"old").unwrap();
    let path = format!("/v1/artifacts/{}", image.sha256);
    let status = |slivers| NodeStatus { slivers, ..status_of_nothing() };
    let sliver = ready(image.sha256);
    let listing = Listing::encode(&[(3, 100)], &[], &[]).unwrap();
    let listing_path = format!("/v1/artifacts/{}", Digest::of(&listing));
    let _: ArtifactRef = central.operator.put_bytes(&listing_path, &listing).unwrap();
    node.send(Method::POST, "/v1/node/status", &status(vec![sliver])).unwrap();
    refused(central.operator.call(Method::DELETE, &path), (409, "in-use"));
    // What may be its listing, too.
    refused(central.operator.call(Method::DELETE, &listing_path), (409, "in-use"));
    node.send(Method::POST, "/v1/node/status", &status(Vec::new())).unwrap();
    central.operator.call(Method::DELETE, &listing_path).unwrap();
    central.operator.call(Method::DELETE, &path).unwrap();
    refused(central.operator.call(Method::DELETE, &path), (404, "not-found"));
}

fn ready(image: Digest) -> SliverStatus {
    let slice = "demo/one".parse().unwrap();
    SliverStatus { slice, birth: 0, version: 0, settled: true, state: SliverState::Ready, image, error: None }
}

fn status_of_nothing() -> NodeStatus {
    NodeStatus {
        boot_id: "b1".to_owned(),
        run_level: RunLevel::Running,
        release: "0.1.0".to_owned(),
        slot: "a".to_owned(),
        offline: None,
        ssh_host_key: String::new(),
        slivers: Vec::new(),
    }
}
