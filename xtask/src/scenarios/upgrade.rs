//! Releases on trial: a good one stays, a bad one falls back by itself. Machines that hang, or refuse to chain-boot.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use orrery_qemu::Vm;
use serde_json::{Value, json};

use super::{BOOTED, Bench, EARLY, INSTALLED, SLIVER, installed};
use crate::lab::{Lab, MediumKind, Node, NodeOptions};

/// A download of what is new, and a boot.
const TRIED: Duration = INSTALLED;
/// Two boots of a release that waits for as long as it may, and the one after them.
const FELL_BACK: Duration = Duration::from_secs(1200);

fn options() -> NodeOptions {
    NodeOptions { deadline: Duration::from_secs(3000), ..NodeOptions::default() }
}

/// A second release that is as good as the first: it is tried, becomes the active one, and what slivers hold stays.
pub(super) fn good_upgrade(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let (node, mut vm) = installed(&lab, "n1", options())?;
    vm.expect(["stage health ok", "confirmed"], EARLY)?;
    lab.add_slice("test/kept", &["n1"], &[])?;
    let written = node.run_when_ready(&lab, "test_kept", "echo here >/root/kept && sync", SLIVER)?;
    ensure!(written.success(), "writing into the sliver: {written}");

    upgrade(&lab, &node, &mut vm, "0.2.0", "")?;
    vm.expect(["stage load ok", "0.2.0 slot b on trial"], TRIED)?;
    vm.expect(["stage health ok", "promoted 0.2.0 slot b"], BOOTED)?;
    let read = node.run_when_ready(&lab, "test_kept", "cat /root/kept", SLIVER)?;
    ensure!(read.stdout.trim() == "here", "the sliver's data is gone: {read}");

    node.wait_for(EARLY, "boot state `boot` at central", || Ok(lab.node_detail("n1")?["boot_state"] == "boot"))?;
    // Asked for once more, there is nothing to do.
    lab.orrery(["node", "set-state", "upgrade", "n1"], [] as [&str; 0])?;
    power_cycle(&mut vm)?;
    vm.expect(["stage upgrade ok", "current 0.2.0 slot b"], EARLY)?;
    vm.expect(["stage health ok", "confirmed 0.2.0 slot b"], BOOTED)?;
    Ok(())
}

/// A release whose kernel panics at once: its panic is what central reads as the reason, and it is not tried again.
pub(super) fn panicking_upgrade(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let node = lab.add_node("n1", options())?;
    // A panic is what this is about.
    let mut vm = node.spec.clone().no_fatal().start()?;
    node.expect_ready(&mut vm, INSTALLED)?;

    upgrade(&lab, &node, &mut vm, "0.2.1", "rdinit=/nonexistent")?;
    for more in ["1 more boots", "0 more boots"] {
        vm.expect(["stage load ok", "0.2.1 slot b on trial", more], TRIED)?;
        vm.expect("Kernel panic", BOOTED)?;
    }
    vm.expect(["release 0.2.1 in slot b fell back", "Kernel panic"], BOOTED)?;
    node.expect_ready(&mut vm, BOOTED)?;
    reason(&lab, &node, "Kernel panic")?;

    power_cycle(&mut vm)?;
    vm.expect(["stage upgrade FAILED", "unhealthy", "Kernel panic"], EARLY)?;
    node.expect_ready(&mut vm, BOOTED).map(drop)
}

/// A release that comes up, and never gets to its network: nothing crashes, and it is given up all the same.
pub(super) fn unhealthy_upgrade(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let (node, mut vm) = installed(&lab, "n1", options())?;
    upgrade(&lab, &node, &mut vm, "0.2.2", "initcall_blacklist=virtio_net_driver_init orrery.patience=60")?;
    for _ in 0..2 {
        vm.expect(["stage load ok", "0.2.2 slot b on trial"], TRIED)?;
        vm.expect("giving the trial up", BOOTED)?;
    }
    vm.expect(["release 0.2.2 in slot b fell back"], FELL_BACK)?;
    node.expect_ready(&mut vm, BOOTED)?;
    reason(&lab, &node, "giving the trial up")
}

/// Safe mode asks central again when it is told to. Then its first process is stopped dead: the machine is reset, and comes
/// back.
pub(super) fn hung_machine(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let node = lab.add_node("n1", NodeOptions::default())?;
    lab.orrery(["node", "set-state", "safe", "n1"], [] as [&str; 0])?;
    let mut vm = node.spec.clone().watchdog().start()?;
    vm.expect("stage safe ok", EARLY)?;
    let administrator = node.ssh("root");
    administrator.run("kill -HUP 1", EARLY).context("running the ssh client")?;
    vm.expect(["somebody asks for the next attempt now"], EARLY)?;
    vm.expect("stage contact ok", EARLY)?;
    let freeze = "cd /sys/fs/cgroup && mkdir ice && echo 1 >ice/cgroup.procs && echo 1 >ice/cgroup.freeze";
    let frozen = administrator.run(freeze, EARLY).context("running the ssh client")?;
    ensure!(frozen.success(), "freezing PID 1: {frozen}");
    vm.expect(["orrery[boot] +", "started, boot"], BOOTED)?;
    vm.expect("stage safe ok", EARLY)?;
    Ok(())
}

