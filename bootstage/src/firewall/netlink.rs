//! The rules as messages of nf_tables (Linux: include/uapi/linux/netfilter/nf_tables.h, net/netfilter/nfnetlink.c).
//!
//! A batch of messages is one transaction: the kernel takes all of it or nothing. Numbers in attributes are big-endian;
//! what is compared with registers is as it stands in memory or in the packet.

use std::{io, net::IpAddr};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

use super::{Condition, Rule, Ruleset, TABLE, Verdict};

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;
const NLMSG_ERROR: u16 = 0x2;
const NLA_F_NESTED: u16 = 0x8000;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// The subsystem's number, in the upper byte of its messages' types.
const NF_TABLES: u16 = 10;
const NEW_TABLE: u16 = 0;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;

const FAMILY_INET: u8 = 1;
const FAMILY_IPV4: u8 = 2;
const FAMILY_IPV6: u8 = 10;
const HOOK_INPUT: u32 = 1;
const HOOK_FORWARD: u32 = 2;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;

/// The 16-byte register that every condition uses, and the one of verdicts.
const REGISTER: u32 = 1;
const VERDICT_REGISTER: u32 = 0;

const META_IIF: u32 = 4;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const CT_STATE: u32 = 0;
/// Connection tracking's states as bits.
const CT_INVALID: u32 = 1;
const CT_ESTABLISHED: u32 = 2;
const CT_RELATED: u32 = 4;
const CMP_EQUAL: u32 = 0;
const CMP_DIFFERENT: u32 = 1;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
/// The loopback interface is the first of every network namespace.
const LOOPBACK_INDEX: u32 = 1;

/// Puts the rules in the place of those that are in force.
pub(super) fn load(ruleset: &Ruleset) -> io::Result<()> {
    exchange(&replacing(ruleset))
}

/// Removes the table.
pub(super) fn remove() -> io::Result<()> {
    let mut batch = Batch::begin();
    batch.make_sure_of_no_table();
    exchange(&batch.end())
}

/// Sends a batch, and waits for the first answer: the error of the first message that was refused, or what says that the
/// last one was carried out.
fn exchange(batch: &[u8]) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(batch, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    outcome(&answer)
}

fn outcome(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
    let code = answer.get(16..20).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        _ => Err(io::Error::other("nf_tables gave an answer that is none")),
    }
}

fn replacing(ruleset: &Ruleset) -> Vec<u8> {
    let mut batch = Batch::begin();
    batch.make_sure_of_no_table();
    batch.message(NEW_TABLE, NLM_F_CREATE, |m| m.text(1, TABLE));
    for (name, hook) in [("forward", HOOK_FORWARD), ("input", HOOK_INPUT)] {
        batch.message(NEW_CHAIN, NLM_F_CREATE, |m| {
            m.text(1, TABLE).text(3, name).nested(4, |m| m.number(1, hook).number(2, 0));
            m.number(5, NF_DROP).text(7, "filter")
        });
    }
    for rule in &ruleset.0 {
        batch.message(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, |m| {
            m.text(1, TABLE).text(2, "input").nested(4, |m| m.rule(rule))
        });
    }
    batch.end()
}

/// Messages between two that mark a transaction.
struct Batch {
    bytes: Vec<u8>,
    /// Where the last message begins.
    last: usize,
}

impl Batch {
    fn begin() -> Self {
        let mut batch = Self { bytes: Vec::new(), last: 0 };
        batch.put(BATCH_BEGIN, 0, 0, NF_TABLES, |m| m);
        batch
    }

    /// Deleting what is not there is an error, so that it is made first.
    fn make_sure_of_no_table(&mut self) {
        self.message(NEW_TABLE, NLM_F_CREATE, |m| m.text(1, TABLE));
        self.message(DELETE_TABLE, 0, |m| m.text(1, TABLE));
    }

