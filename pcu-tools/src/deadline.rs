//! An instant by which something has to be done.

use std::time::{Duration, Instant};

use crate::PcuError;

/// An instant by which an operation has to be done, its retries included.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// `limit` from now.
    #[must_use]
    pub fn after(limit: Duration) -> Self {
        Self(Instant::now() + limit)
    }

    /// The earlier of this one and `limit` from now.
    #[must_use]
    pub fn at_most(self, limit: Duration) -> Self {
        Self(self.0.min(Instant::now() + limit))
    }

    /// What is left, never zero: zero means "for ever" to sockets.
    ///
    /// # Errors
    /// [`PcuError::Timeout`] when nothing is left; `doing` is what was being tried, as "waiting for the prompt of 10.0.0.1".
    pub fn left(self, doing: &str) -> Result<Duration, PcuError> {
        let left = self.0.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(PcuError::Timeout { doing: doing.into() }) } else { Ok(left) }
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn passed(self) -> bool {
        Instant::now() >= self.0
    }
}
