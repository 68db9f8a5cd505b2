//! Clamping the MSS that a SYN announces, for links that are narrower than their ends know and
//! paths on which ICMP 3/4 is lost.

use nat_common::checksum::{Delta, Sum};
use nat_common::next_hop::NextHop;
use nat_common::{Parsed, tcp, wire};

use super::{Gateway, Interface};

/// Where a TCP header's options begin.
const OPTIONS: usize = 20;
/// Where its checksum is.
const CHECKSUM: usize = 16;

impl Gateway {
    /// Lowers the MSS of a SYN or SYN-ACK to what the interface it came in by and the one it
    /// leaves by allow. Every other packet stays as it is.
    pub(super) fn clamp_mss(&self, ingress: &Interface, hop: &NextHop, frame: &mut [u8], parsed: &Parsed) {
        if parsed.key.protocol != wire::TCP || parsed.tcp_flags & tcp::SYN == 0 {
            return;
        }
        let egress = self.interfaces.get(&hop.ifindex).and_then(|egress| egress.mss_clamp);
        let Some(most) = [ingress.mss_clamp, egress].into_iter().flatten().min() else { return };
        let end = parsed.network + usize::from(parsed.total_length);
        if let Some(segment) = frame.get_mut(parsed.transport..end) {
            clamp(segment, most);
        }
    }
}

/// Lowers the MSS that a segment's options announce to `most`. Options that contradict the header
/// are left to whoever gets them.
fn clamp(segment: &mut [u8], most: u16) {
    let Some(at) = find(segment) else { return };
    if u16::from_be_bytes([segment[at], segment[at + 1]]) <= most {
        return;
    }
    // The words that hold it: behind an odd number of bytes it lies in two of them.
    let words = at & !1..(at + 3) & !1;
    let before = Sum::ZERO.add_bytes(&segment[words.clone()]).fold();
    segment[at..at + 2].copy_from_slice(&most.to_be_bytes());
    let after = Sum::ZERO.add_bytes(&segment[words]).fold();
    let checksum = u16::from_ne_bytes([segment[CHECKSUM], segment[CHECKSUM + 1]]);
    let mended = Delta::of(Sum::ZERO.subtract_u16(before).add_u16(after)).apply(checksum);
    segment[CHECKSUM..CHECKSUM + 2].copy_from_slice(&mended.to_ne_bytes());
}

/// Where the MSS stands in a segment, if its options have one (RFC 9293 section 3.2).
fn find(segment: &[u8]) -> Option<usize> {
    let end = usize::from(*segment.get(12)? >> 4) * 4;
    let options = segment.get(..end)?;
    let mut at = OPTIONS;
    loop {
        match *options.get(at)? {
            0 => return None,
            1 => at += 1,
            kind => {
                let length = usize::from(*options.get(at + 1)?);
                if length < 2 || at + length > end {
                    return None;
                }
                if kind == 2 && length == 4 {
                    return Some(at + 2);
                }
                at += length;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// behaviour TCP-26: whatever the bytes, no panic, nothing but the MSS and the checksum
        /// changes, and a checksum stays as right or as wrong as it was.
        #[test]
        fn tcp_26_clamping_is_safe_and_keeps_the_sum(
            mut segment in proptest::collection::vec(any::<u8>(), 0..80),
            options in proptest::collection::vec(prop_oneof![Just(vec![1u8]), Just(vec![2, 4, 5, 180]), Just(vec![4, 2])], 0..5),
            most in 536u16..9000,
        ) {
            let options = options.concat();
            if segment.len() >= OPTIONS + options.len() {
                segment[OPTIONS..OPTIONS + options.len()].copy_from_slice(&options);
            }
            let before = segment.clone();
            clamp(&mut segment, most);
            // One's complement has two zeroes.
            let sum = |bytes: &[u8]| Sum::ZERO.add_bytes(bytes).fold() % 0xffff;
            prop_assert_eq!(sum(&before), sum(&segment));
            if let Some(at) = find(&before) {
                let value = |bytes: &[u8]| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
                prop_assert_eq!(value(&segment), value(&before).min(most));
            } else {
                prop_assert_eq!(&before, &segment);
            }
        }
    }
}
