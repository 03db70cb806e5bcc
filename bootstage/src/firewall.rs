//! The medium's packet filter: nothing comes in that was not asked for, and safe mode's sshd is reached from the networks
//! that a signed script or the configuration names, and from nowhere else.
//!
//! The rules are made by pure functions, shown in the language of nft(8), and given to the kernel as one transaction of
//! nf_tables, by a page of our own: a medium without `nft` is half a megabyte smaller, and nothing has to be parsed.

mod netlink;

use std::{fmt, io};

use orrery_init_api::RUN_DIR;
use orrery_protocol::Cidr;
use thiserror::Error;

use crate::files::write_private;

/// The table; nobody else has a rule in it.
const TABLE: &str = "orrery";
/// Where the rules in force can be read, since nothing on the medium lists them.
const SHOWN: &str = "firewall.nft";
/// The ssh port.
const SSH: u16 = 22;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const ICMPV6: u8 = 58;

/// The packet filter could not be loaded. What was in force before still is.
#[derive(Debug, Error)]
pub enum FirewallError {
    /// The kernel refused it.
    #[error("loading the packet filter: does the kernel have nf_tables?")]
    Load(#[source] io::Error),
}

/// Lets nobody in: in force before the first interface is up.
///
/// # Errors
/// The kernel refused it.
pub fn close() -> Result<(), FirewallError> {
    admit(&[])
}

/// Lets `networks` reach the ssh port, and nobody else anything. Connections that stand go on.
///
/// # Errors
/// The kernel refused it.
pub fn admit(networks: &[Cidr]) -> Result<(), FirewallError> {
    let ruleset = Ruleset::new(networks);
    netlink::load(&ruleset).map_err(FirewallError::Load)?;
    // For people only: a filter that is in force and cannot be shown is in force.
    if let Err(error) = write_private(format!("{RUN_DIR}/{SHOWN}"), ruleset.to_string().as_bytes()) {
        eprintln!("{error:#}");
    }
    Ok(())
}

/// Takes the filter away, for a node OS that runs under the medium's own kernel and has rules of its own.
///
/// # Errors
/// The kernel refused it.
pub fn lift() -> Result<(), FirewallError> {
    netlink::remove().map_err(FirewallError::Load)
}

/// What is let in. All else that comes in, or would be forwarded, is dropped; what goes out is not looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ruleset(Vec<Rule>);

/// Packets that fulfil every condition.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    conditions: Vec<Condition>,
    verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Accept,
    Drop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    /// It comes from this machine.
    Loopback,
    /// It belongs to a connection that stands, or answers one.
    Known,
    /// It belongs to no connection and could not begin one.
    Invalid,
    /// It comes from the network.
    From(Cidr),
    /// The protocol, by its number (IANA).
    Protocol(u8),
    /// The ICMP or ICMPv6 type, behind the protocol.
    IcmpType(u8),
    /// The TCP port it goes to, behind the protocol.
    Port(u16),
    /// So many a second have not come yet.
    Rate(u64),
}

impl Ruleset {
    /// DHCP has no rule: the client speaks through a packet socket, which is before the filter.
    fn new(networks: &[Cidr]) -> Self {
        use Condition::{From, IcmpType, Invalid, Known, Loopback, Port, Protocol, Rate};
        let accept = |conditions: &[Condition]| Rule { conditions: conditions.to_vec(), verdict: Verdict::Accept };
        let mut rules = vec![
            accept(&[Loopback]),
            accept(&[Known]),
            // Of ICMP, errors about what the node sent are known to connection tracking.
            accept(&[Protocol(ICMP), IcmpType(8), Rate(10)]),
            accept(&[Protocol(ICMPV6), IcmpType(128), Rate(10)]),
        ];
        // Without these an IPv6 link does not work (RFC 4890, 4.4): who listens, routers and neighbours. They come before
        // the rule about the invalid, since connection tracking does not follow them.
        rules.extend([130, 134, 135, 136].map(|kind| accept(&[Protocol(ICMPV6), IcmpType(kind)])));
        rules.push(Rule { conditions: vec![Invalid], verdict: Verdict::Drop });
        let mut networks = networks.to_vec();
        networks.sort();
        networks.dedup();
        rules.extend(networks.into_iter().map(|network| accept(&[From(network), Protocol(TCP), Port(SSH)])));
        Self(rules)
    }
}

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {TABLE} {{")?;
        writeln!(f, "\tchain input {{\n\t\ttype filter hook input priority filter; policy drop;")?;
        self.0.iter().try_for_each(|rule| writeln!(f, "\t\t{rule}"))?;
        writeln!(f, "\t}}\n\n\tchain forward {{\n\t\ttype filter hook forward priority filter; policy drop;\n\t}}\n}}")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.conditions.iter().try_for_each(|condition| write!(f, "{condition} "))?;
        f.write_str(match self.verdict {
            Verdict::Accept => "accept",
            Verdict::Drop => "drop",
        })
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback => f.write_str("iif lo"),
            Self::Known => f.write_str("ct state established,related"),
            Self::Invalid => f.write_str("ct state invalid"),
            Self::From(network) if network.address().is_ipv4() => write!(f, "ip saddr {network}"),
            Self::From(network) => write!(f, "ip6 saddr {network}"),
            Self::Protocol(number) => write!(f, "meta l4proto {number}"),
            Self::IcmpType(number) => write!(f, "@th,0,8 {number}"),
            Self::Port(port) => write!(f, "th dport {port}"),
            Self::Rate(rate) => write!(f, "limit rate {rate}/second burst {rate} packets"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(texts: &[&str]) -> Vec<Cidr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn rules_in_the_language_of_nft() {
        insta::assert_snapshot!("closed", Ruleset::new(&[]));
        let admitted = networks(&["2001:db8::/32", "192.0.2.0/24", "10.1.2.3/32", "192.0.2.0/24"]);
        insta::assert_snapshot!("open", Ruleset::new(&admitted));
    }

    #[test]
    fn only_the_networks_open_the_port() {
        let rules = |texts: &[&str]| Ruleset::new(&networks(texts)).0;
        let opens = |rule: &Rule| rule.conditions.iter().any(|c| matches!(c, Condition::Port(_)));
        assert!(!rules(&[]).iter().any(opens));
        assert_eq!(rules(&["10.0.0.0/8", "::/0"]).iter().filter(|rule| opens(rule)).count(), 2);
        let unconditional = |rule: &Rule| rule.verdict == Verdict::Accept && rule.conditions.is_empty();
        assert!(!rules(&["0.0.0.0/0"]).iter().any(unconditional));
    }
}
