//! What an earlier boot left behind: the kernel's records in pstore, a panic's last lines among them
//! (Linux: Documentation/admin-guide/ramoops.rst).

use std::{
    fs,
    path::{Path, PathBuf},
};

use orrery_init_api::{FailureClass, ROLE_ENV, Role, TRIAL_OVER};
use orrery_protocol::{LogBatch, Outcome};

use crate::{StageFailure, events, files::write_private, reporter::Link};

const PSTORE: &str = "/sys/fs/pstore";
/// The last words that were found, for as long as this boot lasts; the record itself goes once central has it.
const LAST_WORDS_PATH: &str = "/run/orrery/last-words";
/// The stage of the event about it.
const STAGE: &str = "previous";
/// All records together, in bytes; of more, the ends are kept.
const MOST: usize = 256 * 1024;
/// Lines of one request.
const BATCH: usize = 200;

/// What ended an earlier boot, if the machine's memory has kept it: the first line of its panic, or what PID 1 said when it gave a
/// trial up.
pub fn last_words() -> Option<String> {
    fs::read_to_string(LAST_WORDS_PATH).ok().or_else(|| last_words_among(&records(Path::new(PSTORE), Role::Boot)))
}

/// One record of pstore.
#[derive(Debug, PartialEq)]
pub(crate) struct Record {
    path: PathBuf,
    text: String,
}

/// Records that are not at central yet.
pub(crate) enum Previous {
    Unread,
    /// With how many lines were sent.
    Sending(Vec<Record>, usize),
    Done,
}

impl Previous {
    /// Sends the records, tells in an event what they are, and removes them.
    pub(crate) fn send(&mut self, link: &mut Link) -> Result<(), StageFailure> {
        if matches!(self, Self::Unread) {
            let role = std::env::var(ROLE_ENV).ok().and_then(|word| word.parse().ok()).unwrap_or(Role::Boot);
            let records = records(Path::new(PSTORE), role);
            if let Some(words) = last_words_among(&records)
                && let Err(error) = write_private(LAST_WORDS_PATH, words.as_bytes())
            {
                eprintln!("{error:#}");
            }
            *self = Self::Sending(records, 0);
        }
        let Self::Sending(records, sent) = self else { return Ok(()) };
        let lines: Vec<_> = records.iter().flat_map(|record| record.text.lines()).map(str::to_owned).collect();
        while *sent < lines.len() {
            let part = &lines[*sent..lines.len().min(*sent + BATCH)];
            let boot_id = crate::boot_id().unwrap_or_default();
            let batch = LogBatch { boot_id, role: STAGE.into(), first: *sent as u64, lines: part.to_vec() };
            link.post("/v1/node/log", &batch)?;
            *sent += part.len();
        }
        if !records.is_empty() {
            tell(records, lines.len());
            for record in records {
                if let Err(error) = fs::remove_file(&record.path) {
                    eprintln!("removing {}: {error}", record.path.display());
                }
            }
        }
        *self = Self::Done;
        Ok(())
    }
}

fn tell(records: &[Record], lines: usize) {
    match panic_among(records) {
        Some(panic) => {
            let message = format!("an earlier boot ended in a panic: {panic}");
            events::append(STAGE, Outcome::Failed, Some(FailureClass::Crashed.as_str()), message, 0);
        }
        None => {
            events::append(STAGE, Outcome::Info, None, format!("an earlier boot left {lines} lines of its log"), 0);
        }
    }
}

/// The records in `folder`, those of a panic first. What the node OS finds beside those is the medium's log of this same boot, which
/// was sent as it came.
fn records(folder: &Path, role: Role) -> Vec<Record> {
    let kinds: &[&str] = match role {
        Role::Boot => &["dmesg-", "console-", "pmsg-"],
        Role::Node => &["dmesg-"],
    };
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let name = path.file_name()?.to_str()?;
            let kind = kinds.iter().position(|kind| name.starts_with(kind))?;
            Some((kind, path))
        })
        .collect();
    found.sort();
    let mut left = MOST;
    let read = |(_, path): (usize, PathBuf)| {
        let bytes = fs::read(&path).ok()?;
        let kept = &bytes[bytes.len().saturating_sub(left)..];
        left -= kept.len();
        Some(Record { text: String::from_utf8_lossy(kept).into_owned(), path })
    };
    found.into_iter().filter_map(read).collect()
}

