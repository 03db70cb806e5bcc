//! What to do so that the slivers there are become the slivers that are wanted. Pure.

use std::collections::BTreeMap;

use orrery_protocol::{Admin, Digest, Life, Rspec, SliceName, SliverSpec, Startup, WantedState};

use crate::admission::{Capacity, refusals};

/// A sliver that exists on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Existing {
    /// Whose it is.
    pub slice: SliceName,
    /// What its root started from.
    pub image: Digest,
    /// The limits it has.
    pub rspec: Rspec,
    /// What runs in it without a login.
    pub startup: Startup,
    /// Whether it is suspended, and the last reset and restart that were carried out.
    pub life: Life,
    /// What it sees and may do of the node.
    pub admin: Admin,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Remove the sliver and its data.
    Destroy(SliceName),
    /// Have the sliver stand still, for this reason.
    Suspend(SliceName, String),
    /// End all that runs in the sliver, and suspend it for this reason, for the restart of this number.
    Stop(SliceName, String, u64),
    /// Change what the sliver sees and may do of the node, which ends all that runs in it.
    SetAdmin(SliceName, Admin),
    /// Discard the sliver's data.
    Reset(SliverSpec),
    /// Stop the sliver, for the restart of this number.
    Restart(SliceName, u64),
    /// Give an existing sliver other limits, or other programs of its own.
    Update(SliverSpec),
    /// Let the sliver go on.
    Resume(SliceName),
    /// Make a new sliver.
    Create(SliverSpec),
}

impl Action {
    /// Whose sliver it is about.
    pub fn slice(&self) -> &SliceName {
        match self {
            Self::Destroy(slice)
            | Self::Suspend(slice, _)
            | Self::Stop(slice, ..)
            | Self::SetAdmin(slice, _)
            | Self::Restart(slice, _)
            | Self::Resume(slice) => slice,
            Self::Reset(spec) | Self::Update(spec) | Self::Create(spec) => &spec.slice,
        }
    }
}

/// The next step of every sliver on the way from `existing` to `wanted`, in an order that frees what is no longer wanted first.
///
/// A sliver whose wanted image is another than the one it started from stays as it is: its changes have no meaning on top of
/// another image, and discarding them is its owner's decision, made by deleting or resetting it. What is refused is not acted
/// upon, neither for a new sliver nor for an existing one. A guarantee waits until those who are to have less do.
pub fn plan(wanted: &WantedState, existing: &[Existing], capacity: &Capacity) -> Vec<Action> {
    let refused = refusals(wanted, existing, capacity);
    let wanted: BTreeMap<&SliceName, &SliverSpec> = wanted.slivers.iter().map(|spec| (&spec.slice, spec)).collect();
    let mut guaranteed: u32 = existing.iter().map(|sliver| sliver.rspec.cpu_pct).sum();
    let mut fits = |has: u32, wants: u32| {
        let more = wants.saturating_sub(has);
        let fits = more == 0 || guaranteed + more <= capacity.guarantees();
        guaranteed += if fits { more } else { 0 };
        fits
    };
    let mut destroy = Vec::new();
    let mut update = Vec::new();
    let mut create = wanted.clone();
    for sliver in existing {
        create.remove(&sliver.slice);
        match wanted.get(&sliver.slice) {
            None => destroy.push(Action::Destroy(sliver.slice.clone())),
            // Another one, which may be somebody else's. It is made once this is gone.
            Some(spec) if spec.life.is_of_another(&sliver.life) => destroy.push(Action::Destroy(sliver.slice.clone())),
            Some(spec) => {
                let mut may = || !refused.contains_key(&spec.slice) && fits(sliver.rspec.cpu_pct, spec.rspec.cpu_pct);
                update.extend(next(spec, sliver, &mut may));
            }
        }
    }
    let create = create.into_values().filter(|spec| !refused.contains_key(&spec.slice) && fits(0, spec.rspec.cpu_pct));
    let create: Vec<_> = create.cloned().map(Action::Create).collect();
    destroy.into_iter().chain(update).chain(create).collect()
}

