//! Programs that run in a sliver without a login: its initscript, and its service.
//!
//! Each has a keeper, a process of the node's that starts it, waits for it and writes its log. The keeper stands in a leaf of the
//! sliver's control group, so that its work is the sliver's, and ends with it; it does not need whoever started it. What it knows it
//! notes in a file in memory: whoever opens the slivers next finds the same programs running, and how the others ended.
//!
//! A program is in a leaf of its own, which lasts until the sliver stops: an initscript whose leaf is there was run since the sliver
//! started. Keepers claim leaves under the sliver's lock, so that no program runs twice.
//!
//! Not decided here: what runs when, and what follows its end.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    time::Duration,
};

use orrery_protocol::{RunConfig, SliverSpec};
use orrery_sys::session::new_session;
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags},
    process::{Pid, PidfdFlags, Signal},
};
use serde::{Deserialize, Serialize};

use crate::{
    cgroup::{ControlGroup, processes},
    enter::{EnterRequest, Run, Stream},
    error::{At, SliverError},
    internal::{KEEP, LOG, helper_command},
    log::{FOLLOW, places},
    record::Record,
    slivers::{Lock, Slivers},
};

/// The leaf of keepers.
pub(crate) const KEEPERS: &str = "keepers";
/// How long a service may take to end once it was asked to.
pub(crate) const GRACE: Duration = Duration::from_secs(10);
/// How long its keeper may take to write down how that went.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// The note that a sliver was started.
const STARTED: &str = "started";
/// What notes are called after the sliver's login.
const NOTES: [&str; 3] = [Role::Initscript.word(), Role::Service.word(), STARTED];
/// How much of a service's command the log shows, in characters.
const TITLE: usize = 200;
/// The most an image's description may have, in bytes.
const DESCRIPTION_BYTES: u64 = 1 << 20;

/// Which of a sliver's own programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// What is run at every start.
    Initscript,
    /// What is kept running.
    Service,
}

impl Role {
    pub(crate) const ALL: [Self; 2] = [Self::Initscript, Self::Service];

    /// The name of its leaf, of its source in the log, and of its note.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Initscript => "initscript",
            Self::Service => "service",
        }
    }
}

/// One run of a program, as its keeper notes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// What was wanted when it was started; see [`Record::mark`].
    pub mark: u64,
    /// The keeper's PID.
    pub keeper: i32,
    /// When it was started, in milliseconds since the node's boot. Tells runs of keepers with the same PID apart.
    pub began: u64,
    /// How it ended, if it did. One that is missing although there is no keeper was killed with it.
    pub ended: Option<Ended>,
    /// The number of the signal that asks it to end.
    pub stop_signal: i32,
}

/// The end of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// How.
    pub how: End,
    /// After how many milliseconds.
    pub lasted: u64,
}

/// How a program ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// With this exit status: 128 and the signal's number if one killed it.
    Status(i32),
    /// It took too long and was killed.
    Late,
    /// It was never started.
    Unstarted(String),
}

impl Record {
    /// A number for what is wanted of a program, if it is wanted: it changes when the program is to be run anew.
    pub fn mark(&self, role: Role) -> Option<u64> {
        let SliverSpec { startup, life, .. } = &self.spec;
        let mut hasher = DefaultHasher::new();
        match role {
            Role::Initscript => startup.initscript.as_ref()?.hash(&mut hasher),
            Role::Service => (startup.service.as_ref()?, &self.image).hash(&mut hasher),
        }
        (life.reset, life.restart).hash(&mut hasher);
        Some(hasher.finish())
    }
}

/// A program as it is to be started.
pub(crate) struct Program {
    pub(crate) request: EnterRequest,
    /// What it reads.
    pub(crate) input: String,
    pub(crate) stop_signal: Signal,
    /// For the log.
    pub(crate) title: String,
}

/// Puts the script, which comes in as standard input, where the kernel can run it, and runs it. Without a first line that names an
/// interpreter it is the shell's. What it makes itself is not hidden from the sliver's other users.
const RUN_SCRIPT: &str = "(umask 077; mkdir -p /run/orrery && cat > /run/orrery/initscript) && \
                          chmod u+x /run/orrery/initscript && exec /run/orrery/initscript start \"$ORRERY_SLICE\" < /dev/null";

