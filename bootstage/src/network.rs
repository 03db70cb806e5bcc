//! Bringing the network up: an interface with a link, an address, a route, name servers.

pub mod dhcp;
mod interface;
mod netlink;

use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use orrery_init_api::{FailureClass, NETWORK_PATH, Stage};
use orrery_protocol::{Addressing, NodeConfig, StaticAddress};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use interface::{Interface, interfaces};

use crate::{
    StageFailure, events,
    files::{read_json, write_json, write_private},
};

/// A switch with spanning tree forwards after 30 s, but its link is up at once; a card needs some seconds.
const LINK_DEADLINE: Duration = Duration::from_secs(15);
const LINK_POLL: Duration = Duration::from_millis(20);
/// Answers of one interface's DHCP servers.
const DHCP_DEADLINE: Duration = Duration::from_secs(20);
/// A lease that cannot be renewed is asked for again after this long.
const RENEW_RETRY: Duration = Duration::from_secs(30);

/// What was set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkState {
    /// The interface's name.
    pub interface: String,
    /// Its MAC address.
    pub mac: String,
    /// The node's address.
    pub address: Ipv4Addr,
    /// Bits of its network prefix.
    pub prefix: u8,
    /// The default gateway.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers that the network offered.
    pub dns: Vec<IpAddr>,
    /// For how long the address is lent, in seconds; none if it is static.
    pub lease_s: Option<u32>,
}

