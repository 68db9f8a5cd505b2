//! Parser and translation against a slow, obviously right one: RFC 791, 768, 793 and 792 by offsets, every checksum
//! added up anew.

use nat_common::{
    FlowValue, Realm, Reason,
    frame::{Frame as _, SliceFrame},
    parse::{Frames, Kind, parse},
    translate, wire,
};

use super::{
    Bytes, header_is_right, mend_header,
    packet::{checksum_field, sum, towards},
};

pub(super) fn run(input: &[u8]) {
    let mut bytes = Bytes(input);
    let mends = bytes.byte();
    let addresses = [bytes.quad(), bytes.quad()];
    let ports = [bytes.word(), bytes.word()];
    let mut frame = bytes.0.to_vec();
    mend(&mut frame, mends);
    let before = frame.clone();
    let Some(view) = SliceFrame::new(&mut frame) else { return };
    let parsed = match parse(&view, Realm::Inside) {
        Frames::Ipv4(parsed) => parsed,
        Frames::Bad(reason) => return assert_ne!(reason, Reason::DropTable, "no reason of a parser's"),
        Frames::Other => return,
    };
    // What it lets through is well-formed by RFC 791 and RFC 1812, 5.2.2.
    let packet = &before[parsed.network..];
    let header = usize::from(packet[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    assert_eq!(packet[0] >> 4, 4, "the version");
    assert!(header >= 20 && total >= header && total <= packet.len(), "{header}, {total}, {}", packet.len());
    assert!(header_is_right(packet), "the header's checksum");
    assert_eq!(parsed.transport, parsed.network + header);
    assert_eq!((usize::from(parsed.total_length), parsed.ttl), (total, packet[8]));
    assert_eq!(parsed.key.protocol, packet[9]);
    assert_eq!(parsed.key.source.to_ne_bytes(), packet[12..16]);
    let fragment = u16::from_be_bytes([packet[6], packet[7]]);
    let is_whole = fragment & (wire::MORE_FRAGMENTS | wire::FRAGMENT_OFFSET) == 0;
    assert_eq!(is_whole, !matches!(parsed.kind, Kind::FirstFragment | Kind::LaterFragment), "{fragment:#x}");
    if !is_whole || parsed.kind == Kind::IcmpOther {
        return;
    }
    let rewrite = towards(&parsed.key, addresses, ports);
    let value = FlowValue::translate(&parsed.key, &rewrite, 0);
    if translate::rewrite(&view, &view.skip(parsed.transport), &parsed, &value).is_none() {
        return;
    }
    let expected = reference(&before[parsed.network..], addresses, ports);
    assert_eq!(frame[..parsed.network], before[..parsed.network], "what is in front");
    let got = &frame[parsed.network..];
    if let Some(at) = (0..got.len()).find(|&at| got[at] != expected[at]) {
        // One's complement has two zeros (RFC 1624): only a checksum that was wrong may come to be the other one, and one
        // of ICMP, to which both are right.
        let field = checksum_field(packet[9]).map(|field| header + field);
        let word = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let both_zero = field.is_some_and(|field| {
            (field..field + 2).contains(&at)
                && word(got, field).wrapping_add(1) <= 1
                && word(&expected, field).wrapping_add(1) <= 1
                && (!segment_is_right(packet) || packet[9] == wire::ICMP && segment_is_right(got))
        });
        assert!(both_zero, "byte {at} of the packet: {got:02x?} is not {expected:02x?}");
    }
}

/// Makes a frame of bytes more like one that is let through, as far as `mends` says.
fn mend(frame: &mut [u8], mends: u8) {
    if frame.len() < 34 || mends & 1 == 0 {
        return;
    }
    frame[12..14].copy_from_slice(&[8, 0]);
    let packet = &mut frame[14..];
    packet[0] = 0x40 | if mends & 2 == 0 { 5 } else { (packet[0] & 0x0f).max(5) };
    let header = usize::from(packet[0] & 0x0f) * 4;
    if header > packet.len() {
        packet[0] = 0x45;
    }
    let header = usize::from(packet[0] & 0x0f) * 4;
    let total = u16::try_from(packet.len()).unwrap_or(u16::MAX);
    packet[2..4].copy_from_slice(&total.to_be_bytes());
    if mends & 4 == 0 {
        packet[6..8].fill(0);
    }
    packet[9] = match mends >> 3 & 3 {
        0 => wire::UDP,
        1 => wire::TCP,
        2 => wire::ICMP,
        _ => packet[9],
    };
    mend_header(packet);
    let length = packet.len() - header;
    if packet[9] == wire::UDP && length >= 8 {
        packet[header + 4..header + 6]
            .copy_from_slice(&(total - u16::try_from(header).unwrap_or(20)).to_be_bytes());
    }
    if packet[9] == wire::TCP && length >= 20 {
        packet[header + 12] = 0x50 | packet[header + 12] & 0x0f;
    }
    if packet[9] == wire::ICMP && length >= 8 {
        packet[header] = [8, 0, 13, 14][usize::from(packet[header] & 3)];
    }
    if mends & 0x20 != 0
        && let Some(field) = checksum_field(packet[9])
        && length >= field + 2
    {
        let right = segment_checksum(packet);
        packet[header + field..header + field + 2].copy_from_slice(&right.to_be_bytes());
    }
}

/// The segment that the IPv4 header speaks of.
fn segment(packet: &[u8]) -> &[u8] {
    let header = usize::from(packet[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    &packet[header..total]
}

/// What its checksum covers beside it: the pseudo header (RFC 768, RFC 793), nothing for ICMP.
fn pseudo(packet: &[u8]) -> u32 {
    if packet[9] == wire::ICMP {
        return 0;
    }
    let length = u32::try_from(segment(packet).len()).expect("a packet's length");
    sum(&packet[12..20]) + u32::from(packet[9]) + length
}

fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    u16::try_from((once & 0xffff) + (once >> 16)).expect("folded")
}

/// The checksum that a packet's segment should have.
fn segment_checksum(packet: &[u8]) -> u16 {
    let field = checksum_field(packet[9]).expect("a protocol with a checksum");
    let mut bytes = segment(packet).to_vec();
    bytes[field..field + 2].fill(0);
    let right = !fold(sum(&bytes) + pseudo(packet));
    // To UDP a zero says that there is none, and to ICMP both zeros are right unless all else is zero.
    if right == 0 && packet[9] != wire::TCP { 0xffff } else { right }
}

fn segment_is_right(packet: &[u8]) -> bool {
    fold(sum(segment(packet)) + pseudo(packet)) == 0xffff
}

/// The packet with other addresses and ports. A right checksum is right afterwards, a wrong one wrong by as much,
/// and a missing one missing.
fn reference(packet: &[u8], addresses: [[u8; 4]; 2], ports: [u16; 2]) -> Vec<u8> {
    let protocol = packet[9];
    let header = usize::from(packet[0] & 0x0f) * 4;
    let mut new = packet.to_vec();
    new[12..20].copy_from_slice(addresses.as_flattened());
    match protocol {
        wire::TCP | wire::UDP | wire::UDPLITE => {
            new[header..header + 4].copy_from_slice(ports.map(u16::to_be_bytes).as_flattened());
        }
        wire::ICMP => new[header + 4..header + 6].copy_from_slice(&ports[0].to_be_bytes()),
        _ => {}
    }
    mend_header(&mut new);
    let Some(field) = checksum_field(protocol) else { return new };
    let at = header + field;
    let old = u16::from_be_bytes([packet[at], packet[at + 1]]);
    // A sender of UDP-Lite may leave none out (RFC 3828 section 3.1): what is wrong is left so.
    if old == 0 && matches!(protocol, wire::UDP | wire::UDPLITE) {
        return new;
    }
    let covers_all = protocol != wire::UDPLITE
        || matches!(u16::from_be_bytes([packet[header + 4], packet[header + 5]]), 0);
    let checksum = if covers_all && segment_is_right(packet) {
        segment_checksum(&new)
    } else {
        // As wrong as before: the difference of what is covered, by RFC 1624, equation 3, the long way.
        let covered = |packet: &[u8]| {
            let ports = if protocol == wire::ICMP {
                &packet[header + 4..header + 6]
            } else {
                &packet[header..header + 4]
            };
            let addresses = if protocol == wire::ICMP { 0 } else { sum(&packet[12..20]) };
            fold(addresses + sum(ports))
        };
        let changed = fold(u32::from(!old) + u32::from(!covered(packet)) + u32::from(covered(&new)));
        let checksum = !changed;
        if checksum == 0 && matches!(protocol, wire::UDP | wire::UDPLITE) { 0xffff } else { checksum }
    };
    new[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
    new
}
