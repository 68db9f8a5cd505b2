//! Frames that contradict themselves: each is dropped under its own reason, whatever its length.

use nat_common::Reason::{
    self, DropBadChecksum, DropBadHeader, DropBadOption, DropBadTransport, DropFragment, DropSourceRoute,
    DropTruncated,
};
use nat_tests::{
    Packet, checksum,
    packet::{protocol, tcp},
};

use crate::{
    fixture::{Fixture, check, frame, lan},
    stage::{CLIENT_MAC, LAN_MAC, Link},
};

const CLIENT: &str = "192.168.1.10:40000";

fn datagram() -> Packet {
    Packet::udp(CLIENT, "198.51.100.1:53").payload(b"a question")
}

fn segment() -> Packet {
    Packet::tcp(CLIENT, "198.51.100.1:80")
        .ack(1)
        .tcp_options([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2])
        .payload(b"data")
}

fn echo() -> Packet {
    Packet::echo_request(CLIENT, "198.51.100.1", 40000, 1).payload(b"ping")
}

/// A frame with bytes of its IP packet overwritten, and the header's checksum made right again.
fn patched(packet: &Packet, patches: &[(usize, u8)]) -> Vec<u8> {
    let mut bytes = packet.clone().between(CLIENT_MAC, LAN_MAC).build();
    for (at, byte) in patches {
        bytes[14 + at] = *byte;
    }
    mend(&mut bytes);
    bytes
}

