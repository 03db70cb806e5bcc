//! Running a command inside a sliver.
//!
//! The helper joins a session's control group and the sliver's namespaces, forks (a process changes its PID namespace only
//! for its children), and lasts as long as the command, whose exit status becomes its own.

use std::{
    fs,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::PathBuf,
    process::{self, Child, ExitCode, Stdio},
    time::Duration,
};

use orrery_sys::{
    namespace::{Fork, fork},
    spawn::Preparations,
};
use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags},
    process::{Pid, PidfdFlags, Signal, WaitOptions},
    pty::OpenptFlags,
    termios::Winsize,
    thread::ThreadNameSpaceType,
};
use serde::{Deserialize, Serialize};

use crate::{
    error::SliverError,
    internal::{ENTER, become_sliver_root, helper_command},
    rlimits,
    socket::{self, Helper, Made, Wish},
};

/// How long the way into a sliver may take. The sliver's root can stop a process on it.
const PATIENCE: Duration = Duration::from_secs(10);
/// The helper's word that it is in the session's control group and holds the first process: the sliver may be
/// stopped from now on, which ends the helper too.
const JOINED: u8 = b'=';
/// The helper's word that the command is about to be executed.
pub(crate) const STARTED: &[u8] = b"+";
/// Where the helper finds its end of the control connection.
const CONTROL: i32 = 3;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

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
    /// The directory to start in; `/root` if there is none.
    pub directory: Option<String>,
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

/// What the helper is to do once it is inside.
#[derive(Debug, Serialize, Deserialize)]
enum Task {
    /// Run a command.
    Command(Command),
    /// Make a socket.
    Socket(Wish),
}

