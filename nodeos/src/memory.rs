//! The watch over the node's memory.
//!
//! Limits of slivers may add up to more memory than there is. When slivers want it all, the kernel spends its time on taking
//! pages away from one to give them to another, and everything on the node stands still long before the kernel finds that it
//! must end something. This watch looks at both, what is left and how long processes stand still for want of it (PSI,
//! `Documentation/accounting/psi.rst`), since neither alone says that the node is in trouble: a sliver that struggles with its own limit
//! stands still too, and memory that is used well is just used. It tells of a shortage, then ends everything in the sliver that holds the
//! most, and starts the machine over if there is no sliver left to blame.
//!
//! It also ends everything in a sliver that holds far more than it may. The kernel holds up who asks for memory beyond a limit, but what
//! comes in from the network for a sliver's sockets is charged as it comes: a sliver that asks for nothing is not held up.

use std::{
    fs::{self, File},
    io::{self, Write},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use orrery_sliver::Held;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// What wakes the watch: processes that stood still for 150 ms of a second.
const TRIGGER: &[u8] = b"some 150000 1000000\0";
/// How often it looks without being woken.
const LOOK: Duration = Duration::from_secs(10);
/// A part of the memory; below it, with processes standing still, memory is tight.
const TIGHT: u64 = 7;
/// As above; memory is short.
const SHORT: u64 = 10;
/// Per cent of the last ten seconds in which some process stood still, from which on that is a sign.
const SOME_TIGHT: f32 = 10.0;
const SOME_SHORT: f32 = 40.0;
/// Likewise, but all processes that had anything to do.
const FULL_SHORT: f32 = 10.0;
/// How often a shortage that lasts is told.
const TELL: Duration = Duration::from_secs(60);
/// How long what was done may take to be felt: the averages are of ten seconds.
const SETTLE: Duration = Duration::from_secs(20);
/// A sliver that holds less than this part of the memory is not to blame.
const NOTABLE: u64 = 50;
/// A sliver that holds this part of its limit beyond it, and this many bytes more, holds far too much.
const BEYOND: u64 = 4;
const BEYOND_BYTES: u64 = 16 << 20;
/// How long the node has to be in trouble, with nobody to blame, before it starts over.
const LAST_RESORT: Duration = Duration::from_secs(120);

/// How the node's memory is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Memory {
    /// All of it, in bytes.
    pub total: u64,
    /// What processes could still get without taking it from others, in bytes.
    pub available: u64,
    /// Per cent of the last ten seconds in which some process stood still for want of memory.
    pub some: f32,
    /// Likewise, but every process.
    pub full: f32,
}

impl Memory {
    fn is_below(&self, part: u64) -> bool {
        self.available < self.total / part
    }

    fn is_tight(&self) -> bool {
        self.is_below(TIGHT) && self.some >= SOME_TIGHT
    }

    fn is_short(&self) -> bool {
        self.is_below(SHORT) && (self.full >= FULL_SHORT || self.some >= SOME_SHORT)
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { total, available, some, full } = self;
        let (available, total) = (available >> 20, total >> 20);
        write!(
            f,
            "{available} of {total} MiB left, processes stand still {some:.0} % of the time, all of them {full:.0} %"
        )
    }
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Calm,
    /// Tell that memory is tight.
    Tell,
    /// End everything in this sliver, which holds the most.
    Stop(Held),
    /// End everything in this sliver, which holds far more than it may.
    Overdrawn(Held),
    /// Start the machine over.
    Reboot,
}

/// What was done about it so far. Pure.
#[derive(Debug, Default)]
pub struct MemoryWatch {
    told: Option<Instant>,
    stopped: Option<Instant>,
    /// Since when memory is short with nobody to blame.
    helpless: Option<Instant>,
}

