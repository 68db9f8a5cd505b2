//! What the bench and its eBPF programs agree on.
#![no_std]
#![expect(
    clippy::cast_possible_truncation,
    reason = "what is cut off is a flow's number or a time's octave, on purpose"
)]
#![expect(clippy::inline_always, reason = "no calls on the way of a frame: each costs six nanoseconds")]

/// What to generate and what to count, one for all programs; written between runs only.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The way of a flow number through the flows: [`IN_TURN`], [`RANDOM`], [`ZIPF`], [`FRESH`] or [`FLOOD`].
    pub pattern: u32,
    /// The interface the generator sends by: a slot of its map `OUTS`.
    pub out: u32,
    /// Number of the first flow that is new; below it are the established ones.
    pub first: u32,
    /// Number of flows less one; flows are a power of two.
    pub flow_mask: u32,
    /// Flow numbers have this many bits for the inside endpoint (address and port); the rest picks the remote.
    pub endpoint_bits: u32,
    /// How far the inside address moves from remote to remote: with 0 an endpoint talks to all remotes, with 1 each
    /// remote has endpoints of its own.
    pub stride: u32,
    /// The inside addresses in use, less one.
    pub client_mask: u32,
    /// 0: one remote for all flows, else all ones.
    pub remote_mask: u32,
    /// Not 0: new flows come from [`HOSTILE`] alone, but for newcomers.
    pub hostile: u32,
    /// Not 0: half of the flows are TCP, and frames have 60, 508 or 1514 bytes.
    pub mixed: u32,
    /// Not 0: frames carry the time they were made at, and the sink keeps how long they took.
    pub stamped: u32,
    /// Not 0: the sink sends frames back, and they count when they are back at the client.
    pub reflected: u32,
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
    /// The source MAC a frame has to have that is back at the client, with 2 bytes of padding.
    pub returned_mac: [u8; 8],
}

/// Flow 0, 1, 2 … and again from 0.
pub const IN_TURN: u32 = 0;
/// Any flow, uniformly.
pub const RANDOM: u32 = 1;
/// A flow never seen before: numbers count up from `first` and are not masked.
pub const FRESH: u32 = 2;
/// Flows as the quantiles of the generator's map `QUANTILES` have them.
pub const ZIPF: u32 = 3;
/// Of each [`FLOOD_TURN`] frames, one in 11 is of an established flow, one opens a newcomer's, the others open flows
/// of the flood.
pub const FLOOD: u32 = 4;

/// See [`FLOOD`].
pub const FLOOD_TURN: u64 = 110;
/// One frame in so many of a flood is of an established flow.
pub const ESTABLISHED_EVERY: u64 = 11;
/// Flow numbers from here on are newcomers': hosts that open few flows while others flood.
pub const NEWCOMER: u32 = 1 << 31;
/// The last byte of the inside address that floods.
pub const HOSTILE: u32 = 0xff;

/// The generator's quantiles, ends included.
pub const QUANTILES: u32 = (1 << QUANTILE_BITS) + 1;
/// See [`QUANTILES`].
pub const QUANTILE_BITS: u32 = 12;

/// Where the generator is: kept between runs, one for each CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Frames made.
    pub counter: u64,
    /// State of the random numbers; never 0.
    pub random: u64,
    /// Frames of established flows, in a flood.
    pub established: u64,
    /// Frames of newcomers, in a flood.
    pub newcomers: u64,
}

impl Progress {
    /// xorshift64*: the next 32 random bits.
    #[inline(always)]
    pub fn draw(&mut self) -> u32 {
        let mut random = self.random;
        random ^= random >> 12;
        random ^= random << 25;
        random ^= random >> 27;
        self.random = random;
        (random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }
}

/// Counter of frames that arrived as they should.
pub const DELIVERED: u32 = 0;
/// Counter of flows seen for the first time in this inspection.
pub const FLOWS_SEEN: u32 = 1;
/// Counter of frames that arrived wrong: not translated, TTL, MAC or a checksum.
pub const WRONG: u32 = 2;
/// Counter of those of `DELIVERED` that are of established flows, in a flood.
pub const ESTABLISHED: u32 = 3;
/// Counter of those of `DELIVERED` that are newcomers', in a flood.
pub const NEWCOMERS: u32 = 4;
/// Number of counters.
pub const COUNTERS: u32 = 5;

/// Slots of the histogram of times: [`slot_of`] a time.
pub const SLOTS: u32 = 64 << SLOT_BITS;
/// Slots an octave, as bits: times are kept to 1.6 %.
const SLOT_BITS: u32 = 6;

/// The slot of a time in nanoseconds.
#[inline(always)]
#[must_use]
pub fn slot_of(nanoseconds: u64) -> u32 {
    let mut octave = 0;
    let mut rest = nanoseconds;
    // A program has no instruction for it: by halves.
    for bits in [32, 16, 8, 4, 2, 1] {
        if rest >> bits != 0 {
            rest >>= bits;
            octave += bits;
        }
    }
    if octave <= SLOT_BITS {
        return nanoseconds as u32;
    }
    let mantissa = (nanoseconds >> (octave - SLOT_BITS)) as u32 & ((1 << SLOT_BITS) - 1);
    ((octave - SLOT_BITS) << SLOT_BITS) + (1 << SLOT_BITS) + mantissa
}

/// The shortest time of a slot, in nanoseconds.
#[must_use]
pub fn time_of(slot: u32) -> u64 {
    let octave = slot >> SLOT_BITS;
    if octave <= 1 {
        return slot.into();
    }
    u64::from((1 << SLOT_BITS) + (slot & ((1 << SLOT_BITS) - 1))) << (octave - 1)
}

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

/// The lengths that mixed frames have, without the FCS; seven, four and one in twelve.
pub const LENGTHS: [u16; 3] = [60, 508, 1514];

/// The headers of a frame of the bench: Ethernet, IPv4, UDP or TCP. Data beyond is zero.
///
/// `packed(2)` as frames lie in memory; fields in network byte order. Those of UDP have their names; of TCP,
/// `udp_length` and `udp_checksum` are the sequence number, `flow` the acknowledgement, and `words` begins with flags,
/// window, checksum and urgent pointer.
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
    /// UDP: the time it was made at, in nanoseconds, low word first, or zero.
    pub words: [u16; 4],
    pub data: [u16; 3],
}