impl Program {
    /// What a record wants, with what its image, in the directory `tree`, says of itself.
    ///
    /// # Errors
    /// When that is not wanted at all, or the image does not say enough.
    pub(crate) fn of(record: &Record, role: Role, tree: &Path) -> Result<Self, SliverError> {
        let name = ("ORRERY_SLICE".to_owned(), record.spec.slice.to_string());
        let stdio = [Stream::Null, Stream::Null, Stream::Null];
        let request =
            EnterRequest { run: Run::Shell, environment: vec![name], directory: None, user: None, pty: None, stdio };
        let startup = &record.spec.startup;
        match (role, &startup.initscript, &startup.service) {
            (Role::Initscript, Some(script), _) => Ok(Self {
                request: EnterRequest { run: Run::Command(RUN_SCRIPT.into()), ..request },
                input: script.clone(),
                stop_signal: Signal::TERM,
                title: "the initscript".into(),
            }),
            (Role::Service, _, Some(service)) => {
                let image = describe(tree)?;
                let command = if service.command.is_empty() { image.command() } else { service.command.clone() };
                if command.is_empty() {
                    return Err(SliverError::NoCommand(record.login()));
                }
                let variables = image.env.unwrap_or_default();
                let variables = variables.iter().filter_map(|variable| variable.split_once('='));
                let mut environment = request.environment;
                environment.extend(variables.map(|(name, value)| (name.to_owned(), value.to_owned())));
                Ok(Self {
                    title: command.join(" ").chars().take(TITLE).collect(),
                    request: EnterRequest {
                        run: Run::Program(command),
                        environment,
                        directory: Some(image.working_dir.filter(|path| !path.is_empty()).unwrap_or("/".into())),
                        user: image.user.filter(|user| !user.is_empty()),
                        ..request
                    },
                    input: String::new(),
                    stop_signal: image.stop_signal.as_deref().and_then(signal).unwrap_or(Signal::TERM),
                })
            }
            _ => Err(SliverError::NoCommand(record.login())),
        }
    }
}

/// A signal by name, as `SIGTERM` or `TERM`, or number.
fn signal(text: &str) -> Option<Signal> {
    let named = || format!("SIG{}", text.trim_start_matches("SIG")).parse::<nix::sys::signal::Signal>().ok();
    let number = text.parse().ok().or_else(|| named().map(|signal| signal as i32))?;
    Signal::from_named_raw(number)
}