fn last_words_among(records: &[Record]) -> Option<String> {
    panic_among(records).or_else(|| records.iter().find_map(|record| trial_over_in(&record.text)))
}

/// What PID 1 said last when it gave a trial up.
fn trial_over_in(text: &str) -> Option<String> {
    text.lines().rev().find_map(|line| line.find(TRIAL_OVER).map(|at| line[at..].trim().chars().take(200).collect()))
}

fn panic_among(records: &[Record]) -> Option<String> {
    records.iter().find_map(|record| panic_in(&record.text))
}

/// The line a panic begins with, or for want of one, an oops. Only the kernel's own lines begin like that: what others have
/// written about a panic does not count.
fn panic_in(text: &str) -> Option<String> {
    let first = |beginnings: &[&str]| {
        let mut lines = text.lines().map(bare);
        lines.find(|line| beginnings.iter().any(|beginning| line.starts_with(beginning)))
    };
    first(&["Kernel panic - not syncing"]).or_else(|| first(&["BUG: ", "kernel BUG at ", "Oops: "])).map(str::to_owned)
}

/// A line without its level and time: `<0>[   12.345678] `.
fn bare(line: &str) -> &str {
    let line = line.strip_prefix('<').and_then(|rest| rest.split_once('>')).map_or(line, |(_, rest)| rest);
    let stamped = line.strip_prefix('[').and_then(|rest| rest.split_once("] "));
    stamped.filter(|(stamp, _)| stamp.trim().parse::<f64>().is_ok()).map_or(line, |(_, rest)| rest).trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_found_by_the_kernels_own_words() {
        let check = |text: &str, expect: Option<&str>| assert_eq!(panic_in(text).as_deref(), expect, "{text}");
        let panic = "Kernel panic - not syncing: sysrq triggered crash";
        check(&format!("Panic#1 Part1\n<6>[    1.0] x\n<0>[   12.345678] {panic}\n<4>[ 12.4] CPU: 0"), Some(panic));
        check(&format!("[   12.345678] {panic}"), Some(panic));
        check("<1>[ 3.0] BUG: kernel NULL pointer dereference\n", Some("BUG: kernel NULL pointer dereference"));
        check(&format!("<1>[ 3.0] BUG: x\n<0>[ 3.1] {panic}"), Some(panic));
        check(&format!("[ 3.0] orrery[boot] an earlier boot ended in a panic: {panic}"), None);
        check("[ 3.0] all is well\n[not a time] Kernel", None);
        check("", None);
    }

    #[test]
    fn a_trial_that_was_given_up_is_the_last_word_where_there_was_no_panic() {
        let record = |text: &str| Record { path: PathBuf::new(), text: text.to_owned() };
        let over = record("orrery[node] +120.0s giving the trial up: not healthy\norrery[node] +121.0s rebooting");
        let panic = record("<0>[    1.0] Kernel panic - not syncing: No working init found.");
        let check = |records: &[Record], expect: Option<&str>| assert_eq!(last_words_among(records).as_deref(), expect);
        check(&[over], Some("giving the trial up: not healthy"));
        let over = record("giving the trial up");
        check(&[over, panic], Some("Kernel panic - not syncing: No working init found."));
        check(&[record("all is well")], None);
    }

    #[test]
    fn records_are_bounded_and_a_panics_come_first() {
        let folder = tempfile::tempdir().unwrap();
        let names = |role| {
            let found = records(folder.path(), role);
            let name = |record: &Record| record.path.file_name().unwrap().to_str().unwrap().to_owned();
            (found.iter().map(name).collect::<Vec<_>>(), found.iter().map(|r| r.text.len()).sum::<usize>())
        };
        assert_eq!(names(Role::Boot).0.len(), 0);
        for (name, length) in
            [("console-ramoops-0", MOST), ("dmesg-ramoops-0", 1000), ("other", 5), ("pmsg-ramoops-0", 9)]
        {
            fs::write(folder.path().join(name), "x".repeat(length)).unwrap();
        }
        let all = ["dmesg-ramoops-0", "console-ramoops-0", "pmsg-ramoops-0"].map(str::to_owned).to_vec();
        assert_eq!(names(Role::Boot), (all, MOST));
        assert_eq!(names(Role::Node), (vec!["dmesg-ramoops-0".to_owned()], 1000));
    }
}
