//! How a Debian tree for slivers is made: by mmdebstrap, which has to be installed.

use std::{ffi::OsString, path::Path, process::Command};

use serde::Deserialize;

/// The date that no file of a reference image is younger than, 2020-01-01 in Unix seconds. It does not move with the release's, or
/// every release would change the header of every file that the build makes, and with it the pieces of the archive they are in.
pub const DATE: u64 = 1_577_836_800;

/// What is in a Debian image, on top of the essential packages and apt.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DebianRecipe {
    /// For people.
    pub summary: String,
    /// Packages.
    pub packages: Vec<String>,
    /// Patterns of paths to leave out.
    pub exclude: Vec<String>,
    /// Patterns of paths that stay all the same.
    pub include: Vec<String>,
}

impl DebianRecipe {
    /// That of the reference image.
    pub fn reference() -> Self {
        toml::from_str(include_str!("../../packages/reference-image/recipe.toml"))
            .expect("the recipe in the source is valid")
    }
}

/// The modes in which mmdebstrap may work here, the best first: as root, or in a user namespace where root may not mount, as in
/// some containers.
pub fn modes() -> &'static [&'static str] {
    if rustix::process::geteuid().is_root() { &["root", "unshare"] } else { &["unshare"] }
}

/// A Debian image to make.
#[derive(Debug, Clone)]
pub struct Debian {
    /// What is in it.
    pub recipe: DebianRecipe,
    /// The suite, as `trixie`.
    pub suite: String,
    /// Where packages come from, as mmdebstrap takes it: URLs, lines of a source list, or files with such. Without any, it is the
    /// distribution's public archive.
    pub sources: Vec<OsString>,
    /// What no file is younger than, in Unix seconds.
    pub date: u64,
    /// Whether lists of packages are taken that have expired: those of a snapshot have.
    pub expired: bool,
}

impl Debian {
    /// The commands of which one should write the tree to the archive `tar`, one for each of [`modes`].
    pub fn commands(&self, tar: &Path) -> Vec<Command> {
        modes().iter().map(|mode| self.command(mode, tar)).collect()
    }

    fn command(&self, mode: &str, tar: &Path) -> Command {
        let mut command = Command::new("mmdebstrap");
        command
            .env("LC_ALL", "C")
            .env("SOURCE_DATE_EPOCH", self.date.to_string())
            .args(["--variant=minbase", "--components=main", "--format=tar"])
            .arg(format!("--mode={mode}"))
            .arg(format!("--include={}", self.recipe.packages.join(",")));
        // In dpkg the last match decides: exclusions stand before inclusions.
        for pattern in &self.recipe.exclude {
            command.arg(format!("--dpkgopt=path-exclude={pattern}"));
        }
        for pattern in &self.recipe.include {
            command.arg(format!("--dpkgopt=path-include={pattern}"));
        }
        command.arg("--aptopt=Acquire::Languages \"none\"");
        if self.expired {
            command.arg("--aptopt=Acquire::Check-Valid-Until \"false\"");
        }
        // Merged from the start: otherwise a package that merges later comes in, and all of Perl with it.
        command.arg("--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr");
        command.args(FINISH.map(|hook| format!("--customize-hook={hook}")));
        command.arg(&self.suite).arg(tar).args(&self.sources);
        command
    }
}

/// What a sliver's users get: apt on the distribution's public archive, whatever mirror the build used, and no
/// trace of this build. apt's own example names the public archive.
const FINISH: [&str; 5] = [
    r#"rm -rf "$1"/etc/apt/sources.list "$1"/etc/apt/sources.list.d/*"#,
    r#"cd "$1"/usr/share/doc/apt/examples && if [ -e debian.sources ]; then cp debian.sources "$1"/etc/apt/sources.list.d/; else cp sources.list "$1"/etc/apt/; fi"#,
    r#"rm -rf "$1"/usr/share/doc/apt/examples "$1"/etc/apt/apt.conf.d/99mmdebstrap "$1"/etc/dpkg/dpkg.cfg.d/99mmdebstrap "$1"/etc/hostname "$1"/etc/resolv.conf"#,
    r#"rm -rf "$1"/var/cache/ldconfig/aux-cache "$1"/var/cache/debconf/*-old "$1"/var/log/*.log "$1"/var/log/apt/* "$1"/var/lib/apt/lists/lock"#,
    r#"ln -sf /proc/mounts "$1"/etc/mtab"#,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_says_all_of_it() {
        let mut debian = Debian {
            recipe: DebianRecipe::reference(),
            suite: "trixie".to_owned(),
            sources: vec!["https://mirror.example/debian".into()],
            date: 5,
            expired: false,
        };
        debian.recipe.packages.push("nginx".to_owned());
        let words = |debian: &Debian| -> Vec<String> {
            let command = debian.command("unshare", Path::new("out.tar"));
            command.get_args().map(|word| word.to_string_lossy().into_owned()).collect()
        };
        let said = words(&debian);
        assert!(said.iter().any(|word| word.starts_with("--include=") && word.ends_with(",nginx")), "{said:?}");
        assert_eq!(said[said.len() - 3..], ["trixie", "out.tar", "https://mirror.example/debian"]);
        let expired = words(&Debian { expired: true, ..debian });
        assert_eq!(expired.len(), said.len() + 1);
    }
}
