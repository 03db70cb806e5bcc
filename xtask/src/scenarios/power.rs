//! A node that hangs at a far-away site: found dead, power-cycled through its management controller, and back.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use orrery_qemu::Vm;
use serde_json::Value;

use super::{BOOTED, Bench, EARLY, INSTALLED};
use crate::lab::{Lab, Node, NodeOptions, RootShell};

const USER: &str = "central";
const PASSWORD: &str = "far-away";
/// Stops everything that runs on the node at once, the shell that says so last.
const HANG: &str = "mkdir /sys/fs/cgroup/ice; for p in /proc/[0-9]*; do echo ${p#/proc/} > /sys/fs/cgroup/ice/cgroup.procs; done 2>/dev/null; \
                    echo 1 > /sys/fs/cgroup/ice/cgroup.freeze";

/// openipmi's simulator, whose chassis control switches a machine of QEMU's through its monitor. Ended with the scenario.
struct Controller {
    process: Child,
    port: u16,
}

/// Central finds the node dead and climbs its ladder by itself.
pub(super) fn hung_node(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let sockets = tempfile::tempdir().context("making a folder for a socket")?;
    let monitor = sockets.path().join("power");
    let node = lab.add_node("n1", NodeOptions::default())?;
    let chardev = format!("socket,id=power,path={},server=on,wait=off", monitor.display());
    let spec = node.spec.clone().extra(["-chardev", chardev.as_str(), "-mon", "chardev=power,mode=control"]);
    let mut vm = spec.start()?;
    vm.expect("stage install ok", INSTALLED)?;
    node.expect_ready(&mut vm, INSTALLED)?;

    let controller = Controller::start(bench, &monitor)?;
    describe(&lab, &node, &controller)?;
    tell_apart(&lab)?;
    hang(&node, &mut vm)?;

    vm.expect(["orrery[boot] +", "started, boot"], INSTALLED).context("waiting for central to reset the node")?;
    node.expect_ready(&mut vm, BOOTED)?;
    node.wait_for(EARLY, "operation that the node's call home confirms", || {
        let operations = operations(&lab)?;
        Ok(operations.iter().any(|operation| operation["result"] == "confirmed"))
    })?;
    let operations = operations(&lab)?;
    ensure!(operations.len() == 1, "central did more than it had to: {operations:?}");
    ensure!(operations[0]["action"] == "reset" && operations[0]["who"] == "central (ladder)", "{operations:?}");
    Ok(())
}

impl Controller {
    fn start(bench: &Bench<'_>, monitor: &Path) -> Result<Self> {
        let folder = bench.folder.join("bmc");
        let state = folder.join("state");
        fs::create_dir_all(&state).with_context(|| format!("making {}", state.display()))?;
        let inventory = folder.join("pcu.toml");
        let method = format!("{{ driver = \"qmp\", address = \"unix:{}\" }}", monitor.display());
        fs::write(&inventory, format!("[nodes.vm]\nmethods = [{method}]\n")).context("writing an inventory")?;
        let program = folder.join("chassis");
        let pcu = format!("{} --inventory {}", bench.images.tools.join("pcu").display(), inventory.display());
        fs::write(&program, chassis(&pcu)).context("writing the chassis control")?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).context("making it executable")?;

        let port = orrery_qemu::free_port().context("finding a free port")?;
        let (configuration, commands) = (folder.join("lan.conf"), folder.join("commands"));
        fs::write(&configuration, lan(port, &program)).context("writing the simulator's configuration")?;
        fs::write(&commands, "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\nmc_enable 0x20\n")
            .context("writing the simulator's commands")?;
        let log = fs::File::create(folder.join("ipmi_sim.log")).context("making the simulator's log")?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "ipmi_sim", "-n", "-c"]).arg(&configuration).arg("-f").arg(&commands);
        command.arg("-s").arg(&state).stdin(Stdio::null()).stdout(log.try_clone().context("sharing a log")?).stderr(log);
        let process = command.spawn().context("starting ipmi_sim; run `cargo xtask setup`")?;
        Ok(Self { process, port })
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // An error means that it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the simulator runs: a machine of QEMU's in place of a chassis.
fn chassis(pcu: &str) -> String {
    format!(
        "#!/bin/sh\nset -e\ncase \"$2 $3 $4\" in\n\
         'get power '*) case $({pcu} status vm) in 'vm: on') echo power:1 ;; *) echo power:0 ;; esac ;;\n\
         'set power 1') {pcu} on vm ;;\n'set power 0') {pcu} off vm ;;\n'set reset '*) {pcu} reset vm ;;\nesac >&2\n"
    )
}
