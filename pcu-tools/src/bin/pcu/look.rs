//! Commands that ask a device something, or change nothing that matters.

use std::{fmt::Write as _, time::Duration};

use anyhow::Result;
use orrery_pcu::{
    Ability, BootDevice, Deadline, LogEntry, PcuError, PowerState, Sensor, Session,
    engine::{Answer, Failure, Tested},
};
use serde::Serialize;

use crate::{
    Nodes,
    fleet::{NodeResult, Work},
    output::{self, Outcome},
};

/// Shows whether nodes have power.
pub(crate) fn status(work: &Work<'_>, nodes: &Nodes) -> Result<Outcome> {
    ask(
        work,
        nodes,
        Ability::Status,
        |state: &PowerState| state.to_string(),
        |session, deadline| session.state(deadline),
    )
}

/// Lights a lamp.
pub(crate) fn identify(work: &Work<'_>, nodes: &Nodes, time: Duration) -> Result<Outcome> {
    let text = move |(): &()| {
        if time.is_zero() { "the lamp is off".into() } else { format!("the lamp is lit for {} s", time.as_secs()) }
    };
    ask(work, nodes, Ability::Identify, text, move |session, deadline| session.identify(time, deadline))
}

/// Chooses what is booted next.
pub(crate) fn boot_device(work: &Work<'_>, nodes: &Nodes, device: BootDevice) -> Result<Outcome> {
    let text = move |(): &()| format!("the next boot is from {device}");
    ask(work, nodes, Ability::BootDevice, text, move |session, deadline| session.set_boot_device(device, deadline))
}

/// Shows readings.
pub(crate) fn sensors(work: &Work<'_>, nodes: &Nodes) -> Result<Outcome> {
    let text = |sensors: &Vec<Sensor>| {
        if sensors.is_empty() {
            return "the device has no sensors".into();
        }
        sensors.iter().fold(String::new(), |mut text, Sensor { name, value, unit, status }| {
            let value = value.map_or_else(|| "-".into(), |value| format!("{value:.2}"));
            // Writing to a string cannot fail.
            let _ = write!(text, "\n    {name:<24} {value:>10} {unit:<4} {status}");
            text
        })
    };
    ask(work, nodes, Ability::Sensors, text, |session, deadline| session.sensors(deadline))
}

/// Shows the devices' logs.
pub(crate) fn log(work: &Work<'_>, nodes: &Nodes) -> Result<Outcome> {
    let text = |entries: &Vec<LogEntry>| {
        if entries.is_empty() {
            return "the log is empty".into();
        }
        entries.iter().fold(String::new(), |mut text, LogEntry { at, text: entry }| {
            let at = at.map_or_else(|| "-".into(), |at| at.to_string());
            // Writing to a string cannot fail.
            let _ = write!(text, "\n    {at:>12} {entry}");
            text
        })
    };
    ask(work, nodes, Ability::Log, text, |session, deadline| session.log(deadline))
}

/// Tests every method.
pub(crate) fn test(work: &Work<'_>, nodes: &Nodes) -> Result<Outcome> {
    work.each(nodes, |_, node, _| Tests(work.control.test(&node.methods)))
}

fn ask<T: Serialize + Send>(
    work: &Work<'_>,
    nodes: &Nodes,
    ability: Ability,
    text: impl Fn(&T) -> String + Sync,
    question: impl Fn(&mut dyn Session, Deadline) -> Result<T, PcuError> + Sync,
) -> Result<Outcome> {
    work.each(nodes, |_, node, watch| {
        let Answer { value, method, attempts } = work.control.ask(&node.methods, ability, watch, &question);
        let failure =
            if value.is_some() { None } else { attempts.into_iter().rev().find_map(|attempt| attempt.failure) };
        let text = value.as_ref().map(&text);
        Answered { value, method, failure, text }
    })
}

#[derive(Serialize)]
struct Answered<T> {
    value: Option<T>,
    method: Option<String>,
    failure: Option<Failure>,
    #[serde(skip)]
    text: Option<String>,
}

#[derive(Serialize)]
#[serde(transparent)]
struct Tests(Vec<Tested>);

impl<T: Serialize + Send> NodeResult for Answered<T> {
    fn text(&self) -> String {
        match (&self.text, &self.failure) {
            (Some(text), _) => text.clone(),
            (None, Some(failure)) => output::lines(failure),
            (None, None) => "the node has no method".into(),
        }
    }

    fn failures(&self) -> Vec<&Failure> {
        self.failure.iter().collect()
    }
}

impl NodeResult for Tests {
    fn text(&self) -> String {
        self.0.iter().fold(String::new(), |mut text, Tested { method, proofs, failure }| {
            let verdict = if failure.is_none() { "ok" } else { "FAILS" };
            // Writing to a string cannot fail.
            let _ = write!(text, "\n    {verdict:<5} {method}");
            proofs.iter().for_each(|proof| {
                let _ = write!(text, "\n          {}", proof.0);
            });
            if let Some(failure) = failure {
                let _ = write!(text, "\n          {}", output::lines(failure).replace('\n', "\n      "));
            }
            text
        })
    }

    fn failures(&self) -> Vec<&Failure> {
        self.0.iter().filter_map(|tested| tested.failure.as_ref()).collect()
    }
}
