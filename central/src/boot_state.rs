//! The boot state machine of a node, as central drives it. Pure.

use orrery_protocol::{BootState, Event, Outcome, RunLevel, ScriptKind};

/// The kind of script a node gets in a boot state.
pub(crate) fn script_kind(state: BootState) -> ScriptKind {
    match state {
        BootState::Boot => ScriptKind::Boot,
        BootState::Reinstall => ScriptKind::Install,
        BootState::Upgrade => ScriptKind::Upgrade,
        BootState::Safe | BootState::Disabled => ScriptKind::Safe,
    }
}

/// The boot state after a node reported `event`. The only thing a node can change is that a reinstall it was
/// asked for is done; no failure ever changes what the operator wants.
///
/// `installing` is the boot in which the node was last given the install script since the operator asked for
/// it: the late report of an earlier install does not cancel a new request.
pub(crate) fn after_event(state: BootState, installing: Option<&str>, event: &Event) -> BootState {
    let installed = event.role == "boot" && event.stage == "install" && event.outcome == Outcome::Ok;
    match state {
        BootState::Reinstall if installed && installing == Some(event.boot_id.as_str()) => BootState::Boot,
        unchanged => unchanged,
    }
}

/// The run level that `event` tells of, if any.
pub(crate) fn run_level(event: &Event) -> Option<RunLevel> {
    match (event.role.as_str(), event.stage.as_str(), event.outcome) {
        ("boot", "safe", Outcome::Ok | Outcome::Info) => Some(RunLevel::Safe),
        ("boot", "install", Outcome::Info) => Some(RunLevel::Installing),
        ("boot", "install" | "load", _) => Some(RunLevel::Booting),
        ("node", "ready", Outcome::Ok) => Some(RunLevel::Running),
        _ => None,
    }
}

/// The run level of a node that was just given a script of `kind`.
pub(crate) fn run_level_at_contact(kind: ScriptKind) -> RunLevel {
    match kind {
        ScriptKind::Install => RunLevel::Installing,
        ScriptKind::Boot | ScriptKind::Upgrade | ScriptKind::Safe => RunLevel::Booting,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(role: &str, stage: &str, outcome: Outcome) -> Event {
        Event {
            boot_id: "b2".to_owned(),
            at_ms: 1,
            wall: 2,
            role: role.to_owned(),
            stage: stage.to_owned(),
            outcome,
            class: None,
            message: String::new(),
            duration_ms: 3,
        }
    }

    #[test]
    fn only_the_asked_for_install_changes_a_state() {
        let check = |state, installing, event: Event, expect| {
            assert_eq!(after_event(state, installing, &event), expect, "{event:?}");
        };
        let done = || event("boot", "install", Outcome::Ok);
        check(BootState::Reinstall, Some("b2"), done(), BootState::Boot);
        check(BootState::Reinstall, Some("b1"), done(), BootState::Reinstall);
        check(BootState::Reinstall, None, done(), BootState::Reinstall);
        check(BootState::Reinstall, Some("b2"), event("boot", "install", Outcome::Failed), BootState::Reinstall);
        check(BootState::Reinstall, Some("b2"), event("node", "install", Outcome::Ok), BootState::Reinstall);
        for state in [BootState::Boot, BootState::Safe, BootState::Disabled] {
            check(state, Some("b2"), done(), state);
            check(state, Some("b2"), event("boot", "load", Outcome::Failed), state);
        }
    }

    #[test]
    fn run_levels() {
        let check = |role, stage, outcome, expect| assert_eq!(run_level(&event(role, stage, outcome)), expect);
        check("node", "ready", Outcome::Ok, Some(RunLevel::Running));
        check("boot", "safe", Outcome::Ok, Some(RunLevel::Safe));
        check("boot", "install", Outcome::Info, Some(RunLevel::Installing));
        check("boot", "install", Outcome::Failed, Some(RunLevel::Booting));
        check("boot", "network", Outcome::Ok, None);
    }
}
