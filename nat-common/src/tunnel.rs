//! A packet inside another (RFC 2003): the header that goes before it.

use crate::checksum::Sum;
use crate::wire::{self, Ipv4};

/// Bytes that an encapsulated packet is longer.
pub const OVERHEAD: u16 = 20;
const _: () = assert!(size_of::<Ipv4>() == OVERHEAD as usize);

/// The TTL of the way between the ends of a tunnel.
const TTL: u8 = 64;
/// IPv4 in IPv4.
const IPIP: u8 = 4;

/// The header before a packet whose header is `inner`; addresses and identification in network byte order.
///
/// DSCP and ECN are the packet's, as is the mark that it must not be cut (RFC 2003 section 3.1). What may not be cut
/// needs no identification (RFC 6864 section 4.1).
#[inline(always)]
#[must_use]
pub fn outer(inner: &Ipv4, source: u32, destination: u32, id: u16) -> Ipv4 {
    let dont_fragment = inner.fragment & wire::DONT_FRAGMENT.to_be();
    let mut header = Ipv4 {
        version_and_length: 0x45,
        tos: inner.tos,
        total_length: u16::from_be(inner.total_length).wrapping_add(OVERHEAD).to_be(),
        id: if dont_fragment == 0 { id } else { 0 },
        fragment: dont_fragment,
        ttl: TTL,
        protocol: IPIP,
        checksum: 0,
        source,
        destination,
    };
    header.checksum = Sum::ZERO
        .add_u16(u16::from_ne_bytes([header.version_and_length, header.tos]))
        .add_u16(header.total_length)
        .add_u16(header.id)
        .add_u16(header.fragment)
        .add_u16(u16::from_ne_bytes([header.ttl, header.protocol]))
        .add_u32(source)
        .add_u32(destination)
        .checksum();
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(header: &Ipv4) -> [u8; OVERHEAD as usize] {
        // SAFETY: twenty bytes of integers without padding.
        unsafe { core::mem::transmute(*header) }
    }

    #[test]
    fn the_header_says_what_is_inside() {
        let inner = Ipv4 {
            version_and_length: 0x46,
            tos: 0xb9,
            total_length: 1000u16.to_be(),
            id: 7,
            fragment: (wire::DONT_FRAGMENT | 5).to_be(),
            ttl: 9,
            protocol: 6,
            checksum: 1,
            source: 1,
            destination: 2,
        };
        let header = outer(&inner, 0x0102_0304, 0x0506_0708, 0xabcd);
        assert_eq!((header.tos, u16::from_be(header.total_length), header.id), (0xb9, 1020, 0));
        assert_eq!((u16::from_be(header.fragment), header.protocol), (wire::DONT_FRAGMENT, 4));
        assert_eq!(Sum::ZERO.add_bytes(&bytes(&header)).fold(), 0xffff);
        let may_be_cut = Ipv4 { fragment: (wire::MORE_FRAGMENTS | 5).to_be(), ..inner };
        let header = outer(&may_be_cut, 0x0102_0304, 0x0506_0708, 0xabcd);
        assert_eq!((header.fragment, header.id), (0, 0xabcd));
        assert_eq!(Sum::ZERO.add_bytes(&bytes(&header)).fold(), 0xffff);
    }
}
