//! What the program and the daemon must agree on: names, capacities, layouts.

use crate::vlan::Tags;

/// Grows when maps that are pinned, or the layout of one, change; pins of another version are not taken over.
pub const VERSION: u32 = 10;

/// Name of the XDP program.
pub const PROGRAM_XDP: &str = "natgw_xdp";
/// Name of the tc program.
pub const PROGRAM_TC: &str = "natgw_tc";

/// Name of the XDP program that tells what it does.
pub const PROGRAM_XDP_TRACED: &str = "natgw_xdp_traced";
/// Name of the tc program that tells what it does.
pub const PROGRAM_TC_TRACED: &str = "natgw_tc_traced";

/// Name of the program that keeps the gateway's own packets out of its clients' flows.
pub const PROGRAM_OWN: &str = "natgw_own";

/// Name of the program that tells the clock.
pub const PROGRAM_CLOCK: &str = "natgw_clock";
/// Name of the program that hands frames to the stack.
pub const PROGRAM_INJECT: &str = "natgw_inject";

/// Put before a frame that the tc hook must translate: should its flow end between the two hooks,
/// the frame must not go on untranslated.
pub const MARK: u32 = 0x6e61_7467;
/// Bytes of the mark.
pub const MARK_LENGTH: usize = size_of::<u32>();

/// Interfaces natgw can serve at once.
pub const INTERFACES: u32 = 64;
/// Queues of one interface that can have a socket.
pub const QUEUES: u32 = 64;
/// Slots of the interface table, indexed by `ifindex % INTERFACE_SLOTS`.
pub const INTERFACE_SLOTS: u32 = 4096;
/// Next hops known at once.
pub const NEXT_HOPS: u32 = 65_536;
/// Prefixes in each selector trie.
pub const SELECTOR_PREFIXES: u32 = 65_536;
/// One-to-one prefixes, both directions counted.
pub const STATICS: u32 = 16_384;
/// Prefixes of routes that set an MTU.
pub const NARROW_PREFIXES: u32 = 16_384;
/// External endpoints of forwards, port ranges as prefixes.
pub const FORWARD_PREFIXES: u32 = 16_384;
/// Addresses of the gateway and of its pools.
pub const LOCAL_ADDRESSES: u32 = 131_072;

/// What the program knows of an interface it is attached to. Indexed by ifindex (see
/// [`INTERFACE_SLOTS`]); `ifindex == 0` marks a free slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Whose slot this is: two interfaces must not share one.
    pub ifindex: u32,
    /// First slot of its queues in the socket map.
    pub first_socket: u32,
    /// Queues with a socket.
    pub queues: u32,
    /// [`Interface::OUTSIDE`], [`Interface::VIRTUAL`], [`Interface::STACK`].
    pub flags: u32,
    /// Its MAC: frames for another are not natgw's.
    pub mac: [u8; 6],
    /// Its slot in the device map.
    pub port: u16,
    /// Its MTU, bytes: a larger packet is several, merged or not yet cut apart.
    pub mtu: u32,
    /// The device that its frames pass: itself, or what its VLAN is on.
    pub device: u32,
    /// The tags of its VLAN.
    pub tags: Tags,
}

impl Interface {
    /// Faces the outside.
    pub const OUTSIDE: u32 = 1;
    /// Its driver hands up frames with partial checksums (veth, tap, virtio).
    pub const VIRTUAL: u32 = 2;
    /// Takes no redirected frames: see [`crate::next_hop::NextHop::STACK`].
    pub const STACK: u32 = 4;
    /// XDP runs on skbs here.
    pub const GENERIC: u32 = 8;
    /// Has no IPv4 address: a DHCP client may be asking for one.
    pub const UNNUMBERED: u32 = 16;
    /// SYNs that come in by it have their MSS clamped: they go to the daemon.
    pub const CLAMP: u32 = 32;
    /// It is a VLAN: its frames have tags.
    pub const VLAN: u32 = 64;
}

/// Key of the table of VLANs.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VlanKey {
    /// Without priorities, see [`Tags::vlan`].
    pub tags: Tags,
    /// The device that the frame came in by.
    pub device: u32,
    /// Zero.
    pub pad: u32,
}

/// What the program knows of an address that is the gateway's, or that natgw translates to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LocalAddress {
    /// [`LocalAddress::EXTERNAL`], …
    pub flags: u32,
    /// Lowest port that mappings may have, host byte order.
    pub first_port: u16,
    /// Highest port that mappings may have, host byte order.
    pub last_port: u16,
}

impl LocalAddress {
    /// Mappings or forwards may live on it: what no socket wants goes to the daemon.
    pub const EXTERNAL: u32 = 1;
    /// Port forwards exist on it: ports outside the range may be natgw's too.
    pub const FORWARDS: u32 = 2;
    /// No interface has it: it is only routed to the gateway.
    pub const ABSENT: u32 = 4;
}

/// Key of the trie of forwards: an external endpoint, or a range of ports as a prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardKey {
    /// External address, network byte order.
    pub address: u32,
    /// IP protocol, network byte order.
    pub protocol: u16,
    /// External port, network byte order.
    pub port: u16,
}

