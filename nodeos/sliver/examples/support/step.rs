//! Steps of a test, one after the other.

use std::time::Instant;

use anyhow::{Context, Result};

/// Does one step and tells how long it took.
pub(crate) fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let result = work().with_context(|| format!("step `{name}`"))?;
    println!("ok {name} ({} ms)", start.elapsed().as_millis());
    Ok(result)
}
