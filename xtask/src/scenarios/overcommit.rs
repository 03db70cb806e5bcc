//! What a node does when it is to give more than it has.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Bench, SLIVER, installed};
use crate::{
    lab::{Lab, NodeOptions},
    ui,
};

/// One command in a sliver, on an emulated processor that others are hogging.
const COMMAND: Duration = Duration::from_secs(180);

/// Until memory is short, and central knows what the node did.
const SHORT: Duration = Duration::from_secs(400);

/// A program that takes memory quickly, then ever more of it slowly, and reads a file that does not stay in memory meanwhile.
const HOARD: &[u8] = br#"
dd if=/dev/zero of=/root/big bs=1M count=64
while :; do cat /root/big > /dev/null; done &
exec perl -e 'for (1 .. 300) { push @hoard, "x" x (1 << 20); select(undef, undef, undef, $_ < 100 ? 0.01 : 0.3) } sleep 1000'
"#;

/// Listens twice, and asks for nothing any more.
const SINK: &[u8] = br#"
use Socket;
for my $port (9000, 9001) {
    socket($l[$port], AF_INET, SOCK_STREAM, 0) && bind($l[$port], pack_sockaddr_in($port, INADDR_ANY)) && listen($l[$port], 512) or die $!;
}
sleep 1000"#;
/// Sends to those who listen more than they may hold.
const SOURCE: &[u8] = br#"
use Socket;
for my $port (9000, 9001) {
    for (1 .. 500) {
        socket(my $c, AF_INET, SOCK_STREAM, 0) or die $!;
        until (connect($c, pack_sockaddr_in($port, INADDR_LOOPBACK))) { $!{ECONNREFUSED} or die $!; select(undef, undef, undef, 0.1) }
        defined(syswrite($c, "x" x 60000)) or die $!;
    }
}"#;

/// Guarantees and memory beyond what the node has: the first are refused, the second is taken back from who has the most, or far more than
/// it may.
pub(super) fn overcommit(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let (node, _vm) = installed(&lab, "n1", NodeOptions::default())?;
    lab.add_slice("test/sure", &["n1"], &["cpu_pct=140,mem_limit=64M"])?;
    node.run_when_ready(&lab, "test_sure", "true", SLIVER)?;
    lab.add_slice("test/first", &["n1"], &["cpu_pct=30,mem_limit=320M"])?;
    let refused = || Ok(status(&lab, "test/first")?["error"].as_str().is_some_and(|e| e.contains("has 20 % left")));
    node.wait_for(COMMAND, "a guarantee that is refused", refused)?;
    ensure!(
        status(&lab, "test/sure")?["state"] == "ready",
        "whoever was there first is {}",
        status(&lab, "test/sure")?
    );
    lab.orrery(["slice", "set", "test/first", "--rspec", "cpu_pct=20"], [] as [&str; 0])?;
    node.run_when_ready(&lab, "test_first", "true", SLIVER)?;

    lab.add_slice("test/sink", &["n1"], &["mem_limit=32M"])?;
    node.run_when_ready(&lab, "test_sink", "true", SLIVER)?;
    for (login, start, program) in [
        ("test_sink", "cat > sink; setsid perl sink > /dev/null 2>&1 < /dev/null & true", SINK),
        ("test_sure", "perl", SOURCE),
    ] {
        let ran = node.ssh(login).run_with_input(start, program, COMMAND).context("running the ssh client")?;
        ensure!(ran.success(), "in {login}: {ran}");
    }
    let ended = node.wait_failure_saying(&lab, "memory", "far more memory than it may", SHORT)?;
    ensure!(ended.contains("ended all that ran in test_sink"), "the node says {ended}");

    lab.add_slice("test/second", &["n1"], &["mem_limit=320M"])?;
    node.run_when_ready(&lab, "test_second", "true", SLIVER)?;
    for login in ["test_first", "test_second"] {
        let start = "cat > /root/hoard; setsid sh /root/hoard > /dev/null 2>&1 < /dev/null & true";
        let started = node.ssh(login).run_with_input(start, HOARD, COMMAND).context("running the ssh client")?;
        ensure!(started.success(), "hoarding in {login}: {started}");
    }
    let ended = node.wait_failure_saying(&lab, "memory", "memory is short", SHORT)?;
    ui::say("sliver-overcommit", &ended);
    ensure!(ended.contains("ended all that ran in test_"), "the node says {ended}");
    ensure!(!ended.contains("test_sure"), "the wrong one was blamed: {ended}");

    let alive = node.ssh("test_sure").run("echo alive", COMMAND).context("running the ssh client")?;
    ensure!(alive.stdout == "alive\n", "the neighbour does not serve: {alive}");
    Ok(())
}

/// What central knows of a sliver.
fn status(lab: &Lab, slice: &str) -> Result<Value> {
    let node = lab.node_detail("n1")?;
    let slivers = node["status"]["slivers"].as_array().context("the node has no status")?;
    Ok(slivers.iter().find(|sliver| sliver["slice"] == slice).cloned().unwrap_or_default())
}
