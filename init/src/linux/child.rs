//! One child: starting it, and reading what it says.

use std::{
    fs::OpenOptions,
    io::{self, ErrorKind, Read},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{fs::OpenOptionsExt, process::CommandExt},
    },
    process::{Command, Stdio},
    time::Duration,
};

use orrery_init_api::{
    ATTEMPT_ENV, BOOT_ID_ENV, CONSOLE_ARGUMENT, FailureClass, MAX_RESULT, NODE_CGROUP, REASON_ENV, RESULT_FD, ROLE_ENV,
    Role, Stage, StageResult,
};
use orrery_sys::spawn::Preparations;
use rustix::{
    fs::OFlags,
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal, kill_process, kill_process_group},
};

use crate::{machine::Finished, recover::deadline};

/// A longer line of a child's output is shown in pieces.
const MAX_OUTPUT_LINE: usize = 512;
/// As much of a child's output is taken at once; then everything else gets its turn.
const MAX_OUTPUT_AT_ONCE: usize = 64 * 1024;
/// A child asked to end gets this long.
const GRACE: Duration = Duration::from_secs(3);
/// A killed child that is still there after this long hangs in the kernel, and is written off.
const WRITE_OFF: Duration = Duration::from_secs(10);

/// What a child is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A stage, task or service.
    Stage(Stage),
    /// The login on the console with this number.
    Shell(usize),
    /// Nobody waits for it any more.
    Discarded,
}

/// How far ending it has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Not,
    Asked { kill_at: Duration },
    Killed { write_off_at: Duration },
}

/// A child of PID 1 that PID 1 made.
pub(super) struct Child {
    pub(super) kind: Kind,
    pub(super) pid: Pid,
    pub(super) began: Duration,
    /// What it reported.
    pub(super) report: Option<StageResult>,
    deadline: Option<Duration>,
    ending: Ending,
    late: bool,
    result: Option<Pipe>,
    output: Option<Pipe>,
}

/// The read end of a pipe, and what has come out of it that is no whole line yet.
struct Pipe {
    reader: io::PipeReader,
    buffer: Vec<u8>,
}

/// Said of a stage that has neither child nor result; cannot happen, and must not hang the machine if it does.
pub(super) fn lost() -> Finished {
    let result = StageResult::fail(FailureClass::Internal, "the stage's process was lost track of");
    Finished { result, took: Duration::ZERO }
}

/// What a stage's child is told.
pub(super) struct Orders<'a> {
    pub(super) role: Role,
    pub(super) stage: Stage,
    pub(super) attempt: u32,
    pub(super) boot_id: &'a str,
    pub(super) reason: &'a str,
}

impl Child {
    /// Starts a stage.
    pub(super) fn stage(orders: &Orders<'_>, now: Duration) -> io::Result<Self> {
        let (result, result_writer) = pipe_with(PipeFlags::CLOEXEC)?;
        let (output, output_writer) = pipe_with(PipeFlags::CLOEXEC)?;
        for reader in [&result, &output] {
            rustix::io::ioctl_fionbio(reader, true)?;
        }
        let mut command = command(orders.role.binary());
        command
            .arg(orders.stage.as_str())
            .env(BOOT_ID_ENV, orders.boot_id)
            .env(ATTEMPT_ENV, orders.attempt.to_string())
            .env(ROLE_ENV, orders.role.as_str())
            .env(REASON_ENV, orders.reason)
            .stdin(Stdio::null())
            .stdout(output_writer.try_clone()?)
            .stderr(output_writer)
            .process_group(0);
        let mut preparations = ordinary()?.descriptor(result_writer, RESULT_FD)?;
        if orders.role == Role::Node {
            preparations = preparations.write(&format!("{NODE_CGROUP}/cgroup.procs"), b"0")?;
        }
        let pid = spawn(command, preparations)?;
        Ok(Self {
            result: Some(Pipe::new(result)),
            output: Some(Pipe::new(output)),
            deadline: Some(now + deadline(orders.stage)),
            ..Self::bare(Kind::Stage(orders.stage), pid, now)
        })
    }

