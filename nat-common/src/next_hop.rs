//! Where a translated packet goes: an index in the flow, the neighbour here, so that a new MAC
//! or a link that went down acts on every live flow in one write.

use crate::vlan::Tags;

/// A neighbour behind an interface.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NextHop {
    /// MAC of the neighbour.
    pub destination: [u8; 6],
    /// MAC of the interface.
    pub source: [u8; 6],
    /// Interface index.
    pub ifindex: u32,
    /// Slot of the interface in the device map.
    pub port: u16,
    /// [`NextHop::VALID`], [`NextHop::STACK`], [`NextHop::CLAMP`].
    pub flags: u16,
    /// Largest IPv4 packet that fits, bytes.
    pub mtu: u32,
    /// Tags of the interface's VLAN, to be put in front of what leaves by it.
    pub tags: Tags,
}

impl NextHop {
    /// Nobody's.
    pub const NONE: Self =
        Self { destination: [0; 6], source: [0; 6], ifindex: 0, port: 0, flags: 0, mtu: 0, tags: Tags::NONE };
    /// The neighbour is resolved and the link is up; otherwise packets go to the daemon untouched.
    pub const VALID: u16 = 1;
    /// The interface takes no redirected frames (a veth whose peer has no NAPI, a driver without
    /// `ndo_xdp_xmit`): translate on the tc hook and send by the stack's transmit path.
    pub const STACK: u16 = 2;
    /// SYNs are the daemon's: their MSS is clamped, or they may begin a connection that it gives to another of a virtual
    /// server's. The same bit as [`crate::abi::Interface::CLAMP`], so that both are asked at once.
    #[expect(clippy::cast_possible_truncation, reason = "one of the lower bits")]
    pub const CLAMP: u16 = crate::abi::Interface::CLAMP as u16;
}

const _: () = assert!(size_of::<NextHop>() == 32);
// First, and one behind the other, as in a frame.
const _: () =
    assert!(core::mem::offset_of!(NextHop, destination) == 0 && core::mem::offset_of!(NextHop, source) == 6);
