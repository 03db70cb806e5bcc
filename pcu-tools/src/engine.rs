//! Performing an action on one node, and proving that it had an effect.
//!
//! A node's methods are tried in turn. Within one, what time can mend is tried again; what it cannot (a wrong password, a missing
//! outlet) leads to the next one at once. A device accepts a change long before its relay has moved, and some accept what they
//! never do: so a change counts only when the state that was read back is the one that was asked for.
//!
//! A cycle that fails or is interrupted between off and on is not left there: the method that took the power gives it back, in a
//! time of its own; a [`Report`] says when it could not.

mod act;
mod control;
mod feeds;
mod interrupt;
mod report;

pub use control::{Answer, Control, Policy};
pub use interrupt::Interrupt;
pub use report::{Attempt, Failure, Outcome, Report, Step, Tested};
