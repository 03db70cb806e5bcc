//! Which wanted slivers, and which new limits, this node has room for. Pure.
//!
//! Guarantees are never over-committed: the sum of all `cpu_pct` stays within four fifths of the CPUs, and the rest is for the
//! node's own services and for those who have a share only. Limits may be over-committed, each alone being within what the node
//! has: few slivers use all they may at the same time, and when too many do, memory has its watchdog and a full disk refuses.
//!
//! What a sliver has it keeps, whatever comes later; of those that want something new, the first by name comes first.

use std::collections::BTreeMap;

use orrery_protocol::{CpuSet, RspecError, SliceName, SliverSpec, StartupError, WantedState};

use crate::plan::Existing;

/// What a node has for all its slivers together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// The CPUs that are up.
    pub cpus: CpuSet,
    /// Memory, in bytes.
    pub memory: u64,
    /// The data partition, in bytes.
    pub disk: u64,
}

impl Capacity {
    /// What may be guaranteed, in per cent of one CPU.
    pub fn guarantees(&self) -> u32 {
        self.cpus.count() * 80
    }
}

/// Why a sliver is not made, or keeps the limits it has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No node could.
    #[error(transparent)]
    Limit(#[from] RspecError),
    /// No node could run it.
    #[error(transparent)]
    Startup(#[from] StartupError),
    /// Too much is guaranteed already.
    #[error(
        "this node can guarantee {all} % of a CPU and has {left} % left, but `cpu_pct` is {wanted}: lower it, or choose another node"
    )]
    Guarantee {
        /// What was asked for.
        wanted: u32,
        /// What nobody has yet.
        left: u32,
        /// What can be guaranteed in all.
        all: u32,
    },
    /// It is to run where there is nothing.
    #[error("`cpus` names {missing}, but this node has CPUs {there}")]
    Cpus {
        /// What is not there.
        missing: String,
        /// What is.
        there: String,
    },
    /// More memory than there is.
    #[error("`mem_limit` is {wanted} bytes, but this node has {all} bytes of memory")]
    Memory {
        /// What was asked for.
        wanted: u64,
        /// What there is.
        all: u64,
    },
    /// More disk space than there is.
    #[error("`disk_quota` is {wanted} bytes, but this node's data partition has {all}")]
    Disk {
        /// What was asked for.
        wanted: u64,
        /// What there is.
        all: u64,
    },
}

/// What is refused of `wanted`, in the end, once all else is as it is wanted.
pub fn refusals(wanted: &WantedState, existing: &[Existing], capacity: &Capacity) -> BTreeMap<SliceName, Refusal> {
    let existing: BTreeMap<_, _> = existing.iter().map(|sliver| (&sliver.slice, sliver)).collect();
    let wanted: BTreeMap<_, _> = wanted.slivers.iter().map(|spec| (&spec.slice, spec)).collect();
    let has = |spec: &SliverSpec| existing.get(&spec.slice).map(|sliver| sliver.rspec);
    // Whoever is content with less gets that first.
    let kept = |spec: &SliverSpec| has(spec).map_or(0, |rspec| rspec.cpu_pct.min(spec.rspec.cpu_pct));
    let mut left = capacity.guarantees().saturating_sub(wanted.values().map(|spec| kept(spec)).sum());
    let mut refused = BTreeMap::new();
    let (old, new): (Vec<_>, Vec<_>) = wanted.into_values().partition(|spec| has(spec).is_some());
    let as_it_is = |spec: &SliverSpec| {
        existing.get(&spec.slice).is_some_and(|now| (now.rspec, &now.startup) == (spec.rspec, &spec.startup))
    };
    for spec in old.into_iter().chain(new).filter(|spec| !as_it_is(spec)) {
        let more = spec.rspec.cpu_pct - kept(spec);
        let result = match alone(spec, capacity) {
            Ok(()) if more > left => {
                Err(Refusal::Guarantee { wanted: spec.rspec.cpu_pct, left, all: capacity.guarantees() })
            }
            result => result,
        };
        match result {
            Ok(()) => left -= more,
            Err(refusal) => drop(refused.insert(spec.slice.clone(), refusal)),
        }
    }
    refused
}

