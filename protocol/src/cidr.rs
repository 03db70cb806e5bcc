//! Networks in prefix notation (RFC 4632 for IPv4, RFC 4291 for IPv6).

use alloc::string::String;
use core::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A network, as `192.0.2.0/24`. Holding one proves that no bit of the address is set behind the prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

/// Not a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CidrError;

impl fmt::Display for CidrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a network is written like 192.0.2.0/24 or 2001:db8::/32, without bits behind the prefix")
    }
}

impl core::error::Error for CidrError {}

impl Cidr {
    /// The network's first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Bits that all of its addresses share.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether `address` is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let shared = |a: u128, b: u128, bits: u32| {
            let behind = bits.saturating_sub(u32::from(self.prefix));
            a.checked_shr(behind).unwrap_or(0) == b.checked_shr(behind).unwrap_or(0)
        };
        match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => shared(u32::from(a).into(), u32::from(b).into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => shared(a.into(), b.into(), 128),
            _ => false,
        }
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(s: &str) -> Result<Self, CidrError> {
        let (address, prefix) = s.split_once('/').ok_or(CidrError)?;
        // One spelling for each: `+8` and `08` parse as numbers.
        if prefix.is_empty()
            || !prefix.bytes().all(|b| b.is_ascii_digit())
            || (prefix.len() > 1 && prefix.starts_with('0'))
        {
            return Err(CidrError);
        }
        let address: IpAddr = address.parse().map_err(|_| CidrError)?;
        let prefix: u8 = prefix.parse().map_err(|_| CidrError)?;
        let (bits, length) = match address {
            IpAddr::V4(a) => (u128::from(u32::from(a)) << 96, 32),
            IpAddr::V6(a) => (a.into(), 128),
        };
        if prefix > length || bits.checked_shl(prefix.into()).unwrap_or(0) != 0 {
            return Err(CidrError);
        }
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use proptest::prelude::*;

    use super::*;

    fn check(text: &str, inside: &[&str], outside: &[&str]) {
        let network: Cidr = text.parse().unwrap();
        assert_eq!(network.to_string(), text);
        for address in inside {
            assert!(network.contains(address.parse().unwrap()), "{address} in {text}");
        }
        for address in outside {
            assert!(!network.contains(address.parse().unwrap()), "{address} not in {text}");
        }
    }

    #[test]
    fn networks_and_their_addresses() {
        check("192.0.2.0/24", &["192.0.2.0", "192.0.2.255"], &["192.0.3.0", "::ffff:192.0.2.1"]);
        check("192.0.2.7/32", &["192.0.2.7"], &["192.0.2.8"]);
        check("0.0.0.0/0", &["255.255.255.255"], &["::"]);
        check("2001:db8::/32", &["2001:db8:ffff::1"], &["2001:db9::", "192.0.2.1"]);
        check("::/0", &["ffff::"], &["0.0.0.0"]);
        for bad in
            ["", "/", "192.0.2.0", "192.0.2.1/24", "192.0.2.0/33", "::1/127", "::/129", "192.0.2.0/+24", "10.0.0.0/08"]
        {
            assert_eq!(bad.parse::<Cidr>(), Err(CidrError), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_round_trips(text in "[0-9a-f:./+ ]{0,24}") {
            if let Ok(network) = text.parse::<Cidr>() {
                prop_assert_eq!(network.to_string().parse::<Cidr>(), Ok(network));
            }
        }
    }
}
