//! `orrery node bundle`: all that central knows of a node in one file, to hand to whoever helps. No secret is in it.

use std::path::Path;

use anyhow::{Context as _, Result};
use orrery_central_api::{NodeDetail, ScriptRecord};
use serde_json::json;

use super::{
    segment,
    show::detail,
    watch::{fetch, log_lines, log_page},
};
use crate::{
    context::Context,
    files::{self, Access},
    units::now,
};

/// Writes the bundle, a tar file with one folder named after the node.
pub(crate) fn run(context: &Context, id: &str, out: &Path) -> Result<()> {
    let client = context.client()?;
    let node: NodeDetail = client.get(&format!("/v1/nodes/{}", segment(id)?))?;
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(now());
        tar.append_data(&mut header, format!("{id}/{name}"), content).with_context(|| format!("packing {name}"))
    };
    add("node.json", &serde_json::to_vec_pretty(&node)?)?;
    add("node.txt", detail(&node).as_bytes())?;
    let mut events = Vec::new();
    let mut after = 0;
    loop {
        let page = fetch(&client, id, Some(after), 5000)?;
        let Some(last) = page.last() else { break };
        after = last.seq;
        for event in &page {
            serde_json::to_writer(&mut events, event)?;
            events.push(b'\n');
        }
    }
    add("events.jsonl", &events)?;
    let (mut log, mut after) = (String::new(), 0);
    loop {
        let page = log_page(&client, id, "", after)?;
        let Some(last) = page.last() else { break };
        after = last.seq;
        for record in &page {
            log.push_str(&log_lines(record));
            log.push('\n');
        }
    }
    add("log.txt", log.as_bytes())?;
    let groups = &node.summary.groups;
    let mut scripts: Vec<ScriptRecord> = client.get("/v1/scripts")?;
    scripts.retain(|script| {
        script.nodes.iter().any(|target| match target.strip_prefix('@') {
            Some(group) => groups.iter().any(|known| known == group),
            None => target == "*" || target == id,
        })
    });
    add("scripts.json", &serde_json::to_vec_pretty(&scripts)?)?;
    let tar = tar.into_inner().context("packing the bundle")?;
    files::write_new(out, &tar, Access::Public)?;
    context.print(&json!({ "bundle": out, "bytes": tar.len() }), |_| format!("wrote {}", out.display()))
}
