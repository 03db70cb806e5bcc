//! What must be true, by what was acknowledged: made of events alone, so that it is the same after a power cut.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail, ensure};
use orrery_protocol::{ImageRef, WantedState};
use serde::{Deserialize, Serialize};

use crate::operations::{IMAGES, Lane, Op, Role, SLOTS, slice, sliver};

/// What hits the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Hit {
    /// The node manager is killed.
    Manager,
    /// The ssh gate is killed.
    Gate,
    /// Both are, with all their helpers that are in no sliver.
    Node,
    /// The power goes.
    Power,
}

impl Hit {
    /// Whether a process of this role ends.
    pub(crate) fn ends(self, role: Role) -> bool {
        match self {
            Self::Manager => role == Role::Manager,
            Self::Gate => role == Role::Gate,
            Self::Node | Self::Power => true,
        }
    }
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Event {
    /// These are the images; the first of all events.
    Images(Vec<ImageRef>),
    /// An operation is about to be given to a lane.
    Begin(Lane, Op),
    /// It is done, and acknowledged.
    Done(Lane),
    /// It could not be done, because of another.
    Refused(Lane),
    /// Everything of the roles that this ends stopped where it was.
    Hit(Hit),
    /// Everything was looked at, and is right.
    Checked,
    /// The node manager is up again, and this became of the wish that was interrupted.
    Settled(Fate),
}

/// What becomes of a wish that is interrupted. Nothing in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fate {
    /// It was on the disk, and has been carried out since.
    Kept,
    /// The node never heard of it.
    Unheard,
}

/// What is known about an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Presence {
    Present,
    #[default]
    Absent,
    Either,
}

/// A file that a user wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Written {
    /// It was flushed and acknowledged, and nothing discarded it.
    pub(crate) sure: bool,
    /// The sliver's data was discarded while it was written: it is there or not.
    crossed: bool,
}

/// An operation that has begun.
#[derive(Debug, Clone)]
pub(crate) struct Pending {
    pub(crate) op: Op,
    /// Something that may end a session happened to its sliver meanwhile.
    pub(crate) disturbed: bool,
    /// Files that were sure before it, if it discards them.
    discarded: BTreeSet<u32>,
}

/// All that is known.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) images: Vec<ImageRef>,
    /// What central wants, as acknowledged.
    pub(crate) wanted: WantedState,
    pub(crate) pending: BTreeMap<Lane, Pending>,
    /// A wish that was interrupted, and of which it is not known yet whether it had reached the disk.
    open_wish: Option<Pending>,
    pub(crate) presence: [Presence; IMAGES],
    /// By slot and number. What is not here must not be there.
    pub(crate) files: [BTreeMap<u32, Written>; SLOTS],
    pub(crate) next_number: u32,
    /// What hit since everything was looked at, and what was under way then.
    pub(crate) unchecked: Vec<(Hit, Vec<&'static str>)>,
}

impl Model {
    /// What all events make of nothing.
    pub(crate) fn replay(events: &[Event]) -> Result<Self> {
        let mut model = Self::default();
        events.iter().try_for_each(|event| model.apply(event))?;
        Ok(model)
    }

