//! Whether silence is the nodes' own, or an outage: of central, of its network, of a site's. Pure.
//!
//! Nodes that are well say something every five minutes at most. Whatever cuts many of them off at once is seen by this: they are *late*
//! together, long before the first of them counts as silent. While it lasts, and for a while after it, when those that are well come back one
//! by one, central does nothing by itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use orrery_central_api::{PowerPolicy, Rung};
use orrery_protocol::BootState;

use crate::db::power_records::Watched;

/// A pass that is longer than this after the one before means that central stood still, or its clock jumped, in seconds.
const GAP: u64 = 120;
/// Fewer nodes that are late together are no outage, unless they are most of the nodes.
const FEWEST: usize = 3;

/// What central remembers of outages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Guard {
    /// Since when nothing was wrong, in Unix seconds.
    pub(super) calm_since: u64,
    /// When it looked last.
    last_look: u64,
    /// Groups of which most nodes were late together, and when that was last so.
    groups: BTreeMap<String, u64>,
}

/// Why central does nothing by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unrest {
    /// No node is heard.
    Deaf,
    /// Many nodes fell silent together.
    Storm { late: usize, of: usize },
    /// It has not listened long enough since it was started, or since the last outage.
    Settling { until: u64 },
}

impl fmt::Display for Unrest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deaf => f.write_str("no node is heard: an outage of the network, or of central"),
            Self::Storm { late, of } => {
                write!(f, "{late} of {of} nodes fell silent together: an outage of the network")
            }
            Self::Settling { .. } => f.write_str("listening first, after a start or an outage"),
        }
    }
}

impl Guard {
    /// Of a central that begins to listen now.
    pub(super) fn new(now: u64) -> Self {
        Self { calm_since: now, last_look: now, groups: BTreeMap::new() }
    }

    /// Looks at all nodes, and says why nothing is to be done.
    pub(super) fn look(&mut self, now: u64, nodes: &[Watched], policy: &PowerPolicy) -> Option<Unrest> {
        if now < self.last_look || now > self.last_look + GAP {
            self.calm_since = now;
        }
        self.last_look = now;
        let nodes: Vec<_> =
            nodes.iter().filter_map(|node| Some((node, node.last_seen.filter(|_| counts(node))?))).collect();
        let late = |last_seen: u64| now.saturating_sub(last_seen) > policy.silent_after / 2;
        let together = |members: &mut dyn Iterator<Item = u64>| {
            let (mut of, mut silent) = (0, Vec::new());
            for last_seen in members {
                of += 1;
                silent.extend(late(last_seen).then_some(last_seen));
            }
            (together(silent, policy.silent_after), of)
        };
        self.groups.retain(|_, last| now.saturating_sub(*last) < policy.settle);
        let groups: BTreeSet<_> = nodes.iter().flat_map(|(node, _)| &node.groups).collect();
        for group in groups {
            let mut members = nodes.iter().filter(|(node, _)| node.groups.contains(group)).map(|(_, seen)| *seen);
            let (late, of) = together(&mut members);
            if is_most(late, of) {
                self.groups.insert(group.clone(), now);
            }
        }
        let (most, of) = together(&mut nodes.iter().map(|(_, seen)| *seen));
        let share = most >= FEWEST && most * 100 > of * policy.storm_percent as usize;
        let unrest = if of > 0 && nodes.iter().all(|(_, seen)| late(*seen)) {
            Unrest::Deaf
        } else if share || is_most(most, of) {
            Unrest::Storm { late: most, of }
        } else if now < self.calm_since.saturating_add(policy.settle) {
            return Some(Unrest::Settling { until: self.calm_since.saturating_add(policy.settle) });
        } else {
            return None;
        };
        self.calm_since = now;
        Some(unrest)
    }

    /// The group of this node of which most nodes are, or lately were, late together: its site may be cut off.
    pub(super) fn group_of<'a>(&self, node: &'a Watched) -> Option<&'a str> {
        node.groups.iter().find(|group| self.groups.contains_key(*group)).map(String::as_str)
    }
}

/// Whether a node's silence says something about the network: not if it is known to be away, or given up.
fn counts(node: &Watched) -> bool {
    let given_up = node.record.as_ref().is_some_and(|record| record.rung == Some(Rung::Human));
    node.called_home && node.boot_state != BootState::Disabled && !node.held && !node.switched_off && !given_up
}

/// Several, and more than half.
fn is_most(late: usize, of: usize) -> bool {
    late > 1 && late * 2 > of
}

