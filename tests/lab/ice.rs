//! ICMP errors, from either side, and the packets that they quote.

use nat_tests::{Decoded, Packet, decode::Ip, packet::tcp};

use crate::stage::{Stage, public, source};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";

/// Sends `packet` from a and gives back how the server saw it, as IP bytes: what its errors quote.
fn opened(stage: &Stage, packet: &Packet) -> (Ip, Vec<u8>) {
    let seen = stage.crosses(packet).ip().clone();
    let bytes = [seen.header.clone(), seen.body.clone()].concat();
    (seen, bytes)
}

/// What an error says about a packet of a, as a got it; checks that it quotes the packet as a sent it.
fn quote_at_a(error: &Decoded, sent: &Packet) -> Ip {
    let quoted = *error.icmp().unwrap().quoted.clone().expect("a quote");
    let original = Decoded::parse(&sent.build()).ip().clone();
    assert_eq!(quoted.source(), original.source());
    assert_eq!(quoted.destination(), original.destination());
    assert_eq!(error.checksums_valid(), Ok(()));
    quoted
}

#[test]
fn ice_01_and_02_errors_come_back_about_the_packet_as_it_was_sent() {
    let stage = Stage::standard();
    let packets = [
        stage.udp(CLIENT, SERVER),
        stage.syn(CLIENT, SERVER),
        Packet::echo_request("192.168.1.10", "198.51.100.1", 305, 1).payload("echo"),
    ];
    for packet in packets {
        let (_, bytes) = opened(&stage, &packet);
        // Whole, or no more than the eight bytes that every router has to quote.
        for quoted in [&bytes[..], &bytes[..28]] {
            let error = Packet::icmp_error("198.51.100.1", "203.0.113.1", 3, 3, quoted);
            let seen = stage.reaches(&error, &stage.a);
            assert_eq!(seen.ip().source.to_string(), "198.51.100.1");
            quote_at_a(&seen, &packet);
        }
    }
}

#[test]
fn ice_04_quotes_that_end_too_early_or_lie_are_dropped() {
    let stage = Stage::standard();
    let (_, bytes) = opened(&stage, &stage.udp(CLIENT, SERVER));
    let with_first_byte = |first: u8| [&[first], &bytes[1..]].concat();
    let quotes = [
        bytes[..27].to_vec(),
        bytes[..20].to_vec(),
        bytes[..19].to_vec(),
        with_first_byte(0x4f),
        with_first_byte(0x44),
        with_first_byte(0x65),
        Vec::new(),
    ];
    for quoted in quotes {
        stage.s1.send(&Packet::icmp_error("198.51.100.1", "203.0.113.1", 3, 3, &quoted));
    }
    stage.lan_is_silent();
    stage.reaches(&stage.udp(SERVER, &public(40000)), &stage.a);
}

#[test]
fn ice_06_and_07_errors_with_wrong_checksums_are_dropped() {
    let stage = Stage::standard();
    stage.expect_bad_packets();
    let (_, bytes) = opened(&stage, &stage.udp(CLIENT, SERVER));
    let error = |quoted: &[u8]| Packet::icmp_error("198.51.100.1", "203.0.113.1", 3, 3, quoted);
    stage.s1.send(&error(&bytes).bad_checksum());
    let mut wrong_inside = bytes.clone();
    wrong_inside[10] ^= 0x40;
    stage.s1.send(&error(&wrong_inside));
    stage.lan_is_silent();
    // ICE-08: a wrong transport checksum inside is not natgw's to judge.
    let mut wrong_udp = bytes.clone();
    wrong_udp[26] ^= 0x40;
    let seen = stage.reaches(&error(&wrong_udp), &stage.a);
    assert!(seen.checksums_valid().unwrap_err().contains("transport"), "it stays as wrong as it was");
}

