//! A machine whose clock is decades behind.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::{Bench, EARLY, INSTALLED};
use crate::{
    apt::{Apt, Freshness},
    command,
    lab::NodeOptions,
    workspace::Workspace,
};

/// What the battery of an old machine has forgotten.
const LONG_AGO: &str = "2001-01-01T00:00:00";

/// Without a time server, the clock stands at its floor and the boot goes on; with one (chrony's), it is right.
pub(super) fn clock(bench: &Bench<'_>) -> Result<()> {
    let lab = bench.lab()?;
    let port = orrery_qemu::free_port().context("finding a free port")?;
    let arguments = vec!["--ntp".to_owned(), format!("10.0.2.2:{port}")];
    let node = lab.add_node("n1", NodeOptions { arguments, ..NodeOptions::default() })?;
    let spec = node.spec.clone().rtc(LONG_AGO);

    let mut vm = spec.start()?;
    vm.expect(["stage time FAILED", "clock", "stays at floor"], EARLY)?;
    vm.expect("stage contact ok", EARLY)?;
    drop(vm);

    let _server = TimeServer::start(&bench.folder, port)?;
    let mut vm = spec.start()?;
    vm.expect(["stage time ok", "stepped by +"], EARLY)?;
    vm.expect("stage contact ok", EARLY)?;
    vm.expect("stage install ok", INSTALLED)?;
    let told = lab.node_detail("n1")?;
    ensure!(told["facts"]["clock"] == "sntp", "central was told that the clock is from {}", told["facts"]["clock"]);
    Ok(())
}

/// chrony, which leaves this machine's own clock alone.
struct TimeServer(Child);

impl TimeServer {
    fn start(folder: &Path, port: u16) -> Result<Self> {
        let program = chronyd(folder)?;
        let config = folder.join("chrony.conf");
        let text = format!("port {port}\nbindaddress 127.0.0.1\ncmdport 0\nlocal stratum 8\nallow 127.0.0.1\n");
        let pid = folder.join("chrony.pid");
        fs::write(&config, format!("{text}pidfile {}\n", pid.display())).context("configuring chrony")?;
        let server = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(["-d", "-x", "-u", "root", "-f"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.join("chrony.log")).context("making chrony's log")?)
            .spawn()
            .context("starting chronyd")?;
        Ok(Self(server))
    }
}

impl Drop for TimeServer {
    fn drop(&mut self) {
        // It is ours alone, and has nothing to lose.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// chrony's program, unpacked and not installed: as a package it would take over this machine's clock.
fn chronyd(folder: &Path) -> Result<PathBuf> {
    let unpacked = folder.join("chrony");
    fs::create_dir_all(&unpacked).with_context(|| format!("making {}", unpacked.display()))?;
    let apt = Apt::open(&Workspace::open()?, Freshness::Daily)?;
    command::output(apt.command("apt-get").args(["download", "chrony"]).current_dir(&unpacked))?;
    let package = fs::read_dir(&unpacked)
        .context("looking for chrony's package")?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|e| e == "deb"))
        .context("apt-get downloaded no package")?;
    command::output(Command::new("dpkg-deb").arg("-x").arg(&package).arg(&unpacked))?;
    Ok(unpacked.join("usr/sbin/chronyd"))
}
