//! Literal frames: known bytes in, known bytes out.

mod packet;

use nat_common::{
    Realm, Reason,
    frame::SliceFrame,
    parse::{Frames, Kind, parse},
    vlan::Tags,
    wire,
};
use packet::{Sample, checksum, parsed, rewrite, towards};

/// Bytes from hexadecimal digits; blanks are for the reader.
fn bytes(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|digit| digit.to_digit(16)).collect();
    digits.chunks(2).map(|pair| u8::try_from(pair[0] << 4 | pair[1]).unwrap()).collect()
}

fn translated(before: &str, addresses: [[u8; 4]; 2], ports: [u16; 2]) -> Vec<u8> {
    let mut frame = bytes(before);
    let key = parsed(&mut frame).key;
    rewrite(&mut frame, &towards(&key, addresses, ports));
    frame
}

/// behaviour CKS-02: 192.168.1.10:40000 > 198.51.100.1:5000, payload e9 da, seen as 203.0.113.1:40000.
#[test]
fn cks_02_a_computed_zero_is_sent_as_all_ones() {
    let mut frame = Sample {
        protocol: wire::UDP,
        kind: 0,
        addresses: [[192, 168, 1, 10], [198, 51, 100, 1]],
        ports: [40000, 5000],
        ttl: 64,
        option_words: 0,
        payload: vec![0xe9, 0xda],
    }
    .frame();
    assert_eq!(checksum(&frame), Some(0x7a4f));
    let key = parsed(&mut frame).key;
    rewrite(&mut frame, &towards(&key, [[203, 0, 113, 1], [198, 51, 100, 1]], [40000, 5000]));
    assert_eq!(checksum(&frame), Some(0xffff));
}

/// A SYN of 192.168.1.10:40000 to 198.51.100.1:80, as it leaves from 203.0.113.1:61000.
#[test]
fn a_syn() {
    let after = translated(
        "020000000001 020000000002 0800 \
         4500 0028 1234 4000 4006 3cb5 c0a8010a c6336401 9c40 0050 00000001 00000000 5002 fff0 2779 0000",
        [[203, 0, 113, 1], [198, 51, 100, 1]],
        [61000, 80],
    );
    let wanted = bytes(
        "020000000001 020000000002 0800 \
         4500 0028 1234 4000 4006 c265 cb007101 c6336401 ee48 0050 00000001 00000000 5002 fff0 5b21 0000",
    );
    assert_eq!(after, wanted);
}

/// An echo request with id 777, as it leaves with id 61000: behaviour CKS-10, addresses are no part of the sum.
#[test]
fn cks_10_an_echo_request() {
    let after = translated(
        "020000000001 020000000002 0800 \
         4500 0020 1234 4000 4001 3cc2 c0a8010a c6336401 0800 1625 0309 0001 70696e67",
        [[203, 0, 113, 1], [198, 51, 100, 1]],
        [61000, 0],
    );
    let wanted = bytes(
        "020000000001 020000000002 0800 \
         4500 0020 1234 4000 4001 c272 cb007101 c6336401 0800 2ae5 ee48 0001 70696e67",
    );
    assert_eq!(after, wanted);
}

/// The same packet behind no, one and two VLAN tags.
#[test]
fn vlan_tags_are_read() {
    let packet = "4500 001c 0000 0000 4011 8eea c0a8010a c6336401 0007 0009 0008 0000";
    for (link, tags) in [
        ("0800", Tags::NONE),
        ("8100 2007 0800", Tags::of_vlans((0x8100, 0x2007), None)),
        ("88a8 0001 8100 0002 0800", Tags::of_vlans((0x88a8, 1), Some((0x8100, 2)))),
    ] {
        let mut frame = bytes(&format!("020000000001 020000000002 {link} {packet}"));
        let parsed = parsed(&mut frame);
        assert_eq!((parsed.tags, parsed.kind), (tags, Kind::Ported), "behind {link}");
        assert_eq!(parsed.key.source_port, 7u16.to_be());
    }
}

/// Name, protocol, bytes to overwrite, what it is called.
type Case = (&'static str, u8, &'static [(usize, u8)], Reason);

