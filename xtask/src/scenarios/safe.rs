//! Safe mode: who gets in, from where, and what is there for who does.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use orrery_qemu::{
    Vm, WindowSize, free_port,
    ssh::{Output, SshError},
};

use super::{BOOTED, Bench, EARLY, INSTALLED, installed};
use crate::lab::{Lab, Node, NodeOptions, ScriptOptions};

/// The least memory that a medium boots to safe mode in.
const LEAST_MEMORY_MIB: u32 = 192;
/// The longest that safe mode waits before it asks central again.
const RETRIED: Duration = Duration::from_secs(300);
/// How long safe mode bears a session in which nothing happens.
const IDLE: Duration = Duration::from_secs(900);
/// A packet filter does not answer; that a client has waited for so long is the answer.
const SILENCE: Duration = Duration::from_secs(20);

/// A machine with little memory, in safe mode by a script that admits from `networks`.
fn in_safe_mode(lab: &Lab, networks: &[&str]) -> Result<(Node, Vm)> {
    let node = lab.add_node("n1", NodeOptions { memory_mib: LEAST_MEMORY_MIB, ..NodeOptions::default() })?;
    lab.publish_script("safe", &ScriptOptions { serial: 2, networks, ..lab.usual_script() })?;
    lab.orrery(["node", "set-state", "safe", "n1"], [] as [&str; 0])?;
    let mut vm = node.spec.start()?;
    vm.expect(["stage safe ok"], EARLY)?;
    Ok((node, vm))
}

/// The same key from an address that the script does not name, and from one that it does. QEMU's user network shows the
/// guest every client as 10.0.2.2.
pub(super) fn networks(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let (node, mut vm) = in_safe_mode(&lab, &["192.0.2.0/24"])?;
    match node.ssh("root").run("id", SILENCE) {
        Err(SshError::Deadline { .. }) => {}
        Ok(output) => ensure!(output.status.code() == Some(255), "sshd answered to an address not named: {output}"),
        Err(error) => return Err(error).context("running the ssh client"),
    }

    vm.power_cut();
    let wider = ScriptOptions { serial: 3, networks: &["192.0.2.0/24", "10.0.2.0/24"], ..lab.usual_script() };
    lab.publish_script("safe", &wider)?;
    vm.start_again()?;
    vm.expect(["stage safe ok"], EARLY)?;
    done(node.ssh("root").run("id", EARLY), "logging in from a network that the script names").map(drop)
}

/// What a rescuer does with the stock OpenSSH client.
pub(super) fn tools(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let (node, vm) = in_safe_mode(&lab, &["10.0.2.0/24"])?;
    let ssh = node.ssh("root");
    let status = ssh.run("exit 7", EARLY).context("running the ssh client")?;
    ensure!(status.status.code() == Some(7), "an exit status got lost: {status}");

    let (sent, back) = (lab.folder.join("sent"), lab.folder.join("back"));
    let content: Vec<u8> = (0..100_000u32).map(|number| (number % 251) as u8).collect();
    fs::write(&sent, &content).context("writing the file to copy")?;
    let returned = |path: &Path| -> Result<()> {
        ensure!(fs::read(path).context("reading the copy")? == content, "{} is not what was sent", path.display());
        Ok(fs::remove_file(path)?)
    };
    done(ssh.copy_to(&sent, "/tmp/scp", EARLY), "scp into the node")?;
    done(ssh.copy_from("/tmp/scp", &back, EARLY), "scp out of the node")?;
    returned(&back)?;
    let batch = format!("put {} /tmp/sftp\nget /tmp/sftp {}\n", sent.display(), back.display());
    done(ssh.sftp(&batch, EARLY), "sftp")?;
    returned(&back)?;
    done(ssh.rsync_to(&sent, "/tmp/rsync", EARLY), "rsync into the node")?;
    done(ssh.run("cmp /tmp/scp /tmp/rsync", EARLY), "comparing the copies")?;

    let state = done(ssh.run("orrery-node state --json", EARLY), "orrery-node state")?;
    let state: serde_json::Value = serde_json::from_str(&state.stdout).context("reading the node's state")?;
    ensure!(state["node"] == "n1" && state["script"]["kind"] == "safe", "not this node's state: {state}");
    ensure!(state["disks"][0]["content"] == "blank", "not this node's disk: {state}");
    done(ssh.run("orrery-node bundle /tmp/b.tar && tar -tf /tmp/b.tar | grep dmesg", EARLY), "orrery-node bundle")?;
    let secret = ssh.run("grep -c 'PRIVATE KEY' /tmp/b.tar", EARLY).context("running the ssh client")?;
    ensure!(secret.stdout.trim() == "0", "the support bundle holds the node's key: {secret}");
    let there = "sfdisk -l && smartctl --version && ping -c1 10.0.2.2 && which e2fsck nslookup nc lsof less hexdump";
    done(ssh.run(there, EARLY), "a rescuer's tools")?;
    drop(vm);
    Ok(())
}

