//! Fragments: any order, either direction, every protocol.

use nat_tests::{Decoded, Packet, Tap, decode::reassemble, packet::protocol};

use crate::stage::{Stage, port, seconds, source};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";
/// What fits an MTU of 1500.
const SIZE: usize = 1480;
const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

/// 4000 bytes that differ from one datagram to the next.
fn payload(stage: &Stage) -> Vec<u8> {
    let token = stage.token().to_be_bytes();
    (0..1000_u32).flat_map(|at| [token[2], token[3], at.to_be_bytes()[2], at.to_be_bytes()[3]]).collect()
}

/// Waits until all fragments of one datagram are at `tap`, puts them together and judges the whole.
fn whole(tap: &Tap, source: &str, payload: &[u8], what: &str) -> nat_tests::decode::Ip {
    let from: std::net::Ipv4Addr = source.parse().unwrap();
    let mut pieces: Vec<Decoded> = Vec::new();
    loop {
        let piece = tap
            .expect(&format!("{what}: a fragment from {source}, {} so far", pieces.len()), |seen| {
                seen.ip.as_ref().is_some_and(|ip| ip.is_fragment() && ip.source == from)
            });
        pieces.push(piece);
        if let Some(datagram) = reassemble(&pieces) {
            assert_eq!(datagram.checksums_valid(), Ok(()), "{what}");
            assert_eq!(datagram.payload(), payload, "{what}");
            return datagram;
        }
    }
}

fn datagram(number: u8, source: &str, destination: &str, id: u16, reply: bool) -> Packet {
    match number {
        protocol::UDP => Packet::udp(source, destination),
        protocol::TCP => Packet::tcp(source, destination).seq(77).ack(1),
        _ if reply => Packet::echo_reply(source, destination, id, 1),
        _ => Packet::echo_request(source, destination, id, 1),
    }
}

#[test]
fn frg_01_to_04_every_order_protocol_and_direction() {
    let stage = Stage::standard();
    let mut id = 100;
    for number in [protocol::UDP, protocol::TCP, protocol::ICMP] {
        for (flow, order) in (50_000_u16..).zip(ORDERS) {
            // Each order begins a flow: the first fragment seen may be one without ports.
            let client = format!("192.168.1.10:{flow}");
            let what = format!("protocol {number}, order {order:?}");
            let out = payload(&stage);
            let packet = datagram(number, &client, SERVER, flow, false).payload(&out).id(id);
            stage.a.send_fragments(&packet, SIZE, &order);
            let seen = whole(&stage.s1, "203.0.113.1", &out, &format!("{what}, outbound"));
            let back = payload(&stage);
            let mapped = seen.source().to_string();
            let reply =
                datagram(number, SERVER, &mapped, seen.source().port(), true).payload(&back).id(id + 1);
            stage.s1.send_fragments(&reply, SIZE, &order);
            let seen = whole(&stage.a, "198.51.100.1", &back, &format!("{what}, inbound"));
            assert_eq!(seen.destination().port(), flow, "{what}");
            id += 2;
        }
    }
}

#[test]
fn frg_05_interleaved_datagrams_stay_apart() {
    let stage = Stage::standard();
    let payloads = [payload(&stage), payload(&stage)];
    let packets = [1, 2].map(|id| Packet::udp(CLIENT, SERVER).payload(&payloads[usize::from(id) - 1]).id(id));
    for (datagram, fragment) in [(0, 0), (1, 0), (1, 1), (0, 1), (0, 2), (1, 2)] {
        stage.a.send_fragments(&packets[datagram], SIZE, &[fragment]);
    }
    let mut pieces: Vec<Decoded> = Vec::new();
    while pieces.len() < 6 {
        pieces.push(stage.s1.expect("six fragments", |seen| {
            seen.ip.as_ref().is_some_and(nat_tests::decode::Ip::is_fragment)
        }));
    }
    for payload in &payloads {
        let id = pieces.iter().find(|piece| piece.payload() == &payload[..SIZE - 8]).unwrap().ip().id;
        let of_datagram = pieces.iter().filter(|piece| piece.ip().id == id);
        assert_eq!(reassemble(of_datagram).unwrap().payload(), payload);
    }
}

