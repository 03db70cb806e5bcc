//! Running a command inside a sliver.
//!
//! The helper joins a session's control group, has the sliver's first process fork the session, gives that its own standard
//! descriptors, and lasts as long as the command, whose exit status becomes its own.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    process::{Child, ExitCode, Stdio},
    time::Duration,
};

use orrery_sys::spawn::Preparations;
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::{Mode, OFlags},
    process::{Pid, PidfdFlags},
};
use serde::{Deserialize, Serialize};

use crate::{
    error::SliverError,
    first,
    handover::{self, answer},
    internal::{ENTER, helper_command},
    session::{self, Surroundings},
    socket::{Helper, Made, Wish},
};

/// How long the way into a sliver may take. The sliver's root can stop a process on it.
const PATIENCE: Duration = Duration::from_secs(10);
/// The helper's word that it is in the session's control group and holds the first process: the sliver may be
/// stopped from now on, which ends the helper too.
const JOINED: u8 = b'=';
/// The session's word that the command is about to be executed, or the socket there.
pub(crate) const STARTED: &[u8] = b"+";
/// Where the helper finds its end of the control connection.
const CONTROL: i32 = 3;

/// What to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Run {
    /// A login shell.
    Shell,
    /// A command line for the shell.
    Command(String),
    /// A program of the sliver's with its arguments, its name first.
    Program(Vec<String>),
}

/// A terminal to make.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pty {
    /// Its kind, as `xterm-256color`.
    pub term: String,
    /// Its height in characters.
    pub rows: u16,
    /// Its width in characters.
    pub columns: u16,
}

/// A command to run inside a sliver, as its root.
#[derive(Debug)]
pub struct EnterRequest {
    /// What to run.
    pub run: Run,
    /// Variables besides HOME, USER, LOGNAME, SHELL, PATH and TERM.
    pub environment: Vec<(String, String)>,
    /// The directory to start in; the user's home if there is none.
    pub directory: Option<String>,
    /// Who runs it, as `user` or `user:group`, each by the name or number it has inside; root if there is none.
    pub user: Option<String>,
    /// With a terminal, standard input, output and error are that.
    pub pty: Option<Pty>,
    /// Standard input, output and error otherwise.
    pub stdio: [Stdio; 3],
}

/// A command that was started inside a sliver.
#[derive(Debug)]
pub struct Entered {
    /// The process to wait for: it exits as the command does; with 128 and the signal's number added if that was killed.
    /// When this process is killed, the command is sent SIGHUP.
    pub child: Child,
    /// The master side of the terminal, if one was asked for.
    pub pty: Option<OwnedFd>,
}

/// What the helper is told.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    first_process: i32,
    leaf: PathBuf,
    task: Task,
}

/// What a session is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    /// Run a command.
    Command(Command),
    /// Make a socket.
    Socket(Wish),
}

/// A command with its surroundings.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Command {
    pub(crate) run: Run,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) directory: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) pty: Option<Pty>,
}

/// A helper on its way into a sliver, already in the control group of its session.
pub(crate) struct Entering {
    login: String,
    child: Child,
    connection: UnixStream,
    leaf: PathBuf,
}

/// Runs the helper for a command until it is in the control group `leaf`.
pub(crate) fn begin(login: &str, first: Pid, leaf: PathBuf, request: EnterRequest) -> Result<Entering, SliverError> {
    let EnterRequest { run, environment, directory, user, pty, stdio } = request;
    let stdio = if pty.is_some() { [Stdio::null(), Stdio::null(), Stdio::null()] } else { stdio };
    begin_task(login, first, leaf, Task::Command(Command { run, environment, directory, user, pty }), stdio)
}

/// Runs the helper for a socket until it is in the control group `leaf`.
pub(crate) fn begin_socket(login: &str, first: Pid, leaf: PathBuf, wish: Wish) -> Result<Entering, SliverError> {
    begin_task(login, first, leaf, Task::Socket(wish), [Stdio::null(), Stdio::null(), Stdio::null()])
}

