//! A node's life over many boots, in memory: a disk with two slots, a trial, a kernel that may refuse, releases that panic,
//! hang or never become healthy, and stages that fail, crash or hang at random.
//!
//! What the stages do to the disk is modelled after `orrery-stage` and `orrery-nodeos`; the state machines and their
//! recovery are the real ones.

use std::{collections::BTreeMap, time::Duration};

use orrery_init_api::{FailureClass, HEALTH_PATIENCE_S, Role, Stage, StageResult};
use proptest::prelude::*;

use crate::{
    boot,
    machine::{Finished, Machine, Transition},
    node,
    recover::{SHORTEST, deadline},
};

/// What a release in a slot does when it is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Release {
    Good,
    Panics,
    Hangs,
    Unhealthy,
    /// Not what was signed: it must never be started.
    Damaged,
}

/// What happens to a stage's process instead of its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Fails(FailureClass),
    Crashes,
    Hangs,
    /// It says that it succeeded and has not: the kernel holds nothing.
    Lies,
}

const BOOTS: u32 = 2;

#[derive(Debug)]
struct Life {
    role: Role,
    faults: BTreeMap<Stage, Vec<Fault>>,
    now: Duration,
    word: &'static str,
    candidate: Release,
    slots: [Release; 2],
    active: usize,
    trial: Option<u32>,
    failed: bool,
    unconfirmed: u32,
    attempts: BTreeMap<Stage, u32>,
    /// Whether certificates and scripts look valid: the clock is right from the start, or was set.
    clock_right: bool,
    /// Whether the script in force was verified since it was fetched.
    verified: bool,
    loaded: Option<usize>,
    candidate_starts: u32,
    confirmed: bool,
    stages_since_wait: u32,
    most_since_wait: u32,
}

impl Life {
    fn inactive(&self) -> usize {
        1 - self.active
    }

    /// What the stage's own work would be.
    fn work(&mut self, stage: Stage) -> StageResult {
        let fail = |class| StageResult::fail(class, "as the world is");
        match stage {
            Stage::Time => {
                self.clock_right = true;
                StageResult::ok("sntp")
            }
            Stage::Contact if !self.clock_right => fail(FailureClass::Tls),
            Stage::Contact => {
                self.verified = false;
                StageResult::ok("")
            }
            Stage::Verify => {
                self.verified = true;
                StageResult::ok(format!("{} serial 1", self.word))
            }
            Stage::Upgrade if self.failed => fail(FailureClass::Unhealthy),
            Stage::Upgrade if self.trial.is_some() || self.slots[self.active] == self.candidate => {
                StageResult::ok("current")
            }
            Stage::Upgrade => {
                let slot = self.inactive();
                self.slots[slot] = self.candidate;
                self.trial = Some(BOOTS);
                StageResult::ok("trial")
            }
            Stage::Install | Stage::Repair => {
                self.trial = None;
                self.active = self.inactive();
                self.slots[self.active] = Release::Good;
                StageResult::ok("")
            }
            Stage::Load => self.load(),
            Stage::Health => {
                self.unconfirmed = 0;
                self.confirmed = true;
                if self.trial.take().is_some() {
                    self.active = self.inactive();
                }
                StageResult::ok("")
            }
            _ => StageResult::ok(""),
        }
    }

    fn load(&mut self) -> StageResult {
        assert!(self.verified, "loading under a script that nobody verified");
        let attempt = self.attempts.get(&Stage::Load).copied().unwrap_or(1);
        if attempt <= self.unconfirmed.saturating_sub(5).min(10) {
            return StageResult::fail(FailureClass::Unhealthy, "waiting");
        }
        if let Some(left) = self.trial {
            let slot = self.inactive();
            if left > 0 && self.slots[slot] != Release::Damaged {
                self.trial = Some(left - 1);
                self.unconfirmed += 1;
                self.loaded = Some(slot);
                return StageResult::ok("new slot on trial");
            }
            self.trial = None;
            self.failed = true;
        }
        if self.slots[self.active] == Release::Damaged {
            return StageResult::fail(FailureClass::Tampered, "damaged");
        }
        self.unconfirmed += 1;
        self.loaded = Some(self.active);
        StageResult::ok("old slot")
    }

    /// One start of the machine; whether it came to a node OS that is confirmed.
    fn start(&mut self) -> Result<bool, TestCaseError> {
        self.role = Role::Boot;
        self.loaded = None;
        self.verified = false;
        self.attempts.clear();
        self.stages_since_wait = 0;
        let mut driver = boot::Driver::default();
        let mut at = boot::Boot::start();
        let mut steps = 0;
        let ending = loop {
            steps += 1;
            prop_assert!(steps < 5000, "the medium does not arrive");
            match driver.step(self, at) {
                boot::Step::Next(next) => at = next,
                boot::Step::Ended(ending) => break ending,
            }
        };
        // Firmware, loader and kernel.
        self.now += Duration::from_secs(5);
        let boot::Ending::ChainBoot(_) = ending else { return Ok(false) };
        let Some(slot) = self.loaded else {
            return Err(TestCaseError::fail("a chain-boot into nothing"));
        };
        self.chain_boot(slot)
    }

