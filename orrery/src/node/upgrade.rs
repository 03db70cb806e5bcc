//! `orrery node upgrade`: a release over many nodes, wave after wave, until one fails.
//!
//! Nothing is remembered here between runs: what nodes report decides, so that the command may be interrupted and run again.

use std::{
    fmt,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use indicatif::ProgressBar;
use orrery_central_api::{BootStateChange, NodeDetail, NodeSummary, ReleaseRecord, ScriptRecord};
use orrery_protocol::{BootState, Digest, Outcome, RunLevel, ScriptKind};
use orrery_transport::{Client, TransportError};
use serde_json::json;
use ureq::http::Method;

use super::{segment, watch::fetch};
use crate::{
    context::Context,
    files,
    units::{Seconds, now},
};

/// How often nodes are looked at.
const PACE: Duration = Duration::from_secs(2);

/// Options of `orrery node upgrade`.
#[derive(clap::Args)]
pub(crate) struct Upgrade {
    /// The release: its name at central, or its signed manifest.
    #[arg(long, value_name = "NAME|SIGNED")]
    release: String,
    /// How many nodes may have been started by the end of each wave: numbers, or parts of all.
    #[arg(long, value_name = "N|N%", value_delimiter = ',', default_value = "1,10%,100%")]
    wave: Vec<Wave>,
    /// How long a node may take.
    #[arg(long, value_name = "SPAN", default_value = "30m")]
    timeout: Seconds,
    /// All nodes.
    #[arg(long, conflicts_with = "targets")]
    all: bool,
    /// Ids of nodes, and groups as `@name`.
    #[arg(required_unless_present = "all", value_name = "ID|@GROUP")]
    targets: Vec<String>,
}

/// The end of a wave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wave {
    Nodes(usize),
    Percent(usize),
}

impl std::str::FromStr for Wave {
    type Err = anyhow::Error;

    fn from_str(s: &str) -> Result<Self> {
        let (digits, wave): (_, fn(usize) -> Self) = match s.strip_suffix('%') {
            Some(digits) => (digits, Self::Percent),
            None => (s, Self::Nodes),
        };
        let number = digits.parse().ok().filter(|n| *n > 0);
        number.map(wave).with_context(|| format!("`{s}` is not a number of nodes like 3 or 10%"))
    }
}

impl Wave {
    /// How many of `all` nodes have been started when it ends; never none.
    fn end(self, all: usize) -> usize {
        match self {
            Self::Nodes(n) => n.min(all),
            Self::Percent(p) => (all * p.min(100)).div_ceil(100).min(all),
        }
    }
}

/// The upgrade stopped at a node; those behind it were left alone.
#[derive(Debug)]
pub(crate) struct Stopped {
    node: String,
    release: String,
    why: String,
    left: usize,
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, release, why, left } = self;
        write!(
            f,
            "stopped at node {node}: {why}; {left} nodes were not started. See `orrery node events {node}` and `orrery node \
             log {node}`. To leave it as it is: `orrery node set-state boot {node}`. To go on: run the same command again, nodes \
             that have release {release} are passed over"
        )
    }
}

impl std::error::Error for Stopped {}

/// The release nodes are to reach.
struct Target {
    name: String,
    manifest: Digest,
}

impl Upgrade {
    pub(crate) fn run(&self, context: &Context) -> Result<()> {
        let client = context.client()?;
        let target = self.target(&client)?;
        let ids = self.nodes(&client)?;
        self.check_scripts(&client, &target, &ids)?;
        let mut todo = Vec::new();
        for id in ids {
            let node = get(&client, &id)?;
            let state = node.summary.boot_state;
            if !matches!(state, BootState::Boot | BootState::Upgrade) {
                // Somebody wants something else of it, and an upgrade would undo that.
                eprintln!("{id}: is wanted in state {state}; left alone");
            } else if !is_there(&node, &target) {
                todo.push(id);
            }
        }
        let bar = if context.json() { ProgressBar::hidden() } else { ProgressBar::new(todo.len() as u64) };
        let mut done = 0;
        // Whatever the waves say, the last one ends with the last node.
        for wave in self.wave.iter().copied().chain([Wave::Percent(100)]) {
            let end = wave.end(todo.len()).max(done);
            let mut wave = Vec::new();
            for id in &todo[done..end] {
                let seen = fetch(&client, id, None, 1)?.last().map_or(0, |event| event.seq);
                wave.push((id.clone(), seen));
                start(&client, id)?;
                say(context, &bar, &json!({ "node": id, "step": "started" }), format!("{id}: started"))?;
            }
            self.wait(context, &client, &bar, &target, wave, todo.len() - end)?;
            done = end;
        }
        bar.finish_and_clear();
        let value = json!({ "release": target.name, "upgraded": todo });
        context.print(&value, |_| format!("{} nodes brought to release {}", todo.len(), target.name))
    }

    fn target(&self, client: &Client) -> Result<Target> {
        let path = Path::new(&self.release);
        let releases: Vec<ReleaseRecord> = client.get("/v1/releases")?;
        let found = if path.is_file() {
            let sha256 = Digest::of(&files::read(path)?);
            releases.into_iter().find(|release| release.envelope.sha256 == sha256)
        } else {
            releases.into_iter().find(|release| release.manifest.release == self.release)
        };
        let found = found.with_context(|| {
            format!("release {} is not published: publish it with `orrery release publish` first", self.release)
        })?;
        Ok(Target { name: found.manifest.release, manifest: found.envelope.sha256 })
    }

