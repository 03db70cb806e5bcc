//! The command as an operator types it, against a real central: from nothing to a served install script.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

use orrery_central::{InitOptions, Server, init};
use orrery_protocol::{
    ArtifactRef, ArtifactRole, BootScript, Digest, Facts, MinimumHardware, NodeConfig, ReleaseArtifact,
    ReleaseManifest, ScriptContext, ScriptKind, WantedState,
};
use orrery_transport::{Client, Identity, Resolver};
use serde_json::Value;
use tokio::sync::oneshot;

/// Runs `orrery` in `folder` with the words of `line`.
fn run(folder: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_orrery"))
        .args(line.split_whitespace())
        .current_dir(folder)
        .env("ORRERY_OPERATOR", folder.join("data/operator"))
        .env_remove("ORRERY_CENTRAL")
        .output()
        .unwrap()
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
        ReleaseArtifact { role, name: name.to_owned(), content, chunks: None }
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

#[test]
fn from_nothing_to_a_served_install_script() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path();
    init(&InitOptions { data: folder.join("data"), hosts: vec!["127.0.0.1".to_owned()], port: 1 }).unwrap();
    let server = Server::bind(&folder.join("data"), &["127.0.0.1:0".parse().unwrap()]).unwrap();
    let url = format!("https://{}", server.addresses()[0]);
    let (stop, stopped) = oneshot::channel::<()>();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(server.run(async move { stopped.await.unwrap_or(()) }))
    });
    images(folder);
    fs::write(folder.join("user.pub"), "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA user@home\n").unwrap();
    let ok = |line: &str| check(folder, &format!("{line} --central {url}"), 0);

    ok("keys new --out release.key");
    ok("release assemble --images images --out release");
    ok("release sign --key release.key release/manifest.json");
    ok("release publish release/manifest.signed");
    ok(
        "node add n1 --name First --out n1.toml --release-key release.key.pub --admin-key user.pub --disk-min 1G --wipe",
    );
    ok("script new --kind install --release release/manifest.signed --node * --serial 3 --expires 30d --out i.json");
    ok("script sign --key release.key --out i.signed i.json");
    ok("script publish i.signed");
    ok("slice add demo/one --key user.pub --rspec mem_limit=64M,pids_limit=64 --node n1");

    // What the node makes of it.
    let text = fs::read_to_string(folder.join("n1.toml")).unwrap();
    assert_eq!(fs::metadata(folder.join("n1.toml")).unwrap().permissions().mode() & 0o777, 0o600);
    let config: NodeConfig = toml::from_str(&text).unwrap();
    config.check().unwrap();
    assert_eq!((config.install.disk.min_bytes, config.install.wipe), (Some(1 << 30), true));
    let identity = Identity::from_pem(&config.key).unwrap();
    let node = Client::new(&config.central.urls[0], &config.central.ca, &identity, Resolver::System).unwrap();
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
    refused("keys new --out release.key", 1);
    refused("script publish i.json", 1);
    refused("node add n3", 2);
    drop(stop);
    thread.join().unwrap().unwrap();
    assert_eq!(refused("node list", 4)["error"], "unreachable");
    assert_eq!(fs::read_to_string(folder.join("n1.toml")).unwrap(), text);
}
