//! The headers natgw reads and writes, as they lie on the wire.
//!
//! All are `packed(2)`: an IPv4 header behind a 14-byte Ethernet header is two-byte aligned, and
//! the BPF target loads such fields in whole words where `packed` would load byte by byte.
//! Every multi-byte field is in network byte order.

/// A header that may be laid over any bytes: no padding, no invalid values, alignment at most 2.
///
/// # Safety
/// Implementors must be `repr(C, packed(2))` (or alignment 1 or 2) and valid for every bit pattern.
pub unsafe trait Wire: Copy {}

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of an 802.1Q tag.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// EtherType of an 802.1ad (outer) tag.
pub const ETHERTYPE_QINQ: u16 = 0x88a8;

/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Protocol number of UDP-Lite, whose checksum covers the pseudo-header as UDP's does.
pub const UDPLITE: u8 = 136;

/// Ethernet II header, 14 bytes.
#[repr(C, packed(2))]
#[derive(Clone, Copy, Debug)]
pub struct Ethernet {
    /// Destination MAC.
    pub destination: [u8; 6],
    /// Source MAC.
    pub source: [u8; 6],
    /// EtherType.
    pub kind: u16,
}

/// One 802.1Q tag behind the Ethernet header: 4 bytes, the next EtherType included.
#[repr(C, packed(2))]
#[derive(Clone, Copy, Debug)]
pub struct Vlan {
    /// Priority (3 bits), drop eligible (1), VLAN id (12).
    pub tag: u16,
    /// EtherType of what follows.
    pub kind: u16,
}

/// IPv4 header without options (RFC 791), 20 bytes.
#[repr(C, packed(2))]
#[derive(Clone, Copy, Debug)]
pub struct Ipv4 {
    /// Version (4 bits) and header length in 32-bit words (4 bits).
    pub version_and_length: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Length of header and payload in bytes.
    pub total_length: u16,
    /// Identification.
    pub id: u16,
    /// Flags (3 bits) and fragment offset in units of 8 bytes (13 bits).
    pub fragment: u16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol number of the payload.
    pub protocol: u8,
    /// Header checksum.
    pub checksum: u16,
    /// Source address.
    pub source: u32,
    /// Destination address.
    pub destination: u32,
}

/// The "more fragments" flag in host byte order.
pub const MORE_FRAGMENTS: u16 = 0x2000;
/// The "don't fragment" flag in host byte order.
pub const DONT_FRAGMENT: u16 = 0x4000;
/// Mask of the fragment offset in host byte order.
pub const FRAGMENT_OFFSET: u16 = 0x1fff;

impl Ipv4 {
    /// Header length in bytes, options included, as the header states it.
    #[inline(always)]
    pub fn header_length(&self) -> usize {
        ((self.version_and_length & 0x0f) as usize) * 4
    }
}

/// TCP header without options (RFC 9293), 20 bytes.
#[repr(C, packed(2))]
#[derive(Clone, Copy, Debug)]
pub struct Tcp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement number.
    pub acknowledgement: u32,
    /// Data offset in 32-bit words (upper 4 bits) and reserved bits.
    pub data_offset: u8,
    /// CWR ECE URG ACK PSH RST SYN FIN.
    pub flags: u8,
    /// Window.
    pub window: u16,
    /// Checksum.
    pub checksum: u16,
    /// Urgent pointer.
    pub urgent: u16,
}

/// UDP header (RFC 768), 8 bytes.
#[repr(C, packed(2))]
#[derive(Clone, Copy, Debug)]
pub struct Udp {
    /// Source port.
    pub source: u16,
    /// Destination port.
    pub destination: u16,
    /// Length of header and data in bytes.
    pub length: u16,
    /// Checksum; 0 means none was computed.
    pub checksum: u16,
}

/// ICMP header (RFC 792), 8 bytes; `id` and `sequence` have that meaning in queries only.
#[repr(C, packed(2))]
#[derive(Clone, Copy, Debug)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum over the ICMP message, without a pseudo-header.
    pub checksum: u16,
    /// Query identifier.
    pub id: u16,
    /// Query sequence number.
    pub sequence: u16,
}

/// ICMP echo reply.
pub const ICMP_ECHO_REPLY: u8 = 0;
/// ICMP destination unreachable.
pub const ICMP_UNREACHABLE: u8 = 3;
/// ICMP redirect.
pub const ICMP_REDIRECT: u8 = 5;
/// ICMP echo request.
pub const ICMP_ECHO_REQUEST: u8 = 8;
/// ICMP time exceeded.
pub const ICMP_TIME_EXCEEDED: u8 = 11;
/// ICMP parameter problem.
pub const ICMP_PARAMETER_PROBLEM: u8 = 12;
/// ICMP timestamp request.
pub const ICMP_TIMESTAMP_REQUEST: u8 = 13;
/// ICMP timestamp reply.
pub const ICMP_TIMESTAMP_REPLY: u8 = 14;

// SAFETY: `repr(C, packed(2))`, only integer fields.
unsafe impl Wire for Ethernet {}
// SAFETY: as above.
unsafe impl Wire for Vlan {}
// SAFETY: as above.
unsafe impl Wire for Ipv4 {}
// SAFETY: as above.
unsafe impl Wire for Tcp {}
// SAFETY: as above.
unsafe impl Wire for Udp {}
// SAFETY: as above.
unsafe impl Wire for Icmp {}
// SAFETY: bytes have alignment 1 and no invalid values.
unsafe impl Wire for u8 {}
// SAFETY: alignment 2, no invalid values.
unsafe impl Wire for u16 {}
// SAFETY: as above.
unsafe impl<const N: usize> Wire for [u16; N] {}
