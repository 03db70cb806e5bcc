//! The kernel command line, as far as PID 1 cares.

use std::{fs, time::Duration};

use orrery_init_api::{
    BOOT_ID_PARAMETER, ENTERED_CMDLINE_PATH, ENTERED_ENV, PATIENCE_PARAMETER, ROLE_PARAMETER, Role, TRIAL_PARAMETER,
    patience_s,
};

/// What was found there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parameters {
    /// Boot, if nothing else was said: a medium that was started by hand then still finds its server.
    pub(super) role: Role,
    /// The id that the kernel before this one handed over.
    pub(super) boot_id: Option<String>,
    /// How long a release on trial may take from the kernel's start to health; none where it is not on trial. The second
    /// half of it is what the health gate may take, the first half is for everything before.
    pub(super) trial: Option<Duration>,
}

impl Parameters {
    pub(super) fn read() -> Self {
        // The kernel of a node OS that was entered has the medium's command line.
        let entered = std::env::var_os(ENTERED_ENV).is_some();
        let path = if entered { ENTERED_CMDLINE_PATH } else { "/proc/cmdline" };
        Self::parse(&fs::read_to_string(path).unwrap_or_default())
    }

    /// The last of several values counts, as with the kernel's own parameters.
    fn parse(text: &str) -> Self {
        let value = |name: &str| {
            text.split_ascii_whitespace().rev().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        Self {
            role: value(ROLE_PARAMETER).and_then(|word| word.parse().ok()).unwrap_or(Role::Boot),
            boot_id: value(BOOT_ID_PARAMETER)
                .filter(|id| (8..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_hexdigit()))
                .map(str::to_owned),
            trial: value(TRIAL_PARAMETER).map(|_| Duration::from_secs(2 * patience_s(value(PATIENCE_PARAMETER)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, role: Role, boot_id: Option<&str>) {
        let expect = Parameters { role, boot_id: boot_id.map(str::to_owned), trial: None };
        assert_eq!(Parameters::parse(text), expect, "{text:?}");
    }

    #[test]
    fn trials_end() {
        let check = |text, secs: Option<u64>| {
            assert_eq!(Parameters::parse(text).trial, secs.map(Duration::from_secs), "{text:?}");
        };
        check("orrery.patience=60", None);
        check("orrery.trial=1", Some(600));
        check("orrery.patience=60 orrery.role=node orrery.trial=1", Some(120));
    }

    #[test]
    fn command_lines() {
        check("", Role::Boot, None);
        check("quiet orrery.role=node panic=30\n", Role::Node, None);
        check("orrery.role=node orrery.role=boot", Role::Boot, None);
        check("orrery.role=nonsense orrery.roles=node", Role::Boot, None);
        check("orrery.role=node orrery.boot_id=0123456789abcdef", Role::Node, Some("0123456789abcdef"));
        check("orrery.boot_id=../../etc/passwd", Role::Boot, None);
    }
}