    fn message(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Attributes) -> &mut Attributes) {
        self.put(NF_TABLES << 8 | kind, flags, FAMILY_INET, 0, fill);
    }

    /// Netlink's header, nfnetlink's, and the attributes.
    fn put(
        &mut self,
        kind: u16,
        flags: u16,
        family: u8,
        resource: u16,
        fill: impl FnOnce(&mut Attributes) -> &mut Attributes,
    ) {
        let mut attributes = Attributes(Vec::new());
        fill(&mut attributes);
        self.last = self.bytes.len();
        let length = 20 + attributes.0.len() as u32;
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        // Neither sequence number nor port: there is one exchange on the socket.
        self.bytes.extend([0; 8]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(attributes.0);
    }

    /// Has the last message acknowledged. Errors of any come without being asked for.
    fn end(mut self) -> Vec<u8> {
        if let Some(flags) = self.bytes.get_mut(self.last + 6..self.last + 8) {
            let asked = u16::from_ne_bytes([flags[0], flags[1]]) | NLM_F_ACK;
            flags.copy_from_slice(&asked.to_ne_bytes());
        }
        self.put(BATCH_END, 0, 0, NF_TABLES, |m| m);
        self.bytes
    }
}

/// Attributes one after the other, each with a header and padded to four bytes.
struct Attributes(Vec<u8>);

