//! What a node said on its console about its stages.

use std::time::Duration;

use orrery_qemu::Line;
use serde::Serialize;

/// One stage of one boot, from the line PID 1 prints when it ends.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct StageRecord {
    /// Which start of the VM, from 1.
    pub(crate) boot: usize,
    /// `boot` or `node`.
    pub(crate) role: String,
    /// The stage.
    pub(crate) stage: String,
    /// `ok` or `failed`.
    pub(crate) outcome: String,
    /// When it began, in seconds since the VM's start.
    pub(crate) start_s: f64,
    /// How long it took, in seconds.
    pub(crate) duration_s: f64,
    /// What it said.
    pub(crate) detail: String,
}

/// All stages of all boots, in order.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Timeline {
    /// The stages.
    pub(crate) stages: Vec<StageRecord>,
}

impl Timeline {
    /// Reads the console `lines` of boot number `boot`, started at `power_on` (in the lines' own time).
    pub(crate) fn read(boot: usize, power_on: Duration, lines: &[Line]) -> Self {
        let stages = lines
            .iter()
            .filter(|line| line.at >= power_on)
            .filter_map(|line| stage_record(boot, line.at - power_on, &line.text))
            .collect();
        Self { stages }
    }
}

/// Parses `orrery[boot] +3.214s stage network ok (0.182s) eth0 10.0.2.15/24`.
pub(crate) fn stage_record(boot: usize, at: Duration, text: &str) -> Option<StageRecord> {
    let (role, rest) = text.split_once("orrery[")?.1.split_once("] +")?;
    let rest = rest.split_once("s stage ")?.1;
    let (stage, rest) = rest.split_once(' ')?;
    let (outcome, rest) = rest.split_once(" (")?;
    let (duration, detail) = rest.split_once("s)")?;
    let duration_s: f64 = duration.parse().ok()?;
    Some(StageRecord {
        boot,
        role: role.into(),
        stage: stage.into(),
        outcome: outcome.to_lowercase(),
        start_s: round(at.as_secs_f64() - duration_s),
        duration_s,
        detail: detail.trim().into(),
    })
}

fn round(seconds: f64) -> f64 {
    (seconds.max(0.0) * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: Option<(&str, &str, &str, f64, f64, &str)>) {
        let got = stage_record(1, Duration::from_secs(10), text);
        let got = got.as_ref().map(|r| {
            (r.role.as_str(), r.stage.as_str(), r.outcome.as_str(), r.start_s, r.duration_s, r.detail.as_str())
        });
        assert_eq!(got, expect, "{text}");
    }

    #[test]
    fn stage_lines_are_read_and_others_are_not() {
        check(
            "orrery[boot] +3.214s stage network ok (0.182s) eth0 10.0.2.15/24",
            Some(("boot", "network", "ok", 9.818, 0.182, "eth0 10.0.2.15/24")),
        );
        check(
            "orrery[node] +1.0s stage storage FAILED (0.5s) io: reading (a) b",
            Some(("node", "storage", "failed", 9.5, 0.5, "io: reading (a) b")),
        );
        check("orrery[boot] +3.2s recovery: retrying in 2 s", None);
        check("orrery[boot] +3.2s stage", None);
        check("[    1.0] kernel line", None);
    }
}
