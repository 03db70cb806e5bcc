//! The reference image: a minimal Debian as a tar archive, made by mmdebstrap from the host's own sources.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};
use orrery_image_builder::{
    compress_image,
    debian::{self, Debian, DebianRecipe},
};

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
    let mut image = DebianRecipe::reference();
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

fn make_tree(workspace: &Workspace, apt: &Apt, recipe: &DebianRecipe, folder: &Path, tar: &Path) -> Result<()> {
    let sources = folder.join("build.sources");
    fs::write(&sources, apt.binary_sources()).context("writing mmdebstrap's sources")?;
    let debian = Debian {
        recipe: recipe.clone(),
        suite: apt.codename.clone(),
        sources: vec![sources.clone().into()],
        date: debian::DATE,
        expired: false,
    };
    any_of(&workspace.log(NAME)?, debian.commands(tar))?;
    collect_packages(folder, tar)?;
    fs::remove_file(&sources).context("removing mmdebstrap's sources")
}

/// Runs commands of mmdebstrap until one does it.
///
/// # Errors
/// When none does.
pub(crate) fn any_of(log: &Path, commands: impl IntoIterator<Item = Command>) -> Result<()> {
    fs::write(log, "").with_context(|| format!("emptying {}", log.display()))?;
    let mut failure = None;
    for mut mmdebstrap in commands {
        match command::logged(&mut mmdebstrap, log) {
            Ok(()) => return Ok(()),
            Err(error) => failure = Some(error),
        }
    }
    let Some(error) = failure else { bail!("no mode of mmdebstrap to try") };
    Err(error.context("making a tree with mmdebstrap"))
}

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
