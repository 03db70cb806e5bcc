//! What the tests share: the command, a central, and what a build leaves behind.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
    thread::JoinHandle,
};

use orrery_central::{InitOptions, Server, init};
use orrery_protocol::{
    ArtifactRef, ArtifactRole, Digest, MinimumHardware, NodeConfig, ReleaseArtifact, ReleaseManifest,
};
use orrery_transport::{Client, Identity, Resolver};
use rustix::{
    fs::{Mode, OFlags},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};
use serde_json::Value;
use tokio::sync::oneshot;

/// `orrery` in `folder` with the words of `line`.
pub(crate) fn command(folder: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orrery"));
    command
        .args(line.split_whitespace())
        .current_dir(folder)
        .env("ORRERY_OPERATOR", folder.join("data/operator"))
        .env_remove("ORRERY_CENTRAL");
    command
}

pub(crate) fn run(folder: &Path, line: &str) -> Output {
    command(folder, line).output().unwrap()
}

#[track_caller]
pub(crate) fn check(folder: &Path, line: &str, status: i32) -> Value {
    let output = run(folder, &format!("{line} --json"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(status), "{line}\n{out}\n{err}");
    let text = if status == 0 { out } else { err };
    // Clap's own messages are for people.
    serde_json::from_str(text.trim()).unwrap_or(Value::Null)
}

/// `orrery` at a terminal, on which somebody types `answer`, if it does not read an `input`: its exit status, and what the terminal
/// showed but results.
pub(crate) fn at_a_terminal(folder: &Path, line: &str, answer: &str, input: Option<File>) -> (Option<i32>, String) {
    let person = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&person).unwrap();
    unlockpt(&person).unwrap();
    let name = ptsname(&person, Vec::new()).unwrap();
    let terminal = File::from(rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap());
    let mut person = File::from(person);
    person.write_all(answer.as_bytes()).unwrap();
    let mut command = command(folder, line);
    command.stdin(input.unwrap_or_else(|| terminal.try_clone().unwrap())).stderr(terminal).env("TERM", "xterm");
    let status = command.output().unwrap().status;
    drop(command);
    let mut shown = Vec::new();
    // A terminal that nobody else has open ends with an error.
    let _ = person.read_to_end(&mut shown);
    (status.code(), String::from_utf8_lossy(&shown).into_owned())
}

/// What a build leaves behind.
pub(crate) fn images(folder: &Path) {
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
pub(crate) struct Served {
    pub(crate) url: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    pub(crate) fn start(folder: &Path) -> Self {
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

    pub(crate) fn node(&self, config: &NodeConfig) -> Client {
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

pub(crate) fn config(folder: &Path, name: &str) -> NodeConfig {
    let path = folder.join(name);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let config: NodeConfig = toml::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    config.check().unwrap();
    config
}
