//! Makes the slivers there are into the slivers that are wanted, one step at a time.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Result;
use orrery_protocol::{Admin, Life, Outcome, SliceName, SliverSpec, SliverState, SliverStatus, WantedState};

use crate::{
    accounts::{Account, AccountTable},
    admission::{Capacity, refusals},
    plan::{Action, Existing, plan},
};

/// What can be done with slivers on a machine. Implemented by Linux, and by a simulator in tests.
pub trait Host {
    /// What there is for all slivers together.
    fn capacity(&self) -> Capacity;

    /// All slivers.
    ///
    /// # Errors
    /// When they cannot be listed.
    fn list(&self) -> Result<Vec<Existing>>;

    /// Makes a sliver, importing its image first if need be.
    ///
    /// # Errors
    /// When it could not be made; nothing half-made stays.
    fn create(&self, spec: &SliverSpec) -> Result<()>;

    /// Changes a sliver's limits, and what runs in it without a login.
    ///
    /// # Errors
    /// When they could not be changed.
    fn update(&self, spec: &SliverSpec) -> Result<()>;

    /// Has a sliver stand still for this reason, or go on.
    ///
    /// # Errors
    /// When it does not.
    fn set_suspended(&self, slice: &SliceName, reason: Option<&str>) -> Result<()>;

    /// Ends all that runs in a sliver, has nothing run in it any more for this reason, and remembers the number of the restart that this is.
    ///
    /// # Errors
    /// When it could not be ended; neither is remembered then.
    fn stop(&self, slice: &SliceName, reason: &str, number: u64) -> Result<()>;

    /// Makes what a sliver sees and may do of the node what `admin` says, ending what runs in it.
    ///
    /// # Errors
    /// When that could not be done; what it had before it has still.
    fn set_admin(&self, slice: &SliceName, admin: &Admin) -> Result<()>;

    /// Discards a sliver's data, importing its image first if need be, and remembers the number of this reset.
    ///
    /// # Errors
    /// When that could not be done; the number is not remembered then.
    fn reset(&self, spec: &SliverSpec) -> Result<()>;

    /// Stops a sliver, and remembers the number of this restart.
    ///
    /// # Errors
    /// As for [`Host::reset`].
    fn restart(&self, slice: &SliceName, number: u64) -> Result<()>;

    /// Removes a sliver and its data.
    ///
    /// # Errors
    /// When something of it is left.
    fn destroy(&self, slice: &SliceName) -> Result<()>;

    /// Tells whoever listens what became of a step.
    fn tell(&self, outcome: Outcome, message: String, took: Duration);
}

/// How long to leave a failed step alone: doubled with every failure, within these bounds.
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LAST_RETRY: Duration = Duration::from_secs(300);

/// A step that failed.
#[derive(Debug)]
struct Failure {
    /// What failed: a changed wish is tried at once.
    action: Action,
    attempts: u32,
    retry_at: Instant,
    message: String,
}

/// Carries plans out, and remembers what failed.
#[derive(Debug)]
pub struct Reconciler<H> {
    host: H,
    failures: BTreeMap<SliceName, Failure>,
}

/// What a call of [`Reconciler::step`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It carried out a step; there may be more.
    Worked,
    /// There is nothing to do before this moment, or before the wanted state changes.
    Idle(Option<Instant>),
}

impl<H: Host> Reconciler<H> {
    /// Nothing has failed yet.
    pub fn new(host: H) -> Self {
        Self { host, failures: BTreeMap::new() }
    }

    /// Carries out the first step that is due. A step's failure is that sliver's alone: the others go on.
    pub fn step(&mut self, wanted: &WantedState, now: Instant) -> Progress {
        let existing = match self.host.list() {
            Ok(existing) => existing,
            Err(e) => {
                self.host.tell(Outcome::Failed, format!("listing slivers: {e:#}"), Duration::ZERO);
                return Progress::Idle(Some(now + FIRST_RETRY));
            }
        };
        let actions = plan(wanted, &existing, &self.host.capacity());
        self.failures.retain(|_, failure| actions.contains(&failure.action));
        let due = |action: &Action| self.failures.get(action.slice()).is_none_or(|failure| failure.retry_at <= now);
        match actions.iter().find(|action| due(action)) {
            Some(action) => {
                self.carry_out(action, now);
                Progress::Worked
            }
            None => Progress::Idle(self.failures.values().map(|failure| failure.retry_at).min()),
        }
    }

