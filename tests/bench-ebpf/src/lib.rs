//! What the bench and its eBPF programs agree on.
#![no_std]
#![expect(clippy::inline_always, reason = "no calls on the way of a frame: each costs six nanoseconds")]

/// What to generate and what to count, one for all programs; written between runs only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The way of a flow number through the flows: [`IN_TURN`], [`RANDOM`] or [`FRESH`].
    pub pattern: u32,
    /// The interface the generator sends by: a slot of its map `OUTS`.
    pub out: u32,
    /// Number of flows less one; flows are a power of two.
    pub flow_mask: u32,
    /// Flow numbers have this many bits for the inside endpoint (address and port); the rest picks the remote.
    pub endpoint_bits: u32,
    /// How far the inside address moves from remote to remote: with 0 an endpoint talks to all remotes, with 1 each
    /// remote has endpoints of its own.
    pub stride: u32,
    /// Not 0: UDP without a checksum.
    pub zero_checksum: u32,
    /// Not 0: the sink checks every frame and remembers which flows it has seen, under this number.
    pub inspection: u32,
    /// A delivered frame's source, masked with `source_mask`, has to be this (network byte order).
    pub source: u32,
    /// See `source`.
    pub source_mask: u32,
    /// Destination and source MAC of generated frames.
    pub macs: [u8; 12],
    /// The source MAC a delivered frame has to have, with 2 bytes of padding.
    pub delivered_mac: [u8; 8],
}

/// Flow 0, 1, 2 … and again from 0.
pub const IN_TURN: u32 = 0;
/// Any flow, uniformly.
pub const RANDOM: u32 = 1;
/// A flow never seen before: numbers count up and are not masked.
pub const FRESH: u32 = 2;

/// Where the generator is: kept between runs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Frames made.
    pub counter: u64,
    /// State of the random numbers; never 0.
    pub random: u64,
}

/// Counter of frames that arrived as they should.
pub const DELIVERED: u32 = 0;
/// Counter of flows seen for the first time in this inspection.
pub const FLOWS_SEEN: u32 = 1;
/// Counter of frames that arrived wrong: not translated, TTL, MAC or a checksum.
pub const WRONG: u32 = 2;
/// Number of counters.
pub const COUNTERS: u32 = 3;

/// Flows that an inspection can tell apart.
pub const INSPECTED_FLOWS: u32 = 1 << 22;

/// First inside address is 10.1.1.0; there are 256.
pub const FIRST_CLIENT: u32 = 0x0a01_0100;
/// First remote address is 198.18.0.0.
pub const FIRST_REMOTE: u32 = 0xc612_0000;
/// First inside port.
pub const FIRST_PORT: u16 = 1024;
/// The port all flows go to.
pub const REMOTE_PORT: u16 = 9;
/// Time to live of generated frames.
pub const TTL: u8 = 64;

/// A whole frame of the bench: Ethernet, IPv4, UDP, 18 bytes of data: 60 bytes.
///
/// `packed(2)` as frames lie in memory; fields in network byte order.
#[repr(C, packed(2))]
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "fields of RFC 791 and RFC 768 by their names")]
pub struct Probe {
    pub macs: [u8; 12],
    pub kind: u16,
    pub version_and_length: u8,
    pub tos: u8,
    pub total_length: u16,
    pub id: u16,
    pub fragment: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub header_checksum: u16,
    pub source: u32,
    pub destination: u32,
    pub source_port: u16,
    pub destination_port: u16,
    pub udp_length: u16,
    pub udp_checksum: u16,
    /// The flow's number.
    pub flow: u32,
    pub data: [u16; 7],
}

const _: () = assert!(size_of::<Probe>() == 60);

impl Probe {
    /// The words of the IPv4 header, added up as they lie in memory.
    #[inline(always)]
    pub fn header_sum(&self) -> u32 {
        u32::from(u16::from_ne_bytes([self.version_and_length, self.tos]))
            + u32::from(self.total_length)
            + u32::from(self.id)
            + u32::from(self.fragment)
            + u32::from(u16::from_ne_bytes([self.ttl, self.protocol]))
            + halves(self.source)
            + halves(self.destination)
    }

    /// The words that a UDP checksum covers (data beyond the flow number is zero).
    #[inline(always)]
    pub fn udp_sum(&self) -> u32 {
        halves(self.source)
            + halves(self.destination)
            + u32::from(u16::from_ne_bytes([0, self.protocol]))
            + u32::from(self.udp_length) * 2
            + u32::from(self.source_port)
            + u32::from(self.destination_port)
            + halves(self.flow)
    }
}

/// The two 16-bit words of a 32-bit field.
#[inline(always)]
fn halves(word: u32) -> u32 {
    (word >> 16) + (word & 0xffff)
}

/// Folds a sum of fewer than 2^16 words to 16 bits.
#[inline(always)]
pub fn fold(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    (sum & 0xffff) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_the_rfcs() {
        let mut probe = Probe {
            macs: [0; 12],
            kind: 0x0800_u16.to_be(),
            version_and_length: 0x45,
            tos: 0,
            total_length: 46_u16.to_be(),
            id: 0,
            fragment: 0,
            ttl: 64,
            protocol: 17,
            header_checksum: 0,
            source: 0x0a01_0105_u32.to_be(),
            destination: 0xc612_0003_u32.to_be(),
            source_port: 1030_u16.to_be(),
            destination_port: 9_u16.to_be(),
            udp_length: 26_u16.to_be(),
            udp_checksum: 0,
            flow: 0x0003_0006_u32.to_be(),
            data: [0; 7],
        };
        // RFC 1071 by hand: 4500+002e+0000+0000+4011+0a01+0105+c612+0003 = 1565a -> 565b, complement a9a4.
        probe.header_checksum = !fold(probe.header_sum());
        assert_eq!(u16::from_be(probe.header_checksum), 0xa9a4);
        // 0a01+0105+c612+0003+0011+001a + 0406+0009+001a + 0003+0006 = d578, complement 2a87.
        assert_eq!(u16::from_be(!fold(probe.udp_sum())), 0x2a87);
    }
}
