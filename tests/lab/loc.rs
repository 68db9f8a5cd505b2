//! The gateway's own traffic, frames that are not its business, and packets that are no packets.

use std::{net::UdpSocket, time::Duration};

use nat_tests::{Packet, packet::tcp};

use crate::stage::{Stage, public, source};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";

fn gateway_socket(stage: &Stage, address: &str) -> UdpSocket {
    let socket = stage.lab.gateway.within(|| UdpSocket::bind(address)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    socket
}

/// Who sent the next datagram to the gateway itself.
fn received_from(socket: &UdpSocket) -> String {
    let (_, from) = socket.recv_from(&mut [0; 64]).expect("a datagram for the gateway");
    from.to_string()
}

#[test]
fn loc_01_services_of_the_gateway_are_reached_from_everywhere() {
    let stage = Stage::standard();
    let socket = gateway_socket(&stage, "0.0.0.0:5353");
    stage.a.send(&stage.udp(CLIENT, "192.168.1.1:5353"));
    assert_eq!(received_from(&socket), CLIENT);
    stage.a.send(&stage.udp(CLIENT, "203.0.113.1:5353"));
    assert_eq!(received_from(&socket), CLIENT);
    stage.s1.send(&stage.udp(SERVER, "203.0.113.1:5353"));
    assert_eq!(received_from(&socket), SERVER);
    assert_eq!(stage.session_count(), 0);
}

#[test]
fn loc_02_the_gateway_talks_for_itself() {
    let stage = Stage::standard();
    let socket = gateway_socket(&stage, "203.0.113.1:0");
    socket.send_to(b"from the gateway", SERVER).unwrap();
    let own = source(&stage.s1.expect_payload("from the gateway"));
    assert_eq!(own, socket.local_addr().unwrap().to_string());
    stage.s1.send(&stage.udp(SERVER, &own));
    assert_eq!(received_from(&socket), SERVER);
    stage.lan_is_silent();
}

#[test]
fn loc_04_no_client_gets_a_port_that_the_gateway_listens_on() {
    let stage = Stage::standard();
    let socket = gateway_socket(&stage, "203.0.113.1:1405");
    let mapped = source(&stage.crosses(&stage.udp("192.168.1.10:1405", "198.51.100.66:9")));
    assert_ne!(mapped, public(1405));
    stage.attacker.send(&stage.udp("198.51.100.66:9", &public(1405)));
    assert_eq!(received_from(&socket), "198.51.100.66:9");
}

#[test]
fn loc_07_what_is_for_all_stays_on_the_lan() {
    let stage = Stage::standard();
    for group in ["192.168.1.255:9", "255.255.255.255:9", "224.0.0.251:5353", "239.255.255.250:1900"] {
        stage.a.send(&stage.udp(CLIENT, group).to_mac([0xff; 6]));
    }
    stage.wan.expect_silence();
    assert_eq!(stage.session_count(), 0);
}

#[test]
fn l2x_03_frames_for_another_station_are_left_alone() {
    let stage = Stage::standard();
    stage.a.send(&stage.udp(CLIENT, SERVER).to_mac([0x02, 0, 0, 0, 9, 9]));
    stage.s1.expect_silence();
    assert_eq!(stage.session_count(), 0);
}

#[test]
fn l2x_04_padding_is_not_part_of_the_packet() {
    let stage = Stage::standard();
    let packet = stage.udp(CLIENT, SERVER).from_mac(stage.lab.a.mac).to_mac(stage.lab.a.next_hop);
    let mut frame = packet.build();
    frame.resize(frame.len() + 30, 0xee);
    stage.a.send_frame(&frame);
    let seen = stage.s1.expect("the padded datagram", |seen| seen.udp().is_some());
    assert_eq!(seen.ip().total_length, nat_tests::Decoded::parse(&frame).ip().total_length);
    assert_eq!(seen.checksums_valid(), Ok(()));
}

#[test]
fn l2x_05_frames_carry_the_addresses_of_their_link() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let out = stage.wan.expect("the datagram on the WAN", |seen| seen.udp().is_some());
    assert_eq!((out.from, out.to), (stage.lab.gateway.mac, stage.lab.isp.mac));
    let back = stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
    assert_eq!((back.from, back.to), (stage.lab.a.next_hop, stage.lab.a.mac));
}

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

#[test]
fn atk_01_and_02_forged_sources_from_outside() {
    let stage = Stage::snat("filtering = \"endpoint-independent\"");
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let forged = ["192.168.1.11:9", "192.168.1.10:40000", "203.0.113.1:9", mapped.as_str(), "127.0.0.1:9"];
    for source in forged {
        stage.wan.send(&Packet::udp(source, mapped.as_str()).payload("forged"));
        stage.wan.send(&Packet::tcp(source, "203.0.113.1:80").syn(1));
    }
    stage.lan_is_silent();
    stage.wan.expect_none("an answer to a forged packet", |seen| {
        seen.ip.as_ref().is_some_and(|ip| ip.destination.to_string() == "203.0.113.1")
    });
}

#[test]
fn atk_10_a_host_cannot_end_what_belongs_to_another() {
    let stage = Stage::standard();
    let mapped = stage.connect("192.168.1.11:40001", SERVER);
    // What b would have received, quoted by a.
    let of_b = Packet::tcp(SERVER, "192.168.1.11:40001").seq(5001).ack(1001).ip();
    stage.a.send(&Packet::icmp_error("192.168.1.10", "198.51.100.1", 3, 3, &of_b));
    stage.s1.expect_none("a forged error", |seen| seen.icmp().is_some());
    stage.reaches(&stage.data(SERVER, &mapped), &stage.b);
}
