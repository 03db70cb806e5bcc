//! Following what nodes say: events of one or of all, and logs.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use orrery_central_api::{LogRecord, NodeSummary, StoredEvent};
use orrery_transport::Client;
use serde_json::json;

use super::{segment, show::event_line};
use crate::{context::Context, units::clean};

/// How often central is asked for news.
const PACE: Duration = Duration::from_secs(1);

/// `orrery node events`.
pub(crate) fn events(context: &Context, id: &str, mut after: Option<u64>, limit: u32, follow: bool) -> Result<()> {
    let client = context.client()?;
    loop {
        let events = fetch(&client, id, after, limit)?;
        if !follow {
            return context.print(&events, |events| events.iter().map(event_line).collect::<Vec<_>>().join("\n"));
        }
        for event in &events {
            context.print(event, event_line)?;
        }
        after = events.last().map(|e| e.seq).or(after).or(Some(0));
        std::thread::sleep(PACE);
    }
}

/// Events after a sequence number, or the newest.
pub(crate) fn fetch(client: &Client, id: &str, after: Option<u64>, limit: u32) -> Result<Vec<StoredEvent>> {
    let from = after.map(|seq| format!("&after={seq}")).unwrap_or_default();
    Ok(client.get(&format!("/v1/nodes/{}/events?limit={limit}{from}", segment(id)?))?)
}

/// `orrery node watch`: one line for every event from now on, until interrupted. Nodes added meanwhile join in.
pub(crate) fn watch(context: &Context, ids: &[String]) -> Result<()> {
    let client = context.client()?;
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    let mut first = true;
    loop {
        let ids = if ids.is_empty() {
            client.get::<Vec<NodeSummary>>("/v1/nodes")?.into_iter().map(|node| node.id).collect()
        } else {
            ids.to_vec()
        };
        for id in ids {
            let known = seen.get(&id).copied();
            // Of a node that was there at the start, only what is new; of one that appeared, all.
            let events = match (known, first) {
                (None, true) => fetch(&client, &id, None, 1)?,
                (after, _) => fetch(&client, &id, Some(after.unwrap_or(0)), 1000)?,
            };
            let last = events.last().map_or(known.unwrap_or(0), |event| event.seq);
            seen.insert(id.clone(), last);
            for event in events.iter().filter(|_| known.is_some() || !first) {
                context.print(&json!({ "node": id, "event": event }), |_| format!("{id} {}", event_line(event)))?;
            }
        }
        first = false;
        std::thread::sleep(PACE);
    }
}

/// Which lines of a log.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct LogOptions {
    /// The node's id.
    pub(crate) id: String,
    /// Of this boot; without it, of the one that sent something last. `all` is every boot.
    #[arg(long, value_name = "BOOT_ID", default_value = "last")]
    boot: String,
    /// What an earlier boot left behind, as a panic's last lines.
    #[arg(long)]
    previous: bool,
    /// Keep showing lines as they come, until interrupted.
    #[arg(long)]
    follow: bool,
}

/// `orrery node log`.
pub(crate) fn log(context: &Context, options: &LogOptions) -> Result<()> {
    let client = context.client()?;
    let boot = if options.boot == "all" { String::new() } else { format!("&boot={}", options.boot) };
    let role = if options.previous { "&role=previous" } else { "" };
    let mut after = 0;
    loop {
        let records = log_page(&client, &options.id, &format!("{boot}{role}"), after)?;
        for record in &records {
            context.print(record, log_lines)?;
        }
        match records.last() {
            Some(last) => after = last.seq,
            None if options.follow => std::thread::sleep(PACE),
            None => return Ok(()),
        }
    }
}

/// About a mebibyte of a node's log, behind a sequence number.
pub(crate) fn log_page(client: &Client, id: &str, filter: &str, after: u64) -> Result<Vec<LogRecord>> {
    Ok(client.get(&format!("/v1/nodes/{}/log?after={after}{filter}", segment(id)?))?)
}

/// The lines of a record, each with its boot and role.
pub(crate) fn log_lines(record: &LogRecord) -> String {
    let boot = record.boot_id.get(..8).unwrap_or(&record.boot_id);
    let lines = record.lines.iter().map(|line| clean(&format!("{boot} {} {line}", record.role)));
    lines.collect::<Vec<_>>().join("\n")
}
