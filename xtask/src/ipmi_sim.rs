//! openipmi's simulator of a server's management controller.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result};

/// The account that every simulator knows.
pub(crate) const USER: &str = "central";
/// Its password.
pub(crate) const PASSWORD: &str = "far-away";
/// The cipher suite that it knows: RAKP-HMAC-SHA1, HMAC-SHA1-96, AES-CBC-128.
pub(crate) const SUITE: &str = "3";

/// A running simulator on the loopback interface. Dropping it ends it.
pub(crate) struct Simulator {
    process: Child,
    /// Its UDP port.
    pub(crate) port: u16,
}

impl Simulator {
    /// Starts one, whose files are in `folder`. For each change of power it runs `chassis`, if there is such a program, with its own address, `get`
    /// or `set`, what, and the value.
    ///
    /// # Errors
    /// It cannot be started.
    pub(crate) fn start(folder: &Path, port: u16, chassis: Option<&Path>) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let write = |name: &str, text: &str| -> Result<PathBuf> {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
            Ok(path)
        };
        let configuration = write("lan.conf", &lan(port, chassis))?;
        let commands = "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\nmc_enable 0x20\n";
        let commands = write("commands", commands)?;
        let log = fs::File::create(folder.join("ipmi_sim.log")).context("making the simulator's log")?;
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--", "ipmi_sim", "-n", "-c"])
            .arg(&configuration)
            .arg("-f")
            .arg(&commands)
            .arg("-s")
            .arg(folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("sharing a log")?)
            .stderr(log)
            .spawn()
            .context("starting ipmi_sim; run `cargo xtask setup`")?;
        Ok(Self { process, port })
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        // An error means that it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn lan(port: u16, chassis: Option<&Path>) -> String {
    let chassis =
        chassis.map(|program| format!("  chassis_control \"{} 0x20\"\n", program.display())).unwrap_or_default();
    format!(
        "name \"bmc{port}\"\nset_working_mc 0x20\n  startlan 1\n    addr 127.0.0.1 {port}\n    priv_limit admin\n    \
         allowed_auths_operator none md2 md5 straight\n    allowed_auths_admin none md2 md5 straight\n    \
         guid a123456789abcdefa1234567{port:08x}\n  endlan\n{chassis}  \
         user 2 true \"{USER}\" \"{PASSWORD}\" admin 10 none md2 md5 straight\n"
    )
}
