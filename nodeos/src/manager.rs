//! Service `node-manager`: asks central what is wanted, and keeps slivers that way.
//!
//! Three threads, since an import can take minutes and a server can be silent for as long: one asks, one works, one tells.
//! What they share is a [`Board`]. Slivers depend on none of them, nor on central.

use std::{
    fs, io,
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use orrery_installer::replace_file;
use orrery_protocol::{NodeStatus, RunLevel, SliverState, SliverStatus, WantedState};
use rustix::{
    process::{Pid, Signal, kill_process},
    rand::GetRandomFlags,
};

use crate::{
    central::Central,
    health::Reported,
    paths,
    reconcile::{Host, Progress, Reconciler, accounts},
};

/// How often central is asked.
const POLL: Duration = Duration::from_secs(30);
/// How often while nothing is wanted yet, in the first minute: somebody may be waiting for a new node.
const EAGER_POLL: Duration = Duration::from_secs(2);
const EAGER_TIME: Duration = Duration::from_secs(60);
/// How often central is told, whether anything changed or not.
const REPORT: Duration = Duration::from_secs(60);
/// How long to wait after central could not be told.
const REPORT_RETRY: Duration = Duration::from_secs(5);

/// What a node says of itself beside its slivers.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Which boot.
    pub boot_id: String,
    /// The release that runs.
    pub release: String,
    /// The slot it runs from.
    pub slot: String,
    /// Why central did not decide this boot, if it did not.
    pub offline: Option<String>,
    /// The ssh gate's host key in one line.
    pub ssh_host_key: String,
}

/// What the threads share.
#[derive(Debug, Default)]
struct Board {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Unknown until central or the last run said.
    wanted: Option<Arc<WantedState>>,
    /// Grows with every change of `wanted`.
    wanted_version: u64,
    status: Vec<SliverStatus>,
    /// Grows with every change of `status`.
    status_version: u64,
}

/// Runs for ever. `ready` is called once what was last wanted is known again.
///
/// # Errors
/// When threads cannot be started.
pub fn run(
    me: Identity,
    central: Arc<Central>,
    host: impl Host + Send + 'static,
    ready: impl FnOnce(),
) -> Result<std::convert::Infallible> {
    let board = Arc::new(Board::default());
    match load(Path::new(paths::WANTED)) {
        Ok(Some(wanted)) => board.want(wanted),
        Ok(None) => (),
        // Central knows.
        Err(e) => tracing::warn!("{e:#}"),
    }
    ready();
    let (asker, teller) = (board.clone(), board.clone());
    let (asked, boot_id) = (central.clone(), me.boot_id.clone());
    thread::Builder::new()
        .name("ask".into())
        .spawn(move || ask(&asker, &asked, &boot_id))
        .context("starting a thread")?;
    thread::Builder::new()
        .name("tell".into())
        .spawn(move || tell(&teller, &central, &me))
        .context("starting a thread")?;
    work(&board, host)
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of what is wanted. Keys count at once, whatever is being worked on.
    fn want(&self, wanted: WantedState) {
        let mut state = self.lock();
        publish(&wanted, &state.status);
        state.wanted = Some(Arc::new(wanted));
        state.wanted_version += 1;
        self.changed.notify_all();
    }

    /// Takes note of how slivers are.
    fn set_status(&self, status: Vec<SliverStatus>) {
        let mut state = self.lock();
        if state.status == status {
            return;
        }
        for sliver in &status {
            let was_ready = |old: &SliverStatus| old.slice == sliver.slice && old.state == SliverState::Ready;
            if sliver.state == SliverState::Ready && !state.status.iter().any(was_ready) {
                println!("orrery[node] sliver {} ready", sliver.slice.login());
            }
        }
        // Of the newest wish, which may be another than the one that was worked on.
        if let Some(wanted) = &state.wanted {
            publish(wanted, &status);
        }
        state.status = status;
        state.status_version += 1;
        self.changed.notify_all();
    }
}

/// Asks central, for ever.
fn ask(board: &Board, central: &Central, boot_id: &str) {
    let started = Instant::now();
    let mut failures = 0;
    let mut reboot = Reboot::default();
    loop {
        let empty = match central.wanted() {
            Ok(wanted) => {
                failures = 0;
                if reboot.is_due(&wanted, boot_id) {
                    restart();
                }
                let empty = wanted.slivers.is_empty();
                let known = board.lock().wanted.as_deref() == Some(&wanted);
                if !known {
                    if let Err(e) = save(Path::new(paths::WANTED), &wanted) {
                        tracing::warn!("{e:#}");
                    }
                    board.want(wanted);
                }
                empty
            }
            Err(e) => {
                failures += 1;
                // Once, not every half minute: slivers run on.
                if failures == 1 {
                    tracing::warn!("{e:#}");
                }
                false
            }
        };
        thread::sleep(jittered(pause(started.elapsed(), empty, failures)));
    }
}

/// Whether central's wish for a reboot was followed.
#[derive(Debug, Default)]
struct Reboot {
    asked_for: bool,
}

impl Reboot {
    /// Whether `wanted` asks for an end of this very boot, for the first time. The next boot has another id, so that a wish
    /// which central keeps is followed once.
    fn is_due(&mut self, wanted: &WantedState, boot_id: &str) -> bool {
        let due = wanted.reboot.as_deref() == Some(boot_id) && !boot_id.is_empty();
        due && !std::mem::replace(&mut self.asked_for, true)
    }
}

/// Has PID 1 start the machine over, in order.
fn restart() {
    println!("orrery[node] central asks for a reboot");
    if let Err(e) = kill_process(Pid::INIT, Signal::TERM) {
        tracing::error!("asking PID 1 for a reboot: {e}");
    }
}

