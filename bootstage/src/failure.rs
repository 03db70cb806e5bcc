//! How a stage fails: a class that PID 1 decides by, and an error for people.

use std::{error::Error, fmt};

use orrery_init_api::{FailureClass, StageResult};
use orrery_transport::TransportError;

/// A failed stage.
#[derive(Debug)]
pub struct StageFailure {
    /// What PID 1 decides by.
    pub class: FailureClass,
    source: Box<dyn Error + Send + Sync>,
}

impl StageFailure {
    /// A failure of `class` because of `source`.
    pub fn new(class: FailureClass, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { class, source: source.into() }
    }

    /// The line for PID 1.
    pub fn to_result(&self) -> StageResult {
        StageResult::from_error(self.class, &*self.source)
    }

    /// The error with its causes, in one line.
    pub fn chain(&self) -> String {
        let mut text = self.source.to_string();
        let mut cause = self.source.source();
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for StageFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.class.as_str(), self.chain())
    }
}

impl From<TransportError> for StageFailure {
    fn from(error: TransportError) -> Self {
        Self::new(transport_class(&error), error)
    }
}

/// The class of a failed exchange with central.
pub(crate) fn transport_class(error: &TransportError) -> FailureClass {
    match error {
        TransportError::Setup { .. } => FailureClass::ConfigInvalid,
        TransportError::Dns { .. } => FailureClass::Dns,
        TransportError::Connect { .. } => FailureClass::Refused,
        TransportError::Tls { .. } => FailureClass::Tls,
        TransportError::Timeout { .. } => FailureClass::Deadline,
        TransportError::Refused { class, .. } => match class.as_str() {
            "unknown-node" => FailureClass::UnknownNode,
            "no-script" => FailureClass::NoScript,
            "enrolment" | "key-replaced" => FailureClass::Enrolment,
            _ => FailureClass::Http,
        },
        TransportError::ShortRead { .. } => FailureClass::ShortRead,
        TransportError::Answer { .. } => FailureClass::Http,
    }
}
