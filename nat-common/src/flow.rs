//! The flow table: one exact-match entry a direction whose value is the whole verdict.

use crate::checksum::{Delta, Sum, pseudo_header};
use crate::wire;

/// Which way a packet of a session goes: as the packet that opened it, or back.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// As the session's first packet.
    Original = 0,
    /// Back to who opened it.
    Reply = 1,
}

impl Direction {
    /// Either, in the order of their numbers.
    pub const BOTH: [Self; 2] = [Self::Original, Self::Reply];
}

/// Where a packet arrived. The same addresses on another side are another flow: an outside host
/// that borrows an inside address finds nothing.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Realm {
    /// On an outside interface.
    Outside = 0,
    /// On an inside interface.
    Inside = 1,
}

/// The two roles of an ICMP query message.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Query {
    /// Asks: its identifier is a source port.
    Request = 1,
    /// Answers: its identifier is a destination port.
    Reply = 2,
}

/// What identifies a packet's flow, as the packet arrives.
///
/// For ICMP queries the identifier stands in the port of the side that asked, the other port is
/// zero, and `query` tells the two apart: a request is never taken for a reply (behaviour
/// ICQ-07). For protocols without ports both are zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Source address, network byte order.
    pub source: u32,
    /// Destination address, network byte order.
    pub destination: u32,
    /// Source port, network byte order.
    pub source_port: u16,
    /// Destination port, network byte order.
    pub destination_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// [`Query`] as a number; 0 for all but ICMP.
    pub query: u8,
    /// [`Realm`] as a number.
    pub realm: u16,
}

impl FlowKey {
    /// The key as it lies in memory, in words.
    ///
    /// The table's hash reads words, and a CPU that has just stored one in parts waits for them to
    /// reach its cache.
    #[inline(always)]
    #[must_use]
    pub const fn words(&self) -> [u64; 2] {
        let [first, second] = self.realm.to_ne_bytes();
        let last = u32::from_ne_bytes([self.protocol, self.query, first, second]);
        [
            join(self.source as u64, self.destination as u64, 32),
            join(join(self.source_port as u64, self.destination_port as u64, 16), last as u64, 32),
        ]
    }

    /// The key with these [words](Self::words).
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "parts of words are cut out of them")]
    pub const fn of_words([addresses, rest]: [u64; 2]) -> Self {
        let (source, destination) = parts(addresses, 32);
        let (ports, last) = parts(rest, 32);
        let (source_port, destination_port) = parts(ports, 16);
        let [protocol, query, first, second] = (last as u32).to_ne_bytes();
        Self {
            source: source as u32,
            destination: destination as u32,
            source_port: source_port as u16,
            destination_port: destination_port as u16,
            protocol,
            query,
            realm: u16::from_ne_bytes([first, second]),
        }
    }

    /// The key of a packet that goes the other way between the same two endpoints.
    #[must_use]
    pub fn reversed(&self, realm: Realm) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            query: match self.query {
                request if request == Query::Request as u8 => Query::Reply as u8,
                reply if reply == Query::Reply as u8 => Query::Request as u8,
                none => none,
            },
            protocol: self.protocol,
            realm: realm as u16,
        }
    }
}

/// Two halves, each of `bits` bits, as they lie in memory one after the other.
#[inline(always)]
const fn join(first: u64, second: u64, bits: u32) -> u64 {
    if cfg!(target_endian = "little") { first | (second << bits) } else { (first << bits) | second }
}

/// What [`join`] made one of; each is to be cut to its bits.
#[inline(always)]
const fn parts(both: u64, bits: u32) -> (u64, u64) {
    if cfg!(target_endian = "little") { (both, both >> bits) } else { (both >> bits, both) }
}

/// What to do with every packet of a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowValue {
    /// Source address to write, network byte order.
    pub source: u32,
    /// Destination address to write, network byte order.
    pub destination: u32,
    /// Source port to write, network byte order.
    pub source_port: u16,
    /// Destination port to write, network byte order.
    pub destination_port: u16,
    /// Change of the IPv4 header checksum (addresses only, not the TTL).
    pub header_delta: u16,
    /// Change of the transport checksum.
    pub transport_delta: u16,
    /// Index into the next-hop table.
    pub next_hop: u16,
    /// [`Action`] as a number.
    pub action: u8,
    /// Zero.
    pub pad: u8,
}

/// What a flow entry stands for.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Rewrite and send on.
    Translate = 1,
    /// Judged once: plain routing, the stack's.
    Bypass = 2,
    /// Send on as it is, to the next hop: a virtual server's, by direct routing. `destination` names the server.
    Direct = 3,
    /// Send on as it is, inside a packet from `source` to `destination` (RFC 2003).
    Tunnel = 4,
}

