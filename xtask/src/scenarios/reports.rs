//! What central can show of a node: its log, what an earlier boot left behind, and all of it in one file.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};

use super::{BOOTED, Bench, EARLY, installed};
use crate::{
    command,
    lab::{Lab, NodeOptions},
};

/// What no bundle may hold.
const SECRET: &str = "PRIVATE KEY";

/// The log of the running boot, the earlier boot's after a reset, and a bundle with both and without a secret.
pub(super) fn logs(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let (node, mut vm) = installed(&lab, "n1", NodeOptions::default())?;
    node.wait_for(EARLY, "log of the kernel and of PID 1 at central", || {
        let log = log(&lab, &[])?;
        Ok(log.contains("Linux version") && log.contains("orrery[node]"))
    })?;
    ensure!(log(&lab, &["--previous"])?.is_empty(), "the first boot has something of an earlier one");

    vm.reset()?;
    node.expect_ready(&mut vm, BOOTED)?;
    node.wait_for(EARLY, "log of the boot before at central", || {
        Ok(log(&lab, &["--previous"])?.contains("orrery[node]"))
    })?;
    node.wait_for(EARLY, "an event about the boot before at central", || {
        Ok(lab.events("n1")?.iter().any(|event| event["stage"] == "previous"))
    })?;

    let bundle = lab.folder.join("n1.tar");
    lab.orrery(["node", "bundle", "n1", "--out"], [&bundle])?;
    let names = command::output(Command::new("tar").arg("-tf").arg(&bundle))?;
    for name in ["n1/node.json", "n1/events.jsonl", "n1/log.txt"] {
        ensure!(names.lines().any(|line| line == name), "the bundle lacks {name}: {names}");
    }
    let config = fs::read_to_string(&node.config).context("reading the node's configuration")?;
    ensure!(config.contains(SECRET), "the node's configuration is without what the bundle is searched for");
    let content = fs::read(&bundle).context("reading the bundle")?;
    let content = String::from_utf8_lossy(&content);
    ensure!(!content.contains(SECRET), "the bundle holds a private key");
    ensure!(
        content.contains("Linux version") && content.contains("ssh_host_key"),
        "the bundle lacks the log or the facts"
    );
    Ok(())
}

/// The lines that `orrery node log` prints for people.
fn log(lab: &Lab, more: &[&str]) -> Result<String> {
    command::output(lab.operator_command().args(["node", "log", "n1"]).args(more))
}
