//! The hardware watchdog, petted from the loop.

use std::time::Duration;

use orrery_sys::watchdog::Watchdog;

/// Long enough for a kexec and the next kernel's start: the watchdog guards those too.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A running watchdog.
pub(super) struct Watch {
    watchdog: Watchdog,
    every: Duration,
    due: Duration,
}

impl Watch {
    /// Starts the first watchdog, if there is one.
    pub(super) fn open() -> Option<Self> {
        let watchdog = Watchdog::open("/dev/watchdog").ok()?;
        let timeout = watchdog.set_timeout(TIMEOUT).ok().filter(|timeout| !timeout.is_zero()).unwrap_or(TIMEOUT);
        Some(Self { watchdog, every: timeout / 4, due: Duration::ZERO })
    }

    /// Pets it if that is due, and returns when it next is.
    pub(super) fn pet(&mut self, now: Duration) -> Duration {
        if now >= self.due {
            let _ = self.watchdog.pet();
            self.due = now + self.every;
        }
        self.due.saturating_sub(now)
    }

    /// Pets it whether due or not.
    pub(super) fn pet_now(&mut self) {
        let _ = self.watchdog.pet();
    }

    /// Stops it: a machine that is switched off shall stay off.
    pub(super) fn stop(self) {
        let _ = self.watchdog.stop();
    }
}
