//! Finding devices.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use anyhow::{Result, bail};
use clap::Args;
use ipnet::IpNet;
use orrery_pcu::{
    Secret,
    discover::{self, Found, IpmiProbe, Probe, RedfishProbe, SnmpProbe},
};
use serde_json::json;

use crate::{
    fleet,
    output::{self, Outcome},
};

/// The most addresses in one call.
const MOST: usize = 1 << 16;

#[derive(Args)]
pub(crate) struct Discover {
    /// Addresses, or networks such as 10.0.0.0/24
    #[arg(required = true, value_name = "ADDRESS|NETWORK", value_parser = network)]
    networks: Vec<IpNet>,
    /// Seconds that one address may take for one question
    #[arg(long, default_value_t = 2)]
    patience: u64,
    /// Also ask by SNMP v2c. The community is `PCU_SNMP_COMMUNITY` of the environment, else public; it crosses the network in the clear
    #[arg(long)]
    snmp: bool,
}

/// Asks every address, and prints what answered, at once for people and at the end for programs.
pub(crate) fn run(json: bool, parallel: usize, options: &Discover) -> Result<Outcome> {
    let mut addresses: Vec<IpAddr> = options.networks.iter().flat_map(IpNet::hosts).take(MOST + 1).collect();
    if addresses.len() > MOST {
        bail!("more than {MOST} addresses at once");
    }
    addresses.sort();
    addresses.dedup();
    let (ipmi, redfish) = (IpmiProbe { port: 623 }, RedfishProbe { port: 443 });
    let community = std::env::var("PCU_SNMP_COMMUNITY").unwrap_or_else(|_| "public".into());
    let snmp = SnmpProbe { port: 161, community: Secret::new(community) };
    let mut probes: Vec<&dyn Probe> = vec![&ipmi, &redfish];
    if options.snmp {
        probes.push(&snmp);
    }
    let bar = fleet::bar(addresses.len(), json);
    let done = |found: &[Found]| {
        if !json && !found.is_empty() {
            bar.suspend(|| found.iter().for_each(show));
        }
        bar.inc(1);
    };
    let found = discover::discover(&addresses, &probes, parallel, Duration::from_secs(options.patience.max(1)), done);
    bar.finish_and_clear();
    if json {
        output::document(&json!({ "asked": addresses.len(), "found": found }))?;
        return Ok(Outcome::done());
    }
    let answered: BTreeSet<IpAddr> = found.iter().map(|device| device.address.ip()).collect();
    output::say(&format!("{} of {} addresses answered", answered.len(), addresses.len()));
    Ok(Outcome::done())
}

fn show(device: &Found) {
    println!("{:<24} {:<20} {}", device.address.to_string(), device.driver, device.detail);
}

fn network(text: &str) -> Result<IpNet, String> {
    let wrong = || format!("{text:?} is neither an address nor a network such as 10.0.0.0/24");
    text.parse().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_networks() {
        let check = |text: &str, hosts: usize| assert_eq!(network(text).unwrap().hosts().count(), hosts, "{text}");
        check("10.0.0.7", 1);
        check("10.0.0.0/24", 254);
        check("fd00::1", 1);
        assert!(network("bmc1").is_err());
        assert!(network("10.0.0.0/40").is_err());
    }
}
