//! Slivers as they are reached from an operator's machine, and their layers.

use std::{
    fs,
    io::Write,
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
};

use orrery_protocol::{NodeStatus, RunLevel};
use orrery_sshd::{HostKey, KeyList, Limits, LocalShell, Login, Session, SessionRequest, parse_key, serve_blocking};
use orrery_transport::Method;
use serde_json::{Value, json};

use crate::support::{Served, at_a_terminal, check, command, config, images, run};

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
        self.0.spawn(&SessionRequest { command: orrery_sshd::Command::Exec(line.into()), ..request.clone() })
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

    // Who waits sees it.
    let (status, shown) = at_a_terminal(folder, &line("snapshot delete demo/hello b --node n2"), "yes\n", None);
    assert!(status == Some(0) && shown.contains("waiting for n2, 0"), "{shown}");
    let input = fs::File::open(folder.join("export")).unwrap();
    let (status, shown) = at_a_terminal(folder, &line("import demo/hello --node n2 --yes"), "", Some(input));
    assert!(status == Some(0) && shown.contains("/2.86 MiB"), "{shown}");

    // Nobody takes all of it.
    let mut unwritable = command(folder, &line("export demo/hello --node n1 --json"));
    unwritable.stdout(fs::File::options().write(true).open("/dev/full").unwrap());
    let failed = unwritable.stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(failed.status.code() == Some(1) && said.contains("No space left on device"), "{said}");

    // Who refuses does not read to the end; what it says is what counts.
    fs::write(folder.join("evil"), [b"evil", &layer[..]].concat()).unwrap();
    let refused = import("evil");
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("n2: nothing good"), "{said}");
    assert!(fs::read(folder.join("home2/layer")).unwrap() == layer);

    // Nor is the rest of an export asked for that the other node refuses.
    fs::remove_file(folder.join("home1/layer")).unwrap();
    let endless = folder.join("home1/layer");
    assert!(Command::new("mkfifo").arg(&endless).status().unwrap().success());
    let writer = std::thread::spawn(move || {
        let mut to = fs::File::options().write(true).open(&endless).unwrap();
        to.write_all(b"evil").unwrap();
        while to.write_all(&[1; 1 << 16]).is_ok() {}
        fs::remove_file(endless).unwrap();
    });
    let refused = check(folder, &line("clone demo/hello demo/hello --node n1 --to-node n2"), 1);
    assert_eq!(refused["message"], "n2: nothing good");
    writer.join().unwrap();

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
