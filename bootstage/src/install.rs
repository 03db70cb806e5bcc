//! Obeying a script of kind `install`.

use orrery_init_api::Stage;
use orrery_installer::{Linux, install};
use orrery_protocol::{NodeConfig, ScriptKind};

use crate::{
    StageFailure, disks,
    download::{Servers, Teller},
    events, identity, trust, verify,
};

/// Installs what the script names; returns a sentence about it.
///
/// # Errors
/// The script is not one to execute, or installing failed; a disk that was touched then boots nothing.
pub fn run(config: &NodeConfig) -> Result<String, StageFailure> {
    disks::wait_for_any();
    let script = verify::open(config)?;
    let release = script.release_for(ScriptKind::Install)?;
    // The memory of scripts outlives the file system that it stands on.
    let mut state = disks::remembered(config);
    state.forget_troubles();
    state.last_seen = state.last_seen.max(script.judged_at());
    let trust = trust::current(config).trust;
    let waivers = script.waivers(config);
    let request = script.request(config, release, &trust, &waivers, state);
    let servers = Servers::new(config, script.mirrors())?;
    let committed = install(&mut Linux, &servers, &Teller::new(Stage::Install), request);
    // A disk that is only partitioned keeps the key already.
    identity::settle_installed(config);
    let committed = committed?;
    if let Err(failure) = disks::keep_roots(config) {
        events::tell(Stage::Install, Some(failure.class), failure.chain());
    }
    Ok(format!("release {} in slot {}", committed.release(), committed.slot().as_str()))
}
