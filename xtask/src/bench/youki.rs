//! The peer of slivers that Debian has no package of: youki, compiled from crates.io.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{
    build::rust::clean_command,
    command,
    hash::Inputs,
    store::{self, Entry, Record},
    ui::Step,
    workspace::Workspace,
};

/// What is compiled. Its own lock file, with the checksums of all it depends on, comes with it; cargo compares its checksum
/// with the registry's, where a version never changes.
const VERSION: &str = "0.7.0";
/// What the containers here ask of it: control groups as the kernel has them now, and filters of system calls.
const FEATURES: &str = "v2,seccomp";
/// As its own workspace has it for releases. The crate does not bring that along.
const PROFILE: (&str, &str) = ("CARGO_PROFILE_RELEASE_LTO", "true");
/// The program in the store.
pub(super) const PROGRAM: &str = "youki";

/// Compiles it, or finds it compiled. It takes its libraries from where it runs: the release of Debian that this machine has.
///
/// # Errors
/// When libseccomp's development files are missing, or it does not compile.
pub(super) fn build(workspace: &Workspace, codename: &str) -> Result<Entry> {
    let mut inputs = Inputs::default();
    inputs.add("suite", "codename", codename);
    inputs.add("rustc", "version", &command::output(clean_command("rustc").arg("-vV"))?);
    inputs.add("crate", PROGRAM, VERSION);
    inputs.add("features", PROGRAM, FEATURES);
    inputs.add("profile", PROFILE.0, PROFILE.1);
    store::get_or_build(workspace, "bench-youki", &inputs, |folder| {
        ensure!(
            command::succeeds(Command::new("pkg-config").args(["--exists", "libseccomp"])),
            "libseccomp's development files are missing, with which youki is compiled; run `apt-get install libseccomp-dev`"
        );
        let log = workspace.log("bench-youki")?;
        fs::write(&log, "").with_context(|| format!("emptying {}", log.display()))?;
        let step = Step::start("bench", &format!("compiling youki {VERSION}, once (log: {})", log.display()));
        let target = workspace.output().join("youki");
        fs::create_dir_all(&target).with_context(|| format!("making {}", target.display()))?;
        let mut cargo = clean_command("cargo");
        cargo
            .current_dir(&target)
            .env(PROFILE.0, PROFILE.1)
            .args(["install", PROGRAM, "--version", &format!("={VERSION}"), "--locked", "--features", FEATURES])
            .args(["--no-track", "--root", ".", "--target-dir", "."]);
        command::logged(&mut cargo, &log).context("compiling youki")?;
        let program = target.join("bin").join(PROGRAM);
        fs::copy(&program, folder.join(PROGRAM)).with_context(|| format!("copying {}", program.display()))?;
        store::remove_folder(&target)?;
        step.done(&format!("compiled youki {VERSION}"));
        Ok(Record { version: VERSION.to_owned(), licence: "Apache-2.0".to_owned(), ..Record::default() })
    })
}