#[test]
fn frg_06_slow_fragments_are_waited_for() {
    let stage = Stage::standard();
    let out = payload(&stage);
    let packet = Packet::udp(CLIENT, SERVER).payload(&out);
    for fragment in [2, 1, 0] {
        stage.a.send_fragments(&packet, SIZE, &[fragment]);
        seconds(0.7);
    }
    whole(&stage.s1, "203.0.113.1", &out, "slow");
}

#[test]
fn frg_10_fragments_without_a_first_one_go_nowhere() {
    let stage = Stage::with(&format!("{}\n[timeouts]\nfragment = \"2s\"\n", nat_tests::gateway::STANDARD));
    stage.a.send_fragments(&Packet::udp(CLIENT, SERVER).payload(payload(&stage)), SIZE, &[1, 2]);
    stage.s1.expect_silence();
    seconds(3.0);
    assert_eq!(stage.session_count(), 0);
    stage.a.expect_silence();
}

#[test]
fn frg_14_a_datagram_of_64_kib_backwards() {
    let stage = Stage::standard();
    let out: Vec<u8> = (0..65_000_u32).map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let order: Vec<usize> = (0..44).rev().collect();
    stage.a.send_fragments(&Packet::udp(CLIENT, SERVER).payload(&out), SIZE, &order);
    whole(&stage.s1, "203.0.113.1", &out, "64 KiB");
}

#[test]
fn frg_18_no_udp_checksum_stays_none() {
    let stage = Stage::standard();
    let out = payload(&stage);
    stage.a.send_fragments(&Packet::udp(CLIENT, SERVER).payload(&out).checksum(0), SIZE, &[1, 0, 2]);
    let seen = whole(&stage.s1, "203.0.113.1", &out, "no checksum");
    assert_eq!(seen.udp().unwrap().checksum, 0);
}

#[test]
fn frg_20_datagrams_of_two_hosts_with_one_id_are_told_apart() {
    let stage = Stage::standard();
    let payloads = [payload(&stage), payload(&stage)];
    let packets = ["192.168.1.10:40000", "192.168.1.11:40001"]
        .iter()
        .zip(&payloads)
        .map(|(client, payload)| Packet::udp(*client, SERVER).payload(payload).id(0x1234));
    let packets: Vec<Packet> = packets.collect();
    for fragment in 0..3 {
        stage.a.send_fragments(&packets[0], SIZE, &[fragment]);
        stage.b.send_fragments(&packets[1], SIZE, &[fragment]);
    }
    let mut pieces: Vec<Decoded> = Vec::new();
    while pieces.len() < 6 {
        pieces.push(stage.s1.expect("six fragments", |seen| {
            seen.ip.as_ref().is_some_and(nat_tests::decode::Ip::is_fragment)
        }));
    }
    let mut ids: Vec<u16> = pieces.iter().map(|piece| piece.ip().id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 2, "an id for each datagram: {ids:?}");
    for id in ids {
        let datagram =
            reassemble(pieces.iter().filter(|piece| piece.ip().id == id)).expect("a whole datagram");
        assert!(payloads.iter().any(|payload| payload == datagram.payload()));
    }
}

#[test]
fn frg_30_fragments_and_whole_packets_share_a_mapping() {
    let stage = Stage::standard();
    let mapped = port(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let out = payload(&stage);
    stage.a.send_fragments(&Packet::udp(CLIENT, SERVER).payload(&out), SIZE, &[2, 0, 1]);
    assert_eq!(whole(&stage.s1, "203.0.113.1", &out, "after a whole one").source().port(), mapped);
    assert_eq!(source(&stage.crosses(&stage.udp(CLIENT, SERVER))), format!("203.0.113.1:{mapped}"));
}
