//! The limits of a slice's slivers, as people write and read them.

use std::str::FromStr;

use anyhow::{Context, Result, anyhow};
use orrery_protocol::Rspec;

use crate::units::{Bytes, show_bytes};

/// How a field of an rspec is written.
enum Kind {
    /// A number.
    Number(fn(&mut Rspec) -> &mut u32),
    /// A large number.
    Count(fn(&mut Rspec) -> &mut u64),
    /// Bytes.
    Size(fn(&mut Rspec) -> &mut u64),
    /// A list of CPUs.
    Cpus,
}

/// Every field, and whether 0 stands for none in it.
const FIELDS: [(&str, Kind, bool); 16] = [
    ("cpu_share", Kind::Number(|r| &mut r.cpu_share), false),
    ("cpu_pct", Kind::Number(|r| &mut r.cpu_pct), true),
    ("cpu_cap_pct", Kind::Number(|r| &mut r.cpu_cap_pct), true),
    ("cpus", Kind::Cpus, true),
    ("mem_limit", Kind::Size(|r| &mut r.mem_limit), false),
    ("swap_limit", Kind::Size(|r| &mut r.swap_limit), true),
    ("disk_quota", Kind::Size(|r| &mut r.disk_quota), false),
    ("disk_inodes", Kind::Count(|r| &mut r.disk_inodes), true),
    ("io_weight", Kind::Number(|r| &mut r.io_weight), false),
    ("io_read_bps", Kind::Size(|r| &mut r.io_read_bps), true),
    ("io_write_bps", Kind::Size(|r| &mut r.io_write_bps), true),
    ("io_read_iops", Kind::Count(|r| &mut r.io_read_iops), true),
    ("io_write_iops", Kind::Count(|r| &mut r.io_write_iops), true),
    ("pids_limit", Kind::Number(|r| &mut r.pids_limit), false),
    ("nofile", Kind::Count(|r| &mut r.nofile), false),
    ("memlock", Kind::Size(|r| &mut r.memlock), false),
];

/// What 0 and no CPU at all are written as.
const NONE: &str = "none";

/// Limits to change: `mem_limit=64M` or `cpu_pct=50,cpu_cap_pct=100`, and `none` to lift one that need not be. CPUs are a list
/// themselves, as in `cpus=0-3,8`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limits(Vec<(String, String)>);

impl FromStr for Limits {
    type Err = anyhow::Error;

    fn from_str(s: &str) -> Result<Self> {
        let mut limits: Vec<(String, String)> = Vec::new();
        for part in s.split(',') {
            match (part.split_once('='), limits.last_mut()) {
                (Some((name, value)), _) => limits.push((name.to_owned(), value.to_owned())),
                (None, Some((name, list))) if name == "cpus" => {
                    list.push(',');
                    list.push_str(part);
                }
                (None, _) => return Err(anyhow!("write a limit as name=value, not `{part}`")),
            }
        }
        let limits = Self(limits);
        limits.apply(&mut Rspec::default())?;
        Ok(limits)
    }
}

impl Limits {
    /// Sets them in `rspec`.
    ///
    /// # Errors
    /// When there is no such limit, or its value is none; not so for limits that were parsed.
    pub(crate) fn apply(&self, rspec: &mut Rspec) -> Result<()> {
        for (name, value) in &self.0 {
            let names = || FIELDS.map(|(name, ..)| name).join(", ");
            let (_, kind, optional) = FIELDS
                .iter()
                .find(|(field, ..)| field == name)
                .with_context(|| format!("the limits are {}, not `{name}`", names()))?;
            let is_none = *optional && value == NONE;
            let number = || value.parse::<u64>().with_context(|| format!("`{value}` is not a number"));
            match kind {
                Kind::Number(field) if is_none => *field(rspec) = 0,
                Kind::Count(field) | Kind::Size(field) if is_none => *field(rspec) = 0,
                Kind::Cpus if is_none => rspec.cpus = Default::default(),
                Kind::Number(field) => {
                    *field(rspec) = value.parse().with_context(|| format!("`{value}` is not a number"))?;
                }
                Kind::Count(field) => *field(rspec) = number()?,
                Kind::Size(field) => *field(rspec) = value.parse::<Bytes>()?.0,
                Kind::Cpus => rspec.cpus = value.parse()?,
            }
        }
        Ok(())
    }
}

/// Every limit with its value.
pub(crate) fn show(rspec: &Rspec) -> Vec<(&'static str, String)> {
    let mut rspec = *rspec;
    let mut value = |kind: &Kind, optional: bool| match kind {
        Kind::Number(field) => none_or(optional, u64::from(*field(&mut rspec)), |n| n.to_string()),
        Kind::Count(field) => none_or(optional, *field(&mut rspec), |n| n.to_string()),
        Kind::Size(field) => none_or(optional, *field(&mut rspec), show_bytes),
        Kind::Cpus if rspec.cpus.is_empty() => "all".to_owned(),
        Kind::Cpus => rspec.cpus.to_string(),
    };
    let mut rows: Vec<_> = FIELDS.iter().map(|(name, kind, optional)| (*name, value(kind, *optional))).collect();
    // How many that is for this space.
    if let Some((_, files)) = rows.iter_mut().find(|(name, files)| *name == "disk_inodes" && files == NONE) {
        *files = rspec.inodes().to_string();
    }
    rows
}

fn none_or(optional: bool, number: u64, show: impl Fn(u64) -> String) -> String {
    if optional && number == 0 { NONE.to_owned() } else { show(number) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits() {
        let check = |text: &str, expect: Option<fn(&mut Rspec)>| {
            let mut rspec = Rspec { cpu_pct: 5, cpus: [3].into_iter().collect(), ..Rspec::default() };
            let expect = expect.map(|change| {
                let mut expect = rspec;
                change(&mut expect);
                expect
            });
            let got = text.parse::<Limits>().ok().map(|limits| limits.apply(&mut rspec).map(|()| rspec).unwrap());
            assert_eq!(got, expect, "{text}");
        };
        check("cpu_share=7", Some(|r| r.cpu_share = 7));
        check("mem_limit=64M,nofile=100", Some(|r| (r.mem_limit, r.nofile) = (64 << 20, 100)));
        check("cpus=0-1,4,pids_limit=9", Some(|r| (r.cpus, r.pids_limit) = ([0, 1, 4].into_iter().collect(), 9)));
        check("cpu_pct=none,cpus=none", Some(|r| (r.cpu_pct, r.cpus) = (0, Default::default())));
        check("io_write_bps=10M,io_read_iops=50", Some(|r| (r.io_write_bps, r.io_read_iops) = (10 << 20, 50)));
        check("mem_limit=none", None);
        check("mem_limit", None);
        check("cpus=a", None);
        check("cpu_share=1,2", None);
        check("color=1", None);
    }

    #[test]
    fn for_people() {
        let rspec = Rspec { cpu_pct: 50, io_read_bps: 10 << 20, ..Rspec::default() };
        let rows = show(&rspec);
        let check = |name: &str, expect: &str| {
            assert!(rows.iter().any(|(row, value)| *row == name && value == expect), "{name}: {rows:?}");
        };
        check("cpu_pct", "50");
        check("cpu_cap_pct", "none");
        check("cpus", "all");
        check("mem_limit", "256 MiB");
        check("disk_inodes", "65536");
        check("io_read_bps", "10 MiB");
        // Whatever is shown is understood, but for sizes, which are for people, and what follows from others.
        assert_eq!(rows.len(), FIELDS.len());
    }
}
