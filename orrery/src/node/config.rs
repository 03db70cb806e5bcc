//! What a node's configuration says, from the command line.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use orrery_protocol::{
    Addressing, Central, Cidr, DiskRule, Install, Network, NodeConfig, RecoveryKey, StaticAddress, Waiver,
};

use crate::{
    context::Operator,
    files,
    keys::{self, random},
    units::Bytes,
};

/// Options of everything that writes a configuration.
#[derive(clap::Args)]
pub(crate) struct ConfigOptions {
    /// Base URLs of boot servers as the node reaches them; without any, the operator's.
    #[arg(long = "url", value_name = "URL")]
    urls: Vec<String>,
    /// Public release keys that the node obeys.
    #[arg(long = "release-key", value_name = "FILE.pub", required = true)]
    release_keys: Vec<PathBuf>,
    /// How many of them must sign.
    #[arg(long, value_name = "N", default_value_t = 1)]
    release_threshold: u8,
    /// How the node gets its address.
    #[arg(long, value_enum, default_value_t = NetworkKind::Dhcp)]
    network: NetworkKind,
    /// The static address with its prefix, as 192.0.2.7/24.
    #[arg(long, value_name = "ADDR/PREFIX", required_if_eq("network", "static"))]
    address: Option<String>,
    /// The default gateway of a static address.
    #[arg(long, value_name = "ADDR", requires = "address")]
    gateway: Option<Ipv4Addr>,
    /// The interface by kernel name or MAC address; without it, the first with a link.
    #[arg(long)]
    interface: Option<String>,
    /// Name servers.
    #[arg(long, value_name = "ADDR")]
    dns: Vec<IpAddr>,
    /// Time servers.
    #[arg(long, value_name = "HOST[:PORT]")]
    ntp: Vec<String>,
    /// Install on the disk with this serial number.
    #[arg(long, value_name = "SERIAL")]
    disk_serial: Option<String>,
    /// Install on the disk with this World Wide Identifier.
    #[arg(long, value_name = "WWID")]
    disk_wwid: Option<String>,
    /// Install on the disk whose model contains this.
    #[arg(long, value_name = "TEXT")]
    disk_model: Option<String>,
    /// Install on a disk of at least this size, as 8G.
    #[arg(long, value_name = "SIZE")]
    disk_min: Option<Bytes>,
    /// Install on a disk of at most this size.
    #[arg(long, value_name = "SIZE")]
    disk_max: Option<Bytes>,
    /// Allow overwriting somebody else's data on the disk.
    #[arg(long)]
    wipe: bool,
    /// OpenSSH public keys that safe mode admits.
    #[arg(long = "admin-key", value_name = "FILE.pub", requires = "admin_networks")]
    admin_keys: Vec<PathBuf>,
    /// Networks that its sshd can be reached from, as 192.0.2.0/24. From anywhere is 0.0.0.0/0,::/0.
    #[arg(long = "admin-network", value_name = "CIDR", value_delimiter = ',')]
    admin_networks: Vec<Cidr>,
    /// What the node need not fulfil: minimum-hardware or kexec.
    #[arg(long = "waive", value_name = "DEMAND", value_delimiter = ',')]
    waivers: Vec<Waiver>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum NetworkKind {
    Dhcp,
    Static,
}

impl ConfigOptions {
    /// A configuration without an identity, and the key to its console.
    pub(crate) fn config(&self, operator: &Operator) -> Result<(NodeConfig, RecoveryKey)> {
        let addressing = match (self.network, &self.address) {
            (NetworkKind::Static, Some(address)) => Addressing::Static(self.static_address(address)?),
            (NetworkKind::Static, None) => bail!("a static network needs --address"),
            (NetworkKind::Dhcp, None) => Addressing::Dhcp,
            (NetworkKind::Dhcp, Some(_)) => bail!("--address goes with --network static"),
        };
        let urls = if self.urls.is_empty() { vec![operator.url.clone()] } else { self.urls.clone() };
        let recovery = RecoveryKey::from_random(&random()?);
        let config = NodeConfig {
            id: String::new(),
            name: String::new(),
            key: String::new(),
            enrol_token: None,
            groups: Vec::new(),
            central: Central {
                urls,
                ca: operator.ca.clone(),
                release_keys: keys::read_public(&self.release_keys)?,
                release_threshold: self.release_threshold,
            },
            network: Network {
                interface: self.interface.clone(),
                addressing,
                dns: self.dns.clone(),
                ntp: self.ntp.clone(),
            },
            install: Install {
                disk: DiskRule {
                    serial: self.disk_serial.clone(),
                    wwid: self.disk_wwid.clone(),
                    model: self.disk_model.clone(),
                    min_bytes: self.disk_min.map(|b| b.0),
                    max_bytes: self.disk_max.map(|b| b.0),
                },
                wipe: self.wipe,
            },
            admin_keys: files::ssh_keys(&self.admin_keys)?,
            admin_networks: self.admin_networks.clone(),
            recovery: Some(recovery.digest()),
            waivers: self.waivers.clone(),
        };
        Ok((config, recovery))
    }

    fn static_address(&self, text: &str) -> Result<StaticAddress> {
        let parsed = text.split_once('/').and_then(|(a, p)| Some((a.parse().ok()?, p.parse().ok()?)));
        let (address, prefix) = parsed.with_context(|| format!("`{text}` is not an address like 192.0.2.7/24"))?;
        Ok(StaticAddress { address, prefix, gateway: self.gateway })
    }
}
