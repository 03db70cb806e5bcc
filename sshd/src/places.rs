//! Places for connections: few for strangers, and a share for every account.
//!
//! Anybody can open connections and say nothing. A newcomer therefore takes the place of a stranger who had time to log in, of the
//! network that holds most of them: whoever comes from elsewhere and knows a key gets in, however many others wait at the door.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, Weak},
};

use tokio::sync::Semaphore;

use crate::{calls::Calls, flow::Backlog, server::Limits};

/// The places of one server.
pub(crate) struct Places {
    limits: Limits,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    next: u64,
    /// By age.
    holders: BTreeMap<u64, Holder>,
    /// What calls of an account take turns in: beyond its connections, as long as one of these calls runs.
    turns: HashMap<String, Weak<Semaphore>>,
}

struct Holder {
    network: IpAddr,
    /// Whom it logged in as.
    account: Option<String>,
    backlog: Arc<Backlog>,
}

/// A connection's place, given back when dropped.
pub(crate) struct Place {
    places: Arc<Places>,
    number: u64,
}

/// No place for one more connection of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Crowded {
    #[error("this account has {0} connections already; end some of them first")]
    Account(usize),
    #[error("all {0} connections of this machine are in use; try again later")]
    All(usize),
    #[error("logging in took too long")]
    Evicted,
}

/// What one customer of a network provider has at least: an address, or 2^64 of them.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

impl Places {
    pub(crate) fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, table: Mutex::default() })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Gives a newcomer from this address a place, which may be that of another stranger, whose connection is ended.
    pub(crate) fn admit(self: &Arc<Self>, source: IpAddr, backlog: Arc<Backlog>) -> Place {
        let mut table = self.table();
        let network = network(source);
        if let Some(number) = table.evicted(network, &self.limits)
            && let Some(holder) = table.holders.remove(&number)
        {
            holder.backlog.sever();
        }
        let number = table.next;
        table.next += 1;
        table.holders.insert(number, Holder { network, account: None, backlog });
        Place { places: self.clone(), number }
    }
}

impl Table {
    /// Which stranger has to go for a newcomer from `network`.
    fn evicted(&self, network: IpAddr, limits: &Limits) -> Option<u64> {
        let strangers = || self.holders.iter().filter(|(_, holder)| holder.account.is_none());
        let oldest = |of: IpAddr| strangers().find(|(_, holder)| holder.network == of).map(|(number, _)| *number);
        let mut crowds: HashMap<IpAddr, usize> = HashMap::new();
        strangers().for_each(|(_, holder)| *crowds.entry(holder.network).or_default() += 1);
        if crowds.get(&network).is_some_and(|crowd| *crowd >= limits.strangers_per_source) {
            return oldest(network);
        }
        if crowds.values().sum::<usize>() < limits.strangers {
            return None;
        }
        let largest = crowds.values().max()?;
        let (number, _) = strangers().find(|(_, holder)| crowds.get(&holder.network) == Some(largest))?;
        Some(*number)
    }
}

impl Place {
    /// Takes one of the account's places, and gives what it shares with the others.
    pub(crate) fn log_in(&self, account: &str) -> Result<Calls, Crowded> {
        let limits = &self.places.limits;
        let mut table = self.places.table();
        let accounts = table.holders.values().filter_map(|holder| holder.account.as_deref());
        let (all, of_account) =
            accounts.fold((0, 0), |(all, own), other| (all + 1, own + usize::from(other == account)));
        if of_account >= limits.connections_per_account {
            return Err(Crowded::Account(of_account));
        }
        if all >= limits.connections {
            return Err(Crowded::All(all));
        }
        table.holders.get_mut(&self.number).ok_or(Crowded::Evicted)?.account = Some(account.to_owned());
        table.turns.retain(|_, turns| turns.strong_count() > 0);
        if let Some(turns) = table.turns.get(account).and_then(Weak::upgrade) {
            return Ok(Calls::sharing(turns));
        }
        let calls = Calls::new(limits.calls_per_account);
        table.turns.insert(account.to_owned(), Arc::downgrade(calls.turns()));
        Ok(calls)
    }

