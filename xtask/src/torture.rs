//! Torture: the same thing many times over, each time hurt at another moment. Everything follows from a seed.

mod power;
mod slivers;
mod tamper;
mod tamper_boot;

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::{image::Images, workspace::Workspace};

/// Options of `cargo xtask torture`.
#[derive(Args)]
pub(crate) struct Torture {
    #[command(subcommand)]
    what: What,
    /// How many runs
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..), global = true)]
    runs: u32,
    /// What phases and instants follow from; the same seed gives the same ones
    #[arg(long, default_value_t = 1, global = true)]
    seed: u64,
    /// Write every run to FILE
    #[arg(long, value_name = "FILE", global = true)]
    json: Option<PathBuf>,
}

#[derive(Subcommand)]
enum What {
    /// Cut a node's power at random instants, and demand that it comes back by itself
    ///
    /// Each run has a fresh disk and one phase, in which the power is cut up to three times, every time at an instant that is
    /// uniform over the phase's measured duration. After the last cut the node has to come up and be seen running at central
    /// with the right release. Machines of failed runs are kept in target/orrery/torture/.
    Power(power::Power),
    /// Kill the node manager, and cut the power, at random instants of what happens to slivers and images
    ///
    /// Each run is one interruption, with operations of every kind under way: the node manager is killed, or the ssh gate, or both
    /// with all their helpers, or the power goes, which is every fourth run. Once all is up again, everything that was acknowledged
    /// must be in force, and nothing left over. A machine goes through twenty runs on one disk. Disk and console of one that failed
    /// are kept in target/orrery/torture/slivers/.
    Slivers(slivers::Slivers),
    /// Change signed and hashed things at random, and demand that none is accepted
    ///
    /// Each run changes one thing at one place (a bit, a byte, cut short, inserted, doubled, swapped), gives it to the code
    /// that verifies it on a node, and then gives it the truth, which must be accepted. Needs no images and no machine.
    /// With --boots, machines are then booted with one thing changed each: at central, or on their disk. They must refuse it,
    /// and come back with the truth. What failed is kept in target/orrery/torture/.
    Tamper {
        /// How many boots of whole machines follow
        #[arg(long, default_value_t = 0)]
        boots: u32,
    },
}

/// Runs it.
///
/// # Errors
/// A run failed, or nothing could be tried.
pub(crate) fn run(workspace: &Workspace, torture: &Torture) -> Result<()> {
    match &torture.what {
        What::Power(power) => power::run(workspace, &crate::prepared(workspace)?, torture, power),
        What::Slivers(slivers) => slivers::run(workspace, &crate::prepared(workspace)?, torture, slivers),
        What::Tamper { boots } => {
            tamper::direct(torture.runs, torture.seed)?;
            if *boots > 0 {
                tamper_boot::run(workspace, &crate::prepared(workspace)?, torture, *boots)?;
            }
            Ok(())
        }
    }
}

/// Interrupts `runs` times what happens to slivers, see [`What::Slivers`].
///
/// # Errors
/// An interruption was not survived.
pub(crate) fn some_slivers(images: &Images, folder: &Path, runs: u32, seed: u64) -> Result<()> {
    slivers::some(images, folder, runs, seed)
}

/// Tampers with `runs` things, see [`What::Tamper`].
///
/// # Errors
/// A change was accepted, or a truth refused.
pub(crate) fn tamper(runs: u32, seed: u64) -> Result<()> {
    tamper::direct(runs, seed)
}

/// SplitMix64 (Steele, Lea and Flood, 2014): small, and good enough to choose instants.
struct Random(u64);

impl Random {
    /// The stream of numbers that belongs to `run` under `seed`.
    fn new(seed: u64, run: u32) -> Self {
        let mut mixer = Self(seed);
        let start = mixer.next();
        Self(start.wrapping_add(u64::from(run).wrapping_mul(0xd134_2543_de82_ef95)))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 on, less than 1.
    #[allow(clippy::cast_precision_loss)]
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// From 0 on, less than `end`; 0 where there is no choice.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap_or_default()
    }

    /// Any byte.
    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    /// One of `choices`, which are not empty.
    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::try_from(self.next() % choices.len() as u64).unwrap_or_default()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_follow_from_the_seed_and_are_spread() {
        let draw = |seed, run| {
            let mut random = Random::new(seed, run);
            [random.fraction(), random.fraction()]
        };
        assert_eq!(draw(7, 3), draw(7, 3));
        assert_ne!(draw(7, 3), draw(7, 4));
        assert_ne!(draw(7, 3), draw(8, 3));
        let firsts: Vec<f64> = (0..1000).map(|run| draw(1, run)[0]).collect();
        assert!(firsts.iter().all(|f| (0.0..1.0).contains(f)));
        for tenth in 0..10 {
            let low = f64::from(tenth) / 10.0;
            let count = firsts.iter().filter(|f| (low..low + 0.1).contains(*f)).count();
            assert!((60..150).contains(&count), "{count} of 1000 from {low} on");
        }
    }
}
