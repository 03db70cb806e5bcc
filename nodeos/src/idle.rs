//! Which running slivers have been unused for long enough to be stopped. Pure.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use orrery_sliver::Activity;

/// How long nothing but its first process is in a sliver before it is stopped.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was last seen of each running sliver, and when it was first seen so.
#[derive(Debug, Default)]
pub struct IdleWatch {
    seen: BTreeMap<String, (Activity, Instant)>,
}

impl IdleWatch {
    /// Takes note of all slivers that run, by login, and returns those to stop.
    pub fn look(&mut self, now: Instant, running: BTreeMap<String, Activity>) -> Vec<(String, Activity)> {
        let before = std::mem::take(&mut self.seen);
        for (login, activity) in running {
            let since = before.get(&login).filter(|(old, _)| *old == activity).map_or(now, |(_, since)| *since);
            self.seen.insert(login, (activity, since));
        }
        let unused = |activity: &Activity, since: Instant| activity.is_idle() && now.duration_since(since) >= PATIENCE;
        let due = self.seen.iter().filter(|(_, (activity, since))| unused(activity, *since));
        due.map(|(login, (activity, _))| (login.clone(), *activity)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_of_nothing() {
        let mut watch = IdleWatch::default();
        let start = Instant::now();
        let mut check = |seconds, running: &[(&str, u32, u64)], expect: &[&str]| {
            let running = running.iter().map(|&(login, processes, cpu_microseconds)| {
                (login.to_owned(), Activity { processes, cpu_microseconds })
            });
            let due = watch.look(start + Duration::from_secs(seconds), running.collect());
            assert_eq!(due.into_iter().map(|(login, _)| login).collect::<Vec<_>>(), expect, "after {seconds} s");
        };
        check(0, &[("a", 1, 5), ("busy", 2, 5)], &[]);
        check(59, &[("a", 1, 5), ("busy", 2, 5)], &[]);
        check(60, &[("a", 1, 5), ("busy", 2, 5)], &["a"]);
        // Something ran between two looks.
        check(70, &[("a", 1, 6), ("busy", 1, 6)], &[]);
        check(129, &[("a", 1, 6), ("busy", 1, 6)], &[]);
        check(130, &[("a", 1, 6), ("busy", 1, 6)], &["a", "busy"]);
        // Stopped and started again.
        check(140, &[], &[]);
        check(150, &[("a", 1, 6)], &[]);
    }
}
