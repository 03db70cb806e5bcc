//! Carries out what [`crate::service`] decides, on slivers: one thread that waits for keepers' ends, for notes of theirs and of
//! slivers' starts, for changed records, and for the time to try again.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CStr,
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    process::Child,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use orrery_sliver::{Record, Role, SliverError, Slivers};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec},
    fs::inotify,
    process::{Pid, PidfdFlags},
};

use crate::{
    host::report,
    manager::jitter,
    service::{Run, Seen, Step, Supervision, Wish},
};

/// How long a keeper that ended without a word is not replaced.
const SPEECHLESS: Duration = Duration::from_secs(5);
/// How often everything is looked at, whatever happened: nothing that was missed lasts.
const LOOK: Duration = Duration::from_secs(30);

/// Supervises what slivers run by themselves.
#[derive(Debug)]
pub struct Supervisor {
    slivers: Arc<Slivers>,
    /// Tells of a slice whose turn it is.
    wake: OwnedFd,
    /// Tells of notes.
    watch: OwnedFd,
    shared: Mutex<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Logins of slivers that something changed about.
    changed: BTreeSet<String>,
    /// Logins of slivers that are in use although nothing may be running in them.
    held: BTreeSet<String>,
    /// How many are at work on a sliver, by login.
    busy: BTreeMap<String, u32>,
}

/// That somebody is at work on a sliver.
#[derive(Debug)]
pub struct Apart {
    supervisor: Arc<Supervisor>,
    login: String,
}

impl Drop for Apart {
    fn drop(&mut self) {
        let mut shared = self.supervisor.shared();
        let others = shared.busy.remove(&self.login).unwrap_or_default().saturating_sub(1);
        if others > 0 {
            shared.busy.insert(self.login.clone(), others);
        }
        drop(shared);
        self.supervisor.changed(&self.login);
    }
}

/// A sliver with programs of its own.
#[derive(Debug, Default)]
struct Watched {
    supervision: Supervision,
    /// The keepers this process started and has not waited for.
    children: BTreeMap<Role, Child>,
    /// Those there are, whoever started them.
    keepers: Vec<OwnedFd>,
    look_at: Option<Instant>,
}

impl Supervisor {
    /// Of these slivers, all of which will be looked at.
    ///
    /// # Errors
    /// When the kernel cannot tell of what happens to slivers.
    pub fn new(slivers: Arc<Slivers>) -> io::Result<Self> {
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&watch, slivers.notes(), inotify::WatchFlags::MOVED_TO)?;
        Ok(Self { slivers, wake, watch, shared: Mutex::default() })
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a sliver looked at.
    fn changed(&self, login: &str) {
        self.shared().changed.insert(login.to_owned());
        // A counter that is full wakes just as well.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Leaves a sliver alone as long as what this returns is there: nothing is started in it, and no end of its programs is taken
    /// for a failure. Then it is looked at.
    #[must_use]
    pub fn apart(self: &Arc<Self>, login: &str) -> Apart {
        *self.shared().busy.entry(login.to_owned()).or_default() += 1;
        Apart { supervisor: self.clone(), login: login.to_owned() }
    }

    /// Whether a sliver is in use although nothing may be running in it.
    pub fn holds(&self, login: &str) -> bool {
        self.shared().held.contains(login)
    }

    /// Supervises for ever.
    pub fn run(self: &Arc<Self>) -> ! {
        let mut all: BTreeMap<String, Watched> = BTreeMap::new();
        let mut next_round = Instant::now();
        let mut turn = BTreeSet::new();
        loop {
            let now = Instant::now();
            if next_round <= now {
                next_round = now + LOOK;
                turn.extend(all.keys().cloned());
                match self.slivers.list() {
                    Ok(records) => turn.extend(records.iter().map(Record::login)),
                    Err(e) => tracing::warn!("looking for slivers with programs: {:#}", anyhow::Error::from(e)),
                }
            }
            for login in std::mem::take(&mut turn) {
                self.look(&login, &mut all);
            }
            let due = all.values().filter_map(|watched| watched.look_at).chain([next_round]).min();
            turn = self.wait(&all, due.unwrap_or(next_round));
        }
    }

    /// Waits until something happens, or until then, and returns the slivers whose turn it is.
    fn wait(&self, all: &BTreeMap<String, Watched>, until: Instant) -> BTreeSet<String> {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        let mut waits = vec![PollFd::new(&self.wake, PollFlags::IN), PollFd::new(&self.watch, PollFlags::IN)];
        let keepers = all.iter().flat_map(|(login, watched)| watched.keepers.iter().map(move |keeper| (login, keeper)));
        let (logins, keepers): (Vec<_>, Vec<_>) = keepers.unzip();
        waits.extend(keepers.into_iter().map(|keeper| PollFd::new(keeper, PollFlags::IN)));
        if let Err(e) = rustix::io::retry_on_intr(|| rustix::event::poll(&mut waits, Some(&left))) {
            // Out of memory, if anything: time passes.
            tracing::error!("waiting for slivers' programs: {e}");
            thread::sleep(LOOK);
        }
        let ended = logins.iter().zip(&waits[2..]).filter(|(_, wait)| !wait.revents().is_empty());
        let mut turn: BTreeSet<String> = ended.map(|(login, _)| (*login).clone()).collect();
        let now = Instant::now();
        let due = all.iter().filter(|(_, watched)| watched.look_at.is_some_and(|at| at <= now));
        turn.extend(due.map(|(login, _)| login.clone()));
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        turn.append(&mut self.shared().changed);
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.watch, &mut buffer);
        while let Ok(event) = events.next() {
            let name = event.file_name().map(CStr::to_string_lossy).unwrap_or_default();
            turn.extend(Slivers::noted(&name).map(str::to_owned));
        }
        turn
    }

