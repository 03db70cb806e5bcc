//! What came of an action, method by method.

use serde::{Deserialize, Serialize};

use crate::{Action, Class, PcuError, PowerState, Proof};

/// What came of an action on one node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// What was asked for.
    pub action: Action,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether a cycle turned it off, and could not turn it on again.
    pub left_off: bool,
    /// The method that did it; none when none did.
    pub method: Option<String>,
    /// Every try, in order.
    pub attempts: Vec<Attempt>,
}

/// How an action ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Done, and seen in the device's state.
    Changed,
    /// Nothing to do: the state was the one asked for.
    Already,
    /// The device accepted it, and no state can show it: a reset, a packet that wakes. Only the node's call home proves it.
    Accepted,
    /// No method did it.
    Failed,
}

/// One try of one method.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Attempt {
    /// The method.
    pub method: String,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
    /// Why it failed; none when it did not.
    pub failure: Option<Failure>,
}

/// Why a try failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The class.
    pub class: Class,
    /// What was tried, on what, and what happened.
    pub message: String,
    /// What to try.
    pub advice: String,
}

/// What a test of one method found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tested {
    /// The method.
    pub method: String,
    /// What was proven before the failure, if there is one.
    pub proofs: Vec<Proof>,
    /// Why an action would fail; none when it would not.
    pub failure: Option<Failure>,
}

/// Something to show while an action goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A method is being tried.
    Trying {
        /// The method.
        method: String,
    },
    /// The device shows a state.
    Seen {
        /// The state.
        state: PowerState,
    },
    /// A cycle is about to take the power.
    Taking,
    /// All that a cycle took was seen on again.
    Returned,
    /// A cycle failed, or was interrupted, and what it turned off is being turned on.
    GivingBack {
        /// The method that turned it off.
        method: String,
    },
    /// A try failed.
    Failed {
        /// The method.
        method: String,
        /// Why.
        failure: Failure,
    },
}

impl From<&PcuError> for Failure {
    fn from(error: &PcuError) -> Self {
        let class = error.class();
        Self { class, message: error.to_string(), advice: class.advice().into() }
    }
}

impl Report {
    /// Why it failed: the last failure, since earlier ones led on to another method; but that the time was up only when that is all there is
    /// to say of the last method. None when it did not fail.
    #[must_use]
    pub fn failure(&self) -> Option<&Failure> {
        match self.outcome {
            Outcome::Failed => {
                let last = self.attempts.last()?;
                let same = self.attempts.iter().rev().take_while(|attempt| attempt.method == last.method);
                let failures: Vec<_> = same.filter_map(|attempt| attempt.failure.as_ref()).collect();
                failures.iter().find(|failure| failure.class != Class::Timeout).or(failures.first()).copied()
            }
            _ => None,
        }
    }
}
