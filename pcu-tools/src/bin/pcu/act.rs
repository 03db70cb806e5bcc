//! On, off, cycle, reset.

use anyhow::{Result, bail};
use orrery_pcu::{
    Action,
    engine::{Failure, Outcome as Ended, Report, Step},
};

use crate::{
    Nodes,
    fleet::{NodeResult, Work},
    interruption::Interruption,
    output::{self, Outcome},
};

/// Performs `action` on the chosen nodes.
pub(crate) fn run(work: &Work<'_>, action: Action, nodes: &Nodes, yes: bool) -> Result<Outcome> {
    if nodes.all && !yes {
        bail!("{action} of all {} nodes needs --yes", work.inventory.nodes.len());
    }
    let interruption = Interruption::expect(work.interrupt)?;
    let outcome = work.each(nodes, |name, node, watch| {
        let watch = |step: &Step| {
            interruption.note(name, step);
            watch(step);
        };
        work.control.perform(&node.methods, action, &watch)
    })?;
    Ok(outcome.ended(interruption.status()))
}

impl NodeResult for Report {
    fn text(&self) -> String {
        let method = self.method.as_deref().unwrap_or_default();
        let tries = match self.attempts.len() {
            1 => String::new(),
            tries => format!(" at try {tries}"),
        };
        match (self.outcome, self.failure()) {
            (Ended::Changed, _) => format!("{} done and seen, by {method}{tries}", self.action),
            (Ended::Already, _) => format!("{} already, says {method}", self.action),
            (Ended::Accepted, _) => {
                format!("{} accepted by {method}{tries}; only the node itself can show it", self.action)
            }
            (Ended::Failed, Some(failure)) => {
                let left = if self.left_off { " AND LEFT OFF" } else { "" };
                format!("{} failed{left}: {}", self.action, output::lines(failure))
            }
            (Ended::Failed, None) => format!("{} failed: the node has no method", self.action),
        }
    }

    fn failures(&self) -> Vec<&Failure> {
        self.failure().into_iter().collect()
    }
}