/// How many of these instants fall into the fullest span of `window` seconds.
fn together(mut at: Vec<u64>, window: u64) -> usize {
    at.sort_unstable();
    let mut first = 0;
    let mut most = 0;
    for (last, end) in at.iter().enumerate() {
        while end - at[first] > window {
            first += 1;
        }
        most = most.max(last + 1 - first);
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power::ladder::tests::node;

    #[test]
    fn the_fullest_span() {
        let check = |at: &[u64], expect| assert_eq!(together(at.to_vec(), 10), expect, "{at:?}");
        check(&[], 0);
        check(&[5], 1);
        check(&[30, 0, 10, 20], 2);
        check(&[0, 11, 21, 12, 40], 3);
    }

    #[test]
    fn what_is_an_outage() {
        let policy = PowerPolicy::default();
        let (now, long) = (100_000, policy.silent_after);
        let check = |late: usize, of: usize, expect: Option<Unrest>| {
            let nodes: Vec<_> = (0..of)
                .map(|n| node(&format!("n{n}"), if n < late { now - long - n as u64 } else { now - 60 }))
                .collect();
            let mut guard = Guard::new(now - policy.settle);
            guard.last_look = now;
            assert_eq!(guard.look(now, &nodes, &policy), expect, "{late} of {of}");
            assert_eq!(guard.calm_since == now, expect.is_some(), "{late} of {of}");
        };
        check(0, 0, None);
        check(0, 10, None);
        check(1, 1, Some(Unrest::Deaf));
        check(1, 2, None);
        check(2, 3, Some(Unrest::Storm { late: 2, of: 3 }));
        check(2, 10, None);
        check(3, 10, Some(Unrest::Storm { late: 3, of: 10 }));
        check(3, 15, None);
        check(4, 15, Some(Unrest::Storm { late: 4, of: 15 }));
        check(15, 15, Some(Unrest::Deaf));
    }

    #[test]
    fn nodes_that_died_one_by_one_are_no_outage() {
        let policy = PowerPolicy::default();
        let now = 1_000_000;
        let apart = |n: u64| now - policy.silent_after - n * (policy.silent_after + 1);
        let nodes: Vec<_> = (0..9).map(|n| node(&format!("n{n}"), if n < 4 { apart(n) } else { now })).collect();
        let mut guard = Guard { last_look: now, ..Guard::new(now - policy.settle) };
        assert_eq!(guard.look(now, &nodes, &policy), None);
    }

    #[test]
    fn a_start_a_pause_and_a_jump_of_the_clock_are_waited_out() {
        let policy = PowerPolicy::default();
        let mut guard = Guard::new(1000);
        let mut look = |now: u64| guard.look(now, &[node("n1", now)], &policy);
        let mut run = |from: u64, to: u64| (from..=to).step_by(60).map(&mut look).last().flatten();
        assert!(matches!(run(1000, 1840), Some(Unrest::Settling { until: 1900 })));
        assert_eq!(run(1900, 1900), None);
        assert!(matches!(run(2900, 2900), Some(Unrest::Settling { until: 3800 })));
        assert_eq!(run(2960, 3800), None);
        assert!(matches!(run(3000, 3000), Some(Unrest::Settling { until: 3900 })));
    }

    #[test]
    fn a_site_that_is_cut_off_is_left_alone_for_a_while() {
        let policy = PowerPolicy::default();
        let now = 100_000;
        let site = |id: &str, seen| Watched { groups: vec!["site-a".to_owned()], ..node(id, seen) };
        let rest = (0..20).map(|n| node(&format!("r{n}"), now));
        let mut nodes: Vec<_> = rest.chain([site("a", now - 2000), site("b", now - 2000), site("c", now)]).collect();
        let mut guard = Guard { last_look: now, ..Guard::new(now - policy.settle) };
        assert_eq!(guard.look(now, &nodes, &policy), None);
        assert_eq!(guard.group_of(&nodes[20]), Some("site-a"));
        assert_eq!(guard.group_of(&nodes[0]), None);
        nodes[20].last_seen = Some(now);
        guard.look(now + 100, &nodes, &policy);
        assert_eq!(guard.group_of(&nodes[21]), Some("site-a"));
        guard.last_look = now + policy.settle;
        guard.look(now + policy.settle, &nodes, &policy);
        assert_eq!(guard.group_of(&nodes[21]), None);
    }
}
