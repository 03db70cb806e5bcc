//! What a driver is, and which there are.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{BootDevice, Change, Deadline, Method, PcuError, PowerState, drivers};

/// Something a driver can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ability {
    /// Tell whether there is power.
    Status,
    /// Give power.
    On,
    /// Take it away.
    Off,
    /// Both, by the device itself.
    Cycle,
    /// Reset the machine.
    Reset,
    /// Light a lamp at the machine.
    Identify,
    /// Say what the firmware starts next time.
    #[serde(rename = "bootdev")]
    BootDevice,
    /// The machine's serial line.
    Console,
    /// Temperatures, voltages, currents.
    Sensors,
    /// The device's own log.
    Log,
}

impl fmt::Display for Ability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Status => "status",
            Self::On => "on",
            Self::Off => "off",
            Self::Cycle => "cycle",
            Self::Reset => "reset",
            Self::Identify => "identify",
            Self::BootDevice => "bootdev",
            Self::Console => "console",
            Self::Sensors => "sensors",
            Self::Log => "log",
        })
    }
}

/// A kind of device, or of way to a machine's power. Holds no connection.
pub trait Driver: Send + Sync {
    /// What methods call it: `ipmi`, `apc-ap79xx`.
    fn name(&self) -> &str;
    /// One line for people: what it talks to.
    fn about(&self) -> &str;
    /// What it can do; devices may do less.
    fn abilities(&self) -> &[Ability];
    /// Logs in and finds the outlet. Changes nothing.
    ///
    /// # Errors
    /// When the method is not configured as the driver needs, the device cannot be reached or does not let us in, or has no such
    /// outlet.
    fn open(&self, method: &Method, deadline: Deadline) -> Result<Box<dyn Session>, PcuError>;
}

/// Being logged in, with the outlet known to be there. Dropping it logs out, as far as the device can.
///
/// Nothing here proves that a change had an effect: [`crate::engine`] does.
pub trait Session: Send {
    /// Whether there is power.
    ///
    /// # Errors
    /// When the device does not say.
    fn state(&mut self, deadline: Deadline) -> Result<PowerState, PcuError>;

    /// Asks for a change. Success means that the device accepted it.
    ///
    /// # Errors
    /// When it did not.
    fn change(&mut self, change: Change, deadline: Deadline) -> Result<(), PcuError>;

    /// Goes as far towards a change as is possible without one, and says what that proves.
    ///
    /// # Errors
    /// When a change would fail.
    fn prove(&mut self, deadline: Deadline) -> Result<Vec<Proof>, PcuError> {
        let state = self.state(deadline)?;
        Ok(vec![Proof(format!("the power is {state}"))])
    }

    /// Lights a lamp at the machine for about `time`; zero turns it off.
    ///
    /// # Errors
    /// When the device has none, or refuses.
    fn identify(&mut self, time: Duration, deadline: Deadline) -> Result<(), PcuError> {
        let _ = (time, deadline);
        Err(absent("lighting the lamp"))
    }

    /// Chooses what the firmware starts at the next boot, and only then.
    ///
    /// # Errors
    /// When the device cannot, or refuses.
    fn set_boot_device(&mut self, device: BootDevice, deadline: Deadline) -> Result<(), PcuError> {
        let _ = (device, deadline);
        Err(absent("choosing what to boot"))
    }

    /// Temperatures, voltages, currents.
    ///
    /// # Errors
    /// When the device has none, or does not say.
    fn sensors(&mut self, deadline: Deadline) -> Result<Vec<Sensor>, PcuError> {
        let _ = deadline;
        Err(absent("reading sensors"))
    }

    /// The device's own log, the oldest entry first; at most some thousand entries.
    ///
    /// # Errors
    /// When the device has none, or does not give it.
    fn log(&mut self, deadline: Deadline) -> Result<Vec<LogEntry>, PcuError> {
        let _ = deadline;
        Err(absent("reading the device's log"))
    }