fn begin_task(
    login: &str,
    first: Pid,
    leaf: PathBuf,
    task: Task,
    [stdin, stdout, stderr]: [Stdio; 3],
) -> Result<Entering, SliverError> {
    let (mut ours, theirs) = UnixStream::pair().map_err(SliverError::Helper)?;
    let mut command = helper_command(ENTER);
    command.stdin(stdin).stdout(stdout).stderr(stderr);
    Preparations::new().descriptor(theirs.into(), CONTROL).map_err(SliverError::Helper)?.apply(&mut command);
    let timeouts = ours.set_read_timeout(Some(PATIENCE)).and_then(|()| ours.set_write_timeout(Some(PATIENCE)));
    timeouts.map_err(SliverError::Helper)?;
    let child = command.spawn().map_err(SliverError::Helper)?;
    // Holds the helper's end of the connection and the descriptors of the request.
    drop(command);

    let order = Order { first_process: first.as_raw_nonzero().get(), leaf: leaf.clone(), task };
    let mut word = [0];
    let joined = serde_json::to_vec(&order)
        .map_err(io::Error::from)
        .and_then(|text| ours.write_all(&text))
        .and_then(|()| ours.shutdown(std::net::Shutdown::Write))
        .and_then(|()| ours.read_exact(&mut word));
    let entering = Entering { login: login.into(), child, connection: ours, leaf };
    match (joined, word) {
        (Ok(()), [JOINED]) => Ok(entering),
        (Ok(()), [letter]) => {
            // The beginning of an error's text.
            let rest = receive(&entering.connection).map(|(text, _)| text).unwrap_or_default();
            Err(entering.fail(format!("{}{rest}", char::from(letter))))
        }
        (Err(error), _) => Err(entering.fail(lost(error))),
    }
}

impl Entering {
    /// Waits until the command is about to be executed. To be called without holding a lock: the sliver may delay it.
    pub(crate) fn finish(self) -> Result<Entered, SliverError> {
        match receive(&self.connection) {
            Ok((text, pty)) if text.is_empty() => Ok(Entered { child: self.child, pty }),
            Ok((message, _)) => Err(self.fail(message)),
            Err(error) => Err(self.fail(lost(error))),
        }
    }

    /// Waits for the socket. The helper goes on as long as the wish has it, or until the result is dropped.
    pub(crate) fn finish_socket(self) -> Result<Made, SliverError> {
        match receive(&self.connection) {
            Ok((text, Some(socket))) if text.is_empty() => {
                Ok(Made { socket, helper: Helper { child: Some(self.child), connection: Some(self.connection) } })
            }
            Ok((message, _)) => Err(self.fail(message)),
            Err(error) => Err(self.fail(lost(error))),
        }
    }

    /// Ends what runs of it.
    fn fail(mut self, message: String) -> SliverError {
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The helper makes no more children now; one it has is in the group, perhaps stopped.
        let _ = fs::write(self.leaf.join("cgroup.kill"), "1");
        SliverError::Enter { login: self.login, message }
    }
}

/// What to say when the helper did not answer.
fn lost(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock => format!("no answer from inside for {} s", PATIENCE.as_secs()),
        io::ErrorKind::UnexpectedEof => "the helper ended without an answer".into(),
        _ => error.to_string(),
    }
}

/// The answer from inside: nothing for [`STARTED`], with perhaps a descriptor, or an error's text.
fn receive(connection: &UnixStream) -> io::Result<(String, Option<OwnedFd>)> {
    let mut buffer = [0; 1024];
    let (length, mut descriptors) = handover::receive(connection, &mut buffer)?;
    match &buffer[..length] {
        b"" => Err(io::ErrorKind::UnexpectedEof.into()),
        STARTED => Ok((String::new(), descriptors.pop())),
        text => Ok((String::from_utf8_lossy(text).into_owned(), None)),
    }
}

