//! VLAN tags (IEEE 802.1Q and 802.1ad): which VLAN a frame is in, and the bytes that say so.

/// The tags of a frame, at most two, as they lie behind its MACs: EtherType and tag, EtherType and tag, outermost
/// first; zeroes where there is none.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tags(pub u64);

/// Priority and drop eligibility, in front of the VLAN's number.
const PRIORITY: u16 = 0xf000;
/// As it lies on the wire.
const PRIORITY_BITS: u16 = PRIORITY.to_be();

/// Bytes of one tag.
pub const TAG: usize = 4;

impl Tags {
    /// No tag.
    pub const NONE: Self = Self(0);

    /// From what lies on the wire, 16 bits at a time in network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn of_wire(words: [u16; 4]) -> Self {
        let [a, b, c, d] = [words[0] as u64, words[1] as u64, words[2] as u64, words[3] as u64];
        Self(if cfg!(target_endian = "little") {
            a | b << 16 | c << 32 | d << 48
        } else {
            a << 48 | b << 32 | c << 16 | d
        })
    }

    /// As it lies on the wire.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "takes the words apart")]
    pub const fn words(self) -> [u16; 4] {
        let all = self.0;
        if cfg!(target_endian = "little") {
            [all as u16, (all >> 16) as u16, (all >> 32) as u16, (all >> 48) as u16]
        } else {
            [(all >> 48) as u16, (all >> 32) as u16, (all >> 16) as u16, all as u16]
        }
    }

    /// The tag of a VLAN, or of one within another: each an `EtherType` and a number, outermost first.
    #[must_use]
    pub const fn of_vlans(outer: (u16, u16), inner: Option<(u16, u16)>) -> Self {
        let (kind, number) = match inner {
            Some((kind, number)) => (kind.to_be(), number.to_be()),
            None => (0, 0),
        };
        Self::of_wire([outer.0.to_be(), outer.1.to_be(), kind, number])
    }

    /// Whether there is none.
    #[inline(always)]
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether there are two.
    #[inline(always)]
    #[must_use]
    pub const fn is_double(self) -> bool {
        self.words()[2] != 0
    }

    /// Bytes on the wire.
    #[inline(always)]
    #[must_use]
    pub const fn length(self) -> usize {
        if self.is_empty() {
            0
        } else if self.is_double() {
            2 * TAG
        } else {
            TAG
        }
    }

    /// The VLAN they name, whatever the frame's priority.
    #[inline(always)]
    #[must_use]
    pub const fn vlan(self) -> Self {
        let priority = Self::of_wire([0, PRIORITY_BITS, 0, PRIORITY_BITS]);
        Self(self.0 & !priority.0)
    }

    /// These, with the priority that a frame came with: that of its outer tag where it had only one.
    #[inline(always)]
    #[must_use]
    pub const fn with_priority_of(self, came: Self) -> Self {
        let [_, outer, has_inner, inner] = came.words();
        let outer = outer & PRIORITY_BITS;
        let inner = if has_inner == 0 { outer } else { inner & PRIORITY_BITS };
        if self.is_empty() {
            self
        } else {
            let inner = if self.is_double() { inner } else { 0 };
            Self(self.0 | Self::of_wire([0, outer, 0, inner]).0)
        }
    }

    /// Those of a frame, if it is long enough to have what its EtherType announces.
    #[must_use]
    pub fn of_frame(frame: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u16::from_ne_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
        let kind = word(12)?;
        if !is_tag(kind) {
            return Some(Self::NONE);
        }
        let (tag, next) = (word(14)?, word(16)?);
        Some(if is_tag(next) {
            Self::of_wire([kind, tag, next, word(18)?])
        } else {
            Self::of_wire([kind, tag, 0, 0])
        })
    }
}

/// Whether an EtherType, as it lies on the wire, announces a tag.
#[inline(always)]
#[must_use]
pub const fn is_tag(kind: u16) -> bool {
    kind == crate::wire::ETHERTYPE_VLAN.to_be() || kind == crate::wire::ETHERTYPE_QINQ.to_be()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// VLAN 5, and 7 within 100, each with a priority.
    const SINGLE: [u8; 4] = [0x81, 0, 0x60, 5];
    const DOUBLE: [u8; 8] = [0x88, 0xa8, 0xa0, 100, 0x81, 0, 0x40, 7];

    fn frame(tags: &[u8]) -> ([u8; 32], usize) {
        let mut frame = [0xee; 32];
        frame[12..12 + tags.len()].copy_from_slice(tags);
        frame[12 + tags.len()..][..2].copy_from_slice(&[8, 0]);
        (frame, 14 + tags.len())
    }

    #[test]
    fn tags_are_the_bytes_of_the_frame() {
        for (tags, vlan) in [
            (&SINGLE[..], Tags::of_vlans((0x8100, 5), None)),
            (&DOUBLE[..], Tags::of_vlans((0x88a8, 100), Some((0x8100, 7)))),
            (&[], Tags::NONE),
        ] {
            let (frame, length) = frame(tags);
            let seen = Tags::of_frame(&frame[..length]).expect("a whole frame");
            assert_eq!((seen.length(), seen.vlan()), (tags.len(), vlan));
            let mut bytes = [0; 8];
            bytes[..tags.len()].copy_from_slice(tags);
            assert_eq!(seen.0.to_ne_bytes(), bytes);
            if !tags.is_empty() {
                assert_eq!(Tags::of_frame(&frame[..length - 4]), None, "it ends within a tag");
            }
        }
    }

    #[test]
    fn the_priority_goes_along() {
        let of = |tags: &[u8]| Tags::of_frame(&frame(tags).0).expect("a whole frame");
        let (five, seven) = (Tags::of_vlans((0x8100, 9), None), of(&DOUBLE).vlan());
        assert_eq!(five.with_priority_of(of(&SINGLE)), of(&[0x81, 0, 0x60, 9]));
        assert_eq!(five.with_priority_of(of(&DOUBLE)), of(&[0x81, 0, 0xa0, 9]));
        assert_eq!(seven.with_priority_of(of(&DOUBLE)), of(&DOUBLE));
        assert_eq!(seven.with_priority_of(of(&SINGLE)), of(&[0x88, 0xa8, 0x60, 100, 0x81, 0, 0x60, 7]));
        assert_eq!(Tags::NONE.with_priority_of(of(&SINGLE)), Tags::NONE);
        assert_eq!(five.with_priority_of(Tags::NONE), five);
    }
}
