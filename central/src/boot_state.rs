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

/// A boot state for one boot. Which boot is settled by the first contact after it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Once {
    /// What is wanted of that boot.
    pub(crate) state: BootState,
    /// The boot, once it has contacted.
    pub(crate) boot: Option<String>,
}

/// What counts for a contact of the boot `boot_id`, and what is left of the one-shot state after it.
///
/// The first boot to contact gets the one-shot state, as often as it comes back; the contact of another boot shows that
/// it is over.
pub(crate) fn at_contact(standing: BootState, once: Option<Once>, boot_id: &str) -> (BootState, Option<Once>) {
    match once {
        Some(Once { state, boot }) if boot.as_deref().is_none_or(|boot| boot == boot_id) => {
            (state, Some(Once { state, boot: Some(boot_id.to_owned()) }))
        }
        _ => (standing, None),
    }
}

/// Whether a state can be asked for once. `reinstall` and `upgrade` end by themselves, and a node is not out of service for
/// one boot.
pub(crate) fn can_be_once(state: BootState) -> bool {
    matches!(state, BootState::Boot | BootState::Safe)
}

/// The standing boot state after a node reported `event`. The only things a node can change are that a reinstall or an upgrade
/// it was asked for is done; no failure ever changes what the operator wants.
///
/// `handed_out` is the boot in which the node was last given the script for it since the operator asked: the late report of
/// an earlier install does not cancel a new request.
pub(crate) fn after_event(state: BootState, handed_out: Option<&str>, event: &Event) -> BootState {
    if event.outcome != Outcome::Ok || handed_out != Some(event.boot_id.as_str()) {
        return state;
    }
    let done = match (state, event.role.as_str(), event.stage.as_str()) {
        (BootState::Reinstall, "boot", "install") => true,
        // A trial that was found healthy, or nothing to do: the release runs already.
        (BootState::Upgrade, "node", "health") => event.message.starts_with("promoted "),
        (BootState::Upgrade, "boot", "upgrade") => event.message.starts_with("current "),
        _ => false,
    };
    if done { BootState::Boot } else { state }
}

/// The run level that `event` tells of, if any.
pub(crate) fn run_level(event: &Event) -> Option<RunLevel> {
    match (event.role.as_str(), event.stage.as_str(), event.outcome) {
        // Its sshd is also open beside an installation; safe mode itself says so.
        ("boot", "safe", Outcome::Info) if event.message.starts_with("safe mode: ") => Some(RunLevel::Safe),
        ("boot", "install", Outcome::Info) => Some(RunLevel::Installing),
        ("boot", "install" | "upgrade" | "load", _) => Some(RunLevel::Booting),
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
    use proptest::prelude::*;

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

    fn saying(message: &str, event: Event) -> Event {
        Event { message: message.to_owned(), ..event }
    }

    #[test]
    fn only_what_was_asked_for_changes_a_state() {
        let check = |state, handed_out, event: Event, expect| {
            assert_eq!(after_event(state, handed_out, &event), expect, "{event:?}");
        };
        let done = || event("boot", "install", Outcome::Ok);
        check(BootState::Reinstall, Some("b2"), done(), BootState::Boot);
        check(BootState::Reinstall, Some("b1"), done(), BootState::Reinstall);
        check(BootState::Reinstall, None, done(), BootState::Reinstall);
        check(BootState::Reinstall, Some("b2"), event("boot", "install", Outcome::Failed), BootState::Reinstall);
        check(BootState::Reinstall, Some("b2"), event("node", "install", Outcome::Ok), BootState::Reinstall);
        let promoted = || saying("promoted 0.2.0 slot b", event("node", "health", Outcome::Ok));
        let current = || saying("current 0.2.0 slot b", event("boot", "upgrade", Outcome::Ok));
        check(BootState::Upgrade, Some("b2"), promoted(), BootState::Boot);
        check(BootState::Upgrade, Some("b1"), promoted(), BootState::Upgrade);
        check(BootState::Upgrade, Some("b2"), current(), BootState::Boot);
        let confirmed = saying("confirmed 0.1.0 slot a", promoted());
        check(BootState::Upgrade, Some("b2"), confirmed, BootState::Upgrade);
        check(BootState::Upgrade, Some("b2"), saying("trial 0.2.0 slot b", current()), BootState::Upgrade);
        check(BootState::Upgrade, Some("b2"), done(), BootState::Upgrade);
        for state in [BootState::Boot, BootState::Safe, BootState::Disabled] {
            for event in [done(), promoted(), current(), event("boot", "load", Outcome::Failed)] {
                check(state, Some("b2"), event, state);
            }
        }
    }

    fn states() -> impl Strategy<Value = BootState> {
        use BootState::{Boot, Disabled, Reinstall, Safe, Upgrade};
        prop::sample::select(vec![Boot, Reinstall, Upgrade, Safe, Disabled])
    }

    proptest! {
        #[test]
        fn a_failure_or_another_boot_changes_nothing(
            state in states(),
            role in prop::sample::select(vec!["boot", "node"]),
            stage in prop::sample::select(vec!["install", "upgrade", "health", "load", "safe"]),
            outcome in prop::sample::select(vec![Outcome::Ok, Outcome::Failed, Outcome::Info]),
            message in prop::sample::select(vec!["promoted x slot a", "current x slot a", "trial x slot a", ""]),
            handed_out in prop::option::of(prop::sample::select(vec!["b1", "b2"])),
        ) {
            let after = after_event(state, handed_out, &saying(message, event(role, stage, outcome)));
            if outcome != Outcome::Ok || handed_out != Some("b2") {
                prop_assert_eq!(after, state);
            }
            prop_assert!(after == state || after == BootState::Boot);
        }

        #[test]
        fn one_boot_gets_the_one_shot_state(standing in states(), state in states(), boots in prop::collection::vec(0u8..3, 1..12)) {
            let mut once = Some(Once { state, boot: None });
            let first = boots[0];
            let mut over = false;
            for boot in &boots {
                over |= *boot != first;
                let (served, left) = at_contact(standing, once, &boot.to_string());
                prop_assert_eq!(served, if over { standing } else { state });
                prop_assert_eq!(left.is_none(), over);
                once = left;
            }
        }
    }

    #[test]
    fn run_levels() {
        let check = |role, stage, outcome, expect| assert_eq!(run_level(&event(role, stage, outcome)), expect);
        check("node", "ready", Outcome::Ok, Some(RunLevel::Running));
        check("boot", "safe", Outcome::Ok, None);
        let opened = Event {
            message: "safe mode: the boot script asks for it".to_owned(),
            ..event("boot", "safe", Outcome::Info)
        };
        assert_eq!(run_level(&opened), Some(RunLevel::Safe));
        check("boot", "install", Outcome::Info, Some(RunLevel::Installing));
        check("boot", "install", Outcome::Failed, Some(RunLevel::Booting));
        check("boot", "upgrade", Outcome::Info, Some(RunLevel::Booting));
        check("boot", "network", Outcome::Ok, None);
    }
}