const _: () = assert!(size_of::<Probe>() == 60);

/// IP protocol number.
pub const TCP: u8 = 6;
/// IP protocol number.
pub const UDP: u8 = 17;

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

    /// The words that a UDP checksum covers (data beyond the time is zero).
    #[inline(always)]
    pub fn udp_sum(&self) -> u32 {
        self.common_sum() + u32::from(self.udp_length) * 2 + u32::from(self.words[2])
    }

    /// The words that a TCP checksum covers.
    #[inline(always)]
    pub fn tcp_sum(&self) -> u32 {
        let length = u16::from_be(self.total_length).wrapping_sub(20).to_be();
        self.common_sum() + u32::from(length) + u32::from(self.udp_length) + u32::from(self.udp_checksum)
    }

    /// What both checksums cover; the third of `words` is TCP's checksum.
    #[inline(always)]
    fn common_sum(&self) -> u32 {
        halves(self.source)
            + halves(self.destination)
            + u32::from(u16::from_ne_bytes([0, self.protocol]))
            + u32::from(self.source_port)
            + u32::from(self.destination_port)
            + halves(self.flow)
            + u32::from(self.words[0])
            + u32::from(self.words[1])
            + u32::from(self.words[3])
    }

    /// Puts both checksums in; the rest has to be there.
    #[inline(always)]
    pub fn seal(&mut self, zero_checksum: bool) {
        self.header_checksum = 0;
        self.header_checksum = !fold(self.header_sum());
        if self.protocol == TCP {
            self.words[2] = !fold(self.tcp_sum());
        } else if zero_checksum {
            self.udp_checksum = 0;
        } else {
            self.udp_checksum = match !fold(self.udp_sum()) {
                0 => 0xffff,
                checksum => checksum,
            };
        }
    }

    /// Whether both checksums are right.
    #[inline(always)]
    pub fn is_sealed(&self, zero_checksum: bool) -> bool {
        let transport = if self.protocol == TCP {
            fold(self.tcp_sum() + u32::from(self.words[2])) == 0xffff
        } else if zero_checksum {
            self.udp_checksum == 0
        } else {
            self.udp_checksum != 0 && fold(self.udp_sum() + u32::from(self.udp_checksum)) == 0xffff
        };
        transport && fold(self.header_sum() + u32::from(self.header_checksum)) == 0xffff
    }
}

/// Who talks to whom in a flow: inside address and port, and remote address, host byte order.
#[inline(always)]
pub fn endpoints(plan: &Plan, flow: u32) -> (u32, u16, u32) {
    let bits = plan.endpoint_bits & 31;
    let remote = (flow >> bits) & plan.remote_mask;
    let endpoint = flow & ((1 << bits) - 1);
    let client = if plan.hostile != 0 && flow >= plan.first && flow < NEWCOMER {
        HOSTILE
    } else {
        (endpoint + (flow >> bits) * plan.stride) & plan.client_mask
    };
    (FIRST_CLIENT + client, FIRST_PORT.wrapping_add(endpoint as u16), FIRST_REMOTE + remote)
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
            words: [0; 4],
            data: [0; 3],
        };
        // RFC 1071 by hand: 4500+002e+0000+0000+4011+0a01+0105+c612+0003 = 1565a -> 565b, complement a9a4.
        probe.header_checksum = !fold(probe.header_sum());
        assert_eq!(u16::from_be(probe.header_checksum), 0xa9a4);
        // 0a01+0105+c612+0003+0011+001a + 0406+0009+001a + 0003+0006 = d578, complement 2a87.
        assert_eq!(u16::from_be(!fold(probe.udp_sum())), 0x2a87);
        probe.seal(false);
        assert_eq!((u16::from_be(probe.header_checksum), u16::from_be(probe.udp_checksum)), (0xa9a4, 0x2a87));
        // TCP: 17 -> 6, both lengths out, TCP's 1a in, flags 5010 and window ffff: d578-11-1a-1a+6+1a+5010+ffff =
        // 22562 -> 2564, complement da9b.
        probe.protocol = TCP;
        (probe.udp_length, probe.udp_checksum) = (0, 0);
        probe.words = [0x5010_u16.to_be(), 0xffff, 0, 0];
        probe.seal(false);
        assert_eq!({ probe.words[2] }, 0xda9b_u16.to_be());
        assert!(probe.is_sealed(false));
        probe.ttl -= 1;
        assert!(!probe.is_sealed(false));
    }

    #[test]
    fn times_are_kept_to_two_per_cent() {
        for time in [0, 1, 63, 64, 127, 128, 129, 999, 123_456_789, u64::MAX >> 1] {
            let slot = slot_of(time);
            assert!(slot < SLOTS, "{time}: {slot}");
            let (from, to) = (time_of(slot), time_of(slot + 1));
            assert!(from <= time && time < to, "{time}: {slot}: {from} to {to}");
            assert!(to - from <= (from / 64).max(1), "{time}: {from} to {to}");
        }
    }
}