fn mend(frame: &mut [u8]) {
    let header = 14..14 + usize::from(frame[14] & 0x0f) * 4;
    if header.len() >= 20 && header.end <= frame.len() {
        frame[24..26].fill(0);
        let sum = checksum::internet(&[&frame[header]]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
}

#[test]
fn mal_01_headers() {
    let bad = |name: &str, packet: Packet, reason: Reason| lan(name, packet).dropped(reason);
    check(vec![
        bad("version 6", datagram().version_and_ihl(0x65), DropBadHeader),
        bad("header of 16 bytes", datagram().version_and_ihl(0x44), DropBadHeader),
        bad("header of no bytes", datagram().version_and_ihl(0x40), DropBadHeader),
        bad("header beyond the packet", echo().payload(b"").version_and_ihl(0x4f), DropBadHeader),
        bad("shorter than its header", datagram().total_length(19), DropBadHeader),
        bad("length 0", datagram().total_length(0), DropBadHeader),
        bad("longer than the frame", datagram().total_length(39), DropBadHeader),
        bad("length 65535", datagram().total_length(0xffff), DropBadHeader),
        bad("CKS-07: a wrong checksum", datagram().bad_ip_checksum(), DropBadChecksum),
        bad(
            "a wrong checksum behind options",
            datagram().ip_options([1; 40]).bad_ip_checksum(),
            DropBadChecksum,
        ),
    ]);
}

#[test]
fn mal_02_transport_headers() {
    let cut = |packet: Packet, bytes: u16| {
        let mut frame = packet.total_length(20 + bytes).between(CLIENT_MAC, LAN_MAC).build();
        frame.truncate(14 + 20 + usize::from(bytes));
        frame
    };
    let bad = |name: &str, frame_of: Vec<u8>| frame(name, Link::Lan, frame_of).dropped(DropBadTransport);
    check(vec![
        bad("TCP of 19 bytes", cut(segment(), 19)),
        bad("TCP of no bytes", cut(segment(), 0)),
        bad("TCP whose header is 16 bytes", patched(&segment(), &[(32, 0x40)])),
        bad("TCP whose header is longer than it", patched(&segment(), &[(32, 0xf0)])),
        bad("UDP of 7 bytes", cut(datagram(), 7)),
        bad("UDP that says 7", patched(&datagram(), &[(24, 0), (25, 7)])),
        bad("UDP that says more than there is", patched(&datagram(), &[(24, 0), (25, 19)])),
        bad("UDP-Lite that covers 7", patched(&Packet::udplite(CLIENT, "198.51.100.1:53"), &[(25, 7)])),
        bad("ICQ-13: ICMP of 7 bytes", cut(echo(), 7)),
        bad("TCP behind a trailer that is none of its own", {
            let mut frame = cut(segment(), 19);
            frame.extend([0; 40]);
            frame
        }),
    ]);
}

#[test]
fn rtr_16_and_17_options() {
    let with = |options: &[u8]| datagram().ip_options(options);
    let bad = |name: &str, options: &[u8]| lan(name, with(options)).dropped(DropBadOption);
    let fine = |name: &str, options: &[u8]| {
        let sent = Packet::udp("203.0.113.1:61000", "198.51.100.1:53").payload(b"a question").ttl(63);
        lan(name, with(options)).sent(sent.ip_options(options))
    };
    check(vec![
        lan("loose source route", with(&[131, 7, 4, 1, 2, 3, 4])).dropped(DropSourceRoute),
        lan("strict source route", with(&[137, 7, 4, 1, 2, 3, 4])).dropped(DropSourceRoute),
        lan("source route behind another", with(&[1, 1, 1, 131, 7, 4, 1, 2, 3, 4])).dropped(DropSourceRoute),
        bad("no length", &[1, 1, 1, 7]),
        bad("length 0", &[7, 0, 1, 1]),
        bad("length 1", &[7, 1, 1, 1]),
        bad("longer than the list", &[7, 5, 4, 0]),
        bad("length 41", &[7, 41, 4, 0]),
        bad("length 255", &[7, 255, 4, 0]),
        fine("no-operations", &[1; 40]),
        fine("end of list, then anything", &[0, 131, 7, 255]),
        fine("router alert", &[148, 4, 0, 0]),
        fine("an unknown option", &[0x9e, 4, 1, 2]),
        fine("an option of two bytes", &[0x9e, 2, 1, 1]),
        fine("one option of forty bytes", &{
            let mut option = [0; 40];
            option[0..2].copy_from_slice(&[0x9e, 40]);
            option
        }),
    ]);
}

#[test]
fn frg_15_and_16_fragments() {
    let piece = |offset: u16, bytes: usize| datagram().payload(vec![0; bytes]).fragment_offset(offset);
    check(vec![
        lan("a first of 12 bytes", piece(0, 4).more_fragments()).dropped(DropFragment),
        lan("a middle of 12 bytes", piece(9, 4).more_fragments()).dropped(DropFragment),
        lan("ends beyond 65535", piece(8191, 0)).dropped(DropFragment),
        frame("of no bytes", Link::Lan, {
            let mut bytes = piece(9, 0).total_length(20).between(CLIENT_MAC, LAN_MAC).build();
            bytes.truncate(34);
            bytes
        })
        .dropped(DropFragment),
        lan("a first", piece(0, 8).more_fragments()).punted(),
        lan("a middle", piece(9, 8).more_fragments()).punted(),
        lan("a last of an odd length", piece(9, 3)).punted(),
    ]);
}

/// Frames cut at every length, and packets that say they end there.
#[test]
fn every_truncation() {
    let mut fixtures = Vec::new();
    let tunnel = Packet::raw("192.168.1.10", "198.51.100.1", protocol::GRE).payload([0; 9]);
    for packet in [segment(), datagram(), echo(), tunnel, datagram().ip_options([1; 12])] {
        let whole = packet.clone().between(CLIENT_MAC, LAN_MAC).build();
        for length in 14..whole.len() {
            let reason = if length < 34 { DropTruncated } else { DropBadHeader };
            let cut = whole[..length].to_vec();
            fixtures.push(frame(format!("cut to {length}"), Link::Lan, cut).dropped(reason));
            if length < 34 {
                continue;
            }
            let says = u16::try_from(length - 14).expect("a short frame");
            for ends in [length, whole.len()] {
                let mut shorter = whole[..ends].to_vec();
                shorter[16..18].copy_from_slice(&says.to_be_bytes());
                mend(&mut shorter);
                fixtures.push(frame(format!("says {says} in {ends}"), Link::Lan, shorter));
            }
        }
    }
    check(fixtures);
}

/// Every byte of the headers with every bit turned over, checksum mended or not.
#[test]
fn every_turned_bit() {
    let mut fixtures: Vec<Fixture> = Vec::new();
    let packets = [
        segment().flags(tcp::SYN | tcp::ACK),
        datagram(),
        echo(),
        Packet::udplite(CLIENT, "198.51.100.1:53").payload(b"voice"),
        datagram().ip_options([148, 4, 0, 0, 68, 8, 5, 0, 0, 0, 0, 0]),
    ];
    for packet in packets {
        let whole = packet.between(CLIENT_MAC, LAN_MAC).build();
        for at in 6..whole.len().min(60) {
            for bit in 0..8 {
                let mut turned = whole.clone();
                turned[at] ^= 1 << bit;
                fixtures.push(frame(format!("bit {bit} of byte {at}"), Link::Lan, turned.clone()));
                mend(&mut turned);
                fixtures.push(frame(format!("bit {bit} of byte {at}, mended"), Link::Lan, turned));
            }
        }
    }
    check(fixtures);
}
