//! Tracing: which frames are asked for, and what is told of each. The programs and the daemon ask the same questions.

use crate::vlan::is_tag;
use crate::wire;

/// Conditions a query may have.
pub const TERMS: usize = 8;
/// Queries answered at once.
pub const QUERIES: usize = 8;
/// Bytes of a frame that are looked at to find its endpoints: tags, the longest IPv4 header, and ports fit.
pub const HEAD: usize = 128;
/// The most that is kept of a frame is a byte less.
pub const ROOM: usize = 4096;

/// Who a packet is from and to, as far as its headers say.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tuple {
    /// Source address, network byte order.
    pub source: u32,
    /// Destination address, network byte order.
    pub destination: u32,
    /// Source port, network byte order; zero where there is none.
    pub source_port: u16,
    /// Destination port, likewise.
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// 1 if it is an IPv4 packet.
    pub is_ipv4: u8,
    /// 1 if it has ports.
    pub has_ports: u8,
    /// Zero.
    pub pad: u8,
}

impl Tuple {
    /// Reads the first bytes of a frame of `length` bytes.
    ///
    /// Every offset is cut to the array's size, so that no check can fail: the verifier sees that, and what lies
    /// beyond the frame's end is told by `length`.
    #[inline(always)]
    #[must_use]
    pub fn of(head: &[u8; HEAD], length: usize) -> Self {
        let byte = |at: usize| head[at % HEAD];
        let half = |at: usize| u16::from_ne_bytes([byte(at), byte(at + 1)]);
        let word = |at: usize| u32::from_ne_bytes([byte(at), byte(at + 1), byte(at + 2), byte(at + 3)]);
        let mut network = 14;
        let mut kind = half(12);
        for _ in 0..2 {
            if is_tag(kind) {
                kind = half(network + 2);
                network += 4;
            }
        }
        if kind != wire::ETHERTYPE_IPV4.to_be() || length < network + 20 {
            return Self::default();
        }
        let header = usize::from(byte(network) & 0xf) * 4;
        let protocol = byte(network + 9);
        let is_later = u16::from_be(half(network + 6)) & 0x1fff != 0;
        let carries = matches!(protocol, wire::TCP | wire::UDP | wire::UDPLITE | SCTP);
        let transport = network + header;
        let has_ports = carries && !is_later && length >= transport + 4;
        Self {
            source: word(network + 12),
            destination: word(network + 16),
            source_port: if has_ports { half(transport) } else { 0 },
            destination_port: if has_ports { half(transport + 2) } else { 0 },
            protocol,
            is_ipv4: 1,
            has_ports: u8::from(has_ports),
            pad: 0,
        }
    }
}

const SCTP: u8 = 132;

/// One condition on a packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Term {
    /// Network of [`Term::ADDRESS`], network byte order, without host bits.
    pub address: u32,
    /// Its mask.
    pub mask: u32,
    /// Port of [`Term::PORT`], network byte order; number of [`Term::PROTOCOL`].
    pub number: u16,
    /// What it is about.
    pub kind: u8,
    /// [`Term::SOURCE`], [`Term::DESTINATION`], or both: either will do.
    pub sides: u8,
}

impl Term {
    /// An address of a network.
    pub const ADDRESS: u8 = 1;
    /// A port.
    pub const PORT: u8 = 2;
    /// A protocol.
    pub const PROTOCOL: u8 = 3;
    /// On the packet's source.
    pub const SOURCE: u8 = 1;
    /// On its destination.
    pub const DESTINATION: u8 = 2;

    /// Whether it holds.
    #[inline(always)]
    fn holds(&self, tuple: &Tuple) -> bool {
        match self.kind {
            Self::PROTOCOL => tuple.is_ipv4 != 0 && u16::from(tuple.protocol) == self.number,
            Self::PORT => {
                tuple.has_ports != 0
                    && ((self.sides & Self::SOURCE != 0 && tuple.source_port == self.number)
                        || (self.sides & Self::DESTINATION != 0 && tuple.destination_port == self.number))
            }
            _ => {
                tuple.is_ipv4 != 0
                    && ((self.sides & Self::SOURCE != 0 && tuple.source & self.mask == self.address)
                        || (self.sides & Self::DESTINATION != 0
                            && tuple.destination & self.mask == self.address))
            }
        }
    }
}

/// Which packets one client asks for: those for which every term holds, before or after their translation.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// The terms; the first `count` count.
    pub terms: [Term; TERMS],
    /// How many.
    pub count: u32,
    /// 1 while somebody asks.
    pub active: u32,
    /// Packets a second and CPU that are told of; 0 for all.
    pub per_second: u32,
    /// Zero.
    pub pad: u32,
}

impl Query {
    /// Whether every term holds.
    #[inline(always)]
    #[must_use]
    pub fn matches(&self, tuple: &Tuple) -> bool {
        for (position, term) in self.terms.iter().enumerate() {
            if position >= self.count as usize {
                break;
            }
            if !term.holds(tuple) {
                return false;
            }
        }
        true
    }
}

/// All that is asked for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tracing {
    /// By number.
    pub queries: [Query; QUERIES],
    /// Bytes kept of a frame, below [`ROOM`].
    pub snap: u32,
    /// Zero.
    pub pad: u32,
}

/// What the programs tell of a frame; the frame as it came and as it left follow, as much of both as is kept.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
    /// The interface that it came in by, or the device if it is in no VLAN of natgw's.
    pub ifindex: u32,
    /// The interface that it leaves by; 0 if it does not.
    pub out: u32,
    /// What it was counted under.
    pub reason: u32,
    /// Which queries it answers, a bit each.
    pub queries: u32,
    /// Its length as it came.
    pub length_before: u32,
    /// Its length as it left; 0 if it did not.
    pub length_after: u32,
    /// How much of the former follows.
    pub kept_before: u32,
    /// How much of the latter follows that.
    pub kept_after: u32,
    /// [`Header::XDP`] or [`Header::TC`].
    pub hook: u32,
    /// Zero.
    pub pad: u32,
}

