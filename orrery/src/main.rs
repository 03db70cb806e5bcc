//! The operators' command line.

mod confirm;
mod context;
mod enrol;
mod extras;
mod files;
mod image;
mod keys;
mod limits;
mod media;
mod node;
mod power;
mod release;
mod script;
mod sign;
mod slice;
mod trust;
mod units;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use orrery_transport::TransportError;
use serde_json::json;

/// Operate an Orrery: nodes, slices, releases, boot scripts, trust, media.
///
/// Exit status: 0 done, 1 failed, 2 wrong usage, 3 refused by central, 4 central cannot be reached, 5 an upgrade stopped at a
/// node; of `slice exec`, `shell` and `cp` what ssh or the command there ended with.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(flatten)]
    context: context::Context,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Nodes: add, list, show, set what is wanted of them, see what they said.
    #[command(subcommand)]
    Node(node::Node),
    /// Remote power over all nodes: tests, policy, nodes that are down.
    #[command(subcommand)]
    Power(power::Power),
    /// Slices: keys, limits, and the nodes they have slivers on.
    #[command(subcommand)]
    Slice(slice::Slice),
    /// Releases: assemble, sign, publish.
    #[command(subcommand)]
    Release(release::Release),
    /// Boot scripts: write, sign, publish.
    #[command(subcommand)]
    Script(script::Script),
    /// Images that slivers start from.
    #[command(subcommand)]
    Image(image::Images),
    /// Release keys: make, show, list.
    #[command(subcommand)]
    Keys(keys::Keys),
    /// Sign a document of any type, or add signatures to a signed one; works offline.
    Sign(sign::Sign),
    /// Trust roots: which release keys and authorities nodes obey from now on.
    #[command(subcommand)]
    Trust(trust::Trust),
    /// Enrolment: one-time tokens for machines that make their own keys.
    #[command(subcommand)]
    Enrol(enrol::Enrol),
    /// Boot media: put a node's configuration into one, read it back.
    #[command(subcommand)]
    Media(media::Media),
}

fn main() -> ExitCode {
    let Arguments { context, command } = Arguments::parse();
    let result = match command {
        Command::Node(command) => node::run(&context, command),
        Command::Power(command) => power::run(&context, command),
        Command::Slice(command) => slice::run(&context, command),
        Command::Release(command) => release::run(&context, command),
        Command::Script(command) => script::run(&context, command),
        Command::Image(command) => image::run(&context, command),
        Command::Keys(command) => keys::run(&context, command),
        Command::Sign(sign) => sign.run(&context, None),
        Command::Trust(command) => trust::run(&context, command),
        Command::Enrol(command) => enrol::run(&context, command),
        Command::Media(command) => media::run(&context, command),
    };
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    if let Some(slice::connect::Ended(status)) = error.downcast_ref() {
        return ExitCode::from(*status);
    }
    let (code, word) = match error.chain().find_map(|e| e.downcast_ref::<TransportError>()) {
        _ if error.is::<node::Stopped>() => (5, "stopped"),
        Some(TransportError::Refused { class, .. }) => (3, class.as_str()),
        None | Some(TransportError::Setup { .. }) => (1, "failed"),
        Some(_) => (4, "unreachable"),
    };
    if context.json() {
        eprintln!("{}", json!({ "error": word, "message": explain(&error) }));
    } else {
        eprintln!("orrery: {}", explain(&error));
    }
    ExitCode::from(code)
}

/// The error with its causes, each said once: some messages repeat what caused them.
fn explain(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |said, cause| match said {
        said if said.is_empty() => cause,
        said if said.contains(&cause) => said,
        said => format!("{said}: {cause}"),
    })
}
