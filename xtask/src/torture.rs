//! Torture: the same thing many times over, each time hurt at another moment. Everything follows from a seed.

mod tamper;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Options of `cargo xtask torture`.
#[derive(Args)]
pub(crate) struct Torture {
    #[command(subcommand)]
    what: What,
    /// How many runs
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..), global = true)]
    runs: u32,
    /// What everything follows from; the same seed does the same again
    #[arg(long, default_value_t = 1, global = true)]
    seed: u64,
}

#[derive(Subcommand)]
enum What {
    /// Change signed and hashed things at random, and demand that none is accepted
    ///
    /// Each run changes one thing at one place (a bit, a byte, cut short, inserted, doubled, swapped), gives it to the code
    /// that verifies it on a node, and then gives it the truth, which must be accepted. Needs no images and no machine.
    Tamper,
}

/// Runs it.
///
/// # Errors
/// A run failed, or nothing could be tried.
pub(crate) fn run(torture: &Torture) -> Result<()> {
    match &torture.what {
        What::Tamper => tamper::direct(torture.runs, torture.seed),
    }
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
