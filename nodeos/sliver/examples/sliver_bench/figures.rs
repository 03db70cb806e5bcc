//! What is told of a measurement.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

/// What stands before a figure in its line.
pub(crate) const MARK: &str = "FIGURE ";

/// Tells what `who` showed for `what`: one value or one for each round.
pub(crate) fn tell(what: &str, who: &str, unit: &str, values: &[f64]) {
    // Enough digits for ratios, and lines that a serial port carries quickly.
    let values: Vec<f64> = values.iter().map(|value| (value * 1000.0).round() / 1000.0).collect();
    println!("{MARK}{}", json!({ "what": what, "who": who, "unit": unit, "values": values }));
}

/// Tells how well a limit was kept: what was allowed and what was had.
pub(crate) fn tell_cap(cap: &str, unit: &str, allowed: f64, had: f64) {
    tell(cap, "allowed", unit, &[allowed]);
    tell(cap, "had", unit, &[had]);
}

/// How long it takes, in milliseconds.
pub(crate) fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(milliseconds(start.elapsed()))
}

pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// Bytes or counts, as far as they are exact.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn float(value: u64) -> f64 {
    value as f64
}