/// Key of the selector tries: the generation in the prefix makes a reload atomic.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SelectorKey {
    /// Which rule set (all 32 bits belong to every prefix).
    pub generation: u32,
    /// Address, network byte order.
    pub address: u32,
}

/// Key of the one-to-one trie.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaticKey {
    /// Which rule set.
    pub generation: u16,
    /// 1: keyed by the external address (inbound), 0: by the internal (outbound).
    pub inbound: u16,
    /// Address, network byte order.
    pub address: u32,
}

/// Value of the one-to-one trie: `new = (old & host_mask) | network`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaticValue {
    /// The other side's prefix, network byte order.
    pub network: u32,
    /// Bits kept from the address, network byte order.
    pub host_mask: u32,
}

/// Settings the program reads on a miss; one entry, changed by the daemon in one write a field.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Rule set in force in the tries.
    pub generation: u32,
    /// [`Settings::DROP_UNMATCHED_OUTSIDE`], …
    pub flags: u32,
    /// Grants of another epoch are void, see [`crate::delegate::Grant`].
    pub epoch: u32,
    /// Not 0: the way out of a packet depends on where it came in and goes to, and on nothing else.
    pub by_destination: u32,
    /// What the flow table's hash was seeded with, for the next daemon's program.
    pub secret: crate::table::Secret,
    /// Rules whose target is "none" (exempt) whatever the egress.
    pub exempt: crate::classify::RuleSet,
    /// Rules that carry TCP, UDP, ICMP, and other protocols, in this order.
    pub protocols: [crate::classify::RuleSet; 4],
    /// Rules that may apply to what arrives on an outside interface for another network.
    pub inward: crate::classify::RuleSet,
}

impl Settings {
    /// `[unmatched] outside = "drop"`.
    pub const DROP_UNMATCHED_OUTSIDE: u32 = 1;
    /// A rule tracks what it does not translate: an error or a fragment from outside to an
    /// inside host may belong to a session.
    pub const TRACKS: u32 = 2;
    /// `[unmatched] forged = "pass"`.
    pub const PASS_FORGED: u32 = 4;
    /// There are one-to-one rules.
    pub const ONE_TO_ONE: u32 = 8;
}

/// Pushed by the program when a TCP session changes in a way that changes its timer.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionEvent {
    /// Slot of the session in the flow table.
    pub session: u32,
    /// What the program saw: bits of [`crate::tcp::Seen`] in this direction.
    pub seen: u8,
    /// [`crate::Direction`] as a number.
    pub direction: u8,
    /// Zero.
    pub pad: u16,
}

/// Pushed by the program with the first session that it opens while the daemon sleeps: [`crate::report::Report`]s do
/// not wake it. It says nothing else.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WakeEvent {
    /// Zero.
    pub pad: u32,
}

/// Bytes of a packet that [`TooBigEvent`] carries: Ethernet, the longest IPv4 header, and the eight bytes behind it that
/// an ICMP error quotes at least (RFC 792).
pub const HEAD: usize = 14 + 60 + 8 + 2;

/// Pushed by the tc program when a merged packet's segments do not fit the way out and may not be cut: its sender is to
/// be told (RFC 1191).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooBigEvent {
    /// The interface it came in by.
    pub ifindex: u32,
    /// What fits the way out.
    pub mtu: u32,
    /// How it begins, as it came.
    pub head: [u8; HEAD],
}

const _: () = assert!(size_of::<Interface>() == 40);
const _: () = assert!(size_of::<VlanKey>() == 16);
const _: () = assert!(size_of::<LocalAddress>() == 8);
const _: () = assert!(size_of::<ForwardKey>() == 8);
const _: () = assert!(size_of::<SelectorKey>() == 8);
const _: () = assert!(size_of::<StaticKey>() == 8);
const _: () = assert!(size_of::<StaticValue>() == 8);
const _: () = assert!(size_of::<Settings>() == 16 + 16 + 6 * 32);
const _: () = assert!(size_of::<SessionEvent>() == 8);
const _: () = assert!(size_of::<TooBigEvent>() == 8 + HEAD);

#[cfg(feature = "user")]
mod user {
    /// Declares map keys and values to be plain bytes without padding.
    macro_rules! plain {
        ($($type:ty),* $(,)?) => {$(
            // SAFETY: `repr(C)`, integers only, padding named and asserted away by the sizes above.
            unsafe impl aya::Pod for $type {}
            // SAFETY: as above.
            unsafe impl bytemuck::Zeroable for $type {}
            // SAFETY: as above.
            unsafe impl bytemuck::Pod for $type {}
        )*};
    }
    plain!(
        super::Interface,
        super::VlanKey,
        crate::vlan::Tags,
        super::LocalAddress,
        super::ForwardKey,
        super::SelectorKey,
        super::StaticKey,
        super::StaticValue,
        super::Settings,
        super::SessionEvent,
        super::TooBigEvent,
        crate::classify::RuleSet,
        crate::delegate::GrantKey,
        crate::delegate::Grant,
        crate::flow::FlowKey,
        crate::flow::FlowValue,
        crate::next_hop::NextHop,
        crate::table::FlowLine,
        crate::table::SessionLines,
        crate::table::Secret,
        crate::trace::Header,
        crate::trace::Spent,
        crate::trace::Tracing,
    );
}
