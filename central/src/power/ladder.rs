//! What to do about a node that fell silent: reset, power cycle, safe mode, a person. Pure.

use orrery_central_api::{EscalationLevel, PowerPolicy, Rung};
use orrery_protocol::{BootState, RunLevel};

use super::guard::{Guard, Unrest};
use crate::db::power_records::Watched;

const WEEK: u64 = 7 * 24 * 60 * 60;

/// What counts beside the node itself.
#[derive(Debug)]
pub(super) struct Fleet<'a> {
    /// Why nothing is to be done.
    pub(super) unrest: Option<&'a Unrest>,
    /// What is remembered of outages.
    pub(super) guard: &'a Guard,
    /// Nodes on a rung that switches their power.
    pub(super) climbing: u32,
    /// Operations of the ladder within the last hour.
    pub(super) operations: u32,
}

/// What is to be done about a node now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// Nothing.
    Nothing,
    /// Note that it is down.
    Open,
    /// Note that it is not, or that it is nobody's business any more.
    Close(&'static str),
    /// Climb.
    Climb(Rung, Option<&'static str>),
}

/// Decides. Whatever the node's state, this takes one step at most.
pub(super) fn next_step(
    now: u64,
    node: &Watched,
    can_reset: bool,
    policy: &PowerPolicy,
    fleet: &Fleet<'_>,
) -> Decision {
    let Some(last_seen) = node.last_seen.filter(|_| node.called_home) else { return Decision::Nothing };
    if let Some(record) = &node.record {
        let over = if last_seen > record.since { Some("it was heard again") } else { no_concern(node, policy) };
        if let Some(why) = over {
            return Decision::Close(why);
        }
    }
    let silent = now.saturating_sub(last_seen) > policy.silent_after;
    if !silent || fleet.unrest.is_some() || no_concern(node, policy).is_some() {
        return Decision::Nothing;
    }
    let Some(record) = &node.record else { return Decision::Open };
    let waited = record.rung_at.is_none_or(|at| now >= at.saturating_add(policy.rung_wait));
    if !policy.ladder || !waited || node.operating {
        return Decision::Nothing;
    }
    let untouchable = untouchable(node);
    let next = match record.rung {
        Some(Rung::Human) => return Decision::Nothing,
        Some(Rung::Safe) => Rung::Human,
        _ if untouchable.is_some() => Rung::Human,
        None if can_reset => Rung::Reset,
        None | Some(Rung::Reset) => Rung::Cycle,
        Some(Rung::Cycle) => Rung::Safe,
    };
    let first = record.rung.is_none();
    let full = (first && fleet.climbing >= policy.max_at_once) || fleet.operations >= policy.max_per_hour;
    let cut_off = fleet.guard.group_of(node).is_some();
    match next {
        Rung::Human => Decision::Climb(next, untouchable),
        _ if full || cut_off => Decision::Nothing,
        _ => Decision::Climb(next, None),
    }
}

/// Why a node's silence is not to be recorded, if so.
fn no_concern(node: &Watched, policy: &PowerPolicy) -> Option<&'static str> {
    match node.boot_state {
        BootState::Disabled => Some("it is disabled"),
        BootState::Safe => Some("it is wanted in safe mode"),
        _ if node.held => Some("an operator holds it"),
        _ if node.switched_off => Some("its power was turned off"),
        _ if !policy.ladder && !policy.escalation => Some("the policy no longer asks for it"),
        _ => None,
    }
}

/// Why a node's power is not to be switched, if so: then only a person can help.
fn untouchable(node: &Watched) -> Option<&'static str> {
    let ladder_asked = node.record.as_ref().is_some_and(|record| record.rung >= Some(Rung::Safe));
    match node.boot_state {
        BootState::Reinstall => Some("it is being reinstalled"),
        BootState::Upgrade => Some("it is being upgraded"),
        _ if node.run_level == Some(RunLevel::Safe) => Some("it was in safe mode"),
        _ if node.run_level == Some(RunLevel::Installing) => Some("it was installing"),
        _ if node.once.is_some() && !ladder_asked => Some("an operator asked for a state of its next boot"),
        _ if node.drivers.is_empty() => Some("it has no power method"),
        _ => None,
    }
}