    /// Looks at a sliver and does what is to be done.
    fn look(self: &Arc<Self>, login: &str, all: &mut BTreeMap<String, Watched>) {
        let watched = all.entry(login.to_owned()).or_default();
        watched.look_at = None;
        watched.keepers.clear();
        if self.shared().busy.contains_key(login) {
            return;
        }
        let record = match self.slivers.get(login) {
            Ok(record) => Some(record),
            // It was destroyed, and wants nothing.
            Err(SliverError::Unknown(_)) => None,
            Err(e) => {
                tracing::warn!("looking at the programs of {login}: {:#}", anyhow::Error::from(e));
                watched.look_at = Some(Instant::now() + LOOK);
                return;
            }
        };
        let wish = record.as_ref().map(wish).unwrap_or_default();
        let Some(seen) = self.see(login, watched) else { return };
        let decision = watched.supervision.look(&wish, &seen, Instant::now(), jitter());
        watched.look_at = decision.look_at;
        match decision.holds || decision.step.is_some() {
            true => self.shared().held.insert(login.to_owned()),
            false => self.shared().held.remove(login),
        };
        for (outcome, message) in &decision.news {
            let slice = record.as_ref().map_or_else(|| login.to_owned(), |record| record.spec.slice.to_string());
            report("sliver-program", *outcome, format!("{slice}: {message}"), Duration::ZERO);
        }
        if let Some(step) = decision.step {
            self.carry_out(login, step, watched);
        }
        if wish == Wish::default() && watched.keepers.is_empty() && watched.children.is_empty() {
            all.remove(login);
        }
    }

    /// What there is of a sliver, unless a keeper is about to say.
    fn see(&self, login: &str, watched: &mut Watched) -> Option<Seen> {
        let mut seen = Seen {
            running: self.slivers.is_running(login),
            script_ran: self.slivers.has_run(login, Role::Initscript),
            ..Seen::default()
        };
        for role in [Role::Initscript, Role::Service] {
            let last = self.slivers.kept(login, role);
            let noted = last.as_ref().map(|(kept, _)| kept.keeper);
            if let Some(child) = watched.children.get_mut(&role) {
                let mine = noted == Some(child.id() as i32);
                match child.try_wait() {
                    Ok(None) => {
                        let pid = Pid::from_child(child);
                        watched.keepers.extend(rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
                        if !mine {
                            return None;
                        }
                    }
                    _ => {
                        watched.children.remove(&role);
                        // It gave way to another, or something is wrong.
                        if !mine && last.as_ref().is_none_or(|(_, keeper)| keeper.is_none()) {
                            watched.look_at = Some(Instant::now() + SPEECHLESS);
                            return None;
                        }
                    }
                }
            }
            let run = last.map(|(kept, keeper)| {
                let alive = keeper.is_some();
                watched.keepers.extend(keeper);
                Run { kept, alive }
            });
            match role {
                Role::Initscript => seen.initscript = run,
                Role::Service => seen.service = run,
            }
        }
        Some(seen)
    }

    fn carry_out(self: &Arc<Self>, login: &str, step: Step, watched: &mut Watched) {
        match step {
            Step::Start(role) => match self.slivers.keep(login, role) {
                Ok(child) => {
                    let keeper = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
                    watched.keepers.extend(keeper.ok());
                    watched.children.insert(role, child);
                }
                Err(e) => {
                    tracing::error!("{login}: running the keeper of its {}: {:#}", role.word(), anyhow::Error::from(e));
                    watched.look_at = Some(Instant::now() + SPEECHLESS);
                }
            },
            Step::StopService => {
                let (supervisor, apart) = (self.clone(), self.apart(login));
                // That takes as long as the service likes.
                thread::spawn(move || {
                    if let Err(e) = supervisor.slivers.stop_service(&apart.login) {
                        tracing::warn!("{}: stopping its service: {:#}", apart.login, anyhow::Error::from(e));
                    }
                });
            }
        }
    }
}

/// What a record wants.
fn wish(record: &Record) -> Wish {
    let service = record.spec.startup.service.as_ref();
    Wish {
        initscript: record.mark(Role::Initscript),
        service: record.mark(Role::Service).zip(service.map(|service| service.restart)),
        suspended: record.spec.life.suspended.is_some(),
    }
}
