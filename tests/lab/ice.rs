//! ICMP errors from outside, and the packets that they quote.

use std::time::Duration;

use nat_tests::{
    Decoded, Packet, checksum,
    decode::Ip,
    packet::{protocol, tcp},
};

use crate::stage::{Stage, port, public, seconds};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";

const NAPT: &str = "203.0.113.1";
const REMOTE: &str = "198.51.100.1";

/// Sends `packet` from its host and gives back how the server saw it, as IP bytes: what its errors quote.
pub(crate) fn opened(stage: &Stage, packet: &Packet) -> (Ip, Vec<u8>) {
    let seen = stage.crosses(packet).ip().clone();
    let bytes = [seen.header.clone(), seen.body.clone()].concat();
    (seen, bytes)
}

/// What an error says about a packet of a, as a got it; checks that it quotes the packet as a sent it.
pub(crate) fn quote_at_a(error: &Decoded, sent: &Packet) -> Ip {
    let quoted = *error.icmp().unwrap().quoted.clone().expect("a quote");
    let original = Decoded::parse(&sent.build()).ip().clone();
    assert_eq!(quoted.source(), original.source());
    assert_eq!(quoted.destination(), original.destination());
    assert_eq!(error.checksums_valid(), Ok(()));
    quoted
}

/// An error of the server's about what it got.
fn about(quoted: &[u8]) -> Packet {
    Packet::icmp_error(REMOTE, NAPT, 3, 3, quoted)
}

