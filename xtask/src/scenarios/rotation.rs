//! What changes in the life of a node that nobody can drive to: whom it trusts, who it is, and what it could not say in time.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{BOOTED, Bench, EARLY, INSTALLED, SLIVER, installed};
use crate::lab::{Lab, Node, NodeOptions, ScriptOptions};

/// A new release key takes over by a signed update, and the old one loses its power; a disk that knows refuses it even when
/// central is made to forget the update.
pub(super) fn rotated_keys(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let (node, mut vm) = installed(&lab, "n1", NodeOptions::default())?;
    let new_key = lab.folder.join("new.key");
    lab.orrery(["keys", "new", "--out"], [&new_key])?;
    let update = lab.trust_update(&node.config, &[&new_key], &[])?;
    lab.orrery(["trust", "publish"], [&update])?;

    // What is installed was signed by the old key: it is replaced by the same release, signed anew.
    let release = lab.folder.join("release");
    let before = release.join("manifest-before.signed");
    fs::rename(lab.release(), &before).context("putting the signed manifest aside")?;
    lab.orrery(["release", "sign", "--yes", "--key"], [&new_key, Path::new("--out"), &lab.release(), &before])?;
    lab.orrery(["release", "publish"], [lab.release()])?;
    let by = |serial| ScriptOptions { serial, key: new_key.clone(), ..lab.usual_script() };
    for kind in ["install", "boot", "safe"] {
        lab.publish_script(kind, &by(20))?;
    }
    vm.power_cut();
    vm.start_again()?;
    vm.expect("trust root 1", EARLY)?;
    vm.expect(["stage verify ok", "boot serial 20"], EARLY)?;
    node.expect_ready(&mut vm, INSTALLED)?;
    ensure!(lab.node_detail("n1")?["facts"]["trust_serial"] == 1, "central was told of another trust root");

    // A script by the key that was taken out of use, and a central that no longer knows of the update.
    let old = lab.script("boot", &ScriptOptions { serial: 30, ..lab.usual_script() })?;
    lab.central.serve_instead(&old)?;
    lab.central.forget_roots()?;
    vm.power_cut();
    vm.start_again()?;
    vm.expect(["stage verify FAILED", "signature"], EARLY)?;
    node.wait_failure(&lab, "signature", EARLY).map(drop)
}

/// Central's server shows a certificate of a new authority, and the trust update that leads to it is published.
fn change_authority(lab: &mut Lab, node: &Node) -> Result<()> {
    let authority = lab.central.new_authority()?;
    let update = lab.trust_update(&node.config, &[&lab.release_key()], &[&authority])?;
    lab.orrery(["trust", "publish"], [&update])?;
    lab.orrery(["trust", "adopt", "--from"], [&node.config, &update])?;
    lab.central.stop()?;
    lab.central.start()
}

/// Central changes over to a new authority: a medium that pins the old one follows the signed updates to it, which it gets from a
/// server that it cannot verify. Updates that others signed lead nowhere.
pub(super) fn rotated_authority(bench: &Bench<'_>) -> Result<()> {
    let mut lab = bench.lab()?;
    let node = lab.add_node("n1", NodeOptions::default())?;
    change_authority(&mut lab, &node)?;

    let mut vm = node.spec.start()?;
    vm.expect("trust root 1", EARLY)?;
    vm.expect("stage contact ok", EARLY)?;
    node.expect_ready(&mut vm, INSTALLED)?;
    // The node OS reaches the new authority's server by what was handed over to it.
    node.wait_for(EARLY, "run level `running` at central", || Ok(lab.node_detail("n1")?["run_level"] == "running"))?;
    // The disk has kept the update.
    vm.power_cut();
    vm.start_again()?;
    vm.expect(["trust root 1", "by the disk"], EARLY)?;
    node.expect_ready(&mut vm, BOOTED).map(drop)
}

/// Central changes over to a new authority while the node OS runs: it follows, and goes on as before.
pub(super) fn running_authority(bench: &Bench<'_>) -> Result<()> {
    let mut lab = bench.lab()?;
    let (node, mut vm) = installed(&lab, "n1", NodeOptions::default())?;
    node.wait_for(EARLY, "run level `running` at central", || Ok(lab.node_detail("n1")?["run_level"] == "running"))?;
    change_authority(&mut lab, &node)?;
    vm.expect("trust root 1", EARLY)?;
    // What is wanted gets through, and so does what became of it.
    lab.add_slice("demo/hello", &["n1"], &[])?;
    let said = node.run_when_ready(&lab, "demo_hello", "id -u", SLIVER)?;
    ensure!(said.stdout == "0\n", "no sliver after the change: {said}");
    Ok(())
}

/// A medium without a key: the machine makes one, becomes the node that the token stands for, and stays it; nobody else becomes it by
/// the same token.
pub(super) fn enrolment(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let made = lab.orrery(["enrol", "new", "--node", "n1"], [] as [&str; 0])?;
    let token = made["token"].as_str().context("`orrery enrol new` printed no token")?.to_owned();
    let options = NodeOptions { token: Some(token), ..NodeOptions::default() };
    let node = lab.add_node("n1", options.clone())?;
    let mut vm = node.spec.start()?;
    vm.expect("enrolled as node n1", EARLY)?;
    vm.expect("its token is spent", EARLY)?;
    vm.expect("stage install ok", INSTALLED)?;
    node.expect_ready(&mut vm, INSTALLED)?;
    let host_key = lab.node_detail("n1")?["facts"]["ssh_host_key"].clone();
    node.wait_for(EARLY, "run level `running` at central", || Ok(lab.node_detail("n1")?["run_level"] == "running"))?;

    // The disk makes it the same node again, through a reinstallation as well.
    lab.orrery(["node", "set-state", "reinstall", "n1"], [] as [&str; 0])?;
    vm.power_cut();
    vm.start_again()?;
    vm.expect(["node n1 by the key that /dev/", " keeps"], EARLY)?;
    vm.expect("stage install ok", INSTALLED)?;
    node.expect_ready(&mut vm, INSTALLED)?;
    ensure!(lab.node_detail("n1")?["facts"]["ssh_host_key"] == host_key, "the node has another host key");

    let stranger = lab.add_node("stranger", options)?;
    let mut vm = stranger.spec.start()?;
    vm.expect(["stage contact FAILED", "enrolment", "token"], EARLY).map(drop)?;
    Ok(())
}

