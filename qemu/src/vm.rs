//! A running machine.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;
use thiserror::Error;

use crate::accel::acceleration;
use crate::command::{QEMU, RunFiles, arguments};
use crate::console::{self, Console, ConsoleError, Line, Mark, Match, Pattern};
use crate::process::{Guarded, bound_command, spawn};
use crate::qmp::{Qmp, QmpError};
use crate::spec::{BootMedium, Firmware, VmSpec};

/// QEMU connects its sockets before anything slow; more than this means that it hangs.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);
/// Code and variables that fit each other, in order of preference.
const UEFI: [(&str, &str); 4] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
];

/// Why a machine didn't start.
#[derive(Debug, Error)]
pub enum StartError {
    /// A file or socket of the run.
    #[error("{attempt}")]
    Io {
        /// What was attempted, on what.
        attempt: String,
        /// Why it failed.
        source: io::Error,
    },
    /// No UEFI firmware is installed.
    #[error("finding UEFI firmware: none in the usual places; install OVMF (package ovmf)")]
    NoFirmware,
    /// QEMU exited before it connected.
    #[error("starting QEMU for {name}: it exited with {status}: {stderr}")]
    Exited {
        /// The VM.
        name: String,
        /// Its status.
        status: ExitStatus,
        /// What it said.
        stderr: String,
    },
    /// QEMU's control socket failed.
    #[error("taking control of QEMU")]
    Qmp(#[from] QmpError),
}

/// A failed expectation, with what is needed to understand it.
#[derive(Debug, Error)]
#[error("expecting {patterns} on the console of {name}: {cause}{}{}\nevidence: {}\nlast lines:{}", note(.overdue), said(.emulator), evidence.display(), listing(tail))]
pub struct ExpectError {
    /// The VM.
    pub name: Box<str>,
    /// What was expected.
    pub patterns: Box<str>,
    /// Why it failed.
    pub cause: ConsoleError,
    /// The hard deadline, when QEMU was killed for it.
    pub overdue: Option<Duration>,
    /// What QEMU itself complained about: when it crashes, the machine is not at fault.
    pub emulator: Box<str>,
    /// Where console log, screenshot, QEMU's messages and disks are.
    pub evidence: Box<Path>,
    /// The console's last lines.
    pub tail: Box<[Line]>,
}

fn note(overdue: &Option<Duration>) -> String {
    overdue.map(|limit| format!(" (killed at its hard deadline of {limit:?})")).unwrap_or_default()
}

fn said(emulator: &str) -> String {
    if emulator.is_empty() { String::new() } else { format!("\nQEMU says: {emulator}") }
}

fn listing(tail: &[Line]) -> String {
    tail.iter().map(|line| format!("\n  {:9.3} {}", line.at.as_secs_f64(), line.text)).collect()
}

/// A machine made of a [`VmSpec`]. Dropping it kills QEMU; its folder goes too, unless something failed.
#[derive(Debug)]
pub struct Vm {
    spec: VmSpec,
    folder: PathBuf,
    console: Console,
    running: Option<Running>,
    keep: bool,
}

#[derive(Debug)]
struct Running {
    qemu: Guarded,
    qmp: Qmp,
    serial: UnixStream,
    /// Holds the sockets; their paths must be short, which the evidence folder's needn't be.
    _sockets: TempDir,
}

impl VmSpec {
    /// Starts a machine.
    ///
    /// # Errors
    /// When QEMU or its files can't be had.
    pub fn start(&self) -> Result<Vm, StartError> {
        let root = self.evidence.clone().unwrap_or_else(default_evidence_root);
        let folder = root.join(&self.name);
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(failed("removing", &folder))?;
        }
        fs::create_dir_all(&folder).map_err(failed("creating", &folder))?;
        let folder = folder.canonicalize().map_err(failed("resolving", &folder))?;
        let console = Console::new(self.fatal.clone());
        let mut vm = Vm { spec: self.clone(), folder, console, running: None, keep: false };
        vm.start_again()?;
        Ok(vm)
    }
}

