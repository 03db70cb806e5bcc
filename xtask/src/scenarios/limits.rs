//! What a sliver's user gets, and that limits bite without anybody else noticing.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use orrery_qemu::ssh::{Output, Ssh};

use super::{Bench, SLIVER, installed};
use crate::lab::NodeOptions;

/// One command in a sliver, on an emulated processor that others are hogging.
const COMMAND: Duration = Duration::from_secs(180);

pub(super) fn limits(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let options = NodeOptions { memory_mib: 768, ..NodeOptions::default() };
    let (node, _vm) = installed(&lab, "n1", options)?;
    let rspec = ["mem_limit=64M", "pids_limit=40", "disk_quota=32M", "cpu_share=10"];
    lab.add_slice("test/hog", &["n1"], &rspec)?;
    lab.add_slice("test/calm", &["n1"], &["mem_limit=64M", "disk_quota=32M"])?;

    let hello = node.run_when_ready(&lab, "test_hog", "id -u; cat /etc/debian_version; hostname", SLIVER)?;
    ensure!(hello.success() && hello.stdout.starts_with("0\n"), "no root shell in the sliver: {hello}");
    let hog = node.ssh("test_hog");
    let calm = node.ssh("test_calm");
    node.run_when_ready(&lab, "test_calm", "true", SLIVER)?;

    let status = hog.run("exit 42", COMMAND).context("running the ssh client")?;
    ensure!(status.status.code() == Some(42), "the exit status is lost: {status}");
    copies(&hog, bench)?;
    separate(&hog, &calm)?;

    // More processes than the limit: one cannot be started, which ends what started them. Not in bash, which tries again for a
    // quarter of a minute, and then leaves the others behind.
    let bomb = hog.run(
        "setsid -w sh -c 'trap \"kill 0\" EXIT; for i in $(seq 100); do sleep 300 & done; wait' 2>/tmp/bomb",
        COMMAND,
    );
    let bomb = bomb.context("running the ssh client")?;
    serves(&calm, "beside processes up to the limit")?;
    let fork_failed = hog.run("cat /tmp/bomb", COMMAND).context("running the ssh client")?;
    ensure!(fork_failed.stdout.contains("fork"), "no fork was refused: {bomb}; {fork_failed}");

    // A real fork bomb, that nobody stops, and a neighbour that must not notice. It has none of the session's streams, or that would
    // not end.
    let forks = "setsid bash -c 'bomb() { bomb | bomb & }; bomb' < /dev/null > /dev/null 2>&1 & exit 0";
    check(&hog.run(forks, COMMAND).context("running the ssh client")?, "starting a fork bomb")?;
    serves(&calm, "beside a fork bomb")?;

    let memory =
        calm.run("head -c 200M /dev/zero | tail -c 200M | wc -c", COMMAND).context("running the ssh client")?;
    ensure!(memory.stdout.trim() != "209715200", "200 MB of memory fitted into 64 MB: {memory}");
    serves(&calm, "after a process of its own was ended for its memory")?;

    let disk = calm.run("dd if=/dev/zero of=/root/big bs=1M count=64; rm /root/big", COMMAND);
    let disk = disk.context("running the ssh client")?;
    ensure!(disk.stderr.contains("quota") || disk.stderr.contains("No space"), "64 MB fitted into 32 MB: {disk}");
    serves(&calm, "after its disk was full")?;

    // The node itself never stopped reporting.
    let running = || Ok(lab.node_detail("n1")?["run_level"] == "running");
    node.wait_for(COMMAND, "run level `running` at central", running)
}

fn serves(ssh: &Ssh, when: &str) -> Result<()> {
    let output = ssh.run("echo alive", COMMAND).context("running the ssh client")?;
    ensure!(output.success() && output.stdout.trim() == "alive", "the neighbour does not serve {when}: {output}");
    Ok(())
}

/// `scp` both ways, unmodified.
fn copies(ssh: &Ssh, bench: &Bench<'_>) -> Result<()> {
    let there = bench.folder.join("there");
    let back = bench.folder.join("back");
    let content: Vec<u8> = (0..2_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(&there, &content).context("writing a file to copy")?;
    check(&ssh.copy_to(&there, "/root/copy", COMMAND).context("running scp")?, "scp to the sliver")?;
    check(&ssh.copy_from("/root/copy", &back, COMMAND).context("running scp")?, "scp from the sliver")?;
    ensure!(fs::read(&back).context("reading the copy")? == content, "the copy differs");
    Ok(())
}

/// Neither files nor processes of one sliver are seen by another.
fn separate(one: &Ssh, other: &Ssh) -> Result<()> {
    check(&one.run("touch /root/mine; sleep 60 & true", COMMAND).context("running the ssh client")?, "a first sliver")?;
    let files = other.run("ls /root", COMMAND).context("running the ssh client")?;
    ensure!(files.success() && !files.stdout.contains("mine"), "a neighbour's file is seen: {files}");
    let processes = other.run("cat /proc/[0-9]*/cmdline | tr '\\0' ' '", COMMAND).context("running the ssh client")?;
    ensure!(!processes.stdout.contains("sleep 60"), "a neighbour's process is seen: {processes}");
    Ok(())
}

fn check(output: &Output, what: &str) -> Result<()> {
    ensure!(output.success(), "{what}: {output}");
    Ok(())
}