    /// Takes note of an event.
    pub(crate) fn apply(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Images(images) => self.images.clone_from(images),
            Event::Begin(lane, op) => self.begin(*lane, op)?,
            Event::Done(lane) => {
                let Some(pending) = self.pending.remove(lane) else { bail!("{lane:?} did nothing that could be done") };
                self.done(pending);
            }
            Event::Refused(lane) => {
                let Some(pending) = self.pending.remove(lane) else { bail!("{lane:?} did nothing that could fail") };
                ensure!(pending.disturbed, "{:?} failed, and nothing was done to its sliver", pending.op);
            }
            Event::Checked => self.unchecked.clear(),
            Event::Hit(hit) => {
                self.unchecked.push((*hit, self.under_way()));
                if hit.ends(Lane::Wishes.role())
                    && let Some(pending) = self.pending.remove(&Lane::Wishes)
                {
                    self.open_wish = Some(pending);
                }
                self.pending.retain(|lane, _| !hit.ends(lane.role()));
            }
            Event::Settled(fate) => {
                let Some(pending) = self.open_wish.take() else { bail!("no wish was interrupted") };
                match (fate, pending.op.slot()) {
                    (Fate::Kept, _) => self.done(pending),
                    (Fate::Unheard, Some(slot)) => {
                        for number in pending.discarded {
                            self.files[slot].entry(number).or_default().sure = true;
                        }
                    }
                    (Fate::Unheard, None) => {}
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, lane: Lane, op: &Op) -> Result<()> {
        ensure!(!self.pending.contains_key(&lane), "{lane:?} is not free for {op:?}");
        let same_sliver = |other: &Op| other.slot() == op.slot() && op.slot().is_some();
        let mut pending = Pending { op: op.clone(), disturbed: false, discarded: BTreeSet::new() };
        for other in self.pending.values_mut().filter(|other| same_sliver(&other.op)) {
            pending.disturbed |= other.op.disturbs();
            other.disturbed |= op.disturbs();
        }
        if let Some(image) = op.image()
            && (self.presence[image] != Presence::Present || matches!(op, Op::Remove { .. }))
        {
            self.presence[image] = Presence::Either;
        }
        if let Op::Write { slot, number } = *op {
            let crossed = self.pending.values().any(|other| other.op.discards() && other.op.slot() == Some(slot));
            self.files[slot].insert(number, Written { sure: false, crossed });
            self.next_number = number + 1;
        }
        if let (true, Some(slot)) = (op.discards(), op.slot()) {
            for (number, file) in &mut self.files[slot] {
                if std::mem::take(&mut file.sure) {
                    pending.discarded.insert(*number);
                }
                file.crossed = true;
            }
        }
        self.pending.insert(lane, pending);
        Ok(())
    }

    fn done(&mut self, Pending { op, discarded, .. }: Pending) {
        op.wish(&mut self.wanted, &self.images);
        match op {
            Op::Write { slot, number } => {
                if let Some(file) = self.files[slot].get_mut(&number) {
                    file.sure = !file.crossed;
                }
            }
            Op::Reset { slot, .. } | Op::Destroy { slot } => {
                self.files[slot].retain(|number, _| !discarded.contains(number));
            }
            _ => {}
        }
        if let Some(image) = op.image() {
            let gone = matches!(op, Op::Remove { .. });
            self.presence[image] = if gone { Presence::Absent } else { Presence::Present };
        }
    }

    /// What became of the wish that was interrupted, if one was, by what the node manager knows now.
    pub(crate) fn fate(&self, wanted: &WantedState) -> Result<Option<Fate>> {
        let mut next = self.wanted.clone();
        if let Some(Pending { op, .. }) = &self.open_wish {
            op.wish(&mut next, &self.images);
        }
        let fate = if *wanted == next { Fate::Kept } else { Fate::Unheard };
        let known = fate == Fate::Kept || *wanted == self.wanted;
        ensure!(known, "the node wants {wanted:?}; acknowledged was {:?}, possible {next:?}", self.wanted);
        Ok(self.open_wish.is_some().then_some(fate))
    }

    /// What has begun and is neither done nor interrupted, or was interrupted and is not settled.
    fn under_way(&self) -> Vec<&'static str> {
        self.pending.values().chain(&self.open_wish).map(|pending| pending.op.name()).collect()
    }

    /// The files of a sliver that must be there.
    pub(crate) fn sure_files(&self, slot: usize) -> Vec<u32> {
        self.files[slot].iter().filter(|(_, file)| file.sure).map(|(number, _)| *number).collect()
    }

    /// Whether an image is, or is about to be, that of a sliver.
    pub(crate) fn is_used(&self, image: usize) -> bool {
        let has = |wanted: &WantedState| wanted.slivers.iter().any(|sliver| sliver.image == self.images[image]);
        let about_to = self.pending.get(&Lane::Wishes).is_some_and(|pending| pending.op.image() == Some(image));
        has(&self.wanted) || about_to
    }

    /// Whether an image is about to go.
    pub(crate) fn is_condemned(&self, image: usize) -> bool {
        let condemns = |op: &Op| matches!(op, Op::Remove { .. } | Op::Repair { .. }) && op.image() == Some(image);
        self.pending.get(&Lane::Store).is_some_and(|pending| condemns(&pending.op))
    }

    /// Whether the lane is a session in a sliver that stands still, and so waits for central.
    pub(crate) fn is_frozen(&self, lane: Lane) -> bool {
        let slot = self.pending.get(&lane).and_then(|pending| pending.op.slot());
        let suspended = |slot| sliver(&self.wanted, slot).is_some_and(|sliver| sliver.life.suspended.is_some());
        lane.role() == Role::Gate && slot.is_some_and(suspended)
    }

    /// The slots that have a sliver, with its login.
    pub(crate) fn logins(&self) -> BTreeMap<String, usize> {
        let wanted = (0..SLOTS).filter(|slot| sliver(&self.wanted, *slot).is_some());
        wanted.map(|slot| (slice(slot).login(), slot)).collect()
    }
}
