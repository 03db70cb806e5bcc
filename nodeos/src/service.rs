//! When a sliver's own programs, its initscript and its service, are started and stopped. Pure.
//!
//! What is there is looked at anew every time, so that a node manager that was killed goes on where it was; all it forgets is how
//! long a failing service was being left alone. Nothing is done to a suspended sliver: its programs stand still with it.

use std::time::{Duration, Instant};

use orrery_protocol::{Outcome, Restart};
use orrery_sliver::{End, Ended, Kept, Role};

/// How long a service that failed is left alone: doubled with every failure, within these bounds.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LAST_WAIT: Duration = Duration::from_secs(120);
/// A service that lived this long starts anew with the shortest wait.
const SETTLED: Duration = Duration::from_secs(60);

/// What is wanted of a sliver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wish {
    /// The mark of its initscript, if it has one.
    pub initscript: Option<u64>,
    /// The mark of its service, if it has one, and what follows that one's end.
    pub service: Option<(u64, Restart)>,
    /// Whether all of it is to stand still.
    pub suspended: bool,
}

/// What there is of a sliver.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// Whether it runs.
    pub running: bool,
    /// Whether an initscript was run since it started.
    pub script_ran: bool,
    /// The last run of its initscript.
    pub initscript: Option<Run>,
    /// The last run of its service.
    pub service: Option<Run>,
}

/// A run of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// What its keeper noted.
    pub kept: Kept,
    /// Whether the keeper is there.
    pub alive: bool,
}

impl Run {
    /// Whether the program itself may be running.
    fn goes_on(&self) -> bool {
        self.alive && self.kept.ended.is_none()
    }

    fn id(&self) -> (i32, u64) {
        (self.kept.keeper, self.kept.began)
    }

    /// How it ended, for people, and after how long.
    fn end(&self) -> (String, Duration) {
        match &self.kept.ended {
            Some(Ended { how, lasted }) => {
                let text = match how {
                    End::Status(status @ 129..) => format!("was killed by signal {}", status - 128),
                    End::Status(status) => format!("ended with status {status}"),
                    End::Late => "took too long and was ended".into(),
                    End::Unstarted(error) => format!("was not started: {error}"),
                };
                (text, Duration::from_millis(*lasted))
            }
            None => ("was killed with its keeper".into(), Duration::ZERO),
        }
    }

    fn succeeded(&self) -> bool {
        matches!(&self.kept.ended, Some(Ended { how: End::Status(0), .. }))
    }
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Start a program; the sliver, too, if it does not run.
    Start(Role),
    /// End the service.
    StopService,
}

/// What follows from a look.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Decision {
    /// To be done now. Once it is, look again.
    pub step: Option<Step>,
    /// When to look again at the latest, if nothing happens.
    pub look_at: Option<Instant>,
    /// Whether the sliver is in use although nothing may be running in it.
    pub holds: bool,
    /// What to tell, of the programs of "the sliver".
    pub news: Vec<(Outcome, String)>,
}

/// What is remembered of a sliver between looks.
#[derive(Debug, Clone, Default)]
pub struct Supervision {
    /// The runs whose ends were judged.
    judged_script: Option<(i32, u64)>,
    judged_service: Option<(i32, u64)>,
    /// In a row, and when the next start is due.
    failures: u32,
    retry_at: Option<Instant>,
}