impl Header {
    /// Told by the XDP program.
    pub const XDP: u32 = 0;
    /// Told by the tc program.
    pub const TC: u32 = 1;
}

/// A query's share of a second.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Which second.
    pub second: u64,
    /// Packets told of in it.
    pub packets: u64,
    /// Packets not told of, since the beginning.
    pub suppressed: u64,
    /// Packets for which there was no room.
    pub lost: u64,
}

impl Spent {
    /// Takes one packet's share at `now`. Whether there is one.
    #[inline(always)]
    pub fn take(&mut self, now: u64, per_second: u32) -> bool {
        // A little more than a second, but no division.
        let second = now >> 30;
        if second != self.second {
            self.second = second;
            self.packets = 0;
        }
        if per_second != 0 && self.packets >= u64::from(per_second) {
            self.suppressed += 1;
            return false;
        }
        self.packets += 1;
        true
    }
}

const _: () = assert!(size_of::<Tuple>() == 16);
const _: () = assert!(size_of::<Term>() == 12);
const _: () = assert!(size_of::<Query>() == TERMS * 12 + 16);
const _: () = assert!(size_of::<Tracing>() == QUERIES * size_of::<Query>() + 8);
const _: () = assert!(size_of::<Header>() == 48);
const _: () = assert!(size_of::<Spent>() == 32);
const _: () = assert!(HEAD.is_power_of_two() && ROOM.is_power_of_two() && QUERIES.is_power_of_two());

#[cfg(test)]
mod tests {
    use super::*;

    /// A UDP datagram from 10.1.1.7:1000 to 10.2.2.8:53, in a frame with so many tags.
    fn head(tags: usize) -> ([u8; HEAD], usize) {
        let mut head = [0; HEAD];
        let mut at = 12;
        for _ in 0..tags {
            head[at..at + 4].copy_from_slice(&[0x81, 0, 0, 7]);
            at += 4;
        }
        head[at..at + 2].copy_from_slice(&[8, 0]);
        at += 2;
        head[at..at + 24].copy_from_slice(&[
            0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 1, 1, 7, 10, 2, 2, 8, 3, 232, 0, 53,
        ]);
        (head, at + 28)
    }

    fn network(octets: [u8; 4]) -> u32 {
        u32::from_ne_bytes(octets)
    }

    #[test]
    fn tuples_are_read_behind_tags_and_not_beyond_the_end() {
        for tags in 0..3 {
            let (head, length) = head(tags);
            let tuple = Tuple::of(&head, length);
            assert_eq!((tuple.source, tuple.destination), (network([10, 1, 1, 7]), network([10, 2, 2, 8])));
            assert_eq!((tuple.source_port, tuple.destination_port), (1000u16.to_be(), 53u16.to_be()));
            assert_eq!((tuple.protocol, tuple.has_ports), (wire::UDP, 1));
            assert_eq!(Tuple::of(&head, length - 5).has_ports, 0);
            assert_eq!(Tuple::of(&head, length - 10), Tuple::default());
        }
        let (mut later, length) = head(0);
        later[21] = 1;
        assert_eq!(Tuple::of(&later, length).has_ports, 0, "a later fragment has none");
    }

    #[test]
    fn queries_hold_if_all_their_terms_do() {
        let (head, length) = head(0);
        let tuple = Tuple::of(&head, length);
        let both = Term::SOURCE | Term::DESTINATION;
        let net = |octets, sides| Term {
            address: network(octets),
            mask: network([255, 255, 0, 0]),
            kind: Term::ADDRESS,
            sides,
            ..Term::default()
        };
        let port =
            |port: u16, sides| Term { number: port.to_be(), kind: Term::PORT, sides, ..Term::default() };
        let udp = Term { number: 17, kind: Term::PROTOCOL, ..Term::default() };
        let cases: [(&[Term], bool); 9] = [
            (&[], true),
            (&[net([10, 1, 0, 0], Term::SOURCE)], true),
            (&[net([10, 1, 0, 0], Term::DESTINATION)], false),
            (&[net([10, 2, 0, 0], both)], true),
            (&[port(53, Term::DESTINATION), udp], true),
            (&[port(53, Term::SOURCE)], false),
            (&[port(1000, both), net([10, 2, 0, 0], both)], true),
            (&[port(1000, both), net([10, 3, 0, 0], both)], false),
            (&[Term { number: 6, ..udp }], false),
        ];
        for (terms, holds) in cases {
            let mut query = Query { count: u32::try_from(terms.len()).unwrap(), ..Query::default() };
            query.terms[..terms.len()].copy_from_slice(terms);
            assert_eq!(query.matches(&tuple), holds, "{terms:?}");
        }
        assert!(Query::default().matches(&Tuple::default()), "what is no IPv4 is asked for by no term alone");
    }

    #[test]
    fn a_second_has_so_many_packets() {
        let mut spent = Spent::default();
        let told = |spent: &mut Spent, now, most| (0..10).filter(|_| spent.take(now, most)).count();
        assert_eq!(told(&mut spent, 5, 3), 3);
        assert_eq!(told(&mut spent, 6, 3), 0);
        assert_eq!(told(&mut spent, 1 << 31, 3), 3);
        assert_eq!(told(&mut spent, 1 << 31, 0), 10);
        assert_eq!(spent.suppressed, 24);
    }
}
