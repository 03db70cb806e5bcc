//! Sets of logical CPUs.

use alloc::string::String;
use core::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

const WORDS: usize = 8;

/// Some of a machine's logical CPUs, by the kernel's numbers. Written as the kernel does: `0-3,8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct CpuSet([u64; WORDS]);

/// Not a list of CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuSetError;

impl fmt::Display for CpuSetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CPUs are listed as `0-3,8`, with numbers below {}", CpuSet::CAPACITY)
    }
}

impl core::error::Error for CpuSetError {}

impl CpuSet {
    /// Numbers are below this: as many CPUs as our kernel takes.
    pub const CAPACITY: u32 = 64 * WORDS as u32;

    /// The first so many.
    ///
    /// # Panics
    /// When there cannot be so many.
    pub const fn first(count: u32) -> Self {
        let mut set = [0; WORDS];
        let mut cpu = 0;
        while cpu < count {
            set[(cpu / 64) as usize] |= 1 << (cpu % 64);
            cpu += 1;
        }
        Self(set)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether this one is among them.
    pub fn contains(&self, cpu: u32) -> bool {
        self.0.get((cpu / 64) as usize).is_some_and(|word| word >> (cpu % 64) & 1 == 1)
    }

    /// Those that are not in `other`.
    pub fn without(&self, other: &Self) -> Self {
        let mut rest = *self;
        rest.0.iter_mut().zip(other.0).for_each(|(word, other)| *word &= !other);
        rest
    }

    /// The numbers, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..Self::CAPACITY).filter(|cpu| self.contains(*cpu))
    }
}

impl FromIterator<u32> for CpuSet {
    /// # Panics
    /// At a number that is [`CpuSet::CAPACITY`] or above.
    fn from_iter<I: IntoIterator<Item = u32>>(cpus: I) -> Self {
        let mut set = Self::default();
        cpus.into_iter().for_each(|cpu| set.0[(cpu / 64) as usize] |= 1 << (cpu % 64));
        set
    }
}

impl FromStr for CpuSet {
    type Err = CpuSetError;

    fn from_str(s: &str) -> Result<Self, CpuSetError> {
        let number = |s: &str| {
            let digits = s.bytes().all(|b| b.is_ascii_digit());
            s.parse().ok().filter(|n: &u32| digits && *n < Self::CAPACITY).ok_or(CpuSetError)
        };
        let mut set = Self::default();
        for part in s.split(',').filter(|_| !s.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(CpuSetError);
            }
            (first..=last).for_each(|cpu| set.0[(cpu / 64) as usize] |= 1 << (cpu % 64));
        }
        Ok(set)
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let begins = |cpu: &u32| *cpu == 0 || !self.contains(cpu - 1);
        for (index, first) in self.iter().filter(begins).enumerate() {
            let last = (first..Self::CAPACITY).take_while(|cpu| self.contains(*cpu)).last().unwrap_or(first);
            let comma = if index == 0 { "" } else { "," };
            if first == last { write!(f, "{comma}{first}")? } else { write!(f, "{comma}{first}-{last}")? }
        }
        Ok(())
    }
}

impl Serialize for CpuSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CpuSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists() {
        let check = |text: &str, expect: Option<&str>| {
            assert_eq!(text.parse::<CpuSet>().ok().map(|set| set.to_string()).as_deref(), expect, "{text}");
        };
        check("", Some(""));
        check("0", Some("0"));
        check("3,1,2", Some("1-3"));
        check("0-3,8,510-511", Some("0-3,8,510-511"));
        check("63-64", Some("63-64"));
        for broken in ["512", "1-", "-1", "2-1", "+1", "1,,2", ",", "a", "1 "] {
            check(broken, None);
        }
    }

    proptest! {
        #[test]
        fn a_set_is_read_as_it_was_written(cpus in prop::collection::btree_set(0..CpuSet::CAPACITY, 0..600)) {
            let set: CpuSet = cpus.iter().copied().collect();
            prop_assert_eq!(set.to_string().parse::<CpuSet>(), Ok(set));
            prop_assert!(set.iter().eq(cpus.iter().copied()));
            prop_assert_eq!(set.count() as usize, cpus.len());
            prop_assert!(set.without(&set).is_empty());
        }
    }
}
