//! Build, image, demo, test and bench tasks.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

mod apt;
mod bench;
mod build;
mod cargo;
mod clean;
mod command;
mod demo;
mod fetch;
mod fuzz;
mod hash;
mod image;
mod ipmi_sim;
mod kconfig;
mod lab;
mod lock;
mod recipe;
mod sbom;
mod scenarios;
mod setup;
mod store;
mod test;
mod tidy;
mod torture;
mod ui;
mod workspace;

use workspace::Workspace;

/// Builds, tests and shows Orrery.
///
/// Outputs go to `target/orrery/`. Sources and built components are kept in a cache outside the checkout:
/// $ORRERY_CACHE, else $XDG_CACHE_HOME/orrery, else ~/.cache/orrery. Every task builds what it needs.
///
/// Exit status: 0 when all went well, 1 when something failed, 2 for wrong arguments.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install the Debian packages that are needed, or print the command that does
    ///
    /// Installs when run by root or when sudo asks for no password. The host's apt configuration stays as it is:
    /// packages that only the backports suite has are found through a private apt state in the cache.
    Setup,
    /// Download the sources of the C programs, and print their SHA-256
    Fetch,
    /// Build one component, or all, into the cache
    ///
    /// A component is built again only when one of its inputs changed: recipe, configuration, source, toolchain.
    /// The kernel takes about ten minutes on two cores, all others together about five.
    Build {
        /// kernel, busybox, e2fsprogs, rust, tools or reference-image
        component: Option<String>,
    },
    /// Make boot medium, PXE set, node OS and SBOM in target/orrery/images/
    Image,
    /// Watch a bare machine install itself, chain-boot, and run a command in a sliver
    Demo(demo::Demo),
    /// Measure speed, side by side with a floor or a peer in the same run
    Bench(bench::Bench),
    /// Run what continuous integration runs: format, lock files, lints, tidy, tests, VM scenarios
    ///
    /// With --all, also every slow VM scenario, the reproduction of the images, a few seconds of fuzzing, and tampering.
    Test(test::Test),
    /// Feed mutated bytes to every parser of untrusted bytes, for a bounded time
    Fuzz(fuzz::Fuzz),
    /// Do the same thing many times over, each time hurt in another way, all from one seed
    Torture(torture::Torture),
    /// Check the rules about the source that the compiler does not know
    ///
    /// Layers between crates, unsafe code in `sys` alone, file lengths, no names of machines, and that `protocol`
    /// links where std does not exist.
    Tidy,
    /// Remove target/orrery/
    Clean {
        /// Also remove sources and built components from the cache; building the kernel again takes a while
        #[arg(long)]
        cache: bool,
    },
}

fn main() -> ExitCode {
    match run(&Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: &Task) -> Result<()> {
    let workspace = Workspace::open()?;
    match task {
        Task::Setup => setup::run(&workspace),
        Task::Fetch => fetch::run(&workspace),
        Task::Build { component } => build::run(&workspace, component.as_deref()),
        Task::Image => image::run(&workspace).map(|_| ()),
        Task::Demo(options) => demo::run(&workspace, &prepared(&workspace)?, options),
        Task::Bench(options) => bench::run(&workspace, || prepared(&workspace), options),
        Task::Test(options) => test::run(&workspace, options),
        Task::Fuzz(options) => fuzz::run(&workspace, options),
        Task::Torture(options) => torture::run(&workspace, options),
        Task::Tidy => tidy::run(&workspace),
        Task::Clean { cache } => clean::run(&workspace, *cache),
    }
}

/// Sets everything up, builds the images, and finds out how machines run here.
fn prepared(workspace: &Workspace) -> Result<image::Images> {
    setup::run(workspace)?;
    let images = image::run(workspace)?;
    lab::settle_acceleration(&images);
    Ok(images)
}
