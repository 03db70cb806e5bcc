//! A blocking client of the QEMU machine protocol (one JSON object a line over a socket).

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use thiserror::Error;

/// QEMU answers from its main loop; a screenshot on a busy host is the slowest answer.
const REPLY_LIMIT: Duration = Duration::from_secs(20);

/// What can go wrong with a command.
#[derive(Debug, Error)]
pub enum QmpError {
    /// The socket failed, or QEMU closed it.
    #[error("talking QMP for {command}")]
    Io {
        /// The command under way.
        command: String,
        /// What the socket said.
        source: io::Error,
    },
    /// QEMU refused.
    #[error("QEMU refused {command}: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's description.
        reason: String,
    },
    /// The VM isn't running.
    #[error("the VM isn't running")]
    NotRunning,
}

/// Something QEMU told unasked, e.g. `RESET`, `SHUTDOWN`, `WATCHDOG`.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its name.
    pub name: String,
    /// Its data, `Null` when it has none.
    pub data: Value,
}

/// A negotiated connection.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    /// A line whose rest hasn't come yet.
    partial: Vec<u8>,
    events: VecDeque<Event>,
}

impl Qmp {
    pub(crate) fn negotiate(stream: UnixStream) -> Result<Self, QmpError> {
        let io = |source| QmpError::Io { command: "qmp_capabilities".into(), source };
        stream.set_write_timeout(Some(REPLY_LIMIT)).map_err(io)?;
        let mut qmp = Self { stream: BufReader::new(stream), partial: Vec::new(), events: VecDeque::new() };
        qmp.receive(Instant::now() + REPLY_LIMIT).map_err(io)?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs any command and returns what it returns.
    ///
    /// # Errors
    /// When QEMU refuses or doesn't answer in time.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        let io = |source| QmpError::Io { command: command.into(), source };
        let request = format!("{}\n", json!({"execute": command, "arguments": arguments}));
        self.stream.get_mut().write_all(request.as_bytes()).map_err(io)?;
        let end = Instant::now() + REPLY_LIMIT;
        loop {
            let mut message = self.receive(end).map_err(io)?;
            if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = message.get("error") {
                let reason = error["desc"].as_str().unwrap_or("no reason given").into();
                return Err(QmpError::Refused { command: command.into(), reason });
            }
            self.note(&mut message);
        }
    }

    /// The next event called `name`; earlier ones of other names are dropped.
    ///
    /// # Errors
    /// When it doesn't come in time, or QEMU goes away.
    pub fn wait_event(&mut self, name: &str, within: Duration) -> Result<Event, QmpError> {
        let end = Instant::now() + within;
        loop {
            while let Some(event) = self.events.pop_front() {
                if event.name == name {
                    return Ok(event);
                }
            }
            let mut message =
                self.receive(end).map_err(|source| QmpError::Io { command: format!("event {name}"), source })?;
            self.note(&mut message);
        }
    }

    /// Events that came so far and weren't taken yet.
    pub fn events(&mut self) -> Vec<Event> {
        while let Ok(mut message) = self.receive(Instant::now()) {
            self.note(&mut message);
        }
        self.events.drain(..).collect()
    }

    /// Presses the reset button.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn system_reset(&mut self) -> Result<(), QmpError> {
        self.run("system_reset")
    }

    /// Presses the power button (ACPI).
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn powerdown(&mut self) -> Result<(), QmpError> {
        self.run("system_powerdown")
    }

    /// Lets QEMU exit in order.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn quit(&mut self) -> Result<(), QmpError> {
        self.run("quit")
    }

    /// Halts the guest's processors.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn stop(&mut self) -> Result<(), QmpError> {
        self.run("stop")
    }

    /// Lets the guest's processors run on.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn cont(&mut self) -> Result<(), QmpError> {
        self.run("cont")
    }

    /// QEMU's word for the machine's state: `running`, `paused`, `shutdown`, …
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn status(&mut self) -> Result<String, QmpError> {
        let value = self.execute("query-status", json!({}))?;
        Ok(value["status"].as_str().unwrap_or_default().into())
    }

    /// Plugs the network cable in or out.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn set_link(&mut self, up: bool) -> Result<(), QmpError> {
        self.execute("set_link", json!({"name": "nic0", "up": up})).map(drop)
    }

    /// Saves what the display shows as PNG.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub fn screendump(&mut self, file: &Path) -> Result<(), QmpError> {
        self.execute("screendump", json!({"filename": file.to_string_lossy(), "format": "png"})).map(drop)
    }

    fn run(&mut self, command: &str) -> Result<(), QmpError> {
        self.execute(command, json!({})).map(drop)
    }

    fn note(&mut self, message: &mut Value) {
        if let Some(name) = message["event"].as_str().map(String::from) {
            self.events.push_back(Event { name, data: message["data"].take() });
        }
    }

    fn receive(&mut self, end: Instant) -> io::Result<Value> {
        // A timeout of zero would mean "none".
        let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.stream.get_ref().set_read_timeout(Some(left))?;
        self.stream.read_until(b'\n', &mut self.partial)?;
        if !self.partial.ends_with(b"\n") {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let message = serde_json::from_slice(&self.partial);
        self.partial.clear();
        Ok(message?)
    }
}
