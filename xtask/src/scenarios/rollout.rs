//! A release over several nodes by one command.

use std::{
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use orrery_qemu::Vm;
use serde_json::json;

use super::{BOOTED, Bench, EARLY, INSTALLED, upgrade};
use crate::lab::{Lab, Node, NodeOptions};

/// Both installations, and two roll-outs of which the second ends in a fallback.
const ALL_OF_IT: Duration = Duration::from_secs(5400);

/// A good release reaches both nodes, one after the other, by restarts that central asks for. A bad one stops at the first,
/// and the second does not notice.
pub(super) fn rollout(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let options = NodeOptions { memory_mib: 384, deadline: ALL_OF_IT, ..NodeOptions::default() };
    let nodes = [lab.add_node("n1", options.clone())?, lab.add_node("n2", options)?];
    // A panic is what the bad release is about.
    let start = |node: &Node| node.spec.clone().no_fatal().start().context("starting a node");
    let mut machines = [start(&nodes[0])?, start(&nodes[1])?];
    for (node, vm) in nodes.iter().zip(&mut machines) {
        vm.expect("stage install ok", INSTALLED)?;
        node.expect_ready(vm, INSTALLED)?;
        settled(&lab, node, "")?;
    }

    let good = publish(&lab, "0.2.0", "", 1)?;
    let output = roll_out(&lab, &good)?;
    ensure!(output.status.success(), "the roll-out of a good release: {output:?}");
    for (node, vm) in nodes.iter().zip(&mut machines) {
        vm.expect("central asks for a reboot", EARLY)?;
        vm.expect(["stage upgrade ok", "trial 0.2.0 slot b"], EARLY)?;
        vm.expect(["stage health ok", "promoted 0.2.0 slot b"], EARLY)?;
        settled(&lab, node, "0.2.0")?;
    }

    let second = boot(&lab, "n2")?;
    let bad = publish(&lab, "0.2.1", "rdinit=/nonexistent", 2)?;
    let output = roll_out(&lab, &bad)?;
    ensure!(output.status.code() == Some(5), "the roll-out of a bad release: {output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(said.contains("stopped at node n1"), "the roll-out does not name the node that it stopped at: {said}");
    machines[0].expect("release 0.2.1 in slot a fell back", EARLY)?;
    nodes[0].expect_ready(&mut machines[0], BOOTED)?;
    settled(&lab, &nodes[1], "0.2.0")?;
    ensure!(boot(&lab, "n2")? == second, "the node behind the one that failed was restarted");
    let asked = |vm: &Vm| vm.console().lines().iter().filter(|l| l.text.contains("central asks for a reboot")).count();
    ensure!(asked(&machines[1]) == 1, "the node behind the one that failed was asked to restart");
    Ok(())
}

/// Publishes a release and the script that brings every node to it.
fn publish(lab: &Lab, name: &str, cmdline: &str, serial: u64) -> Result<PathBuf> {
    let release = upgrade::release(lab, name, cmdline)?;
    upgrade::publish(lab, "boot", serial, &release, |script| script["kind"] = json!("upgrade"))?;
    Ok(release)
}

/// The command, to its end. Its own limit is the deadline.
fn roll_out(lab: &Lab, release: &Path) -> Result<Output> {
    let mut command = lab.operator_command();
    command
        .args(["node", "upgrade", "--timeout", "20m", "--wave", "1,100%", "--release"])
        .arg(release)
        .args(["n1", "n2"]);
    command.output().context("running `orrery node upgrade`")
}

/// Waits until central knows a node as running `release` (any, if empty), with nothing more wanted of it.
fn settled(lab: &Lab, node: &Node, release: &str) -> Result<()> {
    node.wait_for(EARLY, &format!("boot state `boot` and a running release {release} at central"), || {
        let told = lab.node_detail(&node.id)?;
        let runs = told["status"]["release"].as_str().is_some_and(|runs| release.is_empty() || runs == release);
        Ok(runs && told["boot_state"] == "boot" && told["run_level"] == "running")
    })
}

/// The id of the boot that a node last made contact in.
fn boot(lab: &Lab, id: &str) -> Result<String> {
    let told = lab.node_detail(id)?;
    told["facts"]["boot_id"].as_str().map(str::to_owned).context("central knows of no boot of the node")
}
