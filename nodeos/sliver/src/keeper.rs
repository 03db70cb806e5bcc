//! The process that keeps a program of a sliver's: starts it, writes its log, waits for it, and notes how it ended.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{fs::fchown, process::ExitStatusExt},
    },
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use nix::sys::signal::{SigSet, Signal};
use orrery_sys::quota;
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::OFlags,
    pipe::PipeFlags,
    time::ClockId,
};

use crate::{
    enter::{self, EnterRequest, Entering, Session, Stream},
    error::{At, SliverError},
    keep::{End, Ended, GRACE, KEEPERS, Kept, Program, Role},
    log::{Log, PAUSE, read_some},
    slivers::{SliverPaths, Slivers},
};

/// How long an initscript may run. What it leaves in the background may go on.
const INITSCRIPT: Duration = Duration::from_secs(300);
/// How much is read of a program's output at once.
const READ_BYTES: usize = 64 << 10;
/// How often more than that is read when a program has ended; a pipe holds no more, unless others write on.
const LAST_READS: usize = 4;

/// The keeper's life: `<role> <login> <data> <run> <cgroup> <trees>`.
pub(crate) fn helper(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<_> = arguments.collect();
    let [word, login, paths @ ..] = &arguments[..] else { return ExitCode::from(2) };
    let role = Role::ALL.into_iter().find(|role| word == role.word());
    let [data, run, cgroup, trees] = paths else { return ExitCode::from(2) };
    let (Some(role), Some(login)) = (role, login.to_str()) else { return ExitCode::from(2) };
    let [data, run, cgroup, trees] = [data, run, cgroup, trees].map(PathBuf::from);
    // When the node stops, every process is asked to end at once. The programs are; this one has to see them off.
    let mut held = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT].into_iter().for_each(|signal| held.add(signal));
    let keeper = Keeper { slivers: Slivers::at(SliverPaths { data, run, cgroup, trees }), login: login.into(), role };
    let kept = held.thread_block().map_err(io::Error::from).map_err(SliverError::Helper).and_then(|()| keeper.run());
    // Whoever wants to know reads the note.
    ExitCode::from(u8::from(kept.is_err()))
}

struct Keeper {
    slivers: Slivers,
    login: String,
    role: Role,
}

/// A program on its way.
struct Begun {
    kept: Kept,
    entering: Entering,
    output: File,
    log: Log,
}

