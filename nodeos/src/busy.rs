//! Which running slivers have lately wanted processor time: guarantees are weighed against those. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use orrery_sliver::Activity;

/// How long a sliver counts as one that wants time after it took some. Whoever is seldom busy, but in step with others, is not
/// a surprise every time.
const MEMORY: Duration = Duration::from_secs(60);
/// How much time between two looks is wanting some: above what a sliver takes that only waits.
const NOTABLE: f64 = 0.01;

/// What was last seen of each running sliver, and when it was last seen busy.
#[derive(Debug, Default)]
pub struct BusyWatch {
    looked: Option<Instant>,
    seen: BTreeMap<String, (u64, Option<Instant>)>,
}

impl BusyWatch {
    /// Takes note of all slivers that run, by login, and returns those that are busy. One that was not seen before counts as
    /// busy if it took time at all.
    pub fn look(&mut self, now: Instant, running: &BTreeMap<String, Activity>) -> BTreeSet<String> {
        let elapsed = self.looked.map_or(Duration::ZERO, |then| now.duration_since(then));
        let notable = (elapsed.as_micros() as f64 * NOTABLE) as u64;
        let before = std::mem::take(&mut self.seen);
        for (login, activity) in running {
            let (took, busy) = before.get(login).copied().unwrap_or((0, None));
            let wants = activity.cpu_microseconds.saturating_sub(took) > notable;
            self.seen.insert(login.clone(), (activity.cpu_microseconds, if wants { Some(now) } else { busy }));
        }
        self.looked = Some(now);
        let lately = |busy: &Option<Instant>| busy.is_some_and(|then| now.duration_since(then) < MEMORY);
        self.seen.iter().filter(|(_, (_, busy))| lately(busy)).map(|(login, _)| login.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_who_took_time_in_the_last_minute() {
        let mut watch = BusyWatch::default();
        let start = Instant::now();
        let mut check = |seconds, running: &[(&str, u64)], expect: &[&str]| {
            let activity = |&(login, cpu_microseconds): &(&str, u64)| {
                (login.to_owned(), Activity { processes: 2, cpu_microseconds })
            };
            let busy = watch.look(start + Duration::from_secs(seconds), &running.iter().map(activity).collect());
            assert_eq!(busy.into_iter().collect::<Vec<_>>(), expect, "after {seconds} s");
        };
        check(0, &[("a", 0), ("b", 5)], &["b"]);
        // A hundredth of the ten seconds is nothing yet.
        check(10, &[("a", 100_000), ("b", 5)], &["b"]);
        check(20, &[("a", 300_000), ("b", 5)], &["a", "b"]);
        check(60, &[("a", 300_000), ("b", 5)], &["a"]);
        check(79, &[("a", 300_000), ("b", 5)], &["a"]);
        check(80, &[("a", 300_000), ("b", 5)], &[]);
        // Started again, its time counts from nothing.
        check(90, &[("b", 5)], &[]);
        check(100, &[("a", 200_000), ("b", 5)], &["a"]);
    }
}
