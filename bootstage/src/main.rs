//! `orrery-stage <stage>`: the stages that PID 1 runs on the medium, and what it runs on consoles; as `orrery-node`, the
//! commands of a rescuer.

use std::{env, path::Path, process::ExitCode};

use orrery_bootstage::{
    StageFailure, clock, configure, console, contact, disk_lock, events, firewall, install, load, network, node_config,
    repair, reporter, rescue, safe, upgrade, verify,
};
use orrery_init_api::{CONSOLE_ARGUMENT, FailureClass, RESULT_FD, Stage, StageResult, report_result};
use orrery_sys::descriptor::inherited;

const USAGE: &str =
    "usage: orrery-stage configure|network|time|contact|verify|install|upgrade|load|repair|safe|reporter|console";

fn main() -> ExitCode {
    let called = env::args_os().next().unwrap_or_default();
    if Path::new(&called).file_name().is_some_and(|name| name == rescue::NAME) {
        return rescue::run();
    }
    if env::args().nth(1).is_some_and(|word| word == CONSOLE_ARGUMENT) {
        return ended(console::run());
    }
    // Held for as long as the process lives, and by no program it starts.
    let _result = inherited(RESULT_FD);
    let Some(stage) = env::args().nth(1).and_then(|word| word.parse::<Stage>().ok()) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(stage) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // A service that fails after it was ready has only the console left.
            if report_result(&failure.to_result()).is_err() {
                eprintln!("{failure}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(stage: Stage) -> Result<(), StageFailure> {
    // Whatever touches the disk has it for itself.
    let leaves_it = matches!(stage, Stage::Configure | Stage::Network | Stage::Time | Stage::Safe | Stage::Reporter);
    let _turn = if leaves_it { None } else { disk_lock::wait() };
    match stage {
        Stage::Configure => ready(&configure::run()?),
        Stage::Network => {
            close_firewall();
            let config = node_config()?;
            let state = network::run(&config)?;
            ready(&format!("{} {}/{}", state.interface, state.address, state.prefix));
            network::keep_lease(&config, state)?;
        }
        Stage::Time => ready(&clock::run(&node_config()?)?),
        Stage::Contact => ready(&contact::run(&node_config()?)?),
        Stage::Verify => ready(&verify::run(&node_config()?)?),
        Stage::Install => ready(&install::run(&node_config()?)?),
        Stage::Upgrade => ready(&upgrade::run(&node_config()?)?),
        Stage::Load => ready(&load::run(&node_config()?)?),
        Stage::Repair => ready(&repair::run(&node_config()?)?),
        Stage::Safe => safe::run(&node_config()?, ready)?,
        Stage::Reporter => {
            let config = node_config()?;
            let stop = reporter::stop_on_sigterm()?;
            ready("");
            reporter::run(&config, stop)?;
        }
        Stage::Storage | Stage::NodeManager | Stage::SshGate | Stage::Health => {
            return Err(StageFailure::new(FailureClass::Internal, format!("{stage} is a stage of the node OS")));
        }
    }
    Ok(())
}

/// Nothing comes in from the first moment. A node that cannot have that boots all the same: nothing listens yet, and sshd
/// does not open without the filter.
fn close_firewall() {
    if let Err(error) = firewall::close() {
        let failure = StageFailure::new(FailureClass::NetworkSetup, error);
        events::tell(Stage::Network, Some(failure.class), failure.chain());
    }
}

fn ended(console: std::io::Result<std::convert::Infallible>) -> ExitCode {
    let Err(error) = console;
    eprintln!("console: {error}");
    ExitCode::FAILURE
}

fn ready(said: &str) {
    if let Err(error) = report_result(&StageResult::ok(said)) {
        println!("{said} (no PID 1 listens: {error})");
    }
}
