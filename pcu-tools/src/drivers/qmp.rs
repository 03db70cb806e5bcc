//! Virtual machines of QEMU, by its monitor protocol (QMP).

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{Ability, Change, Deadline, Driver, Method, PcuError, PowerState, Proof, Session};

/// Longest line that QEMU may say, in bytes.
const LINE: u64 = 1 << 20;
/// How many lines may come that are no answer: events.
const EVENTS: usize = 1000;

/// Talks to a monitor at `unix:PATH` or HOST:PORT (QEMU, `docs/interop/qmp-spec`).
///
/// A virtual machine that is off is one that was reset and does not run: its QEMU stays, so that it can be turned on again. So is one that shut
/// itself down under `-no-shutdown`.
#[derive(Debug)]
pub(super) struct Qmp;

trait Stream: Read + Write + Send {
    fn limit(&self, time: Duration) -> io::Result<()>;
}

struct Monitor {
    stream: BufReader<Box<dyn Stream>>,
    address: String,
}

impl Driver for Qmp {
    fn name(&self) -> &'static str {
        "qmp"
    }

    fn about(&self) -> &'static str {
        "a virtual machine of QEMU, by its monitor"
    }

    fn abilities(&self) -> &[Ability] {
        &[Ability::Status, Ability::On, Ability::Off, Ability::Reset]
    }

    fn open(&self, method: &Method, deadline: Deadline) -> Result<Box<dyn Session>, PcuError> {
        method.no_options()?;
        let doing = format!("connecting to the monitor at {}", method.address);
        let failed = |error| PcuError::transport(doing.as_str(), error);
        let stream: Box<dyn Stream> = match method.address.strip_prefix("unix:") {
            Some(path) => Box::new(UnixStream::connect(path).map_err(failed)?),
            None => Box::new(super::tcp::connect(&method.host_and_port(4444)?, deadline)?),
        };
        let mut monitor = Monitor { stream: BufReader::new(stream), address: method.address.clone() };
        let greeting = monitor.line(&doing, deadline)?;
        if greeting.get("QMP").is_none() {
            return Err(PcuError::BadAnswer { doing, detail: "that is no monitor".into() });
        }
        monitor.execute("qmp_capabilities", deadline)?;
        Ok(Box::new(monitor))
    }
}

impl Session for Monitor {
    fn state(&mut self, deadline: Deadline) -> Result<PowerState, PcuError> {
        let answer = self.execute("query-status", deadline)?;
        match answer["running"].as_bool() {
            Some(true) => Ok(PowerState::On),
            Some(false) => Ok(PowerState::Off),
            None => Err(PcuError::BadAnswer { doing: self.doing("query-status"), detail: "no state".into() }),
        }
    }

    fn change(&mut self, change: Change, deadline: Deadline) -> Result<(), PcuError> {
        let commands: &[&str] = match change {
            Change::Off => &["stop", "system_reset"],
            // After a shutdown the machine would go on where it ended.
            Change::On => &["system_reset", "cont"],
            Change::Cycle => &["stop", "system_reset", "cont"],
            Change::Reset => &["system_reset"],
        };
        commands.iter().try_for_each(|command| self.execute(command, deadline).map(drop))
    }

    fn prove(&mut self, deadline: Deadline) -> Result<Vec<Proof>, PcuError> {
        let state = self.state(deadline)?;
        let version = self.execute("query-version", deadline)?;
        let number = |part: &str| version["qemu"][part].as_u64().unwrap_or_default();
        Ok(vec![Proof(format!("QEMU {}.{}: the power is {state}", number("major"), number("minor")))])
    }
}

impl Monitor {
    fn doing(&self, command: &str) -> String {
        format!("asking the monitor at {} for {command}", self.address)
    }

    fn execute(&mut self, command: &str, deadline: Deadline) -> Result<Value, PcuError> {
        let doing = self.doing(command);
        let request = format!("{}\n", json!({ "execute": command }));
        self.stream
            .get_mut()
            .write_all(request.as_bytes())
            .map_err(|error| PcuError::transport(doing.as_str(), error))?;
        for _ in 0..EVENTS {
            let mut answer = self.line(&doing, deadline)?;
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
            if let Some(error) = answer.get("error") {
                let detail = error["desc"].as_str().unwrap_or("without a reason").to_owned();
                return Err(PcuError::Refused { doing, detail });
            }
        }
        Err(PcuError::BadAnswer { doing, detail: format!("{EVENTS} events and no answer") })
    }

    fn line(&mut self, doing: &str, deadline: Deadline) -> Result<Value, PcuError> {
        let failed = |error| PcuError::transport(doing, error);
        let mut line = Vec::new();
        // Byte by byte would be slow, and whole lines could take for ever: what is buffered is taken, then the time is looked at.
        while line.last() != Some(&b'\n') {
            self.stream.get_ref().limit(deadline.left(doing)?).map_err(failed)?;
            let here = self.stream.fill_buf().map_err(failed)?;
            if here.is_empty() {
                return Err(failed(io::ErrorKind::UnexpectedEof.into()));
            }
            let length = here.iter().position(|byte| *byte == b'\n').map_or(here.len(), |end| end + 1);
            line.extend_from_slice(&here[..length]);
            self.stream.consume(length);
            if line.len() as u64 > LINE {
                return Err(PcuError::BadAnswer {
                    doing: doing.into(),
                    detail: format!("a line of more than {LINE} bytes"),
                });
            }
        }
        serde_json::from_slice(&line)
            .map_err(|error| PcuError::BadAnswer { doing: doing.into(), detail: error.to_string() })
    }
}

impl Stream for UnixStream {
    fn limit(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))?;
        self.set_write_timeout(Some(time))
    }
}

impl Stream for TcpStream {
    fn limit(&self, time: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(time))?;
        self.set_write_timeout(Some(time))
    }
}
