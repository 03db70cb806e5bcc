//! Virtual machines of libvirt, by its command `virsh`: the library has no other stable interface for Rust.

use std::{
    io::{self, Read, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
};

use serde::Deserialize;

use crate::{Ability, Change, Deadline, Driver, Method, PcuError, PowerState, Proof, Session};

/// Most that one command may print, in bytes.
const OUTPUT: usize = 64 << 10;
/// What virsh prints where it is typed to; it repeats what it was told behind it.
const PROMPT: &str = "virsh #";

/// One `virsh` for a session. `address` is the domain.
#[derive(Debug)]
pub(super) struct Virsh;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    /// The hypervisor, as `qemu+ssh://root@host/system`.
    #[serde(default = "system")]
    uri: String,
}

#[derive(Debug, Clone, Copy)]
enum Pipe {
    Output,
    Errors,
}

struct Shell {
    child: Child,
    input: ChildStdin,
    output: Receiver<(Pipe, Vec<u8>)>,
    commands: u32,
    domain: String,
    uri: String,
}

impl Driver for Virsh {
    fn name(&self) -> &'static str {
        "virsh"
    }

    fn about(&self) -> &'static str {
        "a virtual machine of libvirt, by virsh"
    }

    fn abilities(&self) -> &[Ability] {
        &[Ability::Status, Ability::On, Ability::Off, Ability::Reset]
    }

    fn open(&self, method: &Method, deadline: Deadline) -> Result<Box<dyn Session>, PcuError> {
        let Options { uri } = method.options()?;
        let domain = method.address.clone();
        // It stands in a line of virsh's own language.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.+:@".contains(&byte);
        if domain.is_empty() || domain.starts_with('-') || !domain.bytes().all(plain) {
            return Err(method.misconfigured("the address is no name or UUID of a domain"));
        }
        let doing = format!("running virsh for {uri}");
        let mut child = Command::new("virsh")
            .args(["--quiet", "--connect", &uri])
            .env("LC_ALL", "C")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| PcuError::transport(doing, error))?;
        let (send, output) = mpsc::channel();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        forward(Pipe::Output, stdout.expect("it is piped"), send.clone());
        forward(Pipe::Errors, stderr.expect("it is piped"), send);
        let input = child.stdin.take().expect("it is piped");
        let mut shell = Shell { child, input, output, commands: 0, domain, uri };
        shell.state(deadline)?;
        Ok(Box::new(shell))
    }
}

impl Session for Shell {
    fn state(&mut self, deadline: Deadline) -> Result<PowerState, PcuError> {
        let said = self.run("domstate", deadline)?;
        match said.trim() {
            "running" | "idle" | "paused" | "in shutdown" | "pmsuspended" | "crashed" | "blocked" => Ok(PowerState::On),
            "shut off" => Ok(PowerState::Off),
            _ => Err(PcuError::Prompt { doing: self.doing("domstate"), expected: "a state".into(), said }),
        }
    }

    fn change(&mut self, change: Change, deadline: Deadline) -> Result<(), PcuError> {
        match change {
            Change::On => self.run("start", deadline).map(drop),
            Change::Off => self.run("destroy", deadline).map(drop),
            Change::Reset => self.run("reset", deadline).map(drop),
            Change::Cycle => {
                self.run("destroy", deadline)?;
                self.run("start", deadline).map(drop)
            }
        }
    }

    fn prove(&mut self, deadline: Deadline) -> Result<Vec<Proof>, PcuError> {
        let state = self.state(deadline)?;
        Ok(vec![Proof(format!("{} knows the domain {}: the power is {state}", self.uri, self.domain))])
    }
}

impl Shell {
    fn doing(&self, command: &str) -> String {
        format!("asking {} for {command} of {}", self.uri, self.domain)
    }

    /// Runs one command on the domain, and returns what it printed.
    fn run(&mut self, command: &str, deadline: Deadline) -> Result<String, PcuError> {
        let doing = self.doing(command);
        self.commands += 1;
        let (begin, end) = (format!("pcu-begin-{}.", self.commands), format!("pcu-end-{}.", self.commands));
        // What stands between the two on its output is the answer. Errors go to another pipe, which gets an end of its own.
        let lines = format!("echo {begin}\n{command} {}\necho {end}\necho --err {end}\n", self.domain);
        self.input.write_all(lines.as_bytes()).map_err(|error| PcuError::transport(doing.as_str(), error))?;
        let (mut said, mut errors) = (Vec::new(), Vec::new());
        loop {
            match self.output.recv_timeout(deadline.left(&doing)?) {
                Ok((Pipe::Output, more)) => said.extend(more),
                Ok((Pipe::Errors, more)) => errors.extend(more),
                Err(RecvTimeoutError::Timeout) => return Err(PcuError::Timeout { doing }),
                Err(RecvTimeoutError::Disconnected) => {
                    let source = io::Error::other(lines_of(&errors).join(": "));
                    return Err(PcuError::Transport { doing, source });
                }
            }
            if said.len() + errors.len() > OUTPUT {
                return Err(PcuError::BadAnswer { doing, detail: format!("more than {OUTPUT} bytes") });
            }
            let (lines, mut errors) = (lines_of(&said), lines_of(&errors));
            if lines.iter().any(|line| line.starts_with(&end)) && errors.pop_if(|line| *line == end).is_some() {
                let answer = lines.iter().skip_while(|line| !line.starts_with(&begin)).skip(1);
                let answer = answer.take_while(|line| !line.starts_with(&end)).filter(|line| !line.starts_with(PROMPT));
                let answer = answer.cloned().collect::<Vec<_>>().join("\n");
                return judge(&doing, answer, &errors);
            }
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // An error means that it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Errors by what libvirt calls them.
fn judge(doing: &str, answer: String, errors: &[String]) -> Result<String, PcuError> {
    if errors.is_empty() {
        return Ok(answer);
    }
    let (doing, detail) = (doing.to_owned(), errors.join(": "));
    Err(if detail.contains("failed to get domain") {
        PcuError::OutletUnknown { doing, outlet: detail, known: Vec::new() }
    } else if detail.contains("failed to connect") {
        PcuError::Transport { doing, source: io::Error::other(detail) }
    } else if detail.contains("uthentication") {
        PcuError::Authentication { doing, detail }
    } else if detail.contains("ccess denied") {
        PcuError::Privilege { doing, detail }
    } else {
        PcuError::Refused { doing, detail }
    })
}

/// The lines of a pipe that are not empty, without what marks errors as such.
fn lines_of(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let plain = |line: &str| line.trim().trim_start_matches("error: ").to_owned();
    text.lines().map(plain).filter(|line| !line.is_empty()).collect()
}

/// Hands on what a pipe says, until nobody listens.
fn forward(name: Pipe, mut pipe: impl Read + Send + 'static, to: mpsc::Sender<(Pipe, Vec<u8>)>) {
    thread::spawn(move || {
        let mut buffer = vec![0; 4096];
        while let Ok(length @ 1..) = pipe.read(&mut buffer) {
            if to.send((name, buffer[..length].to_vec())).is_err() {
                return;
            }
        }
    });
}

fn system() -> String {
    "qemu:///system".into()
}
