//! The reference image: a minimal Debian as a tar archive, made by mmdebstrap from the host's own sources.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};
use orrery_image_builder::compress_image;
use serde::Deserialize;

use crate::{
    apt::{Apt, Freshness},
    command,
    hash::Inputs,
    store::{self, Entry, Record},
    ui::{Step, size},
    workspace::Workspace,
};

mod licence;

const NAME: &str = "reference-image";
/// The archive in the store and among the images.
pub(crate) const ARCHIVE: &str = "debian.tar.zst";
/// The packages in it, for the SBOM.
pub(crate) const PACKAGES_FILE: &str = "packages.tsv";
/// Raised when this module changes in a way that changes results.
const REVISION: &str = "4";
/// The image's own date, 2020-01-01: no file in it is younger. It does not move with the release's, or every release would change
/// the header of every file that the build makes, and with it the pieces of the archive they are in.
const DATE: &str = "1577836800";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Image {
    summary: String,
    packages: Vec<String>,
    exclude: Vec<String>,
    include: Vec<String>,
}

/// Builds the reference image, or finds it built.
///
/// # Errors
/// When mmdebstrap fails in every mode that this machine may allow.
pub(crate) fn build(workspace: &Workspace) -> Result<Entry> {
    build_with(workspace, NAME, &[])
}

/// Builds the same image with further packages in it, under a name of its own: what tests bring into slivers.
///
/// # Errors
/// As [`build`].
pub(crate) fn build_with(workspace: &Workspace, name: &str, packages: &[&str]) -> Result<Entry> {
    let path = workspace.root.join("packages").join(NAME).join("recipe.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let mut image: Image = toml::from_str(&text).with_context(|| format!("parsing {}", path.display()))?;
    image.packages.extend(packages.iter().map(|package| (*package).to_owned()));
    let apt = Apt::open(workspace, Freshness::Daily)?;
    let mut inputs = Inputs::default();
    inputs.add("runner", "version", REVISION);
    inputs.add("suite", "codename", &apt.codename);
    inputs.add("recipe", NAME, &format!("{:?} {:?} {:?}", image.packages, image.exclude, image.include));
    store::get_or_build(workspace, name, &inputs, |folder| {
        let step = Step::start(name, &format!("building {} ({})", image.summary, apt.codename));
        let tar = folder.join("debian.tar");
        make_tree(workspace, &apt, &image, folder, &tar)?;
        step.now("compressing");
        compress_image(&tar, &folder.join(ARCHIVE)).context("compressing the reference image")?;
        fs::remove_file(&tar).context("removing the uncompressed archive")?;
        let bytes = fs::metadata(folder.join(ARCHIVE)).context("reading the archive's size")?.len();
        step.done(&format!("built, {}", size(bytes)));
        Ok(Record { version: apt.codename.clone(), licence: "NOASSERTION".to_owned(), ..Record::default() })
    })
}

fn make_tree(workspace: &Workspace, apt: &Apt, image: &Image, folder: &Path, tar: &Path) -> Result<()> {
    let sources = folder.join("build.sources");
    fs::write(&sources, apt.binary_sources()).context("writing mmdebstrap's sources")?;
    in_some_mode(&workspace.log(NAME)?, |mode| {
        let mut mmdebstrap = command(image, mode);
        mmdebstrap.arg(&apt.codename).arg(tar).arg(&sources);
        mmdebstrap
    })?;
    collect_packages(folder, tar)?;
    fs::remove_file(&sources).context("removing mmdebstrap's sources")
}

/// Runs mmdebstrap as root, or in a user namespace where root may not mount, as in some containers: `command` is told the mode.
///
/// # Errors
/// When it fails in every mode that this machine may allow.
pub(crate) fn in_some_mode(log: &Path, command: impl Fn(&str) -> Command) -> Result<()> {
    let modes: &[&str] = if rustix::process::geteuid().is_root() { &["root", "unshare"] } else { &["unshare"] };
    fs::write(log, "").with_context(|| format!("emptying {}", log.display()))?;
    let mut failure = None;
    for mode in modes {
        match command::logged(&mut command(mode), log) {
            Ok(()) => return Ok(()),
            Err(error) => failure = Some(error),
        }
    }
    let Some(error) = failure else { bail!("no mode of mmdebstrap to try") };
    Err(error.context("making a tree with mmdebstrap"))
}

fn command(image: &Image, mode: &str) -> Command {
    let mut command = Command::new("mmdebstrap");
    command
        .env("LC_ALL", "C")
        .env("SOURCE_DATE_EPOCH", DATE)
        .args(["--variant=minbase", "--components=main", "--format=tar"])
        .arg(format!("--mode={mode}"))
        .arg(format!("--include={}", image.packages.join(",")));
    // In dpkg the last match decides: exclusions stand before inclusions.
    for pattern in &image.exclude {
        command.arg(format!("--dpkgopt=path-exclude={pattern}"));
    }
    for pattern in &image.include {
        command.arg(format!("--dpkgopt=path-include={pattern}"));
    }
    command.arg("--aptopt=Acquire::Languages \"none\"");
    // Merged from the start: otherwise a package that merges later comes in, and all of Perl with it.
    command.arg("--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr");
    command.args(FINISH.map(|hook| format!("--customize-hook={hook}")));
    command
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

/// Notes the packages in the tree with their source packages and licences, from its own files.
fn collect_packages(folder: &Path, tar: &Path) -> Result<()> {
    let status = command::output(Command::new("tar").args(["-xOf"]).arg(tar).arg("./var/lib/dpkg/status"))
        .context("reading the package database of the reference image")?;
    let scratch = tempfile::tempdir().context("making a folder for licences")?;
    command::output(
        Command::new("tar")
            .args(["--wildcards", "-C"])
            .arg(scratch.path())
            .arg("-xf")
            .arg(tar)
            .arg("./usr/share/doc/*/copyright"),
    )
    .context("reading the licences of the reference image")?;
    let mut lines: Vec<String> = status
        .split("\n\n")
        .filter_map(package_line)
        .map(|(package, line)| {
            let path = scratch.path().join("usr/share/doc").join(&package).join("copyright");
            format!("{line}\t{}\n", licence::of_copyright_file(&fs::read_to_string(path).unwrap_or_default()))
        })
        .collect();
    lines.sort();
    if lines.is_empty() {
        bail!("the package database of the reference image is empty");
    }
    fs::write(folder.join(PACKAGES_FILE), lines.concat()).context("writing the list of packages")
}

/// The package, and `package version source source-version`, separated by tabs.
fn package_line(paragraph: &str) -> Option<(String, String)> {
    let field = |name: &str| paragraph.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let (package, version) = (field("Package")?, field("Version")?);
    let (source, source_version) = match field("Source").map(|source| source.split_once(" (")) {
        None => (package, version),
        Some(None) => (field("Source")?, version),
        Some(Some((source, version))) => (source, version.trim_end_matches(')')),
    };
    Some((package.to_owned(), format!("{package}\t{version}\t{source}\t{source_version}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(paragraph: &str, expect: Option<&str>) {
        assert_eq!(package_line(paragraph).map(|(_, line)| line).as_deref(), expect);
    }

    #[test]
    fn dpkg_paragraphs() {
        check("Package: a\nVersion: 1\n", Some("a\t1\ta\t1"));
        check("Package: a\nSource: b\nVersion: 1\n", Some("a\t1\tb\t1"));
        check("Package: a\nSource: b (2)\nVersion: 1\n", Some("a\t1\tb\t2"));
        check("\n", None);
    }
}
