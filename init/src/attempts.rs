//! Running a stage, and remembering how often it failed in a row.

use std::{collections::BTreeMap, time::Duration};

use orrery_init_api::{FailureClass, Stage, StageResult};

use crate::{
    machine::{Machine, announce, tell},
    recover::{Again, Context, Recovery, recover},
};

/// A stage that failed, and what it was the time it failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which.
    pub stage: Stage,
    /// How.
    pub class: FailureClass,
    /// For people.
    pub message: String,
}

/// Consecutive failures of every stage.
#[derive(Debug, Clone, Default)]
pub struct Attempts(BTreeMap<Stage, u32>);

impl Attempts {
    /// Runs a stage to its result.
    pub(crate) fn run(&mut self, machine: &mut impl Machine, stage: Stage) -> Result<Option<String>, Failure> {
        self.begin(machine, stage);
        self.finish(machine, stage)
    }

    /// Starts a stage.
    pub(crate) fn begin(&self, machine: &mut impl Machine, stage: Stage) {
        machine.begin(stage, self.failures(stage).saturating_add(1));
    }

    /// Waits for a stage that was begun.
    pub(crate) fn finish(&mut self, machine: &mut impl Machine, stage: Stage) -> Result<Option<String>, Failure> {
        let finished = machine.finish(stage);
        announce(machine, stage, &finished);
        match finished.result {
            StageResult::Ok(text) => {
                self.0.remove(&stage);
                Ok(text)
            }
            StageResult::Fail { class, message } => Err(self.failed(stage, class, message)),
        }
    }

    /// Counts a failure.
    pub(crate) fn failed(&mut self, stage: Stage, class: FailureClass, message: String) -> Failure {
        let failures = self.0.entry(stage).or_default();
        *failures = failures.saturating_add(1);
        Failure { stage, class, message }
    }

    /// Decides what to do about a failure, and says so.
    pub(crate) fn recover(
        &self,
        machine: &mut impl Machine,
        failure: &Failure,
        clock_set: bool,
        repaired: bool,
    ) -> Recovery {
        let attempts = self.failures(failure.stage);
        let context = Context { role: machine.role(), attempts, clock_set, repaired, jitter: machine.random() };
        let recovery = recover(failure.stage, failure.class, context);
        tell(machine, failure.stage.as_str(), &format!("recovery: {}", describe(recovery, attempts)));
        recovery
    }

    fn failures(&self, stage: Stage) -> u32 {
        self.0.get(&stage).copied().unwrap_or(0)
    }
}

/// A recovery in words.
fn describe(recovery: Recovery, attempts: u32) -> String {
    let seconds = |wait: Duration| format!("{:.0} s", wait.as_secs_f64());
    match recovery {
        Recovery::Proceed => "going on without".to_owned(),
        Recovery::Retry(Again { from, after }) => {
            format!("{from} again in {} ({attempts} failed)", seconds(after))
        }
        Recovery::Repair => "repairing what is installed".to_owned(),
        Recovery::SafeMode(Again { from, after }) => format!("safe mode, {from} again in {}", seconds(after)),
        Recovery::FirmwareReboot { after } => format!("starting over from the firmware in {}", seconds(after)),
    }
}
