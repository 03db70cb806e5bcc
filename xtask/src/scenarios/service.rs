//! What runs in a sliver without a login: an image's entrypoint as a service, and an initscript.

use std::{
    fs,
    io::Read,
    net::{Ipv4Addr, TcpStream},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use orrery_qemu::{Network, free_port};

use super::{BOOTED, Bench, EARLY, INSTALLED, SLIVER};
use crate::{
    command,
    lab::{Lab, Node, NodeOptions},
};

/// Where the service listens in the sliver, which is the node's.
const PORT: u16 = 8080;
/// How long a service that is wanted may take to answer on an emulated processor.
const UP: Duration = Duration::from_secs(120);

/// An image by umoci, whose entrypoint serves TCP as a user of its own: up before any login, prepared by the initscript, started again
/// when it is killed and when the node was restarted, heard of in the log and at central, ended when it is no longer wanted.
pub(super) fn service(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    publish_image(&lab, bench)?;
    let node = lab.add_node("n1", NodeOptions::default())?;
    let port = free_port().context("finding a free port")?;
    let network = Network::default().forward(node.ssh_port, 22).forward(port, PORT);
    let mut vm = node.spec.clone().network(network).start()?;
    vm.expect(["stage install ok"], INSTALLED)?;
    node.expect_ready(&mut vm, INSTALLED)?;

    let script = lab.folder.join("initscript");
    fs::write(&script, "#!/bin/sh\necho \"prepared by $*\" > /etc/prepared\necho preparing\n")
        .context("writing a script")?;
    let key = lab.user_key().with_extension("pub");
    let arguments = ["slice", "add", "demo/own", "--image", "own", "--node", "n1", "--service"];
    lab.orrery(arguments, [Path::new("--key"), &key, Path::new("--initscript"), &script])?;
    let first = answer(&node, port, SLIVER, "the first answer", |_| true)?;
    ensure!(first.starts_with("1000 ") && first.ends_with(" prepared by start demo/own"), "{first:?}");

    let killed = node.ssh("demo_own").run(&format!("kill -9 {}", process(&first)), EARLY).context("running ssh")?;
    ensure!(killed.success(), "killing the service: {killed}");
    let second = answer(&node, port, UP, "another service", |now| now != first)?;
    node.wait_for(UP, "event of the service's end", || {
        let events = lab.events("n1")?;
        Ok(events.iter().any(|event| {
            event["message"].as_str().is_some_and(|text| text.contains("demo/own: the service was killed by signal 9"))
        }))
    })?;

    let log = log(&lab, &node)?;
    for part in [" initscript preparing", " service serving as 1000 on 8080", " node service ended with status 137"] {
        ensure!(log.contains(part), "no {part:?} in the log:\n{log}");
    }

    let mark = vm.console().mark();
    lab.orrery(["node", "reboot", "n1"], [] as [&Path; 0])?;
    vm.expect_from(mark, "central asks for a reboot", EARLY)?;
    node.expect_ready_from(&mut vm, mark, BOOTED)?;
    answer(&node, port, UP, "a service after the reboot", |now| !now.is_empty())?;
    let after = self::log(&lab, &node)?;
    ensure!(after.starts_with(&log), "the log did not survive:\n{after}");
    let starts = |text: &str| text.matches(" service serving as 1000").count();
    ensure!((starts(&log), starts(&after)) == (2, 3), "not one start more:\n{after}");
    ensure!(second.starts_with("1000 "), "{second:?}");

    vm.power_cut();
    vm.start_again()?;
    node.expect_ready(&mut vm, BOOTED)?;
    answer(&node, port, UP, "a service after the power cut", |now| !now.is_empty())?;

    lab.orrery(["slice", "set", "demo/own", "--no-service"], [] as [&Path; 0])?;
    node.wait_for(UP, "end of the service", || Ok(fetch(port).is_empty()))?;
    let mut shown = lab.operator_command();
    shown.args(["slice", "show", "demo/own"]);
    ensure!(!command::output(&mut shown)?.contains("service"), "the slice still has a service");
    Ok(())
}

/// What the service says; nothing if there is none.
fn fetch(port: u16) -> String {
    let mut text = String::new();
    // The machine's network accepts connections for a guest that does not.
    if let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) {
        let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        let _ = stream.read_to_string(&mut text);
    }
    text.trim_end().to_owned()
}

/// Waits for an answer of the service's that is as wanted.
fn answer(node: &Node, port: u16, within: Duration, what: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
    let mut said = String::new();
    node.wait_for(within, what, || {
        said = fetch(port);
        Ok(!said.is_empty() && wanted(&said))
    })?;
    Ok(said)
}

/// The process that gave an answer.
fn process(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or_default()
}

fn log(lab: &Lab, node: &Node) -> Result<String> {
    let mut logs = lab.operator_command();
    let address = format!("127.0.0.1:{}", node.ssh_port);
    logs.args(["slice", "logs", "demo/own", "--node", &node.id, "--address", &address, "--identity"])
        .arg(lab.user_key());
    command::output(&mut logs)
}

/// Publishes a release whose image `own` has nothing but a shell and the service.
fn publish_image(lab: &Lab, bench: &Bench<'_>) -> Result<()> {
    let folder = lab.folder.join("own");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    make_layout(&folder, &bench.images.busybox, &bench.images.vm_tests.join("sliver_programs"))?;
    lab.publish_image("own", &folder)
}

fn make_layout(folder: &Path, busybox: &Path, server: &Path) -> Result<()> {
    let umoci = |line: &str| command::output(Command::new("umoci").current_dir(folder).args(line.split(' '))).map(drop);
    umoci("init --layout layout")?;
    umoci("new --image layout:v1")?;
    umoci("unpack --image layout:v1 bundle")?;
    let root = folder.join("bundle/rootfs");
    for name in ["bin", "etc", "root", "tmp"] {
        fs::create_dir_all(root.join(name)).with_context(|| format!("making {name}"))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:1000:1000::/:/bin/sh\n")
        .context("writing passwd")?;
    fs::copy(busybox, root.join("bin/busybox")).context("copying busybox")?;
    fs::copy(server, root.join("bin/server")).context("copying the service")?;
    for name in ["sh", "cat", "mkdir", "chmod", "kill", "echo"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name))
            .with_context(|| format!("linking {name}"))?;
    }
    umoci("repack --image layout:v1 bundle")?;
    let program = "--config.entrypoint /bin/server --config.cmd serve --config.env PORT=8080 --config.user web";
    umoci(&format!("config --image layout:v1 {program}"))
}
