//! A central of our own on loopback.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::HOST_FROM_GUEST;
use crate::command;

/// A running `orrery-central`. Dropping it ends the server.
pub(crate) struct Central {
    data: PathBuf,
    program: PathBuf,
    port: u16,
    server: Option<Child>,
}

impl Central {
    /// Initialises a central below `data` and starts it on a free port.
    ///
    /// # Errors
    /// It cannot be initialised or started; its log is `data` with `.log`.
    pub(crate) fn create(data: &Path, program: &Path) -> Result<Self> {
        command::output(
            Command::new(program)
                .args(["init", "--host", HOST_FROM_GUEST, "--host", "127.0.0.1", "--host", "localhost", "--data"])
                .arg(data),
        )?;
        let port = orrery_qemu::free_port().context("finding a free port")?;
        let mut central = Self { data: data.into(), program: program.into(), port, server: None };
        central.start()?;
        Ok(central)
    }

    /// Starts the server, on the same port as before.
    ///
    /// # Errors
    /// It did not come up.
    pub(crate) fn start(&mut self) -> Result<()> {
        let log_path = self.data.with_extension("log");
        let log = File::options().append(true).create(true).open(&log_path).context("opening central's log")?;
        let mut server = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&self.program)
            .args(["serve", "--listen", &format!("127.0.0.1:{}", self.port), "--data"])
            .arg(&self.data)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))?;
        let stdout = server.stdout.take().context("central's output is a pipe")?;
        self.server = Some(server);
        let mut lines = BufReader::new(stdout).lines();
        for line in lines.by_ref() {
            if line.context("reading central's output")?.contains("listening on") {
                // Whatever it prints later must not fill the pipe.
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(());
            }
        }
        bail!("central ended before it listened: see {}", log_path.display())
    }

    /// Stops the server as an operator would.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub(crate) fn stop(&mut self) -> Result<()> {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        if let Some(pid) = i32::try_from(server.id()).ok().and_then(Pid::from_raw) {
            kill_process(pid, Signal::TERM).context("ending central")?;
        }
        server.wait().context("waiting for central").map(drop)
    }

    /// Ends the server as a power cut does, with whatever it is sending half sent.
    ///
    /// # Errors
    /// It cannot be killed or waited for.
    pub(crate) fn kill(&mut self) -> Result<()> {
        let Some(mut server) = self.server.take() else { return Ok(()) };
        server.kill().context("killing central")?;
        server.wait().context("waiting for central").map(drop)
    }

    /// Runs a statement on the database of the running server, behind its back.
    ///
    /// # Errors
    /// The statement failed.
    pub(crate) fn sql(&self, statement: &str) -> Result<()> {
        let mut sqlite = Command::new("sqlite3");
        // The server may be writing.
        sqlite.args(["-cmd", ".timeout 5000"]).arg(self.data.join("central.db")).arg(statement);
        command::output(&mut sqlite).map(drop)
    }

    /// Does what whoever owns the boot server could: serves the signed `script` in place of every published one.
    ///
    /// # Errors
    /// The database cannot be changed.
    pub(crate) fn serve_instead(&self, script: &Path) -> Result<()> {
        self.sql(&format!("UPDATE scripts SET envelope = readfile('{}')", script.display()))
    }

    /// Does what else they could: withholds every trust update.
    ///
    /// # Errors
    /// The database cannot be changed.
    pub(crate) fn forget_roots(&self) -> Result<()> {
        command::output(Command::new("sqlite3").arg(self.data.join("central.db")).arg("DELETE FROM roots")).map(drop)
    }

    /// Makes the next certificate authority; its certificate's file.
    ///
    /// # Errors
    /// The command's.
    pub(crate) fn new_authority(&self) -> Result<PathBuf> {
        let printed = command::output(Command::new(&self.program).args(["ca", "new", "--data"]).arg(&self.data))?;
        Ok(PathBuf::from(printed.trim()))
    }

    /// The data folder.
    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// The operator's folder.
    pub(crate) fn operator(&self) -> PathBuf {
        self.data.join("operator")
    }

    /// The URL that a guest uses.
    pub(crate) fn url_for_guest(&self) -> String {
        format!("https://{HOST_FROM_GUEST}:{}", self.port)
    }

    /// The URL on this host.
    pub(crate) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }
}

impl Drop for Central {
    fn drop(&mut self) {
        // Nothing can be done about a server that does not end here; the parent-death signal remains.
        let _ = self.stop();
    }
}
