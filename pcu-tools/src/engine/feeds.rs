//! A machine with several power supplies, each on an outlet of its own: it is off when all are off.

use crate::{Change, Deadline, PcuError, PowerState, Proof, Session};

/// The sessions of all feeds of one machine.
pub(super) struct Feeds(pub(super) Vec<Box<dyn Session>>);

impl Session for Feeds {
    fn state(&mut self, deadline: Deadline) -> Result<PowerState, PcuError> {
        for feed in &mut self.0 {
            if feed.state(deadline)? == PowerState::On {
                return Ok(PowerState::On);
            }
        }
        Ok(PowerState::Off)
    }

    fn change(&mut self, change: Change, deadline: Deadline) -> Result<(), PcuError> {
        if matches!(change, Change::Cycle | Change::Reset) {
            // One feed would always hold the machine up.
            let detail = "several feeds can only be turned off together and on together".into();
            return Err(PcuError::Unsupported { doing: format!("{change} of several feeds"), detail });
        }
        if change == Change::Off {
            return self.0.iter_mut().try_for_each(|feed| feed.change(change, deadline));
        }
        // One feed that fails takes the power from none of the others.
        let changed: Vec<_> = self.0.iter_mut().map(|feed| feed.change(change, deadline)).collect();
        changed.into_iter().collect()
    }

    fn prove(&mut self, deadline: Deadline) -> Result<Vec<Proof>, PcuError> {
        let proofs: Result<Vec<_>, _> = self.0.iter_mut().map(|feed| feed.prove(deadline)).collect();
        Ok(proofs?.concat())
    }
}
