//! Trying, reading back, trying again, and going on to the next method.

use std::{
    collections::HashSet,
    sync::{Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use super::{
    act::{Act, Taken},
    feeds::Feeds,
    interrupt::Interrupt,
    report::{Attempt, Failure, Outcome, Report, Step, Tested},
};
use crate::{Ability, Action, Class, Deadline, Driver, Method, PcuError, Registry, Session};

/// Time that actions may take.
#[derive(Debug, Clone)]
pub struct Policy {
    /// All methods together.
    pub deadline: Duration,
    /// One method, its retries included.
    pub method: Duration,
    /// From a device's acceptance of a change until its state shows it.
    pub settle: Duration,
    /// How long a cycle leaves the machine without power: supplies hold charge for seconds.
    pub off_time: Duration,
    /// Between two looks at a state.
    pub poll: Duration,
    /// Between two tries of a method.
    pub retry: Duration,
    /// How often a method is tried: a relay that does not move is not beaten.
    pub tries: usize,
    /// After a cycle that failed or was interrupted: turning on again what it turned off, whatever the other limits.
    pub give_back: Duration,
}

/// What a device answered, and by which method.
#[derive(Debug)]
pub struct Answer<T> {
    /// The answer; none when no method gave one.
    pub value: Option<T>,
    /// The method that gave it.
    pub method: Option<String>,
    /// The methods that failed before.
    pub attempts: Vec<Attempt>,
}

/// Performs actions. Many threads may share one: it keeps two of them from logging in to the same device at once, which many
/// devices answer with a refusal.
#[derive(Debug)]
pub struct Control {
    registry: Registry,
    policy: Policy,
    interrupt: Interrupt,
    busy: Mutex<HashSet<String>>,
    freed: Condvar,
}

/// Being the only one who talks to some devices.
struct Turn<'a> {
    control: &'a Control,
    devices: Vec<String>,
}

/// One opened method.
struct Opened<'a> {
    session: Box<dyn Session>,
    abilities: Vec<Ability>,
    /// Last: the session ends before somebody else may begin one.
    _turn: Turn<'a>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(180),
            method: Duration::from_secs(60),
            settle: Duration::from_secs(30),
            off_time: Duration::from_secs(5),
            poll: Duration::from_millis(500),
            retry: Duration::from_secs(2),
            tries: 4,
            give_back: Duration::from_secs(120),
        }
    }
}

impl Control {
    /// Uses these drivers, and takes this time.
    #[must_use]
    pub fn new(registry: Registry, policy: Policy) -> Self {
        Self { registry, policy, interrupt: Interrupt::default(), busy: Mutex::default(), freed: Condvar::new() }
    }

    /// Begins no method, try or change any more once `interrupt` is raised. What a cycle turned off is turned on again all the same.
    #[must_use]
    pub fn until(self, interrupt: &Interrupt) -> Self {
        Self { interrupt: interrupt.clone(), ..self }
    }

    /// The drivers.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Performs `action` by the first of `methods` that can. `watch` is told what happens meanwhile.
    pub fn perform(&self, methods: &[Method], action: Action, watch: &dyn Fn(&Step)) -> Report {
        let taken = Taken::new(watch);
        let Answer { value, mut method, mut attempts } = self.first(methods, watch, |method, deadline| {
            let mut opened = self.open(method, deadline)?;
            self.act(&mut opened, deadline, watch).perform(action, method, &taken)
        });
        let mut outcome = value.unwrap_or(Outcome::Failed);
        for taker in taken.left() {
            match self.give_back(taker, watch) {
                Ok(()) => taken.settle(taker),
                Err(attempt) => {
                    attempts.push(attempt);
                    (outcome, method) = (Outcome::Failed, None);
                }
            }
        }
        Report { action, outcome, left_off: !taken.left().is_empty(), method, attempts }
    }

