//! Doing what is asked with devices, by `orrery-pcu`. Everything here may block for minutes.

use std::collections::HashSet;

use orrery_central_api::{PowerAction, PowerAttempt, PowerFailure, PowerOutcome, PowerStateRead, PowerTest};
use orrery_pcu::{
    Ability, Action, Method, PcuError, Registry,
    engine::{Attempt, Control, Failure, Outcome, Policy, Report},
};

use super::methods::word;
use crate::db::power_operations::Done;

/// The devices of all nodes.
#[derive(Debug)]
pub(super) struct Devices {
    control: Control,
    resetting: HashSet<String>,
}

impl Devices {
    pub(super) fn new(registry: Registry) -> Self {
        let resets = registry.iter().filter(|driver| driver.abilities().contains(&Ability::Reset));
        let resetting = resets.map(|driver| driver.name().to_owned()).collect();
        Self { control: Control::new(registry, Policy::default()), resetting }
    }

    /// Whether there is such a driver.
    pub(super) fn check(&self, method: &Method) -> Result<(), PcuError> {
        self.control.registry().of(method).map(drop)
    }

    /// The names of the drivers that can reset a machine.
    pub(super) fn resetting(&self) -> &HashSet<String> {
        &self.resetting
    }

    /// Does it by the first method that can.
    pub(super) fn perform(&self, methods: &[Method], action: PowerAction) -> Done {
        let action = match action {
            PowerAction::On => Action::On,
            PowerAction::Off => Action::Off,
            PowerAction::Cycle => Action::Cycle,
            PowerAction::Reset => Action::Reset,
        };
        done(self.control.perform(methods, action, &|_| ()))
    }

    /// Turns on what an interrupted operation may have left off.
    pub(super) fn restore(&self, methods: &[Method]) -> Done {
        done(self.control.restore(methods, &|_| ()))
    }

    /// Asks whether there is power.
    pub(super) fn state(&self, methods: &[Method]) -> Result<PowerStateRead, Vec<PowerAttempt>> {
        let ask = self.control.ask(methods, Ability::Status, &|_| (), |session, deadline| session.state(deadline));
        match (ask.value, ask.method) {
            (Some(state), Some(method)) => Ok(PowerStateRead { state: state.to_string(), method }),
            _ => Err(attempts(ask.attempts)),
        }
    }

    /// Tests every method, and changes nothing.
    pub(super) fn test(&self, methods: &[Method]) -> Vec<PowerTest> {
        let tested = self.control.test(methods).into_iter().map(|tested| PowerTest {
            method: tested.method,
            proofs: tested.proofs.into_iter().map(|proof| proof.0).collect(),
            failure: tested.failure.map(failure),
        });
        tested.collect()
    }
}

fn done(report: Report) -> Done {
    Done { outcome: outcome(report.outcome), method: report.method, attempts: attempts(report.attempts) }
}

fn outcome(outcome: Outcome) -> PowerOutcome {
    match outcome {
        Outcome::Changed => PowerOutcome::Changed,
        Outcome::Already => PowerOutcome::Already,
        Outcome::Accepted => PowerOutcome::Accepted,
        Outcome::Failed => PowerOutcome::Failed,
    }
}

fn attempts(attempts: Vec<Attempt>) -> Vec<PowerAttempt> {
    let attempt =
        |Attempt { method, took_ms, failure: why }| PowerAttempt { method, took_ms, failure: why.map(failure) };
    attempts.into_iter().map(attempt).collect()
}

fn failure(failure: Failure) -> PowerFailure {
    PowerFailure { class: word(&failure.class), message: failure.message, advice: failure.advice }
}
