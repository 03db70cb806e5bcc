//! A node that hangs at a far-away site: found dead, reset through its management controller, and back.

use std::{
    fs,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use orrery_qemu::Vm;
use serde_json::Value;

use super::{BOOTED, Bench, EARLY, INSTALLED, installed};
use crate::{
    ipmi_sim::{PASSWORD, Simulator, USER},
    lab::{Lab, Node, NodeOptions, RootShell},
};

/// From a node's last word to its reset: silence, central's next round, and what the controller takes.
const FOUND_DEAD: Duration = Duration::from_secs(600);
/// Shorter than an operator may make them, so that nobody waits half an hour: seconds of silence, and of calm before.
const HASTE: &str =
    "UPDATE power_settings SET value = json_set(value, '$.silent_after', 240, '$.settle', 60) WHERE name = 'policy'";
/// The chipset's own watchdog would end the hang before central does.
const NO_WATCHDOG: &str = "ICH9-LPC.noreboot=true";
/// Stops whatever runs on the node, at once, and this shell with it.
const HANG: &str = "mkdir /sys/fs/cgroup/ice; for p in $(ls /proc | grep '^[0-9]'); do echo $p > /sys/fs/cgroup/ice/cgroup.procs; done; \
                    echo 1 > /sys/fs/cgroup/ice/cgroup.freeze";

/// Of two nodes one hangs. Central resets it by itself, since the other one is heard, and knows that it came back.
pub(super) fn hung_node(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let sockets = tempfile::tempdir().context("making a folder for a socket")?;
    let monitor = sockets.path().join("power");
    let node = lab.add_node("n1", NodeOptions::default())?;
    let chardev = format!("socket,id=power,path={},server=on,wait=off", monitor.display());
    let spec = node.spec.clone().extra([
        "-chardev",
        chardev.as_str(),
        "-mon",
        "chardev=power,mode=control",
        "-global",
        NO_WATCHDOG,
    ]);
    let mut vm = spec.start()?;
    vm.expect("stage install ok", INSTALLED)?;
    node.expect_ready(&mut vm, INSTALLED)?;
    let (_neighbour, _neighbours_vm) = installed(&lab, "n2", NodeOptions::default())?;

    let controller = controller(bench, &monitor)?;
    describe(&lab, &controller)?;
    lab.orrery(["power", "policy", "set", "--ladder", "on"], [] as [&Path; 0])?;
    lab.central.sql(HASTE)?;
    hang(&node, &mut vm)?;

    vm.expect(["orrery[boot] +", "started, boot"], FOUND_DEAD).context("waiting for central to reset the node")?;
    node.expect_ready(&mut vm, BOOTED)?;
    node.wait_for(EARLY, "operation that the node's call home confirms", || {
        Ok(operations(&lab)?.iter().all(|operation| operation["result"] == "confirmed"))
    })?;
    let operations = operations(&lab)?;
    ensure!(operations.len() == 1, "central did not do one thing: {operations:?}");
    let what = ["node", "action", "who", "outcome"].map(|key| operations[0][key].as_str().unwrap_or_default());
    ensure!(what == ["n1", "reset", "central (ladder)", "accepted"], "{operations:?}");
    Ok(())
}

/// Tells central how the node's power is switched, and has it tested.
fn describe(lab: &Lab, controller: &Simulator) -> Result<()> {
    let secret = lab.central.data().join("power/n1.secret");
    let mut file = fs::File::options();
    let mut file =
        file.write(true).create(true).truncate(true).mode(0o600).open(&secret).context("making the secret")?;
    std::io::Write::write_all(&mut file, PASSWORD.as_bytes()).context("writing the secret")?;
    let methods = lab.folder.join("n1-power.toml");
    let address = format!("127.0.0.1:{}", controller.port);
    let method =
        format!("driver = \"ipmi\", address = \"{address}\", user = \"{USER}\", password = {{ file = \"n1.secret\" }}");
    fs::write(&methods, format!("methods = [{{ {method} }}]\n")).context("writing the node's methods")?;
    lab.orrery(["node", "power", "set", "n1", "--file"], [&methods])?;
    lab.orrery(["power", "test", "n1"], [] as [&Path; 0]).map(drop)
}

/// Makes the node hang.
fn hang(node: &Node, vm: &mut Vm) -> Result<()> {
    let mut shell = RootShell::open(node, vm)?;
    shell.vm().send(&format!("{HANG}\n")).context("typing on the console")
}

/// What central did with power.
fn operations(lab: &Lab) -> Result<Vec<Value>> {
    let log = lab.orrery(["node", "power", "log"], [] as [&Path; 0])?;
    log.as_array().cloned().context("`orrery node power log` printed no list")
}

/// Starts a management controller whose chassis is the machine of QEMU's with this monitor.
fn controller(bench: &Bench<'_>, monitor: &Path) -> Result<Simulator> {
    let folder = bench.folder.join("bmc");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let inventory = folder.join("pcu.toml");
    let method = format!("driver = \"qmp\", address = \"unix:{}\"", monitor.display());
    fs::write(&inventory, format!("[nodes.vm]\nmethods = [{{ {method} }}]\n")).context("writing an inventory")?;
    let pcu = format!("{} --inventory {}", bench.images.tools.join("pcu").display(), inventory.display());
    let program = folder.join("chassis");
    fs::write(&program, chassis(&pcu)).context("writing the chassis")?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).context("making it executable")?;
    Simulator::start(&folder, orrery_qemu::free_port().context("finding a free port")?, Some(&program))
}

/// What the simulator runs, with the controller's address, `get` or `set`, what, and the value: a machine of QEMU's in place of a chassis.
fn chassis(pcu: &str) -> String {
    format!(
        "#!/bin/sh\nset -e\ncase \"$2 $3 $4\" in\n\
         'get power '*) case \"$({pcu} status vm)\" in 'vm: on') echo power:1 ;; *) echo power:0 ;; esac ;;\n\
         'set power 1'*) {pcu} on vm >&2 ;;\n'set power 0'*) {pcu} off vm >&2 ;;\n'set reset '*) {pcu} reset vm >&2 ;;\nesac\n"
    )
}
