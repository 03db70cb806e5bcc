//! Changes of power that are interrupted: nothing more is begun, and what a cycle turned off is turned on again.

use std::{
    collections::BTreeSet,
    io::{self, IsTerminal},
    process,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result};
use orrery_pcu::engine::{Interrupt, Step};

use crate::{output::say, signals};

/// Which nodes are without power because of us, and whether we are to end.
#[derive(Debug, Clone)]
pub(crate) struct Interruption(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    interrupt: Interrupt,
    off: BTreeSet<String>,
    /// The exit status of the first signal.
    status: Option<u8>,
}

impl Interruption {
    /// From now on, raises `interrupt` at the first signal that asks us to end, and ends at the second.
    pub(crate) fn expect(interrupt: &Interrupt) -> Result<Self> {
        let state = State { interrupt: interrupt.clone(), off: BTreeSet::new(), status: None };
        let interruption = Self(Arc::new(Mutex::new(state)));
        let told = interruption.clone();
        signals::handle(move |status| told.state().signal(status)).context("preparing for signals")?;
        Ok(interruption)
    }

    /// Takes up what happens to a node.
    pub(crate) fn note(&self, node: &str, step: &Step) {
        let mut state = self.state();
        match step {
            Step::Taking => {
                state.off.insert(node.to_owned());
                if state.status.is_some() {
                    // The signal came just before.
                    state.announce("");
                }
            }
            Step::Returned => {
                state.off.remove(node);
            }
            _ => {}
        }
    }

    /// The exit status of the signal, if there was one.
    pub(crate) fn status(&self) -> Option<u8> {
        self.state().status
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn signal(&mut self, status: u8) {
        // Behind the ^C, or the progress.
        let line = if io::stderr().is_terminal() { "\n" } else { "" };
        if self.status.is_some() {
            say(&format!("{line}ended{}", self.names("; left off: ")));
            process::exit(status.into());
        }
        self.status = Some(status);
        self.interrupt.raise();
        match self.off.is_empty() {
            true => say(&format!("{line}interrupted: nothing more is begun; a second time ends at once")),
            false => self.announce(line),
        }
    }

    fn announce(&self, line: &str) {
        let names = self.names(" ");
        say(&format!("{line}interrupted: turning{names} on again; a second time ends at once, and leaves it off"));
    }

    fn names(&self, before: &str) -> String {
        if self.off.is_empty() {
            return String::new();
        }
        let names: Vec<_> = self.off.iter().map(String::as_str).collect();
        format!("{before}{}", names.join(", "))
    }
}
