//! Children's lives: results, deaths, deadlines, restarts, and orphans.

use std::time::Duration;

use nix::{
    errno::Errno,
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid},
};
use orrery_init_api::{FailureClass, Stage, StageResult};
use rustix::process::{Pid, Signal, WaitOptions, waitpid};

use super::{
    Linux,
    child::{Child, Kind, Orders},
    uptime,
};
use crate::{
    machine::{Finished, Machine, announce, say},
    recover::{backoff, stays},
};

/// A service that lived this long starts anew with the shortest wait.
const SETTLED: Duration = Duration::from_secs(60);

/// A service that is looked after.
#[derive(Debug, Default)]
pub(super) struct Service {
    failures: u32,
    restart_at: Option<Duration>,
}

/// A login on a console, started again whenever it ends.
#[derive(Debug)]
pub(super) struct Shell {
    terminal: String,
    failures: u32,
    start_at: Option<Duration>,
}

impl Linux {
    /// Starts a stage's child. Failing to is an end like any other.
    pub(super) fn start_stage(&mut self, stage: Stage, attempt: u32) {
        let now = uptime();
        let orders = Orders { role: self.role, stage, attempt, boot_id: &self.boot_id, reason: &self.reason };
        match Child::stage(&orders, now) {
            Ok(child) => self.children.push(child),
            Err(error) => {
                let message = format!("starting {} {stage}: {error}", self.role.binary());
                let result = StageResult::fail(FailureClass::Crashed, message);
                self.complete(stage, Finished { result, took: Duration::ZERO });
            }
        }
    }

    /// Kills a stage's child and forgets about it.
    pub(super) fn discard(&mut self, stage: Stage) {
        for child in self.children.iter_mut().filter(|child| child.is(stage)) {
            child.signal_group(Signal::KILL);
            child.kind = Kind::Discarded;
        }
    }

    /// Gives every console a login.
    pub(super) fn open_shells(&mut self) {
        if self.shells.is_empty() {
            let start_at = Some(uptime());
            self.shells = self.console.terminals().map(|terminal| Shell { terminal, failures: 0, start_at }).collect();
        }
    }

    /// Takes them away.
    pub(super) fn close_shells(&mut self) {
        self.shells.clear();
        for child in self.children.iter_mut().filter(|child| matches!(child.kind, Kind::Shell(_))) {
            child.signal_group(Signal::HUP);
            child.signal_group(Signal::KILL);
            child.kind = Kind::Discarded;
        }
    }

    /// A stage has its result: for whoever waits, or for us.
    fn complete(&mut self, stage: Stage, finished: Finished) {
        let Some(service) = self.services.get_mut(&stage) else {
            if finished.result.is_ok() && stays(stage) {
                self.services.insert(stage, Service::default());
            }
            self.finished.insert(stage, finished);
            return;
        };
        if finished.result.is_ok() {
            announce(self, stage, &finished);
            return;
        }
        if self.attending && stage == Stage::Safe {
            // Without a key or a network that may log in, an installation is nobody's to watch.
            self.services.remove(&stage);
            self.attending = false;
            if let StageResult::Fail { class, message } = &finished.result {
                say(self, &format!("no sshd beside this: {class}: {message}"));
            }
            return;
        }
        if finished.took >= SETTLED {
            service.failures = 0;
        }
        service.failures = service.failures.saturating_add(1);
        let failures = service.failures;
        let wait = backoff(failures, self.random());
        if let Some(service) = self.services.get_mut(&stage) {
            service.restart_at = Some(uptime() + wait);
        }
        announce(self, stage, &finished);
        say(self, &format!("recovery: {stage} again in {:.0} s ({failures} failed)", wait.as_secs_f64()));
    }

    /// Reads from every child; a service's result counts at once, a task's when it has ended.
    pub(super) fn read_children(&mut self, now: Duration) {
        let mut reported = Vec::new();
        let console = &mut self.console;
        for child in &mut self.children {
            let before = child.report.is_some();
            child.read(|line| console.line(line));
            if let (Kind::Stage(stage), false, Some(result)) = (child.kind, before, &child.report)
                && stays(stage)
            {
                let took = now.saturating_sub(child.began);
                reported.push((stage, Finished { result: result.clone(), took }));
                if !result.is_ok() {
                    child.ask_to_end(now);
                }
            }
        }
        for (stage, finished) in reported {
            self.complete(stage, finished);
        }
    }

