//! `cargo xtask test`: what continuous integration runs.

use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::{command, image, scenarios, setup, tidy, ui, workspace::Workspace};

/// Options of `cargo xtask test`.
#[derive(Args)]
pub(crate) struct Test {
    /// Run only the VM scenarios whose name contains FILTER, and nothing else
    #[arg(value_name = "FILTER")]
    filter: Option<String>,
    /// Leave the VM scenarios out
    #[arg(long, conflicts_with = "filter")]
    no_vm: bool,
}

/// Format, lints, tidy, tests, and scenarios in VMs; stops at the first that fails.
///
/// # Errors
/// When one of them fails.
pub(crate) fn run(workspace: &Workspace, options: &Test) -> Result<()> {
    setup::run(workspace)?;
    if options.filter.is_none() {
        cargo(workspace, "format", &["fmt", "--all", "--check"]).context("some files need `cargo fmt`")?;
        cargo(workspace, "lints", &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])?;
        tidy::run(workspace)?;
        cargo(workspace, "tests", &["test", "--workspace", "--locked"])?;
    }
    if options.no_vm {
        return Ok(());
    }
    let images = image::run(workspace)?;
    scenarios::run(workspace, &images, options.filter.as_deref())
}

fn cargo(workspace: &Workspace, name: &str, arguments: &[&str]) -> Result<()> {
    ui::say(name, &format!("cargo {}", arguments.join(" ")));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    command::attached(Command::new(cargo).current_dir(&workspace.root).args(arguments))
}