/// A node gets another key: the old medium works on for a while and says what to do, until the new one is used; then it is told why
/// it is nobody.
pub(super) fn renewed_key(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let node = lab.add_node("n1", NodeOptions::default())?;
    let new = node.config.with_file_name("new.toml");
    lab.orrery(
        ["node", "renew", "n1", "--grace", "2d", "--end-grace", "--from"],
        [&node.config, Path::new("--out"), &new],
    )?;
    let stamp = |config: &Path| lab.orrery(["media", "stamp"], [&node.medium, Path::new("--config"), config]);

    let mut vm = node.spec.start()?;
    vm.expect(["this medium's key was replaced", "flash the medium made then"], EARLY)?;
    node.expect_ready(&mut vm, INSTALLED)?;

    vm.power_cut();
    stamp(&new)?;
    vm.start_again()?;
    node.expect_ready(&mut vm, BOOTED)?;
    node.wait_for(EARLY, "run level `running` at central", || Ok(lab.node_detail("n1")?["run_level"] == "running"))?;

    vm.power_cut();
    stamp(&node.config)?;
    vm.start_again()?;
    vm.expect(["the key of node n1 was replaced", "flash the medium made then"], EARLY).map(drop)?;
    Ok(())
}

/// A node out of service waits in safe mode, whatever its disk holds, and is as it was when it is back.
pub(super) fn disabled(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let (node, mut vm) = installed(&lab, "n1", NodeOptions::default())?;
    lab.add_slice("demo/hello", &["n1"], &[])?;
    let written = node.run_when_ready(&lab, "demo_hello", "echo kept > /root/word && sync", SLIVER)?;
    ensure!(written.success(), "writing into the sliver: {written}");
    lab.orrery(["node", "set-state", "disabled", "n1"], [] as [&str; 0])?;
    for _ in 0..2 {
        vm.power_cut();
        vm.start_again()?;
        vm.expect("stage safe ok", EARLY)?;
        ensure!(lab.node_detail("n1")?["boot_state"] == "disabled", "the node's report changed the operator's word");
    }
    lab.orrery(["node", "set-state", "boot", "n1"], [] as [&str; 0])?;
    vm.power_cut();
    vm.start_again()?;
    node.expect_ready(&mut vm, BOOTED)?;
    let read = node.run_when_ready(&lab, "demo_hello", "cat /root/word", SLIVER)?;
    ensure!(read.stdout.trim() == "kept", "the sliver's data is gone: {read}");
    Ok(())
}

/// A boot that central knows nothing of: its events are kept, and arrive by the next boot; that it was offline is told.
pub(super) fn kept_reports(bench: &Bench<'_>) -> Result<()> {
    let mut lab = bench.lab()?;
    let (node, mut vm) = installed(&lab, "n1", NodeOptions::default())?;
    // The second boot is the first to obey a script of kind `boot`, and keeps it.
    vm.power_cut();
    vm.start_again()?;
    node.expect_ready(&mut vm, BOOTED)?;
    node.wait_for(EARLY, "run level `running` at central", || Ok(lab.node_detail("n1")?["run_level"] == "running"))?;

    lab.central.stop()?;
    vm.power_cut();
    vm.start_again()?;
    vm.expect(["stage contact ok", "last good script"], EARLY)?;
    node.expect_ready(&mut vm, BOOTED)?;
    // The events of the medium were kept at the latest before the chain-boot.
    vm.power_cut();
    lab.central.start()?;
    vm.start_again()?;
    node.expect_ready(&mut vm, BOOTED)?;
    node.wait_for(EARLY, "the event about the offline boot", || {
        let offline = |message: &str| message.contains("using the last good script");
        Ok(lab.events("n1")?.iter().any(|event| event["message"].as_str().is_some_and(offline)))
    })
}

/// A panic in safe mode: the next boot tells central how the kernel went down.
pub(super) fn told_panic(bench: &Bench<'_>) -> Result<()> {
    const ASKED: Duration = Duration::from_secs(30);
    let lab = bench.lab()?;
    let node = lab.add_node("n1", NodeOptions::default())?;
    lab.orrery(["node", "set-state", "safe", "n1"], [] as [&str; 0])?;
    let mut vm = node.spec.clone().no_fatal().start()?;
    vm.expect("stage safe ok", EARLY)?;
    // The connection dies with the kernel.
    let _ = node.ssh("root").run("echo c > /proc/sysrq-trigger", ASKED);
    vm.expect("Kernel panic - not syncing", EARLY)?;
    vm.expect("stage safe ok", EARLY)?;
    let message = node.wait_failure(&lab, "crashed", EARLY)?;
    ensure!(message.contains("Kernel panic - not syncing"), "central was told {message:?}");
    Ok(())
}