    /// Whether it is an account's.
    pub(crate) fn is_logged_in(&self) -> bool {
        self.places.table().holders.get(&self.number).is_some_and(|holder| holder.account.is_some())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.table().holders.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places() -> Arc<Places> {
        let limits = Limits {
            connections: 3,
            connections_per_account: 2,
            strangers: 4,
            strangers_per_source: 3,
            ..Limits::default()
        };
        Places::new(limits)
    }

    struct Client {
        place: Place,
        backlog: Arc<Backlog>,
    }

    fn come(places: &Arc<Places>, from: &str) -> Client {
        let backlog = Arc::new(Backlog::default());
        Client { place: places.admit(from.parse().unwrap(), backlog.clone()), backlog }
    }

    fn gone(clients: &[Client]) -> Vec<bool> {
        clients.iter().map(|client| client.backlog.is_severed()).collect()
    }

    #[test]
    fn a_crowd_makes_room_for_others() {
        let places = places();
        let mut crowd: Vec<_> = (0..3).map(|_| come(&places, "10.0.0.1")).collect();
        let other = come(&places, "10.0.0.2");
        assert_eq!(gone(&crowd), [false; 3]);
        crowd.push(come(&places, "10.0.0.1"));
        assert_eq!(gone(&crowd), [true, false, false, false], "the oldest of its own network");
        let third = come(&places, "10.0.0.3");
        assert_eq!(gone(&crowd), [true, true, false, false], "the oldest of the largest crowd");
        assert_eq!(gone(&[other, third]), [false; 2]);
    }

    #[test]
    fn addresses_of_one_customer_are_one_source() {
        let places = places();
        let addresses = ["2001:db8::1", "2001:db8::2", "2001:db8::3", "2001:db8::4", "2001:db8:0:1::1"];
        let crowd: Vec<_> = addresses.iter().map(|from| come(&places, from)).collect();
        assert_eq!(gone(&crowd), [true, false, false, false, false]);
    }

    #[test]
    fn an_ipv4_address_is_the_same_source_on_an_ipv6_socket() {
        let places = places();
        let addresses = ["10.0.0.1", "::ffff:10.0.0.1", "::ffff:10.0.0.1", "10.0.0.1", "::ffff:10.0.0.2"];
        let clients: Vec<_> = addresses.iter().map(|from| come(&places, from)).collect();
        assert_eq!(gone(&clients), [true, false, false, false, false]);
    }

    #[test]
    fn an_account_takes_turns_with_itself_only() {
        let places = places();
        let [a, b, c] = ["10.0.0.1", "10.0.0.2", "10.0.0.3"].map(|from| come(&places, from));
        let [one, other] =
            ["one", "other"].map(|account| [&a, &b][usize::from(account == "other")].place.log_in(account));
        let (one, other) = (one.unwrap(), other.unwrap());
        assert!(!Arc::ptr_eq(one.turns(), other.turns()));
        let running = one.turns().clone();
        drop((one, a));
        assert!(Arc::ptr_eq(&running, c.place.log_in("one").unwrap().turns()), "a new connection is no new start");
    }

    #[test]
    fn who_is_in_stays_and_nobody_takes_all() {
        let places = places();
        let [a, b, c, d] = [(); 4].map(|()| come(&places, "10.0.0.1"));
        assert_eq!(a.place.log_in("one").map(drop), Err(Crowded::Evicted));
        assert_eq!(b.place.log_in("one").map(drop), Ok(()));
        assert_eq!(c.place.log_in("one").map(drop), Ok(()));
        assert_eq!(d.place.log_in("one").map(drop), Err(Crowded::Account(2)));
        assert!(b.place.is_logged_in() && !d.place.is_logged_in());
        let flood: Vec<_> = (0..20).map(|_| come(&places, "10.0.0.1")).collect();
        assert_eq!(gone(&[b, c]), [false; 2]);
        assert_eq!(flood.last().unwrap().place.log_in("one").map(drop), Ok(()), "two that left made room");
        assert_eq!(flood[18].place.log_in("two").map(drop), Ok(()));
        assert_eq!(flood[17].place.log_in("three").map(drop), Ok(()));
        assert_eq!(come(&places, "10.0.0.9").place.log_in("four").map(drop), Err(Crowded::All(3)));
    }
}