impl MemoryWatch {
    /// Judges a moment, given what each running sliver holds.
    pub fn judge(&mut self, now: Instant, memory: &Memory, slivers: &[Held]) -> Verdict {
        let beyond = |held: &&Held| held.bytes.saturating_sub(held.limit) >= (held.limit / BEYOND).max(BEYOND_BYTES);
        if let Some(held) = slivers.iter().filter(beyond).max_by_key(|held| held.bytes) {
            return Verdict::Overdrawn(held.clone());
        }
        let within = |then: Option<Instant>, span| then.is_some_and(|then| now.duration_since(then) < span);
        if !memory.is_short() {
            self.helpless = None;
            if !memory.is_tight() || within(self.told, TELL) {
                return Verdict::Calm;
            }
            self.told = Some(now);
            return Verdict::Tell;
        }
        if within(self.stopped, SETTLE) {
            return Verdict::Calm;
        }
        match slivers.iter().max_by_key(|held| held.bytes).filter(|held| held.bytes >= memory.total / NOTABLE) {
            Some(held) => {
                (self.stopped, self.helpless) = (Some(now), None);
                Verdict::Stop(held.clone())
            }
            None => {
                let since = *self.helpless.get_or_insert(now);
                if now.duration_since(since) >= LAST_RESORT { Verdict::Reboot } else { Verdict::Calm }
            }
        }
    }
}

/// How memory is now.
///
/// # Errors
/// When the kernel does not say.
pub fn now() -> Result<Memory> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("reading {path}"));
    parse(&read("/proc/meminfo")?, &read("/proc/pressure/memory")?)
        .context("understanding /proc/meminfo and /proc/pressure/memory")
}

fn parse(memory: &str, pressure: &str) -> Option<Memory> {
    let bytes = |name: &str| {
        let line = memory.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
    };
    let average = |name: &str| {
        let line = pressure.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?.parse().ok()
    };
    Some(Memory {
        total: bytes("MemTotal")?,
        available: bytes("MemAvailable")?,
        some: average("some")?,
        full: average("full")?,
    })
}

/// Wakes up when processes stand still for want of memory, or after a while.
#[derive(Debug)]
pub struct Alarm(File);

impl Alarm {
    /// Asks the kernel for it.
    ///
    /// # Errors
    /// When this kernel does not account pressure.
    pub fn set() -> io::Result<Self> {
        let mut file = File::options().read(true).write(true).open("/proc/pressure/memory")?;
        file.write_all(TRIGGER)?;
        Ok(Self(file))
    }

