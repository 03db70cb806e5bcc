//! `orrery power`: what central does with power by itself: tests over the fleet, the ladder for silent nodes, escalation.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, bail};
use clap::{Subcommand, ValueEnum};
use indicatif::ProgressBar;
use orrery_central_api::{
    LadderStanding, PowerEvent, PowerFailure, PowerOperation, PowerPolicy, PowerRecord, PowerReport, PowerStanding,
    PowerTest, PowerTestRequest, PowerTestsAsked,
};
use ureq::http::Method;

use crate::{
    context::Context,
    node::word,
    units::{Seconds, clean, now, show_time, table},
};

/// How often tests under way are looked at.
const PACE: Duration = Duration::from_secs(1);

#[derive(Subcommand)]
pub(crate) enum Power {
    /// Test by which methods nodes' power could be switched: log in, find the outlet, change nothing. Exit status 1: of some it could not.
    Test {
        /// The nodes' ids; without any, all that have methods.
        ids: Vec<String>,
    },
    /// Test all methods at intervals.
    Schedule {
        /// How often; `off` for never.
        #[arg(long, value_name = "SPAN|off")]
        every: Every,
    },
    /// Show of every node whether its power could be switched, as its last test has it.
    Report,
    /// What central does about nodes that fall silent.
    #[command(subcommand)]
    Policy(Policy),
    /// Show nodes that are down, the rung that they are on, and why central holds still, if it does.
    Ladder,
    /// List nodes that are or were down, and how far that went.
    Records,
    /// List what central did and noticed by itself.
    Events {
        /// At most so many.
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
}

#[derive(Subcommand)]
pub(crate) enum Policy {
    /// Show it.
    Show,
    /// Change it; what is not given stays.
    Set(Box<Change>),
}

/// A span of time, or never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Every(Option<u64>);

impl std::str::FromStr for Every {
    type Err = anyhow::Error;

