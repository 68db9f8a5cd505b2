//! What the bench and its eBPF programs agree on.
#![no_std]
#![expect(
    clippy::cast_possible_truncation,
    reason = "what is cut off is a flow's number or a time's octave, on purpose"
)]
#![expect(clippy::inline_always, reason = "no calls on the way of a frame: each costs six nanoseconds")]

mod probe;
mod times;

pub use probe::{Probe, TCP, UDP, fold};
pub use times::{SLOTS, slot_of, time_of};

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
