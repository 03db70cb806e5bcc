//! One action with one opened device, and the proof that it had an effect.

use std::cell::RefCell;

use super::{control::Policy, interrupt::Interrupt, report::Step};
use crate::{Ability, Action, Change, Class, Deadline, Method, PcuError, PowerState, Session, engine::Outcome};

/// A device, logged in to, and what is to be kept while something is done with it.
pub(super) struct Act<'a> {
    pub(super) session: &'a mut dyn Session,
    pub(super) abilities: &'a [Ability],
    pub(super) policy: &'a Policy,
    pub(super) interrupt: &'a Interrupt,
    pub(super) deadline: Deadline,
    pub(super) watch: &'a dyn Fn(&Step),
}

/// By which methods a cycle took the power, until it was seen on again.
pub(super) struct Taken<'a> {
    methods: RefCell<Vec<&'a Method>>,
    watch: &'a dyn Fn(&Step),
}

impl<'a> Taken<'a> {
    /// None as yet. `watch` is told when the first is, and when none is any more.
    pub(super) fn new(watch: &'a dyn Fn(&Step)) -> Self {
        Self { methods: RefCell::default(), watch }
    }

    /// Those that did not give it back, the last one first.
    pub(super) fn left(&self) -> Vec<&'a Method> {
        self.methods.borrow().iter().rev().copied().collect()
    }

    /// The power is about to be taken by `method`.
    fn add(&self, method: &'a Method) {
        if self.methods.borrow().is_empty() {
            (self.watch)(&Step::Taking);
        }
        self.methods.borrow_mut().retain(|known| *known != method);
        self.methods.borrow_mut().push(method);
    }

    /// `method` gave it back, or had not taken it.
    pub(super) fn settle(&self, method: &Method) {
        self.keep(|taken| taken != method);
    }

    fn keep(&self, which: impl Fn(&Method) -> bool) {
        let before = self.methods.borrow().len();
        self.methods.borrow_mut().retain(|taken| which(taken));
        if before > 0 && self.methods.borrow().is_empty() {
            (self.watch)(&Step::Returned);
        }
    }
}