    /// How every wanted sliver is.
    pub fn status(&self, wanted: &WantedState) -> Vec<SliverStatus> {
        let existing = self.host.list().unwrap_or_default();
        let capacity = self.host.capacity();
        let refused = refusals(wanted, &existing, &capacity);
        let actions = plan(wanted, &existing, &capacity);
        let existing: BTreeMap<_, _> = existing.into_iter().map(|sliver| (sliver.slice.clone(), sliver)).collect();
        let status = |spec: &SliverSpec| {
            let failure = self.failures.get(&spec.slice).map(|failure| failure.message.clone());
            let refused = refused.get(&spec.slice).map(|refusal| refusal.to_string());
            let sliver = existing.get(&spec.slice).filter(|sliver| !spec.life.is_of_another(&sliver.life));
            let state = match (sliver, &failure, &refused) {
                (Some(sliver), ..) if sliver.life.suspended.is_some() => SliverState::Suspended,
                (Some(_), ..) => SliverState::Ready,
                (None, None, None) => SliverState::Creating,
                (None, ..) => SliverState::Failed,
            };
            let image = sliver.map_or(spec.image.content.sha256, |sliver| sliver.image);
            let settled = refused.is_none() && actions.iter().all(|action| *action.slice() != spec.slice);
            let SliverSpec { slice, version, life: Life { birth, .. }, .. } = spec;
            let (slice, error) = (slice.clone(), failure.or(refused));
            SliverStatus { slice, birth: *birth, version: *version, settled, state, image, error }
        };
        wanted.slivers.iter().map(status).collect()
    }

    fn carry_out(&mut self, action: &Action, now: Instant) {
        let started = Instant::now();
        let (result, what) = match action {
            Action::Destroy(slice) => (self.host.destroy(slice), "destroyed"),
            Action::Suspend(slice, reason) => (self.host.set_suspended(slice, Some(reason)), "suspended"),
            Action::Stop(slice, reason, number) => (self.host.stop(slice, reason, *number), "stopped"),
            Action::Resume(slice) => (self.host.set_suspended(slice, None), "resumed"),
            Action::SetAdmin(slice, admin) => (self.host.set_admin(slice, admin), "given other rights over the node"),
            Action::Reset(spec) => (self.host.reset(spec), "reset"),
            Action::Restart(slice, number) => (self.host.restart(slice, *number), "restarted"),
            Action::Update(spec) => (self.host.update(spec), "given other limits or programs"),
            Action::Create(spec) => (self.host.create(spec), "created"),
        };
        let slice = action.slice();
        match result {
            Ok(()) => {
                self.failures.remove(slice);
                self.host.tell(Outcome::Ok, format!("{slice} {what}"), started.elapsed());
            }
            Err(e) => {
                let attempts = self.failures.get(slice).map_or(0, |failure| failure.attempts) + 1;
                let message = format!("{e:#}");
                self.host.tell(Outcome::Failed, format!("{slice} could not be {what}: {message}"), started.elapsed());
                let retry_at = now + backoff(attempts);
                self.failures.insert(slice.clone(), Failure { action: action.clone(), attempts, retry_at, message });
            }
        }
    }
}

/// The accounts that lead into slivers of this status. A suspension keeps people out at once, not only when it is in force.
pub fn accounts(wanted: &WantedState, status: &[SliverStatus]) -> AccountTable {
    let status: BTreeMap<_, _> = status.iter().map(|status| (&status.slice, status)).collect();
    let account = |spec: &SliverSpec| {
        // It may be of a sliver that is about to be destroyed.
        let status = status.get(&spec.slice).filter(|status| status.birth == spec.life.birth);
        let state = status.map_or(SliverState::Creating, |status| status.state);
        let (state, error) = match (&spec.life.suspended, state) {
            (Some(reason), _) => (SliverState::Suspended, Some(reason.clone())),
            (None, SliverState::Suspended) => (state, Some("it is about to be resumed; try again in a moment".into())),
            (None, _) => (state, status.and_then(|status| status.error.clone())),
        };
        let account = Account { slice: spec.slice.clone(), keys: spec.keys.clone(), state, error };
        (spec.slice.login(), account)
    };
    AccountTable { accounts: wanted.slivers.iter().map(account).collect() }
}

