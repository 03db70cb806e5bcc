//! The node's connection to its central.

use std::net::IpAddr;

use orrery_init_api::{FailureClass, NETWORK_PATH};
use orrery_protocol::NodeConfig;
use orrery_transport::{Client, Identity, Resolver};

use crate::{StageFailure, files::read_json, network::NetworkState};

/// A client of the central at `url` with the node's identity and the name servers of its network.
///
/// # Errors
/// The key or the CA in the configuration cannot be used.
pub fn client(config: &NodeConfig, url: &str) -> Result<Client, StageFailure> {
    let identity = Identity::from_pem(&config.key).map_err(|e| StageFailure::new(FailureClass::ConfigInvalid, e))?;
    Ok(Client::new(url, &config.central.ca, &identity, Resolver::Servers(name_servers(config)))?)
}

/// The configuration's name servers, then those the network offered.
pub(crate) fn name_servers(config: &NodeConfig) -> Vec<IpAddr> {
    let mut servers = config.network.dns.clone();
    if let Ok(state) = read_json::<NetworkState>(NETWORK_PATH) {
        servers.extend(state.dns);
    }
    servers.dedup();
    servers
}
