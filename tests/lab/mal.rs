//! Packets that are no packets.

use std::time::Duration;

use nat_tests::{Packet, packet::tcp};

use crate::stage::{Stage, source};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";

/// Packets that a gateway must not carry: what is wrong, and the packet.
fn malformed(source: &str, destination: &str) -> Vec<(&'static str, Packet)> {
    let udp = || Packet::udp(source, destination).payload("malformed");
    let address = |endpoint: &str| endpoint.split(':').next().unwrap().to_owned();
    let short = |number: u8, length: usize| {
        Packet::raw(address(source).as_str(), address(destination).as_str(), number)
            .payload(vec![0x50; length])
    };
    vec![
        ("IHL below 5", udp().version_and_ihl(0x44)),
        ("IHL beyond the packet", udp().version_and_ihl(0x4f).total_length(37)),
        ("total length below 20", udp().total_length(19)),
        ("total length beyond the frame", udp().total_length(1000)),
        ("version 5", udp().version_and_ihl(0x55)),
        ("a bad header checksum", udp().bad_ip_checksum()),
        ("TCP of 4 bytes", short(6, 4)),
        ("TCP of 19 bytes", short(6, 19)),
        ("UDP of 7 bytes", short(17, 7)),
        ("ICMP of 7 bytes", short(1, 7)),
        ("UDP that claims less than its header", udp().udp_length(7)),
        ("UDP that claims more than there is", udp().udp_length(500)),
        ("an option of length 0", udp().ip_options([0x44, 0, 0, 0])),
        ("an option beyond the header", udp().ip_options([0x44, 40, 5, 0])),
        ("SYN with FIN", Packet::tcp(source, destination).flags(tcp::SYN | tcp::FIN)),
        ("SYN with RST", Packet::tcp(source, destination).flags(tcp::SYN | tcp::RST)),
        ("TCP without flags", Packet::tcp(source, destination)),
    ]
}

#[test]
fn mal_01_to_04_and_10_malformed_packets_go_nowhere() {
    let stage = Stage::snat("filtering = \"endpoint-independent\"");
    for (what, packet) in malformed(CLIENT, SERVER) {
        stage.a.send(&packet);
        stage.wan.expect_none(what, |seen| seen.ip.is_some());
        assert_eq!(stage.session_count(), 0, "{what} made a session");
    }
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    for (what, packet) in malformed(SERVER, &mapped) {
        // From the provider's end of the link: its router would not carry them either.
        stage.wan.send(&packet);
        stage.a.expect_none(what, |seen| seen.ip.is_some());
    }
    stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
}

#[test]
fn inv_07_each_dropped_packet_has_one_reason() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let unknown = Packet::udp("203.0.113.1:50000", SERVER).ip();
    let cases = [
        ("a stranger's datagram", &stage.attacker, stage.udp("198.51.100.66:9", &mapped)),
        ("an error about nothing known", &stage.s1, {
            Packet::icmp_error("198.51.100.1", "203.0.113.1", 3, 3, &unknown)
        }),
        ("a bad header checksum", &stage.a, stage.udp(CLIENT, SERVER).bad_ip_checksum()),
        ("a header of less than 20 bytes", &stage.a, stage.udp(CLIENT, SERVER).version_and_ihl(0x44)),
        ("an inside address from outside", &stage.s1, stage.udp(SERVER, "192.168.1.10:9")),
    ];
    for (what, tap, packet) in cases {
        let before = stage.gateway.drops();
        tap.send(&packet);
        let counted = |gateway: &nat_tests::Gateway| {
            let after = gateway.drops();
            let more = after.iter().map(|(reason, count)| count - before.get(reason).unwrap_or(&0));
            more.sum::<u64>()
        };
        stage.gateway.wait_until(what, Duration::from_secs(2), |gateway| counted(gateway) > 0);
        assert_eq!(counted(&stage.gateway), 1, "{what}: {before:?}, then {:?}", stage.gateway.drops());
    }
}

#[test]
fn mal_07_addresses_that_are_nobodys() {
    let stage = Stage::with(&nat_tests::gateway::STANDARD.replace("source = [\"192.168.0.0/16\"]\n", ""));
    for source in ["0.0.0.0:9", "127.0.0.1:9", "224.0.0.1:9", "255.255.255.255:9", "240.0.0.1:9"] {
        stage.a.send(&Packet::udp(source, SERVER).payload("from nobody"));
    }
    for destination in ["0.0.0.0:9", "127.0.0.1:9", "240.0.0.1:9"] {
        stage.a.send(&Packet::udp(CLIENT, destination).payload("to nobody"));
    }
    stage.wan.expect_silence();
    assert_eq!(stage.session_count(), 0);
}