    /// Connects to the machine's serial line.
    ///
    /// # Errors
    /// When the device has none, or somebody else has it.
    fn console(self: Box<Self>, deadline: Deadline) -> Result<Box<dyn Console>, PcuError> {
        let _ = deadline;
        Err(absent("opening the console"))
    }
}

/// A machine's serial line. Dropping it hangs up.
pub trait Console: Send {
    /// Sends `input`, which may be empty, and returns what came within `wait`; nothing when nothing did.
    ///
    /// # Errors
    /// When the line is lost.
    fn exchange(&mut self, input: &[u8], wait: Duration) -> Result<Vec<u8>, PcuError>;
}

/// Something that a test has shown, for people: "logged in as admin, operator", "outlet 3 is called n1".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof(pub String);

/// One reading.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sensor {
    /// Its name.
    pub name: String,
    /// What it reads; none when it has nothing to say now.
    pub value: Option<f64>,
    /// The unit: `°C`, `V`, `A`, `W`, `rpm`, or empty.
    pub unit: String,
    /// The device's own judgement: `ok`, `critical`.
    pub status: String,
}

/// One entry of a device's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogEntry {
    /// When, in Unix seconds of the device's clock; none where the device does not know.
    pub at: Option<i64>,
    /// What.
    pub text: String,
}

/// All drivers: those in code, and those that are data.
#[derive(Clone)]
pub struct Registry(BTreeMap<String, Arc<dyn Driver>>);

/// Why a data file is no driver.
#[derive(Debug, Error)]
pub enum DataError {
    /// It cannot be read.
    #[error("reading {}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is not as its family needs.
    #[error("{}: {detail}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line where it is known.
        detail: String,
    },
    /// There is a driver of this name.
    #[error("{}: there is a driver {name:?} already", .path.display())]
    Taken {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::builtin()
    }
}

impl Registry {
    /// What is built in.
    #[must_use]
    pub fn builtin() -> Self {
        Self(drivers::builtin().into_iter().map(|driver| (driver.name().to_owned(), driver)).collect())
    }

    /// Takes up the driver that a data file describes, and says its name.
    ///
    /// # Errors
    /// When it does not describe one, or there is one of its name.
    pub fn add_file(&mut self, path: &Path) -> Result<String, DataError> {
        let text = fs::read_to_string(path).map_err(|source| DataError::Read { path: path.into(), source })?;
        let driver = drivers::parse_data(&text).map_err(|detail| DataError::Malformed { path: path.into(), detail })?;
        let name = driver.name().to_owned();
        if self.0.contains_key(&name) {
            return Err(DataError::Taken { path: path.into(), name });
        }
        self.0.insert(name.clone(), driver);
        Ok(name)
    }

    /// Takes up every `*.toml` of a folder, in order of their names.
    ///
    /// # Errors
    /// When the folder cannot be read, or one of the files is not a driver.
    pub fn add_folder(&mut self, folder: &Path) -> Result<(), DataError> {
        let read = |source| DataError::Read { path: folder.into(), source };
        let mut files = Vec::new();
        for entry in fs::read_dir(folder).map_err(read)? {
            let path = entry.map_err(read)?.path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                files.push(path);
            }
        }
        files.sort();
        files.iter().try_for_each(|file| self.add_file(file).map(drop))
    }

    /// All drivers, by name.
    pub fn iter(&self) -> impl Iterator<Item = &dyn Driver> {
        self.0.values().map(AsRef::as_ref)
    }

    /// The driver of a method.
    ///
    /// # Errors
    /// [`PcuError::Configuration`] when there is none of that name.
    pub fn of(&self, method: &Method) -> Result<&dyn Driver, PcuError> {
        let unknown =
            || method.misconfigured(&format!("there is no driver {:?}; see `pcu driver list`", method.driver));
        self.0.get(&method.driver).map(AsRef::as_ref).ok_or_else(unknown)
    }
}

fn absent(doing: &str) -> PcuError {
    PcuError::Unsupported { doing: doing.into(), detail: "this driver has no such thing".into() }
}