    /// Waits.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn wait(&self) -> io::Result<()> {
        let patience = Timespec { tv_sec: LOOK.as_secs() as i64, tv_nsec: 0 };
        rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&self.0, PollFlags::PRI)], Some(&patience)))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn memory(available: u64, some: f32, full: f32) -> Memory {
        Memory { total: 1000 * MIB, available: available * MIB, some, full }
    }

    fn held(login: &str, mib: u64) -> Held {
        Held { login: login.to_owned(), bytes: mib * MIB, limit: 500 * MIB }
    }

    fn slivers(all: &[(&str, u64)]) -> Vec<Held> {
        all.iter().map(|(login, mib)| held(login, *mib)).collect()
    }

    #[test]
    fn verdicts() {
        let mut watch = MemoryWatch::default();
        let start = Instant::now();
        let mut check = |seconds, memory: Memory, held: &[(&str, u64)], expect: Verdict| {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(watch.judge(now, &memory, &slivers(held)), expect, "after {seconds} s");
        };
        let stop = |login: &str, mib: u64| Verdict::Stop(held(login, mib));
        let (two, small) = ([("a", 300), ("b", 400)], [("a", 10), ("b", 19)]);
        // Little is left, and nobody minds; a sliver struggles, and plenty is left.
        check(0, memory(10, 0.0, 0.0), &two, Verdict::Calm);
        check(1, memory(500, 99.0, 99.0), &two, Verdict::Calm);
        check(2, memory(100, 12.0, 3.0), &two, Verdict::Tell);
        check(3, memory(100, 12.0, 3.0), &two, Verdict::Calm);
        check(62, memory(100, 12.0, 3.0), &two, Verdict::Tell);
        check(63, memory(40, 50.0, 3.0), &two, stop("b", 400));
        // That takes a while to be felt.
        check(82, memory(40, 50.0, 30.0), &[("a", 300)], Verdict::Calm);
        check(83, memory(40, 20.0, 11.0), &[("a", 300)], stop("a", 300));
        check(103, memory(40, 50.0, 30.0), &small, Verdict::Calm);
        check(200, memory(40, 50.0, 30.0), &small, Verdict::Calm);
        // It got better meanwhile, so that it begins anew.
        check(201, memory(900, 1.0, 0.0), &small, Verdict::Calm);
        check(202, memory(40, 50.0, 30.0), &small, Verdict::Calm);
        check(321, memory(40, 50.0, 30.0), &small, Verdict::Calm);
        check(322, memory(40, 50.0, 30.0), &[], Verdict::Reboot);
    }

    #[test]
    fn far_beyond_its_limit() {
        let mut watch = MemoryWatch::default();
        let mut check = |held: &[Held], expect: Verdict| {
            for memory in [memory(900, 0.0, 0.0), memory(10, 99.0, 99.0)] {
                assert_eq!(watch.judge(Instant::now(), &memory, held), expect);
            }
        };
        let small = Held { login: "small".into(), bytes: 25 * MIB, limit: 8 * MIB };
        check(&slivers(&[("a", 400), ("b", 625), ("c", 624)]), Verdict::Overdrawn(held("b", 625)));
        check(&[small.clone(), held("a", 500)], Verdict::Overdrawn(small.clone()));
        let calm = memory(900, 0.0, 0.0);
        let near = [held("a", 624), Held { bytes: 23 * MIB, ..small.clone() }, Held { limit: u64::MAX, ..small }];
        assert_eq!(watch.judge(Instant::now(), &calm, &near), Verdict::Calm);
    }

    proptest! {
        #[test]
        fn it_acts_seldom_and_blames_the_biggest(
            moments in prop::collection::vec((0..1000_u64, 0..100_u8, 0..100_u8, prop::collection::vec(0..500_u64, 0..5)), 0..200),
        ) {
            let mut watch = MemoryWatch::default();
            let start = Instant::now();
            let (mut stopped, mut told): (Option<u64>, Option<u64>) = (None, None);
            for (second, (available, some, full, held)) in moments.into_iter().enumerate() {
                let second = second as u64;
                let names: Vec<_> = held.iter().enumerate().map(|(i, mib)| super::tests::held(&format!("s{i}"), *mib)).collect();
                let now = memory(available, some.into(), full.into());
                match watch.judge(start + Duration::from_secs(second), &now, &names) {
                    Verdict::Calm => {}
                    Verdict::Tell => {
                        prop_assert!(told.is_none_or(|then| second - then >= TELL.as_secs()));
                        told = Some(second);
                    }
                    Verdict::Overdrawn(held) => prop_assert!(false, "{held:?}"),
                    Verdict::Stop(most) => {
                        prop_assert!(stopped.is_none_or(|then| second - then >= SETTLE.as_secs()));
                        prop_assert_eq!(Some(most.bytes), held.iter().max().map(|most| most * MIB));
                        prop_assert!(now.is_short());
                        stopped = Some(second);
                    }
                    Verdict::Reboot => prop_assert!(held.iter().all(|held| held * MIB < now.total / NOTABLE)),
                }
            }
        }
    }

    #[test]
    fn what_the_kernel_says() {
        let meminfo = "MemTotal:         488260 kB\nMemFree:          300000 kB\nMemAvailable:     412345 kB\n";
        let pressure =
            "some avg10=1.25 avg60=0.22 avg300=0.04 total=1234\nfull avg10=0.50 avg60=0.10 avg300=0.00 total=99\n";
        let expect = Memory { total: 488_260 << 10, available: 412_345 << 10, some: 1.25, full: 0.5 };
        assert_eq!(parse(meminfo, pressure), Some(expect));
        assert_eq!(parse(meminfo, ""), None);
        assert_eq!(parse("", pressure), None);
    }
}
