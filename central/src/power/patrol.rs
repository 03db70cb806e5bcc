//! One look at all nodes, and what follows from it: records, rungs, escalation, and one event when central holds still.

use std::collections::HashSet;

use orrery_central_api::{EscalationLevel, NewPowerOperation, PowerAction, PowerPolicy, PowerRecord, Rung};
use orrery_protocol::BootState;
use rusqlite::Connection;

use super::{
    guard::{Guard, Unrest},
    ladder::{self, Decision, Fleet},
};
use crate::db::{
    nodes,
    power::{self, Holding},
    power_operations,
    power_records::{self as records, Watched},
};

/// Who asks for the operations of the ladder. No operator can have this name.
const LADDER: &str = "central (ladder)";
const HOUR: u64 = 60 * 60;

/// Looks at all nodes and does what their silence asks for. All of it is in the database, or none.
pub(super) fn patrol(
    db: &mut Connection,
    guard: &mut Guard,
    resetting: &HashSet<String>,
    now: u64,
) -> rusqlite::Result<()> {
    let db = db.transaction()?;
    let policy = power::policy(&db)?;
    let nodes = records::watched(&db, now)?;
    if !policy.ladder && !policy.escalation && nodes.iter().all(|node| node.record.is_none()) {
        return Ok(());
    }
    guard.calm_since = power::calm_since(&db)?;
    let before = guard.calm_since;
    let unrest = guard.look(now, &nodes, &policy);
    if guard.calm_since != before {
        power::set_calm_since(&db, guard.calm_since)?;
    }
    hold(&db, unrest.as_ref(), now)?;
    let climbs = |node: &&Watched| node.record.as_ref().and_then(|r| r.rung).is_some_and(|rung| rung < Rung::Human);
    let mut climbing = u32::try_from(nodes.iter().filter(climbs).count()).unwrap_or(u32::MAX);
    let mut operations = power_operations::count_since(&db, LADDER, now.saturating_sub(HOUR))?;
    for node in &nodes {
        let can_reset = node.drivers.iter().any(|driver| resetting.contains(driver));
        let fleet = Fleet { unrest: unrest.as_ref(), guard, climbing, operations };
        match ladder::next_step(now, node, can_reset, &policy, &fleet) {
            Decision::Nothing => escalate(&db, node, &policy, unrest.as_ref(), now)?,
            Decision::Open => {
                records::open(&db, &node.id, node.last_seen.unwrap_or(now), now)?;
                let message = format!("silent for {}", span(silence(node, now)));
                power::note(&db, Some(&node.id), "down", &message, now)?;
            }
            Decision::Close(why) => close(&db, node, why, now)?,
            Decision::Climb(rung, why) => {
                climb(&db, node, &policy, (rung, why), now)?;
                if rung < Rung::Human {
                    climbing += u32::from(node.record.as_ref().is_some_and(|record| record.rung.is_none()));
                    operations += 1;
                }
            }
        }
    }
    db.commit()
}

/// Says once that central holds still because of an outage, and once that this, and the time of listening after it, is over.
fn hold(db: &Connection, unrest: Option<&Unrest>, now: u64) -> rusqlite::Result<()> {
    let before = power::holding(db)?;
    let told = before.as_ref().is_some_and(|holding| holding.outage);
    let holding = unrest
        .map(|unrest| Holding { why: unrest.to_string(), outage: told || !matches!(unrest, Unrest::Settling { .. }) });
    match &holding {
        Some(Holding { why, outage: true }) if !told => {
            power::note(db, None, "holding", &format!("{why}. Nothing is switched until it is over"), now)?;
        }
        None if told => power::note(db, None, "calm", "the outage is over: silent nodes are looked after again", now)?,
        _ => {}
    }
    if holding == before { Ok(()) } else { power::set_holding(db, holding.as_ref()) }
}

fn close(db: &Connection, node: &Watched, why: &str, now: u64) -> rusqlite::Result<()> {
    let Some(record) = &node.record else { return Ok(()) };
    records::close(db, record.id, why, now)?;
    if record.rung >= Some(Rung::Safe) {
        nodes::forget_once(db, &node.id)?;
    }
    let message = format!("no longer down, after {}: {why}", span(now.saturating_sub(record.since)));
    power::note(db, Some(&node.id), "closed", &message, now)
}