/// A person at a terminal: its size and how it changes, ^C, how commands end, and ports that lead to the node and back.
pub(super) fn shell(bench: &Bench<'_>) -> Result<()> {
    /// The listener on the node that leads back.
    const BACK: u16 = 7007;
    let lab = bench.lab()?;
    let (node, vm) = in_safe_mode(&lab, &["10.0.2.0/24"])?;
    let ssh = node.ssh("root");
    let killed = ssh.run("echo begun; kill -TERM $$; echo survived", EARLY).context("running the ssh client")?;
    // OpenSSH's client makes 255 of a command that did not exit.
    ensure!(
        killed.status.code() == Some(255) && killed.stdout == "begun\n",
        "a command killed by a signal ended otherwise: {killed}"
    );

    let service = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening for the node")?;
    let (to_node, to_host) = (free_port().context("finding a free port")?, service.local_addr()?.port());
    let forwards = [
        "-o",
        "ExitOnForwardFailure=yes",
        "-L",
        &format!("{to_node}:127.0.0.1:22"),
        "-R",
        &format!("{BACK}:127.0.0.1:{to_host}"),
    ];
    let mut terminal = ssh.terminal(&forwards, WindowSize { rows: 33, columns: 101 })?;
    // No expectation is in what is typed, which is echoed.
    terminal.send("while stty size; do sleep 1; done\n")?;
    terminal.console().expect("33 101", EARLY).context("waiting for the terminal's size")?;
    terminal.resize(WindowSize { rows: 44, columns: 132 })?;
    terminal.console().expect("44 132", EARLY).context("waiting for the terminal's new size")?;
    terminal.send("\x03")?;
    terminal.send("sh -c 'echo in$((40 + 2))side; exec sleep 1000'\n")?;
    terminal.console().expect("in42side", EARLY).context("waiting for the first command to end by ^C")?;
    terminal.send("\x03")?;
    terminal.send("echo status$?\n")?;
    terminal.console().expect("status130", EARLY).context("waiting for a command to end by ^C")?;

    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, to_node)).context("connecting through -L")?;
    stream.set_read_timeout(Some(EARLY))?;
    let mut banner = [0; b"SSH-2.0-".len()];
    stream.read_exact(&mut banner).context("reading the node's greeting through -L")?;
    ensure!(&banner == b"SSH-2.0-", "the node's sshd greets otherwise: {}", banner.escape_ascii());
    drop(stream);
    thread::spawn(move || service.accept().and_then(|(mut stream, _)| stream.write_all(b"from-the-host\n")));
    terminal.send(&format!("nc 127.0.0.1 {BACK} </dev/null\n"))?;
    terminal.console().expect("from-the-host", EARLY).context("waiting for the host's service through -R")?;

    terminal.send("exit 9\n")?;
    let status = terminal.wait(EARLY)?.context("the client stays when its shell has ended")?;
    ensure!(status.code() == Some(9), "the shell's exit status got lost: {status}");

    // Ports that lead back are for the node alone: nobody else reaches the rescuer's network by them.
    let wide = ["-o", "ExitOnForwardFailure=yes", "-R", &format!("*:{BACK}:127.0.0.1:{to_host}")];
    let terminal = ssh.terminal(&wide, WindowSize { rows: 33, columns: 101 })?;
    terminal.console().expect("remote port forwarding failed", EARLY).context("waiting for the refusal of -R '*:…'")?;
    let status = terminal.wait(EARLY)?.context("the client stays without its forward")?;
    ensure!(status.code() == Some(255), "a refused forward ended otherwise: {status}");
    drop(vm);
    Ok(())
}

/// Without a network, somebody with the recovery key gets a shell on the console, and nobody else does.
pub(super) fn console(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let node = lab.add_node("n1", NodeOptions { memory_mib: LEAST_MEMORY_MIB, ..NodeOptions::default() })?;
    let key = fs::read_to_string(node.disk.with_file_name("node.toml.recovery")).context("reading the recovery key")?;
    let key = key.trim();

    let mut vm = node.spec.clone().network(orrery_qemu::Network::default().link_down()).start()?;
    vm.expect(["failed", "network (no-link)"], EARLY)?;
    vm.expect("recovery key:", EARLY)?;
    vm.send("00000-00000-00000-00000-00000-00000-00000-00000\n")?;
    vm.expect("this is not this node's recovery key", EARLY)?;
    vm.expect("recovery key:", EARLY)?;
    vm.send(&format!("{key}\n"))?;
    vm.expect("orrery-node --help", EARLY)?;
    // The answer is not in what is typed.
    vm.send("echo in$((40 + 2))side\n")?;
    vm.expect("in42side", EARLY)?;
    Ok(())
}