/// Milliseconds since the node's boot.
fn uptime() -> u64 {
    let now = rustix::time::clock_gettime(ClockId::Boottime);
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

impl Keeper {
    fn run(&self) -> Result<(), SliverError> {
        // Somebody else keeps it.
        let Some(mut begun) = self.begin()? else { return Ok(()) };
        match begun.entering.finish() {
            Ok(entered) => {
                let mut run = Run { keeper: self, kept: begun.kept, log: begun.log, output: Some(begun.output) };
                run.until_end(&entered.session)
            }
            Err(error) => {
                let _ = begun.log.note(&error.to_string());
                self.end(&mut begun.kept, End::Unstarted(error.to_string()))
            }
        }
    }

    /// Everything up to the session's work, which is the sliver's business, under the sliver's lock.
    fn begin(&self) -> Result<Option<Begun>, SliverError> {
        let Self { slivers, login, role } = self;
        let lock = slivers.lock(login)?;
        let record = slivers.get(login)?;
        let Some(mark) = record.mark(*role) else { return Ok(None) };
        if let Some((_, Some(_))) = slivers.kept(login, *role) {
            return Ok(None);
        }
        let program = Program::of(&record, *role, &slivers.paths.trees.join(&record.image));
        let stop_signal = program.as_ref().map_or(0, |program| program.stop_signal.as_raw());
        let keeper = rustix::process::getpid().as_raw_nonzero().get();
        let mut kept = Kept { mark, keeper, began: uptime(), ended: None, stop_signal };
        let begun = program.and_then(|program| {
            slivers.start_locked(login, &lock)?;
            let group = slivers.group(login);
            let stopped = || SliverError::Enter { login: login.clone(), message: "it stopped meanwhile".into() };
            let first = group.first_process().ok_or_else(stopped)?;
            let keepers = group.leaf(KEEPERS);
            fs::create_dir_all(&keepers).at("making", &keepers)?;
            fs::write(keepers.join("cgroup.procs"), "0").at("joining", &keepers)?;
            let leaf = group.claim(role.word())?;
            slivers.note(login, *role, &kept)?;

            let directory = slivers.log_directory(login);
            let mut log = Log::open(&directory, role.word()).at("making", &directory)?;
            let opened = File::open(&directory).at("opening", &directory)?;
            quota::set_project(opened.as_fd(), record.project())
                .map_err(|source| SliverError::Quota { login: login.clone(), source })?;
            // A sliver whose log cannot be written runs all the same.
            let _ = log.note(&format!("starting {}", program.title));
            let (output, stdio) = pipes(&program.input, record.id_base()).map_err(SliverError::Helper)?;
            let request = EnterRequest { stdio, ..program.request };
            let entering = enter::begin(login, first, leaf, request)?;
            Ok(Begun { kept: kept.clone(), entering, output, log })
        });
        match begun {
            Ok(begun) => Ok(Some(begun)),
            Err(error) => {
                self.end(&mut kept, End::Unstarted(chain(&error)))?;
                Err(error)
            }
        }
    }

    fn end(&self, kept: &mut Kept, how: End) -> Result<(), SliverError> {
        kept.ended = Some(Ended { how, lasted: uptime().saturating_sub(kept.began) });
        self.slivers.note(&self.login, self.role, kept)
    }
}

/// An error with its cause.
fn chain(error: &SliverError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// The reading side of a program's output, and the program's three streams. The output belongs to the sliver's root, so that
/// programs may open it again as `/dev/stdout`.
fn pipes(input: &str, id_base: u32) -> io::Result<(File, [Stream; 3])> {
    let (output, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::fs::fcntl_setfl(&output, OFlags::NONBLOCK)?;
    fchown(&writer, Some(id_base), Some(id_base))?;
    let stdin = if input.is_empty() {
        Stream::Null
    } else {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        // A pipe holds more than any script.
        File::from(writer).write_all(input.as_bytes())?;
        Stream::Given(reader)
    };
    Ok((output.into(), [stdin, Stream::Given(writer.try_clone()?), Stream::Given(writer)]))
}

/// A program that runs.
struct Run<'a> {
    keeper: &'a Keeper,
    kept: Kept,
    log: Log,
    /// Gone when nobody can write to it any more.
    output: Option<File>,
}

impl Run<'_> {
    /// Keeps the program until its end, and what an initscript left running until that says nothing more.
    fn until_end(&mut self, session: &Session) -> Result<(), SliverError> {
        let deadline = (self.keeper.role == Role::Initscript).then(|| Instant::now() + INITSCRIPT);
        let ended = self.read(Some(session.as_fd()), deadline);
        let group = self.keeper.slivers.group(&self.keeper.login);
        let word = self.keeper.role.word();
        let how = if ended {
            let status = match session.wait_for_word().map_err(SliverError::Helper)? {
                Some(status) => status,
                None => {
                    // It was the session that was killed, as at the node's end, and its command may be about to end, too.
                    group.wait_empty(word, GRACE);
                    session.wait().map_err(SliverError::Helper)?
                }
            };
            let signalled = || status.signal().map(|signal| 128 + signal);
            End::Status(status.code().or_else(signalled).unwrap_or(255))
        } else {
            End::Late
        };
        self.read_rest();
        let _ = self.log.finish();
        let _ = self.log.note(&match &how {
            End::Late => format!("{word} took more than {} s and was ended", INITSCRIPT.as_secs()),
            End::Status(status) => format!("{word} ended with status {status}"),
            End::Unstarted(error) => error.clone(),
        });
        let stays = self.keeper.role == Role::Initscript && ended;
        if !stays {
            // Nothing of it is left when the next begins.
            group.claim(word)?;
        }
        self.keeper.end(&mut self.kept, how)?;
        if stays {
            self.read(None, None);
            let _ = self.log.finish();
        }
        Ok(())
    }

    /// Writes the log until the program has ended, or the output if there is no program; or until the deadline. Returns whether it
    /// was in time.
    fn read(&mut self, program: Option<BorrowedFd<'_>>, deadline: Option<Instant>) -> bool {
        let mut paused: Option<Instant> = None;
        loop {
            if self.output.is_none() && program.is_none() {
                return true;
            }
            let now = Instant::now();
            if deadline.is_some_and(|deadline| deadline <= now) {
                return false;
            }
            paused = paused.filter(|until| *until > now);
            let timeout = deadline.into_iter().chain(paused).min().map(|until| {
                let left = until.duration_since(now);
                Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
            });
            let output = self.output.as_ref().filter(|_| paused.is_none());
            let watched = output.map(|output| PollFd::new(output, PollFlags::IN));
            let mut waits: Vec<_> =
                program.as_ref().map(|p| PollFd::new(p, PollFlags::IN)).into_iter().chain(watched).collect();
            if rustix::io::retry_on_intr(|| rustix::event::poll(&mut waits, timeout.as_ref())).is_err() {
                return true;
            }
            let ready: Vec<bool> = waits.iter().map(|wait| !wait.revents().is_empty()).collect();
            if program.is_some() && ready[0] {
                return true;
            }
            if ready.last() == Some(&true) && self.read_once() {
                paused = Some(Instant::now() + PAUSE);
            }
        }
    }

    /// Reads once. Returns whether that was too much.
    fn read_once(&mut self) -> bool {
        let Some(output) = &self.output else { return false };
        match read_some(output, READ_BYTES) {
            // What the disk does not take is lost.
            Ok((bytes, true)) => self.log.take(&bytes).unwrap_or(true),
            Ok((_, false)) | Err(_) => {
                self.output = None;
                false
            }
        }
    }

    /// Reads what a program that has ended left.
    fn read_rest(&mut self) {
        for _ in 0..LAST_READS {
            self.read_once();
        }
    }
}