    /// Starts what stands on a console, with a terminal of its own: the node's state, and a login by recovery key.
    pub(super) fn shell(role: Role, number: usize, terminal: &str, now: Duration) -> io::Result<Self> {
        let flags = i32::try_from(OFlags::NOCTTY.bits()).map_err(|_| ErrorKind::InvalidInput)?;
        let tty = OpenOptions::new().read(true).write(true).custom_flags(flags).open(terminal)?;
        let mut command = command(role.binary());
        command
            .arg(CONSOLE_ARGUMENT)
            .env(ROLE_ENV, role.as_str())
            .env("TERM", if terminal.starts_with("/dev/ttyS") { "vt100" } else { "linux" })
            .current_dir("/root")
            .stdin(tty.try_clone()?)
            .stdout(tty.try_clone()?)
            .stderr(tty);
        let pid = spawn(command, ordinary()?.controlling_terminal())?;
        Ok(Self::bare(Kind::Shell(number), pid, now))
    }

    fn bare(kind: Kind, pid: Pid, began: Duration) -> Self {
        let ending = Ending::Not;
        Self { kind, pid, began, report: None, deadline: None, ending, late: false, result: None, output: None }
    }

    /// Whether it is the current child of a stage.
    pub(super) fn is(&self, stage: Stage) -> bool {
        self.kind == Kind::Stage(stage)
    }

    /// What to wait for.
    pub(super) fn inputs(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [&self.result, &self.output].into_iter().flatten().map(|pipe| pipe.reader.as_fd())
    }

    /// Reads what there is: lines for the console, and the result line once.
    pub(super) fn read(&mut self, mut show: impl FnMut(&str)) {
        if let Some(pipe) = &mut self.output {
            let open = pipe.fill(MAX_OUTPUT_AT_ONCE, |buffer| show_lines(buffer, false, &mut show));
            if !open {
                self.end_output(show);
            }
        }
        let Some(pipe) = &mut self.result else { return };
        let open = pipe.fill(MAX_RESULT + 1, |_| ());
        let line = pipe.buffer.iter().position(|byte| *byte == b'\n');
        if line.is_some() || pipe.buffer.len() > MAX_RESULT {
            let line = pipe.buffer.get(..line.unwrap_or(pipe.buffer.len())).unwrap_or_default();
            self.report = Some(StageResult::decode(line).unwrap_or_else(|error| {
                let shown = String::from_utf8_lossy(line.get(..80).unwrap_or(line));
                StageResult::fail(FailureClass::Internal, format!("the stage reported {shown:?}: {error}"))
            }));
            self.deadline = self.deadline.filter(|_| !matches!(self.kind, Kind::Stage(s) if crate::recover::stays(s)));
            self.result = None;
        } else if !open {
            self.result = None;
        }
    }

    /// Shows what is left of its output. Grandchildren may hold the pipe open; they are not waited for.
    pub(super) fn end_output(&mut self, mut show: impl FnMut(&str)) {
        if let Some(mut pipe) = self.output.take() {
            show_lines(&mut pipe.buffer, true, &mut show);
        }
    }

    /// Asks it and its process group to end; they are killed if they do not.
    pub(super) fn ask_to_end(&mut self, now: Duration) {
        if self.ending == Ending::Not {
            self.signal_group(Signal::TERM);
            self.ending = Ending::Asked { kill_at: now + GRACE };
        }
    }

    /// Sends a signal to it alone.
    pub(super) fn signal(&self, signal: Signal) {
        let _ = kill_process(self.pid, signal);
    }

    /// Sends a signal to its process group. Only while it has not been reaped: the number is not reused until then.
    pub(super) fn signal_group(&self, signal: Signal) {
        let _ = kill_process_group(self.pid, signal);
    }

    /// When [`Self::run_timers`] is due.
    pub(super) fn next_timer(&self) -> Option<Duration> {
        match self.ending {
            Ending::Not => self.deadline,
            Ending::Asked { kill_at } => Some(kill_at),
            Ending::Killed { write_off_at } => Some(write_off_at),
        }
    }