    /// Turns on what somebody else's cycle may have left off, by each of `methods`: which of them took the power is not known, and a state
    /// that says "on" may come from another switch. Like [`Policy::give_back`], it tries again what time or a device's mood may
    /// change. It fails when no method did it.
    pub fn restore(&self, methods: &[Method], watch: &dyn Fn(&Step)) -> Report {
        let deadline = Deadline::after(self.policy.give_back);
        let (mut done, mut attempts): (Option<(Outcome, String)>, Vec<Attempt>) = (None, Vec::new());
        let mut left: Vec<&Method> = methods.iter().collect();
        while !left.is_empty() {
            left.retain(|method| {
                let (name, start) = (method.to_string(), Instant::now());
                watch(&Step::Trying { method: name.clone() });
                // One that hangs takes the time of no other.
                let deadline = if methods.len() == 1 { deadline } else { deadline.at_most(self.policy.method) };
                let result = self.reopen(method, deadline);
                let result = result.and_then(|mut opened| self.act(&mut opened, deadline, watch).restore());
                let failure = result.as_ref().err().map(Failure::from);
                let took_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
                // Of many tries in vain, the last one counts.
                attempts.retain(|attempt| attempt.method != name);
                attempts.push(Attempt { method: name.clone(), took_ms, failure: failure.clone() });
                if let Ok(outcome) = result
                    && done.as_ref().is_none_or(|(before, _)| *before != Outcome::Changed)
                {
                    done = Some((outcome, name.clone()));
                }
                let Some(failure) = failure else { return false };
                let again = may_change(failure.class);
                watch(&Step::Failed { method: name, failure });
                again
            });
            if deadline.left("waiting for another try").unwrap_or_default() <= self.policy.retry {
                break;
            }
            if !left.is_empty() {
                thread::sleep(self.policy.retry);
            }
        }
        let (outcome, method) = done.map_or((Outcome::Failed, None), |(outcome, method)| (outcome, Some(method)));
        Report { action: Action::On, outcome, left_off: false, method, attempts }
    }

    /// Asks the first of `methods` whose driver has `ability` and whose device answers.
    pub fn ask<T>(
        &self,
        methods: &[Method],
        ability: Ability,
        watch: &dyn Fn(&Step),
        question: impl Fn(&mut dyn Session, Deadline) -> Result<T, PcuError>,
    ) -> Answer<T> {
        self.first(methods, watch, |method, deadline| {
            let mut opened = self.open_for(method, ability, deadline)?;
            question(opened.session.as_mut(), deadline)
        })
    }

    /// Opens the first of `methods` whose driver has `ability`, and keeps it open while `use_it` runs.
    pub fn with_session<T>(
        &self,
        methods: &[Method],
        ability: Ability,
        watch: &dyn Fn(&Step),
        use_it: impl Fn(Box<dyn Session>, Deadline) -> Result<T, PcuError>,
    ) -> Answer<T> {
        self.first(methods, watch, |method, deadline| {
            let Opened { session, _turn, .. } = self.open_for(method, ability, deadline)?;
            use_it(session, deadline)
        })
    }

    /// Tests every method: logs in, finds the outlet, and changes nothing.
    #[must_use]
    pub fn test(&self, methods: &[Method]) -> Vec<Tested> {
        let deadline = Deadline::after(self.policy.deadline);
        let test = |method: &Method| {
            let deadline = deadline.at_most(self.policy.method);
            let result = self.open(method, deadline).and_then(|mut opened| opened.session.prove(deadline));
            let (proofs, failure) = match &result {
                Ok(proofs) => (proofs.clone(), None),
                Err(error) => (Vec::new(), Some(Failure::from(error))),
            };
            Tested { method: method.to_string(), proofs, failure }
        };
        methods.iter().map(test).collect()
    }

