//! The frames that are sent.

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
}
