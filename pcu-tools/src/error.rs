//! What can go wrong between us and a node's power, by class.

use std::io;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::SecretError;

/// Why an operation failed. `doing` says what was tried, on what: "logging in to 10.0.0.1:623 as admin".
#[derive(Debug, Error)]
pub enum PcuError {
    /// The device cannot be reached, or the connection broke.
    #[error("{doing}: {source}")]
    Transport {
        /// What was tried.
        doing: String,
        /// What the system says.
        source: io::Error,
    },
    /// The device is not who it should be: a certificate or host key that is not the pinned one, or that nobody vouches for.
    #[error("{doing}: {detail}")]
    Identity {
        /// What was tried.
        doing: String,
        /// What was expected and what came.
        detail: String,
    },
    /// User or password are wrong.
    #[error("{doing}: {detail}")]
    Authentication {
        /// What was tried.
        doing: String,
        /// What the device says.
        detail: String,
    },
    /// The account may not do this.
    #[error("{doing}: {detail}")]
    Privilege {
        /// What was tried.
        doing: String,
        /// What the device says.
        detail: String,
    },
    /// A dialogue went another way than the driver expects.
    #[error("{doing}: expected {expected}, the device said {said:?}")]
    Prompt {
        /// What was tried.
        doing: String,
        /// What was expected.
        expected: String,
        /// The end of what came, printable and bounded.
        said: String,
    },
    /// The device has no such outlet.
    #[error("{doing}: no outlet {outlet:?}{}", list(.known))]
    OutletUnknown {
        /// What was tried.
        doing: String,
        /// What was looked for.
        outlet: String,
        /// What the device has, where it tells.
        known: Vec<String>,
    },
    /// The device is not ready: it starts, or serves somebody else.
    #[error("{doing}: the device is busy: {detail}")]
    Busy {
        /// What was tried.
        doing: String,
        /// What the device says.
        detail: String,
    },
    /// The device understood and declined.
    #[error("{doing}: refused: {detail}")]
    Refused {
        /// What was tried.
        doing: String,
        /// What the device says.
        detail: String,
    },
    /// The device or its driver cannot do this.
    #[error("{doing}: {detail}")]
    Unsupported {
        /// What was tried.
        doing: String,
        /// What is missing.
        detail: String,
    },
    /// Needs a waiver that the method does not have.
    #[error("{doing}: {detail}; allow it for this device alone with waivers = [\"{waiver}\"]")]
    Waiver {
        /// What was tried.
        doing: String,
        /// Why it is not done without.
        detail: String,
        /// The waiver's name.
        waiver: &'static str,
    },
    /// The device said that it did it, and its state did not follow.
    #[error("{doing}: no effect: {detail}")]
    NoEffect {
        /// What was tried.
        doing: String,
        /// What was seen instead.
        detail: String,
    },
    /// The device's answer makes no sense.
    #[error("{doing}: bad answer: {detail}")]
    BadAnswer {
        /// What was tried.
        doing: String,
        /// What is wrong with it; bounded.
        detail: String,
    },
    /// Only a person can do it.
    #[error("a person has to {instruction}")]
    Human {
        /// What to do, as it follows "has to".
        instruction: String,
    },
    /// The time was up.
    #[error("{doing}: timed out")]
    Timeout {
        /// What was tried.
        doing: String,
    },
    /// It was to be ended.
    #[error("{doing}: interrupted")]
    Interrupted {
        /// What was not begun, or not ended.
        doing: String,
    },
    /// The method is not configured as its driver needs.
    #[error("{doing}: {detail}")]
    Configuration {
        /// What was tried.
        doing: String,
        /// What to change.
        detail: String,
    },
    /// A secret could not be had.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

/// Classes of failure, each with an exit status of `pcu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Not reached.
    Transport,
    /// Not who it should be.
    Identity,
    /// Not let in.
    Authentication,
    /// Not allowed.
    Privilege,
    /// Another dialogue than expected, or an answer without sense.
    Prompt,
    /// No such outlet.
    OutletUnknown,
    /// Not ready.
    Busy,
    /// Declined.
    Refused,
    /// Not to be had.
    Unsupported,
    /// Said to be done, and not seen.
    Unverified,
    /// To be done by a person.
    Human,
    /// Too late.
    Timeout,
    /// Given up, or not begun, since it was to be ended.
    Interrupted,
    /// To be configured first.
    Configuration,
}

impl PcuError {
    /// The class of this failure.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Transport { .. } => Class::Transport,
            Self::Identity { .. } => Class::Identity,
            Self::Authentication { .. } => Class::Authentication,
            Self::Privilege { .. } => Class::Privilege,
            Self::Prompt { .. } | Self::BadAnswer { .. } => Class::Prompt,
            Self::OutletUnknown { .. } => Class::OutletUnknown,
            Self::Busy { .. } => Class::Busy,
            Self::Refused { .. } => Class::Refused,
            Self::Unsupported { .. } => Class::Unsupported,
            Self::NoEffect { .. } => Class::Unverified,
            Self::Human { .. } => Class::Human,
            Self::Timeout { .. } => Class::Timeout,
            Self::Interrupted { .. } => Class::Interrupted,
            Self::Waiver { .. } | Self::Configuration { .. } | Self::Secret(_) => Class::Configuration,
        }
    }

    /// A transport error: `doing` and what the system says. A socket's time-out becomes [`PcuError::Timeout`].
    #[must_use]
    pub fn transport(doing: impl Into<String>, source: io::Error) -> Self {
        let doing = doing.into();
        match source.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Self::Timeout { doing },
            _ => Self::Transport { doing, source },
        }
    }

    /// Something that `driver` cannot do.
    #[must_use]
    pub fn unsupported(driver: &str, what: &str) -> Self {
        Self::Unsupported { doing: what.into(), detail: format!("the driver {driver} cannot do that") }
    }
}

impl Class {
    /// What to try.
    #[must_use]
    pub fn advice(self) -> &'static str {
        match self {
            Self::Transport => "check the address, the cable and the firewall between here and the device",
            Self::Identity => {
                "compare the fingerprint with the device's own; if it is right, write it to the inventory"
            }
            Self::Authentication => {
                "check user and password in the inventory; some devices lock an account for minutes after wrong ones"
            }
            Self::Privilege => "give the account the right to switch power (operator, or its name on this device)",
            Self::Prompt => "another model or firmware? see what it said, and try another driver (`pcu driver list`)",
            Self::OutletUnknown => "check the outlet in the inventory against the device's own list",
            Self::Busy => "somebody else may be logged in; try again in a minute",
            Self::Refused => "see the device's own log",
            Self::Unsupported => "use another method of this node",
            Self::Unverified => "the wrong outlet, a second power supply, or a stuck relay; look at the machine",
            Self::Human => "do it, or have it done; nothing was switched",
            Self::Timeout => "try again with a longer --deadline; some devices need half a minute to answer",
            Self::Interrupted => "see with `pcu status` how it is, and do it again",
            Self::Configuration => "correct the inventory; `pcu test` checks it and changes nothing",
        }
    }

    /// Whether trying the same again may help: everything that time can change.
    #[must_use]
    pub fn passes(self) -> bool {
        matches!(self, Self::Transport | Self::Busy | Self::Timeout | Self::Unverified)
    }
}

fn list(outlets: &[String]) -> String {
    match outlets {
        [] => String::new(),
        _ => format!("; there are {}", outlets.join(", ")),
    }
}
