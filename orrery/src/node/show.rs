//! Nodes and what they reported, for people.

use std::net::IpAddr;

use orrery_central_api::{NodeDetail, NodeSummary, StoredEvent};
use orrery_protocol::{Facts, Outcome};

use crate::units::{clean, now, show_bytes, show_time, table};

/// One event as a line.
pub(crate) fn event_line(stored: &StoredEvent) -> String {
    let event = &stored.event;
    let outcome = match event.outcome {
        Outcome::Ok => "ok".to_owned(),
        Outcome::Info => "-".to_owned(),
        Outcome::Failed => format!("FAILED {}", event.class.as_deref().unwrap_or("")),
    };
    let (seconds, millis) = (event.at_ms / 1000, event.at_ms % 1000);
    let boot = event.boot_id.get(..8).unwrap_or(&event.boot_id);
    clean(&format!(
        "{} {boot} {} +{seconds}.{millis:03}s {} {outcome} {}",
        show_time(stored.received),
        event.role,
        event.stage,
        event.message
    ))
}

/// All nodes as a table.
pub(crate) fn list(nodes: &[NodeSummary]) -> String {
    let mut rows = vec![["ID", "NAME", "GROUPS", "WANTED", "RUN LEVEL", "LAST SEEN"].map(str::to_owned).to_vec()];
    for node in nodes {
        rows.push(vec![
            node.id.clone(),
            clean(&node.name),
            node.groups.join(","),
            match &node.once {
                Some(once) => format!("{} (once {})", node.boot_state, once.boot_state),
                None => node.boot_state.to_string(),
            },
            word(&node.run_level),
            node.last_seen.map_or_else(|| "never".to_owned(), ago),
        ]);
    }
    table(&rows)
}

/// A node with all that is known of it.
pub(crate) fn detail(node: &NodeDetail) -> String {
    let s = &node.summary;
    let mut rows: Vec<(&str, String)> = vec![
        ("id", s.id.clone()),
        ("name", s.name.clone()),
        ("wanted", s.boot_state.to_string()),
        ("run level", word(&s.run_level)),
        ("last seen", s.last_seen.map_or_else(|| "never".to_owned(), |t| format!("{} ({})", show_time(t), ago(t)))),
        ("groups", s.groups.join(", ")),
    ];
    rows.extend(s.once.as_ref().map(|once| {
        let boot = once.boot_id.as_deref().map_or("the next boot".to_owned(), |id| format!("boot {id}"));
        ("wanted once", format!("{} for {boot}", once.boot_state))
    }));
    rows.extend(node.reboot.as_ref().map(|boot| ("restart asked", format!("of boot {boot}"))));
    if node.keys.is_empty() {
        rows.push(("key", "none: it has not enrolled".to_owned()));
    }
    rows.extend(node.keys.iter().map(|key| {
        let standing = match key.ends {
            Some(ends) if ends > now() => format!(" replaced, works until {}", show_time(ends)),
            Some(ends) => format!(" replaced, ended {}", show_time(ends)),
            None => String::new(),
        };
        ("key", format!("{}{standing}", key.spki))
    }));
    if let Some(f) = &node.facts {
        rows.extend(standing(f, &s.groups));
        rows.push(("machine", format!("{} {} (serial {}), {} firmware", f.vendor, f.product, f.serial, f.firmware)));
        rows.push(("cpu", format!("{} × {}", f.cpus, f.cpu_model)));
        rows.push(("memory", show_bytes(f.memory.total)));
        rows.push(("medium", format!("{}, kernel {}, clock from {}", f.medium_version, f.kernel, f.clock)));
        rows.push(("installed", f.installed.clone().unwrap_or_else(|| "nothing".to_owned())));
        rows.extend(f.disks.iter().map(|d| ("disk", format!("{} {} {}", d.name, show_bytes(d.size), d.stable_id))));
        rows.extend(f.nics.iter().map(|n| {
            let link = if n.link { "link" } else { "no link" };
            ("interface", format!("{} {} {link} {}", n.name, n.mac, n.addresses.join(" ")))
        }));
    }
    rows.extend(host_key(node).map(|key| ("ssh host key", key.to_owned())));
    if let Some(status) = &node.status {
        rows.push(("release", format!("{} (slot {})", status.release, status.slot)));
        rows.extend(status.offline.as_ref().map(|why| ("OFFLINE BOOT", why.clone())));
        rows.extend(status.slivers.iter().map(|s| {
            let error = s.error.as_deref().map(|e| format!(": {e}")).unwrap_or_default();
            ("sliver", format!("{} {}{error}", s.slice, word(&Some(s.state))))
        }));
    }
    rows.extend(node.slices.iter().map(|slice| ("wanted slice", slice.to_string())));
    table(&rows.into_iter().map(|(name, value)| vec![name.to_owned(), clean(&value)]).collect::<Vec<_>>())
}

/// What its last contact says of trust, trials and groups.
fn standing(facts: &Facts, groups: &[String]) -> Vec<(&'static str, String)> {
    let mut rows = vec![("trust root", facts.trust_serial.to_string())];
    rows.extend(facts.failed_trial.as_ref().map(|t| ("FAILED TRIAL", format!("{}: {}", t.release, t.reason))));
    let missing: Vec<_> = groups.iter().filter(|group| !facts.groups.contains(group)).cloned().collect();
    if !missing.is_empty() {
        let what = format!("its configuration lacks {}: scripts for those are not served", missing.join(", "));
        rows.push(("GROUPS DIFFER", what));
    }
    rows
}

/// The key that its sshd will show: known since its first contact, before anybody has logged in.
pub(crate) fn host_key(node: &NodeDetail) -> Option<&str> {
    let status = node.status.as_ref().map(|status| status.ssh_host_key.as_str());
    let facts = node.facts.as_ref().map(|facts| facts.ssh_host_key.as_str());
    [facts, status].into_iter().flatten().find(|key| !key.is_empty())
}

/// The addresses that it had at its last contact.
pub(crate) fn addresses(node: &NodeDetail) -> impl Iterator<Item = IpAddr> {
    let nics = node.facts.iter().flat_map(|facts| &facts.nics).flat_map(|nic| &nic.addresses);
    let addresses = nics.filter_map(|address| address.split('/').next()?.parse::<IpAddr>().ok());
    addresses.filter(|address| !address.is_loopback())
}

/// Lines of a known_hosts file: the node's id and its addresses, with its key.
pub(crate) fn known_hosts(node: &NodeDetail) -> Option<String> {
    let key = host_key(node)?;
    let addresses = addresses(node).map(|address| address.to_string());
    let names: Vec<_> = std::iter::once(node.summary.id.clone()).chain(addresses).collect();
    Some(clean(&format!("{} {key}", names.join(","))))
}

/// The word for a value such as a run level.
pub(crate) fn word<T: serde::Serialize>(value: &Option<T>) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => "unknown".to_owned(),
    }
}

fn ago(unix: u64) -> String {
    match now().saturating_sub(unix) {
        s if s < 120 => format!("{s} s ago"),
        s if s < 7200 => format!("{} min ago", s / 60),
        s if s < 172_800 => format!("{} h ago", s / 3600),
        s => format!("{} days ago", s / 86400),
    }
}