    fn nodes(&self, client: &Client) -> Result<Vec<String>> {
        let all: Vec<NodeSummary> = client.get("/v1/nodes")?;
        let named = |node: &NodeSummary, target: &String| match target.strip_prefix('@') {
            Some(group) => node.groups.iter().any(|known| known == group),
            None => *target == node.id,
        };
        for target in &self.targets {
            ensure!(all.iter().any(|node| named(node, target)), "no node is `{target}`");
        }
        let mut chosen: Vec<String> = Vec::new();
        if self.all {
            chosen.extend(all.iter().map(|node| node.id.clone()));
        }
        // In the order they were asked for: the first is the one that is tried first.
        for target in &self.targets {
            chosen.extend(all.iter().filter(|node| named(node, target)).map(|node| node.id.clone()));
        }
        let mut seen = std::collections::HashSet::new();
        chosen.retain(|id| seen.insert(id.clone()));
        Ok(chosen)
    }

    /// Whether every node would be given an upgrade script for the release, and could boot it afterwards.
    fn check_scripts(&self, client: &Client, target: &Target, ids: &[String]) -> Result<()> {
        let scripts: Vec<ScriptRecord> = client.get("/v1/scripts")?;
        for id in ids {
            let node = get(client, id)?;
            let mut groups = node.summary.groups;
            // Central serves a group's script to nodes only whose configuration names the group, too.
            if let Some(facts) = &node.facts {
                groups.retain(|group| facts.groups.contains(group));
            }
            // In central's order: the highest serial, and of equals the one published last.
            let mut served: Option<&ScriptRecord> = None;
            for script in scripts.iter().filter(|s| s.kind == ScriptKind::Upgrade && s.expires > now()) {
                let is_for = script.nodes.iter().any(|to| match to.strip_prefix('@') {
                    Some(group) => groups.iter().any(|known| known == group),
                    None => to == "*" || to == id,
                });
                if is_for && served.is_none_or(|best| script.serial > best.serial) {
                    served = Some(script);
                }
            }
            let names = served.and_then(|script| script.release).is_some_and(|r| r.sha256 == target.manifest);
            if !names {
                bail!(
                    "node {id} would not be given an upgrade script for release {}; make one with:\n  \
                     orrery script new --kind upgrade --release RELEASE/manifest.signed --node {id} --out upgrade.json\n  \
                     orrery sign --key release.key upgrade.json\n  orrery script publish upgrade.signed",
                    target.name
                );
            }
        }
        Ok(())
    }

    /// Waits until all nodes of a wave have the release, or one fails. Of each, the last event from before it was started is
    /// known.
    fn wait(
        &self,
        context: &Context,
        client: &Client,
        bar: &ProgressBar,
        target: &Target,
        mut wave: Vec<(String, u64)>,
        left: usize,
    ) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(self.timeout.0);
        loop {
            let mut still = Vec::new();
            for (id, seen) in wave {
                let node = get(client, &id)?;
                let stop = |why: String| Stopped { node: id.clone(), release: target.name.clone(), why, left };
                if let Some(why) = failure(client, &id, seen)? {
                    bail!(stop(why));
                }
                if is_there(&node, target) {
                    bar.inc(1);
                    let line = format!("{id}: runs release {}", target.name);
                    say(context, bar, &json!({ "node": id, "step": "healthy" }), line)?;
                } else if Instant::now() >= deadline {
                    bail!(stop(format!("it was not healthy on release {} in time", target.name)));
                } else {
                    still.push((id, seen));
                }
            }
            if still.is_empty() {
                return Ok(());
            }
            wave = still;
            std::thread::sleep(PACE);
        }
    }
}

fn get(client: &Client, id: &str) -> Result<NodeDetail> {
    Ok(client.get(&format!("/v1/nodes/{}", segment(id)?))?)
}

/// Wants the upgrade of a node, and asks it to restart. One that is in safe mode or off takes it up at its next contact.
fn start(client: &Client, id: &str) -> Result<()> {
    let change = BootStateChange { boot_state: BootState::Upgrade, once: false };
    client.send(Method::PUT, &format!("/v1/nodes/{id}/boot-state"), &change)?;
    match client.call(Method::POST, &format!("/v1/nodes/{id}/reboot")) {
        Ok(()) => Ok(()),
        Err(TransportError::Refused { class, .. }) if class == "not-running" => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Whether a node runs the release.
fn is_there(node: &NodeDetail, target: &Target) -> bool {
    let status = node.status.as_ref().filter(|_| node.summary.run_level == Some(RunLevel::Running));
    status.is_some_and(|status| status.release == target.name)
        && !matches!(node.summary.boot_state, BootState::Upgrade | BootState::Reinstall)
}

/// Why a node that was started has failed, if it has, as it said after the event `seen`: it fell back from a trial, or it gave this
/// release up earlier and does not try it again by the script it was given.
fn failure(client: &Client, id: &str, seen: u64) -> Result<Option<String>> {
    let events = fetch(client, id, Some(seen), 1000)?;
    let fell_back = events.into_iter().map(|stored| stored.event).find(|event| {
        ["load", "upgrade"].contains(&event.stage.as_str())
            && event.outcome == Outcome::Failed
            && event.class.as_deref() == Some("unhealthy")
    });
    Ok(fell_back.map(|event| event.message))
}

/// A line of progress, above the bar.
fn say(context: &Context, bar: &ProgressBar, value: &serde_json::Value, line: String) -> Result<()> {
    bar.suspend(|| context.print(value, |_| line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waves() {
        let check = |text: &str, all: usize, expect: usize| {
            assert_eq!(text.parse::<Wave>().unwrap().end(all), expect, "{text} of {all}");
        };
        check("1", 30, 1);
        check("10%", 30, 3);
        check("10%", 3, 1);
        check("100%", 30, 30);
        check("50", 30, 30);
        check("1", 0, 0);
        for bad in ["", "0", "0%", "-1", "x%"] {
            assert!(bad.parse::<Wave>().is_err(), "{bad}");
        }
    }
}
