//! `orrery-nodeos <stage>`: the stages and services PID 1 starts in the node OS.

use std::{env, process::ExitCode, sync::Arc, thread};

use orrery_bootstage::{
    StageFailure, boot_id, clock, console, firewall, handover, host_key_seed, network, node_config, reporter,
};
use orrery_init_api::{ATTEMPT_ENV, CONSOLE_ARGUMENT, FailureClass, RESULT_FD, Stage, StageResult, report_result};
use orrery_nodeos::{
    central::Central,
    gate, health,
    host::{self, LinuxHost},
    manager::{self, Identity},
    storage,
};
use orrery_protocol::{ImageRef, ReleaseArtifact};
use orrery_sshd::HostKey;
use orrery_sys::descriptor::inherited;

fn main() -> ExitCode {
    // A sliver's helpers are this binary too; nothing may run before that is settled.
    if let Some(code) = host::run_inside(env::args_os()) {
        return code;
    }
    // From here on no child gets the result pipe: what it would write there, PID 1 would believe.
    let _result = inherited(RESULT_FD);
    tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).without_time().with_target(false).init();
    if env::args_os().nth(1).is_some_and(|word| word == CONSOLE_ARGUMENT) {
        let Err(error) = console::run();
        eprintln!("console: {error}");
        return ExitCode::FAILURE;
    }
    let stage = env::args_os().nth(1).and_then(|word| word.to_str()?.parse::<Stage>().ok());
    let outcome = match stage {
        Some(Stage::Storage) => storage(),
        Some(Stage::Network) => network(),
        Some(Stage::Time) => time(),
        Some(Stage::Reporter) => reporter(),
        Some(Stage::NodeManager) => node_manager(),
        Some(Stage::SshGate) => ssh_gate(),
        Some(Stage::Health) => health(),
        _ => {
            eprintln!("usage: orrery-nodeos storage|network|time|reporter|node-manager|ssh-gate|health");
            return ExitCode::from(2);
        }
    };
    match outcome {
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

fn storage() -> Result<(), StageFailure> {
    let said = storage::bring_up().map_err(|e| StageFailure::new(e.class(), e))?;
    ready(said);
    Ok(())
}

fn network() -> Result<(), StageFailure> {
    // The first stage that needs the configuration, and the only one that unpacks it.
    let config = handover::take_up().map_err(|e| StageFailure::new(FailureClass::ConfigMissing, e))?.config;
    // Under the medium's own kernel, the medium's filter is still in force, and would keep users out.
    firewall::lift().map_err(|e| StageFailure::new(FailureClass::NetworkSetup, e))?;
    let state = network::run(&config)?;
    ready(format!("{} {}/{}", state.interface, state.address, state.prefix));
    network::keep_lease(&config, state)
}

fn time() -> Result<(), StageFailure> {
    ready(clock::run(&node_config()?)?);
    Ok(())
}

fn reporter() -> Result<(), StageFailure> {
    let config = node_config()?;
    let stop = reporter::stop_on_sigterm()?;
    ready("");
    reporter::run(&config, stop)
}

fn node_manager() -> Result<(), StageFailure> {
    let handover = handover::read().map_err(|e| StageFailure::new(FailureClass::ConfigMissing, e))?;
    let io = |e: anyhow::Error| StageFailure::new(FailureClass::Io, e);
    let host_key = HostKey::from_seed(&host_key_seed(&handover.config));
    let me = Identity {
        boot_id: boot_id().map_err(internal)?,
        release: handover.release.release.clone(),
        slot: handover.slot.clone(),
        offline: handover.offline.clone(),
        ssh_host_key: host_key.public_line(),
    };
    let central =
        Arc::new(Central::new(&handover.config).map_err(|e| StageFailure::new(FailureClass::ConfigInvalid, e))?);
    let host = Arc::new(LinuxHost::open(central.clone()).map_err(io)?);
    let (ahead, resting, supervising, watching) = (host.clone(), host.clone(), host.clone(), host.clone());
    let serving = || {
        ready("");
        thread::spawn(move || resting.look_after());
        thread::spawn(move || supervising.supervise());
        thread::spawn(move || {
            let Err(e) = watching.watch_memory();
            tracing::error!("nobody watches over the node's memory: {e:#}");
        });
        // Whether central wants a sliver of it or not: it will.
        let images: Vec<ImageRef> = handover.release.images().map(ReleaseArtifact::image).collect();
        thread::spawn(move || {
            images.iter().for_each(|image| ahead.images().unpack_ahead(image));
            ahead.tend_images(&images)
        });
    };
    match manager::run(me, central, host, serving).map_err(internal)? {}
}

fn ssh_gate() -> Result<(), StageFailure> {
    let config = node_config()?;
    let host_key = HostKey::from_seed(&host_key_seed(&config));
    let entrance = Arc::new(host::Door::open(config).map_err(internal)?);
    let failure = match gate::run(host_key, entrance, || ready("port 22")) {
        Ok(never) => match never {},
        Err(e) => e,
    };
    Err(StageFailure::new(FailureClass::NetworkSetup, failure))
}

fn health() -> Result<(), StageFailure> {
    let handover = handover::read().map_err(|e| StageFailure::new(FailureClass::ConfigMissing, e))?;
    let attempt = env::var(ATTEMPT_ENV).ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    ready(health::run(&handover, attempt).map_err(|e| StageFailure::new(e.class(), e))?);
    Ok(())
}

fn ready(text: impl AsRef<str>) {
    if let Err(e) = report_result(&StageResult::ok(text)) {
        tracing::warn!("reporting to PID 1: {e}");
    }
}

fn internal(error: anyhow::Error) -> StageFailure {
    StageFailure::new(FailureClass::Internal, error)
}
