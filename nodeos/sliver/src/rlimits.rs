//! Limits that the kernel keeps for each process: set on a sliver's first process, from which all others have them.

use std::{collections::BTreeSet, io};

use orrery_protocol::Rspec;
use orrery_sys::rlimit;
use rustix::{
    io::Errno,
    process::{Pid, Resource, Rlimit, prlimit},
};

/// Files that a process may open without asking for more, as ever: programs that use `select(2)` know no higher numbers.
const OPEN_FILES: u64 = 1024;
/// All that are set.
const RESOURCES: [Resource; 2] = [Resource::Nofile, Resource::Memlock];
/// How often processes are listed until none is new. One that forks faster than that keeps what it has: a limit too low or too
/// high for it, and never more than another sliver may have.
const ROUNDS: usize = 8;

/// What a sliver's processes start with.
fn limit(rspec: &Rspec, resource: Resource) -> Rlimit {
    match resource {
        Resource::Nofile => Rlimit { current: Some(rspec.nofile.min(OPEN_FILES)), maximum: Some(rspec.nofile) },
        _ => Rlimit { current: Some(rspec.memlock), maximum: Some(rspec.memlock) },
    }
}

/// What becomes of a process's limit when that of its sliver changes from `before` to `after`. A process may have lowered its own,
/// and keeps that as far as it still may.
fn changed(own: Rlimit, before: Rlimit, after: Rlimit) -> Rlimit {
    // No limit is above any.
    let least = |a: Option<u64>, b: Option<u64>| [a, b].into_iter().flatten().min();
    let follow = |own, before, after| if own == before { after } else { least(own, after) };
    let maximum = follow(own.maximum, before.maximum, after.maximum);
    let current = if own.current == before.current { after.current } else { own.current };
    Rlimit { current: least(current, maximum), maximum }
}

/// Brings a sliver's processes to its limits: `first`, and whatever `list` tells. What the first process has is what the sliver's
/// limits were.
pub(crate) fn apply(rspec: &Rspec, first: Pid, list: impl Fn() -> Vec<Pid>) -> io::Result<()> {
    for resource in RESOURCES {
        let (before, after) = (rlimit::get(first, resource)?, limit(rspec, resource));
        if before == after {
            continue;
        }
        let mut done = BTreeSet::from([first.as_raw_nonzero()]);
        for _ in 0..ROUNDS {
            let fresh: Vec<_> = list().into_iter().filter(|process| done.insert(process.as_raw_nonzero())).collect();
            if fresh.is_empty() {
                break;
            }
            for process in fresh {
                let set = rlimit::get(process, resource)
                    .and_then(|own| Ok(prlimit(Some(process), resource, changed(own, before, after))?));
                match set {
                    // It ended.
                    Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => {}
                    result => drop(result?),
                }
            }
        }
        // Last: whoever is interrupted before that begins again.
        prlimit(Some(first), resource, after)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn what_a_process_lowered_stays_low() {
        let pair = |(current, maximum): (u64, u64)| Rlimit { current: Some(current), maximum: Some(maximum) };
        let check = |own, before, after, expect| {
            assert_eq!(changed(pair(own), pair(before), pair(after)), pair(expect), "{own:?}");
        };
        let (before, lower, higher) = ((1024, 4096), (100, 100), (1024, 9000));
        check((1024, 4096), before, lower, (100, 100));
        check((1024, 4096), before, higher, (1024, 9000));
        // It asked for more, as it may.
        check((4096, 4096), before, higher, (4096, 9000));
        check((4096, 4096), before, lower, (100, 100));
        check((10, 20), before, higher, (10, 20));
        check((10, 20), before, lower, (10, 20));
        check((1024, 2000), before, higher, (1024, 2000));
        let none = Rlimit { current: None, maximum: None };
        assert_eq!(changed(none, pair(before), pair(lower)), pair(lower));
    }

    #[test]
    fn processes_follow() {
        let sleeper = || Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().expect("starting");
        let mut children = [sleeper(), sleeper()];
        let pid = |child: &std::process::Child| Pid::from_child(child);
        let own = rlimit::get(pid(&children[0]), Resource::Nofile).expect("reading");
        // Nobody may raise limits in a test; memory to lock stays.
        let nofile = own.maximum.unwrap_or(4096).min(4096) - 1;
        let memlock = rlimit::get(pid(&children[0]), Resource::Memlock).expect("reading").maximum;
        let rspec = Rspec { nofile, memlock: memlock.unwrap_or(1 << 20), ..Rspec::default() };
        let all: Vec<_> = children.iter().map(pid).collect();
        apply(&rspec, all[0], || all.clone()).expect("applying");
        for process in &all {
            let now = rlimit::get(*process, Resource::Nofile).expect("reading");
            assert_eq!(now.maximum, Some(nofile));
        }
        for child in &mut children {
            child.kill().and_then(|()| child.wait()).expect("ending");
        }
    }
}