/// A machine that is said not to survive a chain-boot: the node OS is entered under the medium's kernel, and serves.
pub(super) fn kexec_waived(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    for kind in ["install", "boot"] {
        publish(&lab, kind, 2, &lab.release(), |script| script["waivers"] = json!(["kexec"]))?;
    }
    let (node, mut vm) = installed(&lab, "n1", options())?;
    ensure!(said(&vm, "entering 0."), "the node OS was chain-booted all the same");
    vm.expect(["stage health ok", "confirmed"], EARLY)?;
    lab.add_slice("test/inside", &["n1"], &[])?;
    let inside = node.run_when_ready(&lab, "test_inside", "id -u", SLIVER)?;
    ensure!(inside.stdout.trim() == "0", "no root shell in the sliver: {inside}");
    Ok(())
}

/// A kernel that refuses to load the next one: the firmware is tried once, then the node OS is entered.
pub(super) fn kexec_refused(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let node = lab.add_node("n1", NodeOptions { medium: MediumKind::Pxe, ..options() })?;
    let script = node.medium.join("boot.ipxe");
    let text = fs::read_to_string(&script).with_context(|| format!("reading {}", script.display()))?;
    let text = text.replace("orrery.role=boot", "orrery.role=boot sysctl.kernel.kexec_load_disabled=1");
    fs::write(&script, text).with_context(|| format!("writing {}", script.display()))?;
    let mut vm = node.spec.start()?;
    vm.expect(["stage load FAILED", "kexec"], INSTALLED)?;
    vm.expect(["entering 0."], BOOTED)?;
    node.expect_ready(&mut vm, BOOTED).map(drop)
}

fn said(vm: &Vm, text: &str) -> bool {
    vm.console().lines().iter().any(|line| line.text.contains(text))
}

/// Publishes a second release, asks for it on this node, and starts it over.
fn upgrade(lab: &Lab, node: &Node, vm: &mut Vm, name: &str, cmdline: &str) -> Result<()> {
    let release = release(lab, name, cmdline)?;
    publish(lab, "boot", 1, &release, |script| script["kind"] = json!("upgrade"))?;
    lab.orrery(["node", "set-state", "upgrade", &node.id], [] as [&str; 0])?;
    power_cycle(vm)?;
    vm.expect(["stage upgrade ok", &format!("trial {name} slot b")], TRIED)?;
    Ok(())
}

/// Publishes a script that is changed before it is signed.
pub(super) fn publish(lab: &Lab, kind: &str, serial: u64, release: &Path, edit: impl FnOnce(&mut Value)) -> Result<()> {
    let folder = tempfile::Builder::new().prefix(kind).tempdir_in(&lab.folder).context("making a folder")?.keep();
    let unsigned = folder.join("script.json");
    let serial = serial.to_string();
    let order = ["script", "new", "--kind", kind, "--node", "*", "--serial", &serial, "--expires", "30d", "--release"];
    lab.orrery(order, [release, Path::new("--out"), &unsigned])?;
    change(&unsigned, edit)?;
    lab.orrery(["script", "sign", "--key"], [lab.release_key(), unsigned])?;
    lab.orrery(["script", "publish"], [folder.join("script.signed")]).map(drop)
}

/// The installation's release under another name, with more on the node OS's command line; published. The path of its
/// signed manifest.
pub(super) fn release(lab: &Lab, name: &str, cmdline: &str) -> Result<PathBuf> {
    let folder = lab.folder.join(format!("release-{name}"));
    lab.orrery(["release", "assemble", "--images"], [lab.images.as_path(), Path::new("--out"), &folder])?;
    let path = folder.join("manifest.json");
    change(&path, |manifest| {
        let usual = manifest["cmdline"].as_str().unwrap_or_default();
        manifest["cmdline"] = json!(format!("{usual} {cmdline}").trim());
        manifest["release"] = json!(name);
    })?;
    lab.orrery(["release", "sign", "--key"], [lab.release_key(), path])?;
    let signed = folder.join("manifest.signed");
    lab.orrery(["release", "publish"], [&signed])?;
    Ok(signed)
}

/// Changes an unsigned file.
fn change(path: &Path, change: impl FnOnce(&mut Value)) -> Result<()> {
    let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let mut value = serde_json::from_slice(&text).with_context(|| format!("understanding {}", path.display()))?;
    change(&mut value);
    fs::write(path, value.to_string()).with_context(|| format!("writing {}", path.display()))
}

fn power_cycle(vm: &mut Vm) -> Result<()> {
    vm.power_cut();
    vm.start_again().context("starting the machine again")
}

/// What central was told of a fallback.
fn reason(lab: &Lab, node: &Node, expect: &str) -> Result<()> {
    let mut told = Value::Null;
    node.wait_for(EARLY, "a fallback at central", || {
        let events = lab.events(&node.id)?;
        let fell_back = |event: &&Value| event["message"].as_str().is_some_and(|message| message.contains("fell back"));
        told = events.iter().find(fell_back).cloned().unwrap_or_default();
        Ok(!told.is_null())
    })?;
    let message = told["message"].as_str().unwrap_or_default();
    ensure!(told["class"] == "unhealthy" && message.contains(expect), "central was told of the fallback: {told}");
    Ok(())
}
