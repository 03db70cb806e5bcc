//! Safe mode's sshd: a root shell for the administrators' keys, from the administrators' networks, and for nobody else.

use std::{io, net::TcpListener, sync::Arc, thread, time::Duration};

use orrery_init_api::{FailureClass, REASON_ENV, Stage};
use orrery_protocol::{BootScript, Cidr, NodeConfig};
use orrery_sshd::{
    Accounts, HostKey, KeyError, KeyList, Limits, LocalShell, Login, PublicKey, parse_key, serve_blocking,
};
use thiserror::Error;

use crate::{
    StageFailure,
    central::name_servers,
    events,
    firewall::{self, FirewallError},
    host_key_seed, verify,
};

const PORT: u16 = 22;
/// A session that says and hears nothing for so long is ended: a forgotten terminal must not stay a door.
const IDLE: Duration = Duration::from_secs(15 * 60);
/// The program behind sftp, and behind scp, which speaks its protocol too.
const SFTP_SERVER: &str = "/usr/libexec/sftp-server";
/// How often it is looked whether a newer script names other networks.
const NETWORKS_POLL: Duration = Duration::from_secs(5);

#[derive(Debug, Error)]
enum SafeError {
    #[error("no administrator's key is known: neither the script nor the configuration has one")]
    NoKeys,
    #[error("sshd stays closed, since it would be open to everybody")]
    Firewall(#[source] FirewallError),
    #[error("listening on port {PORT}")]
    Listen(#[source] std::io::Error),
    #[error("the ssh server ended")]
    Serve(#[source] std::io::Error),
}

/// Opens sshd, calls `ready`, and serves for as long as the process lives.
///
/// # Errors
/// Nobody could log in, the packet filter cannot be loaded, or the port cannot be served.
pub fn run(config: &NodeConfig, ready: impl FnOnce(&str)) -> Result<(), StageFailure> {
    let script = verify::admitting_script(config);
    let networks = networks(config, script.as_ref());
    let keys = keys(config, script, |error| {
        events::tell(Stage::Safe, Some(FailureClass::ConfigInvalid), format!("passing over a key: {error}"));
    });
    if keys.is_empty() {
        return Err(StageFailure::new(FailureClass::ConfigInvalid, SafeError::NoKeys));
    }
    firewall::admit(&networks).map_err(|e| StageFailure::new(FailureClass::NetworkSetup, SafeError::Firewall(e)))?;
    let host_key = HostKey::from_seed(&host_key_seed(config));
    let listener = TcpListener::bind(("0.0.0.0", PORT))
        .map_err(|e| StageFailure::new(FailureClass::NetworkSetup, SafeError::Listen(e)))?;
    let reason = std::env::var(REASON_ENV).unwrap_or_default();
    let named = config.clone();
    let shell = LocalShell::new("/root", vec![(REASON_ENV.to_owned(), reason)])
        .sftp(SFTP_SERVER)
        .resolver(move |host| orrery_transport::lookup(host, &name_servers(&named)).map_err(io::Error::other));
    let shell = Arc::new(shell);
    let accounts = Arc::new(Administrators { config: config.clone(), login: shell });
    events::tell(Stage::Safe, None, format!("sshd is open for root; host key {}", host_key.public_line()));
    ready(&format!("sshd on port {PORT} for {} keys, {}", keys.len(), reach(&networks)));
    let watched = config.clone();
    thread::spawn(move || follow_networks(&watched, networks));
    let limits = Limits { idle: Some(IDLE), ..Limits::default() };
    let error = match serve_blocking(listener, host_key, accounts, limits) {
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
        let keys = keys(&self.config, verify::admitting_script(&self.config), |_| ());
        KeyList::new("root", keys, self.login.clone()).authorize(user, key)
    }
}

/// The configuration's keys, and those of the script in force. There may be none where a failure opened safe mode;
/// a script that was refused, replaced or has expired opens no door.
fn keys(config: &NodeConfig, script: Option<BootScript>, mut pass_over: impl FnMut(KeyError)) -> Vec<PublicKey> {
    let of_script = script.into_iter().flat_map(|script| script.ssh_keys);
    let lines = config.admin_keys.iter().cloned().chain(of_script);
    lines.filter_map(|line| parse_key(&line).map_err(&mut pass_over).ok()).collect()
}

/// The networks that count, by the same rule.
fn networks(config: &NodeConfig, script: Option<&BootScript>) -> Vec<Cidr> {
    let of_script = script.into_iter().flat_map(|script| &script.networks);
    config.admin_networks.iter().chain(of_script).copied().collect()
}

fn reach(networks: &[Cidr]) -> String {
    if networks.is_empty() {
        return "reachable from nowhere: neither the script nor `admin_networks` names a network".into();
    }
    let names: Vec<_> = networks.iter().map(Cidr::to_string).collect();
    format!("reachable from {}", names.join(", "))
}

/// Keeps the packet filter to the script in force: a newer one's networks take effect without a restart, and an expired
/// one's end. If the kernel refuses that, the process ends: no door is safer than one that is too wide.
fn follow_networks(config: &NodeConfig, mut open: Vec<Cidr>) {
    loop {
        thread::sleep(NETWORKS_POLL);
        let now = networks(config, verify::admitting_script(config).as_ref());
        if now == open {
            continue;
        }
        if let Err(error) = firewall::admit(&now) {
            let failure = StageFailure::new(FailureClass::NetworkSetup, SafeError::Firewall(error));
            events::tell(Stage::Safe, Some(failure.class), failure.chain());
            std::process::exit(1);
        }
        events::tell(Stage::Safe, None, format!("sshd is {}", reach(&now)));
        open = now;
    }
}

#[cfg(test)]
mod tests {
    use orrery_protocol::{ScriptKind, SigningKey};

    use super::*;
    use crate::configure::{parse_toml, tests::sample};

    #[test]
    fn networks_of_the_configuration_and_the_script_count() {
        let mut config = parse_toml(&sample(&SigningKey::from_scalar(&[9; 32]).unwrap())).unwrap();
        let network = |text: &str| text.parse::<Cidr>().unwrap();
        let script = BootScript {
            version: 1,
            kind: ScriptKind::Safe,
            nodes: vec!["n1".into()],
            serial: 1,
            issued: 0,
            expires: 1,
            release: None,
            ssh_keys: Vec::new(),
            networks: vec![network("192.0.2.0/24")],
            mirrors: Vec::new(),
            waivers: Vec::new(),
        };
        assert!(networks(&config, None).is_empty());
        assert!(reach(&[]).contains("nowhere"));
        config.admin_networks = vec![network("10.0.0.0/8")];
        let both = networks(&config, Some(&script));
        assert_eq!(reach(&both), "reachable from 10.0.0.0/8, 192.0.2.0/24");
        assert_eq!(networks(&config, None), config.admin_networks);
    }
}