/// The whole life of the helper.
pub(crate) fn helper() -> ExitCode {
    let control = match orrery_sys::descriptor::inherited(CONTROL) {
        Ok(descriptor) => UnixStream::from(descriptor),
        Err(error) => {
            eprintln!("taking over the control connection: {error}");
            return ExitCode::from(125);
        }
    };
    match run(&control) {
        Ok(code) => code,
        Err(error) => {
            let _ = answer(&control, error.to_string().as_bytes(), None);
            ExitCode::from(125)
        }
    }
}

pub(crate) fn doing<T, E: std::fmt::Display>(what: &str, result: Result<T, E>) -> io::Result<T> {
    result.map_err(|error| io::Error::other(format!("{what}: {error}")))
}

/// Opens the first process by its number, which may have been given to another meanwhile: it is the one if it is in its `leaf`, and
/// lives after that was seen.
fn open_first(number: Pid, leaf: &Path) -> io::Result<OwnedFd> {
    let first = rustix::process::pidfd_open(number, PidfdFlags::empty())?;
    let listed = fs::read_to_string(leaf.join("cgroup.procs"))?;
    let ended = rustix::event::poll(&mut [PollFd::new(&first, PollFlags::IN)], Some(&Timespec::default()))? > 0;
    if ended || !listed.lines().any(|line| line.parse() == Ok(number.as_raw_nonzero().get())) {
        return Err(io::Error::other("it ended meanwhile"));
    }
    Ok(first)
}

fn run(mut control: &UnixStream) -> io::Result<ExitCode> {
    let mut text = Vec::new();
    control.read_to_end(&mut text)?;
    let order: Order = serde_json::from_slice(&text)?;
    let first = Pid::from_raw(order.first_process).ok_or_else(|| io::Error::other("no PID"))?;
    let procs = order.leaf.join("cgroup.procs");
    doing("joining the control group", fs::write(&procs, "0"))?;
    // The first to be killed when the node itself is short of memory.
    doing("setting the OOM score", fs::write("/proc/self/oom_score_adj", "500"))?;
    let first = doing("opening the sliver's first process", open_first(first, &order.leaf.with_file_name("init")))?;
    // With a descriptor of it, its number may be given to another process.
    answer(control, &[JOINED], None)?;
    let session = doing("knocking at the sliver", first::knock(first.as_fd()))?;
    let leaf = doing("opening the control group", OpenOptions::new().write(true).open(&procs))?;
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let given = Surroundings {
        stdio: [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
        leaf: leaf.as_fd(),
        control: control.as_fd(),
    };
    // A first process that could not fork closed the connection, and said why.
    let told = session::tell(&session, given, &order.task);
    // So that no pipe is held open by this process when the command is gone.
    let null = doing("opening /dev/null", rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()))?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    let code = doing("making a session", session::end(&session))?;
    doing("telling the session", told)?;
    Ok(ExitCode::from(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let check = |sent: Option<&[u8]>, expect: Result<&str, &str>| {
            let (ours, theirs) = UnixStream::pair().expect("making a connection");
            match sent {
                Some(text) => answer(&theirs, text, None).expect("answering"),
                None => ours.set_read_timeout(Some(Duration::from_millis(1))).expect("setting a timeout"),
            }
            let got = receive(&ours).map(|(text, _)| text).map_err(lost);
            assert_eq!(got.as_deref().map_err(String::as_str), expect);
        };
        check(Some(STARTED), Ok(""));
        check(Some(b"making a terminal: no"), Ok("making a terminal: no"));
        check(None, Err("no answer from inside for 10 s"));
        let (ours, theirs) = UnixStream::pair().expect("making a connection");
        drop(theirs);
        assert_eq!(receive(&ours).map_err(lost).err().as_deref(), Some("the helper ended without an answer"));
    }
}