#[test]
fn contradictions_have_names() {
    let sample = |protocol| Sample {
        protocol,
        kind: wire::ICMP_ECHO_REQUEST,
        addresses: [[192, 168, 1, 10], [198, 51, 100, 1]],
        ports: [7, 9],
        ttl: 64,
        option_words: 1,
        payload: vec![0; 8],
    };
    let cases: [Case; 11] = [
        ("version 6", wire::UDP, &[(14, 0x66)], Reason::DropBadHeader),
        ("header of 16 bytes", wire::UDP, &[(14, 0x44)], Reason::DropBadHeader),
        ("header beyond the packet", wire::UDP, &[(14, 0x4f)], Reason::DropBadHeader),
        ("longer than the frame", wire::UDP, &[(17, 0xff)], Reason::DropBadHeader),
        ("checksum", wire::UDP, &[(22, 63)], Reason::DropBadChecksum),
        ("source route", wire::UDP, &[(34, 131), (35, 3), (36, 4)], Reason::DropSourceRoute),
        ("option without a length", wire::UDP, &[(37, 7)], Reason::DropBadOption),
        ("option of one byte", wire::UDP, &[(34, 7), (35, 1)], Reason::DropBadOption),
        ("UDP longer than its packet", wire::UDP, &[(43, 99)], Reason::DropBadTransport),
        ("TCP header of 16 bytes", wire::TCP, &[(50, 0x40)], Reason::DropBadTransport),
        ("ping of death", wire::ICMP, &[(20, 0x1f), (21, 0xff)], Reason::DropFragment),
    ];
    for (name, protocol, patches, reason) in cases {
        let mut frame = sample(protocol).frame();
        for &(at, byte) in patches {
            frame[at] = byte;
        }
        if reason != Reason::DropBadChecksum && reason != Reason::DropBadHeader {
            frame[24..26].fill(0);
            let complement = 0xffff - packet::sum(&frame[14..38]);
            frame[24..26].copy_from_slice(&u16::try_from(complement).unwrap().to_be_bytes());
        }
        let view = SliceFrame::new(&mut frame).unwrap();
        match parse(&view, Realm::Inside) {
            Frames::Bad(found) => assert_eq!(found, reason, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
    }
}

/// Found by `cargo xtask fuzz`: an echo reply that is all zeros once its identifier is 0 has a sum of +0, which only
/// a checksum of ffff makes right. To any other message both zeros are.
#[test]
fn an_echo_reply_of_zeros_gets_the_other_zero() {
    let sample = |id: u16| Sample {
        protocol: wire::ICMP,
        kind: wire::ICMP_ECHO_REPLY,
        addresses: [[198, 51, 100, 1], [203, 0, 113, 1]],
        ports: [id, 0],
        ttl: 64,
        option_words: 0,
        payload: Vec::new(),
    };
    let mut frame = sample(40_000).frame();
    let sequence = 14 + 20 + 6;
    frame[sequence..sequence + 2].fill(0);
    let right = !40_000_u16;
    frame[14 + 20 + 2..14 + 20 + 4].copy_from_slice(&right.to_be_bytes());
    let key = parsed(&mut frame).key;
    rewrite(&mut frame, &towards(&key, [[198, 51, 100, 1], [192, 168, 1, 10]], [0, 0]));
    assert_eq!(checksum(&frame), Some(0xffff));
}

/// CKS-09 where the one before would write the other zero: what does not change keeps its own.
#[test]
fn a_checksum_of_zero_stays_where_nothing_changes() {
    let mut frame = Sample {
        protocol: wire::ICMP,
        kind: wire::ICMP_ECHO_REQUEST,
        addresses: [[198, 51, 100, 1], [203, 0, 113, 1]],
        ports: [7, 0],
        ttl: 64,
        option_words: 0,
        payload: Vec::new(),
    }
    .frame();
    frame[14 + 20 + 2..14 + 20 + 4].fill(0);
    let key = parsed(&mut frame).key;
    rewrite(&mut frame, &towards(&key, [[198, 51, 100, 1], [203, 0, 113, 1]], [7, 0]));
    assert_eq!(checksum(&frame), Some(0));
}
