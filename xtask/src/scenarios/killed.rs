//! A node manager that is killed again and again while central changes its mind.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{Bench, EARLY, SLIVER, installed};
use crate::lab::{NodeOptions, RootShell};

/// Seconds between kills: some before the manager has asked central, some while it works. Each costs it a longer pause.
const PAUSES: &str = "0.2 2.3 5.1 8.4 12.9 21.3";
/// Until the pauses and the kills are over.
const KILLS: Duration = Duration::from_secs(240);
/// A sliver for each thing that central does to it.
const SLICES: [&str; 5] = ["test/kept", "test/changed", "test/held", "test/fresh", "test/gone"];

pub(super) fn manager(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let options = NodeOptions { memory_mib: 768, ..NodeOptions::default() };
    let (node, mut vm) = installed(&lab, "n1", options)?;
    for slice in SLICES {
        lab.add_slice(slice, &["n1"], &["mem_limit=64M", "disk_quota=32M"])?;
    }
    for login in ["test_kept", "test_fresh"] {
        let written = node.run_when_ready(&lab, login, "echo text > /root/note; sync", SLIVER)?;
        ensure!(written.success(), "writing in {login}: {written}");
    }
    let mut shell = RootShell::open(&node, &mut vm)?;
    let kills = format!("for s in {PAUSES}; do sleep $s; pkill -9 -f node-manager; done; echo over > /tmp/kills");
    shell.run(&format!("({kills}) > /dev/null 2>&1 &"), EARLY)?;

    let orrery = |arguments: &[&str]| lab.orrery(arguments.iter().copied(), [] as [&Path; 0]).map(drop);
    orrery(&["slice", "set", "test/changed", "--rspec", "cpu_share=55"])?;
    orrery(&["slice", "suspend", "test/held", "--reason", "because"])?;
    orrery(&["slice", "reset", "test/fresh", "--all"])?;
    orrery(&["slice", "remove", "test/gone"])?;
    lab.add_slice("test/late", &["n1"], &["mem_limit=64M", "disk_quota=32M"])?;
    node.wait_for(KILLS, "end of the kills", || Ok(shell.run("cat /tmp/kills || true", EARLY)?.contains("over\n")))?;

    let mut wanted = SLICES.map(|slice| (slice, if slice == "test/held" { "suspended" } else { "ready" }));
    wanted[4] = ("test/late", "ready");
    node.wait_for(SLIVER, "sliver as central wants it", || {
        let status = lab.node_detail("n1")?["status"]["slivers"].as_array().cloned().unwrap_or_default();
        let is = |(slice, state): &(&str, &str)| status.iter().any(|s| s["slice"] == *slice && s["state"] == *state);
        Ok(status.len() == wanted.len() && wanted.iter().all(is))
    })?;
    let answer = |login: &str, command: &str| node.ssh(login).run(command, EARLY).context("running the ssh client");
    let note = answer("test_kept", "cat /root/note")?;
    ensure!(note.stdout == "text\n", "what was written is lost: {note}");
    // The reset is central's wish of its own, and nothing tells when it is carried out.
    node.wait_for(SLIVER, "reset", || Ok(!answer("test_fresh", "cat /root/note")?.success()))?;
    ensure!(answer("test_changed", "true")?.success(), "the changed sliver is closed");

    let mut check = |command: &str, expect: &str| -> Result<()> {
        let said = shell.run(command, EARLY)?;
        ensure!(said.split_whitespace().eq(expect.split_whitespace()), "`{command}` says {said:?}, not {expect:?}");
        Ok(())
    };
    check("cat /sys/fs/cgroup/slivers/test_changed/cpu.weight", "55")?;
    check("ls -A /data/slivers", "test_changed test_fresh test_held test_kept test_late")?;
    check("grep -c -e overlay -e /run/slivers /proc/mounts || true", "0")?;
    check("ls -d /sys/fs/cgroup/slivers/test_gone /run/slivers/test_gone 2>/dev/null | wc -l", "0")
}
