//! What arrives from a network: answers of central or of somebody in its place, name servers, DHCP servers.

use std::{collections::VecDeque, io::Read};

use orrery_bootstage::network::dhcp;
use orrery_protocol::{ArtifactRef, Digest, Enrolled, LayerTask, Refusal, SliverSpec, WantedState};
use orrery_transport::TransportError;
use smoltcp::{
    phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken},
    time::Instant,
    wire::EthernetAddress,
};

/// Bodies of central's answers, as the client parses them.
pub(crate) fn answers(bytes: &[u8]) -> bool {
    let refusal = serde_json::from_slice::<Refusal>(bytes).is_ok();
    let enrolled = serde_json::from_slice::<Enrolled>(bytes).is_ok();
    let Ok(wanted) = serde_json::from_slice::<WantedState>(bytes) else { return refusal || enrolled };
    let again = serde_json::to_vec(&wanted).expect("what was parsed can be written");
    assert_eq!(serde_json::from_slice::<WantedState>(&again).expect("what was written can be parsed"), wanted);
    let runs = |SliverSpec { rspec, startup, .. }: &SliverSpec| {
        let _ = rspec.inodes();
        rspec.check().is_ok() && startup.check().is_ok()
    };
    wanted.slivers.iter().all(runs)
}

/// The name of a subsystem that a slice's users ask the ssh gate for.
pub(crate) fn layer_task(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(task) = text.parse::<LayerTask>() else { return false };
    assert_eq!(task.to_string().parse(), Ok(task));
    true
}

/// A whole answer, from its status on, to each kind of request: none yields more than was asked for.
pub(crate) fn http_answer(bytes: &[u8]) -> bool {
    const LIMIT: u64 = 4096;
    let client = orrery_transport::fuzzing::client(bytes);
    let got = client.get_bytes("/v1/x", LIMIT);
    if let Ok(body) = &got {
        assert!(body.len() as u64 <= LIMIT);
    }
    if let Ok(answer) = client.post_for_answer("/v1/x", &(), LIMIT) {
        assert!(answer.bytes.len() as u64 <= LIMIT);
    }
    let _ = client.get::<WantedState>("/v1/x");
    let artifact = ArtifactRef { sha256: Digest([0; 32]), size: 100 };
    for range in [0..100, 2..10] {
        let asked = range.end - range.start;
        if let Ok(mut part) = client.artifact_part(&artifact, range) {
            let mut body = Vec::new();
            let read = part.read_to_end(&mut body);
            // One byte more shows that a body goes on.
            assert!(body.len() as u64 <= asked + 1);
            if let Err(error) = read {
                let _ = part.explain(error).to_string();
            }
        }
    }
    match got {
        Ok(_) => true,
        Err(TransportError::Refused { class, .. }) => !class.is_empty(),
        Err(_) => false,
    }
}

/// A name server's packet.
pub(crate) fn dns(bytes: &[u8]) -> bool {
    orrery_transport::fuzzing::dns_answer(bytes)
}

/// The client's address in the seeds.
const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
/// Bytes of the headers of Ethernet, IPv4 and UDP.
const HEADERS: usize = 14 + 20 + 8;
/// Marks a length as that of a whole frame.
const RAW: u16 = 1 << 15;

/// What DHCP servers send, one after the other, to a client that asks: each with its length before it, as a payload that is
/// put into a frame and gets the client's transaction number, or as a whole frame.
pub(crate) fn dhcp(mut bytes: &[u8]) -> bool {
    let (mut wire, mut packet) = (Wire::default(), [0; 1500]);
    let mut client = dhcp::Client::new(EthernetAddress(MAC), 1, &mut wire, &mut packet, Instant::ZERO);
    for millis in 0.. {
        if let Some(lease) = client.step(Instant::from_millis(millis), &mut wire) {
            assert!(lease.prefix <= 32 && lease.seconds <= 24 * 3600);
            return true;
        }
        let Some((length, rest)) = bytes.split_first_chunk() else { break };
        let length = u16::from_be_bytes(*length);
        let (said, rest) = rest.split_at(usize::from(length & !RAW).min(rest.len()));
        wire.incoming.push_back(if length & RAW == 0 { framed(said, wire.transaction) } else { said.to_vec() });
        bytes = rest;
    }
    false
}

/// A server's frame around a payload. The wire promises that checksums are right.
fn framed(payload: &[u8], transaction: [u8; 4]) -> Vec<u8> {
    let mut payload = payload.to_vec();
    if let Some(number) = payload.get_mut(4..8) {
        number.copy_from_slice(&transaction);
    }
    let [udp, ip] = [8, 28].map(|headers| (payload.len() + headers) as u16);
    let mut frame = [MAC.as_slice(), &[2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0]].concat();
    frame.extend(ip.to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 2, 2, 255, 255, 255, 255, 0, 67, 0, 68]);
    frame.extend(udp.to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(payload);
    frame
}

/// What a client is plugged into.
#[derive(Default)]
struct Wire {
    incoming: VecDeque<Vec<u8>>,
    /// The number in what the client sent last.
    transaction: [u8; 4],
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Sending<'a>(&'a mut [u8; 4]);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut frame = vec![0; length];
        let result = f(&mut frame);
        if let Some(number) = frame.get(HEADERS + 4..HEADERS + 8) {
            self.0.copy_from_slice(number);
        }
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        Some((Received(self.incoming.pop_front()?), Sending(&mut self.transaction)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.transaction))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities.checksum = ChecksumCapabilities::ignored();
        capabilities
    }
}
