//! The programs that slivers are measured beside: Debian's packages, unpacked as a tree of their own, and youki among them.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};
use orrery_image_builder::{compress_image, debian};

use super::youki;
use crate::{
    apt::{Apt, Freshness},
    build::reference_image,
    command,
    hash::Inputs,
    store::{self, Entry, Record},
    ui::Step,
    workspace::Workspace,
};

/// What is compared, and what it takes to run it on a machine that has nothing.
const PACKAGES: [&str; 7] = ["crun", "runc", "openssh-server", "openssh-client", "bash", "dash", "iproute2"];
/// How many of them are peers; their versions are told.
const PEERS: usize = 3;
/// The archive in the store.
pub(super) const ARCHIVE: &str = "peers.tar.zst";

/// Makes the archive, or finds it made. Its version names the peers with theirs.
///
/// # Errors
/// When youki cannot be compiled, or mmdebstrap fails in every mode that this machine may allow.
pub(super) fn build(workspace: &Workspace) -> Result<Entry> {
    let apt = Apt::open(workspace, Freshness::Daily)?;
    let mut inputs = Inputs::default();
    inputs.add("suite", "codename", &apt.codename);
    let mut versions = Vec::new();
    for package in PACKAGES {
        let version = apt.binary_candidate(package)?.version;
        inputs.add("package", package, &version);
        versions.push(format!("{package} {version}"));
    }
    versions.truncate(PEERS);
    let youki = youki::build(workspace, &apt.codename)?;
    versions.push(format!("youki {}", youki.record.version));
    let youki = youki.folder.join(youki::PROGRAM);
    inputs.add_file("youki", &youki)?;
    store::get_or_build(workspace, "bench-peers", &inputs, |folder| {
        let step = Step::start("bench", "unpacking crun, runc and OpenSSH");
        let (tar, sources) = (folder.join("peers.tar"), folder.join("build.sources"));
        fs::write(&sources, apt.binary_sources()).context("writing mmdebstrap's sources")?;
        let commands = debian::modes().iter().map(|mode| {
            let mut command = Command::new("mmdebstrap");
            command
                .env("LC_ALL", "C")
                .args(["--variant=extract", "--components=main", "--format=tar"])
                .arg(format!("--mode={mode}"))
                .arg(format!("--include={}", PACKAGES.join(",")))
                .arg("--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr")
                .arg(&apt.codename)
                .arg(&tar)
                .arg(&sources);
            command
        });
        reference_image::any_of(&workspace.log("bench-peers")?, commands)?;
        add_program(&tar, &youki)?;
        compress_image(&tar, &folder.join(ARCHIVE)).context("compressing the peers")?;
        for path in [tar, sources] {
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
        step.done("unpacked crun, runc and OpenSSH");
        let version = versions.join(", ");
        Ok(Record { version, licence: "NOASSERTION".to_owned(), ..Record::default() })
    })
}

/// Puts a program beside those of the tree.
fn add_program(tar: &Path, program: &Path) -> Result<()> {
    let (folder, name) = (program.parent().unwrap_or(Path::new("")), program.file_name().unwrap_or_default());
    let mut append = Command::new("tar");
    append.args(["--append", "--owner=0", "--group=0", "--mode=755", "--transform=s,^,./usr/bin/,", "--file"]).arg(tar);
    command::output(append.arg("-C").arg(folder).arg(name)).context("adding a program to the peers")?;
    Ok(())
}
