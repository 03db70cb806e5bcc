//! `cargo xtask test`: what continuous integration runs.

use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::{
    command, image,
    scenarios::{self, Choice},
    setup, tidy, ui,
    workspace::Workspace,
};

/// Options of `cargo xtask test`.
#[derive(Args)]
pub(crate) struct Test {
    /// Run only the VM scenarios whose name contains a FILTER, fast or not, and nothing else
    #[arg(value_name = "FILTER")]
    filters: Vec<String>,
    /// Run every VM scenario, not only the fast ones, and build all images twice to see that they are the same
    #[arg(long, conflicts_with = "filters")]
    all: bool,
    /// Leave the VM scenarios out
    #[arg(long, conflicts_with_all = ["filters", "all"])]
    no_vm: bool,
}

/// Format, lints, tidy, tests, and scenarios in VMs; stops at the first that fails.
///
/// # Errors
/// When one of them fails.
pub(crate) fn run(workspace: &Workspace, options: &Test) -> Result<()> {
    setup::run(workspace)?;
    if options.filters.is_empty() {
        cargo(workspace, "format", &["fmt", "--all", "--check"]).context("some files need `cargo fmt`")?;
        cargo(workspace, "lints", &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])?;
        tidy::run(workspace)?;
        cargo(workspace, "tests", &["test", "--workspace", "--locked"])?;
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

fn cargo(workspace: &Workspace, name: &str, arguments: &[&str]) -> Result<()> {
    ui::say(name, &format!("cargo {}", arguments.join(" ")));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    command::attached(Command::new(cargo).current_dir(&workspace.root).args(arguments))
}