/// Works on what is wanted, for ever.
fn work(board: &Board, host: impl Host) -> ! {
    let mut reconciler = Reconciler::new(host);
    loop {
        let (wanted, version) = {
            let waited = board.changed.wait_while(board.lock(), |state| state.wanted.is_none());
            let state = waited.unwrap_or_else(PoisonError::into_inner);
            (state.wanted.clone().unwrap_or_default(), state.wanted_version)
        };
        board.set_status(reconciler.status(&wanted));
        let progress = reconciler.step(&wanted, Instant::now());
        board.set_status(reconciler.status(&wanted));
        if let Progress::Idle(until) = progress {
            // Without a date, look again now and then all the same: slivers may be gone.
            let patience = until.map_or(POLL, |until| until.saturating_duration_since(Instant::now()));
            let unchanged = |state: &mut State| state.wanted_version == version;
            let _ = board.changed.wait_timeout_while(board.lock(), patience, unchanged);
        }
    }
}

/// Tells central, for ever.
fn tell(board: &Board, central: &Central, me: &Identity) {
    let mut told = None;
    let mut accepted = false;
    loop {
        let (status, version) = {
            let state = board.lock();
            (state.status.clone(), state.status_version)
        };
        let report = NodeStatus {
            boot_id: me.boot_id.clone(),
            run_level: RunLevel::Running,
            release: me.release.clone(),
            slot: me.slot.clone(),
            offline: me.offline.clone(),
            ssh_host_key: me.ssh_host_key.clone(),
            slivers: status,
        };
        let outcome = central.report(&report);
        // For the health stage. Once one was accepted, later trouble is central's or the line's, not this release's.
        if !accepted {
            accepted = outcome.is_ok();
            let reported = Reported { accepted, error: outcome.as_ref().err().map(|e| format!("{e:#}")) };
            if let Err(e) = reported.keep(Path::new(paths::REPORTED)) {
                tracing::error!("writing {}: {e}", paths::REPORTED);
            }
        }
        match outcome {
            Ok(()) => {
                told = Some(version);
                let unchanged = |state: &mut State| state.status_version == version;
                let _ = board.changed.wait_timeout_while(board.lock(), jittered(REPORT), unchanged);
            }
            Err(e) => {
                // Told once after each success.
                if told.take().is_some() {
                    tracing::warn!("{e:#}");
                }
                thread::sleep(jittered(REPORT_RETRY));
            }
        }
    }
}

/// Lets the ssh gate know.
fn publish(wanted: &WantedState, status: &[SliverStatus]) {
    if let Err(e) = accounts(wanted, status).write(Path::new(paths::ACCOUNTS)) {
        tracing::error!("writing {}: {e}", paths::ACCOUNTS);
    }
}

pub(crate) fn load(path: &Path) -> Result<Option<WantedState>> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).with_context(|| format!("parsing {}", path.display())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("reading {}", path.display())),
    }
}

fn save(path: &Path, wanted: &WantedState) -> Result<()> {
    let json = serde_json::to_vec(wanted).context("writing the wanted state as JSON")?;
    replace_file(path, &json, 0o600).with_context(|| format!("writing {}", path.display()))
}

/// Time until central is asked again.
fn pause(running: Duration, nothing_wanted: bool, failures: u32) -> Duration {
    match failures {
        0 if nothing_wanted && running < EAGER_TIME => EAGER_POLL,
        0 => POLL,
        failures => EAGER_POLL.saturating_mul(1 << (failures - 1).min(8)).min(POLL),
    }
}

/// Up to a fifth more or less, so that many nodes do not ask in step.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [128];
    // Without random bytes there is no jitter.
    let _ = rustix::rand::getrandom(&mut byte, GetRandomFlags::NONBLOCK);
    pause.mul_f64(0.8 + 0.4 * f64::from(byte[0]) / 255.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::spec;

    #[test]
    fn pauses() {
        let check = |running, nothing, failures, expect| {
            assert_eq!(pause(Duration::from_secs(running), nothing, failures), Duration::from_secs(expect));
        };
        check(0, true, 0, 2);
        check(59, true, 0, 2);
        check(60, true, 0, 30);
        check(0, false, 0, 30);
        check(0, false, 1, 2);
        check(0, false, 3, 8);
        check(0, false, 5, 30);
        check(99_999, false, u32::MAX, 30);
        for _ in 0..100 {
            assert!((24..=36).contains(&jittered(POLL).as_secs()));
        }
    }

    #[test]
    fn a_reboot_is_of_one_boot_and_once() {
        let mut reboot = Reboot::default();
        let wanted = |id: Option<&str>| WantedState { slivers: Vec::new(), reboot: id.map(Into::into) };
        assert!(!reboot.is_due(&wanted(None), "b1"));
        assert!(!reboot.is_due(&wanted(Some("b0")), "b1"));
        assert!(!reboot.is_due(&wanted(Some("")), ""));
        assert!(reboot.is_due(&wanted(Some("b1")), "b1"));
        assert!(!reboot.is_due(&wanted(Some("b1")), "b1"));
    }

    #[test]
    fn what_was_wanted_is_known_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wanted.json");
        assert_eq!(load(&path).unwrap(), None);
        let wanted = WantedState { slivers: vec![spec("a", 1, 100), spec("b", 2, 50)], reboot: None };
        save(&path, &wanted).unwrap();
        assert_eq!(load(&path).unwrap(), Some(wanted));
        fs::write(&path, b"{\"slivers\":[").unwrap();
        assert!(load(&path).is_err());
    }
}
