//! What users keep and move of their slivers, by the operator's command, over a power cut and from node to node.

use std::{
    fs::{self, File},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use orrery_qemu::Vm;
use serde_json::Value;

use super::{BOOTED, Bench, INSTALLED, SLIVER};
use crate::{
    command::output,
    lab::{Lab, Node, NodeOptions},
};

/// One command in a sliver, on an emulated processor.
const COMMAND: Duration = Duration::from_secs(120);

pub(super) fn snapshots(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let (near, far) = (lab.add_node("n1", NodeOptions::default())?, lab.add_node("n2", NodeOptions::default())?);
    let (mut vm, mut far_vm) = (near.spec.start()?, far.spec.start()?);
    for (node, vm) in [(&near, &mut vm), (&far, &mut far_vm)] {
        vm.expect(["stage install ok"], INSTALLED)?;
        node.expect_ready(vm, INSTALLED)?;
    }
    lab.add_slice("demo/one", &["n1"], &[])?;
    lab.add_slice("demo/two", &["n1"], &[])?;
    lab.add_slice("demo/far", &["n2"], &[])?;
    let write = "echo first > /root/data; chown 1000 /root/data; rm /etc/issue; sync";
    ensure!(near.run_when_ready(&lab, "demo_one", write, SLIVER)?.success(), "writing in the sliver failed");
    near.run_when_ready(&lab, "demo_two", "true", SLIVER)?;
    far.run_when_ready(&lab, "demo_far", "true", SLIVER)?;
    let slices = Slices { lab: &lab, nodes: [&near, &far] };

    let taken = slices.json(&["snapshot", "create"], &["demo/one", "before"])?;
    ensure!(taken["name"] == "before", "orrery slice snapshot create: {taken}");
    // What was said to be there is there after a power cut at once.
    power_cut(&near, &mut vm, "demo_one")?;
    run(&near, "demo_one", "echo second > /root/data; echo back > /etc/issue")?;
    let listed = slices.json(&["snapshot", "list"], &["demo/one"])?;
    ensure!(listed.as_array().is_some_and(|all| all.len() == 1), "orrery slice snapshot list: {listed}");
    slices.json(&["snapshot", "restore"], &["demo/one", "before"])?;
    power_cut(&near, &mut vm, "demo_one")?;
    expect_first(&near, "demo_one", "the restored sliver")?;

    slices.json(&["clone"], &["demo/one", "demo/two", "--snapshot", "before"])?;
    expect_first(&near, "demo_two", "the clone beside it")?;

    let export = lab.folder.join("export");
    let into = File::create(&export).context("making a file for the export")?;
    let exported = slices.command(&["export"], &["demo/one", "--snapshot", "before"]).stdout(into).status();
    ensure!(exported.context("running orrery")?.success(), "orrery slice export failed");
    let whole = fs::metadata(&export).context("examining the export")?.len();
    let cut = lab.folder.join("cut");
    fs::copy(&export, &cut).context("copying the export")?;
    File::options().write(true).open(&cut).and_then(|file| file.set_len(whole - 7)).context("cutting the export")?;
    run(&far, "demo_far", "echo mine > /root/data")?;
    let refused = slices.import(&cut)?;
    ensure!(!refused.status.success(), "a cut export was imported");
    ensure!(run(&far, "demo_far", "cat /root/data")? == "mine\n", "a refused import changed the sliver");
    let imported = slices.import(&export)?;
    ensure!(imported.status.success(), "orrery slice import: {}", String::from_utf8_lossy(&imported.stderr));
    expect_first(&far, "demo_far", "the import")?;

    run(&near, "demo_one", "echo third > /root/data")?;
    slices.json(&["clone"], &["demo/one", "demo/far"])?;
    ensure!(run(&far, "demo_far", "cat /root/data")? == "third\n", "a clone on another node");
    slices.json(&["snapshot", "delete"], &["demo/one", "before"])?;
    let refused = slices.command(&["snapshot", "restore"], &["demo/one", "before"]).output();
    let said = String::from_utf8_lossy(&refused.context("running orrery")?.stderr).into_owned();
    ensure!(said.contains("no snapshot `before`"), "a deleted snapshot: {said}");
    Ok(())
}

/// The operator's command, told how the nodes are reached.
struct Slices<'a> {
    lab: &'a Lab,
    nodes: [&'a Node; 2],
}

impl Slices<'_> {
    fn command(&self, verb: &[&str], rest: &[&str]) -> Command {
        let places = self.nodes.map(|node| format!("{}=127.0.0.1:{}", node.id, node.ssh_port)).join(",");
        let mut command = self.lab.operator_command();
        command.arg("--json").arg("slice").args(verb).args(rest).args(["--address", &places, "-i"]);
        command.arg(self.lab.user_key());
        command
    }

    fn json(&self, verb: &[&str], rest: &[&str]) -> Result<Value> {
        let said = output(&mut self.command(verb, rest))?;
        serde_json::from_str(&said).with_context(|| format!("reading what orrery slice {} printed", verb.join(" ")))
    }

    fn import(&self, from: &std::path::Path) -> Result<std::process::Output> {
        let from = File::open(from).context("opening the export")?;
        self.command(&["import"], &["demo/far"]).stdin(from).output().context("running orrery")
    }
}

/// A command in a sliver that has to end well; what it wrote.
fn run(node: &Node, login: &str, command: &str) -> Result<String> {
    let ran = node.ssh(login).run(command, COMMAND).context("running the ssh client")?;
    ensure!(ran.success(), "`{command}` in {login}: {ran}");
    Ok(ran.stdout)
}

fn expect_first(node: &Node, login: &str, what: &str) -> Result<()> {
    let said = run(node, login, "cat /root/data; stat -c %u /root/data; ls /etc/issue 2>&1 || true")?;
    let removed = said.contains("No such file");
    ensure!(said.starts_with("first\n1000\n") && removed, "{what} is not what the snapshot was: {said}");
    Ok(())
}

/// Cuts a node's power, and waits until its sliver of this login can be entered again.
fn power_cut(node: &Node, vm: &mut Vm, login: &str) -> Result<()> {
    vm.power_cut();
    vm.start_again()?;
    node.expect_ready(vm, BOOTED)?;
    let enters = || Ok(node.ssh(login).run("true", COMMAND).context("running the ssh client")?.success());
    node.wait_for(COMMAND, "login after a power cut", enters)
}
