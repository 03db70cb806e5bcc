//! Work that a service goes on with after its answer (DSP0266, "Asynchronous operations").

use std::{thread, time::Duration};

use serde_json::Value;

use super::{
    refusal,
    service::{Service, link},
};
use crate::{
    Deadline, PcuError,
    web::{Reply, clip},
};

/// How often a task is looked at, unless the service says otherwise, and most that it may say.
const POLL: Duration = Duration::from_secs(1);
const LONGEST: u64 = 10;

/// Waits until what `reply` accepted is done: at once, unless it says that there is a task.
///
/// # Errors
/// When the task fails, or does not end in time.
pub(super) fn follow(service: &mut Service, doing: &str, reply: &Reply, deadline: Deadline) -> Result<(), PcuError> {
    if reply.status != 202 {
        return Ok(());
    }
    let task: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let monitor = reply.header("location").or_else(|| task["TaskMonitor"].as_str()).or_else(|| link(&task));
    // Without a monitor, the state that is read afterwards has to tell.
    let Some(monitor) = monitor.map(str::to_owned) else { return Ok(()) };
    let waiting = format!("{doing}, waiting for {}", clip(&monitor));
    let mut pause = asked_pause(reply);
    loop {
        thread::sleep(pause.min(deadline.left(&waiting)?));
        let reply = service.look(&monitor, deadline).map_err(|error| match error {
            PcuError::Timeout { .. } => PcuError::Timeout { doing: waiting.clone() },
            error => error,
        })?;
        match stage(&reply) {
            Stage::Running => pause = asked_pause(&reply),
            Stage::Done => return Ok(()),
            Stage::Failed(detail) => return Err(PcuError::Refused { doing: waiting, detail }),
            Stage::Unclear => return Err(refusal::of(waiting, &reply)),
        }
    }
}

/// Where a task stands.
#[derive(Debug, PartialEq, Eq)]
enum Stage {
    Running,
    Done,
    Failed(String),
    /// An answer that is a refusal itself.
    Unclear,
}

fn stage(reply: &Reply) -> Stage {
    let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    match (reply.status, body["TaskState"].as_str()) {
        // A monitor goes away once its task has ended.
        (404 | 410, _) => Stage::Done,
        (200..=299, Some("Completed")) => Stage::Done,
        (200..=299, Some(state @ ("Exception" | "Killed" | "Cancelled"))) => {
            let said = refusal::in_words(&refusal::messages(&body));
            Stage::Failed(format!("the task ended as {state}{}{said}", if said.is_empty() { "" } else { ": " }))
        }
        // The task itself, not its monitor.
        (200..=299, Some(_)) | (202, None) => Stage::Running,
        (200..=299, None) => Stage::Done,
        _ => Stage::Unclear,
    }
}

fn asked_pause(reply: &Reply) -> Duration {
    let asked = reply.header("retry-after").and_then(|value| value.parse().ok());
    asked.map_or(POLL, |seconds: u64| Duration::from_secs(seconds.clamp(1, LONGEST)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_stands_where_its_monitor_says() {
        let check = |status: u16, body: &str, expected: Stage| {
            let reply = Reply { status, headers: Default::default(), body: body.into() };
            assert_eq!(stage(&reply), expected, "{status} {body}");
        };
        check(202, "", Stage::Running);
        check(202, r#"{"TaskState": "Running"}"#, Stage::Running);
        check(200, r#"{"TaskState": "Pending"}"#, Stage::Running);
        check(200, r#"{"TaskState": "Completed"}"#, Stage::Done);
        check(204, "", Stage::Done);
        check(404, "", Stage::Done);
        let failed = r#"{"TaskState": "Exception", "Messages": [{"MessageId": "X.1.Y", "Message": "no"}]}"#;
        check(200, failed, Stage::Failed("the task ended as Exception: Y: no".into()));
        check(500, "", Stage::Unclear);
    }
}