fn backoff(attempts: u32) -> Duration {
    FIRST_RETRY.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(LAST_RETRY)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use anyhow::bail;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        admission::tests::PLENTY,
        plan::tests::{existing, spec},
    };

    /// A machine on which every step fails as often as told.
    #[derive(Default)]
    struct Simulator {
        slivers: RefCell<BTreeMap<SliceName, Existing>>,
        faults: RefCell<BTreeMap<SliceName, u32>>,
        said: RefCell<Vec<String>>,
    }

    impl Simulator {
        fn fault(&self, slice: &SliceName) -> Result<()> {
            match self.faults.borrow_mut().get_mut(slice) {
                Some(left @ 1..) => {
                    *left -= 1;
                    bail!("no luck")
                }
                _ => Ok(()),
            }
        }
    }

    impl Host for &Simulator {
        fn capacity(&self) -> Capacity {
            PLENTY
        }

        fn list(&self) -> Result<Vec<Existing>> {
            Ok(self.slivers.borrow().values().cloned().collect())
        }

        fn create(&self, spec: &SliverSpec) -> Result<()> {
            self.fault(&spec.slice)?;
            self.slivers.borrow_mut().insert(spec.slice.clone(), existing(spec));
            Ok(())
        }

        fn update(&self, spec: &SliverSpec) -> Result<()> {
            self.fault(&spec.slice)?;
            let mut slivers = self.slivers.borrow_mut();
            let sliver = slivers.get_mut(&spec.slice).unwrap();
            (sliver.rspec, sliver.startup) = (spec.rspec, spec.startup.clone());
            Ok(())
        }

        fn set_suspended(&self, slice: &SliceName, reason: Option<&str>) -> Result<()> {
            self.fault(slice)?;
            self.slivers.borrow_mut().get_mut(slice).unwrap().life.suspended = reason.map(str::to_owned);
            Ok(())
        }

        fn stop(&self, slice: &SliceName, reason: &str, number: u64) -> Result<()> {
            self.set_suspended(slice, Some(reason))?;
            self.restart(slice, number)
        }

        fn set_admin(&self, slice: &SliceName, admin: &Admin) -> Result<()> {
            self.fault(slice)?;
            self.slivers.borrow_mut().get_mut(slice).unwrap().admin = admin.clone();
            Ok(())
        }

        fn reset(&self, spec: &SliverSpec) -> Result<()> {
            self.fault(&spec.slice)?;
            self.slivers.borrow_mut().get_mut(&spec.slice).unwrap().life.reset = spec.life.reset;
            Ok(())
        }

        fn restart(&self, slice: &SliceName, number: u64) -> Result<()> {
            self.fault(slice)?;
            self.slivers.borrow_mut().get_mut(slice).unwrap().life.restart = number;
            Ok(())
        }

        fn destroy(&self, slice: &SliceName) -> Result<()> {
            self.fault(slice)?;
            self.slivers.borrow_mut().remove(slice);
            Ok(())
        }

        fn tell(&self, _: Outcome, message: String, _: Duration) {
            self.said.borrow_mut().push(message);
        }
    }

    fn wanted(slivers: &[SliverSpec]) -> WantedState {
        WantedState { slivers: slivers.to_vec(), reboot: None }
    }

    #[test]
    fn one_slivers_failure_is_not_the_others() {
        let simulator = Simulator::default();
        let (a, b) = (spec("a", 1, 100), spec("b", 1, 100));
        simulator.faults.borrow_mut().insert(a.slice.clone(), 2);
        let mut reconciler = Reconciler::new(&simulator);
        let goal = wanted(&[a, b]);
        let states = |reconciler: &Reconciler<&Simulator>| -> Vec<_> {
            reconciler.status(&goal).into_iter().map(|s| (s.state, s.error)).collect()
        };
        let start = Instant::now();
        assert_eq!(states(&reconciler), [(SliverState::Creating, None), (SliverState::Creating, None)]);
        assert_eq!(reconciler.step(&goal, start), Progress::Worked);
        assert_eq!(reconciler.step(&goal, start), Progress::Worked);
        let failed = (SliverState::Failed, Some("no luck".to_owned()));
        assert_eq!(states(&reconciler), [failed.clone(), (SliverState::Ready, None)]);
        // It is left alone for a while, and for longer after the second time.
        let retry = start + FIRST_RETRY;
        assert_eq!(reconciler.step(&goal, start), Progress::Idle(Some(retry)));
        assert_eq!(reconciler.step(&goal, retry), Progress::Worked);
        assert_eq!(reconciler.step(&goal, retry), Progress::Idle(Some(retry + 2 * FIRST_RETRY)));
        assert_eq!(reconciler.step(&goal, retry + 2 * FIRST_RETRY), Progress::Worked);
        assert_eq!(states(&reconciler), [(SliverState::Ready, None), (SliverState::Ready, None)]);
        assert_eq!(reconciler.step(&goal, retry), Progress::Idle(None));
        assert_eq!(
            *simulator.said.borrow(),
            [
                "demo/a could not be created: no luck",
                "demo/b created",
                "demo/a could not be created: no luck",
                "demo/a created"
            ]
        );
    }

    #[test]
    fn a_changed_wish_is_tried_at_once() {
        let simulator = Simulator::default();
        let a = spec("a", 1, 100);
        simulator.faults.borrow_mut().insert(a.slice.clone(), 1);
        let mut reconciler = Reconciler::new(&simulator);
        let now = Instant::now();
        assert_eq!(reconciler.step(&wanted(&[a]), now), Progress::Worked);
        assert_eq!(reconciler.step(&wanted(&[spec("a", 2, 100)]), now), Progress::Worked);
        assert_eq!(simulator.slivers.borrow().len(), 1);
    }

    #[test]
    fn limits_that_cannot_be_are_told() {
        let simulator = Simulator::default();
        let goal = wanted(&[spec("a", 1, 0)]);
        let mut reconciler = Reconciler::new(&simulator);
        assert_eq!(reconciler.step(&goal, Instant::now()), Progress::Idle(None));
        let status = reconciler.status(&goal);
        assert_eq!(status[0].state, SliverState::Failed);
        assert_eq!(status[0].error.as_deref(), Some("`cpu_share` must be 1 to 10000"));
        assert_eq!(accounts(&goal, &status).accounts["demo_a"].state, SliverState::Failed);
    }

    #[test]
    fn whoever_does_not_get_more_is_told_and_keeps_what_it_has() {
        let simulator = Simulator::default();
        let with = |name: &str, cpu_pct| {
            let mut spec = spec(name, 1, 100);
            spec.rspec.cpu_pct = cpu_pct;
            spec
        };
        let (a, b) = (with("a", 50), with("b", 30));
        for spec in [&a, &b] {
            simulator.slivers.borrow_mut().insert(spec.slice.clone(), existing(spec));
        }
        let goal = wanted(&[with("a", 51), b]);
        let mut reconciler = Reconciler::new(&simulator);
        assert_eq!(reconciler.step(&goal, Instant::now()), Progress::Idle(None));
        let status = reconciler.status(&goal);
        assert_eq!((status[0].state, status[1].state), (SliverState::Ready, SliverState::Ready));
        assert!(status[0].error.as_deref().is_some_and(|e| e.contains("has 0 % left")), "{status:?}");
        assert_eq!(simulator.slivers.borrow()[&a.slice].rspec.cpu_pct, 50);
    }

    #[test]
    fn nobody_gets_into_a_sliver_of_those_before() {
        let simulator = Simulator::default();
        let born = |birth| {
            let mut spec = spec("a", 1, 100);
            spec.life.birth = birth;
            spec
        };
        simulator.slivers.borrow_mut().insert(born(1).slice, existing(&born(1)));
        let mut reconciler = Reconciler::new(&simulator);
        let (before, after) = (wanted(&[born(1)]), wanted(&[born(2)]));
        let (now, old) = (Instant::now(), reconciler.status(&before));
        let state = |status: &[SliverStatus]| accounts(&after, status).accounts["demo_a"].state;
        assert_eq!((old[0].state, old[0].settled), (SliverState::Ready, true));
        // What was last known of the sliver counts no more than what is now.
        assert_eq!(state(&old), SliverState::Creating);
        assert_eq!(state(&reconciler.status(&after)), SliverState::Creating);
        assert_eq!(reconciler.step(&after, now), Progress::Worked);
        assert_eq!(state(&reconciler.status(&after)), SliverState::Creating);
        assert_eq!(reconciler.step(&after, now), Progress::Worked);
        assert_eq!(
            (state(&reconciler.status(&after)), reconciler.status(&after)[0].settled),
            (SliverState::Ready, true)
        );
        assert_eq!(*simulator.said.borrow(), ["demo/a destroyed", "demo/a created"]);
    }

    #[test]
    fn a_suspension_keeps_people_out_until_it_is_over() {
        let simulator = Simulator::default();
        let a = spec("a", 1, 100);
        simulator.slivers.borrow_mut().insert(a.slice.clone(), existing(&a));
        let mut reconciler = Reconciler::new(&simulator);
        let now = Instant::now();
        let said = |reconciler: &Reconciler<&Simulator>, goal: &WantedState| {
            let status = reconciler.status(goal);
            let account = accounts(goal, &status).accounts["demo_a"].clone();
            (status[0].state, account.state, account.error)
        };
        let mut suspended = a.clone();
        suspended.life.suspended = Some("abuse".into());
        let (suspended, running) = (wanted(&[suspended]), wanted(&[a]));
        let why = |text: &str| Some(text.to_owned());
        assert_eq!(said(&reconciler, &suspended), (SliverState::Ready, SliverState::Suspended, why("abuse")));
        assert_eq!(reconciler.step(&suspended, now), Progress::Worked);
        assert_eq!(reconciler.step(&suspended, now), Progress::Idle(None));
        assert_eq!(said(&reconciler, &suspended), (SliverState::Suspended, SliverState::Suspended, why("abuse")));
        let soon = why("it is about to be resumed; try again in a moment");
        assert_eq!(said(&reconciler, &running), (SliverState::Suspended, SliverState::Suspended, soon));
        assert_eq!(reconciler.step(&running, now), Progress::Worked);
        assert_eq!(said(&reconciler, &running), (SliverState::Ready, SliverState::Ready, None));
    }

    proptest! {
        #[test]
        fn it_ends_at_the_goal_whatever_fails(
            faults in prop::collection::vec((0..4_usize, 0..4_u32), 0..6),
            before in prop::sample::subsequence(vec!["a", "b", "c", "d"], 0..=4),
            after in prop::sample::subsequence(vec!["a", "b", "c", "d"], 0..=4),
        ) {
            let simulator = Simulator::default();
            let names = ["a", "b", "c", "d"];
            for (index, count) in faults {
                simulator.faults.borrow_mut().insert(spec(names[index], 1, 1).slice, count);
            }
            for name in before {
                let spec = spec(name, 1, 1);
                simulator.slivers.borrow_mut().insert(spec.slice.clone(), existing(&spec));
            }
            let goal = wanted(&after.iter().map(|name| spec(name, 1, 2)).collect::<Vec<_>>());
            let mut reconciler = Reconciler::new(&simulator);
            let mut now = Instant::now();
            for _ in 0..100 {
                match reconciler.step(&goal, now) {
                    Progress::Worked => (),
                    Progress::Idle(Some(at)) => now = at,
                    Progress::Idle(None) => break,
                }
            }
            prop_assert_eq!(reconciler.step(&goal, now), Progress::Idle(None));
            let there: Vec<_> = simulator.slivers.borrow().keys().map(|slice| slice.name().to_owned()).collect();
            prop_assert_eq!(there, after);
            prop_assert!(reconciler.status(&goal).iter().all(|s| s.state == SliverState::Ready && s.error.is_none()));
        }
    }
}
