//! What is done to slivers and images: a table, which is the place to add to.

use orrery_protocol::{Admin, ImageRef, Life, Rspec, SliceName, SliverSpec, Startup, WantedState};
use serde::{Deserialize, Serialize};

use crate::model::{Model, Presence};

/// Slivers there are at most. Few, so that operations meet.
pub(crate) const SLOTS: usize = 4;
/// Images there are.
pub(crate) const IMAGES: usize = 3;

/// Numbers that follow from a seed (Steele et al., 2014, "SplitMix").
#[derive(Debug, Clone)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// From 0 on, less than `end`, which is not 0.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// From 0 on, less than 1.
    pub(crate) fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Which process carries operations out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Role {
    /// The node manager.
    Manager,
    /// The ssh gate.
    Gate,
}

/// Operations of one lane follow each other, those of different lanes happen at the same time, as the threads of a node do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Lane {
    /// What central wants: the reconciler's thread.
    Wishes,
    /// The image store.
    Store,
    /// Stopping what nobody uses.
    Rest,
    /// Somebody who has logged in.
    Session,
    /// Somebody else.
    OtherSession,
}

impl Lane {
    pub(crate) const ALL: [Self; 5] = [Self::Wishes, Self::Store, Self::Rest, Self::Session, Self::OtherSession];

