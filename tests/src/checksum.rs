//! The Internet checksum (RFC 1071), the long way: over every byte, every time.
//!
//! natgw updates checksums incrementally. The tests must not share that arithmetic, or they would share its
//! mistakes: nothing here comes from `nat-common`.

use std::net::Ipv4Addr;

/// The ones' complement of the ones' complement sum over `parts`, taken as one run of bytes.
///
/// Over data that holds a right checksum the result is 0.
pub fn internet(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    let mut high = true;
    for byte in parts.iter().copied().flatten() {
        sum += u64::from(*byte) << if high { 8 } else { 0 };
        high = !high;
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("the sum was folded to 16 bits")
}

/// The pseudo header that TCP and UDP put before the segment (RFC 768, RFC 9293).
pub fn pseudo_header(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, length: usize) -> [u8; 12] {
    let length = u16::try_from(length).expect("an IPv4 payload fits 16 bits");
    let mut header = [0; 12];
    header[0..4].copy_from_slice(&source.octets());
    header[4..8].copy_from_slice(&destination.octets());
    header[9] = protocol;
    header[10..12].copy_from_slice(&length.to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(internet(&[&data]), !0xddf2);
    }

    #[test]
    fn an_odd_byte_counts_as_the_high_half() {
        assert_eq!(internet(&[&[0x12]]), !0x1200);
        assert_eq!(internet(&[&[0x12], &[0x34]]), !0x1234);
    }
}