fn climb(
    db: &Connection,
    node: &Watched,
    policy: &PowerPolicy,
    (rung, why): (Rung, Option<&str>),
    now: u64,
) -> rusqlite::Result<()> {
    let Some(record) = &node.record else { return Ok(()) };
    let silent = format!("silent for {}", span(silence(node, now)));
    let (action, what) = match rung {
        Rung::Reset => (Some(PowerAction::Reset), "the machine is reset"),
        Rung::Cycle => (Some(PowerAction::Cycle), "its power is cycled"),
        Rung::Safe => (Some(PowerAction::Cycle), "its power is cycled, to come up in safe mode"),
        Rung::Human => (None, "only a person can help"),
    };
    if let Some(action) = action {
        let reason = format!("{silent}: {what}");
        // As long as the rung lasts: the ladder neither climbs while a call home could still confirm it, nor waits on when none can.
        let new = NewPowerOperation { action, reason, confirm_within: policy.rung_wait };
        if power_operations::add(db, &node.id, &new, LADDER, now)?.is_err() {
            return Ok(());
        }
    }
    match rung {
        Rung::Safe => drop(nodes::set_once(db, &node.id, BootState::Safe)?),
        // Whoever mends it wants it as it is wanted.
        Rung::Human if record.rung == Some(Rung::Safe) => nodes::forget_once(db, &node.id)?,
        _ => {}
    }
    records::set_rung(db, record.id, rung, now)?;
    let kind = if rung == Rung::Human { "human" } else { "ladder" };
    let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
    power::note(db, Some(&node.id), kind, &format!("{silent}: {what}{why}"), now)
}

fn escalate(
    db: &Connection,
    node: &Watched,
    policy: &PowerPolicy,
    unrest: Option<&Unrest>,
    now: u64,
) -> rusqlite::Result<()> {
    let Some(PowerRecord { id, since, level: before, .. }) = &node.record else { return Ok(()) };
    let level = ladder::level(now.saturating_sub(*since));
    if !policy.escalation || unrest.is_some() || level <= *before {
        return Ok(());
    }
    records::set_level(db, *id, level, now)?;
    let what = match level {
        EscalationLevel::Down => return Ok(()),
        EscalationLevel::Tech => "the tech contact is to mend it",
        EscalationLevel::Pi => "the PI is to see to it, and it takes no new slivers",
        EscalationLevel::Suspended => "the slices of its site are to be suspended",
    };
    let message = format!("down for {}: {what}", span(now.saturating_sub(*since)));
    power::note(db, Some(&node.id), "escalation", &message, now)
}

fn silence(node: &Watched, now: u64) -> u64 {
    now.saturating_sub(node.last_seen.unwrap_or(now))
}

/// Seconds for people.
fn span(seconds: u64) -> String {
    match seconds {
        s if s < 2 * HOUR => format!("{} min", s / 60),
        s if s < 48 * HOUR => format!("{} h", s / HOUR),
        s => format!("{} days", s / (24 * HOUR)),
    }
}

#[cfg(test)]
mod tests {
    use orrery_central_api::{PowerEvent, PowerResult};
    use orrery_protocol::{Facts, RunLevel};
    use serde_json::json;

    use super::*;
    use crate::db::tests::fresh;

    const START: u64 = 1_000_000_000;
    const MINUTE: u64 = 60;

    /// Nodes that call home every minute unless they are dead, and a clock.
    struct World {
        db: Connection,
        guard: Guard,
        now: u64,
        dead: Vec<&'static str>,
        /// What the nodes say is their boot.
        boot: &'static str,
    }

    const NODES: [&str; 4] = ["n1", "n2", "n3", "n4"];

    impl World {
        fn new(policy: &PowerPolicy) -> Self {
            let db = fresh();
            for id in NODES {
                nodes::insert(&db, id, "", &[], BootState::Boot, START).unwrap();
                power::set_methods(&db, id, &[json!({ "driver": "ipmi" })]).unwrap();
            }
            power::set_policy(&db, policy).unwrap();
            power::set_calm_since(&db, START).unwrap();
            Self { db, guard: Guard::new(START), now: START, dead: Vec::new(), boot: "b" }
        }

        /// So many minutes, each as the runner does it.
        fn pass(&mut self, minutes: u64) {
            let resetting = HashSet::from(["ipmi".to_owned()]);
            for _ in 0..minutes {
                self.now += MINUTE;
                for id in NODES.into_iter().filter(|id| !self.dead.contains(id)) {
                    let facts = Facts { boot_id: self.boot.to_owned(), ..Facts::default() };
                    let level = RunLevel::Running;
                    let contact = nodes::Contact { facts: &facts, level, handed_out: false, once: None };
                    nodes::contacted(&self.db, id, &contact, self.now).unwrap();
                    let boot = power_operations::Boot { id: self.boot, kernel_started: None };
                    power_operations::called_home(&self.db, id, boot, self.now).unwrap();
                }
                patrol(&mut self.db, &mut self.guard, &resetting, self.now).unwrap();
                power_operations::expire(&self.db, self.now).unwrap();
                // The devices do what they are asked for, and it does not help.
                for operation in power_operations::that_are(&self.db, PowerResult::Pending).unwrap() {
                    power_operations::start(&mut self.db, operation.id, self.now).unwrap();
                    let outcome = orrery_central_api::PowerOutcome::Accepted;
                    let done = power_operations::Done { outcome, method: None, attempts: Vec::new() };
                    power_operations::finish(&mut self.db, operation.id, &done, self.now).unwrap();
                }
            }
        }