/// Whether a sliver would fit if there were no other.
fn alone(spec: &SliverSpec, capacity: &Capacity) -> Result<(), Refusal> {
    let rspec = &spec.rspec;
    rspec.check()?;
    spec.startup.check()?;
    let missing = rspec.cpus.without(&capacity.cpus);
    if !missing.is_empty() {
        return Err(Refusal::Cpus { missing: missing.to_string(), there: capacity.cpus.to_string() });
    }
    if rspec.mem_limit > capacity.memory {
        return Err(Refusal::Memory { wanted: rspec.mem_limit, all: capacity.memory });
    }
    if rspec.disk_quota > capacity.disk {
        return Err(Refusal::Disk { wanted: rspec.disk_quota, all: capacity.disk });
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::slice::from_ref;

    use orrery_protocol::Rspec;

    use super::*;
    use crate::plan::tests::{existing, spec};

    pub(crate) const PLENTY: Capacity = Capacity { cpus: ONE_CPU, memory: 1 << 40, disk: 1 << 40 };
    const ONE_CPU: CpuSet = CpuSet::first(1);

    fn sliver(name: &str, change: impl Fn(&mut Rspec)) -> SliverSpec {
        let mut spec = spec(name, 1, 100);
        change(&mut spec.rspec);
        spec
    }

    fn pct(name: &str, cpu_pct: u32) -> SliverSpec {
        sliver(name, |rspec| rspec.cpu_pct = cpu_pct)
    }

    fn check(wanted: &[SliverSpec], have: &[SliverSpec], expect: &[(&str, &str)]) {
        let have: Vec<_> = have.iter().map(existing).collect();
        let refused = refusals(&WantedState { slivers: wanted.to_vec(), reboot: None }, &have, &PLENTY);
        let words: Vec<_> = refused.iter().map(|(slice, why)| (slice.name().to_owned(), why.to_string())).collect();
        let words: Vec<_> = words.iter().map(|(name, why)| (name.as_str(), why.as_str())).collect();
        assert_eq!(words, expect);
    }

    #[test]
    fn whoever_has_a_guarantee_keeps_it() {
        let full = "this node can guarantee 80 % of a CPU and has 30 % left, but `cpu_pct` is 31: lower it, or choose another node";
        check(&[pct("a", 50), pct("b", 30)], &[], &[]);
        check(&[pct("a", 50), pct("b", 31)], &[], &[("b", full)]);
        // The first by name, but for those who are there.
        check(&[pct("a", 31), pct("b", 50)], &[pct("b", 50)], &[("a", full)]);
        check(&[pct("a", 31), pct("b", 50)], &[pct("a", 0), pct("b", 50)], &[("a", full)]);
        // What others give back.
        check(&[pct("a", 50), pct("b", 30)], &[pct("b", 60)], &[]);
        check(&[pct("a", 50)], &[pct("b", 60)], &[]);
        // A smaller one fits where a larger one did not.
        check(&[pct("a", 50), pct("b", 31), pct("c", 30)], &[], &[("b", full)]);
    }

    #[test]
    fn one_sliver_is_no_larger_than_the_node() {
        check(&[sliver("a", |r| r.cpu_share = 0)], &[], &[("a", "`cpu_share` must be 1 to 10000")]);
        let cpus = sliver("a", |r| r.cpus = CpuSet::first(3));
        check(&[cpus], &[], &[("a", "`cpus` names 1-2, but this node has CPUs 0")]);
        let memory = sliver("a", |r| r.mem_limit = 1 << 41);
        let why = "`mem_limit` is 2199023255552 bytes, but this node has 1099511627776 bytes of memory";
        check(from_ref(&memory), &[], &[("a", why)]);
        let disk = sliver("a", |r| r.disk_quota = 1 << 41);
        let why = "`disk_quota` is 2199023255552 bytes, but this node's data partition has 1099511627776";
        check(&[disk], &[], &[("a", why)]);
        // It was admitted once.
        check(from_ref(&memory), from_ref(&memory), &[]);
        // Limits may add up to more than there is.
        let half = |name: &str| sliver(name, |r| r.mem_limit = 1 << 39);
        check(&[half("a"), half("b"), half("c")], &[], &[]);
    }
}