    /// Ends it when its time is over. Returns whether it must be written off.
    pub(super) fn run_timers(&mut self, now: Duration) -> bool {
        match self.ending {
            Ending::Not if self.deadline.is_some_and(|deadline| now >= deadline) => {
                self.late = true;
                self.ask_to_end(now);
                false
            }
            Ending::Asked { kill_at } if now >= kill_at => {
                self.signal_group(Signal::KILL);
                self.ending = Ending::Killed { write_off_at: now + WRITE_OFF };
                false
            }
            Ending::Killed { write_off_at } => now >= write_off_at && self.kind != Kind::Discarded,
            _ => false,
        }
    }

    /// What is to be said of a stage whose process ended as `status` tells, or hangs.
    pub(super) fn judge(&mut self, status: &str, success: bool, now: Duration) -> Finished {
        let result = match self.report.take() {
            _ if self.late => {
                let after = now.saturating_sub(self.began).as_secs();
                StageResult::fail(FailureClass::Deadline, format!("not done after {after} s, {status}"))
            }
            Some(StageResult::Ok(_)) if !success => {
                StageResult::fail(FailureClass::Crashed, format!("reported success, then {status}"))
            }
            Some(result) => result,
            None => StageResult::fail(FailureClass::Crashed, format!("no result, {status}")),
        };
        Finished { result, took: now.saturating_sub(self.began) }
    }
}

impl Pipe {
    fn new(reader: std::os::fd::OwnedFd) -> Self {
        Self { reader: reader.into(), buffer: Vec::new() }
    }

    /// Reads up to `most` bytes, calling `each` after every read. Returns whether more may come.
    fn fill(&mut self, most: usize, mut each: impl FnMut(&mut Vec<u8>)) -> bool {
        let mut taken = 0;
        let mut chunk = [0; 4096];
        while taken < most {
            match self.reader.read(&mut chunk) {
                Ok(0) => return false,
                Ok(count) => {
                    self.buffer.extend_from_slice(chunk.get(..count).unwrap_or_default());
                    taken += count;
                    each(&mut self.buffer);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
        }
        true
    }
}

/// Takes whole lines out of `buffer`, and what is too long for a line; with `all`, the rest as well.
fn show_lines(buffer: &mut Vec<u8>, all: bool, show: &mut impl FnMut(&str)) {
    loop {
        let end = buffer.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
        let (line, used) = match end {
            Some(end) if end <= MAX_OUTPUT_LINE => (end, end + 1),
            _ if buffer.len() > MAX_OUTPUT_LINE => (MAX_OUTPUT_LINE, MAX_OUTPUT_LINE),
            _ if all && !buffer.is_empty() => (buffer.len(), buffer.len()),
            _ => return,
        };
        let text = String::from_utf8_lossy(buffer.get(..line).unwrap_or_default());
        if !text.trim().is_empty() {
            show(&text);
        }
        buffer.drain(..used);
    }
}

/// Every child starts with these: not exempt from the out-of-memory killer, as PID 1 is.
fn ordinary() -> io::Result<Preparations> {
    Preparations::new().write("/proc/self/oom_score_adj", b"0")
}

/// A program with a known environment: the kernel hands PID 1 whatever stood on its command line.
fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/sbin:/bin:/usr/sbin:/usr/bin").env("HOME", "/root").current_dir("/");
    command
}

fn spawn(mut command: Command, preparations: Preparations) -> io::Result<Pid> {
    preparations.apply(&mut command);
    let child = command.spawn()?;
    Pid::from_raw(i32::try_from(child.id()).map_err(|_| ErrorKind::InvalidData)?)
        .ok_or_else(|| ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(input: &str, all: bool, expect: &[&str], rest: &str) {
        let mut buffer = input.as_bytes().to_vec();
        let mut lines = Vec::new();
        show_lines(&mut buffer, all, &mut |line| lines.push(line.to_owned()));
        assert_eq!(
            (lines.iter().map(String::as_str).collect::<Vec<_>>().as_slice(), &*buffer),
            (expect, rest.as_bytes())
        );
    }

    #[test]
    fn output_is_shown_by_lines_of_bounded_length() {
        check("a\nb\r\nc", false, &["a", "b"], "c");
        check("a\nb", true, &["a", "b"], "");
        check("\n\n \n", true, &[], "");
        let long = "x".repeat(MAX_OUTPUT_LINE + 3);
        check(&long, false, &[&long[3..]], "xxx");
        check(&format!("{long}\n"), false, &[&long[3..], "xxx"], "");
    }
}