#[derive(Debug, Error)]
enum NetworkError {
    #[error("no network interface; is its driver in the kernel?")]
    NoInterface,
    #[error("no interface is {wanted}; there are {seen}")]
    NotThere { wanted: String, seen: String },
    #[error("no interface has a link ({seen}); check the cable and the switch port")]
    NoLink { seen: String },
    #[error("no DHCP answer on {interfaces} within {} s; check the DHCP server, or configure a static address", .seconds)]
    NoDhcp { interfaces: String, seconds: u64 },
    #[error("asking for an address on {interface}")]
    Dhcp { interface: String, source: std::io::Error },
    #[error("configuring {interface}")]
    Setup { interface: String, source: std::io::Error },
    #[error("writing the network's state")]
    State(#[source] anyhow::Error),
}

impl NetworkError {
    fn class(&self) -> FailureClass {
        match self {
            Self::NoInterface | Self::NotThere { .. } | Self::NoLink { .. } => FailureClass::NoLink,
            Self::NoDhcp { .. } => FailureClass::NoDhcp,
            Self::Dhcp { .. } | Self::Setup { .. } | Self::State(_) => FailureClass::NetworkSetup,
        }
    }
}

impl From<NetworkError> for StageFailure {
    fn from(error: NetworkError) -> Self {
        Self::new(error.class(), error)
    }
}

/// Brings the network up; returns what was set up.
///
/// # Errors
/// No interface, no link, no address, or the kernel refused it.
pub fn run(config: &NodeConfig) -> Result<NetworkState, StageFailure> {
    netlink::up(netlink::LOOPBACK_INDEX).map_err(|source| NetworkError::Setup { interface: "lo".into(), source })?;
    let candidates = candidates(config)?;
    for nic in &candidates {
        netlink::up(nic.index).map_err(|source| NetworkError::Setup { interface: nic.name.clone(), source })?;
    }
    let linked = wait_for_link(&candidates)?;
    let state = match &config.network.addressing {
        Addressing::Static(address) => fixed(&linked[0], address),
        Addressing::Dhcp => lease(&linked)?,
    };
    apply(&state, config)?;
    Ok(state)
}

/// Keeps a lease for as long as the process lives.
///
/// # Errors
/// The kernel refused a new address. A server that is away is none: the old address is kept as the least evil.
pub fn keep_lease(config: &NodeConfig, mut state: NetworkState) -> Result<(), StageFailure> {
    while let Some(lease_s) = state.lease_s {
        // RFC 2131, 4.4.5: renewing is due after half of the lease.
        std::thread::sleep(Duration::from_secs(u64::from(lease_s.max(60)) / 2));
        let linked: Vec<_> = interfaces().into_iter().filter(|nic| nic.name == state.interface).collect();
        match lease(&linked) {
            Ok(next) => {
                if next.address != state.address {
                    netlink::remove_address(linked[0].index, state.address, state.prefix)
                        .map_err(|source| NetworkError::Setup { interface: state.interface.clone(), source })?;
                    events::tell(Stage::Network, None, format!("the address is now {}", next.address));
                }
                apply(&next, config)?;
                state = next;
            }
            Err(error) => {
                events::tell(Stage::Network, Some(error.class()), format!("renewing the lease: {error}"));
                std::thread::sleep(RENEW_RETRY);
            }
        }
    }
    Ok(())
}

/// What the network stage set up.
///
/// # Errors
/// It has not run.
pub fn state() -> Result<NetworkState, StageFailure> {
    read_json(NETWORK_PATH).map_err(|e| StageFailure::new(FailureClass::Internal, e))
}

fn candidates(config: &NodeConfig) -> Result<Vec<Interface>, NetworkError> {
    let all = interfaces();
    if all.is_empty() {
        return Err(NetworkError::NoInterface);
    }
    let Some(wanted) = &config.network.interface else { return Ok(all) };
    let seen = describe(&all);
    let chosen: Vec<_> =
        all.into_iter().filter(|nic| nic.name == *wanted || nic.mac.eq_ignore_ascii_case(wanted)).collect();
    if chosen.is_empty() { Err(NetworkError::NotThere { wanted: wanted.clone(), seen }) } else { Ok(chosen) }
}

fn wait_for_link(candidates: &[Interface]) -> Result<Vec<Interface>, NetworkError> {
    let end = Instant::now() + LINK_DEADLINE;
    loop {
        let linked: Vec<_> = candidates.iter().filter(|nic| nic.carrier()).cloned().collect();
        if !linked.is_empty() {
            return Ok(linked);
        }
        if Instant::now() >= end {
            return Err(NetworkError::NoLink { seen: describe(candidates) });
        }
        std::thread::sleep(LINK_POLL);
    }
}

fn describe(nics: &[Interface]) -> String {
    let words: Vec<_> = nics
        .iter()
        .map(|nic| format!("{} {} {}", nic.name, nic.mac, if nic.carrier() { "with link" } else { "without link" }))
        .collect();
    words.join(", ")
}

fn fixed(nic: &Interface, address: &StaticAddress) -> NetworkState {
    NetworkState {
        interface: nic.name.clone(),
        mac: nic.mac.clone(),
        address: address.address,
        prefix: address.prefix,
        gateway: address.gateway,
        dns: Vec::new(),
        lease_s: None,
    }
}

fn lease(linked: &[Interface]) -> Result<NetworkState, NetworkError> {
    for nic in linked {
        let answer = dhcp::acquire(nic, DHCP_DEADLINE)
            .map_err(|source| NetworkError::Dhcp { interface: nic.name.clone(), source })?;
        if let Some(lease) = answer {
            return Ok(NetworkState {
                interface: nic.name.clone(),
                mac: nic.mac.clone(),
                address: lease.address,
                prefix: lease.prefix,
                gateway: lease.gateway,
                dns: lease.dns.into_iter().map(IpAddr::V4).collect(),
                lease_s: Some(lease.seconds),
            });
        }
    }
    let interfaces = linked.iter().map(|nic| nic.name.as_str()).collect::<Vec<_>>().join(", ");
    Err(NetworkError::NoDhcp { interfaces, seconds: DHCP_DEADLINE.as_secs() })
}

fn apply(state: &NetworkState, config: &NodeConfig) -> Result<(), NetworkError> {
    let setup = |source| NetworkError::Setup { interface: state.interface.clone(), source };
    let index = interfaces().into_iter().find(|nic| nic.name == state.interface).map_or(0, |nic| nic.index);
    netlink::add_address(index, state.address, state.prefix).map_err(setup)?;
    if let Some(gateway) = state.gateway {
        netlink::set_default_route(index, gateway).map_err(setup)?;
    }
    let servers: String =
        config.network.dns.iter().chain(&state.dns).map(|server| format!("nameserver {server}\n")).collect();
    write_private("/etc/resolv.conf", servers.as_bytes()).map_err(NetworkError::State)?;
    write_json(NETWORK_PATH, state).map_err(NetworkError::State)
}
