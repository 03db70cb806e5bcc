//! Running one thing on the chosen nodes, with progress.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal, Write},
    sync::Mutex,
};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use orrery_pcu::{
    Inventory, Node,
    engine::{Control, Interrupt, Step},
    fleet,
};
use serde::Serialize;
use serde_json::json;

use crate::{
    Nodes, Settings,
    output::{self, Outcome},
};

/// What every command works with.
pub(crate) struct Work<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) control: &'a Control,
    /// Ends what `control` does.
    pub(crate) interrupt: &'a Interrupt,
    pub(crate) inventory: &'a Inventory,
}

/// What came of one node.
pub(crate) trait NodeResult: Serialize + Send {
    /// For people, without the node's name.
    fn text(&self) -> String;
    /// Why it failed, if it did.
    fn failures(&self) -> Vec<&orrery_pcu::engine::Failure>;
}

impl Work<'_> {
    /// Does `work` on every chosen node, which it gets with its name, prints what came of it, and says how it ended.
    pub(crate) fn each<T: NodeResult>(
        &self,
        nodes: &Nodes,
        work: impl Fn(&str, &Node, &dyn Fn(&Step)) -> T + Sync,
    ) -> Result<Outcome> {
        let chosen = self.chosen(nodes)?;
        let bar = bar(chosen.len(), self.settings.json);
        let run = |(name, node): &(&str, &Node)| work(name, node, &|step| self.show(&bar, name, step));
        let printed = Mutex::new(Ok(()));
        let done = |(name, _): &(&str, &Node), result: &T| {
            if !self.settings.json {
                let text = result.text();
                let gap = if text.starts_with('\n') { "" } else { " " };
                if let Err(error) = bar.suspend(|| writeln!(io::stdout(), "{name}:{gap}{text}")) {
                    // Nobody reads it; what is under way has to be done all the same.
                    *printed.lock().expect("nobody panics with it") = Err(error);
                }
            }
            bar.inc(1);
        };
        let results = fleet::each(&chosen, self.settings.parallel, run, done);
        bar.finish_and_clear();
        printed.into_inner().expect("nobody panics with it").context("printing the results")?;
        if self.settings.json {
            let with_name = |((name, _), result): (&(&str, &Node), &T)| json!({ "node": name, "result": result });
            let nodes: Vec<_> = chosen.iter().zip(&results).map(with_name).collect();
            output::document(&json!({ "nodes": nodes }))?;
        }
        Ok(Outcome::of(results.iter().flat_map(NodeResult::failures)))
    }

    fn chosen(&self, nodes: &Nodes) -> Result<Vec<(&str, &Node)>> {
        let chosen: BTreeMap<&str, &Node> = if nodes.all {
            self.inventory.nodes.iter().map(|(name, node)| (name.as_str(), node)).collect()
        } else {
            self.inventory.select(&nodes.names, &nodes.groups)?
        };
        Ok(chosen.into_iter().collect())
    }

    fn show(&self, bar: &ProgressBar, name: &str, step: &Step) {
        if !self.settings.verbose {
            return;
        }
        let text = match step {
            Step::Trying { method } => format!("trying {method}"),
            Step::Seen { state } => format!("the power is {state}"),
            Step::Failed { failure, .. } => output::lines(failure),
            Step::GivingBack { method } => format!("turning it on again by {method}"),
            Step::Taking | Step::Returned => return,
        };
        bar.suspend(|| output::say(&format!("{name}: {text}")));
    }
}

/// Shows on a terminal how many of `length` are done, unless it is a single one.
pub(crate) fn bar(length: usize, json: bool) -> ProgressBar {
    let bar = ProgressBar::new(length as u64);
    if length < 2 || json || !io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template("{bar:30} {pos} of {len}, {elapsed}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
