//! Checksums: updated, never made up.

use nat_tests::{Decoded, Packet};

use crate::stage::{Stage, source};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";

#[test]
fn cks_01_no_udp_checksum_stays_none() {
    let stage = Stage::standard();
    let seen = stage.crosses(&stage.udp(CLIENT, SERVER).checksum(0));
    stage.reaches(&stage.udp(SERVER, &source(&seen)).checksum(0), &stage.a);
}

#[test]
fn cks_02_a_computed_zero_is_sent_as_all_ones() {
    let stage = Stage::standard();
    let packet = Packet::udp(CLIENT, SERVER).payload([0xe9, 0xda]);
    assert_eq!(Decoded::parse(&packet.build()).udp().unwrap().checksum, 0x7a4f);
    assert_eq!(stage.crosses(&packet).udp().unwrap().checksum, 0xffff);
}

#[test]
fn cks_06_a_corrupt_packet_stays_corrupt() {
    let stage = Stage::standard();
    stage.expect_bad_packets();
    for packet in [stage.udp(CLIENT, SERVER), stage.syn(CLIENT, SERVER)] {
        let seen = stage.crosses(&packet.bad_checksum());
        assert!(seen.checksums_valid().unwrap_err().contains("transport"));
    }
}

#[test]
fn cks_07_a_bad_ip_header_is_dropped() {
    let stage = Stage::standard();
    stage.stopped(&stage.udp(CLIENT, SERVER).bad_ip_checksum(), &stage.s1);
    stage.crosses(&stage.udp(CLIENT, SERVER));
    stage.stopped(&stage.udp(CLIENT, SERVER).bad_ip_checksum(), &stage.s1);
    stage.a.expect_silence();
}

#[test]
fn cks_03_all_ones_means_zero() {
    let stage = Stage::standard();
    stage.crosses(&stage.udp(CLIENT, SERVER));
    // A payload that makes the sum zero, which is sent as 0xffff; then out of the fast path, too.
    for (source, destination, tap) in [(CLIENT, SERVER, &stage.s1), (SERVER, "203.0.113.1:40000", &stage.a)] {
        let bare = Decoded::parse(&Packet::udp(source, destination).payload([0, 0]).build());
        let packet = Packet::udp(source, destination).payload(bare.udp().unwrap().checksum.to_be_bytes());
        assert_eq!(Decoded::parse(&packet.build()).udp().unwrap().checksum, 0xffff);
        let seen = stage.reaches(&packet, tap);
        assert_eq!(seen.checksums_valid(), Ok(()));
        assert!(![0, 0xffff].contains(&seen.udp().unwrap().checksum), "{seen}");
    }
}
