//! Measurements, side by side with their floor or peer in the same run. Nothing here passes or fails.

mod boot;
mod copy;
mod peers;
mod power;
mod slivers;
mod upgrade;
mod youki;

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde::Serialize;

use crate::{image::Images, workspace::Workspace};

/// Options of `cargo xtask bench`.
#[derive(Args)]
pub(crate) struct Bench {
    #[command(subcommand)]
    what: What,
    /// How often each thing is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=50), global = true)]
    runs: u8,
    /// Write the figures to FILE
    #[arg(long, value_name = "FILE", global = true)]
    json: Option<PathBuf>,
}

#[derive(Subcommand)]
enum What {
    /// Time from VM start to the node OS, next to two bare boots; the install's throughput, next to a plain download
    Boot,
    /// What a node fetches of a reference image of which 1 % has changed
    Upgrade,
    /// What slivers cost and how fast they start, next to crun, runc, youki and OpenSSH's server; how exactly limits are kept
    Slivers(slivers::Slivers),
    /// How long it takes to ask 500 management controllers for their state, next to ipmitool
    Power(power::Power),
}

/// Runs of one measurement.
#[derive(Debug, Clone, Serialize)]
struct Figures {
    name: &'static str,
    unit: &'static str,
    runs: Vec<f64>,
    median: f64,
}

impl Figures {
    fn new(name: &'static str, unit: &'static str, runs: Vec<f64>) -> Self {
        let median = median(&runs);
        Self { name, unit, runs, median }
    }

    fn print(&self) {
        let runs: Vec<String> = self.runs.iter().map(|r| format!("{r:.2}")).collect();
        println!("{:<44} median {:8.2} {}   ({})", self.name, self.median, self.unit, runs.join(" "));
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// Runs the benchmark and prints medians and ratios.
///
/// # Errors
/// A machine did not do what is measured.
pub(crate) fn run(workspace: &Workspace, images: impl FnOnce() -> Result<Images>, bench: &Bench) -> Result<()> {
    let runs = usize::from(bench.runs);
    let figures = match &bench.what {
        What::Boot => serde_json::to_value(boot::run(workspace, &images()?, runs)?),
        What::Upgrade => serde_json::to_value(upgrade::run(workspace, &images()?, runs)?),
        What::Slivers(options) => serde_json::to_value(slivers::run(workspace, images, options, runs)?),
        What::Power(options) => serde_json::to_value(power::run(workspace, options, runs)?),
    }
    .context("writing JSON")?;
    if let Some(path) = &bench.json {
        let text = serde_json::to_string_pretty(&figures).context("writing JSON")?;
        fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let check = |runs: &[f64], expect: f64| {
            let got = Figures::new("x", "s", runs.to_vec()).median;
            assert!((got - expect).abs() < 1e-9, "{runs:?}: {got}");
        };
        check(&[3.0], 3.0);
        check(&[3.0, 1.0, 2.0], 2.0);
        check(&[4.0, 1.0, 2.0, 3.0], 2.5);
    }
}
