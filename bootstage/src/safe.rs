//! Safe mode's sshd: a root shell for the administrators' keys and nobody else.

use std::{net::TcpListener, path::Path, sync::Arc};

use orrery_init_api::{FailureClass, REASON_ENV, RUN_DIR, Stage};
use orrery_protocol::{BootScript, NodeConfig};
use orrery_sshd::{
    Accounts, HostKey, KeyError, KeyList, Limits, LocalShell, Login, PublicKey, parse_key, serve_blocking,
};
use thiserror::Error;

use crate::{StageFailure, events, verify};

const PORT: u16 = 22;

#[derive(Debug, Error)]
enum SafeError {
    #[error("no administrator's key is known: neither the script nor the configuration has one")]
    NoKeys,
    #[error("listening on port {PORT}")]
    Listen(#[source] std::io::Error),
    #[error("the ssh server ended")]
    Serve(#[source] std::io::Error),
}

/// Opens sshd, calls `ready`, and serves for as long as the process lives.
///
/// # Errors
/// Nobody could log in, or the port cannot be served.
pub fn run(config: &NodeConfig, ready: impl FnOnce(&str)) -> Result<(), StageFailure> {
    let keys = keys(config, verify::safe_script(config), |error| {
        events::tell(Stage::Safe, Some(FailureClass::ConfigInvalid), format!("passing over a key: {error}"));
    });
    if keys.is_empty() {
        return Err(StageFailure::new(FailureClass::ConfigInvalid, SafeError::NoKeys));
    }
    let host_key = HostKey::load_or_create(&Path::new(RUN_DIR).join("ssh_host_ed25519"))
        .map_err(|e| StageFailure::new(FailureClass::Io, e))?;
    let listener = TcpListener::bind(("0.0.0.0", PORT))
        .map_err(|e| StageFailure::new(FailureClass::NetworkSetup, SafeError::Listen(e)))?;
    let reason = std::env::var(REASON_ENV).unwrap_or_default();
    let shell = LocalShell::new("/root", vec![(REASON_ENV.to_owned(), reason)]);
    let accounts = Arc::new(Administrators { config: config.clone(), login: shell });
    events::tell(Stage::Safe, None, format!("sshd is open for root; host key {}", host_key.public_line()));
    ready(&format!("sshd on port {PORT} for {} keys", keys.len()));
    let error = match serve_blocking(listener, host_key, accounts, Limits::default()) {
        Ok(never) => match never {},
        Err(error) => error,
    };
    Err(StageFailure::new(FailureClass::Io, SafeError::Serve(error)))
}

/// Root, with the keys that count at the moment of each login: a newer script's take effect without a restart.
struct Administrators {
    config: NodeConfig,
    login: Arc<dyn Login>,
}

impl Accounts for Administrators {
    fn authorize(&self, user: &str, key: &PublicKey) -> Option<Arc<dyn Login>> {
        let keys = keys(&self.config, verify::safe_script(&self.config), |_| ());
        KeyList::new("root", keys, self.login.clone()).authorize(user, key)
    }
}

/// The configuration's keys, and those of the safe-mode script in force. There is none where a failure opened safe mode;
/// a script that was refused, replaced or has expired opens no door.
fn keys(config: &NodeConfig, script: Option<BootScript>, mut pass_over: impl FnMut(KeyError)) -> Vec<PublicKey> {
    let of_script = script.into_iter().flat_map(|script| script.ssh_keys);
    let lines = config.admin_keys.iter().cloned().chain(of_script);
    lines.filter_map(|line| parse_key(&line).map_err(&mut pass_over).ok()).collect()
}
