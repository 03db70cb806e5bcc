//! The life of a sliver on a real node, as its users and its operator have it: suspended, restarted, reset, destroyed, made
//! again, and at rest while nobody uses it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use orrery_qemu::ssh::Ssh;

use super::{Bench, EARLY, SLIVER, installed, packages::done};
use crate::lab::{Lab, Node, NodeOptions, RootShell};

/// One command on an emulated processor.
const COMMAND: Duration = Duration::from_secs(120);
/// Until a node has asked central again, and done what it was told.
const TOLD: Duration = Duration::from_secs(90);
/// Until a sliver that nobody uses is stopped: a minute, and the node manager's looks before and after it.
const UNUSED: Duration = Duration::from_secs(120);

/// Counts, for as long as it lives, and says as who it does.
const COUNTER: &str = "setsid sh -c 'echo $$ > /root/pid; while :; do n=$((n + 1)); echo $n > /root/count; done' \
    < /dev/null > /dev/null 2>&1 & until test -s /root/count; do :; done";

pub(super) fn rest(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let (node, mut vm) = installed(&lab, "n1", NodeOptions::default())?;
    lab.add_slice("demo/rest", &["n1"], &[])?;
    node.run_when_ready(&lab, "demo_rest", "true", SLIVER)?;
    let ssh = node.ssh("demo_rest");
    let mut shell = RootShell::open(&node, &mut vm)?;
    suspended(&lab, &node, &mut shell, &ssh)?;
    stopped(&lab, &node, &mut shell, &ssh)?;
    started_over(&lab, &node, &ssh)?;
    made_again(&lab, &mut shell, &ssh)?;
    unused(&mut shell, &ssh)
}

fn order(lab: &Lab, arguments: &[&str]) -> Result<()> {
    lab.orrery(arguments.iter().copied(), [] as [&str; 0]).map(drop)
}

/// Waits until a command in the sliver prints this.
fn printed(node: &Node, ssh: &Ssh, command: &str, expect: &str) -> Result<()> {
    let said = || Ok(ssh.run(command, COMMAND).context("running the ssh client")?.stdout.trim() == expect);
    node.wait_for(TOLD, &format!("{expect:?} from `{command}`"), said)
}

/// A counter stands still while the slice is suspended, nobody gets in and everybody is told why, and then the same process goes
/// on.
fn suspended(lab: &Lab, node: &Node, shell: &mut RootShell<'_>, ssh: &Ssh) -> Result<()> {
    done(ssh, COUNTER)?;
    order(lab, &["slice", "suspend", "demo/rest", "--reason", "it sends mail nobody asked for"])?;
    let refused = || Ok(!ssh.run("true", COMMAND).context("running the ssh client")?.success());
    node.wait_for(TOLD, "a refused login", refused)?;
    let told = ssh.run("true", COMMAND).context("running the ssh client")?;
    ensure!(told.stderr.contains("slice demo/rest is suspended: it sends mail nobody asked for"), "{told}");

    let frozen = "cd /sys/fs/cgroup/slivers/demo_rest && until grep -q 'frozen 1' cgroup.events; do sleep 1; done";
    shell.run(frozen, TOLD)?;
    let time = "grep usage_usec /sys/fs/cgroup/slivers/demo_rest/cpu.stat";
    let still = shell.run(&format!("{time}; sleep 2; {time}"), COMMAND)?;
    let times: Vec<_> = still.lines().collect();
    ensure!(times.len() == 2 && times[0] == times[1], "a suspended sliver took processor time: {still}");

    order(lab, &["slice", "resume", "demo/rest"])?;
    printed(node, ssh, "echo in", "in")?;
    let goes_on = "p=$(cat /root/pid); now() { cut -d ' ' -f 14 /proc/$p/stat; }; before=$(now) && \
        until test $(now) -gt $before; do sleep 0.1; done";
    done(ssh, goes_on).map(drop)
}

