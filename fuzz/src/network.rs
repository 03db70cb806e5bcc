//! What arrives from a network: answers of central or of somebody in its place, name servers, DHCP servers.

use orrery_protocol::{Enrolled, Refusal, WantedState};
use smoltcp::wire::{DhcpPacket, DhcpRepr, EthernetFrame, Ipv4Packet, UdpPacket};

/// Bodies of central's answers, as the client parses them.
pub(crate) fn answers(bytes: &[u8]) {
    let _ = serde_json::from_slice::<Refusal>(bytes);
    let _ = serde_json::from_slice::<WantedState>(bytes);
    let _ = serde_json::from_slice::<Enrolled>(bytes);
}

/// A name server's packet.
pub(crate) fn dns(bytes: &[u8]) {
    orrery_transport::fuzzing::dns_answer(bytes);
}

/// A DHCP server's frame, on the way it takes through the client's stack.
pub(crate) fn dhcp(bytes: &[u8]) {
    let parse = |payload: &[u8]| {
        let packet = DhcpPacket::new_checked(payload).ok()?;
        DhcpRepr::parse(&packet).ok()?.lease_duration
    };
    let _ = parse(bytes);
    let _ = EthernetFrame::new_checked(bytes).ok().and_then(|frame| {
        let ip = Ipv4Packet::new_checked(frame.payload()).ok()?;
        let udp = UdpPacket::new_checked(ip.payload()).ok()?;
        parse(udp.payload())
    });
}
