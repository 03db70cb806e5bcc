//! Programs of the Python package index that tests talk to: power devices that nobody here wrote.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};

use crate::{command, lock, ui, workspace::Workspace};

/// The emulators of Redfish and of SNMP agents, with what the latter needs and does not ask for, and a client of Intel AMT.
const PROGRAMS: [&str; 5] =
    ["sushy-tools==2.2.0", "snmpsim==1.2.2", "pysmi==2.0.0", "cryptography==50.0.2", "amt==0.8.0"];
/// Says what is installed; written last.
const STAMP: &str = "orrery-programs";

/// Where the programs are; tests are told by `ORRERY_PYTHON_TOOLS`.
pub(crate) fn folder(workspace: &Workspace) -> PathBuf {
    environment(workspace).join("bin")
}

fn environment(workspace: &Workspace) -> PathBuf {
    workspace.cache.join("python-tools")
}

/// Makes the environment in the cache, where tests look for it, unless it is there.
///
/// # Errors
/// When it cannot be made.
pub(super) fn run(workspace: &Workspace) -> Result<()> {
    let folder = environment(workspace);
    let wanted = PROGRAMS.join("\n");
    let _lock = lock::acquire(workspace, "python-tools")?;
    if fs::read_to_string(folder.join(STAMP)).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    ui::say("setup", &format!("installing {}", PROGRAMS.join(", ")));
    // The paths of an environment are absolute, so it is made where it stays.
    command::output(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))
        .context("making a Python environment")?;
    let pip = self::folder(workspace).join("pip");
    command::output(Command::new(pip).args(["install", "--quiet", "--disable-pip-version-check"]).args(PROGRAMS))
        .with_context(|| format!("installing {}", PROGRAMS.join(", ")))?;
    fs::write(folder.join(STAMP), wanted).with_context(|| format!("writing to {}", folder.display()))
}
