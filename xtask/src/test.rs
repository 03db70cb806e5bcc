//! `cargo xtask test`: what continuous integration runs.

use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::{
    command, fuzz, image,
    scenarios::{self, Choice},
    setup, tidy, torture, ui,
    workspace::Workspace,
};

/// Options of `cargo xtask test`.
#[derive(Args)]
pub(crate) struct Test {
    /// Run only the VM scenarios whose name contains a FILTER, fast or not, and nothing else
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
    /// Run every VM scenario, not only the fast ones, build all images twice to see that they are the same, fuzz every
    /// parser for a few seconds, and tamper with everything that is signed or hashed
    #[arg(long, conflicts_with = "filters")]
    all: bool,
    /// Leave the VM scenarios out
    #[arg(long, conflicts_with_all = ["filters", "all"])]
    no_vm: bool,
}

/// How long each fuzz target runs: enough to find what a change broke, not to find what nobody has found yet.
const FUZZ_SECONDS: u32 = 8;
/// How many changes of signed and hashed things are tried.
const TAMPER_RUNS: u32 = 1000;
/// What they follow from: always the same ones, so that a failure is the change's doing.
const TAMPER_SEED: u64 = 1;

/// Format, lock files, lints, tidy, tests, what the long tests add, and scenarios in VMs; stops at the first that fails.
///
/// # Errors
/// When one of them fails.
pub(crate) fn run(workspace: &Workspace, options: &Test) -> Result<()> {
    setup::run(workspace)?;
    if options.filters.is_empty() {
        cargo(workspace, "format", &["fmt", "--all", "--check"]).context("some files need `cargo fmt`")?;
        // A workspace of its own, which no other command here looks at.
        let manifest = ["--manifest-path", "fuzz/Cargo.toml"];
        let format = [&["fmt", "--check"], &manifest[..]].concat();
        cargo(workspace, "format", &format).context("some files of fuzz/ need `cargo fmt`")?;
        fresh_lock(workspace, &manifest)?;
        cargo(workspace, "lints", &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])?;
        tidy::run(workspace)?;
        cargo(workspace, "tests", &["test", "--workspace", "--locked"])?;
    }
    if options.all {
        torture::tamper(TAMPER_RUNS, TAMPER_SEED)?;
        fuzz::run_all(workspace, FUZZ_SECONDS)?;
    }
    if options.no_vm {
        return Ok(());
    }
    let images = image::run(workspace)?;
    let choice = match &options.filters[..] {
        [] if options.all => Choice::All,
        [] => Choice::Fast,
        filters => Choice::Named(filters),
    };
    scenarios::run(workspace, &images, choice)
}

/// Whether the lock file that belongs to `manifest` is what the manifests ask for.
fn fresh_lock(workspace: &Workspace, manifest: &[&str]) -> Result<()> {
    ui::say("lock files", "cargo metadata --locked");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(&workspace.root).args(["metadata", "--locked", "--format-version", "1"]).args(manifest);
    command::output(&mut cargo)
        .context("fuzz/Cargo.lock is old; `cargo metadata --manifest-path fuzz/Cargo.toml` renews it")?;
    Ok(())
}

fn cargo(workspace: &Workspace, name: &str, arguments: &[&str]) -> Result<()> {
    ui::say(name, &format!("cargo {}", arguments.join(" ")));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let tools = setup::python_tools(workspace);
    command::attached(
        Command::new(cargo).current_dir(&workspace.root).env("ORRERY_PYTHON_TOOLS", tools).args(arguments),
    )
}
