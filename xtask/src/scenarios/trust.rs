//! Whom a node does not obey.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use orrery_qemu::ssh::Ssh;

use super::{BOOTED, Bench, EARLY, INSTALLED, installed};
use crate::lab::{Lab, NodeOptions, ScriptOptions};

/// A refused script, seen at central: a boot, a refusal, and a report.
const REFUSED: Duration = EARLY;

/// Scripts that a compromised boot server could serve: signed by somebody else, and for another node.
pub(super) fn refused_scripts(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let stranger = lab.folder.join("stranger.key");
    lab.orrery(["keys", "new", "--out"], [&stranger])?;
    let node = lab.add_node("n1", NodeOptions::default())?;

    // The newest script of a kind is served: each bad one is newer than the good one before.
    lab.publish_script("install", &ScriptOptions { serial: 2, key: stranger, ..lab.usual_script() })?;
    let mut vm = node.spec.start()?;
    vm.expect(["stage verify FAILED", "signature"], REFUSED)?;
    node.wait_failure(&lab, "signature", REFUSED)?;

    let elsewhere = lab.script("install", &ScriptOptions { node: "n2", serial: 3, ..lab.usual_script() })?;
    lab.central.serve_instead(&elsewhere)?;
    vm.expect(["stage verify FAILED", "wrong-node"], REFUSED)?;
    node.wait_failure(&lab, "wrong-node", REFUSED)?;
    vm.power_cut();

    let brief = lab.script("install", &ScriptOptions { serial: 4, expires: "1s", ..lab.usual_script() })?;
    lab.central.serve_instead(&brief)?;
    vm.start_again()?;
    vm.expect(["stage verify FAILED", "expired"], REFUSED)?;
    node.wait_failure(&lab, "expired", REFUSED)?;

    let good = lab.script("install", &ScriptOptions { serial: 5, ..lab.usual_script() })?;
    lab.central.serve_instead(&good)?;
    node.expect_ready(&mut vm, INSTALLED).map(drop)
}

/// A replayed script, older than the one the node has obeyed.
pub(super) fn stale_script(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let old = lab.script("boot", &ScriptOptions { serial: 1, ..lab.usual_script() })?;
    lab.publish_script("boot", &ScriptOptions { serial: 9, ..lab.usual_script() })?;
    let (node, mut vm) = installed(&lab, "n1", NodeOptions::default())?;
    // The second boot is the first to obey a script of kind `boot`.
    vm.power_cut();
    vm.start_again()?;
    node.expect_ready(&mut vm, BOOTED)?;

    lab.central.serve_instead(&old)?;
    vm.power_cut();
    vm.start_again()?;
    vm.expect(["stage verify FAILED", "stale"], REFUSED)?;
    node.wait_failure(&lab, "stale", REFUSED).map(drop)
}

/// A server with a certificate of another authority, at the address the node knows.
pub(super) fn wrong_authority(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let other = Lab::create(&bench.folder.join("other"), bench.images)?;
    let options = NodeOptions { url: Some(other.central.url_for_guest()), ..NodeOptions::default() };
    let node = lab.add_node("n1", options)?;
    let mut vm = node.spec.start()?;
    vm.expect(["stage contact FAILED", "tls", "pinned CA"], REFUSED)?;
    ensure!(other.orrery(["node", "list"], [] as [&str; 0])?.as_array().is_some_and(Vec::is_empty));
    Ok(())
}

/// Central is down: an installed node boots by the last good script, and tells why once central is back.
pub(super) fn central_away(bench: &Bench<'_>) -> Result<()> {
    let mut lab = bench.lab()?;
    let (node, mut vm) = installed(&lab, "n1", NodeOptions::default())?;
    // The second boot is the first to obey a script of kind `boot`, and keeps it.
    vm.power_cut();
    vm.start_again()?;
    node.expect_ready(&mut vm, BOOTED)?;

    vm.power_cut();
    lab.central.stop()?;
    vm.start_again()?;
    vm.expect(["stage contact ok", "last good script"], EARLY)?;
    node.expect_ready(&mut vm, BOOTED)?;
    lab.central.start()?;
    node.wait_for(EARLY, "status of an offline boot at central", || {
        let detail = lab.node_detail("n1")?;
        let marked = detail["status"]["offline"].as_str().is_some_and(|why| why.contains("central unreachable"));
        Ok(marked && detail["run_level"] == "running")
    })
}