    /// Tries the methods in turn, each again and again while time can mend what fails.
    fn first<'m, T>(
        &self,
        methods: &'m [Method],
        watch: &dyn Fn(&Step),
        once: impl Fn(&'m Method, Deadline) -> Result<T, PcuError>,
    ) -> Answer<T> {
        let all = Deadline::after(self.policy.deadline);
        let mut attempts = Vec::new();
        for (index, method) in methods.iter().enumerate() {
            // The last one may use all that is left.
            let deadline = if index + 1 == methods.len() { all } else { all.at_most(self.policy.method) };
            let name = method.to_string();
            watch(&Step::Trying { method: name.clone() });
            for _ in 0..self.policy.tries {
                let start = Instant::now();
                let result = once(method, deadline);
                let took_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
                let failure = result.as_ref().err().map(Failure::from);
                attempts.push(Attempt { method: name.clone(), took_ms, failure: failure.clone() });
                if let Ok(value) = result {
                    return Answer { value: Some(value), method: Some(name), attempts };
                }
                let Some(failure) = failure else { break };
                if failure.class == Class::Interrupted {
                    return Answer { value: None, method: None, attempts };
                }
                let again = failure.class.passes();
                watch(&Step::Failed { method: name.clone(), failure });
                let left = deadline.left("waiting for another try").unwrap_or_default();
                if !again || left <= self.policy.retry {
                    break;
                }
                self.interrupt.wait(self.policy.retry);
            }
        }
        Answer { value: None, method: None, attempts }
    }

    /// Turns on again what a cycle turned off by `method`. All that time or a device's mood may change is tried again.
    fn give_back(&self, method: &Method, watch: &dyn Fn(&Step)) -> Result<(), Attempt> {
        let (start, deadline) = (Instant::now(), Deadline::after(self.policy.give_back));
        watch(&Step::GivingBack { method: method.to_string() });
        loop {
            let result =
                self.reopen(method, deadline).and_then(|mut opened| self.act(&mut opened, deadline, watch).give_back());
            let Err(error) = result else { return Ok(()) };
            let mut failure = Failure::from(&error);
            failure.message = format!("turning on again what was turned off: {}", failure.message);
            let again = may_change(failure.class);
            let left = deadline.left("waiting for another try").unwrap_or_default();
            if !again || left <= self.policy.retry {
                let took_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
                return Err(Attempt { method: method.to_string(), took_ms, failure: Some(failure) });
            }
            watch(&Step::Failed { method: method.to_string(), failure });
            thread::sleep(self.policy.retry);
        }
    }

    fn act<'a>(&'a self, opened: &'a mut Opened<'_>, deadline: Deadline, watch: &'a dyn Fn(&Step)) -> Act<'a> {
        let Opened { session, abilities, .. } = opened;
        let (policy, interrupt) = (&self.policy, &self.interrupt);
        Act { session: session.as_mut(), abilities, policy, interrupt, deadline, watch }
    }

    fn open_for(&self, method: &Method, ability: Ability, deadline: Deadline) -> Result<Opened<'_>, PcuError> {
        let opened = self.open(method, deadline)?;
        if opened.abilities.contains(&ability) {
            return Ok(opened);
        }
        Err(PcuError::unsupported(&method.driver, &format!("{ability} by {method}")))
    }

    /// Logs in to all devices of a method when they are free, unless that is no more to be begun.
    fn open(&self, method: &Method, deadline: Deadline) -> Result<Opened<'_>, PcuError> {
        let turn = self.wait_turn(method, deadline)?;
        self.interrupt.check(|| format!("using {method}"))?;
        self.log_in(method, turn, deadline)
    }

    /// Like [`Self::open`], for what has to be ended whatever interrupts it.
    fn reopen(&self, method: &Method, deadline: Deadline) -> Result<Opened<'_>, PcuError> {
        let turn = self.wait_turn(method, deadline)?;
        self.log_in(method, turn, deadline)
    }

    fn log_in<'a>(&'a self, method: &Method, turn: Turn<'a>, deadline: Deadline) -> Result<Opened<'a>, PcuError> {
        let feeds: Vec<&Method> = feeds(method).collect();
        let drivers: Vec<&dyn Driver> = feeds.iter().map(|feed| self.registry.of(feed)).collect::<Result<_, _>>()?;
        if method.feeds.iter().any(|feed| !feed.feeds.is_empty()) {
            return Err(method.misconfigured("a feed has feeds of its own"));
        }
        let opened = drivers.iter().zip(&feeds).map(|(driver, feed)| driver.open(feed, deadline));
        let mut sessions: Vec<_> = opened.collect::<Result<_, _>>()?;
        let shared = |ability: &&Ability| drivers.iter().all(|driver| driver.abilities().contains(ability));
        let mut abilities: Vec<_> = drivers[0].abilities().iter().filter(shared).copied().collect();
        let session = match sessions.len() {
            1 => sessions.remove(0),
            _ => {
                abilities.retain(|ability| matches!(ability, Ability::Status | Ability::On | Ability::Off));
                Box::new(Feeds(sessions))
            }
        };
        Ok(Opened { session, abilities, _turn: turn })
    }

    fn wait_turn(&self, method: &Method, deadline: Deadline) -> Result<Turn<'_>, PcuError> {
        let mut devices: Vec<_> = feeds(method).map(|feed| format!("{} {}", feed.driver, feed.address)).collect();
        devices.sort();
        devices.dedup();
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        while devices.iter().any(|device| busy.contains(device)) {
            let left = deadline.left(&format!("waiting until nobody else here uses {}", devices.join(" and ")))?;
            busy = self.freed.wait_timeout(busy, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        busy.extend(devices.iter().cloned());
        drop(busy);
        Ok(Turn { control: self, devices })
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut busy = self.control.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.retain(|device| !self.devices.contains(device));
        self.control.freed.notify_all();
    }
}