    fn chain_boot(&mut self, slot: usize) -> Result<bool, TestCaseError> {
        let release = self.slots[slot];
        let on_trial = self.trial.is_some() && slot != self.active;
        self.candidate_starts += u32::from(on_trial);
        prop_assert!(release != Release::Damaged, "started what was not signed");
        prop_assert!(on_trial || release == Release::Good, "a bad release became the active one");
        match release {
            Release::Panics => {
                self.now += Duration::from_secs(10);
                return Ok(false);
            }
            Release::Hangs => {
                self.now += Duration::from_secs(2 * HEALTH_PATIENCE_S);
                return Ok(false);
            }
            Release::Unhealthy => {
                let unhealthy = Fault::Fails(FailureClass::Unhealthy);
                self.faults.entry(Stage::Health).or_default().push(unhealthy);
            }
            Release::Good | Release::Damaged => {}
        }
        self.role = Role::Node;
        self.attempts.clear();
        let mut driver = node::Driver::default();
        let mut at = node::Node::start();
        for _ in 0..2000 {
            match driver.step(self, at) {
                node::Step::Next(next) => at = next,
                node::Step::Ended(node::Ending::Ready) => return Ok(true),
                node::Step::Ended(node::Ending::FirmwareReboot) => return Ok(false),
            }
        }
        Err(TestCaseError::fail("the node OS neither serves nor starts over"))
    }
}

impl Machine for Life {
    fn role(&self) -> Role {
        self.role
    }

    fn now(&self) -> Duration {
        self.now
    }

    fn random(&mut self) -> u32 {
        0
    }

    fn begin(&mut self, stage: Stage, attempt: u32) {
        self.attempts.insert(stage, attempt);
    }

    fn finish(&mut self, stage: Stage) -> Finished {
        self.stages_since_wait += 1;
        self.most_since_wait = self.most_since_wait.max(self.stages_since_wait);
        let mut took = Duration::from_millis(10);
        let result = match self.faults.get_mut(&stage).and_then(Vec::pop) {
            None => self.work(stage),
            Some(Fault::Fails(class)) => StageResult::fail(class, "at random"),
            // A health gate that lies is a bad release that nothing could tell from a good one.
            Some(Fault::Lies) if stage == Stage::Health => StageResult::fail(FailureClass::Crashed, "no result"),
            Some(Fault::Crashes) => StageResult::fail(FailureClass::Crashed, "no result"),
            Some(Fault::Hangs) => {
                took = deadline(stage);
                StageResult::fail(FailureClass::Deadline, "not done")
            }
            Some(Fault::Lies) => StageResult::ok("sing"),
        };
        self.now += took;
        Finished { result, took }
    }

    fn start_service(&mut self, _: Stage) {}

    fn sleep(&mut self, wait: Duration) {
        assert!(wait >= SHORTEST);
        self.now += wait;
        self.stages_since_wait = 0;
    }

    fn console(&mut self, _: &str) {}

    fn event(&mut self, _: Transition) {}

    fn attend_consoles(&mut self) {}

    fn attend(&mut self) {}

    fn open_safe_mode(&mut self, _: &str, _: bool) {}

    fn close_safe_mode(&mut self) {}

    fn kexec_loaded(&self) -> bool {
        self.loaded.is_some()
    }

    fn root_unpacked(&self) -> bool {
        self.loaded.is_some()
    }
}

fn any_fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        3 => prop::sample::select(FailureClass::ALL).prop_map(Fault::Fails),
        1 => Just(Fault::Crashes),
        1 => Just(Fault::Hangs),
        1 => Just(Fault::Lies),
    ]
}

fn any_life() -> impl Strategy<Value = Life> {
    use Release::{Damaged, Good, Hangs, Panics, Unhealthy};
    let faults = prop::collection::vec((prop::sample::select(Stage::ALL), any_fault()), 0..40);
    let word = prop::sample::select(vec!["boot", "upgrade", "install"]);
    let candidate = prop::sample::select(vec![Good, Panics, Hangs, Unhealthy, Damaged]);
    let active = prop::sample::select(vec![Good, Damaged]);
    (faults, word, candidate, active, any::<bool>()).prop_map(|(faults, word, candidate, active, clock_right)| {
        let mut by_stage = BTreeMap::<Stage, Vec<Fault>>::new();
        faults.into_iter().for_each(|(stage, fault)| by_stage.entry(stage).or_default().push(fault));
        Life {
            role: Role::Boot,
            faults: by_stage,
            now: Duration::ZERO,
            word,
            candidate,
            slots: [active, Damaged],
            active: 0,
            trial: None,
            failed: false,
            unconfirmed: 0,
            attempts: BTreeMap::new(),
            clock_right,
            verified: false,
            loaded: None,
            candidate_starts: 0,
            confirmed: false,
            stages_since_wait: 0,
            most_since_wait: 0,
        }
    })
}

proptest! {
    /// Whatever happens, the node ends with a good release that is confirmed, having started nothing unsigned, a bad
    /// release no more often than it may, and never in a tight loop.
    #[test]
    fn every_node_comes_to_a_good_release(mut life in any_life()) {
        let mut starts = 0;
        while !life.start()? {
            starts += 1;
            prop_assert!(starts < 200, "the node never comes to a confirmed node OS");
        }
        prop_assert!(life.confirmed);
        prop_assert_eq!(life.slots[life.active], Release::Good);
        prop_assert!(life.candidate_starts <= BOOTS);
        // The longest way of the medium without a wait, then that of the node OS.
        prop_assert!(life.most_since_wait <= 20, "{} stages without a wait", life.most_since_wait);
        prop_assert!(life.now >= starts * Duration::from_secs(10), "{} starts in {:?}", starts, life.now);
    }
}
