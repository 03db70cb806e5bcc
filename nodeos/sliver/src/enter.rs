//! Running commands inside a running sliver.
//!
//! Its first process forks a session for whoever knocks, and puts it into a control group of its own, where the sliver may be stopped
//! with all that is in it. The session then hears what to do, and tells how that went, over the connection that it was given.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{net::UnixStream, process::ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{ExitStatus, Output},
    thread,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::{Mode, OFlags},
    net::{RecvFlags, SendFlags},
    pipe::PipeFlags,
    process::{Pid, PidfdFlags, Signal},
};
use serde::{Deserialize, Serialize};

use crate::{
    error::SliverError,
    first::{self, JOINED},
    handover, session,
    socket::{Keep, Made, Wish},
};

/// How long the way into a sliver may take. The sliver's root can stop a process on it.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a session passes on to its command: the signals that ssh has names for (RFC 4254, section 6.10). They are told by their
/// place here.
pub(crate) const SIGNALS: [Signal; 13] = [
    Signal::ABORT,
    Signal::ALARM,
    Signal::FPE,
    Signal::HUP,
    Signal::ILL,
    Signal::INT,
    Signal::KILL,
    Signal::PIPE,
    Signal::QUIT,
    Signal::SEGV,
    Signal::TERM,
    Signal::USR1,
    Signal::USR2,
];

/// The session's word that the command is about to be executed, or the socket there.
pub(crate) const STARTED: &[u8] = b"+";

/// What to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Run {
    /// A login shell.
    Shell,
    /// A command line for the shell.
    Command(OsString),
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
    /// Its modes, where they are not the usual: values by their numbers in RFC 4254, section 8.
    pub modes: Vec<(u8, u32)>,
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
    pub stdio: [Stream; 3],
}

/// A command that was started inside a sliver.
#[derive(Debug)]
pub struct Entered {
    /// The command's session.
    pub session: Session,
    /// The master side of the terminal, if one was asked for.
    pub pty: Option<OwnedFd>,
}

/// Where one of a command's standard descriptors leads.
#[derive(Debug)]
pub enum Stream {
    /// Nowhere.
    Null,
    /// To whoever has the session.
    Piped,
    /// There.
    Given(OwnedFd),
}

/// What whoever entered has of a command's session. The session ends when this is dropped; a command that runs on then is sent SIGHUP.
#[derive(Debug)]
pub struct Session {
    connection: UnixStream,
    /// The other ends of what was asked to be [`Stream::Piped`].
    pub stdin: Option<File>,
    /// The same.
    pub stdout: Option<File>,
    /// The same.
    pub stderr: Option<File>,
}

impl Session {
    /// Waits for the command's end, which is a signal's if that killed it. A session that was killed itself stands for its command.
    ///
    /// # Errors
    /// When the connection fails.
    pub fn wait(&self) -> io::Result<ExitStatus> {
        Ok(self.wait_for_word()?.unwrap_or_else(|| ExitStatus::from_raw(Signal::KILL.as_raw())))
    }

    /// Waits for the command's end. There is no word of it from a session that was killed.
    pub(crate) fn wait_for_word(&self) -> io::Result<Option<ExitStatus>> {
        let mut status = [0; 4];
        // It stays there for whoever asks again.
        let (length, _) =
            rustix::io::retry_on_intr(|| rustix::net::recv(&self.connection, &mut status, RecvFlags::PEEK))?;
        Ok((length == status.len()).then(|| ExitStatus::from_raw(i32::from_ne_bytes(status))))
    }