impl Vm {
    /// Begins a specification; see [`VmSpec::new`].
    pub fn builder(name: impl Into<String>) -> VmSpec {
        VmSpec::new(name)
    }

    /// Powers the machine on again after [`Self::power_cut`] or its exit, with its disks and UEFI variables as they
    /// are. The console's record goes on.
    ///
    /// # Errors
    /// When QEMU or its files can't be had.
    pub fn start_again(&mut self) -> Result<(), StartError> {
        self.running = None;
        let result = self.launch();
        match result {
            Ok(running) => self.running = Some(running),
            Err(error) => {
                self.keep = true;
                return Err(error);
            }
        }
        Ok(())
    }

    /// The console, for whatever has no shorthand here.
    #[must_use]
    pub fn console(&self) -> &Console {
        &self.console
    }

    /// Waits until `pattern` shows up on the console after what was matched last. On failure, evidence is kept.
    ///
    /// # Errors
    /// When it doesn't in time, a fatal text comes first, or QEMU exits.
    pub fn expect(&mut self, pattern: impl Into<Pattern>, within: Duration) -> Result<Match, ExpectError> {
        self.expect_any([pattern.into()], within)
    }

    /// Waits for the first of several patterns.
    ///
    /// # Errors
    /// As [`Self::expect`].
    pub fn expect_any<P: Into<Pattern>>(
        &mut self,
        patterns: impl IntoIterator<Item = P>,
        within: Duration,
    ) -> Result<Match, ExpectError> {
        let patterns: Vec<Pattern> = patterns.into_iter().map(Into::into).collect();
        let result = self.console.expect_any(patterns.iter().cloned(), within);
        result.map_err(|cause| self.failure(&patterns, cause))
    }

    /// As [`Self::expect`], but looks from `mark` on.
    ///
    /// # Errors
    /// As [`Self::expect`].
    pub fn expect_from(
        &mut self,
        mark: Mark,
        pattern: impl Into<Pattern>,
        within: Duration,
    ) -> Result<Match, ExpectError> {
        let pattern = pattern.into();
        let result = self.console.expect_from(mark, pattern.clone(), within);
        result.map_err(|cause| self.failure(&[pattern], cause))
    }

    /// Types `text` on the serial console.
    ///
    /// # Errors
    /// When the machine isn't running.
    pub fn send(&self, text: &str) -> io::Result<()> {
        let running = self.running.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        console::send(&running.serial, text)
    }

    /// QEMU's control connection.
    ///
    /// # Errors
    /// When the machine isn't running.
    pub fn qmp(&mut self) -> Result<&mut Qmp, QmpError> {
        self.running.as_mut().map(|running| &mut running.qmp).ok_or(QmpError::NotRunning)
    }

    /// Presses the reset button.
    ///
    /// # Errors
    /// When QEMU doesn't answer.
    pub fn reset(&mut self) -> Result<(), QmpError> {
        self.qmp()?.system_reset()
    }

    /// Pulls the plug: QEMU is killed at once, the disks stay as they are. [`Self::start_again`] plugs it in.
    pub fn power_cut(&mut self) {
        self.running = None;
    }