impl Act<'_> {
    /// Does it. A cycle notes in `taken` that it takes the power by `method`.
    pub(super) fn perform<'m>(
        &mut self,
        action: Action,
        method: &'m Method,
        taken: &Taken<'m>,
    ) -> Result<Outcome, PcuError> {
        let (sees, switches) = (self.can(Ability::Status), self.can(Ability::On) && self.can(Ability::Off));
        match action {
            Action::On | Action::Off => {
                let wanted = if action == Action::On { PowerState::On } else { PowerState::Off };
                if sees && self.session.state(self.deadline)? == wanted {
                    return Ok(Outcome::Already);
                }
                self.change(action.into())?;
                if !sees {
                    return Ok(Outcome::Accepted);
                }
                self.wait_for(wanted, self.interrupt).map(|()| Outcome::Changed)
            }
            Action::Cycle if sees && switches => self.cycle(method, taken),
            Action::Cycle if self.can(Ability::Cycle) => self.accepted(Change::Cycle),
            Action::Cycle => Err(lacks("cycling the power", "can neither cycle nor turn off and on")),
            Action::Reset if !self.can(Ability::Reset) => {
                Err(lacks("resetting the machine", "can only switch power; use cycle"))
            }
            Action::Reset => {
                if sees && self.session.state(self.deadline)? == PowerState::Off {
                    let detail = "it is off, and a reset turns nothing on; use on".into();
                    return Err(PcuError::Refused { doing: "resetting the machine".into(), detail });
                }
                self.accepted(Change::Reset)
            }
        }
    }

    /// Gives back what a cycle took, whatever the state says: of a machine with several feeds it says "on" when one is.
    pub(super) fn give_back(&mut self) -> Result<(), PcuError> {
        match self.session.change(Change::On, self.deadline) {
            // Some devices refuse to do what is done.
            Err(error) if self.session.state(self.deadline)? == PowerState::Off => Err(error),
            _ => self.wait_for(PowerState::On, &Interrupt::default()),
        }
    }

    /// Turns it on, after somebody who cannot be asked.
    pub(super) fn restore(&mut self) -> Result<Outcome, PcuError> {
        if !self.can(Ability::On) {
            return Err(lacks("turning the power on", "cannot turn on"));
        }
        if !self.can(Ability::Status) {
            return self.session.change(Change::On, self.deadline).map(|()| Outcome::Accepted);
        }
        let before = self.session.state(self.deadline)?;
        self.give_back()?;
        Ok(if before == PowerState::On { Outcome::Already } else { Outcome::Changed })
    }

    fn cycle<'m>(&mut self, method: &'m Method, taken: &Taken<'m>) -> Result<Outcome, PcuError> {
        // Once the power is taken, an interruption ends nothing but the time without.
        let on = Interrupt::default();
        if self.session.state(self.deadline)? == PowerState::Off {
            self.change(Change::On)?;
            self.wait_for(PowerState::On, &on)?;
            // What it showed was what was taken, by whichever method.
            taken.keep(|_| false);
            return Ok(Outcome::Changed);
        }
        self.interrupt.check(|| "turning the power off".into())?;
        if self.deadline.left("turning the power off")? < self.policy.off_time {
            let doing = format!("leaving the power off for {} s", self.policy.off_time.as_secs_f32());
            return Err(PcuError::Timeout { doing });
        }
        taken.add(method);
        if let Err(error) = self.session.change(Change::Off, self.deadline) {
            if matches!(error.class(), Class::Unsupported | Class::Privilege) {
                taken.settle(method);
            }
            return Err(error);
        }
        self.wait_for(PowerState::Off, &on)?;
        self.interrupt.wait(self.deadline.left("leaving the power off")?.min(self.policy.off_time));
        self.deadline.left("turning the power on again")?;
        self.session.change(Change::On, self.deadline)?;
        self.wait_for(PowerState::On, &on)?;
        taken.settle(method);
        Ok(Outcome::Changed)
    }

    /// What no state can prove.
    fn accepted(&mut self, change: Change) -> Result<Outcome, PcuError> {
        self.change(change)?;
        if self.can(Ability::Status) {
            self.wait_for(PowerState::On, self.interrupt)?;
        }
        Ok(Outcome::Accepted)
    }

    fn can(&self, ability: Ability) -> bool {
        self.abilities.contains(&ability)
    }

    fn change(&mut self, change: Change) -> Result<(), PcuError> {
        self.interrupt.check(|| format!("asking the device for {change}"))?;
        self.session.change(change, self.deadline)
    }

    /// Reads the state back until it is the wanted one.
    fn wait_for(&mut self, wanted: PowerState, interrupt: &Interrupt) -> Result<(), PcuError> {
        let settled = self.deadline.at_most(self.policy.settle);
        loop {
            // A device that is busy switching is not done.
            let seen = match self.session.state(self.deadline) {
                Err(error) if error.class() == Class::Busy && !settled.passed() => Err(error),
                other => Ok(other?),
            };
            if let Ok(state) = seen {
                (self.watch)(&Step::Seen { state });
                if state == wanted {
                    return Ok(());
                }
            }
            if settled.passed() {
                let waited = self.policy.settle.as_secs_f32();
                let detail = seen
                    .map_or_else(|error| error.to_string(), |state| format!("the power is {state} after {waited} s"));
                return Err(PcuError::NoEffect { doing: format!("turning the power {wanted}"), detail });
            }
            interrupt.check(|| format!("waiting until the power is {wanted}"))?;
            interrupt.wait(self.policy.poll);
        }
    }
}

fn lacks(doing: &str, detail: &str) -> PcuError {
    PcuError::Unsupported { doing: doing.into(), detail: format!("its driver {detail}") }
}
