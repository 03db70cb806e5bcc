//! DHCP (RFC 2131) through smoltcp on a packet socket: the kernel has no address yet to speak from.
//!
//! smoltcp's interface is never given the address it acquires, so that it does not answer for it beside the
//! kernel. A lease is renewed by acquiring it again, while slivers run, none of which may speak as a server: it hears nothing of
//! what this machine sends, numbers of transactions cannot be guessed, and slivers have no port of DHCP (`nodeos/sliver/src/ports`).

use std::{io, net::Ipv4Addr, os::fd::AsRawFd, time};

use orrery_sys::packet;
use rustix::rand::{GetRandomFlags, getrandom};
use smoltcp::{
    iface::{Config, Interface as SmolInterface, SocketHandle, SocketSet},
    phy::{Device, Medium, RawSocket, wait},
    socket::dhcpv4,
    time::{Duration, Instant},
    wire::{DhcpRepr, EthernetAddress, HardwareAddress},
};

use super::Interface;

/// The first packet after a link came up is easily lost.
const DISCOVER_RETRY: Duration = Duration::from_secs(3);
const REQUEST_RETRY: Duration = Duration::from_secs(2);
/// Where a server does not say; RFC 2131 asks it to.
const DEFAULT_LEASE_S: u32 = 3600;
/// A longer lease is looked after at least this often, so that a changed network is noticed.
const LONGEST_LEASE_S: u32 = 24 * 3600;

/// An address on loan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The address.
    pub address: Ipv4Addr,
    /// Bits of the network's part of it.
    pub prefix: u8,
    /// Who forwards everything else.
    pub gateway: Option<Ipv4Addr>,
    /// Name servers.
    pub dns: Vec<Ipv4Addr>,
    /// How long it lasts, at most a day.
    pub seconds: u32,
}

/// A client that asks for one address. It knows no clock and no wire: the caller brings both to every step.
pub struct Client<'a> {
    interface: SmolInterface,
    sockets: SocketSet<'a>,
    handle: SocketHandle,
}

impl<'a> Client<'a> {
    /// A client behind `device`, whose address is `mac`. Transaction numbers follow from `seed`; `packet` holds what the server
    /// said last.
    pub fn new(mac: EthernetAddress, seed: u64, device: &mut impl Device, packet: &'a mut [u8], now: Instant) -> Self {
        let mut config = Config::new(HardwareAddress::Ethernet(mac));
        config.random_seed = seed;
        let interface = SmolInterface::new(config, device, now);
        let mut socket = dhcpv4::Socket::new();
        socket.set_receive_packet_buffer(packet);
        let mut retry = socket.get_retry_config();
        retry.discover_timeout = DISCOVER_RETRY;
        retry.initial_request_timeout = REQUEST_RETRY;
        socket.set_retry_config(retry);
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        Self { interface, sockets, handle }
    }

    /// Takes what arrived, sends what is due, and yields the address once there is one.
    pub fn step(&mut self, now: Instant, device: &mut impl Device) -> Option<Lease> {
        self.interface.poll(now, device, &mut self.sockets);
        let event = self.sockets.get_mut::<dhcpv4::Socket<'_>>(self.handle).poll()?;
        let dhcpv4::Event::Configured(config) = event else { return None };
        let said = config.packet.as_ref().and_then(|p| DhcpRepr::parse(p).ok()?.lease_duration);
        Some(Lease {
            address: config.address.address(),
            prefix: config.address.prefix_len(),
            gateway: config.router,
            dns: config.dns_servers.to_vec(),
            seconds: said.unwrap_or(DEFAULT_LEASE_S).min(LONGEST_LEASE_S),
        })
    }

    /// How long nothing is due, unless something arrives.
    fn pause(&mut self, now: Instant) -> Option<Duration> {
        self.interface.poll_delay(now, &self.sockets)
    }
}

/// Asks for an address; `None` if nobody gives one in time.
pub(super) fn acquire(nic: &Interface, within: time::Duration) -> io::Result<Option<Lease>> {
    let mut device = RawSocket::new(&nic.name, Medium::Ethernet)?;
    // What was heard before answers no request of this client, which has made none.
    packet::ignore_outgoing(&device)?;
    let descriptor = device.as_raw_fd();
    let mut seed = [0; 8];
    rustix::io::retry_on_intr(|| getrandom(&mut seed, GetRandomFlags::empty()))?;
    let mut packet = vec![0; 1500];
    let mut client = Client::new(mac(&nic.mac)?, u64::from_ne_bytes(seed), &mut device, &mut packet, Instant::now());

    let end = time::Instant::now() + within;
    while time::Instant::now() < end {
        let now = Instant::now();
        if let Some(lease) = client.step(now, &mut device) {
            return Ok(Some(lease));
        }
        let left = Duration::from_millis(end.saturating_duration_since(time::Instant::now()).as_millis() as u64);
        let pause = client.pause(now).map_or(left, |delay| delay.min(left));
        wait(descriptor, Some(pause))?;
    }
    Ok(None)
}

fn mac(text: &str) -> io::Result<EthernetAddress> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        *byte = parts
            .next()
            .and_then(|part| u8::from_str_radix(part, 16).ok())
            .ok_or_else(|| io::Error::other(format!("{text:?} is no MAC address")))?;
    }
    Ok(EthernetAddress(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses() {
        assert_eq!(mac("52:54:00:12:34:56").unwrap(), EthernetAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]));
        assert!(mac("52:54:00:12:34").is_err());
        assert!(mac("").is_err());
    }
}