/// What an image says of how it is run; nothing if it was never a container's. Its maker chose all of the tree, links included.
fn describe(tree: &Path) -> Result<RunConfig, SliverError> {
    use std::io::Read;
    let path = tree.join(RunConfig::PATH);
    let read = || -> io::Result<Option<RunConfig>> {
        let top = rustix::fs::openat(CWD, tree, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let file = match rustix::fs::openat2(&top, RunConfig::PATH, flags, Mode::empty(), resolve) {
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
            result => fs::File::from(result?),
        };
        let mut text = Vec::new();
        file.take(DESCRIPTION_BYTES).read_to_end(&mut text)?;
        Ok(Some(serde_json::from_slice(&text)?))
    };
    Ok(read().at("reading how the image is run in", path)?.unwrap_or_default())
}

impl Slivers {
    /// Runs a program that the sliver's record wants, unless it runs. Does not wait for it: that and all else is told by
    /// [`Slivers::kept`], at the latest when the returned keeper has ended.
    ///
    /// # Errors
    /// When the keeper cannot be run.
    pub fn keep(&self, login: &str, role: Role) -> Result<Child, SliverError> {
        let mut command = helper_command(KEEP);
        let paths = &self.paths;
        command.args([role.word(), login]).args([&paths.data, &paths.run, &paths.cgroup, &paths.trees]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        new_session(&mut command, false).spawn().map_err(SliverError::Helper)
    }

    /// The last run of a program since the node's boot, and its keeper if it is there. That of an initscript stays on for what the
    /// script left running.
    pub fn kept(&self, login: &str, role: Role) -> Option<(Kept, Option<OwnedFd>)> {
        let text = fs::read(self.note_path(login, role)).ok()?;
        let kept: Kept = serde_json::from_slice(&text).ok()?;
        let keeper = self.keeper(login, &kept);
        // It may have written its last words before it was looked for.
        let kept = match keeper {
            Some(_) => kept,
            None => serde_json::from_slice(&fs::read(self.note_path(login, role)).ok()?).ok()?,
        };
        Some((kept, keeper))
    }

    /// Whether a program was run since the sliver started.
    pub fn has_run(&self, login: &str, role: Role) -> bool {
        self.group(login).leaf(role.word()).exists()
    }

    /// Ends a sliver's service: asks it to, and kills what is left of it after a while.
    ///
    /// # Errors
    /// When there is no such sliver, or its control group cannot be written.
    pub fn stop_service(&self, login: &str) -> Result<(), SliverError> {
        let lock = self.lock(login)?;
        self.ask_service_to_end(login, &lock);
        let group = self.group(login);
        if group.leaf(Role::Service.word()).exists() {
            group.claim(Role::Service.word())?;
            self.wait_for_keeper(login);
        }
        Ok(())
    }

    /// Where runs are noted, and starts of slivers with an initscript. A note is renamed to its name there, so that whoever watches
    /// the directory is told.
    pub fn notes(&self) -> &Path {
        &self.paths.run
    }

    /// The login of the sliver that a note is about, by its file name.
    pub fn noted(name: &str) -> Option<&str> {
        let (login, word) = name.split_once('.')?;
        NOTES.contains(&word).then_some(login)
    }

    /// Prints a sliver's log, oldest line first, to `stdout`, and goes on with what is added if it is to `follow`. The process leads a
    /// session of its own.
    ///
    /// # Errors
    /// When there is no such sliver, or the process cannot be run.
    pub fn print_log(
        &self,
        login: &str,
        follow: bool,
        [stdin, stdout, stderr]: [Stdio; 3],
    ) -> Result<Child, SliverError> {
        self.get(login)?;
        let mut command = helper_command(LOG);
        command.args([self.log_directory(login), self.readers(login)]).args(follow.then_some(FOLLOW));
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        new_session(&mut command, false).spawn().map_err(SliverError::Helper)
    }

    /// What the files begin with that readers of a sliver's log take their places by.
    fn readers(&self, login: &str) -> PathBuf {
        self.paths.run.join(format!("{login}.reader"))
    }

    pub(crate) fn log_directory(&self, login: &str) -> PathBuf {
        self.directory(login).join("log")
    }

    fn note_path(&self, login: &str, role: Role) -> PathBuf {
        self.paths.run.join(format!("{login}.{}", role.word()))
    }

    pub(crate) fn note(&self, login: &str, role: Role, kept: &Kept) -> Result<(), SliverError> {
        let path = self.note_path(login, role);
        self.replace_note(&path, &serde_json::to_vec(kept).map_err(io::Error::from).at("writing", &path)?)
    }

    /// Leaves word that a sliver was started, if it has an initscript that is to be run now.
    pub(crate) fn note_start(&self, record: &Record) {
        if record.spec.startup.initscript.is_some() {
            let path = self.paths.run.join(format!("{}.{STARTED}", record.login()));
            // Whoever waits for it looks from time to time all the same.
            self.replace_note(&path, b"").unwrap_or_else(|error| tracing::warn!("noting a start: {error}"));
        }
    }

    fn replace_note(&self, path: &Path, text: &[u8]) -> Result<(), SliverError> {
        // A name that is none of a note's.
        let mut new = path.as_os_str().to_owned();
        new.push(".new");
        fs::write(&new, text).at("writing", &new)?;
        fs::rename(&new, path).at("replacing", path)
    }

    /// Forgets what is noted of a sliver that is gone.
    pub(crate) fn forget_kept(&self, login: &str) {
        let notes = NOTES.iter().map(|word| self.paths.run.join(format!("{login}.{word}")));
        for path in notes.chain(places(&self.readers(login))) {
            // There may be none.
            let _ = fs::remove_file(path);
        }
    }

    /// The slivers of which something is noted.
    pub(crate) fn kept_logins(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.paths.run).into_iter().flatten().flatten();
        entries.filter_map(|entry| Some(Self::noted(entry.file_name().to_str()?)?.to_owned())).collect()
    }

    /// The keeper of this run, if it is there. Nobody but keepers is in their leaf.
    pub(crate) fn keeper(&self, login: &str, kept: &Kept) -> Option<OwnedFd> {
        let pid = Pid::from_raw(kept.keeper)?;
        // Opened before it is looked for, so that it is no other's.
        let opened = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
        processes(&self.group(login).leaf(KEEPERS)).is_ok_and(|pids| pids.contains(&pid)).then_some(opened)
    }

    /// Asks a sliver's service to end, and waits for a while until it has. One that stands still is not asked.
    pub(crate) fn ask_service_to_end(&self, login: &str, _: &Lock) {
        let Some((kept, Some(_))) = self.kept(login, Role::Service) else { return };
        let suspended = self.get(login).is_ok_and(|record| record.spec.life.suspended.is_some());
        if suspended || kept.ended.is_some() {
            return;
        }
        let group = self.group(login);
        let Some(main) = oldest_inside(&group) else { return };
        let signal = Signal::from_named_raw(kept.stop_signal).unwrap_or(Signal::TERM);
        if rustix::process::pidfd_send_signal(&main, signal).is_ok() {
            group.wait_empty(Role::Service.word(), GRACE);
            self.wait_for_keeper(login);
        }
    }

    /// Waits for the last words of a keeper whose service has ended.
    fn wait_for_keeper(&self, login: &str) {
        if let Some((_, Some(keeper))) = self.kept(login, Role::Service) {
            let mut wait = [rustix::event::PollFd::new(&keeper, rustix::event::PollFlags::IN)];
            let patience = rustix::event::Timespec { tv_sec: LAST_WORDS.as_secs() as i64, tv_nsec: 0 };
            let _ = rustix::io::retry_on_intr(|| rustix::event::poll(&mut wait, Some(&patience)));
        }
    }
}

/// The oldest process of the service: the one that was started, as long as that is there. In the leaf, too, is its session, which the
/// sliver's first process forked.
fn oldest_inside(group: &ControlGroup) -> Option<OwnedFd> {
    let leaf = group.leaf(Role::Service.word());
    let first = group.first_process()?.as_raw_nonzero().to_string();
    let started = |pid: Pid| -> Option<u64> {
        // The fields after the second, a name in brackets, which may have blanks. The fourth is the parent, the 22nd the start.
        let stat = fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
        let after = stat.iter().rposition(|&byte| byte == b')')? + 2;
        let fields: Vec<_> = std::str::from_utf8(stat.get(after..)?).ok()?.split(' ').collect();
        if *fields.get(1)? == first { None } else { fields.get(19)?.parse().ok() }
    };
    let inside = processes(&leaf).ok()?.into_iter().filter_map(|pid| Some((started(pid)?, pid)));
    let (_, oldest) = inside.min_by_key(|(started, pid)| (*started, pid.as_raw_nonzero()))?;
    let opened = rustix::process::pidfd_open(oldest, PidfdFlags::empty()).ok()?;
    processes(&leaf).is_ok_and(|pids| pids.contains(&oldest)).then_some(opened)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use orrery_protocol::{Restart, Service, Startup};

    use super::*;

    fn record(startup: Startup) -> Record {
        let spec = format!(
            r#"{{"slice":"a/b","keys":[],"image":{{"name":"x","ref":{{"sha256":"{}","size":1}}}}}}"#,
            "0".repeat(64)
        );
        let mut spec: SliverSpec = serde_json::from_str(&spec).unwrap();
        spec.startup = startup;
        Record { index: 0, image: "tree".into(), spec }
    }

    fn service(command: &[&str]) -> Startup {
        let command = command.iter().map(|&word| word.into()).collect();
        Startup { initscript: None, service: Some(Service { command, restart: Restart::Always }) }
    }

    #[test]
    fn a_mark_tells_when_a_program_is_to_run_anew() {
        let first = record(Startup { initscript: Some("true".into()), ..service(&["a"]) });
        assert_eq!(record(Startup::default()).mark(Role::Service), None);
        let check = |change: fn(&mut Record), script, program| {
            let mut other = first.clone();
            change(&mut other);
            let same = |role| other.mark(role) == first.mark(role);
            assert_eq!((same(Role::Initscript), same(Role::Service)), (script, program));
        };
        check(|_| (), true, true);
        check(|r| r.spec.rspec.cpu_share = 7, true, true);
        check(|r| r.spec.life.suspended = Some("abuse".into()), true, true);
        check(|r| r.spec.startup.initscript = Some("false".into()), false, true);
        check(|r| r.spec.startup = Startup { initscript: Some("true".into()), ..service(&["b"]) }, true, false);
        check(|r| r.image = "other".into(), true, false);
        check(|r| r.spec.life.restart = 1, false, false);
        check(|r| r.spec.life.reset = 1, false, false);
    }

    #[test]
    fn a_service_is_what_the_image_or_its_owner_says() {
        let tree = tempfile::tempdir().unwrap();
        let run = |command: &[&str]| {
            let program = Program::of(&record(service(command)), Role::Service, tree.path())?;
            let EnterRequest { run: Run::Program(words), environment, directory, user, .. } = program.request else {
                panic!("not a program");
            };
            Ok::<_, SliverError>((words, environment, directory, user, program.stop_signal))
        };
        let slice = ("ORRERY_SLICE".to_owned(), "a/b".to_owned());
        assert!(matches!(run(&[]), Err(SliverError::NoCommand(_))), "an image without a description");
        let plain = run(&["x", "y"]).unwrap();
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        assert_eq!(plain, (words(&["x", "y"]), vec![slice.clone()], Some("/".into()), None, Signal::TERM));

        fs::create_dir(tree.path().join(".orrery")).unwrap();
        let description = tree.path().join(RunConfig::PATH);
        let text = r#"{"Entrypoint":["nginx"],"Cmd":["-g","x"],"User":"web","Env":["A=b=c","D="],
                       "WorkingDir":"/srv","StopSignal":"SIGQUIT"}"#;
        fs::write(&description, text).unwrap();
        let variables = vec![slice, ("A".into(), "b=c".into()), ("D".into(), String::new())];
        let expect = (words(&["nginx", "-g", "x"]), variables, Some("/srv".into()), Some("web".into()), Signal::QUIT);
        assert_eq!(run(&[]).unwrap(), expect);
        assert_eq!(run(&["sh"]).unwrap().0, ["sh"]);

        fs::write(&description, "nonsense").unwrap();
        assert!(matches!(run(&["sh"]), Err(SliverError::Path { .. })));
        // A tree is a stranger's.
        fs::remove_file(&description).unwrap();
        symlink("/etc/passwd", &description).unwrap();
        assert!(matches!(run(&["sh"]), Err(SliverError::Path { .. })));
    }

    #[test]
    fn signals_have_names_and_numbers() {
        let check = |text: &str, expect| assert_eq!(signal(text), expect, "{text}");
        check("SIGQUIT", Some(Signal::QUIT));
        check("INT", Some(Signal::INT));
        check("15", Some(Signal::TERM));
        check("SIGNONE", None);
        check("-1", None);
        check("", None);
    }

    #[test]
    fn notes_are_told_from_other_files() {
        let check = |name, expect| assert_eq!(Slivers::noted(name), expect, "{name}");
        check("a_b.service", Some("a_b"));
        check("a_b.initscript", Some("a_b"));
        check("a_b.started", Some("a_b"));
        check("a_b.lock", None);
        check("a_b.service.new", None);
        check("a_b", None);
    }
}