/// What brings a sliver nearer to what is wanted of it. What is more urgent comes first: it stands still at once, and goes on only
/// once all else is as wanted. Other limits it gets if it `may`.
fn next(wanted: &SliverSpec, sliver: &Existing, may: &mut dyn FnMut() -> bool) -> Option<Action> {
    let slice = || sliver.slice.clone();
    match (&wanted.life, &sliver.life) {
        (Life { suspended: Some(reason), restart, .. }, now) if now.suspended.is_none() && *restart > now.restart => {
            Some(Action::Stop(slice(), reason.clone(), *restart))
        }
        (Life { suspended: Some(reason), .. }, now) if now.suspended.as_ref() != Some(reason) => {
            Some(Action::Suspend(slice(), reason.clone()))
        }
        _ if wanted.admin != sliver.admin => Some(Action::SetAdmin(slice(), wanted.admin.clone())),
        (life, now) if life.reset > now.reset => Some(Action::Reset(wanted.clone())),
        (life, now) if life.restart > now.restart => Some(Action::Restart(slice(), life.restart)),
        _ if (&wanted.rspec, &wanted.startup) != (&sliver.rspec, &sliver.startup) && may() => {
            Some(Action::Update(wanted.clone()))
        }
        (Life { suspended: None, .. }, Life { suspended: Some(_), .. }) => Some(Action::Resume(slice())),
        _ => None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::slice::from_ref;

    use orrery_protocol::{ArtifactRef, Capability, ImageRef};
    use proptest::prelude::*;

    use super::*;
    use crate::admission::tests::PLENTY;

    pub(crate) fn spec(name: &str, image: u8, cpu_share: u32) -> SliverSpec {
        SliverSpec {
            slice: format!("demo/{name}").parse().unwrap(),
            version: 0,
            keys: Vec::new(),
            image: ImageRef {
                name: "debian".to_owned(),
                content: ArtifactRef { sha256: Digest([image; 32]), size: 1 },
                listing: None,
            },
            rspec: Rspec { cpu_share, ..Rspec::default() },
            startup: Startup::default(),
            life: Life::default(),
            admin: Admin::default(),
        }
    }

    pub(crate) fn existing(spec: &SliverSpec) -> Existing {
        Existing {
            slice: spec.slice.clone(),
            image: spec.image.content.sha256,
            rspec: spec.rspec,
            startup: spec.startup.clone(),
            life: spec.life.clone(),
            admin: spec.admin.clone(),
        }
    }

    fn alive(mut spec: SliverSpec, suspended: Option<&str>, reset: u64, restart: u64) -> SliverSpec {
        spec.life = Life { suspended: suspended.map(str::to_owned), birth: 0, reset, restart };
        spec
    }

    fn check(wanted: &[SliverSpec], have: &[SliverSpec], expect: &[&str]) {
        let have: Vec<_> = have.iter().map(existing).collect();
        let actions = plan(&WantedState { slivers: wanted.to_vec(), reboot: None }, &have, &PLENTY);
        let words: Vec<_> = actions
            .iter()
            .map(|action| match action {
                Action::Destroy(slice) => format!("destroy {}", slice.name()),
                Action::Update(spec) => format!("update {} {}", spec.slice.name(), spec.rspec.cpu_share),
                Action::Create(spec) => format!("create {}", spec.slice.name()),
                Action::Suspend(slice, reason) => format!("suspend {} {reason}", slice.name()),
                Action::Stop(slice, reason, number) => format!("stop {} {reason} {number}", slice.name()),
                Action::SetAdmin(slice, admin) => {
                    format!("set admin {} {}", slice.name(), admin.capabilities.len())
                }
                Action::Resume(slice) => format!("resume {}", slice.name()),
                Action::Reset(spec) => format!("reset {} {}", spec.slice.name(), spec.life.reset),
                Action::Restart(slice, number) => format!("restart {} {number}", slice.name()),
            })
            .collect();
        assert_eq!(words, expect);
    }

    #[test]
    fn plans() {
        let (a, b) = (spec("a", 1, 100), spec("b", 1, 100));
        check(&[], &[], &[]);
        check(from_ref(&a), &[], &["create a"]);
        check(from_ref(&a), from_ref(&a), &[]);
        check(&[], from_ref(&a), &["destroy a"]);
        check(&[b.clone(), spec("c", 1, 7)], &[a.clone(), spec("c", 1, 8)], &["destroy a", "update c 7", "create b"]);
        // A sliver of a slice that had the name before is nobody's any more; what is not known costs nobody anything.
        let born = |birth| {
            let mut spec = b.clone();
            spec.life.birth = birth;
            spec
        };
        check(&[born(2)], &[born(1)], &["destroy b"]);
        for (wanted, there) in [(1, 1), (0, 1), (1, 0)] {
            check(&[born(wanted)], &[born(there)], &[]);
        }
        // Another image does not cost a sliver its data.
        check(&[spec("a", 2, 100)], from_ref(&a), &[]);
        // Limits that cannot be.
        check(&[spec("a", 1, 0), spec("b", 1, 0)], &[a], &[]);
        // Programs of its own, whole or not.
        let with = |script: &str| {
            let mut spec = b.clone();
            spec.startup.initscript = Some(script.to_owned());
            spec
        };
        check(&[with("true")], from_ref(&b), &["update b 100"]);
        check(&[with("true")], &[with("true")], &[]);
        check(from_ref(&b), &[with("true")], &["update b 100"]);
        check(&[with("")], from_ref(&b), &[]);
        // Named twice: the last one counts.
        check(&[b.clone(), spec("b", 1, 5)], &[b], &["update b 5"]);
    }

    #[test]
    fn lives() {
        let one = |wanted: (Option<&str>, u64, u64), now: (Option<&str>, u64, u64), expect: &[&str]| {
            let sliver = |(suspended, reset, restart), share| alive(spec("a", 1, share), suspended, reset, restart);
            check(&[sliver(wanted, 1)], &[sliver(now, 1)], expect);
        };
        one((None, 3, 2), (None, 3, 2), &[]);
        one((Some("abuse"), 9, 2), (None, 3, 2), &["suspend a abuse"]);
        one((Some("abuse"), 9, 2), (Some("late"), 3, 2), &["suspend a abuse"]);
        one((Some("rest"), 3, 4), (None, 3, 2), &["stop a rest 4"]);
        one((Some("rest"), 3, 4), (Some("late"), 3, 2), &["suspend a rest"]);
        one((Some("abuse"), 9, 4), (Some("abuse"), 3, 2), &["reset a 9"]);
        one((None, 9, 4), (Some("abuse"), 9, 2), &["restart a 4"]);
        one((None, 9, 4), (Some("abuse"), 9, 4), &["resume a"]);
        // A central that was set back to an old state discards nothing.
        one((None, 1, 1), (None, 3, 2), &[]);
        // What was taken away is gone at once, unless nothing moves already.
        let admin = |rights: bool, suspended| {
            let mut spec = alive(spec("a", 1, 1), suspended, 1, 1);
            spec.admin.capabilities.extend(rights.then_some(Capability::NetRaw));
            spec
        };
        check(&[admin(false, None)], &[admin(true, None)], &["set admin a 0"]);
        check(&[admin(true, Some("abuse"))], &[admin(false, None)], &["suspend a abuse"]);
        check(&[admin(true, None)], &[admin(false, Some("abuse"))], &["set admin a 1"]);
        check(&[admin(true, None)], &[admin(true, None)], &[]);
        // Nobody gets in before the limits are right.
        check(&[spec("a", 1, 2)], &[alive(spec("a", 1, 1), Some("abuse"), 0, 0)], &["update a 2"]);
    }

    fn any_specs() -> impl Strategy<Value = Vec<SliverSpec>> {
        type Drawn = (String, (u8, u32, (Option<String>, u64, u64), bool));
        let life = (prop::option::of("[xy]"), 0..3_u64, 0..3_u64);
        prop::collection::btree_map("[a-f]", (0..3_u8, 1..4_u32, life, any::<bool>()), 0..6).prop_map(|specs| {
            let spec = |(name, (image, share, (suspended, reset, restart), rights)): Drawn| {
                let mut spec = alive(spec(&name, image, share), suspended.as_deref(), reset, restart);
                spec.admin.capabilities.extend(rights.then_some(Capability::NetRaw));
                spec
            };
            specs.into_iter().map(spec).collect()
        })
    }

    proptest! {
        /// Whatever is wanted one after the other, and however much of each plan succeeds.
        #[test]
        fn guarantees_are_never_over_committed_and_never_taken(
            wishes in prop::collection::vec(prop::collection::btree_map("[a-f]", 0..90_u32, 0..6), 1..6),
            luck in prop::collection::vec(any::<bool>(), 60),
        ) {
            let mut luck = luck.into_iter().cycle();
            let mut have: BTreeMap<SliceName, Existing> = BTreeMap::new();
            let total = |have: &BTreeMap<SliceName, Existing>| have.values().map(|e| e.rspec.cpu_pct).sum::<u32>();
            let wish = |wish: BTreeMap<String, u32>| {
                let spec = |(name, cpu_pct): (String, u32)| {
                    let mut spec = spec(&name, 1, 100);
                    spec.rspec.cpu_pct = cpu_pct;
                    spec
                };
                WantedState { slivers: wish.into_iter().map(spec).collect(), reboot: None }
            };
            let wishes: Vec<_> = wishes.into_iter().map(wish).collect();
            let mut carry_out = |wanted: &WantedState, have: &mut BTreeMap<SliceName, Existing>, fails: bool| {
                let now: Vec<_> = have.values().cloned().collect();
                let actions = plan(wanted, &now, &PLENTY);
                for action in &actions {
                    if fails && luck.next() == Some(true) {
                        continue;
                    }
                    match action {
                        Action::Destroy(slice) => drop(have.remove(slice)),
                        Action::Update(spec) | Action::Create(spec) => drop(have.insert(spec.slice.clone(), existing(spec))),
                        other => panic!("nobody asked for {other:?}"),
                    }
                    let now = have.values().map(|e| e.rspec.cpu_pct).sum::<u32>();
                    assert!(now <= PLENTY.guarantees(), "{now} is guaranteed after {action:?}");
                }
                actions.is_empty()
            };
            for wanted in &wishes {
                let before = have.clone();
                carry_out(wanted, &mut have, true);
                for spec in &wanted.slivers {
                    let kept = before.get(&spec.slice).map_or(0, |e| e.rspec.cpu_pct.min(spec.rspec.cpu_pct));
                    prop_assert!(have.get(&spec.slice).map_or(0, |e| e.rspec.cpu_pct) >= kept, "{} lost what it had", spec.slice);
                }
            }
            // In the end, all that is not refused is there, and what is refused does not fit.
            let last = &wishes[wishes.len() - 1];
            let done = (0..10).any(|_| carry_out(last, &mut have, false));
            prop_assert!(done, "plans without end");
            let now: Vec<_> = have.values().cloned().collect();
            let refused = refusals(last, &now, &PLENTY);
            for spec in &last.slivers {
                let has = have.get(&spec.slice).map(|e| e.rspec.cpu_pct);
                if refused.contains_key(&spec.slice) {
                    prop_assert!(total(&have) - has.unwrap_or(0) + spec.rspec.cpu_pct > PLENTY.guarantees());
                } else {
                    prop_assert_eq!(has, Some(spec.rspec.cpu_pct));
                }
            }
        }

        #[test]
        fn a_plan_carried_out_leaves_nothing_to_do(wanted in any_specs(), have in any_specs()) {
            let wanted = WantedState { slivers: wanted, reboot: None };
            let mut have: BTreeMap<_, _> = have.iter().map(existing).map(|e| (e.slice.clone(), e)).collect();
            let kept: Vec<_> = have.values().cloned().collect();
            // A step for every part of a sliver's life, one for its limits, and one for what it may do.
            for _ in 0..5 {
                let actions = plan(&wanted, &have.values().cloned().collect::<Vec<_>>(), &PLENTY);
                for action in actions {
                    match action {
                        Action::Destroy(slice) => {
                            prop_assert!(wanted.slivers.iter().all(|s| s.slice != slice), "destroys a wanted sliver");
                            prop_assert!(have.remove(&slice).is_some());
                        }
                        Action::Update(spec) => {
                            let sliver = have.get_mut(&spec.slice).unwrap();
                            (sliver.rspec, sliver.startup) = (spec.rspec, spec.startup);
                        }
                        Action::Suspend(slice, reason) => have.get_mut(&slice).unwrap().life.suspended = Some(reason),
                        Action::Stop(slice, reason, number) => {
                            let life = &mut have.get_mut(&slice).unwrap().life;
                            (life.suspended, life.restart) = (Some(reason), number);
                        }
                        Action::Resume(slice) => have.get_mut(&slice).unwrap().life.suspended = None,
                        Action::SetAdmin(slice, admin) => have.get_mut(&slice).unwrap().admin = admin,
                        Action::Reset(spec) => {
                            let sliver = have.get_mut(&spec.slice).unwrap();
                            prop_assert!(sliver.life.reset < spec.life.reset);
                            (sliver.life.reset, sliver.image) = (spec.life.reset, spec.image.content.sha256);
                        }
                        Action::Restart(slice, number) => have.get_mut(&slice).unwrap().life.restart = number,
                        Action::Create(spec) => prop_assert!(have.insert(spec.slice.clone(), existing(&spec)).is_none()),
                    }
                }
            }
            prop_assert_eq!(have.len(), wanted.slivers.len());
            for spec in &wanted.slivers {
                prop_assert_eq!(have[&spec.slice].rspec, spec.rspec);
                prop_assert_eq!(&have[&spec.slice].admin, &spec.admin);
            }
            for before in kept.iter().filter(|e| have.contains_key(&e.slice)) {
                let now = &have[&before.slice];
                prop_assert!(now.image == before.image || now.life.reset > before.life.reset);
            }
            prop_assert!(plan(&wanted, &have.into_values().collect::<Vec<_>>(), &PLENTY).is_empty());
        }
    }
}
