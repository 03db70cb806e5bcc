//! The log of a system, or of what manages it.

use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    service::{Resource, Service, link},
    system::title,
};
use crate::{Deadline, LogEntry, PcuError, web::clip};

/// Most logs that are looked through for one of hardware events, and most entries that are read of it.
const LOGS: usize = 16;
const ENTRIES: usize = 2000;

/// Reads the log of hardware events (the SEL), or the first log there is; the oldest entry first where entries have times.
pub(super) fn read(service: &mut Service, system: &Resource, deadline: Deadline) -> Result<Vec<LogEntry>, PcuError> {
    let mut places: Vec<_> = system.link("/LogServices").map(str::to_owned).into_iter().collect();
    for link in system.links("/Links/ManagedBy").iter().take(2) {
        places.extend(service.get(link, deadline)?.link("/LogServices").map(str::to_owned));
    }
    let mut first = None;
    for place in places {
        for member in service.members(&place, LOGS, deadline)? {
            let Some(link) = link(&member) else { continue };
            let log = service.get(link, deadline)?;
            let Some(entries) = log.link("/Entries") else { continue };
            if log.text("/LogEntryType") == Some("SEL") {
                return entries_of(service, entries, deadline);
            }
            first.get_or_insert_with(|| entries.to_owned());
        }
    }
    let first = first.ok_or_else(|| PcuError::Unsupported {
        doing: format!("reading the log of {}", title(system)),
        detail: "neither the system nor its manager has one".into(),
    })?;
    entries_of(service, &first, deadline)
}

fn entries_of(service: &mut Service, collection: &str, deadline: Deadline) -> Result<Vec<LogEntry>, PcuError> {
    let mut entries = Vec::new();
    for member in service.members(collection, ENTRIES, deadline)? {
        let told = match (member.get("Created").or(member.get("Message")), link(&member)) {
            // Entries are in their collection mostly, and links in a few.
            (None, Some(link)) => service.get(link, deadline)?.body,
            _ => member,
        };
        entries.push(entry(&told));
    }
    // Some services tell the newest first. Where one entry has no time, their order is kept.
    if entries.iter().all(|entry| entry.at.is_some()) {
        entries.sort_by_key(|entry| entry.at);
    }
    Ok(entries)
}

fn entry(told: &Value) -> LogEntry {
    let text = |key: &str| told[key].as_str().map(|text| clip(text.trim())).filter(|text| !text.is_empty());
    let at = told["Created"].as_str().and_then(|at| OffsetDateTime::parse(at, &Rfc3339).ok());
    let said = text("Message").or_else(|| text("Name")).unwrap_or_default();
    let said = match text("Severity").filter(|severity| severity != "OK") {
        Some(severity) => format!("{severity}: {said}"),
        None => said,
    };
    LogEntry { at: at.map(OffsetDateTime::unix_timestamp), text: said }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn entries_have_times_and_words() {
        let check = |told: Value, at: Option<i64>, text: &str| {
            assert_eq!(entry(&told), LogEntry { at, text: text.into() }, "{told}");
        };
        let created =
            json!({ "Created": "2024-01-02T03:04:05-06:00", "Message": "Fan 1 failed.", "Severity": "Critical" });
        check(created, Some(1_704_186_245), "Critical: Fan 1 failed.");
        check(json!({ "Created": "1970-01-01T00:00:00Z", "Name": "Entry 1", "Severity": "OK" }), Some(0), "Entry 1");
        check(json!({ "Created": "yesterday", "Message": "x\ny" }), None, "x y");
        check(json!({}), None, "");
    }
}
