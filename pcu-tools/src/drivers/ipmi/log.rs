//! Reading the controller's log.

use orrery_rmcp::{
    Completion, Unusable,
    sel::{self, GetEntry},
};

use super::{failure, link::Link};
use crate::{Deadline, LogEntry, PcuError};

const DOING: &str = "reading the log";
/// The most entries that are read; controllers have room for some thousand.
const ENTRIES: usize = 4096;

/// Reads all entries, the oldest first.
pub(super) fn read(link: &mut Link, deadline: Deadline) -> Result<Vec<LogEntry>, PcuError> {
    let (mut entries, mut id) = (Vec::new(), 0);
    while id != sel::END && entries.len() < ENTRIES {
        let entry = match link.try_ask(&GetEntry { id }, DOING, deadline)? {
            Ok(entry) => entry,
            // An empty log has no first entry; one that was cleared meanwhile has no next one.
            Err(Unusable::Refused(Completion::ABSENT)) => break,
            Err(error) => return Err(failure::unusable(link.doing(DOING), error)),
        };
        entries.push(LogEntry { at: entry.at, text: entry.event.describe() });
        if entry.next == id {
            break;
        }
        id = entry.next;
    }
    Ok(entries)
}
