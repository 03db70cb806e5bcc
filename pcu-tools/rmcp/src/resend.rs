//! When to send again what was not answered.

use std::time::{Duration, Instant};

/// The longest pause between two attempts.
const LONGEST: Duration = Duration::from_secs(4);

/// Pauses that double, up to four seconds. Whoever waits has a deadline of its own: this one has no end.
#[derive(Debug, Clone, Copy)]
pub struct Resend {
    next: Instant,
    pause: Duration,
    sent: u32,
}

impl Resend {
    /// At once, and again after `pause`.
    #[must_use]
    pub fn new(now: Instant, pause: Duration) -> Self {
        Self { next: now, pause, sent: 0 }
    }

    /// Whether it is time. If so, the next time is later.
    pub fn due(&mut self, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        self.next = now + self.pause;
        self.pause = LONGEST.min(self.pause * 2);
        self.sent = self.sent.saturating_add(1);
        true
    }

    /// The next time.
    #[must_use]
    pub fn next(&self) -> Instant {
        self.next
    }

    /// How often it was time.
    #[must_use]
    pub fn sent(&self) -> u32 {
        self.sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit() {
        let start = Instant::now();
        let mut resend = Resend::new(start, Duration::from_millis(500));
        let mut at = Vec::new();
        for tick in 0..200 {
            if resend.due(start + Duration::from_millis(100) * tick) {
                at.push(tick);
            }
        }
        assert_eq!(at, [0, 5, 15, 35, 75, 115, 155, 195]);
        assert_eq!(resend.sent(), 8);
    }
}
