//! Internet checksums (RFC 1071) and their incremental update (RFC 1624).
//!
//! Two types keep the two meanings apart: a [`Sum`] is a one's-complement sum on its way, a
//! checksum field is its complement. All arithmetic is done on words as they lie in memory, in
//! whatever byte order the machine has: RFC 1071 section 2 (B) shows that the result, stored the
//! same way, is right in either.

/// A one's-complement sum, not yet folded to 16 bits; of at most 2^15 words of 32 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// The empty sum.
    pub const ZERO: Self = Self(0);

    /// Adds a 16-bit word as it lies in memory.
    #[inline(always)]
    #[must_use]
    pub const fn add_u16(self, word: u16) -> Self {
        Self(self.0 + word as u64)
    }

    /// Adds a 32-bit word (an address, say) as it lies in memory.
    #[inline(always)]
    #[must_use]
    pub const fn add_u32(self, word: u32) -> Self {
        // 2^16 is 1 in one's-complement arithmetic modulo 2^16 - 1: the halves may be added apart,
        // or together and folded later.
        Self(self.0 + word as u64)
    }

    /// Adds what another sum holds.
    #[inline(always)]
    #[must_use]
    pub const fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// Takes a 16-bit word away: adds its complement (RFC 1624 equation 3).
    #[inline(always)]
    #[must_use]
    pub const fn subtract_u16(self, word: u16) -> Self {
        self.add_u16(!word)
    }

    /// Takes a 32-bit word away.
    #[inline(always)]
    #[must_use]
    pub const fn subtract_u32(self, word: u32) -> Self {
        self.add_u32(!word)
    }

    /// Adds bytes that begin at an even offset of what is summed; an odd last byte is padded
    /// with zero (RFC 1071 section 4.1).
    #[must_use]
    pub fn add_bytes(self, bytes: &[u8]) -> Self {
        let mut sum = self;
        let (words, rest) = bytes.as_chunks();
        for &word in words {
            sum = sum.add_u16(u16::from_ne_bytes(word));
        }
        if let [last] = rest {
            sum = sum.add_u16(u16::from_ne_bytes([*last, 0]));
        }
        Self(u64::from(sum.fold()))
    }

    /// The sum folded to 16 bits, carries added back in.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "no carry is left after the third fold")]
    pub const fn fold(self) -> u16 {
        // Less than 2^32 + 2^15: two more steps suffice.
        let sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = (sum & 0xffff) + (sum >> 16);
        sum as u16
    }

    /// The checksum field that closes this sum.
    #[inline(always)]
    pub const fn checksum(self) -> u16 {
        !self.fold()
    }
}

/// How a checksum changes when covered words change: the folded sum of `~old + new`.
///
/// Computed once when a flow is opened, applied to every packet of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(pub u16);

impl Delta {
    /// Nothing changes.
    pub const NONE: Self = Self(0);

    /// The change of a sum that lost and gained words.
    #[inline(always)]
    pub const fn of(sum: Sum) -> Self {
        Self(sum.fold())
    }

    /// The checksum field after the change: RFC 1624 equation 3, `HC' = ~(~HC + ~m + m')`.
    ///
    /// A delta of zero leaves the field untouched to the bit, also where it is not valid.
    #[inline(always)]
    pub const fn apply(self, checksum: u16) -> u16 {
        if self.0 == 0 {
            return checksum;
        }
        Sum::ZERO.subtract_u16(checksum).add_u16(self.0).checksum()
    }

    /// As [`Delta::apply`] for UDP, where 0 on the wire means "none computed": that stays 0, and
    /// a checksum computed as 0 is sent as 0xffff (RFC 768).
    #[inline(always)]
    pub const fn apply_udp(self, checksum: u16) -> u16 {
        if checksum == 0 {
            return 0;
        }
        match self.apply(checksum) {
            0 => 0xffff,
            other => other,
        }
    }
}

/// Sum of the IPv4 pseudo-header. `length` is of the transport header and data, in host order.
#[inline(always)]
pub const fn pseudo_header(source: u32, destination: u32, protocol: u8, length: u16) -> Sum {
    Sum::ZERO.add_u32(source).add_u32(destination).add_u16((protocol as u16).to_be()).add_u16(length.to_be())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// behaviour CKS-04: the example of RFC 1624 section 4, where equation 2 of RFC 1141 errs.
    #[test]
    fn cks_04_rfc_1624_example() {
        let delta = Delta::of(Sum::ZERO.subtract_u16(0x5555).add_u16(0x3285));
        assert_eq!(delta.apply(0xdd2f), 0x0000);
    }

    /// behaviour CKS-02: a computed zero is sent as 0xffff over UDP.
    #[test]
    fn cks_02_udp_zero_is_sent_as_all_ones() {
        let delta = Delta::of(Sum::ZERO.subtract_u16(0x5555).add_u16(0x3285));
        assert_eq!(delta.apply_udp(0xdd2f), 0xffff);
    }

    /// As large as a sum can be, and every carry there is.
    #[test]
    fn a_fold_is_the_remainder() {
        for sum in
            [0, 0xffff, 0x1_0000, 0x1_fffe, 0xffff_ffff, 0x1_0000_7fff, (1 << 47) - 1, 0x7fff_ffff_8001]
        {
            let folded = u64::from(Sum(sum).fold());
            assert_eq!(folded % 0xffff, sum % 0xffff, "{sum:#x}");
            assert_eq!(folded == 0, sum == 0, "{sum:#x}");
        }
    }

    /// behaviour CKS-01 and CKS-09.
    #[test]
    fn cks_01_zero_stays_and_cks_09_no_change_changes_nothing() {
        assert_eq!(Delta(0x1234).apply_udp(0), 0);
        assert_eq!(Delta::NONE.apply(0x0000), 0x0000);
        assert_eq!(Delta::NONE.apply(0xffff), 0xffff);
    }
}
