//! Drivers: which there are, and whether a data file is one.

use std::path::PathBuf;

use anyhow::Result;
use clap::Subcommand;
use orrery_pcu::{Ability, Registry};
use serde_json::json;

use crate::output::{self, Outcome};

#[derive(Subcommand)]
pub(crate) enum Driver {
    /// List the drivers, and what each can do
    List,
    /// Say whether data files describe drivers, without using them
    Check {
        /// Data files
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

/// Lists or checks.
pub(crate) fn run(json: bool, registry: &Registry, command: &Driver) -> Result<Outcome> {
    match command {
        Driver::List => list(json, registry),
        Driver::Check { files } => {
            let mut registry = registry.clone();
            for file in files {
                let name = registry.add_file(file)?;
                println!("{}: describes the driver {name}", file.display());
            }
            Ok(Outcome::done())
        }
    }
}

fn list(json: bool, registry: &Registry) -> Result<Outcome> {
    if json {
        let driver = |driver: &dyn orrery_pcu::Driver| json!({ "name": driver.name(), "about": driver.about(), "abilities": driver.abilities() });
        output::document(&json!({ "drivers": registry.iter().map(driver).collect::<Vec<_>>() }))?;
        return Ok(Outcome::done());
    }
    for driver in registry.iter() {
        let abilities: Vec<_> = driver.abilities().iter().map(Ability::to_string).collect();
        println!("{:<20} {}\n{:<20}     {}", driver.name(), driver.about(), "", abilities.join(" "));
    }
    Ok(Outcome::done())
}