#[test]
fn ice_10_errors_about_nothing_known_stay_out() {
    let stage = Stage::standard();
    opened(&stage, &stage.udp(CLIENT, SERVER));
    let never_sent = Packet::udp("203.0.113.1:40001", SERVER).payload("never sent").ip();
    stage.s1.send(&Packet::icmp_error("198.51.100.1", "203.0.113.1", 3, 3, &never_sent));
    let private = Packet::udp(CLIENT, SERVER).payload("not translated").ip();
    stage.s1.send(&Packet::icmp_error("198.51.100.1", "203.0.113.1", 3, 3, &private));
    stage.s1.send(&Packet::icmp_error("198.51.100.1", "192.168.1.10", 3, 3, &private));
    stage.lan_is_silent();
}

#[test]
fn ice_11_and_13_errors_from_a_router_pass_and_end_nothing() {
    let stage = Stage::standard();
    let packet = stage.udp(CLIENT, SERVER);
    let (_, bytes) = opened(&stage, &packet);
    for (kind, code) in [(3, 0), (3, 1), (3, 2), (3, 3), (3, 13), (11, 0), (12, 0)] {
        stage.wan.send(&Packet::icmp_error("203.0.113.254", "203.0.113.1", kind, code, &bytes));
        let seen = stage.a.expect(&format!("ICMP {kind}/{code}"), |seen| {
            seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code) == (kind, code))
        });
        assert_eq!(seen.ip().source.to_string(), "203.0.113.254");
        quote_at_a(&seen, &packet);
    }
    stage.reaches(&stage.udp(SERVER, &public(40000)), &stage.a);
}

#[test]
fn ice_14_errors_from_the_inside_speak_of_the_public_address() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let unwanted = stage.reaches(&stage.udp(SERVER, &mapped), &stage.a).ip().clone();
    let quoted = [unwanted.header, unwanted.body].concat();
    let seen = stage.reaches(&Packet::icmp_error("192.168.1.10", "198.51.100.1", 3, 3, &quoted), &stage.s1);
    assert_eq!(seen.ip().source.to_string(), "203.0.113.1");
    let quoted = seen.icmp().unwrap().quoted.clone().unwrap();
    assert_eq!((quoted.source().to_string(), quoted.destination().to_string()), (SERVER.to_owned(), mapped));
    assert_eq!(seen.checksums_valid(), Ok(()));
}

#[test]
fn ice_16_errors_from_the_inside_about_nothing_known_go_nowhere() {
    let stage = Stage::standard();
    let never_came = Packet::udp(SERVER, CLIENT).payload("never came").ip();
    stage.a.send(&Packet::icmp_error("192.168.1.10", "198.51.100.1", 3, 3, &never_came));
    stage.s1.expect_silence();
}

#[test]
fn ice_19_and_20_the_path_mtu_arrives() {
    let stage = Stage::standard();
    let mapped = stage.connect(CLIENT, SERVER);
    let packet = stage.data(CLIENT, SERVER).payload([1; 1400]).df();
    let (_, bytes) = opened(&stage, &packet);
    for mtu in [1280, 0] {
        let error = Packet::icmp_error("203.0.113.254", "203.0.113.1", 3, 4, &bytes[..28]).rest(0, mtu);
        stage.wan.send(&error);
        let seen = stage.a.expect("ICMP 3/4", |seen| {
            seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code, icmp.seq) == (3, 4, mtu))
        });
        quote_at_a(&seen, &packet);
    }
    stage.reaches(&stage.data(SERVER, &mapped).flags(tcp::ACK), &stage.a);
}

#[test]
fn ice_23_no_error_about_an_error() {
    let stage = Stage::standard();
    let (_, bytes) = opened(&stage, &stage.udp(CLIENT, SERVER));
    let error = Packet::icmp_error("203.0.113.1", "198.51.100.1", 3, 3, &bytes).ip();
    stage.s1.send(&Packet::icmp_error("198.51.100.1", "203.0.113.1", 3, 3, &error));
    stage.lan_is_silent();
    stage.s1.expect_silence();
}
