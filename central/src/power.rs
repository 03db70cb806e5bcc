//! Remote power: what operators ask for, tests over the fleet, and what central does by itself about nodes that fell silent.
//!
//! Every operation is a row that outlives central. Non-goals: talking to devices, which is `orrery-pcu`'s, and writing mails, which is a
//! program's that operators name.

mod guard;
mod ladder;
mod methods;
mod notify;
mod patrol;
mod perform;
mod runner;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use orrery_central_api::{PowerAttempt, PowerStateRead};
use orrery_pcu::Registry;
use serde_json::Value;
use tokio::{
    sync::{Notify, Semaphore},
    time::timeout,
};

use perform::Devices;
pub(crate) use runner::Runner;

/// States that are read at once, because somebody waits.
const QUESTIONS: usize = 16;
/// How long somebody waits for one: clients give up after half a minute.
const QUESTION: Duration = Duration::from_secs(25);

/// What handlers and the runner share.
#[derive(Debug, Clone)]
pub(crate) struct Power {
    devices: Arc<Devices>,
    /// Where secrets, programs and drivers stand.
    folder: Arc<Path>,
    /// Something was asked for.
    wake: Arc<Notify>,
    questions: Arc<Semaphore>,
}

/// Why a state is not known.
#[derive(Debug)]
pub(crate) enum NoState {
    /// The methods cannot be used.
    Methods(String),
    /// No method says it.
    Failed(Vec<PowerAttempt>),
    /// Too many are asking.
    Busy,
    /// No device has answered yet.
    Slow,
}

impl Power {
    /// Takes up the drivers that the data folder's `power/drivers` describes, beside those that are built in.
    pub(crate) fn new(data: &Path) -> Self {
        let folder = std::path::absolute(data).unwrap_or_else(|_| data.to_owned()).join("power");
        let mut registry = Registry::builtin();
        for file in driver_files(&folder) {
            match registry.add_file(&file) {
                Ok(name) => tracing::info!(name, file = %file.display(), "power driver"),
                // Central serves nodes all the same; methods that name it are refused.
                Err(error) => tracing::error!(%error, "a power driver cannot be used"),
            }
        }
        Self {
            devices: Arc::new(Devices::new(registry)),
            folder: folder.into(),
            wake: Arc::default(),
            questions: Arc::new(Semaphore::new(QUESTIONS)),
        }
    }

    /// Whether a node can have these methods; what is wrong, for people.
    pub(crate) fn check_methods(&self, methods: &[Value]) -> Result<(), String> {
        methods::check(&self.devices, &self.folder, methods)
    }

    /// Whether this is a program that can be told of events; what is wrong, for people.
    pub(crate) fn check_program(&self, name: &str) -> Result<(), String> {
        let path = methods::inside(&self.folder, name)?;
        let there = fs::metadata(&path).is_ok_and(|about| about.is_file());
        if there { Ok(()) } else { Err(format!("there is no program {}", path.display())) }
    }

    /// Has the runner look for what is to be done.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Asks the node's devices whether it has power.
    pub(crate) async fn state(&self, methods: &[Value]) -> Result<PowerStateRead, NoState> {
        let Ok(permit) = self.questions.clone().try_acquire_owned() else { return Err(NoState::Busy) };
        let methods = methods::bind(&self.folder, methods).map_err(NoState::Methods)?;
        let devices = self.devices.clone();
        // It goes on without whoever asked, as long as the device takes.
        let read = runner::apart(move || {
            let _permit = permit;
            devices.state(&methods)
        });
        let read = timeout(QUESTION, read).await.map_err(|_| NoState::Slow)?;
        read.unwrap_or_else(|| Err(Vec::new())).map_err(NoState::Failed)
    }
}

fn driver_files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.join("drivers")).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|end| end == "toml")).collect();
    files.sort();
    files
}