/// The installed disk is read and not written, and the node is sent on its way: over again, and to another try at once.
pub(super) fn rescue(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let (node, mut vm) = installed(&lab, "n1", NodeOptions::default())?;
    lab.orrery(["node", "set-state", "safe", "n1"], [] as [&str; 0])?;
    vm.power_cut();
    vm.start_again()?;
    vm.expect("stage safe ok", EARLY)?;
    let ssh = node.ssh("root");
    done(ssh.run("orrery-node mount && cat /mnt/orrery/boot/active && ls /mnt/orrery/data/images", EARLY), "mount")?;
    let written = ssh.run("touch /mnt/orrery/data/x", EARLY).context("running the ssh client")?;
    ensure!(written.stderr.contains("Read-only"), "the installed disk was written: {written}");
    let checked = "orrery-node umount && disk=$(blkid | grep ORRERY-DATA | cut -d: -f1) && e2fsck -fn $disk";
    done(ssh.run(checked, EARLY), "checking the file system")?;

    done(ssh.run("orrery-node reboot", EARLY), "orrery-node reboot")?;
    vm.expect(["started", "boot "], EARLY)?;
    vm.expect("stage safe ok", EARLY)?;
    lab.orrery(["node", "set-state", "boot", "n1"], [] as [&str; 0])?;
    done(ssh.run("orrery-node retry", EARLY), "orrery-node retry")?;
    vm.expect("somebody asks for the next attempt now", EARLY)?;
    vm.expect("stage contact ok", EARLY)?;
    node.expect_ready(&mut vm, BOOTED).map(drop)
}

/// A session in which nothing happens is ended: a forgotten terminal does not stay a door.
pub(super) fn idle(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let options = NodeOptions { deadline: IDLE + EARLY + EARLY, ..NodeOptions::default() };
    let node = lab.add_node("n1", options)?;
    lab.orrery(["node", "set-state", "safe", "n1"], [] as [&str; 0])?;
    let mut vm = node.spec.start()?;
    vm.expect("stage safe ok", EARLY)?;
    let forgotten = node.ssh("root").run("sleep 100000", IDLE + EARLY).context("running the ssh client")?;
    ensure!(forgotten.status.code() == Some(255), "a forgotten session ended otherwise: {forgotten}");
    ensure!(
        forgotten.stderr.contains("nothing was sent or received for 900 seconds"),
        "it was not told why: {forgotten}"
    );
    done(node.ssh("root").run("true", EARLY), "logging in again").map(drop)
}

/// Safe mode asks central again when its timer ends, and does what it is told then, without anybody's help.
pub(super) fn retries(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let node = lab.add_node("n1", NodeOptions::default())?;
    lab.orrery(["node", "set-state", "safe", "n1"], [] as [&str; 0])?;
    let mut vm = node.spec.start()?;
    vm.expect("stage safe ok", EARLY)?;
    lab.orrery(["node", "set-state", "reinstall", "n1"], [] as [&str; 0])?;
    vm.expect("stage install ok", RETRIED + INSTALLED)?;
    node.expect_ready(&mut vm, INSTALLED).map(drop)
}

/// Safe mode for one boot: the next one is as before, without anybody's help.
pub(super) fn once(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let (node, mut vm) = installed(&lab, "n1", NodeOptions::default())?;
    lab.orrery(["node", "set-state", "--once", "safe", "n1"], [] as [&str; 0])?;
    vm.power_cut();
    vm.start_again()?;
    vm.expect(["stage safe ok"], EARLY)?;
    done(node.ssh("root").run("true", EARLY), "logging in to safe mode")?;
    let told = lab.node_detail("n1")?;
    ensure!(told["boot_state"] == "boot", "the standing boot state was changed to {}", told["boot_state"]);
    ensure!(told["once"]["boot_state"] == "safe", "central knows of no safe mode in this boot: {}", told["once"]);

    vm.power_cut();
    vm.start_again()?;
    node.expect_ready(&mut vm, BOOTED)?;
    let once = &lab.node_detail("n1")?["once"];
    ensure!(once.is_null(), "what was wanted of one boot is still wanted: {once}");
    node.wait_for(EARLY, "run level `running` at central", || Ok(lab.node_detail("n1")?["run_level"] == "running"))
}

fn done(output: Result<Output, SshError>, what: &str) -> Result<Output> {
    let output = output.with_context(|| format!("running the client: {what}"))?;
    ensure!(output.success(), "{what} failed: {output}");
    Ok(output)
}