/// A node in a group that obeys two of three keys: the group's script by one key is refused, the one that a second person signed as
/// well is obeyed, and so is the release.
pub(super) fn group_threshold(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let [second, third] = ["second.key", "third.key"].map(|name| lab.folder.join(name));
    for key in [&second, &third] {
        lab.orrery(["keys", "new", "--out"], [key])?;
    }
    let release = lab.release().with_file_name("manifest-both.signed");
    lab.orrery(["release", "sign", "--yes", "--key"], [&second, Path::new("--out"), &release, &lab.release()])?;
    lab.orrery(["release", "publish"], [&release])?;
    let public = [&second, &third].map(|key| format!("{}.pub", key.display()));
    let arguments =
        ["--release-key", &public[0], "--release-key", &public[1], "--release-threshold", "2", "--group", "g1"];
    let options = NodeOptions { arguments: arguments.map(String::from).to_vec(), ..NodeOptions::default() };
    let node = lab.add_node("n1", options)?;

    let by_one = group_script(&lab, 2, &release)?;
    lab.orrery(["script", "publish"], [&by_one])?;
    let mut vm = node.spec.start()?;
    vm.expect(["stage verify FAILED", "signature"], REFUSED)?;
    node.wait_failure(&lab, "signature", REFUSED)?;

    let by_two = lab.folder.join("by-two.signed");
    let by_one = group_script(&lab, 3, &release)?;
    lab.orrery(["script", "sign", "--yes", "--key"], [&second, Path::new("--out"), &by_two, &by_one])?;
    lab.orrery(["script", "publish"], [&by_two])?;
    vm.expect(["stage verify ok", "install serial 3"], INSTALLED)?;
    vm.expect("stage install ok", INSTALLED)?;
    node.expect_ready(&mut vm, INSTALLED).map(drop)
}

/// An `install` script for the group `g1`, signed by the installation's usual key; the signed file's path.
fn group_script(lab: &Lab, serial: u64, release: &Path) -> Result<PathBuf> {
    let unsigned = lab.folder.join(format!("group-{serial}.json"));
    let serial = serial.to_string();
    let order = ["script", "new", "--kind", "install", "--group", "g1", "--serial", &serial, "--release"];
    lab.orrery(order, [release, Path::new("--out"), &unsigned])?;
    lab.orrery(["script", "sign", "--key"], [&lab.release_key(), &unsigned])?;
    Ok(unsigned.with_extension("signed"))
}

/// Safe mode by script: an administrator logs in with the script's key, nobody else does.
pub(super) fn safe_mode(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let node = lab.add_node("n1", NodeOptions::default())?;
    lab.orrery(["node", "set-state", "safe", "n1"], [] as [&str; 0])?;
    let mut vm = node.spec.start()?;
    vm.expect("safe mode", EARLY)?;
    vm.expect(["stage safe ok"], EARLY)?;
    let administrator = node.ssh("root");
    let output = administrator.run("cat /etc/orrery-release", EARLY).context("running the ssh client")?;
    ensure!(output.success() && output.stdout.contains("version="), "no shell in safe mode: {output}");

    let other_key = lab.folder.join("other_ed25519");
    orrery_qemu::ssh::generate_key(&other_key).context("making another key")?;
    let refused = Ssh { key: other_key, ..administrator }.run("id", EARLY).context("running the ssh client")?;
    ensure!(!refused.success() && refused.stderr.contains("Permission denied"), "a stranger's key: {refused}");
    node.wait_for(EARLY, "run level `safe` at central", || Ok(lab.node_detail("n1")?["run_level"] == "safe"))
}