impl Supervision {
    /// Looks at a sliver. `jitter`, about 1, is what a wait is multiplied by.
    pub fn look(&mut self, wish: &Wish, seen: &Seen, now: Instant, jitter: f64) -> Decision {
        let mut decision = Decision::default();
        if wish.suspended {
            return decision;
        }
        self.judge_script(seen, &mut decision);
        let outdated = |run: &&Run| run.goes_on() && wish.service.is_none_or(|(mark, _)| mark != run.kept.mark);
        if seen.service.as_ref().filter(outdated).is_some() {
            decision.step = Some(Step::StopService);
            return decision;
        }
        // A service finds the sliver as its initscript leaves it.
        if seen.initscript.as_ref().is_some_and(Run::goes_on) {
            decision.holds = true;
            return decision;
        }
        if self.script_is_due(wish, seen) {
            decision.step = Some(Step::Start(Role::Initscript));
            return decision;
        }
        let Some((mark, restart)) = wish.service else {
            self.failures = 0;
            return decision;
        };
        match seen.service.as_ref().filter(|run| run.kept.mark == mark) {
            // Its keeper has to go first.
            Some(run) if run.alive => decision.holds = true,
            Some(run) => self.follow_end(run, restart, now, jitter, &mut decision),
            None => {
                self.failures = 0;
                (decision.holds, decision.step) = (true, Some(Step::Start(Role::Service)));
            }
        }
        if decision.step.is_some() && wish.initscript.is_some() && !seen.running {
            // Starting the service would start the sliver.
            decision.step = Some(Step::Start(Role::Initscript));
        }
        decision
    }

    /// Whether the initscript is to be run: at the sliver's start, whoever starts it, and to start it for one that never was.
    fn script_is_due(&self, wish: &Wish, seen: &Seen) -> bool {
        let Some(mark) = wish.initscript else { return false };
        match seen.running {
            true => !seen.script_ran,
            false => seen.initscript.as_ref().is_none_or(|run| run.kept.mark != mark),
        }
    }

    fn judge_script(&mut self, seen: &Seen, decision: &mut Decision) {
        let Some(run) = seen.initscript.as_ref().filter(|run| !run.goes_on()) else { return };
        if self.judged_script.replace(run.id()) != Some(run.id()) && !run.succeeded() {
            decision.news.push((Outcome::Failed, format!("the initscript {}", run.end().0)));
        }
    }

    /// What follows the end of a service that is still wanted.
    fn follow_end(&mut self, run: &Run, restart: Restart, now: Instant, jitter: f64, decision: &mut Decision) {
        let (end, lasted) = run.end();
        let again = match restart {
            Restart::Always => true,
            Restart::OnFailure => !run.succeeded(),
            Restart::No => false,
        };
        if self.judged_service.replace(run.id()) != Some(run.id()) {
            self.failures = if lasted >= SETTLED { 1 } else { self.failures + 1 };
            let wait = backoff(self.failures).mul_f64(jitter);
            self.retry_at = Some(now + wait);
            let outcome = if run.succeeded() { Outcome::Ok } else { Outcome::Failed };
            // A service that fails for ever is told of less and less.
            if !again {
                decision.news.push((outcome, format!("the service {end}")));
            } else if self.failures.is_power_of_two() {
                let times =
                    if self.failures == 1 { String::new() } else { format!(", {} times in a row", self.failures) };
                let message = format!("the service {end}{times}; again in {:.0} s", wait.as_secs_f64());
                decision.news.push((outcome, message));
            }
        }
        if again {
            decision.holds = true;
            match self.retry_at.filter(|at| *at > now) {
                Some(at) => decision.look_at = Some(at),
                None => decision.step = Some(Step::Start(Role::Service)),
            }
        }
    }
}