impl Attributes {
    fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.0.extend((4 + value.len() as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.bytes(kind, &[value.as_bytes(), b"\0"].concat())
    }

    fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    fn nested(&mut self, kind: u16, fill: impl FnOnce(&mut Self) -> &mut Self) -> &mut Self {
        let mut inner = Self(Vec::new());
        fill(&mut inner);
        self.bytes(NLA_F_NESTED | kind, &inner.0)
    }

    /// A value to compare or to mask with.
    fn value(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.nested(kind, |m| m.bytes(1, value))
    }

    fn expression(&mut self, name: &str, fill: impl FnOnce(&mut Self) -> &mut Self) -> &mut Self {
        self.nested(1, |m| m.text(1, name).nested(2, fill))
    }

    fn rule(&mut self, rule: &Rule) -> &mut Self {
        rule.conditions.iter().for_each(|condition| self.condition(*condition));
        let code = match rule.verdict {
            Verdict::Accept => NF_ACCEPT,
            Verdict::Drop => NF_DROP,
        };
        self.expression("immediate", |m| {
            m.number(1, VERDICT_REGISTER).nested(2, |m| m.nested(2, |m| m.number(1, code)))
        })
    }

    fn condition(&mut self, condition: Condition) {
        match condition {
            Condition::Loopback => self.meta(META_IIF).compare(CMP_EQUAL, &LOOPBACK_INDEX.to_ne_bytes()),
            Condition::Known => self.state(CT_ESTABLISHED | CT_RELATED),
            Condition::Invalid => self.state(CT_INVALID),
            Condition::Protocol(number) => self.meta(META_L4PROTO).compare(CMP_EQUAL, &[number]),
            Condition::IcmpType(number) => self.payload(TRANSPORT_HEADER, 0, 1).compare(CMP_EQUAL, &[number]),
            Condition::Port(port) => self.payload(TRANSPORT_HEADER, 2, 2).compare(CMP_EQUAL, &port.to_be_bytes()),
            Condition::From(network) => {
                // Where the source stands in the header (RFC 791, 3.1; RFC 8200, 3).
                let (family, offset, address) = match network.address() {
                    IpAddr::V4(address) => (FAMILY_IPV4, 12, address.octets().to_vec()),
                    IpAddr::V6(address) => (FAMILY_IPV6, 8, address.octets().to_vec()),
                };
                let mask = mask(network.prefix(), address.len());
                self.meta(META_NFPROTO).compare(CMP_EQUAL, &[family]);
                self.payload(NETWORK_HEADER, offset, address.len() as u32).mask(&mask).compare(CMP_EQUAL, &address)
            }
            Condition::Rate(rate) => self.expression("limit", |m| {
                // Packets, in a unit of one second.
                m.bytes(1, &rate.to_be_bytes()).bytes(2, &1u64.to_be_bytes());
                m.number(3, u32::try_from(rate).unwrap_or(u32::MAX)).number(4, 0).number(5, 0)
            }),
        };
    }

    fn meta(&mut self, key: u32) -> &mut Self {
        self.expression("meta", |m| m.number(1, REGISTER).number(2, key))
    }

    fn payload(&mut self, header: u32, offset: u32, length: u32) -> &mut Self {
        self.expression("payload", |m| m.number(1, REGISTER).number(2, header).number(3, offset).number(4, length))
    }

    fn state(&mut self, any_of: u32) -> &mut Self {
        self.expression("ct", |m| m.number(1, REGISTER).number(2, CT_STATE));
        self.mask(&any_of.to_ne_bytes()).compare(CMP_DIFFERENT, &[0; 4])
    }

    fn mask(&mut self, mask: &[u8]) -> &mut Self {
        let zero = vec![0; mask.len()];
        self.expression("bitwise", |m| {
            m.number(1, REGISTER).number(2, REGISTER).number(3, mask.len() as u32).value(4, mask).value(5, &zero)
        })
    }

    fn compare(&mut self, how: u32, with: &[u8]) -> &mut Self {
        self.expression("cmp", |m| m.number(1, REGISTER).number(2, how).value(3, with))
    }
}

/// So many bits set, in so many bytes.
fn mask(prefix: u8, length: usize) -> Vec<u8> {
    let bits = |byte: usize| usize::from(prefix).saturating_sub(8 * byte).min(8);
    (0..length).map(|byte| !u8::MAX.checked_shr(bits(byte) as u32).unwrap_or(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_have_the_bits_of_the_prefix() {
        assert_eq!(mask(0, 4), [0, 0, 0, 0]);
        assert_eq!(mask(20, 4), [255, 255, 240, 0]);
        assert_eq!(mask(32, 4), [255; 4]);
        assert_eq!(mask(33, 16)[..6], [255, 255, 255, 255, 128, 0]);
    }

    /// Every message and attribute ends where the next begins: the kernel reads them in no other way.
    #[test]
    fn a_batch_is_whole_messages_of_whole_attributes() {
        let networks = ["10.0.0.0/8", "2001:db8::/33"].map(|text| text.parse().unwrap());
        let ruleset = Ruleset::new(&networks);
        let batch = replacing(&ruleset);
        let mut rest = batch.as_slice();
        let mut seen = Vec::new();
        while !rest.is_empty() {
            let length = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
            seen.push((u16::from_ne_bytes([rest[4], rest[5]]), u16::from_ne_bytes([rest[6], rest[7]])));
            check_attributes(&rest[20..length]);
            rest = &rest[length..];
        }
        let rules = seen.iter().filter(|(kind, _)| *kind == NF_TABLES << 8 | NEW_RULE).count();
        assert_eq!(rules, ruleset.0.len());
        assert_eq!((seen[0].0, seen[seen.len() - 1].0), (BATCH_BEGIN, BATCH_END));
        let acknowledged: Vec<_> = seen.iter().map(|(_, flags)| flags & NLM_F_ACK != 0).collect();
        assert_eq!(acknowledged.iter().position(|asked| *asked), Some(seen.len() - 2));
    }

    fn check_attributes(mut rest: &[u8]) {
        while !rest.is_empty() {
            let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
            let kind = u16::from_ne_bytes([rest[2], rest[3]]);
            if kind & NLA_F_NESTED != 0 {
                check_attributes(&rest[4..length]);
            }
            rest = &rest[length.next_multiple_of(4)..];
        }
    }

    #[test]
    fn answers_are_told_apart() {
        let answer = |kind: u16, code: i32| {
            let mut bytes = vec![0; 36];
            bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            bytes[16..20].copy_from_slice(&code.to_ne_bytes());
            outcome(&bytes)
        };
        assert!(answer(NLMSG_ERROR, 0).is_ok());
        assert_eq!(answer(NLMSG_ERROR, -1).unwrap_err().raw_os_error(), Some(1));
        assert!(answer(3, 0).is_err());
        assert!(outcome(&[]).is_err());
    }
}
