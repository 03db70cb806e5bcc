//! DHCP (RFC 2131) through smoltcp on a packet socket: the kernel has no address yet to speak from.
//!
//! smoltcp's interface is never given the address it acquires, so that it does not answer for it beside the
//! kernel. A lease is renewed by acquiring it again.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::AsRawFd,
    time::{self, SystemTime},
};

use smoltcp::{
    iface::{Config, Interface as SmolInterface, SocketSet},
    phy::{Medium, RawSocket, wait},
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
pub(super) struct Lease {
    pub(super) address: Ipv4Addr,
    pub(super) prefix: u8,
    pub(super) gateway: Option<Ipv4Addr>,
    pub(super) dns: Vec<Ipv4Addr>,
    pub(super) seconds: u32,
}

/// Asks for an address; `None` if nobody gives one in time.
pub(super) fn acquire(nic: &Interface, within: time::Duration) -> io::Result<Option<Lease>> {
    let mut device = RawSocket::new(&nic.name, Medium::Ethernet)?;
    let descriptor = device.as_raw_fd();
    let mut config = Config::new(HardwareAddress::Ethernet(mac(&nic.mac)?));
    config.random_seed = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_nanos() as u64);
    let mut interface = SmolInterface::new(config, &mut device, Instant::now());

    let mut packet = vec![0; 1500];
    let mut socket = dhcpv4::Socket::new();
    socket.set_receive_packet_buffer(&mut packet);
    let mut retry = socket.get_retry_config();
    retry.discover_timeout = DISCOVER_RETRY;
    retry.initial_request_timeout = REQUEST_RETRY;
    socket.set_retry_config(retry);
    let mut sockets = SocketSet::new(Vec::new());
    let handle = sockets.add(socket);

    let end = time::Instant::now() + within;
    while time::Instant::now() < end {
        let now = Instant::now();
        interface.poll(now, &mut device, &mut sockets);
        if let Some(dhcpv4::Event::Configured(config)) = sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
            let said = config.packet.as_ref().and_then(|p| DhcpRepr::parse(p).ok()?.lease_duration);
            return Ok(Some(Lease {
                address: config.address.address(),
                prefix: config.address.prefix_len(),
                gateway: config.router,
                dns: config.dns_servers.to_vec(),
                seconds: said.unwrap_or(DEFAULT_LEASE_S).min(LONGEST_LEASE_S),
            }));
        }
        let left = Duration::from_millis(end.saturating_duration_since(time::Instant::now()).as_millis() as u64);
        let pause = interface.poll_delay(now, &sockets).map_or(left, |delay| delay.min(left));
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