        fn events(&self) -> Vec<(Option<String>, String)> {
            let events = power::events(&self.db, 1000).unwrap();
            events.into_iter().map(|PowerEvent { node, kind, .. }| (node, kind)).collect()
        }
    }

    fn both() -> PowerPolicy {
        PowerPolicy { ladder: true, escalation: true, ..PowerPolicy::default() }
    }

    #[test]
    fn a_dead_node_climbs_to_a_person_and_escalates() {
        let mut world = World::new(&both());
        world.pass(20);
        world.dead = vec!["n2"];
        world.pass(240);
        let asked: Vec<_> = power_operations::list(&world.db, None, 9).unwrap();
        let of = |operation: &orrery_central_api::PowerOperation| (operation.node.clone(), operation.action);
        let n2 = "n2".to_owned();
        assert_eq!(
            asked.iter().rev().map(of).collect::<Vec<_>>(),
            [(n2.clone(), PowerAction::Reset), (n2.clone(), PowerAction::Cycle), (n2.clone(), PowerAction::Cycle)]
        );
        assert!(asked.iter().all(|operation| operation.result == PowerResult::Expired && operation.who == LADDER));
        let kinds: Vec<_> = world.events().into_iter().filter(|(node, _)| *node == Some(n2.clone())).collect();
        let kinds: Vec<_> = kinds.iter().map(|(_, kind)| kind.as_str()).collect();
        assert_eq!(kinds, ["down", "ladder", "ladder", "ladder", "human"]);
        // The wish for safe mode does not outlast the ladder.
        assert_eq!(nodes::known(&world.db, "n2").unwrap().unwrap().once, None);

        let level = |world: &World| records::open_of(&world.db, "n2").unwrap().unwrap().level;
        assert_eq!(level(&world), EscalationLevel::Down);
        for expect in [EscalationLevel::Tech, EscalationLevel::Pi, EscalationLevel::Suspended] {
            let week = "UPDATE nodes SET last_seen = last_seen - 604800 WHERE id = 'n2';
                        UPDATE power_records SET since = since - 604800;";
            world.db.execute_batch(week).unwrap();
            world.pass(1);
            assert_eq!(level(&world), expect);
        }
        world.dead.clear();
        world.pass(1);
        assert_eq!(records::open_of(&world.db, "n2").unwrap(), None);
        assert_eq!(world.events().last().unwrap().1, "closed");
        assert_eq!(records::list(&world.db, true).unwrap()[0].why.as_deref(), Some("it was heard again"));
    }

    #[test]
    fn a_rung_lasts_as_long_as_the_policy_says_and_a_call_home_until_then_confirms_it() {
        for wait in [10, 90] {
            let mut world = World::new(&PowerPolicy { rung_wait: wait * MINUTE, ..both() });
            world.pass(20);
            world.dead = vec!["n2"];
            world.pass(34 + wait);
            let asked = |world: &World| -> Vec<_> {
                let asked = power_operations::list(&world.db, Some("n2"), 9).unwrap();
                asked.into_iter().rev().map(|operation| (operation.action, operation.result)).collect()
            };
            assert_eq!(asked(&world)[0], (PowerAction::Reset, PowerResult::Expired), "{wait}");
            assert_eq!(asked(&world)[1], (PowerAction::Cycle, PowerResult::Unconfirmed), "{wait}");
            // A slow machine: it calls home just in time.
            world.pass(wait - 2);
            world.dead.clear();
            world.boot = "c";
            world.pass(2);
            assert_eq!(asked(&world)[1..], [(PowerAction::Cycle, PowerResult::Confirmed)], "{wait}");
        }
    }

    #[test]
    fn an_outage_is_said_once_and_nothing_is_switched() {
        let mut world = World::new(&both());
        world.pass(20);
        world.dead = NODES.to_vec();
        world.pass(300);
        world.dead.clear();
        world.pass(30);
        assert_eq!(power_operations::list(&world.db, None, 9).unwrap(), []);
        let said: Vec<_> = world.events().into_iter().map(|(_, kind)| kind).collect();
        assert_eq!(said, ["holding", "calm"]);
    }
}