/// The IP header at the beginning of `quoted` with its checksum made right.
fn seal(quoted: &mut [u8]) {
    let length = usize::from(quoted[0] & 0x0f) * 4;
    quoted[10..12].fill(0);
    let sum = checksum::internet(&[&quoted[..length]]);
    quoted[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// natgw drops each of these errors, for one reason, and nothing of them comes out.
fn all_dropped(stage: &Stage, what: &str, errors: &[Packet]) {
    let count = |stage: &Stage| stage.gateway.drops().get("icmp_error").copied().unwrap_or(0);
    let before = count(stage);
    for error in errors {
        // From the provider's end of the link: its router would not carry all of them.
        stage.wan.send(error);
    }
    let all = before + u64::try_from(errors.len()).unwrap();
    stage.gateway.wait_until(what, Duration::from_secs(5), |gateway| {
        gateway.drops().get("icmp_error").is_some_and(|dropped| *dropped >= all)
    });
    assert_eq!(count(stage), all, "{what}: one count each");
    stage.lan_is_silent();
    stage.wan.expect_none(what, |seen| seen.icmp().is_some());
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
fn ice_01_02_and_22_errors_come_back_about_the_packet_as_it_was_sent() {
    let stage = Stage::standard();
    let packets = [
        stage.udp(CLIENT, SERVER),
        stage.syn(CLIENT, SERVER),
        Packet::echo_request("192.168.1.10", REMOTE, 305, 1).payload("echo"),
    ];
    for packet in packets {
        let (_, bytes) = opened(&stage, &packet);
        let mut first_fragment = bytes.clone();
        first_fragment[6] |= 0x20;
        seal(&mut first_fragment);
        // Whole, no more than the eight bytes that every router has to quote, and the beginning of a datagram.
        for quoted in [&bytes[..], &bytes[..28], &first_fragment] {
            let seen = stage.reaches(&about(quoted), &stage.a);
            assert_eq!(seen.ip().source.to_string(), REMOTE);
            let quote = quote_at_a(&seen, &packet);
            let sent = Decoded::parse(&packet.build()).ip().clone();
            // As it was sent, but for the hops it has taken and what the case changed.
            assert_eq!(quote.body[..], sent.body[..quote.body.len()], "{packet:?}");
        }
    }
}

#[test]
fn ice_03_a_quote_of_eight_bytes_of_tcp_stays_one() {
    let stage = Stage::standard();
    let packet = stage.syn(CLIENT, SERVER);
    let (_, bytes) = opened(&stage, &packet);
    let seen = stage.reaches(&about(&bytes[..28]), &stage.a);
    assert_eq!(seen.ip().total_length, 20 + 8 + 28);
    assert_eq!(seen.ip().body.len(), 8 + 28);
    let quote = quote_at_a(&seen, &packet);
    assert_eq!(quote.body, Decoded::parse(&packet.build()).ip().body[..8]);
}

#[test]
fn ice_04_quotes_that_end_too_early_or_lie_are_dropped() {
    let stage = Stage::standard();
    let (_, bytes) = opened(&stage, &stage.udp(CLIENT, SERVER));
    let with_first_byte = |first: u8| {
        let mut quoted = [&[first], &bytes[1..]].concat();
        // Else it would be dropped for its checksum.
        if usize::from(first & 0x0f) * 4 <= quoted.len() {
            seal(&mut quoted);
        }
        quoted
    };
    let quotes = [
        bytes[..27].to_vec(),
        bytes[..20].to_vec(),
        bytes[..19].to_vec(),
        with_first_byte(0x4f),
        with_first_byte(0x44),
        with_first_byte(0x65),
        Vec::new(),
    ];
    all_dropped(&stage, "a quote that lies", &quotes.map(|quoted| about(&quoted)));
    stage.reaches(&about(&bytes), &stage.a);
}

#[test]
fn ice_05_ports_are_found_behind_options() {
    let stage = Stage::standard();
    let record_route = [&[7, 39, 4][..], &[0; 36], &[0]].concat();
    for options in [&[1, 1, 1, 1][..], &[1; 40], &[7, 7, 4, 0, 0, 0, 0, 0], &record_route] {
        for packet in [stage.udp(CLIENT, SERVER), stage.syn(CLIENT, SERVER)] {
            let (_, bytes) = opened(&stage, &packet);
            // With options the gateway may refuse, and routers write into: the server puts them into what it quotes.
            let length = u8::try_from(20 + options.len()).unwrap();
            let mut quoted = [&bytes[..20], options, &bytes[20..]].concat();
            quoted[0] = 0x40 | (length / 4);
            let total = u16::try_from(quoted.len()).unwrap();
            quoted[2..4].copy_from_slice(&total.to_be_bytes());
            seal(&mut quoted);
            let seen = stage.reaches(&about(&quoted), &stage.a);
            assert_eq!(quote_at_a(&seen, &packet).options(), options);
        }
    }
}

#[test]
fn ice_06_07_and_08_which_wrong_checksums_matter() {
    let stage = Stage::standard();
    stage.expect_bad_packets();
    for packet in [stage.udp(CLIENT, SERVER), stage.syn(CLIENT, SERVER)] {
        let (ip, bytes) = opened(&stage, &packet);
        let mut wrong_header = bytes.clone();
        wrong_header[10] ^= 0x40;
        all_dropped(&stage, "a wrong checksum", &[about(&bytes).bad_checksum(), about(&wrong_header)]);
        // A wrong transport checksum inside is not natgw's to judge, nor to mend.
        let mut wrong = bytes.clone();
        let at = 20 + if ip.protocol == protocol::TCP { 16 } else { 6 };
        wrong[at] ^= 0x40;
        let seen = stage.reaches(&about(&wrong), &stage.a);
        assert!(seen.checksums_valid().unwrap_err().contains("transport"), "it stays wrong");
        let word = |bytes: &[u8], at: usize| u32::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        // One's complement: numbers modulo 65535.
        let apart = |wrong: u32, right: u32| (wrong + 65_535 - right) % 65_535;
        let quote = seen.icmp().unwrap().quoted.clone().unwrap();
        let sent = Decoded::parse(&packet.build()).ip().clone();
        let arrived = apart(word(&quote.body, at - 20), word(&sent.body, at - 20));
        assert_eq!(arrived, apart(word(&wrong, at), word(&bytes, at)), "as wrong as it was");
    }
}

#[test]
fn ice_09_padding_and_extensions_stay_as_they_are() {
    let stage = Stage::standard();
    // An MPLS label stack (RFC 4950) behind 128 bytes (RFC 4884 section 5.4); 32 words are what the length says.
    let mut extension = [0x20, 0, 0, 0, 0, 8, 1, 1, 0x12, 0x34, 0x51, 0xff];
    let sum = checksum::internet(&[&extension]);
    extension[2..4].copy_from_slice(&sum.to_be_bytes());
    for packet in [stage.udp(CLIENT, SERVER), stage.syn(CLIENT, SERVER)] {
        let (_, bytes) = opened(&stage, &packet);
        let mut quoted = bytes.clone();
        quoted.resize(128, 0);
        quoted.extend(extension);
        let seen = stage.reaches(&about(&quoted).rest(32, 0), &stage.a);
        quote_at_a(&seen, &packet);
        let icmp = seen.icmp().unwrap();
        assert_eq!((icmp.id, icmp.seq), (32, 0), "the length field");
        assert_eq!(icmp.payload.len(), 128 + extension.len());
        assert_eq!(icmp.payload[bytes.len()..128], vec![0; 128 - bytes.len()], "the padding");
        assert_eq!(icmp.payload[128..], extension);
    }
}

#[test]
fn ice_11_and_13_errors_from_a_router_pass_and_end_nothing() {
    const EACH: usize = 72;
    let stage = Stage::standard();
    let mapped = stage.connect("192.168.1.10:40001", SERVER);
    for packet in [stage.udp(CLIENT, SERVER), stage.data("192.168.1.10:40001", SERVER)] {
        let (_, bytes) = opened(&stage, &packet);
        for (kind, code) in [(3, 0), (3, 1), (3, 2), (3, 3), (3, 13), (11, 0), (12, 0)] {
            // 1008 in all, from a router on the way and from one that is not.
            for from in ["203.0.113.254", "198.51.100.66"] {
                for _ in 0..EACH {
                    stage.wan.send(&Packet::icmp_error(from, NAPT, kind, code, &bytes));
                }
                for _ in 0..EACH {
                    let seen = stage.a.expect(&format!("ICMP {kind}/{code}"), |seen| {
                        seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code) == (kind, code))
                    });
                    assert_eq!(seen.ip().source.to_string(), from);
                    quote_at_a(&seen, &packet);
                }
            }
        }
    }
    stage.reaches(&stage.udp(SERVER, &public(40000)), &stage.a);
    stage.crosses(&stage.udp(CLIENT, SERVER));
    stage.reaches(&stage.data(SERVER, &mapped), &stage.a);
    stage.crosses(&stage.data("192.168.1.10:40001", SERVER));
}

#[test]
fn ice_12_an_error_about_a_query_neither_keeps_it_nor_ends_it() {
    let stage = Stage::timeouts("icmp = \"3s\"");
    let request = Packet::echo_request("192.168.1.10", REMOTE, 305, 1).payload("query");
    let (_, bytes) = opened(&stage, &request);
    let id = port(&Decoded::parse(&[&[0; 12], &[8, 0][..], &bytes].concat()));
    for _ in 0..4 {
        quote_at_a(&stage.reaches(&about(&bytes), &stage.a), &request);
        seconds(0.5);
    }
    // Two seconds old: not deleted.
    stage.reaches(&Packet::echo_reply(REMOTE, NAPT, id, 1), &stage.a);
    stage.reaches(&about(&bytes), &stage.a);
    // On the schedule of the request it is over by now; from the last error it would not be.
    stage.forgets_within(Duration::from_millis(2400));
    stage.stopped(&Packet::echo_reply(REMOTE, NAPT, id, 2), &stage.a);
}

#[test]
fn ice_20_a_path_mtu_of_zero_passes() {
    let stage = Stage::standard();
    let mapped = stage.connect(CLIENT, SERVER);
    let packet = stage.data(CLIENT, SERVER).payload([1; 1400]).df();
    let (_, bytes) = opened(&stage, &packet);
    for mtu in [1280, 0] {
        let error = Packet::icmp_error("203.0.113.254", NAPT, 3, 4, &bytes[..28]).rest(0, mtu);
        stage.wan.send(&error);
        let seen = stage.a.expect("ICMP 3/4", |seen| {
            seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code, icmp.seq) == (3, 4, mtu))
        });
        quote_at_a(&seen, &packet);
    }
    stage.reaches(&stage.data(SERVER, &mapped).flags(tcp::ACK), &stage.a);
}

