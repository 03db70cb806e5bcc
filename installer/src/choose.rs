//! Which disk: exactly one, or an error that names all candidates.

use std::io;

use orrery_protocol::DiskRule;
use thiserror::Error;

use crate::{disk::Disk, error::InstallError, layout::MIN_DISK_BYTES, probe::Content};

/// Why no disk was chosen.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ChooseError {
    /// No disk fits.
    #[error("no disk fits the rule {rule}; found: {found}")]
    NoDisk {
        /// The rule.
        rule: String,
        /// All disks, and why each was left out.
        found: String,
    },
    /// Several do.
    #[error("several disks fit the rule {rule}: {candidates}; name one by `serial` or `wwid` under [install.disk]")]
    Ambiguous {
        /// The rule.
        rule: String,
        /// All that fit.
        candidates: String,
    },
    /// All that fit are too small.
    #[error("{disk} is too small: an installation needs {} MiB", MIN_DISK_BYTES >> 20)]
    TooSmall {
        /// The disk, or all of them.
        disk: String,
    },
    /// The one that fits holds somebody's data.
    #[error(
        "{disk} holds {what}: set `wipe = true` under [install], or name the disk by `serial` or `wwid`, to overwrite it"
    )]
    ForeignData {
        /// The disk.
        disk: String,
        /// What it holds.
        what: String,
    },
}

/// The one disk to install on.
///
/// # Errors
/// [`ChooseError`], or [`InstallError::Io`] where the only disk to take cannot be read.
pub fn choose<'a>(
    disks: &'a [(Disk, Content)],
    rule: &DiskRule,
    wipe: bool,
) -> Result<&'a (Disk, Content), InstallError> {
    let fits: Vec<_> = disks.iter().filter(|(disk, content)| unfit(disk, content, rule).is_none()).collect();
    // Left out before anything is counted: one tiny disk does not make the choice ambiguous.
    let large: Vec<_> = fits.iter().copied().filter(|(disk, _)| disk.size >= MIN_DISK_BYTES).collect();
    let unreadable = disks.iter().find_map(|(disk, content)| match content {
        Content::Unreadable(why) if self::fits(disk, rule) && disk.size >= MIN_DISK_BYTES => Some((disk, why)),
        _ => None,
    });
    if let (true, Some((disk, why))) = (large.is_empty(), unreadable) {
        let source = io::Error::other(format!("the disk cannot be read: {why}"));
        return Err(InstallError::io("probing", &disk.path, source));
    }
    let (disk, content) = match large.as_slice() {
        [one] => *one,
        [] if fits.is_empty() => {
            let found: Vec<_> = disks
                .iter()
                .map(|(d, c)| format!("{}: {}", d.describe(), unfit(d, c, rule).unwrap_or("fits")))
                .collect();
            let found = if found.is_empty() { "no disk at all".into() } else { found.join("; ") };
            return Err(ChooseError::NoDisk { rule: show(rule), found }.into());
        }
        [] => {
            let small: Vec<_> = fits.iter().map(|(disk, _)| disk.describe()).collect();
            return Err(ChooseError::TooSmall { disk: small.join("; ") }.into());
        }
        many => {
            let candidates: Vec<_> = many.iter().map(|(d, c)| format!("{} ({c})", d.describe())).collect();
            return Err(ChooseError::Ambiguous { rule: show(rule), candidates: candidates.join("; ") }.into());
        }
    };
    match content {
        Content::Foreign(what) if !wipe && !rule.names_one_disk() => {
            Err(ChooseError::ForeignData { disk: disk.describe(), what: what.clone() }.into())
        }
        _ => Ok(large[0]),
    }
}

/// Whether `rule` would have this disk, whatever it holds.
pub fn fits(disk: &Disk, rule: &DiskRule) -> bool {
    unfit(disk, &Content::Ours, rule).is_none()
}

/// Why a disk is no candidate.
fn unfit(disk: &Disk, content: &Content, rule: &DiskRule) -> Option<&'static str> {
    let differs = |wanted: &Option<String>, has: &str| wanted.as_deref().is_some_and(|wanted| wanted.trim() != has);
    let reasons = [
        (disk.read_only, "read-only"),
        (matches!(content, Content::Unreadable(_)), "cannot be read"),
        (*content == Content::Medium, "the medium this node booted from"),
        (disk.removable && !rule.names_one_disk(), "removable, and not named by serial or wwid"),
        (differs(&rule.serial, &disk.serial), "another serial"),
        (differs(&rule.wwid, &disk.wwid), "another wwid"),
        (rule.model.as_deref().is_some_and(|m| !disk.model.contains(m.trim())), "another model"),
        (rule.min_bytes.is_some_and(|min| disk.size < min), "smaller than min_bytes"),
        (rule.max_bytes.is_some_and(|max| disk.size > max), "larger than max_bytes"),
    ];
    reasons.into_iter().find(|(holds, _)| *holds).map(|(_, why)| why)
}