    /// Waits until QEMU exits by itself, e.g. because the guest powers off.
    ///
    /// # Errors
    /// `TimedOut` when it doesn't in time, `NotConnected` when it isn't running.
    pub fn wait_exit(&mut self, within: Duration) -> io::Result<ExitStatus> {
        let running = self.running.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        match running.qemu.wait(within)? {
            Some(status) => {
                self.running = None;
                Ok(status)
            }
            None => {
                self.gather();
                Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("{} didn't exit within {within:?}; evidence: {}", self.spec.name, self.folder.display()),
                ))
            }
        }
    }

    /// Whether QEMU is there.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running.as_ref().is_some_and(|running| matches!(running.qemu.try_wait(), Ok(None)))
    }

    /// Process id of QEMU while it runs.
    #[must_use]
    pub fn process_id(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.qemu.child().id())
    }

    /// The folder of this machine's console log and other evidence.
    #[must_use]
    pub fn evidence(&self) -> &Path {
        &self.folder
    }

    /// Takes a screenshot, records the disks, and keeps the evidence folder when the machine is dropped.
    pub fn keep_evidence(&mut self) -> &Path {
        self.gather();
        &self.folder
    }

    fn failure(&mut self, patterns: &[Pattern], cause: ConsoleError) -> ExpectError {
        self.gather();
        ExpectError {
            name: self.spec.name.as_str().into(),
            patterns: patterns.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ").into(),
            cause,
            overdue: self.running.as_ref().and_then(|running| running.qemu.overdue()),
            emulator: self.complaints(),
            evidence: self.folder.as_path().into(),
            tail: self.console.tail(15).into(),
        }
    }

    /// Best effort: evidence that can't be had must not hide what failed.
    fn gather(&mut self) {
        self.keep = true;
        if let Some(running) = self.running.as_mut().filter(|running| matches!(running.qemu.try_wait(), Ok(None))) {
            let _ = running.qmp.screendump(&self.folder.join("screen.png"));
        }
        let record: String = self.console.lines().iter().map(|line| listing(std::slice::from_ref(line))).collect();
        let _ = fs::write(self.folder.join("console-times.txt"), record);
        let mut disks = String::new();
        for (index, disk) in self.spec.disks.iter().enumerate() {
            // A second name keeps the content when the scenario removes its temporary folder.
            let kept = self.folder.join(format!("disk{index}.img"));
            if !kept.exists() {
                let _ = fs::hard_link(&disk.path, &kept);
            }
            disks += &format!("disk{index} {:?} {}\n", disk.bus, disk.path.display());
        }
        let _ = fs::write(self.folder.join("disks.txt"), disks);
    }

    fn launch(&self) -> Result<Running, StartError> {
        let sockets = tempfile::Builder::new()
            .prefix("orrery-vm-")
            .tempdir()
            .map_err(failed("creating a folder in", &env::temp_dir()))?;
        let (serial_path, qmp_path) = (sockets.path().join("serial"), sockets.path().join("qmp"));
        let listen = |path: &Path| UnixListener::bind(path).map_err(failed("listening on", path));
        let (serial_listener, qmp_listener) = (listen(&serial_path)?, listen(&qmp_path)?);
        let files = RunFiles {
            serial: &serial_path,
            qmp: &qmp_path,
            log: &self.folder.join("console.log"),
            uefi: self.uefi()?,
            initrd: self.initrd()?,
        };
        let line = arguments(&self.spec, acceleration(), &files);
        let record = self.folder.join("qemu.args");
        fs::write(&record, format!("{QEMU} {}\n", line.join(" "))).map_err(failed("writing", &record))?;
        let errors = self.folder.join("qemu.stderr");
        let stderr = File::options().create(true).append(true).open(&errors).map_err(failed("opening", &errors))?;
        let stdout = stderr.try_clone().map_err(failed("opening", &errors))?;
        let mut command = bound_command(QEMU);
        command.args(line).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let mut qemu = spawn(command).map_err(failed("running", Path::new(QEMU)))?;
        qemu.kill_after(self.spec.limit);
        let end = Instant::now() + CONNECT_LIMIT;
        let qmp = self.accept(&qmp_listener, &qmp_path, &qemu, end)?;
        let serial = self.accept(&serial_listener, &serial_path, &qemu, end)?;
        serial.set_write_timeout(Some(CONNECT_LIMIT)).map_err(failed("setting up", &serial_path))?;
        self.console.attach(serial.try_clone().map_err(failed("setting up", &serial_path))?);
        let mut qmp = match Qmp::negotiate(qmp) {
            Ok(qmp) => qmp,
            // QEMU opens its sockets before its disks, so its own message is better than a closed socket.
            Err(error) => match qemu.wait(Duration::from_secs(2)) {
                Ok(Some(status)) => return Err(self.exited(status)),
                _ => return Err(error.into()),
            },
        };
        if self.spec.network.as_ref().is_some_and(|network| !network.link_up) {
            qmp.set_link(false)?;
        }
        qmp.cont()?;
        Ok(Running { qemu, qmp, serial, _sockets: sockets })
    }

    fn accept(
        &self,
        listener: &UnixListener,
        path: &Path,
        qemu: &Guarded,
        end: Instant,
    ) -> Result<UnixStream, StartError> {
        const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        loop {
            let mut wanted = [PollFd::new(listener, PollFlags::IN)];
            if poll(&mut wanted, Some(&TICK)).is_ok_and(|ready| ready > 0) {
                return Ok(listener.accept().map_err(failed("accepting QEMU on", path))?.0);
            }
            if let Ok(Some(status)) = qemu.try_wait() {
                return Err(self.exited(status));
            }
            if Instant::now() >= end {
                return Err(failed("waiting for QEMU on", path)(io::ErrorKind::TimedOut.into()));
            }
        }
    }

    fn exited(&self, status: ExitStatus) -> StartError {
        StartError::Exited { name: self.spec.name.clone(), status, stderr: self.complaints().into() }
    }

    /// What QEMU has written on its standard error.
    fn complaints(&self) -> Box<str> {
        fs::read_to_string(self.folder.join("qemu.stderr")).unwrap_or_default().trim().into()
    }

    fn uefi(&self) -> Result<Option<(PathBuf, PathBuf)>, StartError> {
        if self.spec.firmware == Firmware::Bios {
            return Ok(None);
        }
        let there = |(code, variables): &&(&str, &str)| Path::new(code).exists() && Path::new(variables).exists();
        let (code, template) = UEFI.iter().find(there).ok_or(StartError::NoFirmware)?;
        let variables = self.folder.join("uefi-variables.fd");
        if !variables.exists() {
            fs::copy(template, &variables).map_err(failed("copying UEFI variables to", &variables))?;
        }
        Ok(Some((PathBuf::from(code), variables)))
    }

    fn initrd(&self) -> Result<Option<PathBuf>, StartError> {
        let BootMedium::Kernel { initrds, .. } = &self.spec.medium else { return Ok(None) };
        match initrds.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(one.clone())),
            many => {
                let joined = self.folder.join("initrd.img");
                concatenate(many, &joined).map_err(failed("concatenating initrds to", &joined))?;
                Ok(Some(joined))
            }
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if thread::panicking() && !self.keep {
            self.gather();
        }
        self.running = None;
        if !self.keep {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// Each part begins at a multiple of four bytes, as the kernel wants it of archives in a row.
fn concatenate(parts: &[PathBuf], joined: &Path) -> io::Result<()> {
    let mut output = File::create(joined)?;
    for part in parts {
        let mut content = Vec::new();
        File::open(part)?.read_to_end(&mut content)?;
        content.resize(content.len().next_multiple_of(4), 0);
        output.write_all(&content)?;
    }
    Ok(())
}

fn failed(attempt: &str, path: &Path) -> impl FnOnce(io::Error) -> StartError + use<> {
    let attempt = format!("{attempt} {}", path.display());
    move |source| StartError::Io { attempt, source }
}

/// `target/orrery/vm` beside the nearest lock file above the working directory.
fn default_evidence_root() -> PathBuf {
    let here = env::current_dir().unwrap_or_default();
    let root = here.ancestors().find(|folder| folder.join("Cargo.lock").exists()).unwrap_or(&here);
    root.join("target/orrery/vm")
}