/// A command with its surroundings.
#[derive(Debug, Serialize, Deserialize)]
struct Command {
    run: Run,
    environment: Vec<(String, String)>,
    directory: Option<String>,
    pty: Option<Pty>,
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
    let EnterRequest { run, environment, directory, pty, stdio } = request;
    let stdio = if pty.is_some() { [Stdio::null(), Stdio::null(), Stdio::null()] } else { stdio };
    begin_task(login, first, leaf, Task::Command(Command { run, environment, directory, pty }), stdio)
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

/// The helper's answer: nothing for [`STARTED`], with perhaps a descriptor, or an error's text.
fn receive(connection: &UnixStream) -> io::Result<(String, Option<OwnedFd>)> {
    let mut buffer = [0; 1024];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got =
        rustix::net::recvmsg(connection, &mut [IoSliceMut::new(&mut buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    match &buffer[..got.bytes] {
        b"" => Err(io::ErrorKind::UnexpectedEof.into()),
        STARTED => Ok((String::new(), descriptor)),
        text => Ok((String::from_utf8_lossy(text).into_owned(), None)),
    }
}

pub(crate) fn answer(connection: &UnixStream, text: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<_> = descriptor.into_iter().collect();
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no space for a descriptor"));
    }
    rustix::net::sendmsg(connection, &[IoSlice::new(text)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
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

fn run(mut control: &UnixStream) -> io::Result<ExitCode> {
    let mut text = Vec::new();
    control.read_to_end(&mut text)?;
    let order: Order = serde_json::from_slice(&text)?;
    let first = Pid::from_raw(order.first_process).ok_or_else(|| io::Error::other("no PID"))?;
    doing("joining the control group", fs::write(order.leaf.join("cgroup.procs"), "0"))?;
    // The first to be killed when the node itself is short of memory.
    doing("setting the OOM score", fs::write("/proc/self/oom_score_adj", "500"))?;
    doing("taking over the sliver's limits", rlimits::inherit(first))?;
    let first = doing("opening the sliver's first process", rustix::process::pidfd_open(first, PidfdFlags::empty()))?;
    // With a descriptor of it, its number may be given to another process.
    answer(control, &[JOINED], None)?;
    let command = match order.task {
        Task::Socket(wish) => return socket::make(control, first.as_fd(), &wish),
        Task::Command(command) => command,
    };
    let name_spaces = ThreadNameSpaceType::USER
        | ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::CONTROL_GROUP;
    doing("joining the namespaces", rustix::thread::move_into_thread_name_spaces(first.as_fd(), name_spaces))?;
    match doing("forking", fork())? {
        Fork::Parent(child) => {
            // So that no pipe is held open by this process when the command is gone.
            let null = doing("opening /dev/null", rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty()))?;
            rustix::stdio::dup2_stdin(&null)?;
            rustix::stdio::dup2_stdout(&null)?;
            rustix::stdio::dup2_stderr(&null)?;
            wait(child)
        }
        Fork::Child => {
            let error = match become_command(control, command) {
                Ok(never) => match never {},
                Err(error) => error,
            };
            let _ = answer(control, error.to_string().as_bytes(), None);
            Ok(ExitCode::from(126))
        }
    }
}

/// Waits for the command and turns its end into this process's.
fn wait(child: Pid) -> io::Result<ExitCode> {
    loop {
        let Some((_, status)) =
            rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(child), WaitOptions::empty()))?
        else {
            continue;
        };
        let code = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
        if let Some(code) = code {
            return Ok(ExitCode::from(u8::try_from(code & 0xff).unwrap_or(u8::MAX)));
        }
    }
}

/// Opens a terminal of the sliver's own, and makes it standard input, output and error. Returns the master side.
fn make_terminal(pty: &Pty) -> io::Result<OwnedFd> {
    // Not by way of /dev/ptmx, which is a link that the sliver may change. The file system at /dev/pts it cannot.
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let master = rustix::fs::openat2(
        &root,
        "dev/pts/ptmx",
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS,
    )?;
    rustix::pty::unlockpt(&master)?;
    let size = Winsize { ws_row: pty.rows, ws_col: pty.columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&master, size)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    rustix::process::ioctl_tiocsctty(&slave)?;
    rustix::stdio::dup2_stdin(&slave)?;
    rustix::stdio::dup2_stdout(&slave)?;
    rustix::stdio::dup2_stderr(&slave)?;
    Ok(master)
}

/// Everything between the namespaces and the command.
fn become_command(control: &UnixStream, order: Command) -> io::Result<std::convert::Infallible> {
    doing("tying the command to its helper", rustix::process::set_parent_process_death_signal(Some(Signal::HUP)))?;
    doing("starting a session", rustix::process::setsid())?;
    doing("becoming root of the sliver", become_sliver_root())?;
    // Becoming somebody else cleared it.
    doing("tying the command to its helper", rustix::process::set_parent_process_death_signal(Some(Signal::HUP)))?;
    let master = order.pty.as_ref().map(|pty| doing("making a terminal", make_terminal(pty))).transpose()?;

    let home = if fs::metadata("/root").is_ok_and(|m| m.is_dir()) { "/root" } else { "/" };
    if order.directory.as_ref().is_none_or(|d| std::env::set_current_dir(d).is_err()) {
        doing("changing to the home directory", std::env::set_current_dir(home))?;
    }
    let shell = if fs::metadata("/bin/bash").is_ok() { "/bin/bash" } else { "/bin/sh" };
    let mut command = match &order.run {
        Run::Shell => {
            let mut command = process::Command::new(shell);
            command.arg0(if shell.ends_with("bash") { "-bash" } else { "-sh" });
            command
        }
        Run::Command(line) => {
            let mut command = process::Command::new(shell);
            command.arg("-c").arg(line);
            command
        }
        Run::Program(words) => {
            let (program, arguments) = words.split_first().ok_or_else(|| io::Error::other("an empty command"))?;
            let mut command = process::Command::new(program);
            command.args(arguments);
            command
        }
    };
    command.env_clear();
    command.envs([("HOME", home), ("USER", "root"), ("LOGNAME", "root"), ("SHELL", shell), ("PATH", PATH)]);
    command.envs(order.environment);
    if let Some(pty) = &order.pty {
        command.env("TERM", &pty.term);
    }
    doing("answering", answer(control, STARTED, master.as_ref().map(AsFd::as_fd)))?;
    let error = command.exec();
    // Whoever entered is told as a shell would tell; the helper has answered already.
    let _ = writeln!(io::stderr(), "{}: {error}", command.get_program().to_string_lossy());
    std::process::exit(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 })
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
