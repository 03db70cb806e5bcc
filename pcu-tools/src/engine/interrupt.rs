//! Being asked to come to an end.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::PcuError;

/// A wish that no more be begun. Once raised it stays so; clones are the same wish.
///
/// Whoever heeds it waits with [`Interrupt::wait`] instead of sleeping.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<Wish>);

#[derive(Debug, Default)]
struct Wish {
    raised: Mutex<bool>,
    changed: Condvar,
}

impl Interrupt {
    /// Wishes it.
    pub fn raise(&self) {
        *self.0.raised.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.changed.notify_all();
    }

    /// Whether it is wished.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        *self.0.raised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps for `time`, or until it is wished.
    pub fn wait(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut raised = self.0.raised.lock().unwrap_or_else(PoisonError::into_inner);
        while !*raised {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            raised = self.0.changed.wait_timeout(raised, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Whether to go on with `doing`.
    ///
    /// # Errors
    /// [`PcuError::Interrupted`] when not.
    pub(super) fn check(&self, doing: impl FnOnce() -> String) -> Result<(), PcuError> {
        if self.is_raised() { Err(PcuError::Interrupted { doing: doing() }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn waiting_ends_when_it_is_wished() {
        let interrupt = Interrupt::default();
        interrupt.wait(Duration::from_millis(1));
        assert!(!interrupt.is_raised());
        let other = interrupt.clone();
        let waiting = thread::spawn(move || other.wait(Duration::from_secs(3600)));
        interrupt.raise();
        waiting.join().unwrap();
        interrupt.wait(Duration::from_secs(3600));
    }
}
