//! The kernel command line, as far as PID 1 cares.

use std::fs;

use orrery_init_api::{BOOT_ID_PARAMETER, ROLE_PARAMETER, Role};

/// What was found there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parameters {
    /// Boot, if nothing else was said: a medium that was started by hand then still finds its server.
    pub(super) role: Role,
    /// The id that the kernel before this one handed over.
    pub(super) boot_id: Option<String>,
}

impl Parameters {
    pub(super) fn read() -> Self {
        Self::parse(&fs::read_to_string("/proc/cmdline").unwrap_or_default())
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, role: Role, boot_id: Option<&str>) {
        let expect = Parameters { role, boot_id: boot_id.map(str::to_owned) };
        assert_eq!(Parameters::parse(text), expect, "{text:?}");
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
