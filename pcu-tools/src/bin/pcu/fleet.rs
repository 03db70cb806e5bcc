//! Running one thing on the chosen nodes, with progress.

use std::{collections::BTreeMap, io::IsTerminal};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use orrery_pcu::{
    Inventory, Node,
    engine::{Control, Step},
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
    /// Does `work` on every chosen node, prints what came of it, and says how it ended.
    pub(crate) fn each<T: NodeResult>(
        &self,
        nodes: &Nodes,
        work: impl Fn(&Node, &dyn Fn(&Step)) -> T + Sync,
    ) -> Result<Outcome> {
        let chosen = self.chosen(nodes)?;
        let bar = self.bar(chosen.len());
        let run = |(name, node): &(&str, &Node)| work(node, &|step| self.show(&bar, name, step));
        let done = |(name, _): &(&str, &Node), result: &T| {
            if !self.settings.json {
                let text = result.text();
                let gap = if text.starts_with('\n') { "" } else { " " };
                bar.suspend(|| println!("{name}:{gap}{text}"));
            }
            bar.inc(1);
        };
        let results = fleet::each(&chosen, self.settings.parallel, run, done);
        bar.finish_and_clear();
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

    fn bar(&self, length: usize) -> ProgressBar {
        let bar = ProgressBar::new(length as u64);
        if length < 2 || self.settings.json || !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let style = ProgressStyle::with_template("{bar:30} {pos} of {len}, {elapsed}");
        bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    }

    fn show(&self, bar: &ProgressBar, name: &str, step: &Step) {
        if !self.settings.verbose {
            return;
        }
        bar.suspend(|| match step {
            Step::Trying { method } => eprintln!("{name}: trying {method}"),
            Step::Seen { state } => eprintln!("{name}: the power is {state}"),
            Step::Failed { failure, .. } => eprintln!("{name}: {}", output::lines(failure)),
        });
    }
}
