//! Any program: what no other driver can do.

use std::{
    fmt::Write as _,
    io::{self, Read},
    os::unix::process::CommandExt,
    process::{Child, Command as Program, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;

use crate::{Ability, Change, Deadline, Driver, Method, PcuError, PowerState, Session, driver::Proof};

/// `EX_TEMPFAIL`.
const TRY_AGAIN: i32 = 75;
/// How often a running program is looked at.
const POLL: Duration = Duration::from_millis(10);
/// How long after a program's end its last output may take.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Most of a program's output that is read, in bytes.
const OUTPUT: usize = 16 << 10;

/// Runs a program for every change. It gets the action as its last argument (`on`, `off`, `cycle`, `reset`, `status`, `test`), the
/// address and outlet as `PCU_ADDRESS` and `PCU_OUTLET`, the user as `PCU_USER`, and the password as the only line of its standard input.
///
/// It ends with 0 when it did it, and with 75 (`EX_TEMPFAIL` of `sysexits.h`) when trying again may help. For `status` it prints `on` or `off`.
#[derive(Debug)]
pub(super) struct Command;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// The program and its first arguments.
    run: Vec<String>,
}

#[derive(Debug)]
struct Runner {
    run: Vec<String>,
    method: Method,
}

impl Driver for Command {
    fn name(&self) -> &'static str {
        "command"
    }

    fn about(&self) -> &'static str {
        "any program, told what to do by its last argument"
    }

    fn abilities(&self) -> &[Ability] {
        &[Ability::Status, Ability::On, Ability::Off, Ability::Cycle, Ability::Reset]
    }

    fn open(&self, method: &Method, _deadline: Deadline) -> Result<Box<dyn Session>, PcuError> {
        let Options { run } = method.options()?;
        if run.is_empty() {
            return Err(method.misconfigured("run = [] names no program"));
        }
        Ok(Box::new(Runner { run, method: method.clone() }))
    }
}

impl Session for Runner {
    fn state(&mut self, deadline: Deadline) -> Result<PowerState, PcuError> {
        let said = self.run("status", deadline)?;
        match said.trim() {
            "on" => Ok(PowerState::On),
            "off" => Ok(PowerState::Off),
            _ => Err(PcuError::Prompt { doing: self.doing("status"), expected: "on or off".into(), said }),
        }
    }

    fn change(&mut self, change: Change, deadline: Deadline) -> Result<(), PcuError> {
        self.run(&change.to_string(), deadline).map(drop)
    }

    fn prove(&mut self, deadline: Deadline) -> Result<Vec<Proof>, PcuError> {
        let said = self.run("test", deadline)?;
        Ok(vec![Proof(format!("{} test succeeded: {}", self.run[0], said.trim()))])
    }
}

impl Runner {
    fn doing(&self, action: &str) -> String {
        format!("running {} {action}", self.run.join(" "))
    }

    fn run(&self, action: &str, deadline: Deadline) -> Result<String, PcuError> {
        let doing = self.doing(action);
        let secret = match &self.method.password {
            Some(source) => format!("{}\n", source.resolve()?.reveal()),
            None => String::new(),
        };
        let mut child = Program::new(&self.run[0])
            .args(&self.run[1..])
            .arg(action)
            .env("PCU_ADDRESS", &self.method.address)
            .env("PCU_OUTLET", self.method.outlet.as_deref().unwrap_or_default())
            .env("PCU_USER", self.method.user.as_deref().unwrap_or_default())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| PcuError::transport(doing.as_str(), error))?;
        // A program need not read it. A line fits into any pipe.
        let _ = io::Write::write_all(&mut child.stdin.take().expect("it is piped"), secret.as_bytes());
        let output = collect(child.stdout.take().expect("it is piped"));
        let errors = collect(child.stderr.take().expect("it is piped"));
        let status = wait(&mut child, deadline, &doing)?;
        // Something that it left running may keep its output open.
        let said = |from: &Receiver<String>| from.recv_timeout(LAST_WORDS).unwrap_or_default();
        let (output, errors) = (said(&output), said(&errors));
        if status.success() {
            return Ok(output);
        }
        let mut detail = status.to_string();
        if let Some(line) = errors.lines().chain(output.lines()).find(|line| !line.trim().is_empty()) {
            let _ = write!(detail, ": {}", line.trim());
        }
        Err(if status.code() == Some(TRY_AGAIN) {
            PcuError::Busy { doing, detail }
        } else {
            PcuError::Refused { doing, detail }
        })
    }
}

/// Waits until the program ends; ends it, and what it started, when the time is up.
fn wait(child: &mut Child, deadline: Deadline, doing: &str) -> Result<ExitStatus, PcuError> {
    loop {
        match child.try_wait().map_err(|error| PcuError::transport(doing, error))? {
            Some(status) => return Ok(status),
            None if deadline.passed() => {
                // An error means that it has ended by itself.
                let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
                let _ = child.wait();
                return Err(PcuError::Timeout { doing: doing.into() });
            }
            None => thread::sleep(POLL),
        }
    }
}

/// Reads all of a program's output, and keeps its beginning.
fn collect(mut pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut kept = Vec::new();
        // What cannot be read was not said.
        let _ = pipe.by_ref().take(OUTPUT as u64).read_to_end(&mut kept);
        // Nobody may wait for it any more.
        let _ = send.send(String::from_utf8_lossy(&kept).into_owned());
        // A program whose pipe is closed would end early.
        let _ = io::copy(&mut pipe, &mut io::sink());
    });
    receive
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Class;

    fn open(script: &str) -> Box<dyn Session> {
        let mut method = Method::new("command", "n1");
        method.options = toml::from_str(&format!("run = ['sh', '-c', '''{script}''', 'sh']")).unwrap();
        Command.open(&method, Deadline::after(Duration::from_secs(5))).unwrap()
    }

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(5))
    }

    #[test]
    fn it_gets_the_action_and_says_the_state() {
        assert_eq!(open(r#"test $1 = status && echo on"#).state(soon()).unwrap(), PowerState::On);
        open(r#"test "$1" = cycle && test $PCU_ADDRESS = n1"#).change(Change::Cycle, soon()).unwrap();
        assert_eq!(open("echo maybe").state(soon()).unwrap_err().class(), Class::Prompt);
    }

    #[test]
    fn its_failure_and_its_flood_are_told_and_bounded() {
        let error = open("echo no relay >&2; exit 3").change(Change::On, soon()).unwrap_err();
        assert_eq!(error.class(), Class::Refused);
        assert!(error.to_string().ends_with("exit status: 3: no relay"), "{error}");
        let error = open("head -c 1000000 /dev/zero").state(soon()).unwrap_err();
        assert_eq!(error.class(), Class::Prompt);
        let error = open("sleep 60; true").change(Change::On, Deadline::after(Duration::from_millis(200))).unwrap_err();
        assert_eq!(error.class(), Class::Timeout);
    }
}