    fn from_str(s: &str) -> Result<Self> {
        if s == "off" { Ok(Self(None)) } else { s.parse().map(|Seconds(seconds)| Self(Some(seconds))) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Switch {
    On,
    Off,
}

#[derive(clap::Args)]
pub(crate) struct Change {
    /// Whether silent nodes climb the ladder: reset, power cycle, safe mode, a person.
    #[arg(long)]
    ladder: Option<Switch>,
    /// Whether nodes that stay down get an escalation record: tech after one week, PI after two, slices after three.
    #[arg(long)]
    escalation: Option<Switch>,
    /// How long a node may be silent; ten minutes at least.
    #[arg(long, value_name = "SPAN")]
    silent_after: Option<Seconds>,
    /// How long central gives the node to call home after each rung, before the next; ten minutes at least.
    #[arg(long, value_name = "SPAN")]
    rung_wait: Option<Seconds>,
    /// Nodes that may be on the ladder at once.
    #[arg(long, value_name = "N")]
    max_at_once: Option<u32>,
    /// Operations of the ladder within an hour.
    #[arg(long, value_name = "N")]
    max_per_hour: Option<u32>,
    /// When more than this part of the nodes (and at least three) falls silent together, it is an outage, and central holds still.
    #[arg(long, value_name = "PERCENT")]
    storm: Option<u32>,
    /// How long central listens after its start and after an outage before it does anything; ten minutes at least.
    #[arg(long, value_name = "SPAN")]
    settle: Option<Seconds>,
    /// A program in the folder `power` of central's data folder that gets every event as a line of JSON; `none` for none.
    #[arg(long, value_name = "PROGRAM|none")]
    notify: Option<String>,
}

pub(crate) fn run(context: &Context, command: Power) -> Result<()> {
    let client = context.client()?;
    match command {
        Power::Test { ids } => test(context, ids),
        Power::Schedule { every: Every(every) } => {
            let policy: PowerPolicy = client.get("/v1/power/policy")?;
            set_policy(context, PowerPolicy { test_every: every, ..policy })
        }
        Power::Report => {
            let report: Vec<PowerReport> = client.get("/v1/power/report")?;
            context.print(&report, |report| report_table(report))
        }
        Power::Policy(Policy::Show) => {
            let policy: PowerPolicy = client.get("/v1/power/policy")?;
            context.print(&policy, policy_table)
        }
        Power::Policy(Policy::Set(change)) => set_policy(context, change.of(client.get("/v1/power/policy")?)),
        Power::Ladder => {
            let standing: LadderStanding = client.get("/v1/power/ladder")?;
            context.print(&standing, ladder)
        }
        Power::Records => {
            let records: Vec<PowerRecord> = client.get("/v1/power/records")?;
            context.print(&records, |records| records_table(records))
        }
        Power::Events { limit } => {
            let events: Vec<PowerEvent> = client.get(&format!("/v1/power/events?limit={limit}"))?;
            context.print(&events, |events| events.iter().map(event_line).collect::<Vec<_>>().join("\n"))
        }
    }
}

fn set_policy(context: &Context, policy: PowerPolicy) -> Result<()> {
    context.client()?.send(Method::PUT, "/v1/power/policy", &policy)?;
    context.print(&policy, policy_table)
}

impl Change {
    fn of(self, before: PowerPolicy) -> PowerPolicy {
        let seconds = |new: Option<Seconds>, old| new.map_or(old, |Seconds(seconds)| seconds);
        let switch = |new: Option<Switch>, old| new.map_or(old, |new| new == Switch::On);
        PowerPolicy {
            ladder: switch(self.ladder, before.ladder),
            escalation: switch(self.escalation, before.escalation),
            silent_after: seconds(self.silent_after, before.silent_after),
            rung_wait: seconds(self.rung_wait, before.rung_wait),
            max_at_once: self.max_at_once.unwrap_or(before.max_at_once),
            max_per_hour: self.max_per_hour.unwrap_or(before.max_per_hour),
            storm_percent: self.storm.unwrap_or(before.storm_percent),
            settle: seconds(self.settle, before.settle),
            test_every: before.test_every,
            notify: match self.notify {
                Some(program) => (program != "none").then_some(program),
                None => before.notify,
            },
        }
    }
}

/// Asks for tests and waits for them. What would fail makes the command fail.
fn test(context: &Context, ids: Vec<String>) -> Result<()> {
    let client = context.client()?;
    let asked: PowerTestsAsked = client.exchange(Method::POST, "/v1/power/tests", &PowerTestRequest { nodes: ids })?;
    let asked: BTreeSet<_> = asked.nodes.into_iter().collect();
    let bar = ProgressBar::new(asked.len() as u64);
    let report = loop {
        let report: Vec<PowerReport> = client.get("/v1/power/report")?;
        let of_asked: Vec<_> = report.into_iter().filter(|node| asked.contains(&node.node)).collect();
        let left = of_asked.iter().filter(|node| node.testing).count();
        bar.set_position((asked.len() - left.min(asked.len())) as u64);
        if left == 0 {
            break of_asked;
        }
        std::thread::sleep(PACE);
    };
    bar.finish_and_clear();
    context.print(&report, |report| report_table(report))?;
    let fail = report.iter().filter(|node| node.standing == PowerStanding::WouldFail).count();
    if fail > 0 {
        bail!("the power of {fail} of {} nodes could not be switched", report.len());
    }
    Ok(())
}

fn report_table(report: &[PowerReport]) -> String {
    let mut rows = vec![["NODE", "POWER", "TESTED", "WHY"].map(str::to_owned).to_vec()];
    for node in report {
        let tested = match (node.testing, node.tested) {
            (true, _) => "under way".to_owned(),
            (false, Some(at)) => show_time(at),
            (false, None) => "never".to_owned(),
        };
        let mut why = node.tests.iter().filter(|test| test.failure.is_some()).flat_map(test_lines);
        rows.push(vec![node.node.clone(), word(&Some(node.standing)), tested, why.next().unwrap_or_default()]);
        rows.extend(why.map(|line| vec![String::new(), String::new(), String::new(), line]));
    }
    table(&rows)
}

/// What a test found, a line each.
pub(crate) fn test_lines(test: &PowerTest) -> Vec<String> {
    let proofs = test.proofs.iter().map(|proof| format!("{}: {proof}", test.method));
    let failure = test.failure.iter().map(|failure| format!("{}: {}", test.method, failure_line(failure)));
    proofs.chain(failure).map(|line| clean(&line)).collect()
}

/// Why something failed, and what to try.
pub(crate) fn failure_line(failure: &PowerFailure) -> String {
    let advice = if failure.advice.is_empty() { String::new() } else { format!(" ({})", failure.advice) };
    clean(&format!("{}: {}{advice}", failure.class, failure.message))
}

/// Operations as a table.
pub(crate) fn operations_table(operations: &[PowerOperation]) -> String {
    let mut rows = vec![["ID", "NODE", "ACTION", "RESULT", "ASKED", "WHO", "WHY", "BY"].map(str::to_owned).to_vec()];
    for operation in operations {
        let failure = operation.attempts.last().and_then(|last| last.failure.as_ref()).map(failure_line);
        let note = operation.note.clone().or(failure).map(|note| format!(" [{note}]")).unwrap_or_default();
        rows.push(vec![
            operation.id.to_string(),
            operation.node.clone(),
            operation.action.as_str().to_owned(),
            word(&Some(operation.result)),
            show_time(operation.requested),
            operation.who.clone(),
            clean(&operation.reason),
            clean(&format!("{}{note}", operation.method.as_deref().unwrap_or("-"))),
        ]);
    }
    table(&rows)
}

fn policy_table(policy: &PowerPolicy) -> String {
    let on = |on| if on { "on" } else { "off" }.to_owned();
    let rows = [
        ("ladder", on(policy.ladder)),
        ("escalation", on(policy.escalation)),
        ("silent after", span(policy.silent_after)),
        ("between rungs", span(policy.rung_wait)),
        ("at once", format!("{} nodes", policy.max_at_once)),
        ("within an hour", format!("{} operations", policy.max_per_hour)),
        ("outage", format!("more than {} % of the nodes, and at least 3, together", policy.storm_percent)),
        ("listens first", span(policy.settle)),
        ("tests", policy.test_every.map_or_else(|| "off".to_owned(), |every| format!("every {}", span(every)))),
        ("tells", policy.notify.clone().unwrap_or_else(|| "nobody".to_owned())),
    ];
    table(&rows.map(|(name, value)| vec![name.to_owned(), value]))
}

fn ladder(standing: &LadderStanding) -> String {
    let on = |on| if on { "on" } else { "off" };
    let mut lines = vec![format!("ladder {}, escalation {}", on(standing.ladder), on(standing.escalation))];
    lines.extend(standing.holding.as_ref().map(|why| format!("HOLDING STILL: {why}")));
    let none =
        if standing.records.is_empty() { "no node is down".to_owned() } else { records_table(&standing.records) };
    lines.push(none);
    lines.join("\n")
}

fn records_table(records: &[PowerRecord]) -> String {
    let mut rows = vec![["NODE", "DOWN SINCE", "RUNG", "LEVEL", "OVER"].map(str::to_owned).to_vec()];
    for record in records {
        let over = record.closed.map(|at| format!("{} {}", show_time(at), record.why.as_deref().unwrap_or("")));
        rows.push(vec![
            record.node.clone(),
            show_time(record.since),
            record.rung.map_or_else(|| "-".to_owned(), |rung| word(&Some(rung))),
            word(&Some(record.level)),
            over.unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table(&rows)
}

/// A downtime as a line.
pub(crate) fn record_line(record: &PowerRecord) -> String {
    let rung = record.rung.map(|rung| format!(", rung {}", word(&Some(rung)))).unwrap_or_default();
    let down = span(now().saturating_sub(record.since));
    format!("for {down}, since {}{rung}, level {}", show_time(record.since), word(&Some(record.level)))
}

fn event_line(event: &PowerEvent) -> String {
    let node = event.node.as_deref().unwrap_or("*");
    clean(&format!("{} {node} {} {}", show_time(event.at), event.kind, event.message))
}

/// Seconds as a span of time.
fn span(seconds: u64) -> String {
    match seconds {
        s if s >= 2 * 86400 => format!("{} d", s / 86400),
        s if s >= 2 * 3600 => format!("{} h", s / 3600),
        s if s >= 60 => format!("{} min", s / 60),
        s => format!("{s} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_given_stays() {
        let before =
            PowerPolicy { ladder: true, notify: Some("tell".into()), test_every: Some(7), ..PowerPolicy::default() };
        let none = || Change {
            ladder: None,
            escalation: None,
            silent_after: None,
            rung_wait: None,
            max_at_once: None,
            max_per_hour: None,
            storm: None,
            settle: None,
            notify: None,
        };
        assert_eq!(none().of(before.clone()), before);
        let change = Change { ladder: Some(Switch::Off), notify: Some("none".into()), storm: Some(7), ..none() };
        let expect = PowerPolicy { ladder: false, notify: None, storm_percent: 7, ..before.clone() };
        assert_eq!(change.of(before), expect);
        assert_eq!("off".parse::<Every>().unwrap(), Every(None));
        assert_eq!("7d".parse::<Every>().unwrap(), Every(Some(7 * 86400)));
        assert!("7".parse::<Every>().is_err());
    }
}
