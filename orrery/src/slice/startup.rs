//! What slivers run without a login, as options and as text.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use orrery_protocol::{Restart, Service, Startup};

/// Options of `orrery slice add` and `set`.
#[derive(clap::Args)]
pub(crate) struct StartupOptions {
    /// A script that the root of each sliver runs whenever that starts, with the arguments `start SLICE`.
    #[arg(long, value_name = "FILE")]
    initscript: Option<PathBuf>,
    /// No initscript any more.
    #[arg(long, conflicts_with = "initscript")]
    no_initscript: bool,
    /// Keep what the image's entrypoint starts running.
    #[arg(long, conflicts_with = "service_run")]
    service: bool,
    /// Keep what this line for the sliver's shell starts running; `exec PROGRAM` has the program itself asked to end.
    #[arg(long, value_name = "LINE")]
    service_run: Option<String>,
    /// Whether the service is started again when it ends; `always` unless said otherwise.
    #[arg(long, value_name = "WHEN")]
    service_restart: Option<Policy>,
    /// No service any more.
    #[arg(long, conflicts_with_all = ["service", "service_run", "service_restart"])]
    no_service: bool,
}

/// When a service that ended is started again.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Policy {
    Always,
    OnFailure,
    No,
}

impl StartupOptions {
    /// Changes what is asked for.
    pub(crate) fn apply(&self, startup: &mut Startup) -> Result<()> {
        if let Some(path) = &self.initscript {
            let script = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
            startup.initscript = Some(script);
        } else if self.no_initscript {
            startup.initscript = None;
        }
        let command = self.service_run.as_ref().map(|line| ["/bin/sh".into(), "-c".into(), line.clone()].to_vec());
        if let Some(command) = command.or(self.service.then(Vec::new)) {
            startup.service.get_or_insert_default().command = command;
        } else if self.no_service {
            startup.service = None;
        }
        if let Some(policy) = self.service_restart {
            ensure!(
                startup.service.is_some(),
                "there is no service to restart: say what it is by --service or --service-run"
            );
            startup.service.get_or_insert_default().restart = match policy {
                Policy::Always => Restart::Always,
                Policy::OnFailure => Restart::OnFailure,
                Policy::No => Restart::No,
            };
        }
        Ok(startup.check()?)
    }
}

/// Rows for people.
pub(crate) fn rows(startup: &Startup) -> Vec<(&'static str, String)> {
    let script = startup.initscript.as_ref().map(|text| ("initscript", format!("{} bytes", text.len())));
    let service = startup.service.as_ref().map(|service| ("service", describe(service)));
    script.into_iter().chain(service).collect()
}

fn describe(Service { command, restart }: &Service) -> String {
    let what = match &command[..] {
        [] => "what the image says".to_owned(),
        [_, flag, line] if flag == "-c" => line.clone(),
        words => words.join(" "),
    };
    let when = match restart {
        Restart::Always => "whenever it ends",
        Restart::OnFailure => "when it fails",
        Restart::No => "with the sliver only",
    };
    format!("{what}; started again {when}")
}