const _: () = assert!(size_of::<FlowKey>() == 16);
const _: () = assert!(size_of::<FlowValue>() == 20);

/// The two endpoints of a packet after translation, in network byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// New source address.
    pub source: u32,
    /// New destination address.
    pub destination: u32,
    /// New source port or identifier.
    pub source_port: u16,
    /// New destination port or identifier.
    pub destination_port: u16,
}

impl FlowValue {
    /// The entry that turns packets with `key` into packets between the endpoints of `rewrite`.
    pub fn translate(key: &FlowKey, rewrite: &Rewrite, next_hop: u16) -> Self {
        let addresses = Sum::ZERO
            .subtract_u32(key.source)
            .subtract_u32(key.destination)
            .add_u32(rewrite.source)
            .add_u32(rewrite.destination);
        let ports = Sum::ZERO
            .subtract_u16(key.source_port)
            .subtract_u16(key.destination_port)
            .add_u16(rewrite.source_port)
            .add_u16(rewrite.destination_port);
        let unchanged_addresses = key.source == rewrite.source && key.destination == rewrite.destination;
        let unchanged_ports =
            key.source_port == rewrite.source_port && key.destination_port == rewrite.destination_port;
        // Equal words sum to all ones, the other zero: a delta of no change must be exactly none,
        // so that a checksum that is wrong stays wrong bit for bit.
        let addresses = if unchanged_addresses { Sum::ZERO } else { addresses };
        let ports = if unchanged_ports { Sum::ZERO } else { ports };
        let pseudo = if has_pseudo_header(key.protocol) { addresses } else { Sum::ZERO };
        Self {
            source: rewrite.source,
            destination: rewrite.destination,
            source_port: rewrite.source_port,
            destination_port: rewrite.destination_port,
            header_delta: Delta::of(addresses).0,
            transport_delta: Delta::of(pseudo.add(ports)).0,
            next_hop,
            action: Action::Translate as u8,
            pad: 0,
        }
    }

    /// The entry that sends packets on as they are; `ends` are those of the tunnel, or the server's.
    pub fn relay(action: Action, ends: &Rewrite, next_hop: u16) -> Self {
        Self {
            source: ends.source,
            destination: ends.destination,
            source_port: ends.source_port,
            destination_port: ends.destination_port,
            next_hop,
            action: action as u8,
            ..Self::default()
        }
    }

    /// The entry that hands packets to the gateway's own stack untouched.
    pub fn bypass() -> Self {
        Self { action: Action::Bypass as u8, ..Self::default() }
    }

    /// Part of the transport delta that the pseudo-header causes: on the tc hook a partial checksum covers only
    /// that.
    #[inline(always)]
    pub fn pseudo_delta(&self, protocol: u8) -> u16 {
        if has_pseudo_header(protocol) { self.header_delta } else { 0 }
    }

    /// The endpoints it writes.
    pub fn rewrite(&self) -> Rewrite {
        Rewrite {
            source: self.source,
            destination: self.destination,
            source_port: self.source_port,
            destination_port: self.destination_port,
        }
    }
}

/// Whether the transport checksum covers the addresses.
#[inline(always)]
const fn has_pseudo_header(protocol: u8) -> bool {
    matches!(protocol, wire::TCP | wire::UDP | wire::UDPLITE)
}

/// Whether a transport checksum field holds only the pseudo-header's sum: the sender left the
/// rest to an offload that a virtual link never performs.
///
/// A complete checksum can look like this once in 65 536; what is done then (finishing it, or
/// giving the frame to the stack, which knows) is right for it, too.
#[inline(always)]
pub fn is_partial(source: u32, destination: u32, protocol: u8, length: u16, checksum: u16) -> bool {
    pseudo_header(source, destination, protocol, length).fold() == checksum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The program looks flows up by the words, the daemon by the key.
    #[test]
    fn the_words_of_a_key_are_its_bytes() {
        let key = FlowKey {
            source: 0x0102_0304,
            destination: 0x0506_0708,
            source_port: 0x090a,
            destination_port: 0x0b0c,
            protocol: 0x0d,
            query: 0x0e,
            realm: 0x0f10,
        };
        // SAFETY: both are 16 bytes of integers without padding.
        assert_eq!(key.words(), unsafe { core::mem::transmute::<FlowKey, [u64; 2]>(key) });
        assert_eq!(FlowKey::of_words(key.words()), key);
    }
}