#[test]
fn ice_21_23_27_and_28_what_no_error_may_bring_in() {
    let stage = Stage::standard();
    let (_, bytes) = opened(&stage, &stage.udp(CLIENT, SERVER));
    let mut later_fragment = bytes.clone();
    // Its payload begins with the very ports of the session.
    later_fragment[6..8].copy_from_slice(&[0, 185]);
    seal(&mut later_fragment);
    let error = Packet::icmp_error(NAPT, REMOTE, 3, 3, &bytes).ip();
    let to_all = Packet::udp("203.0.113.1:40000", "255.255.255.255:5000").ip();
    let to_group = Packet::udp("203.0.113.1:40000", "224.0.0.5:5000").ip();
    let source_routed =
        |kind: u8| Packet::udp("203.0.113.1:40000", SERVER).ip_options([1, kind, 7, 4, 198, 51, 100, 2]).ip();
    let redirect = Packet::icmp_error("203.0.113.254", NAPT, 5, 1, &bytes).rest(0xcb00, 0x7142);
    let before = stage.lab.gateway.ip("route get 198.51.100.1");
    all_dropped(
        &stage,
        "an error that is none",
        &[
            about(&later_fragment),
            about(&error),
            about(&to_all),
            about(&to_group),
            about(&source_routed(131)),
            about(&source_routed(137)),
            redirect,
        ],
    );
    assert_eq!(stage.lab.gateway.ip("route get 198.51.100.1"), before, "the redirect is not believed");
    // Out of the inside as well, and with the option in the outer header.
    let mapped = public(port(&stage.crosses(&stage.udp(CLIENT, SERVER))));
    let quoted = Packet::udp(SERVER, CLIENT).ip_options([131, 7, 4, 198, 51, 100, 2]).ip();
    stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
    stage.a.send(&Packet::icmp_error("192.168.1.10", REMOTE, 3, 3, &quoted));
    let plain = Packet::udp(SERVER, CLIENT).ip();
    for kind in [131, 137] {
        let routed = Packet::icmp_error("192.168.1.10", REMOTE, 3, 3, &plain);
        stage.a.send(&routed.ip_options([kind, 7, 4, 198, 51, 100, 2]));
    }
    stage.wan.expect_none("a source-routed error", |seen| seen.icmp().is_some());
    stage.reaches(&Packet::icmp_error("192.168.1.10", REMOTE, 3, 3, &plain), &stage.s1);
    stage.reaches(&about(&bytes), &stage.a);
}

#[test]
fn ice_24_a_traceroute_that_looks_for_nat_finds_none() {
    let stage = Stage::standard();
    // As dublin-traceroute: the id of the probe and the UDP checksum of the quote against what was sent.
    for (number, probe) in (0..8_u16).map(|ttl| (ttl, stage.udp(CLIENT, SERVER).id(0x4000 + ttl).ttl(9))) {
        for packet in [probe.clone(), probe.checksum(0)] {
            let (_, bytes) = opened(&stage, &packet);
            for quoted in [&bytes[..], &bytes[..28]] {
                let error = Packet::icmp_error("203.0.113.254", NAPT, 11, 0, quoted);
                stage.wan.send(&error);
                let seen =
                    stage.a.expect("ICMP 11/0", |seen| seen.icmp().is_some_and(|icmp| icmp.kind == 11));
                let quote = quote_at_a(&seen, &packet);
                let sent = Decoded::parse(&packet.build());
                assert_eq!(quote.id, 0x4000 + number);
                assert_eq!(quote.body[4..8], sent.ip().body[4..8], "length and checksum");
            }
        }
    }
}
