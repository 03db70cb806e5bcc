//! The node's connection to its central.

use std::net::IpAddr;

use orrery_init_api::{FailureClass, NETWORK_PATH};
use orrery_protocol::NodeConfig;
use orrery_transport::{Client, Identity, Resolver, get_bytes_unverified};

use crate::{StageFailure, files::read_json, network::NetworkState, trust};

/// A client of the central at `url` with the node's identity and the name servers of its network. It trusts the authorities of
/// the root in force.
///
/// # Errors
/// The key or the CA in the configuration cannot be used.
pub fn client(config: &NodeConfig, url: &str) -> Result<Client, StageFailure> {
    Ok(Client::new(url, &trust::current(config).ca, &identity(config)?, resolver(config))?)
}

/// What `url` answers, from whoever answers there.
pub(crate) fn get_unverified(config: &NodeConfig, url: &str, path: &str, limit: u64) -> Result<Vec<u8>, StageFailure> {
    Ok(get_bytes_unverified(url, path, &identity(config)?, resolver(config), limit)?)
}

fn identity(config: &NodeConfig) -> Result<Identity, StageFailure> {
    Identity::from_pem(&config.key).map_err(|e| StageFailure::new(FailureClass::ConfigInvalid, e))
}

fn resolver(config: &NodeConfig) -> Resolver {
    Resolver::Servers(name_servers(config))
}

/// The configuration's name servers, then those the network offered.
pub fn name_servers(config: &NodeConfig) -> Vec<IpAddr> {
    let mut servers = config.network.dns.clone();
    if let Ok(state) = read_json::<NetworkState>(NETWORK_PATH) {
        servers.extend(state.dns);
    }
    servers.dedup();
    servers
}