fn backoff(failures: u32) -> Duration {
    FIRST_WAIT.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LAST_WAIT)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(mark: u64, began: u64, alive: bool, ended: Option<(End, u64)>) -> Option<Run> {
        let ended = ended.map(|(how, seconds)| Ended { how, lasted: seconds * 1000 });
        Some(Run { kept: Kept { mark, keeper: 7, began, ended, stop_signal: 15 }, alive })
    }

    fn service(restart: Restart) -> Wish {
        Wish { service: Some((1, restart)), ..Wish::default() }
    }

    fn up() -> Seen {
        Seen { running: true, ..Seen::default() }
    }

    #[test]
    fn steps() {
        let check = |wish: &Wish, seen: &Seen, step, holds| {
            let decision = Supervision::default().look(wish, seen, Instant::now(), 1.0);
            assert_eq!((decision.step, decision.holds), (step, holds), "{wish:?} {seen:?}");
        };
        let [script, program] = [Role::Initscript, Role::Service].map(|role| Some(Step::Start(role)));
        let always = service(Restart::Always);
        check(&Wish::default(), &Seen::default(), None, false);
        check(&always, &Seen::default(), program, true);
        check(&always, &Seen { service: run(1, 1, true, None), ..up() }, None, true);
        // Another service than before, and none any more.
        check(&always, &Seen { service: run(2, 1, true, None), ..up() }, Some(Step::StopService), false);
        check(&always, &Seen { service: run(2, 1, false, Some((End::Status(0), 1))), ..up() }, program, true);
        check(&Wish::default(), &Seen { service: run(1, 1, true, None), ..up() }, Some(Step::StopService), false);
        // It stands still as it is.
        let suspended = Wish { suspended: true, ..always };
        check(&suspended, &Seen::default(), None, false);
        check(&suspended, &Seen { service: run(2, 1, true, None), ..up() }, None, false);
        // After the node manager: its keeper and it are gone; it has ended and its keeper is about to.
        let restart_no = service(Restart::No);
        check(&restart_no, &Seen { service: run(1, 1, false, None), ..up() }, None, false);
        check(&always, &Seen { service: run(1, 1, true, Some((End::Status(0), 1))), ..up() }, None, true);

        let both = Wish { initscript: Some(5), ..always };
        check(&both, &Seen::default(), script, false);
        check(&both, &up(), script, false);
        let during = Seen { script_ran: true, initscript: run(5, 1, true, None), ..up() };
        check(&both, &during, None, true);
        let ok = Some((End::Status(0), 1));
        for ended in [ok.clone(), Some((End::Status(1), 1)), Some((End::Late, 300)), None] {
            check(&both, &Seen { initscript: run(5, 1, false, ended), ..during.clone() }, program, true);
        }
        // What it left in the background is no reason to wait.
        check(&both, &Seen { initscript: run(5, 1, true, ok.clone()), ..during.clone() }, program, true);
        // Somebody logged in after the sliver had been stopped.
        let alone = Wish { service: None, ..both };
        check(
            &alone,
            &Seen { running: true, initscript: run(5, 1, false, ok.clone()), ..Seen::default() },
            script,
            false,
        );
        check(&alone, &Seen { initscript: run(5, 1, false, ok.clone()), ..Seen::default() }, None, false);
        // Another script is for the next start.
        check(&alone, &Seen { initscript: run(4, 1, false, ok.clone()), ..during }, None, false);
        check(&alone, &Seen { initscript: run(4, 1, false, ok), ..Seen::default() }, script, false);
    }

    /// What follows one end after the other, each after so many seconds of running.
    fn ends(restart: Restart, ends: &[(Option<End>, u64)]) -> Vec<String> {
        let mut supervision = Supervision::default();
        let mut now = Instant::now();
        let mut said = Vec::new();
        for (number, (how, seconds)) in ends.iter().enumerate() {
            let ended = how.clone().map(|how| (how, *seconds));
            let seen = Seen { service: run(1, number as u64, false, ended), ..up() };
            let first = supervision.look(&service(restart), &seen, now, 1.0);
            said.extend(first.news.iter().map(|(outcome, message)| format!("{outcome:?} {message}")));
            let Some(at) = first.look_at else {
                assert!(!first.holds && first.step.is_none());
                said.push("over".into());
                continue;
            };
            said.push(format!("{} s", at.duration_since(now).as_secs()));
            // Nothing more happens, and nothing is told twice, until then.
            let early = supervision.look(&service(restart), &seen, now, 1.0);
            assert_eq!(early, Decision { look_at: Some(at), holds: true, ..Decision::default() });
            now = at;
            let due = supervision.look(&service(restart), &seen, now, 1.0);
            assert_eq!(due, Decision { step: Some(Step::Start(Role::Service)), holds: true, ..Decision::default() });
        }
        said
    }

    #[test]
    fn a_service_that_ends_follows_its_policy() {
        let status = |status| Some(End::Status(status));
        let check = |restart, list: &[(Option<End>, u64)], expect: &[&str]| assert_eq!(ends(restart, list), expect);
        check(
            Restart::Always,
            &[(status(0), 1), (status(1), 1), (status(137), 1), (None, 1), (status(1), 60), (status(1), 0)],
            &[
                "Ok the service ended with status 0; again in 1 s",
                "1 s",
                "Failed the service ended with status 1, 2 times in a row; again in 2 s",
                "2 s",
                "4 s",
                "Failed the service was killed with its keeper, 4 times in a row; again in 8 s",
                "8 s",
                "Failed the service ended with status 1; again in 1 s",
                "1 s",
                "Failed the service ended with status 1, 2 times in a row; again in 2 s",
                "2 s",
            ],
        );
        let unstarted = Some(End::Unstarted("no".into()));
        check(
            Restart::OnFailure,
            &[(unstarted, 0), (status(0), 1)],
            &[
                "Failed the service was not started: no; again in 1 s",
                "1 s",
                "Ok the service ended with status 0",
                "over",
            ],
        );
        check(Restart::No, &[(status(143), 5)], &["Failed the service was killed by signal 15", "over"]);
        let many = ends(Restart::Always, &vec![(status(1), 0); 100]);
        assert_eq!(many.last().map(String::as_str), Some("120 s"));
        assert_eq!(many.len(), 100 + 7, "told too often");
    }

    #[test]
    fn a_failed_initscript_is_told_once() {
        let mut supervision = Supervision::default();
        let wish = Wish { initscript: Some(5), ..Wish::default() };
        let seen = |began, ended| Seen { script_ran: true, initscript: run(5, began, false, Some((ended, 1))), ..up() };
        let mut news = |seen| {
            let news = supervision.look(&wish, &seen, Instant::now(), 1.0).news;
            news.into_iter().map(|(_, message)| message).collect::<Vec<_>>()
        };
        assert_eq!(news(seen(1, End::Status(3))), ["the initscript ended with status 3"]);
        assert!(news(seen(1, End::Status(3))).is_empty());
        assert_eq!(news(seen(2, End::Late)), ["the initscript took too long and was ended"]);
        assert!(news(seen(3, End::Status(0))).is_empty());
    }

    /// What can happen to a sliver.
    #[derive(Debug, Clone)]
    enum Event {
        ServiceEnds(i32),
        ScriptEnds(i32),
        KeeperDies,
        SliverStops,
        Login,
        ManagerDies,
        Suspend(bool),
        Another(u64),
        Time(u64),
    }

    fn any_event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (0..3).prop_map(Event::ServiceEnds),
            (0..3).prop_map(Event::ScriptEnds),
            Just(Event::KeeperDies),
            Just(Event::SliverStops),
            Just(Event::Login),
            Just(Event::ManagerDies),
            any::<bool>().prop_map(Event::Suspend),
            (1..3_u64).prop_map(Event::Another),
            (1..200_u64).prop_map(Event::Time),
        ]
    }

    /// A sliver whose programs do what events say.
    struct Simulator {
        seen: Seen,
        wish: Wish,
        began: u64,
        now: Instant,
        starts: u32,
    }

    impl Simulator {
        fn new(initscript: bool) -> Self {
            let wish = Wish { initscript: initscript.then_some(5), ..service(Restart::Always) };
            Self { seen: Seen::default(), wish, began: 0, now: Instant::now(), starts: 0 }
        }

        fn end(run: &mut Option<Run>, status: Option<i32>) {
            if let Some(run) = run.as_mut().filter(|run| run.alive) {
                run.alive = false;
                run.kept.ended = run.kept.ended.take().or(status.map(|s| Ended { how: End::Status(s), lasted: 1 }));
            }
        }

        fn happen(&mut self, event: &Event, supervision: &mut Supervision) {
            match event {
                Event::ServiceEnds(status) => Self::end(&mut self.seen.service, Some(*status)),
                Event::ScriptEnds(status) => Self::end(&mut self.seen.initscript, Some(*status)),
                Event::KeeperDies => Self::end(&mut self.seen.service, None),
                Event::SliverStops => {
                    (self.seen.running, self.seen.script_ran) = (false, false);
                    Self::end(&mut self.seen.service, None);
                    Self::end(&mut self.seen.initscript, None);
                }
                Event::Login => self.seen.running |= !self.wish.suspended,
                Event::ManagerDies => *supervision = Supervision::default(),
                Event::Suspend(suspended) => self.wish.suspended = *suspended,
                Event::Another(mark) => self.wish.service = Some((*mark, Restart::Always)),
                Event::Time(seconds) => self.now += Duration::from_secs(*seconds),
            }
        }

        fn carry_out(&mut self, step: Step) {
            assert!(!self.wish.suspended, "a suspended sliver is left alone");
            self.began += 1;
            match step {
                Step::StopService => {
                    assert!(self.seen.service.as_ref().is_some_and(|run| run.alive), "nothing to stop");
                    Self::end(&mut self.seen.service, Some(0));
                }
                Step::Start(Role::Initscript) => {
                    assert!(!self.seen.initscript.as_ref().is_some_and(|run| run.alive), "two initscripts");
                    self.seen.running = true;
                    assert!(!std::mem::replace(&mut self.seen.script_ran, true), "run twice since the start");
                    self.seen.initscript = run(self.wish.initscript.unwrap(), self.began, true, None);
                }
                Step::Start(Role::Service) => {
                    assert!(!self.seen.service.as_ref().is_some_and(|run| run.alive), "two services");
                    assert!(!self.seen.initscript.as_ref().is_some_and(Run::goes_on), "before the initscript's end");
                    assert!(self.wish.initscript.is_none() || self.seen.script_ran, "before the initscript");
                    self.starts += 1;
                    self.seen.running = true;
                    self.seen.service = run(self.wish.service.unwrap().0, self.began, true, None);
                }
            }
        }

        /// Looks until there is nothing left to do now.
        fn settle(&mut self, supervision: &mut Supervision) -> Decision {
            for _ in 0..10 {
                let decision = supervision.look(&self.wish, &self.seen, self.now, 1.0);
                match decision.step {
                    Some(step) => self.carry_out(step),
                    None => return decision,
                }
            }
            panic!("it never settles: {:?}", self.seen)
        }
    }

    proptest! {
        #[test]
        fn whatever_happens_it_ends_with_one_service(
            initscript in any::<bool>(),
            events in prop::collection::vec(any_event(), 0..40),
        ) {
            let mut simulator = Simulator::new(initscript);
            let mut supervision = Supervision::default();
            for event in &events {
                simulator.happen(event, &mut supervision);
                simulator.settle(&mut supervision);
            }
            simulator.happen(&Event::Suspend(false), &mut supervision);
            // Every script ends, and every wait.
            for _ in 0..3 {
                let decision = simulator.settle(&mut supervision);
                simulator.happen(&Event::ScriptEnds(0), &mut supervision);
                simulator.now = decision.look_at.unwrap_or(simulator.now);
            }
            let decision = simulator.settle(&mut supervision);
            let service = simulator.seen.service.clone().unwrap();
            prop_assert!(service.alive && service.kept.mark == simulator.wish.service.unwrap().0);
            prop_assert!(decision.holds && simulator.seen.running);
            prop_assert!(!initscript || simulator.seen.script_ran);
            // No faster than the waits allow, unless somebody asked for another or the node manager forgot.
            let excuses = events.iter().filter(|e| matches!(e, Event::ManagerDies | Event::Another(_) | Event::Time(_)));
            if excuses.count() == 0 {
                prop_assert!(simulator.starts <= 2, "{} starts", simulator.starts);
            }
        }
    }
}
