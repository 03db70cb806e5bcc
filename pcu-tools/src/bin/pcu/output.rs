//! What people and programs see, and the exit status.

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

use anyhow::Error;
use orrery_pcu::{Class, InventoryError, engine::Failure};
use serde::Serialize;
use serde_json::json;

/// How a command ended.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The classes of what failed.
    classes: BTreeSet<Class>,
    /// The exit status of a signal that ended it.
    ended: Option<u8>,
}

impl Outcome {
    /// Nothing failed.
    pub(crate) fn done() -> Self {
        Self::default()
    }

    /// These failed.
    pub(crate) fn of<'a>(failures: impl IntoIterator<Item = &'a Failure>) -> Self {
        Self { classes: failures.into_iter().map(|failure| failure.class).collect(), ended: None }
    }

    /// The same, but ended by a signal with this exit status, if by any.
    pub(crate) fn ended(self, ended: Option<u8>) -> Self {
        Self { ended, ..self }
    }

    /// The exit status.
    pub(crate) fn status(&self) -> u8 {
        let mut classes = self.classes.iter();
        if let Some(ended) = self.ended {
            return ended;
        }
        match (classes.next(), classes.next()) {
            (None, _) => 0,
            (Some(class), None) => status(*class),
            (Some(_), Some(_)) => 1,
        }
    }
}

/// The exit status of a failure of the command itself.
pub(crate) fn status_of(error: &Error) -> u8 {
    let configuration = error.is::<InventoryError>() || error.is::<orrery_pcu::driver::DataError>();
    if configuration { status(Class::Configuration) } else { 1 }
}

/// Says why the command itself failed.
pub(crate) fn complain(json: bool, error: &Error) {
    if json {
        println!("{}", json!({ "error": format!("{error:#}") }));
    } else {
        say(&format!("pcu: {error:#}"));
    }
}

/// Prints a document for programs.
pub(crate) fn document(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Says something beside the results. Whoever read it may be gone, and that must not end a change half-way.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// A failure for people: what happened, and what to try.
pub(crate) fn lines(failure: &Failure) -> String {
    format!("{}\n    try: {}", failure.message, failure.advice)
}

fn status(class: Class) -> u8 {
    match class {
        Class::Configuration => 3,
        Class::Transport => 10,
        Class::Identity => 11,
        Class::Authentication => 12,
        Class::Privilege => 13,
        Class::Prompt => 14,
        Class::OutletUnknown => 15,
        Class::Busy => 16,
        Class::Refused => 17,
        Class::Unsupported => 18,
        Class::Unverified => 19,
        Class::Human => 20,
        Class::Timeout => 21,
        // As a shell says of what ^C ended.
        Class::Interrupted => 130,
    }
}