    /// Reaps everything that has ended: our children and every orphan of the machine.
    pub(super) fn reap(&mut self, now: Duration) {
        loop {
            // Looking first and reaping after: until then the process group's number is not reused.
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            let (pid, status, success) = match waitid(Id::All, flags) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, format!("exit status {code}"), code == 0),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, format!("killed by {signal}"), false),
                Err(Errno::EINTR) => continue,
                _ => return,
            };
            let Some(pid) = Pid::from_raw(pid.as_raw()) else { return };
            // Everything a child wrote before it ended is in its pipes by now.
            if self.children.iter().any(|child| child.pid == pid) {
                self.read_children(now);
            }
            let child = self.children.iter().position(|child| child.pid == pid);
            let child = child.map(|index| self.children.swap_remove(index));
            if let Some(child) = &child
                && matches!(child.kind, Kind::Stage(stage) if !stays(stage))
            {
                child.signal_group(Signal::KILL);
            }
            if waitpid(Some(pid), WaitOptions::NOHANG).is_err() {
                return;
            }
            if let Some(child) = child {
                self.ended(child, &status, success, now);
            }
        }
    }

    fn ended(&mut self, mut child: Child, status: &str, success: bool, now: Duration) {
        let console = &mut self.console;
        child.end_output(|line| console.line(line));
        match child.kind {
            Kind::Discarded => {}
            Kind::Shell(number) => {
                if let Some(shell) = self.shells.get_mut(number) {
                    shell.failures = if now.saturating_sub(child.began) < SETTLED { shell.failures + 1 } else { 1 };
                    shell.start_at = Some(now + backoff(shell.failures, u32::MAX));
                }
            }
            Kind::Stage(stage) if stays(stage) => match &child.report {
                // A static address needs nobody to stay.
                Some(StageResult::Ok(_)) if success && stage == Stage::Network => {
                    self.services.remove(&stage);
                }
                Some(StageResult::Ok(_)) => {
                    let result = StageResult::fail(FailureClass::Crashed, format!("the service ended, {status}"));
                    self.complete(stage, Finished { result, took: now.saturating_sub(child.began) });
                }
                // Told when it was reported.
                Some(StageResult::Fail { .. }) => {}
                None => {
                    let finished = child.judge(status, success, now);
                    self.complete(stage, finished);
                }
            },
            Kind::Stage(stage) => {
                let finished = child.judge(status, success, now);
                self.complete(stage, finished);
            }
        }
    }

    /// How long nothing is due.
    pub(super) fn next_timer(&self, now: Duration) -> Duration {
        let children = self.children.iter().filter_map(Child::next_timer);
        let services = self.services.values().filter_map(|service| service.restart_at);
        let shells = self.shells.iter().filter_map(|shell| shell.start_at);
        let next = children.chain(services).chain(shells).min();
        next.map_or(Duration::MAX, |next| next.saturating_sub(now))
    }

    /// Ends what is late, starts what is due.
    pub(super) fn run_timers(&mut self, now: Duration) {
        let mut hopeless = Vec::new();
        for child in &mut self.children {
            if child.run_timers(now) {
                if let Kind::Stage(stage) = child.kind
                    && !(stays(stage) && child.report.is_some())
                {
                    hopeless.push((stage, child.judge("and cannot be killed", false, now)));
                }
                child.kind = Kind::Discarded;
            }
        }
        for (stage, finished) in hopeless {
            self.complete(stage, finished);
        }
        if self.leaving {
            return;
        }
        let due = |at: &mut Option<Duration>| at.take_if(|at| *at <= now).is_some();
        let services = self.services.iter_mut().filter_map(|(stage, service)| {
            due(&mut service.restart_at).then_some((*stage, service.failures.saturating_add(1)))
        });
        for (stage, attempt) in services.collect::<Vec<_>>() {
            self.start_stage(stage, attempt);
        }
        for (number, shell) in self.shells.iter_mut().enumerate() {
            if due(&mut shell.start_at) {
                match Child::shell(self.role, number, &shell.terminal, now) {
                    Ok(child) => self.children.push(child),
                    Err(_) => {
                        shell.failures += 1;
                        shell.start_at = Some(now + backoff(shell.failures, u32::MAX));
                    }
                }
            }
        }
    }

    /// Whether any process but us is left to wait for.
    pub(super) fn childless(&self) -> bool {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        waitid(Id::All, flags) == Err(Errno::ECHILD)
    }

    /// The child of a service, if it runs.
    pub(super) fn child_of(&self, stage: Stage) -> Option<&Child> {
        self.children.iter().find(|child| child.is(stage))
    }
}