/// A stop ends all, and nobody gets in before the start, which finds what was written.
fn stopped(lab: &Lab, node: &Node, shell: &mut RootShell<'_>, ssh: &Ssh) -> Result<()> {
    done(ssh, "echo kept > /srv/kept")?;
    order(lab, &["slice", "stop", "demo/rest"])?;
    order(lab, &["slice", "wait", "demo/rest"])?;
    shell.run("! test -e /sys/fs/cgroup/slivers/demo_rest", COMMAND)?;
    let told = ssh.run("true", COMMAND).context("running the ssh client")?;
    ensure!(!told.success() && told.stderr.contains("slice demo/rest is suspended: it is stopped"), "{told}");
    order(lab, &["slice", "start", "demo/rest"])?;
    printed(node, ssh, "cat /srv/kept", "kept")?;
    done(ssh, COUNTER).map(drop)
}

/// A restart ends processes and keeps files; a reset keeps nothing.
fn started_over(lab: &Lab, node: &Node, ssh: &Ssh) -> Result<()> {
    order(lab, &["slice", "restart", "demo/rest"])?;
    printed(node, ssh, "kill -0 $(cat /root/pid) 2> /dev/null || echo ended", "ended")?;
    done(ssh, "test -e /root/count && rm /etc/debian_version")?;
    order(lab, &["slice", "reset", "demo/rest", "--all"])?;
    printed(node, ssh, "test -e /root/count || echo fresh", "fresh")?;
    done(ssh, "test -s /etc/debian_version").map(drop)
}

/// Off the node, nothing of a sliver is left; on it again, it is a new one.
fn made_again(lab: &Lab, shell: &mut RootShell<'_>, ssh: &Ssh) -> Result<()> {
    done(ssh, "echo mine > /root/mine; setsid sleep 1000 < /dev/null > /dev/null 2>&1 &")?;
    order(lab, &["slice", "unassign", "demo/rest", "--node", "n1"])?;
    let gone = "until test -z \"$(ls -d /data/slivers/*demo_rest /data/slivers/.*demo_rest /sys/fs/cgroup/slivers/demo_rest 2>/dev/null)\"; \
        do sleep 1; done; ! grep -l overlay /proc/[0-9]*/mounts; ! pidof sleep";
    shell.run(gone, TOLD)?;
    let refused = ssh.run("true", COMMAND).context("running the ssh client")?;
    ensure!(!refused.success() && refused.stderr.contains("Permission denied"), "a login to nothing: {refused}");
    order(lab, &["slice", "assign", "demo/rest", "--node", "n1"])?;
    order(lab, &["slice", "wait", "demo/rest"])?;
    done(ssh, "! test -e /root/mine && echo mine > /root/mine")?;
    // Another one, too, although the node never saw that there was to be none.
    order(lab, &["slice", "unassign", "demo/rest", "--node", "n1"])?;
    order(lab, &["slice", "assign", "demo/rest", "--node", "n1"])?;
    order(lab, &["slice", "wait", "demo/rest"])?;
    done(ssh, "! test -e /root/mine").map(drop)
}

/// Nobody logs in, and nothing runs: after a minute there is no process and no mount. The next login finds the sliver as if it
/// had always run.
fn unused(shell: &mut RootShell<'_>, ssh: &Ssh) -> Result<()> {
    let mark = shell.vm().console().mark();
    done(ssh, "echo mine > /root/mine")?;
    shell.vm().expect_from(mark, "sliver demo_rest stopped: unused", UNUSED)?;
    let nothing = "ls -d /sys/fs/cgroup/slivers/demo_rest; grep -l overlay /proc/[0-9]*/mounts; \
        for p in /proc/[0-9]*; do of=$(readlink $p/ns/user) && test $of != $(readlink /proc/1/ns/user) && echo $p; done";
    let left = shell.run(&format!("({nothing}) 2> /dev/null; true"), COMMAND)?;
    ensure!(left.is_empty(), "of a sliver at rest there is: {left}");
    let first = ssh.run("cat /root/mine; hostname", EARLY).context("running the ssh client")?;
    ensure!(first.success() && first.stdout == "mine\ndemo-rest\n", "the first login to a sliver at rest: {first}");
    ensure!(first.stderr.is_empty(), "a sliver's start shows: {first}");
    Ok(())
}