    pub(crate) fn role(self) -> Role {
        match self {
            Self::Wishes | Self::Store | Self::Rest => Role::Manager,
            Self::Session | Self::OtherSession => Role::Gate,
        }
    }
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Op {
    /// Central wants a new sliver.
    Create { slot: usize, image: usize, limits: usize },
    /// Central wants other limits.
    Limit { slot: usize, limits: usize },
    /// Central wants it to stand still.
    Suspend { slot: usize, reason: usize },
    /// Central wants it to go on.
    Resume { slot: usize },
    /// Central wants its data discarded.
    Reset { slot: usize, image: usize },
    /// Central wants it stopped.
    Restart { slot: usize },
    /// Central wants it no longer.
    Destroy { slot: usize },
    /// An image is unpacked before anybody needs it.
    Import { image: usize },
    /// An image that no sliver has goes, with the objects no other has.
    Remove { image: usize },
    /// An image that no sliver has is unpacked again.
    Repair { image: usize },
    /// An image is read again.
    Verify { image: usize },
    /// A sliver in which nothing runs is stopped.
    Rest { slot: usize },
    /// A user writes a file and has it flushed.
    Write { slot: usize, number: u32 },
    /// A user reads all files.
    Read { slot: usize },
}

/// A kind of operation.
pub(crate) struct Operation {
    /// Whether it is this lane's.
    lanes: &'static [Lane],
    /// How often it is drawn, among those of its lane that can be.
    weight: usize,
    /// One that makes sense now.
    draw: fn(&Model, &mut Random) -> Option<Op>,
}

const WISHES: &[Lane] = &[Lane::Wishes];
const STORE: &[Lane] = &[Lane::Store];
const REST: &[Lane] = &[Lane::Rest];
const SESSIONS: &[Lane] = &[Lane::Session, Lane::OtherSession];

/// Every kind of operation.
const OPERATIONS: &[Operation] = &[
    Operation { lanes: WISHES, weight: 6, draw: create },
    Operation {
        lanes: WISHES,
        weight: 3,
        draw: |m, r| some(m, r).map(|slot| Op::Limit { slot, limits: r.below(1000) }),
    },
    Operation {
        lanes: WISHES,
        weight: 2,
        draw: |m, r| some(m, r).map(|slot| Op::Suspend { slot, reason: r.below(9) }),
    },
    Operation { lanes: WISHES, weight: 5, draw: resume },
    Operation { lanes: WISHES, weight: 3, draw: reset },
    Operation { lanes: WISHES, weight: 2, draw: |m, r| some(m, r).map(|slot| Op::Restart { slot }) },
    Operation { lanes: WISHES, weight: 2, draw: |m, r| some(m, r).map(|slot| Op::Destroy { slot }) },
    Operation {
        lanes: STORE,
        weight: 3,
        draw: |m, r| image(r, |i| !m.is_condemned(i)).map(|image| Op::Import { image }),
    },
    Operation { lanes: STORE, weight: 3, draw: |m, r| unused(m, r).map(|image| Op::Remove { image }) },
    Operation { lanes: STORE, weight: 1, draw: |m, r| unused(m, r).map(|image| Op::Repair { image }) },
    Operation { lanes: STORE, weight: 1, draw: verify },
    Operation { lanes: REST, weight: 1, draw: rest },
    Operation { lanes: SESSIONS, weight: 3, draw: write },
    Operation { lanes: SESSIONS, weight: 1, draw: |m, r| open(m, r).map(|slot| Op::Read { slot }) },
];

/// The next operation of a lane, if there is one that makes sense.
pub(crate) fn draw(lane: Lane, model: &Model, random: &mut Random) -> Option<Op> {
    let drawn: Vec<(usize, Op)> = OPERATIONS
        .iter()
        .filter(|operation| operation.lanes.contains(&lane))
        .filter_map(|operation| Some((operation.weight, (operation.draw)(model, random)?)))
        .collect();
    let mut ticket = random.below(drawn.iter().map(|(weight, _)| weight).sum::<usize>().max(1));
    drawn.into_iter().find_map(|(weight, op)| match ticket.checked_sub(weight) {
        None => Some(op),
        Some(left) => {
            ticket = left;
            None
        }
    })
}

fn one_of(random: &mut Random, choices: &[usize]) -> Option<usize> {
    (!choices.is_empty()).then(|| choices[random.below(choices.len())])
}

fn slots(model: &Model, random: &mut Random, condition: impl Fn(Option<&SliverSpec>) -> bool) -> Option<usize> {
    let choices: Vec<_> = (0..SLOTS).filter(|slot| condition(sliver(&model.wanted, *slot))).collect();
    one_of(random, &choices)
}

fn image(random: &mut Random, condition: impl Fn(usize) -> bool) -> Option<usize> {
    one_of(random, &(0..IMAGES).filter(|image| condition(*image)).collect::<Vec<_>>())
}

/// A sliver there is.
fn some(model: &Model, random: &mut Random) -> Option<usize> {
    slots(model, random, |sliver| sliver.is_some())
}

/// A sliver that can be entered.
fn open(model: &Model, random: &mut Random) -> Option<usize> {
    slots(model, random, |sliver| sliver.is_some_and(|sliver| sliver.life.suspended.is_none()))
}

/// An image that may go.
fn unused(model: &Model, random: &mut Random) -> Option<usize> {
    image(random, |image| !model.is_used(image))
}

fn create(model: &Model, random: &mut Random) -> Option<Op> {
    let slot = slots(model, random, |sliver| sliver.is_none())?;
    Some(Op::Create { slot, image: image(random, |i| !model.is_condemned(i))?, limits: random.below(1000) })
}

fn resume(model: &Model, random: &mut Random) -> Option<Op> {
    let suspended = |sliver: Option<&SliverSpec>| sliver.is_some_and(|sliver| sliver.life.suspended.is_some());
    slots(model, random, suspended).map(|slot| Op::Resume { slot })
}

fn reset(model: &Model, random: &mut Random) -> Option<Op> {
    let slot = some(model, random)?;
    Some(Op::Reset { slot, image: image(random, |i| !model.is_condemned(i))? })
}

fn verify(model: &Model, random: &mut Random) -> Option<Op> {
    image(random, |image| model.presence[image] == Presence::Present).map(|image| Op::Verify { image })
}

/// Takes no time where nothing runs; not always, or it would be most of what happens.
fn rest(model: &Model, random: &mut Random) -> Option<Op> {
    let slot = some(model, random)?;
    (random.below(4) == 0).then_some(Op::Rest { slot })
}

fn write(model: &Model, random: &mut Random) -> Option<Op> {
    open(model, random).map(|slot| Op::Write { slot, number: model.next_number })
}

impl Op {
    /// Its word in the ledger.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Create { .. } => "create",
            Self::Limit { .. } => "limit",
            Self::Suspend { .. } => "suspend",
            Self::Resume { .. } => "resume",
            Self::Reset { .. } => "reset",
            Self::Restart { .. } => "restart",
            Self::Destroy { .. } => "destroy",
            Self::Import { .. } => "import",
            Self::Remove { .. } => "remove",
            Self::Repair { .. } => "repair",
            Self::Verify { .. } => "verify",
            Self::Rest { .. } => "rest",
            Self::Write { .. } => "write",
            Self::Read { .. } => "read",
        }
    }

    /// The sliver it is about.
    pub(crate) fn slot(&self) -> Option<usize> {
        match *self {
            Self::Create { slot, .. }
            | Self::Limit { slot, .. }
            | Self::Suspend { slot, .. }
            | Self::Resume { slot }
            | Self::Reset { slot, .. }
            | Self::Restart { slot }
            | Self::Destroy { slot }
            | Self::Rest { slot }
            | Self::Write { slot, .. }
            | Self::Read { slot } => Some(slot),
            Self::Import { .. } | Self::Remove { .. } | Self::Repair { .. } | Self::Verify { .. } => None,
        }
    }

    /// The image it needs.
    pub(crate) fn image(&self) -> Option<usize> {
        match *self {
            Self::Create { image, .. }
            | Self::Reset { image, .. }
            | Self::Import { image }
            | Self::Remove { image }
            | Self::Repair { image }
            | Self::Verify { image } => Some(image),
            _ => None,
        }
    }

    /// Whether a session in the same sliver may end because of it.
    pub(crate) fn disturbs(&self) -> bool {
        matches!(self, Self::Suspend { .. } | Self::Reset { .. } | Self::Restart { .. } | Self::Destroy { .. })
    }

    /// Whether it discards what the sliver wrote.
    pub(crate) fn discards(&self) -> bool {
        matches!(self, Self::Reset { .. } | Self::Destroy { .. })
    }

    /// Changes what central wants, if it is a wish.
    pub(crate) fn wish(&self, wanted: &mut WantedState, images: &[ImageRef]) {
        match *self {
            Self::Create { slot, image, limits } => wanted.slivers.push(SliverSpec {
                version: 0,
                slice: slice(slot),
                keys: Vec::new(),
                image: images[image].clone(),
                rspec: rspec(limits),
                life: Life::default(),
                startup: Startup::default(),
                admin: Admin::default(),
            }),
            Self::Destroy { slot } => wanted.slivers.retain(|sliver| sliver.slice != slice(slot)),
            _ => {
                let Some(slot) = self.slot() else { return };
                let Some(sliver) = wanted.slivers.iter_mut().find(|sliver| sliver.slice == slice(slot)) else { return };
                match *self {
                    Self::Limit { limits, .. } => sliver.rspec = rspec(limits),
                    Self::Suspend { reason, .. } => sliver.life.suspended = Some(format!("reason {reason}")),
                    Self::Resume { .. } => sliver.life.suspended = None,
                    Self::Reset { image, .. } => {
                        sliver.image = images[image].clone();
                        sliver.life.reset += 1;
                    }
                    Self::Restart { .. } => sliver.life.restart += 1,
                    _ => {}
                }
            }
        }
    }
}

/// The slice of a slot.
pub(crate) fn slice(slot: usize) -> SliceName {
    format!("test/s{slot}").parse().expect("a slice's name")
}

/// What is wanted of a slot.
pub(crate) fn sliver(wanted: &WantedState, slot: usize) -> Option<&SliverSpec> {
    wanted.slivers.iter().find(|sliver| sliver.slice == slice(slot))
}

/// Limits in which all operations succeed.
fn rspec(limits: usize) -> Rspec {
    Rspec {
        cpu_share: 1 + limits as u32,
        mem_limit: (64 + limits as u64 % 64) << 20,
        disk_quota: (32 + limits as u64 % 32) << 20,
        pids_limit: 32 + limits as u32 % 40,
        ..Rspec::default()
    }
}

/// What the file of this number contains.
pub(crate) fn content(number: u32) -> Vec<u8> {
    let mut random = Random(number.into());
    let length = 1 + random.below(40_000);
    (0..length).map(|_| random.below(256) as u8).collect()
}
