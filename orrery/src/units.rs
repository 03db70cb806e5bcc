//! Sizes, durations and times, as people write them.

use std::{fmt::Write, str::FromStr};

use anyhow::{Result, anyhow};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// A size in bytes: `1000`, `64K`, `512M`, `2G`, `1T` (binary multiples, an `iB` may follow).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) u64);

impl FromStr for Bytes {
    type Err = anyhow::Error;

    fn from_str(s: &str) -> Result<Self> {
        let bad = || anyhow!("`{s}` is not a size; write it like 64M or 2G");
        let digits = s.trim_end_matches(|c: char| !c.is_ascii_digit());
        let shift = match s[digits.len()..].trim_end_matches("iB") {
            "" => 0,
            "K" => 10,
            "M" => 20,
            "G" => 30,
            "T" => 40,
            _ => return Err(bad()),
        };
        let number: u64 = digits.parse().map_err(|_| bad())?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(bad)
    }
}

/// A span of time in seconds: `90s`, `15m`, `12h`, `30d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seconds(pub(crate) u64);

impl FromStr for Seconds {
    type Err = anyhow::Error;

    fn from_str(s: &str) -> Result<Self> {
        let bad = || anyhow!("`{s}` is not a span of time; write it like 12h or 30d");
        let (number, unit) = s.split_at_checked(s.len().saturating_sub(1)).ok_or_else(bad)?;
        let unit = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 60 * 60,
            "d" => 24 * 60 * 60,
            _ => return Err(bad()),
        };
        number.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).map(Self).ok_or_else(bad)
    }
}

/// A number of bytes for people.
pub(crate) fn show_bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if value.fract() == 0.0 { format!("{value} {}", units[unit]) } else { format!("{value:.1} {}", units[unit]) }
}

/// Unix seconds as UTC.
pub(crate) fn show_time(unix: u64) -> String {
    let time = i64::try_from(unix).ok().and_then(|t| OffsetDateTime::from_unix_timestamp(t).ok());
    time.and_then(|t| t.format(&Rfc3339).ok()).unwrap_or_else(|| unix.to_string())
}

/// Unix seconds.
pub(crate) fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Rows in columns, the first row being the heading.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out.pop();
    out
}

/// Text that a node sent, made safe for a terminal.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let check =
            |text: &str, expect: Option<u64>| assert_eq!(text.parse::<Bytes>().ok().map(|b| b.0), expect, "{text}");
        check("0", Some(0));
        check("64M", Some(64 << 20));
        check("2GiB", Some(2 << 30));
        check("", None);
        check("M", None);
        check("64X", None);
        check("-1", None);
        check("99999999999T", None);
    }

    #[test]
    fn spans() {
        let check =
            |text: &str, expect: Option<u64>| assert_eq!(text.parse::<Seconds>().ok().map(|b| b.0), expect, "{text}");
        check("30d", Some(30 * 86400));
        check("1s", Some(1));
        check("30", None);
        check("d", None);
        check("", None);
        check("3é", None);
    }

    #[test]
    fn for_people() {
        assert_eq!(show_bytes(1536), "1.5 KiB");
        assert_eq!(show_bytes(64 << 20), "64 MiB");
        assert_eq!(show_time(1_795_219_200), "2026-11-21T00:00:00Z");
        let rows = [vec!["a".to_owned(), "b".to_owned()], vec!["long".to_owned(), "c".to_owned()]];
        assert_eq!(table(&rows), "a     b\nlong  c");
    }
}