fn show(rule: &DiskRule) -> String {
    let fields = [
        ("serial", rule.serial.clone()),
        ("wwid", rule.wwid.clone()),
        ("model", rule.model.clone()),
        ("min_bytes", rule.min_bytes.map(|n| n.to_string())),
        ("max_bytes", rule.max_bytes.map(|n| n.to_string())),
    ];
    let given: Vec<_> = fields.into_iter().filter_map(|(name, v)| v.map(|v| format!("{name} = {v}"))).collect();
    if given.is_empty() { "(any disk)".into() } else { format!("({})", given.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(name: &str, size: u64, content: Content) -> (Disk, Content) {
        let disk = Disk {
            name: name.into(),
            path: format!("/dev/{name}").into(),
            model: "QEMU".into(),
            serial: format!("serial-{name}"),
            wwid: String::new(),
            slot: String::new(),
            size,
            sector_size: 512,
            removable: false,
            read_only: false,
        };
        (disk, content)
    }

    fn check(disks: &[(Disk, Content)], rule: &DiskRule, wipe: bool, expect: &str) {
        let got = match choose(disks, rule, wipe) {
            Ok((disk, _)) => disk.name.clone(),
            Err(InstallError::Choose(ChooseError::NoDisk { .. })) => "none".into(),
            Err(InstallError::Choose(ChooseError::Ambiguous { .. })) => "several".into(),
            Err(InstallError::Choose(ChooseError::TooSmall { .. })) => "small".into(),
            Err(InstallError::Choose(ChooseError::ForeignData { .. })) => "foreign".into(),
            Err(InstallError::Io { .. }) => "io".into(),
            Err(error) => panic!("{error}"),
        };
        assert_eq!(got, expect);
    }

    #[test]
    fn exactly_one_disk_or_an_error() {
        let any = DiskRule::default();
        let big = 8 << 30;
        let a = disk("vda", big, Content::Blank);
        let b = disk("vdb", big, Content::Ours);
        let data = disk("vdc", big, Content::Foreign("photos".into()));
        let medium = disk("sda", big, Content::Medium);
        let named = |serial: &str| DiskRule { serial: Some(serial.into()), ..any.clone() };
        check(&[], &any, false, "none");
        check(&[a.clone(), medium.clone()], &any, false, "vda");
        check(&[a.clone(), b.clone()], &any, false, "several");
        check(&[a.clone(), b.clone()], &named("serial-vdb"), false, "vdb");
        check(&[a.clone(), b], &named("serial-x"), true, "none");
        check(std::slice::from_ref(&data), &any, false, "foreign");
        check(std::slice::from_ref(&data), &any, true, "vdc");
        check(&[data], &named("serial-vdc"), false, "vdc");
        let tiny = disk("vdd", 1 << 30, Content::Blank);
        check(std::slice::from_ref(&tiny), &any, false, "small");
        check(&[tiny.clone(), tiny.clone()], &any, false, "small");
        check(&[tiny.clone(), a.clone()], &any, false, "vda");
        check(&[tiny.clone(), a.clone()], &named("serial-vdd"), true, "small");
        check(&[tiny, medium.clone()], &any, false, "small");
        let mut stick = disk("sdb", big, Content::Blank);
        stick.0.removable = true;
        check(&[a.clone(), stick.clone()], &any, false, "vda");
        check(&[a.clone(), stick], &named("serial-sdb"), false, "sdb");
        let size = DiskRule { min_bytes: Some(big + 1), ..any.clone() };
        check(&[a], &size, false, "none");
        check(&[medium], &named("serial-sda"), true, "none");
        let broken = disk("vde", big, Content::Unreadable("I/O error".into()));
        let good = disk("vda", big, Content::Blank);
        check(std::slice::from_ref(&broken), &any, true, "io");
        check(&[broken.clone(), good.clone()], &any, false, "vda");
        check(&[broken.clone(), good.clone()], &named("serial-vde"), true, "io");
        check(&[broken, good], &named("serial-x"), false, "none");
    }
}
