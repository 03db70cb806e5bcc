//! Somebody who watches an installation from inside.

use anyhow::{Context, Result, ensure};
use orrery_qemu::ssh::{HostKeys, Ssh, trust};

use super::{
    Bench, EARLY, INSTALLED,
    downloads::{Manner, Mirror, publish},
};
use crate::lab::NodeOptions;

/// The mirror's bytes a second: slow enough to log in meanwhile.
const CRAWL: u64 = 512 << 10;

/// sshd is open while the release is downloaded, and shows the host key that central knew before the first login. The node OS
/// keeps that key.
pub(super) fn install(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let slow = Mirror::start(&lab.central.data().join("artifacts"), Manner::Slow(CRAWL))?;
    let node = lab.add_node("n1", NodeOptions::default())?;
    let user = format!("{}.pub", lab.user_key().display());
    let admitting = ["--mirror", &slow.url, "--network", "10.0.2.0/24", "--ssh-key", &user];
    publish(&lab, 2, &lab.release(), &admitting)?;
    let mut vm = node.spec.start()?;
    vm.expect("sshd is open for root", INSTALLED)?;
    node.wait_for(INSTALLED, "progress of the download", || Ok(slow.sent() > 1 << 20))?;

    let lines = lab.orrery(["node", "known-hosts", "n1"], [] as [&str; 0])?;
    let line = lines[0].as_str().context("`orrery node known-hosts` printed no line")?;
    let (names, key) = line.split_once(' ').with_context(|| format!("{line:?} is no line of known_hosts"))?;
    ensure!(names.split(',').any(|name| name == "n1"), "the host key is not said to be n1's: {line}");
    let usual = node.ssh("root");
    trust(&usual.known_hosts, node.ssh_port, key).context("writing known_hosts")?;
    let administrator = Ssh { host_keys: HostKeys::Strict, ..usual };
    let state = administrator.run("orrery-node state --json", EARLY).context("running the ssh client")?;
    ensure!(state.success(), "no login beside the installation: {state}");
    let state: serde_json::Value = serde_json::from_str(&state.stdout).context("reading the node's state")?;
    ensure!(state["node"] == "n1" && state["installing"] == "install", "not a node that installs: {state}");

    vm.expect("stage install ok", INSTALLED)?;
    node.expect_ready(&mut vm, INSTALLED)?;
    node.wait_for(EARLY, "status of the node OS with the same host key at central", || {
        Ok(lab.node_detail("n1")?["status"]["ssh_host_key"] == key)
    })
}