/// Whether time, or a device's mood, may change it.
fn may_change(class: Class) -> bool {
    class.passes() || class == Class::Refused
}

/// The outlets of a method: its own, and those of the machine's other power supplies.
fn feeds(method: &Method) -> impl Iterator<Item = &Method> {
    std::iter::once(method).chain(&method.feeds)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, sync::atomic::AtomicUsize, sync::atomic::Ordering};

    use super::*;
    use crate::PowerState;

    /// Its state is a file, so that a test sees what really happened.
    const RELAY: &str = r#"
        echo "$1" >> "$0.calls"
        case $1 in
        status) cat "$0.state" ;;
        on|off) echo "$1" > "$0.state" ;;
        esac
    "#;

    fn quick() -> Policy {
        Policy {
            deadline: Duration::from_secs(20),
            method: Duration::from_secs(3),
            settle: Duration::from_millis(200),
            off_time: Duration::from_millis(10),
            poll: Duration::from_millis(10),
            retry: Duration::from_millis(20),
            tries: 4,
            give_back: Duration::from_secs(5),
        }
    }

    fn control() -> Control {
        Control::new(Registry::builtin(), quick())
    }

    /// A device that is a script; its files begin with its name.
    fn device(folder: &Path, name: &str, script: &str, state: &str) -> Method {
        let base = folder.join(name);
        fs::write(&base, script).unwrap();
        fs::write(folder.join(format!("{name}.state")), state).unwrap();
        let mut method = Method::new("command", name);
        let run = ["sh".to_owned(), base.display().to_string()];
        method.options.insert("run".into(), toml::Value::Array(run.map(toml::Value::String).to_vec()));
        method
    }

    /// A relay that turns on at the call with this number only.
    fn moody(folder: &Path, name: &str, works: usize, state: &str) -> Method {
        let refuse = format!(r#"if [ $1 = on ] && [ $(grep -c on "$0.calls") -lt {works} ]; then exit 1; fi; case"#);
        device(folder, name, &RELAY.replacen("case", &refuse, 1), state)
    }

    fn calls(folder: &Path, name: &str) -> Vec<String> {
        let calls = fs::read_to_string(folder.join(format!("{name}.calls"))).unwrap_or_default();
        calls.lines().filter(|call| *call != "status").map(str::to_owned).collect()
    }

    #[test]
    fn an_action_counts_when_the_state_follows() {
        let folder = tempfile::tempdir().unwrap();
        let methods = [device(folder.path(), "relay", RELAY, "off")];
        let check = |action, outcome, expected: &[&str]| {
            let report = control().perform(&methods, action, &|_| ());
            assert_eq!(report.outcome, outcome, "{action}: {report:?}");
            assert_eq!(calls(folder.path(), "relay"), expected);
        };
        check(Action::On, Outcome::Changed, &["on"]);
        check(Action::On, Outcome::Already, &["on"]);
        check(Action::Cycle, Outcome::Changed, &["on", "off", "on"]);
        check(Action::Reset, Outcome::Accepted, &["on", "off", "on", "reset"]);
        check(Action::Off, Outcome::Changed, &["on", "off", "on", "reset", "off"]);
        // What is off cannot be reset, and a cycle turns it on.
        check(Action::Reset, Outcome::Failed, &["on", "off", "on", "reset", "off"]);
        check(Action::Cycle, Outcome::Changed, &["on", "off", "on", "reset", "off", "on"]);
    }

    #[test]
    fn a_relay_that_is_stuck_is_told_and_the_next_method_tried() {
        let folder = tempfile::tempdir().unwrap();
        let stuck = device(folder.path(), "stuck", "test $1 != status || echo on", "on");
        let methods = [stuck, device(folder.path(), "relay", RELAY, "on")];
        let report = control().perform(&methods[..1], Action::Off, &|_| ());
        assert_eq!(report.failure().unwrap().class, Class::Unverified);
        assert!(report.attempts.len() > 1, "it was tried once only");
        let report = control().perform(&methods, Action::Off, &|_| ());
        assert_eq!((report.outcome, report.method.as_deref()), (Outcome::Changed, Some("command relay")));
    }

    #[test]
    fn what_time_mends_is_tried_again_and_the_rest_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let starting = r#"echo . >> "$0.tries"; test $(wc -l < "$0.tries") -ge 3 || exit 75; echo off"#;
        let refusing = device(folder.path(), "refusing", "echo tired >&2; exit 1", "");
        let relay = device(folder.path(), "relay", RELAY, "on");
        let check = |first: &Method, tries: usize, class| {
            let report = control().perform(&[first.clone(), relay.clone()], Action::Off, &|_| ());
            let of_first: Vec<_> =
                report.attempts.iter().filter(|attempt| attempt.method == first.to_string()).collect();
            assert_eq!((of_first.len(), of_first[0].failure.as_ref().unwrap().class), (tries, class), "{report:?}");
        };
        check(&refusing, 1, Class::Refused);
        check(&device(folder.path(), "starting", starting, ""), 3, Class::Busy);
        check(&device(folder.path(), "busy", "exit 75", ""), quick().tries, Class::Busy);
    }

    #[test]
    fn a_machine_with_two_feeds_is_off_when_both_are() {
        let folder = tempfile::tempdir().unwrap();
        let mut method = device(folder.path(), "a", RELAY, "on");
        method.feeds.push(device(folder.path(), "b", RELAY, "on"));
        let report = control().perform(&[method.clone()], Action::Cycle, &|_| ());
        assert_eq!(report.outcome, Outcome::Changed);
        assert_eq!(
            (calls(folder.path(), "a"), calls(folder.path(), "b")),
            (vec!["off".into(), "on".into()], vec!["off".into(), "on".into()])
        );
        let report = control().perform(&[method], Action::Reset, &|_| ());
        assert_eq!(report.failure().unwrap().class, Class::Unsupported);
    }

    #[test]
    fn a_person_is_the_last_resort() {
        let folder = tempfile::tempdir().unwrap();
        let methods = [device(folder.path(), "x", "exit 1", ""), Method::new("manual", "rack 4")];
        let report = control().perform(&methods, Action::Cycle, &|_| ());
        assert_eq!((report.outcome, report.failure().unwrap().class), (Outcome::Failed, Class::Human));
    }

    #[test]
    fn nobody_logs_in_to_a_device_twice_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let alone = r#"mkdir "$0.lock" || exit 1; echo on; rmdir "$0.lock""#;
        let method = device(folder.path(), "single", alone, "");
        let control = control();
        let failures = AtomicUsize::new(0);
        let ask = |_: &usize| {
            control.ask(std::slice::from_ref(&method), Ability::Status, &|_| (), |session, deadline| {
                session.state(deadline)
            })
        };
        crate::fleet::each(&(0..16).collect::<Vec<_>>(), 8, ask, |_, answer| {
            failures.fetch_add(usize::from(answer.value.is_none()), Ordering::SeqCst);
        });
        assert_eq!(failures.into_inner(), 0);
    }

    #[test]
    fn a_test_changes_nothing_and_tries_every_method() {
        let folder = tempfile::tempdir().unwrap();
        let methods = [
            device(folder.path(), "relay", RELAY, "off"),
            device(folder.path(), "bad", "exit 1", ""),
            Method::new("none", "x"),
        ];
        let tested = control().test(&methods);
        let classes: Vec<_> =
            tested.iter().map(|tested| tested.failure.as_ref().map(|failure| failure.class)).collect();
        assert_eq!(classes, [None, Some(Class::Refused), Some(Class::Configuration)]);
        assert_eq!(calls(folder.path(), "relay"), ["test"]);
    }

    /// An hour without power; a test that waited for it would not end.
    fn slow() -> Policy {
        let (hour, day) = (Duration::from_secs(3600), Duration::from_secs(24 * 3600));
        Policy { off_time: hour, deadline: day, method: day, ..quick() }
    }

    /// Performs a cycle that is interrupted when `when` says so of a step, and says what happened.
    fn interrupted(methods: &[Method], policy: Policy, when: impl Fn(&Step) -> bool) -> (Report, Vec<Step>) {
        let (interrupt, steps) = (Interrupt::default(), Mutex::new(Vec::new()));
        let watch = |step: &Step| {
            steps.lock().unwrap().push(step.clone());
            if when(step) {
                interrupt.raise();
            }
        };
        let report =
            Control::new(Registry::builtin(), policy).until(&interrupt).perform(methods, Action::Cycle, &watch);
        (report, steps.into_inner().unwrap())
    }

    #[test]
    fn an_interrupted_cycle_turns_on_again_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let methods = [device(folder.path(), "relay", RELAY, "on")];
        for when in [Step::Taking, Step::Seen { state: PowerState::Off }] {
            let (report, steps) = interrupted(&methods, slow(), |step| *step == when);
            assert_eq!((report.outcome, report.left_off), (Outcome::Changed, false), "{report:?}");
            assert_eq!(steps.last(), Some(&Step::Returned));
        }
        assert_eq!(calls(folder.path(), "relay"), ["off", "on", "off", "on"]);
    }

    #[test]
    fn what_is_interrupted_begins_nothing_more() {
        let folder = tempfile::tempdir().unwrap();
        let busy = device(folder.path(), "busy", r#"echo "$1" >> "$0.calls"; exit 75"#, "");
        let methods = [busy, device(folder.path(), "relay", RELAY, "on")];
        let policy = || Policy { retry: Duration::from_secs(3600), ..slow() };
        let check = |when: fn(&Step) -> bool, tries: usize| {
            let (report, _) = interrupted(&methods, policy(), when);
            assert_eq!((report.outcome, report.failure().unwrap().class), (Outcome::Failed, Class::Interrupted));
            assert_eq!((report.attempts.len(), report.left_off), (tries, false), "{report:?}");
            assert!(report.attempts.iter().all(|attempt| attempt.method == "command busy"), "{report:?}");
        };
        check(|step| matches!(step, Step::Trying { .. }), 1);
        // No second try, and no second method.
        check(|step| matches!(step, Step::Failed { .. }), 2);
        assert_eq!(calls(folder.path(), "relay"), [""; 0]);
    }

    #[test]
    fn what_a_failed_cycle_turned_off_is_turned_on_again() {
        let folder = tempfile::tempdir().unwrap();
        let moody = |name: &str, works: usize| moody(folder.path(), name, works, "on");
        let state = |name: &str| fs::read_to_string(folder.path().join(format!("{name}.state"))).unwrap();
        let perform = |methods: &[Method]| control().perform(methods, Action::Cycle, &|_| ());

        // By the method itself, when no other one can.
        let report = perform(&[moody("late", 3)]);
        assert_eq!((report.outcome, report.left_off), (Outcome::Failed, false), "{report:?}");
        assert_eq!((report.failure().unwrap().class, state("late").trim()), (Class::Refused, "on"));
        // Another method's own switch is another one.
        let report = perform(&[moody("chassis", 2), device(folder.path(), "outlet", RELAY, "on")]);
        assert_eq!((report.outcome, report.left_off), (Outcome::Changed, false), "{report:?}");
        assert_eq!((report.method.as_deref(), state("chassis").trim()), (Some("command outlet"), "on"));
        // Another way to the same switch turns it on.
        let way = moody("way", 9999);
        let same = RELAY.replace("$0.state", &folder.path().join("way.state").display().to_string());
        let report = perform(&[way, device(folder.path(), "other", &same, "")]);
        assert_eq!((report.outcome, report.left_off), (Outcome::Changed, false), "{report:?}");
        assert_eq!(
            (calls(folder.path(), "way"), calls(folder.path(), "other")),
            (vec!["off".into(), "on".into()], vec!["on".into()])
        );
        // And when nothing does, the report says so.
        let broken = moody("broken", 9999);
        let report = perform(&[broken, device(folder.path(), "elsewhere", RELAY, "on")]);
        assert_eq!((report.outcome, report.left_off), (Outcome::Failed, true), "{report:?}");
        let failure = report.failure().unwrap();
        assert!(failure.message.starts_with("turning on again what was turned off: "), "{failure:?}");
    }

    #[test]
    fn what_somebody_else_left_off_is_turned_on_by_each_method() {
        let folder = tempfile::tempdir().unwrap();
        let state = |name: &str| fs::read_to_string(folder.path().join(format!("{name}.state"))).unwrap();
        let restore = |methods: &[Method]| control().restore(methods, &|_| ());

        let mut fed = device(folder.path(), "a", RELAY, "on");
        fed.feeds.push(device(folder.path(), "b", RELAY, "off"));
        let methods = [moody(folder.path(), "moody", 2, "off"), Method::new("manual", "rack 4"), fed];
        let report = restore(&methods);
        assert_eq!((report.outcome, report.method.as_deref()), (Outcome::Changed, Some("command moody")), "{report:?}");
        assert_eq!((calls(folder.path(), "moody"), state("moody").trim()), (vec!["on".into(), "on".into()], "on"));
        assert_eq!((report.attempts.len(), state("b").trim()), (3, "on"), "{report:?}");
        assert_eq!(restore(&methods[2..]).outcome, Outcome::Already);
        // A device that hangs keeps no other from it.
        let hangs = device(folder.path(), "hangs", "sleep 60", "");
        let report = restore(&[hangs, device(folder.path(), "relay", RELAY, "off")]);
        assert_eq!((report.outcome, state("relay").trim()), (Outcome::Changed, "on"), "{report:?}");
        let report = restore(&methods[1..2]);
        assert_eq!((report.outcome, report.failure().unwrap().class), (Outcome::Failed, Class::Human));
    }

    #[test]
    fn time_that_runs_out_leaves_nothing_off() {
        let folder = tempfile::tempdir().unwrap();
        let relay = device(folder.path(), "relay", RELAY, "on");
        let perform = |method: Method, policy: Policy| {
            let report = Control::new(Registry::builtin(), policy).perform(&[method], Action::Cycle, &|_| ());
            assert_eq!((report.outcome, report.left_off), (Outcome::Failed, false), "{report:?}");
            report.failure().unwrap().class
        };
        // Nothing is begun that cannot be ended.
        assert_eq!(perform(relay, Policy { deadline: Duration::from_secs(5), ..slow() }), Class::Timeout);
        assert_eq!(calls(folder.path(), "relay"), [""; 0]);
        // This one never looks as if it were off.
        let mute = device(folder.path(), "mute", &RELAY.replace(r#"cat "$0.state""#, "echo on"), "on");
        perform(mute, Policy { deadline: Duration::from_secs(3), settle: Duration::from_secs(3600), ..quick() });
        assert_eq!(calls(folder.path(), "mute"), ["off", "on"]);
    }

    #[test]
    fn a_feed_that_fails_takes_the_power_from_none_of_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let mut method =
            device(folder.path(), "bad", &RELAY.replacen("case", "test $1 != on || exit 1; case", 1), "on");
        method.feeds.push(device(folder.path(), "good", RELAY, "on"));
        let report = control().perform(&[method], Action::Cycle, &|_| ());
        assert_eq!((report.outcome, report.left_off), (Outcome::Failed, false), "{report:?}");
        assert_eq!(fs::read_to_string(folder.path().join("good.state")).unwrap().trim(), "on");
    }
}
