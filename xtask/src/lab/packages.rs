//! A package archive of a scenario's own: `.deb` files and their index in one folder, for whoever serves it.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{apt::Apt, command, hash};

/// A folder with packages and, once [`PackageArchive::index`] was called, apt's index of them.
pub(crate) struct PackageArchive {
    folder: PathBuf,
    packages: u32,
}

impl PackageArchive {
    /// An empty one in the new `folder`.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub(crate) fn create(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        Ok(Self { folder: folder.to_owned(), packages: 0 })
    }

    /// A name for the next package: numbers need no escapes in URLs.
    fn next(&mut self) -> PathBuf {
        self.packages += 1;
        self.folder.join(format!("{}.deb", self.packages))
    }

    /// Adds the package that dpkg-deb makes of `tree`, whose files become root's.
    ///
    /// # Errors
    /// It is no package's tree.
    pub(crate) fn build(&mut self, tree: &Path) -> Result<()> {
        let package = self.next();
        let options = ["--root-owner-group", "-Zgzip", "-z1", "--build"];
        command::output(Command::new("dpkg-deb").args(options).arg(tree).arg(package)).map(drop)
    }

    /// Adds a later version of a package of the reference image, out of the files that its `archive` has of it. Beside the
    /// version, it is the same.
    ///
    /// # Errors
    /// The image has no such package, or it cannot be packed.
    pub(crate) fn repack(&mut self, archive: &Path, package: &str, suffix: &str, scratch: &Path) -> Result<()> {
        let tar = |options: &[&str]| {
            let mut tar = Command::new("tar");
            tar.args(["-I", "zstd"]).args(options).arg("-f").arg(archive);
            tar
        };
        let information = format!("./var/lib/dpkg/info/{package}");
        let owned = command::output(tar(&["-xO"]).arg(format!("{information}.list")))?;
        let owned: BTreeSet<&str> = owned.lines().collect();
        let all = command::output(&mut tar(&["-t"]))?;
        let wanted = |member: &&str| owned.contains(member.trim_start_matches('.')) || member.starts_with(&information);
        let members: Vec<_> = all.lines().filter(wanted).collect();
        let (tree, list) = (scratch.join(package), scratch.join("members"));
        fs::create_dir_all(&tree).with_context(|| format!("making {}", tree.display()))?;
        fs::write(&list, members.join("\n")).with_context(|| format!("writing {}", list.display()))?;
        command::output(tar(&["-xp", "--no-recursion"]).arg("-C").arg(&tree).arg("-T").arg(&list))?;

        let control = tree.join("DEBIAN");
        fs::create_dir(&control).with_context(|| format!("making {}", control.display()))?;
        let folder = tree.join("var/lib/dpkg/info");
        for entry in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
            let entry = entry.context("reading a package's scripts")?;
            let name = entry.file_name().to_string_lossy().trim_start_matches(&format!("{package}.")).to_owned();
            if name != "list" {
                fs::rename(entry.path(), control.join(name)).context("moving a package's script")?;
            }
        }
        fs::remove_dir_all(tree.join("var")).context("removing what belongs to dpkg")?;
        let status = command::output(tar(&["-xO"]).arg("./var/lib/dpkg/status"))?;
        let paragraph = paragraph(&status, package).with_context(|| format!("finding {package} in the image"))?;
        fs::write(control.join("control"), later(paragraph, suffix)).context("writing a control file")?;
        self.build(&tree)
    }

    /// Adds what apt would download to install `packages` into a system with the package database of `archive`. What was
    /// downloaded once stays in `cache`.
    ///
    /// # Errors
    /// There is no network, or a package is unknown.
    pub(crate) fn download(&mut self, apt: &Apt, archive: &Path, cache: &Path, packages: &[&str]) -> Result<()> {
        let partial = cache.join("partial");
        fs::create_dir_all(&partial).with_context(|| format!("making {}", partial.display()))?;
        let status = cache.join("status");
        let mut tar = Command::new("tar");
        let text = command::output(tar.args(["-I", "zstd", "-xOf"]).arg(archive).arg("./var/lib/dpkg/status"))?;
        fs::write(&status, text).with_context(|| format!("writing {}", status.display()))?;
        let mut download = apt.command("apt-get");
        download
            .arg(format!("-oDir::State::status={}", status.display()))
            .arg(format!("-oDir::Cache::archives={}", cache.display()))
            .args(["-oDebug::NoLocking=1", "-q", "-y", "--no-install-recommends", "--download-only", "install"])
            .args(packages);
        command::output(&mut download)?;
        for entry in fs::read_dir(cache).with_context(|| format!("reading {}", cache.display()))? {
            let path = entry.context("reading downloaded packages")?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                fs::copy(&path, self.next()).with_context(|| format!("copying {}", path.display()))?;
            }
        }
        Ok(())
    }

    /// Writes the index of all packages there are.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub(crate) fn index(&self) -> Result<()> {
        let mut index = String::new();
        for number in 1..=self.packages {
            let name = format!("{number}.deb");
            let package = self.folder.join(&name);
            let control = command::output(Command::new("dpkg-deb").arg("--field").arg(&package))?;
            let size = fs::metadata(&package).with_context(|| format!("reading {}", package.display()))?.len();
            let digest = hash::file(&package)?;
            let _ = writeln!(index, "{}\nFilename: ./{name}\nSize: {size}\nSHA256: {digest}\n", control.trim_end());
        }
        fs::write(self.folder.join("Packages"), index).context("writing the index of packages")
    }
}

/// A package's paragraph of dpkg's database.
fn paragraph<'a>(status: &'a str, package: &str) -> Option<&'a str> {
    let first = format!("Package: {package}");
    status.split("\n\n").find(|paragraph| paragraph.lines().next() == Some(&first))
}

/// The control file of a later version. What dpkg notes about an installed package is not part of it.
fn later(paragraph: &str, suffix: &str) -> String {
    let mut control = String::new();
    for line in paragraph.lines().filter(|line| !line.starts_with("Status: ")) {
        let suffix = if line.starts_with("Version: ") { suffix } else { "" };
        let _ = writeln!(control, "{line}{suffix}");
    }
    control
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_version_is_the_same_otherwise() {
        let status = "Package: a\nStatus: install ok installed\nVersion: 1\n\nPackage: ab\nVersion: 2\n";
        let a = paragraph(status, "a").unwrap();
        assert_eq!(later(a, "+x"), "Package: a\nVersion: 1+x\n");
        assert_eq!(paragraph(status, "b"), None);
    }
}
