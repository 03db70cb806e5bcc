//! A node that hangs at a far-away site: found dead, reset and power-cycled through its management controller, and back.

use std::{
    fs,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use orrery_qemu::{Event, Vm};
use serde_json::Value;

use super::{BOOTED, Bench, EARLY, INSTALLED, installed};
use crate::{
    ipmi_sim::{PASSWORD, Simulator, USER},
    lab::{Lab, Node, NodeOptions, RootShell},
};

/// From a node's last word to its next boot: silence, a reset that is waited for in vain, central's rounds, and what the controller takes.
const BACK: Duration = Duration::from_secs(900);
/// How long the machines may live.
const LIFE: Duration = Duration::from_secs(1800);
/// Shorter than an operator may make them, so that nobody waits for an hour: seconds of silence, for a call home after each rung, and of calm
/// before.
const HASTE: &str = "UPDATE power_settings SET \
                     value = json_set(value, '$.silent_after', 240, '$.rung_wait', 150, '$.settle', 60) WHERE name = 'policy'";
/// The chipset's own watchdog would end the hang before central does.
const NO_WATCHDOG: &str = "ICH9-LPC.noreboot=true";
/// A boot's first line.
const STARTED: [&str; 2] = ["orrery[boot] +", "started, boot"];
/// What the ladder did: it was accepted, and nobody called home; it was done and seen, and the node called home.
const LADDERS_RESET: [&str; 4] = ["reset", "central (ladder)", "accepted", "expired"];
const LADDERS_CYCLE: [&str; 4] = ["cycle", "central (ladder)", "changed", "confirmed"];
/// Stops whatever runs on the node, at once, and this shell with it.
const HANG: &str = "mkdir /sys/fs/cgroup/ice; for p in $(ls /proc | grep '^[0-9]'); do echo $p > /sys/fs/cgroup/ice/cgroup.procs; done; \
                    echo 1 > /sys/fs/cgroup/ice/cgroup.freeze";

/// Of two nodes one hangs, and its controller's reset line is cut. Central, which hears the other one, resets it by itself and waits in vain, then
/// takes its power away and gives it again, and knows that it came back.
pub(super) fn hung_node(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let sockets = tempfile::tempdir().context("making a folder for a socket")?;
    let monitor = sockets.path().join("power");
    let options = NodeOptions { deadline: LIFE, ..NodeOptions::default() };
    let node = lab.add_node("n1", options.clone())?;
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
    let (_neighbour, _neighbours_vm) = installed(&lab, "n2", options)?;

    let chassis = Chassis::new(bench, &monitor)?;
    describe(&lab, &chassis.controller)?;
    lab.orrery(["power", "policy", "set", "--ladder", "on"], [] as [&Path; 0])?;
    lab.central.sql(HASTE)?;
    fs::write(&chassis.cut, "").context("cutting the reset line")?;
    hang(&node, &mut vm)?;
    // Whatever befell the machine before.
    vm.qmp()?.events();

    vm.expect(STARTED, BACK).context("waiting for central to cycle the node's power")?;
    node.expect_ready(&mut vm, BOOTED)?;
    expect_operations(&lab, &node, &[LADDERS_CYCLE, LADDERS_RESET])?;
    // Off, where it stays in QEMU's hands, and on again. The reset that was accepted before did nothing.
    ensure_befell(&mut vm, &["STOP", "RESET", "RESET", "RESUME"])?;
    node.wait_for(EARLY, "record of a node that is up again", || {
        let records = lab.orrery(["power", "records"], [] as [&Path; 0])?;
        Ok(records[0]["rung"] == "cycle" && records[0]["why"] == "it was heard again" && records[1].is_null())
    })?;

    // With the line mended, the same controller resets.
    fs::remove_file(&chassis.cut).context("mending the reset line")?;
    lab.orrery(["node", "power-reset", "n1", "--reason", "the reset line is mended", "--wait"], [] as [&Path; 0])?;
    vm.expect(STARTED, EARLY)?;
    expect_operations(&lab, &node, &[["reset", "first", "accepted", "confirmed"], LADDERS_CYCLE, LADDERS_RESET])?;
    ensure_befell(&mut vm, &["RESET"])
}

/// Waits until these are all operations on the node, newest first: action, who asked, the device's part, and whether it called home.
fn expect_operations(lab: &Lab, node: &Node, expected: &[[&str; 4]]) -> Result<()> {
    let mut found = Vec::new();
    let all = node.wait_for(EARLY, "operations as they should be", || {
        let log = lab.orrery(["node", "power", "log", &node.id], [] as [&Path; 0])?;
        found = log.as_array().cloned().context("`orrery node power log` printed no list")?;
        let word = |operation: &Value, key: &str| operation[key].as_str().unwrap_or_default().to_owned();
        let words =
            found.iter().map(|operation| ["action", "who", "outcome", "result"].map(|key| word(operation, key)));
        Ok(words.eq(expected.iter().map(|operation| operation.map(str::to_owned))))
    });
    all.with_context(|| format!("the operations are {found:?}"))
}

/// Fails unless exactly this was done to the machine from outside since it was looked at last.
fn ensure_befell(vm: &mut Vm, expected: &[&str]) -> Result<()> {
    let events = vm.qmp()?.events();
    let outside =
        |event: &&Event| matches!(event.name.as_str(), "STOP" | "RESUME" | "RESET") && event.data["guest"] != true;
    let names: Vec<_> = events.iter().filter(outside).map(|event| event.name.as_str()).collect();
    ensure!(names == expected, "QEMU says that this was done to the machine: {events:?}");
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

/// A management controller whose chassis is a machine of QEMU's.
struct Chassis {
    controller: Simulator,
    /// While this file is there, no reset reaches the machine.
    cut: PathBuf,
}

impl Chassis {
    /// Starts one for the machine with this monitor.
    fn new(bench: &Bench<'_>, monitor: &Path) -> Result<Self> {
        let folder = bench.folder.join("bmc");
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let inventory = folder.join("pcu.toml");
        let method = format!("driver = \"qmp\", address = \"unix:{}\"", monitor.display());
        fs::write(&inventory, format!("[nodes.vm]\nmethods = [{{ {method} }}]\n")).context("writing an inventory")?;
        let pcu = format!("{} --inventory {}", bench.images.tools.join("pcu").display(), inventory.display());
        let (program, cut) = (folder.join("chassis"), folder.join("reset-line-is-cut"));
        fs::write(&program, script(&pcu, &cut)).context("writing the chassis")?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).context("making it executable")?;
        let port = orrery_qemu::free_port().context("finding a free port")?;
        Ok(Self { controller: Simulator::start(&folder, port, Some(&program))?, cut })
    }
}

/// What the simulator runs, with the controller's address, `get` or `set`, what, and the value: a machine of QEMU's in place of a chassis.
fn script(pcu: &str, cut: &Path) -> String {
    let cut = cut.display();
    format!(
        "#!/bin/sh\nset -e\ncase \"$2 $3 $4\" in\n\
         'get power '*) case \"$({pcu} status vm)\" in 'vm: on') echo power:1 ;; *) echo power:0 ;; esac ;;\n\
         'set power 1'*) {pcu} on vm >&2 ;;\n'set power 0'*) {pcu} off vm >&2 ;;\n\
         'set reset '*) test -e {cut} || {pcu} reset vm >&2 ;;\nesac\n"
    )
}
