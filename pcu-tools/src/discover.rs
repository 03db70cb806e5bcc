//! Finding devices that can switch power, by asking every address of a list. Nobody logs in anywhere.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use serde::Serialize;

pub use crate::drivers::{IpmiProbe, RedfishProbe, SnmpProbe};
use crate::{Deadline, fleet};

/// The most addresses that are asked at once: more would look like an attack, and lose answers in small switches.
const AT_ONCE: usize = 256;

/// One question to one address.
pub trait Probe: Sync {
    /// What answers there, if it is of this kind. It has to be quiet about everything else.
    fn probe(&self, address: IpAddr, deadline: Deadline) -> Option<Found>;
}

/// A device that answered.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Found {
    /// Where.
    pub address: SocketAddr,
    /// The driver for it.
    pub driver: String,
    /// What it says of itself, for people.
    pub detail: String,
}

/// Asks all `addresses` with all `probes`, `at_once` addresses at a time, none longer than `patience` a probe; gives those that
/// answered, by address. `done` is told of each address as it is done, with what answered there.
#[must_use]
pub fn discover(
    addresses: &[IpAddr],
    probes: &[&dyn Probe],
    at_once: usize,
    patience: Duration,
    done: impl Fn(&[Found]) + Sync,
) -> Vec<Found> {
    let ask = |address: &IpAddr| {
        let answers = probes.iter().filter_map(|probe| probe.probe(*address, Deadline::after(patience)));
        answers.collect::<Vec<_>>()
    };
    let mut found = fleet::each(addresses, at_once.min(AT_ONCE), ask, |_, found| done(found)).concat();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Finds every even address.
    struct Even;

    impl Probe for Even {
        fn probe(&self, address: IpAddr, _: Deadline) -> Option<Found> {
            let IpAddr::V4(four) = address else { return None };
            let even = four.octets()[3] % 2 == 0;
            even.then(|| Found { address: (address, 1).into(), driver: "even".into(), detail: String::new() })
        }
    }

    #[test]
    fn every_address_is_asked_once() {
        let addresses: Vec<IpAddr> = (0..100).map(|last| [10, 0, 0, last].into()).collect();
        for at_once in [0, 1, 7, 1000] {
            let told = AtomicUsize::new(0);
            let found = discover(&addresses, &[&Even, &Even], at_once, Duration::from_secs(1), |_| {
                told.fetch_add(1, Ordering::SeqCst);
            });
            assert_eq!(told.into_inner(), 100);
            let expected: Vec<u8> = (0..50).flat_map(|half| [half * 2; 2]).collect();
            let lasts = found.iter().map(|found| match found.address {
                SocketAddr::V4(address) => address.ip().octets()[3],
                SocketAddr::V6(_) => unreachable!(),
            });
            assert_eq!(lasts.collect::<Vec<_>>(), expected);
        }
        assert_eq!(discover(&[], &[&Even], 10, Duration::from_secs(1), |_| ()), []);
    }
}