/// How far a downtime of so many seconds goes.
pub(super) fn level(down: u64) -> EscalationLevel {
    match down / WEEK {
        0 => EscalationLevel::Down,
        1 => EscalationLevel::Tech,
        2 => EscalationLevel::Pi,
        _ => EscalationLevel::Suspended,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use orrery_central_api::PowerRecord;
    use proptest::prelude::*;

    use super::*;

    /// A node that may climb.
    pub(in super::super) fn node(id: &str, last_seen: u64) -> Watched {
        Watched {
            id: id.to_owned(),
            groups: Vec::new(),
            boot_state: BootState::Boot,
            once: None,
            run_level: Some(RunLevel::Running),
            called_home: true,
            last_seen: Some(last_seen),
            drivers: vec!["ipmi".to_owned()],
            held: false,
            operating: false,
            switched_off: false,
            record: None,
        }
    }

    fn record(since: u64, rung: Option<Rung>, rung_at: Option<u64>) -> PowerRecord {
        PowerRecord {
            id: 1,
            node: String::new(),
            since,
            opened: since,
            rung,
            rung_at,
            level: EscalationLevel::Down,
            level_at: since,
            closed: None,
            why: None,
        }
    }

    fn policy() -> PowerPolicy {
        PowerPolicy { ladder: true, ..PowerPolicy::default() }
    }

    #[test]
    fn one_step_at_a_time() {
        const NOW: u64 = 100_000;
        let guard = Guard::new(0);
        let check = |change: &dyn Fn(&mut Watched, &mut PowerPolicy, &mut Fleet<'_>), expect| {
            let (mut node, mut policy) = (node("n1", 90_000), policy());
            node.record = Some(record(90_000, None, None));
            let mut fleet = Fleet { unrest: None, guard: &guard, climbing: 0, operations: 0 };
            change(&mut node, &mut policy, &mut fleet);
            assert_eq!(next_step(NOW, &node, true, &policy, &fleet), expect, "{node:?}");
        };
        let rung = |rung, at| {
            move |node: &mut Watched, _: &mut PowerPolicy, _: &mut Fleet<'_>| {
                node.record = Some(record(90_000, Some(rung), Some(at)));
            }
        };
        let climb = |rung| Decision::Climb(rung, None);
        check(&|_, _, _| (), climb(Rung::Reset));
        check(&|node, _, _| node.record = None, Decision::Open);
        check(&|node, _, _| node.last_seen = Some(90_001), Decision::Close("it was heard again"));
        check(&|node, _, _| (node.record, node.last_seen) = (None, Some(NOW - 1800)), Decision::Nothing);
        check(&|node, _, _| (node.record, node.last_seen) = (None, None), Decision::Nothing);
        check(&|node, _, _| (node.record, node.called_home) = (None, false), Decision::Nothing);
        check(&rung(Rung::Reset, NOW - 1799), Decision::Nothing);
        check(&rung(Rung::Reset, NOW - 1800), climb(Rung::Cycle));
        check(&rung(Rung::Cycle, NOW - 1800), climb(Rung::Safe));
        check(&rung(Rung::Safe, NOW - 1800), climb(Rung::Human));
        check(&rung(Rung::Human, 0), Decision::Nothing);
        check(&|node, _, _| node.operating = true, Decision::Nothing);
        check(&|_, policy, _| policy.ladder = false, Decision::Close("the policy no longer asks for it"));
        check(&|_, policy, _| (policy.ladder, policy.escalation) = (false, true), Decision::Nothing);
        check(&|_, _, fleet| fleet.unrest = Some(&Unrest::Deaf), Decision::Nothing);
        check(&|_, _, fleet| fleet.climbing = 2, Decision::Nothing);
        check(&|_, _, fleet| fleet.operations = 4, Decision::Nothing);
        let person = |why| Decision::Climb(Rung::Human, Some(why));
        check(&|node, _, _| node.drivers.clear(), person("it has no power method"));
        check(&|node, _, _| node.run_level = Some(RunLevel::Safe), person("it was in safe mode"));
        check(&|node, _, _| node.boot_state = BootState::Upgrade, person("it is being upgraded"));
        check(
            &|node, _, _| node.once = Some(BootState::Safe),
            person("an operator asked for a state of its next boot"),
        );
        check(&|node, _, _| node.boot_state = BootState::Safe, Decision::Close("it is wanted in safe mode"));
        check(&|node, _, _| node.boot_state = BootState::Disabled, Decision::Close("it is disabled"));
        check(&|node, _, _| node.held = true, Decision::Close("an operator holds it"));
        check(&|node, _, _| node.switched_off = true, Decision::Close("its power was turned off"));
    }

    #[test]
    fn downtime_escalates_by_the_week() {
        let check = |days: u64, expect| assert_eq!(level(days * WEEK / 7), expect, "{days}");
        check(6, EscalationLevel::Down);
        check(7, EscalationLevel::Tech);
        check(13, EscalationLevel::Tech);
        check(14, EscalationLevel::Pi);
        check(20, EscalationLevel::Pi);
        check(21, EscalationLevel::Suspended);
        check(500, EscalationLevel::Suspended);
    }

    /// A fleet, what befalls it, and what central makes of it, a minute at a time.
    struct World {
        nodes: Vec<Watched>,
        guard: Guard,
        policy: PowerPolicy,
        /// When, which node, which rung.
        climbed: Vec<(u64, usize, Rung)>,
    }

    impl World {
        fn new(nodes: usize, policy: PowerPolicy) -> Self {
            let nodes = (0..nodes).map(|n| node(&format!("n{n}"), START)).collect();
            Self { nodes, guard: Guard::new(START), policy, climbed: Vec::new() }
        }

        /// One pass, done as the runner does it.
        fn pass(&mut self, now: u64) {
            let unrest = self.guard.look(now, &self.nodes, &self.policy);
            for index in 0..self.nodes.len() {
                let on = |node: &Watched| node.record.as_ref().and_then(|r| r.rung).is_some_and(|r| r < Rung::Human);
                let climbing = self.nodes.iter().filter(|node| on(node)).count() as u32;
                let lately = |(at, _, rung): &&(u64, usize, Rung)| *at + 3600 > now && *rung != Rung::Human;
                let operations = self.climbed.iter().filter(lately).count() as u32;
                let fleet = Fleet { unrest: unrest.as_ref(), guard: &self.guard, climbing, operations };
                let node = &self.nodes[index];
                match next_step(now, node, true, &self.policy, &fleet) {
                    Decision::Nothing => {}
                    Decision::Open => self.nodes[index].record = Some(record(node.last_seen.unwrap(), None, None)),
                    Decision::Close(_) => self.nodes[index].record = None,
                    Decision::Climb(rung, _) => {
                        self.climbed.push((now, index, rung));
                        let since = node.last_seen.unwrap();
                        self.nodes[index].record = Some(record(since, Some(rung), Some(now)));
                    }
                }
            }
        }
    }

    const START: u64 = 1_000_000;
    const MINUTE: u64 = 60;

    /// What cuts nodes off, or stops central.
    #[derive(Debug, Clone)]
    enum Outage {
        Everything,
        /// The nodes from the first number on, so many of them.
        Some(usize, usize),
        /// Central is not there, and is started again.
        Central,
    }

    fn outages(nodes: usize) -> impl Strategy<Value = Vec<(u64, u64, Outage)>> {
        let least = (nodes / 2 + 1).min((nodes * 20 / 100 + 1).max(3));
        let outage = prop_oneof![
            Just(Outage::Everything),
            (0..nodes, least..=nodes).prop_map(|(first, count)| Outage::Some(first, count)),
            Just(Outage::Central),
        ];
        // Minutes of calm before each, in which every node that is well is heard, and minutes that it lasts.
        prop::collection::vec((5_u64..120, 1_u64..400, outage), 1..5)
    }

    fn world() -> impl Strategy<Value = (usize, Vec<u64>, Vec<(u64, u64, Outage)>)> {
        (2_usize..14).prop_flat_map(|nodes| (Just(nodes), prop::collection::vec(1_u64..=5, nodes), outages(nodes)))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// Nodes that are well say something every one to five minutes. Whatever cuts many of them off, or stops central,
        /// however often and for however long: none is ever switched, or called dead.
        #[test]
        fn an_outage_never_cycles_a_healthy_fleet((nodes, every, outages) in world()) {
            let mut world = World::new(nodes, policy());
            let mut now = START;
            for (calm, lasts, outage) in outages.into_iter().chain([(60, 1, Outage::Some(0, 0))]) {
                for minute in 0..calm + lasts {
                    now += MINUTE;
                    let cut = minute >= calm;
                    let away = cut && matches!(outage, Outage::Central);
                    for (index, every) in every.iter().enumerate() {
                        let hit = cut && match outage {
                            Outage::Everything | Outage::Central => true,
                            Outage::Some(first, count) => (index + nodes - first % nodes) % nodes < count,
                        };
                        if !hit && (now / MINUTE).is_multiple_of(*every) {
                            world.nodes[index].last_seen = Some(now);
                        }
                    }
                    if !away {
                        world.pass(now);
                    }
                }
                if matches!(outage, Outage::Central) {
                    world.guard = Guard::new(now);
                }
            }
            prop_assert_eq!(&world.climbed, &[]);
        }

        /// Nodes die one by one, some for good. Each climbs from the first rung on, waits, and never skips to where its power
        /// is switched again; and never more than the policy allows.
        #[test]
        fn rungs_are_in_order_and_limits_hold(
            deaths in prop::collection::vec((0_u64..300, 0_usize..20, prop::option::of(1_u64..200)), 1..5),
            at_once in 1_u32..4,
            per_hour in 1_u32..5,
            wait in 10_u64..60,
        ) {
            let policy = PowerPolicy {
                max_at_once: at_once, max_per_hour: per_hour, rung_wait: wait * MINUTE, ..policy()
            };
            let mut world = World::new(20, policy);
            for minute in 1..700 {
                let now = START + minute * MINUTE;
                for index in 0..20 {
                    let dead = deaths.iter().any(|(at, node, back)| {
                        *node == index && minute >= *at && back.is_none_or(|back| minute < at + back)
                    });
                    if !dead {
                        world.nodes[index].last_seen = Some(now);
                    }
                }
                world.pass(now);
                let on = world.nodes.iter().filter_map(|node| node.record.as_ref()?.rung).filter(|rung| *rung < Rung::Human);
                prop_assert!(on.count() <= at_once as usize);
            }
            let switched: Vec<_> = world.climbed.iter().filter(|(_, _, rung)| *rung != Rung::Human).collect();
            for (at, _, _) in &switched {
                let hour = switched.iter().filter(|(other, _, _)| other <= at && other + 3600 > *at).count();
                prop_assert!(hour <= per_hour as usize);
            }
            for index in 0..20 {
                let mut before: Option<(u64, Rung)> = None;
                for (at, _, rung) in world.climbed.iter().filter(|(_, node, _)| *node == index) {
                    match before {
                        Some((earlier, last)) if *rung != Rung::Reset => {
                            prop_assert!(*rung > last && *at >= earlier + wait * MINUTE, "{last:?} {rung:?}");
                        }
                        _ => prop_assert_eq!(*rung, Rung::Reset),
                    }
                    before = Some((*at, *rung));
                }
                prop_assert!(before.is_none() || deaths.iter().any(|(_, node, _)| *node == index));
            }
            // Who died for good, alone, gets to a person in the end.
            if let [(_, dead, None)] = deaths[..] {
                prop_assert_eq!(world.climbed.last().map(|(_, node, rung)| (*node, *rung)), Some((dead, Rung::Human)));
            }
        }

        /// What an operator keeps for himself is never switched.
        #[test]
        fn what_is_not_wanted_to_run_is_never_switched(
            state in prop::sample::select(vec![BootState::Safe, BootState::Disabled, BootState::Reinstall, BootState::Upgrade]),
            held in any::<bool>(),
            off in any::<bool>(),
            rung in prop::option::of(prop::sample::select(vec![Rung::Reset, Rung::Cycle, Rung::Safe])),
            now in 0_u64..10_000_000,
        ) {
            let guard = Guard::new(0);
            let fleet = Fleet { unrest: None, guard: &guard, climbing: 0, operations: 0 };
            let kept = Watched { record: Some(record(0, rung, Some(0))), ..node("n1", 0) };
            for node in [
                Watched { boot_state: state, ..kept.clone() },
                Watched { held: true, switched_off: off, ..kept.clone() },
                Watched { switched_off: true, held, ..kept },
            ] {
                let step = next_step(now, &node, true, &policy(), &fleet);
                prop_assert!(!matches!(step, Decision::Climb(Rung::Reset | Rung::Cycle | Rung::Safe, _)), "{:?}", step);
            }
        }
    }
}
