//! ICMP: queries, and errors with the packets that they quote.

use nat_tests::{Decoded, Packet, decode::Ip, packet::tcp};

use crate::stage::{Stage, port, public, seconds, source};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";

#[test]
fn icq_01_an_echo_returns_with_its_own_id() {
    let stage = Stage::standard();
    let request = Packet::echo_request("192.168.1.10", "198.51.100.1", 305, 7).payload([0x55; 56]);
    let id = port(&stage.crosses(&request));
    let reply = Packet::echo_reply("198.51.100.1", "203.0.113.1", id, 7).payload([0x55; 56]);
    assert_eq!(port(&stage.reaches(&reply, &stage.a)), 305);
}

#[test]
fn icq_02_two_hosts_with_one_id_get_their_own_replies() {
    let stage = Stage::standard();
    let of = |client: &str| port(&stage.crosses(&Packet::echo_request(client, "198.51.100.1", 305, 1)));
    let (a, b) = (of("192.168.1.10"), of("192.168.1.11"));
    assert_ne!(a, b);
    stage.reaches(&Packet::echo_reply("198.51.100.1", "203.0.113.1", a, 2).payload("to a"), &stage.a);
    stage.reaches(&Packet::echo_reply("198.51.100.1", "203.0.113.1", b, 2).payload("to b"), &stage.b);
}

#[test]
fn icq_03_a_query_lives_its_time() {
    let stage = Stage::timeouts("icmp = \"3s\"");
    let id = port(&stage.crosses(&Packet::echo_request("192.168.1.10", "198.51.100.1", 305, 1)));
    seconds(2.5);
    stage.reaches(&Packet::echo_reply("198.51.100.1", "203.0.113.1", id, 1), &stage.a);
    seconds(4.5);
    stage.stopped(&Packet::echo_reply("198.51.100.1", "203.0.113.1", id, 2), &stage.a);
    assert_eq!(stage.session_count(), 0);
}

#[test]
fn icq_06_and_07_the_gateway_answers_for_itself() {
    let stage = Stage::standard();
    let id = port(&stage.crosses(&Packet::echo_request("192.168.1.10", "198.51.100.1", 305, 1)));
    for id in [id, 4711] {
        stage.s1.send(&Packet::echo_request("198.51.100.1", "203.0.113.1", id, 3).payload("knock"));
        let reply = stage.s1.expect_payload("knock");
        let icmp = reply.icmp().unwrap();
        assert_eq!((icmp.kind, icmp.id, icmp.seq), (0, id, 3));
        assert_eq!(reply.ip().source.to_string(), "203.0.113.1");
    }
    stage.lan_is_silent();
}

#[test]
fn icq_08_replies_that_nobody_asked_for_stay_out() {
    let stage = Stage::standard();
    let id = port(&stage.crosses(&Packet::echo_request("192.168.1.10", "198.51.100.1", 305, 1)));
    stage.s1.send(&Packet::echo_reply("198.51.100.1", "203.0.113.1", id ^ 1, 1));
    stage.attacker.send(&Packet::echo_reply("198.51.100.66", "203.0.113.1", id, 1));
    stage.lan_is_silent();
}

#[test]
fn icq_12_pings_of_every_size() {
    let stage = Stage::standard();
    for host in [&stage.lab.a, &stage.lab.s1] {
        host.nft("delete table ip mute");
    }
    for size in ["0", "56", "1472", "1473", "4000", "65507"] {
        let ping = stage.lab.a.run(&format!("ping -c 3 -i 0.05 -W 2 -s {size} 198.51.100.1"));
        let text = String::from_utf8_lossy(&ping.stdout).into_owned();
        assert!(text.contains(" 0% packet loss"), "size {size}:\n{text}");
    }
}

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

#[test]
fn icq_13_a_code_is_kept_and_a_stump_is_dropped() {
    let stage = Stage::standard();
    let seen = stage.crosses(&Packet::icmp("192.168.1.10", "198.51.100.1", 8, 5).rest(7, 1));
    assert_eq!(seen.icmp().map(|icmp| icmp.code), Some(5));
    let stump = Packet::raw("192.168.1.10", "198.51.100.1", 1).payload([8, 0, 0xf7, 0xff, 0, 0, 0]);
    stage.stopped(&stump, &stage.s1);
}
