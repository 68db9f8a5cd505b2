//! Frames to translate, and checksums the long way: over every byte, with nothing of nat-common's arithmetic.

#[cfg(miri)]
mod even;

use nat_common::{
    FlowKey, FlowValue, Parsed, Realm,
    flow::Rewrite,
    frame::{Frame as _, SliceFrame},
    parse::{Frames, parse},
    translate, wire,
};

/// Where the transport checksum lies in the transport header, if the protocol has one.
pub fn checksum_field(protocol: u8) -> Option<usize> {
    match protocol {
        wire::TCP => Some(16),
        wire::UDP | wire::UDPLITE => Some(6),
        wire::ICMP => Some(2),
        _ => None,
    }
}

/// The one's-complement sum of bytes as big-endian words.
pub fn sum(bytes: &[u8]) -> u32 {
    let mut sum = 0u32;
    for (index, byte) in bytes.iter().enumerate() {
        sum += u32::from(*byte) << if index % 2 == 0 { 8 } else { 0 };
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

/// The checksum that the transport header of an Ethernet frame should have; its field counts as 0.
pub fn right_checksum(frame: &[u8]) -> Option<u16> {
    let ip = &frame[14..];
    let (header, total) = (usize::from(ip[0] & 0x0f) * 4, usize::from(u16::from_be_bytes([ip[2], ip[3]])));
    let protocol = ip[9];
    let field = checksum_field(protocol)?;
    let mut segment = ip[header..total].to_vec();
    segment[field..field + 2].fill(0);
    let mut all = sum(&segment);
    if protocol != wire::ICMP {
        let length = u32::try_from(segment.len()).expect("a packet's length");
        all += sum(&ip[12..20]) + u32::from(protocol) + length;
    }
    let all = (all & 0xffff) + (all >> 16);
    let all = u16::try_from((all & 0xffff) + (all >> 16)).expect("folded");
    // To UDP a zero says that there is none, and to ICMP both zeros are right unless all else is zero.
    Some(if !all == 0 && protocol != wire::TCP { 0xffff } else { !all })
}

/// The transport checksum that a frame has.
pub fn checksum(frame: &[u8]) -> Option<u16> {
    let at = 14 + usize::from(frame[14] & 0x0f) * 4 + checksum_field(frame[23])?;
    Some(u16::from_be_bytes([frame[at], frame[at + 1]]))
}

/// Writes the transport checksum of a frame.
pub fn set_checksum(frame: &mut [u8], checksum: u16) {
    let field = checksum_field(frame[23]).expect("a protocol with a checksum");
    let at = 14 + usize::from(frame[14] & 0x0f) * 4 + field;
    frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// A packet to be.
#[derive(Clone, Debug)]
pub struct Sample {
    pub protocol: u8,
    /// ICMP type.
    pub kind: u8,
    pub addresses: [[u8; 4]; 2],
    pub ports: [u16; 2],
    pub ttl: u8,
    pub option_words: u8,
    pub payload: Vec<u8>,
}

impl Sample {
    /// The frame, every checksum right.
    pub fn frame(&self) -> Vec<u8> {
        let mut segment = match self.protocol {
            wire::ICMP => {
                let mut header = vec![self.kind, 0, 0, 0];
                header.extend(self.ports[0].to_be_bytes());
                header.extend([0, 1]);
                header
            }
            wire::TCP => {
                let mut header = self.both_ports();
                header.extend([0x11, 0x22, 0x33, 0x44, 0, 0, 0, 7, 0x50, 0x18, 0xff, 0xf0, 0, 0, 0, 0]);
                header
            }
            wire::UDP => {
                let mut header = self.both_ports();
                header.extend(u16::try_from(8 + self.payload.len()).expect("short").to_be_bytes());
                header.extend([0, 0]);
                header
            }
            wire::UDPLITE => {
                let mut header = self.both_ports();
                header.extend([0; 4]);
                header
            }
            _ => Vec::new(),
        };
        segment.extend(&self.payload);
        let header = 20 + usize::from(self.option_words) * 4;
        let total = u16::try_from(header + segment.len()).expect("short");
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        frame.extend([0x45 + self.option_words, 0]);
        frame.extend(total.to_be_bytes());
        frame.extend([0x12, 0x34, 0x40, 0, self.ttl, self.protocol, 0, 0]);
        frame.extend(self.addresses.as_flattened());
        frame.resize(14 + header, 1);
        let complement = 0xffff - sum(&frame[14..]);
        frame[24..26].copy_from_slice(&u16::try_from(complement).expect("folded").to_be_bytes());
        frame.extend(segment);
        if let Some(right) = right_checksum(&frame) {
            set_checksum(&mut frame, right);
        }
        frame
    }

    fn both_ports(&self) -> Vec<u8> {
        self.ports.map(u16::to_be_bytes).as_flattened().to_vec()
    }
}

/// Parses a frame that must be good.
pub fn parsed(frame: &mut [u8]) -> Parsed {
    let view = SliceFrame::new(frame).expect("vectors begin at even addresses");
    match parse(&view, Realm::Inside) {
        Frames::Ipv4(parsed) => parsed,
        other => panic!("{other:?}"),
    }
}

/// The rewrite towards other addresses and ports that is possible for a key: an ICMP query has one identifier, other
/// protocols may have none.
pub fn towards(key: &FlowKey, addresses: [[u8; 4]; 2], ports: [u16; 2]) -> Rewrite {
    let [source, destination] = addresses.map(u32::from_ne_bytes);
    let [source_port, destination_port] = match (key.protocol, key.query) {
        (wire::TCP | wire::UDP | wire::UDPLITE, _) => ports.map(u16::to_be),
        (wire::ICMP, 1) => [ports[0].to_be(), 0],
        (wire::ICMP, _) => [0, ports[0].to_be()],
        _ => [0, 0],
    };
    Rewrite { source, destination, source_port, destination_port }
}

/// Rewrites a frame; the TTL stays.
pub fn rewrite(frame: &mut [u8], rewrite: &Rewrite) {
    let parsed = parsed(frame);
    let value = FlowValue::translate(&parsed.key, rewrite, 0);
    let view = SliceFrame::new(frame).expect("vectors begin at even addresses");
    translate::rewrite(&view, &view.skip(parsed.transport), &parsed, &value).expect("the headers are there");
}