    /// Sends a signal to the command's process group, if it is one of [`SIGNALS`]. Does not wait.
    ///
    /// # Errors
    /// When the session has ended, or does not listen.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let Some(number) = SIGNALS.iter().position(|known| *known == signal) else { return Ok(()) };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        rustix::net::send(&self.connection, &[number as u8], flags)?;
        Ok(())
    }

    /// How the command ended, if it has.
    ///
    /// # Errors
    /// As [`Session::wait`].
    pub fn try_wait(&self) -> io::Result<Option<ExitStatus>> {
        let mut ended = [PollFd::new(&self.connection, PollFlags::IN)];
        let count = rustix::io::retry_on_intr(|| rustix::event::poll(&mut ended, Some(&Timespec::default())))?;
        if count == 0 { Ok(None) } else { self.wait().map(Some) }
    }

    /// Ends the session, as dropping it does.
    ///
    /// # Errors
    /// When it has ended.
    pub fn end(&self) -> io::Result<()> {
        self.connection.shutdown(std::net::Shutdown::Both)
    }

    /// Closes the command's input, and reads all it says until its end.
    ///
    /// # Errors
    /// When a pipe or the connection fails.
    pub fn wait_with_output(mut self) -> io::Result<Output> {
        drop(self.stdin.take());
        let read = |stream: Option<File>| -> io::Result<Vec<u8>> {
            let mut all = Vec::new();
            stream.map_or(Ok(0), |mut stream| stream.read_to_end(&mut all)).map(|_| all)
        };
        let (output, errors) = (self.stdout.take(), self.stderr.take());
        let (stdout, stderr) = thread::scope(|scope| {
            let errors = scope.spawn(move || read(errors));
            let output = read(output);
            (output, errors.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        Ok(Output { status: self.wait()?, stdout: stdout?, stderr: stderr? })
    }
}

/// What can be waited for is the command's end.
impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
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

/// A session that is in its control group, and waits to be told what to do.
pub(crate) struct Entering {
    login: String,
    connection: UnixStream,
    leaf: PathBuf,
    task: Task,
    stdio: Vec<OwnedFd>,
    pipes: [Option<File>; 3],
}

/// Has a session made for a command, in the control group `leaf`.
pub(crate) fn begin(login: &str, first: Pid, leaf: PathBuf, request: EnterRequest) -> Result<Entering, SliverError> {
    let EnterRequest { run, environment, directory, user, pty, stdio } = request;
    let stdio = if pty.is_some() { [Stream::Null, Stream::Null, Stream::Null] } else { stdio };
    begin_task(login, first, leaf, Task::Command(Command { run, environment, directory, user, pty }), stdio)
}

/// Has a session made for a socket, in the control group `leaf`.
pub(crate) fn begin_socket(login: &str, first: Pid, leaf: PathBuf, wish: Wish) -> Result<Entering, SliverError> {
    begin_task(login, first, leaf, Task::Socket(wish), [Stream::Null, Stream::Null, Stream::Null])
}

fn begin_task(
    login: &str,
    first: Pid,
    leaf: PathBuf,
    task: Task,
    streams: [Stream; 3],
) -> Result<Entering, SliverError> {
    let failed = |error: io::Error| SliverError::Enter { login: login.into(), message: lost(error) };
    let (mut stdio, mut pipes) = (Vec::new(), [None, None, None]);
    for (number, stream) in streams.into_iter().enumerate() {
        let (theirs, ours) = open(stream, number == 0).map_err(failed)?;
        stdio.push(theirs);
        pipes[number] = ours;
    }
    let connection = knock(first, &leaf).map_err(failed)?;
    let entering = Entering { login: login.into(), connection, leaf, task, stdio, pipes };
    match receive(&entering.connection, JOINED) {
        Ok(Ok(_)) => Ok(entering),
        Ok(Err(message)) => Err(entering.fail(message)),
        Err(error) => Err(entering.fail(lost(error))),
    }
}

/// Both ends of a stream, of which a command reads if it is its input. The second is nobody's but for pipes.
fn open(stream: Stream, input: bool) -> io::Result<(OwnedFd, Option<File>)> {
    Ok(match stream {
        Stream::Null => {
            let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
            (doing("opening /dev/null", null)?, None)
        }
        Stream::Piped => {
            let (reader, writer) = doing("making a pipe", rustix::pipe::pipe_with(PipeFlags::CLOEXEC))?;
            if input { (reader, Some(writer.into())) } else { (writer, Some(reader.into())) }
        }
        Stream::Given(descriptor) => (descriptor, None),
    })
}

fn knock(first: Pid, leaf: &Path) -> io::Result<UnixStream> {
    let first = doing("opening the sliver's first process", open_first(first, &leaf.with_file_name("init")))?;
    let group = OpenOptions::new().write(true).open(leaf.join("cgroup.procs"));
    let group = doing("opening the control group", group)?;
    let connection = doing("knocking at the sliver", first::knock(first.as_fd(), group.as_fd()))?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    Ok(connection)
}

impl Entering {
    /// Waits until the command is about to be executed. To be called without holding a lock: the sliver may delay it.
    pub(crate) fn finish(mut self) -> Result<Entered, SliverError> {
        let pty = self.tell()?;
        let [stdin, stdout, stderr] = self.pipes;
        Ok(Entered { session: Session { connection: self.connection, stdin, stdout, stderr }, pty })
    }

    /// Waits for the socket. The session goes on as long as the wish has it, or until the result is dropped.
    pub(crate) fn finish_socket(mut self) -> Result<Made, SliverError> {
        match self.tell()? {
            Some(socket) => Ok(Made { socket, keep: Keep(self.connection) }),
            None => Err(self.fail("there is no socket".into())),
        }
    }

    /// Tells what to do, and hears that it is done, with perhaps a descriptor.
    fn tell(&mut self) -> Result<Option<OwnedFd>, SliverError> {
        let stdio = std::mem::take(&mut self.stdio);
        let told = session::tell(&self.connection, &stdio, &self.task);
        // So that no pipe is held open here.
        drop(stdio);
        let heard = told
            .and_then(|()| receive(&self.connection, STARTED))
            // What comes next is the command's end.
            .and_then(|heard| self.connection.set_read_timeout(None).map(|()| heard));
        heard.unwrap_or_else(|error| Err(lost(error))).map_err(|message| self.fail(message))
    }

    /// Ends what runs of it.
    fn fail(&self, message: String) -> SliverError {
        // It may stand still where it is, and nobody else is in the group.
        let _ = fs::write(self.leaf.join("cgroup.kill"), "1");
        SliverError::Enter { login: self.login.clone(), message }
    }
}

/// What to say when nobody inside answered.
fn lost(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock => format!("no answer from inside for {} s", PATIENCE.as_secs()),
        io::ErrorKind::UnexpectedEof => "the session ended without an answer".into(),
        _ => error.to_string(),
    }
}

/// The answer from inside: the `expected` word, with perhaps a descriptor, or an error's text.
fn receive(connection: &UnixStream, expected: &[u8]) -> io::Result<Result<Option<OwnedFd>, String>> {
    // No more, since what follows a good word is another answer.
    let mut word = [0];
    let (length, mut descriptors) = handover::receive(connection, &mut word)?;
    match &word[..length] {
        b"" => Err(io::ErrorKind::UnexpectedEof.into()),
        word if word == expected => Ok(Ok(descriptors.pop())),
        word => {
            let mut text = word.to_vec();
            connection.take(1023).read_to_end(&mut text)?;
            Ok(Err(String::from_utf8_lossy(&text).into_owned()))
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::handover::answer;

    #[test]
    fn ends() {
        let check = |word: &[u8], expect: Option<ExitStatus>| {
            let (connection, inside) = UnixStream::pair().expect("making a connection");
            let session = Session { connection, stdin: None, stdout: None, stderr: None };
            assert_eq!(session.try_wait().expect("asking"), None);
            (&inside).write_all(word).expect("telling");
            drop(inside);
            for _ in 0..2 {
                assert_eq!(session.wait_for_word().expect("waiting"), expect, "{word:?}");
            }
        };
        check(&(7_i32 << 8).to_ne_bytes(), Some(ExitStatus::from_raw(7 << 8)));
        check(&15_i32.to_ne_bytes(), Some(ExitStatus::from_raw(15)));
        check(b"", None);
        check(b"no", None);
    }

    #[test]
    fn answers() {
        let check = |sent: &[u8], ends: bool, expect: Result<&str, &str>| {
            let (ours, theirs) = UnixStream::pair().expect("making a connection");
            answer(&theirs, sent, None).expect("answering");
            if ends {
                theirs.shutdown(std::net::Shutdown::Both).expect("ending");
            }
            ours.set_read_timeout(Some(Duration::from_millis(1))).expect("setting a timeout");
            let got = receive(&ours, STARTED).map_err(lost);
            let got = got.map(|answer| answer.err().unwrap_or_default());
            assert_eq!(got.as_deref().map_err(String::as_str), expect);
        };
        check(STARTED, false, Ok(""));
        check(b"making a terminal: no", true, Ok("making a terminal: no"));
        check(b"", true, Err("the session ended without an answer"));
        check(b"", false, Err("no answer from inside for 10 s"));
    }
}
