//! Fragments: any order, either direction, every protocol.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use nat_tests::{
    Decoded, Lab, Packet, Tap,
    decode::{Ip, reassemble},
    gateway,
    packet::protocol,
    wire::{PATIENCE, SILENCE},
};

use crate::stage::{Stage, port, public, seconds, source};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";
/// What fits an MTU of 1500.
pub(crate) const SIZE: usize = 1480;
pub(crate) const ORDERS: [[usize; 3]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];

/// 4000 bytes that differ from one datagram to the next.
pub(crate) fn payload(stage: &Stage) -> Vec<u8> {
    let token = stage.token().to_be_bytes();
    (0..1000_u32).flat_map(|at| [token[2], token[3], at.to_be_bytes()[2], at.to_be_bytes()[3]]).collect()
}

/// Waits until all fragments of one datagram are at `tap`, puts them together and judges the whole.
pub(crate) fn whole(tap: &Tap, source: &str, payload: &[u8], what: &str) -> Ip {
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

/// Waits until so many datagrams are whole at `tap`, each under an identification of its own, and a moment for more.
/// What is whole has right checksums.
pub(crate) fn all_whole(tap: &Tap, count: usize, what: &str) -> Vec<Ip> {
    let mut pieces: BTreeMap<_, Vec<Decoded>> = BTreeMap::new();
    let mut wholes = BTreeMap::new();
    let mut deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let is_fragment = |seen: &Decoded| seen.ip.as_ref().is_some_and(Ip::is_fragment);
        let Some(piece) = tap.recv_matching(left, is_fragment) else { break };
        let ip = piece.decoded.ip();
        let key = (ip.source, ip.destination, ip.protocol, ip.id);
        let of_datagram = pieces.entry(key).or_default();
        of_datagram.push(piece.decoded);
        if let Some(datagram) = reassemble(&*of_datagram) {
            assert_eq!(datagram.checksums_valid(), Ok(()), "{what}");
            wholes.insert(key, datagram);
        }
        deadline = Instant::now() + if wholes.len() < count { PATIENCE } else { SILENCE };
    }
    assert_eq!(wholes.len(), count, "{what}: datagrams that are whole, of {}", pieces.len());
    wholes.into_values().collect()
}

/// How many packets and fragments natgw says it holds.
pub(crate) fn waiting(gateway: &nat_tests::Gateway) -> u64 {
    gateway.natgw(&["status", "--json"])["waiting"].as_u64().expect("a number that waits")
}

pub(crate) fn datagram(number: u8, source: &str, destination: &str, id: u16, reply: bool) -> Packet {
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
        pieces.push(stage.s1.expect("six fragments", |seen| seen.ip.as_ref().is_some_and(Ip::is_fragment)));
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
    for (id, pause) in [(1, 0.5), (2, 1.5)] {
        for order in [[2, 1, 0], [0, 1, 2]] {
            let out = payload(&stage);
            let packet = Packet::udp(CLIENT, SERVER).payload(&out).id(id);
            for (number, fragment) in order.into_iter().enumerate() {
                seconds(if number == 0 { 0.0 } else { pause });
                stage.a.send_fragments(&packet, SIZE, &[fragment]);
            }
            whole(&stage.s1, "203.0.113.1", &out, &format!("{pause} s, {order:?}"));
        }
    }
}

#[test]
fn frg_07_every_fragment_twice() {
    let stage = Stage::standard();
    let eleven_times = [&[0; 11][..], &[1, 2]].concat();
    let orders: [&[usize]; 6] = [
        &[0, 0, 1, 1, 2, 2],
        &[0, 1, 1, 0, 2, 2],
        &[2, 2, 1, 1, 0, 0],
        &[1, 0, 2, 1, 0, 2],
        &[0, 1, 2, 0, 1, 2],
        &eleven_times,
    ];
    for (id, order) in (1..).zip(orders) {
        let out = payload(&stage);
        stage.a.send_fragments(&Packet::udp(CLIENT, SERVER).payload(&out).id(id), SIZE, order);
        let wholes = all_whole(&stage.s1, 1, &format!("{order:?}"));
        assert_eq!(wholes[0].payload(), out);
        assert_eq!((stage.session_count(), waiting(&stage.gateway)), (1, 0), "{order:?}");
    }
}

#[test]
fn frg_10_fragments_without_a_first_one_go_nowhere() {
    let stage = Stage::timeouts("fragment = \"2s\"");
    stage.a.send_fragments(&Packet::udp(CLIENT, SERVER).payload(payload(&stage)), SIZE, &[1, 2]);
    stage.s1.expect_silence();
    stage.gateway.wait_until("both wait", PATIENCE, |gateway| waiting(gateway) == 2);
    stage.gateway.wait_until("nothing waits", Duration::from_secs(5), |gateway| waiting(gateway) == 0);
    assert_eq!(stage.gateway.drops().get("fragment"), Some(&2));
    assert_eq!(stage.session_count(), 0);
    stage.a.expect_silence();
    stage.s1.expect_silence();
}

#[test]
fn frg_11_what_never_becomes_whole_is_told_by_the_server() {
    let stage = Stage::standard();
    // The server's kernel gives up soon, and says so although it hears nothing else.
    stage.lab.s1.sysctl("ipv4.ipfrag_time", "1");
    let packet = Packet::udp(CLIENT, SERVER).payload(payload(&stage));
    stage.a.send_fragments(&packet, SIZE, &[0, 1]);
    let error =
        stage.a.expect("ICMP 11/1", |seen| seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code) == (11, 1)));
    assert_eq!(error.ip().source.to_string(), "198.51.100.1");
    assert_eq!(error.checksums_valid(), Ok(()));
    let quote = error.icmp().unwrap().quoted.clone().expect("a quote");
    assert_eq!((quote.source().to_string(), quote.destination().to_string()), (CLIENT.into(), SERVER.into()));
    assert_eq!(waiting(&stage.gateway), 0);
}

#[test]
fn frg_14_a_datagram_of_64_kib_backwards() {
    let stage = Stage::standard();
    let out: Vec<u8> = (0..65_507_u32).map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let order: Vec<usize> = (0..45).rev().collect();
    stage.a.send_fragments(&Packet::udp(CLIENT, SERVER).payload(&out), SIZE, &order);
    let mapped = whole(&stage.s1, "203.0.113.1", &out, "64 KiB out").source().to_string();
    stage.s1.send_fragments(&Packet::udp(SERVER, mapped.as_str()).payload(&out), SIZE, &order);
    let seen = whole(&stage.a, "198.51.100.1", &out, "64 KiB in");
    assert_eq!(seen.destination().to_string(), CLIENT);
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
fn frg_19_21_and_22_datagrams_with_one_id_stay_apart() {
    let stage = Stage::standard();
    // One host, two protocols.
    let outs = [payload(&stage), payload(&stage)];
    let packets = [
        Packet::udp(CLIENT, SERVER).payload(&outs[0]).id(7),
        Packet::tcp(CLIENT, SERVER).seq(77).ack(1).payload(&outs[1]).id(7),
    ];
    for (datagram, fragment) in [(0, 1), (1, 1), (1, 0), (0, 2), (0, 0), (1, 2)] {
        stage.a.send_fragments(&packets[datagram], SIZE, &[fragment]);
    }
    for seen in all_whole(&stage.s1, 2, "two protocols") {
        assert_eq!(seen.payload(), outs[usize::from(seen.protocol == protocol::TCP)]);
    }
    // Two servers, to two clients.
    let of_a = source(&stage.crosses(&stage.udp("192.168.1.10:40001", "198.51.100.1:5000")));
    let of_b = source(&stage.crosses(&stage.udp("192.168.1.11:40002", "198.51.100.2:5000")));
    let to_a = Packet::udp("198.51.100.1:5000", of_a.as_str()).payload(&outs[0]).id(7);
    let to_b = Packet::udp("198.51.100.2:5000", of_b.as_str()).payload(&outs[1]).id(7);
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
        for fragment in order {
            stage.s1.send_fragments(&to_a, SIZE, &[fragment]);
            stage.s2.send_fragments(&to_b, SIZE, &[fragment]);
        }
        whole(&stage.a, "198.51.100.1", &outs[0], "to a");
        whole(&stage.b, "198.51.100.2", &outs[1], "to b");
    }
    // One host again, with the same id for another flow.
    for (server, out) in [("198.51.100.1:5000", &outs[0]), ("198.51.100.1:5001", &outs[1])] {
        stage.a.send_fragments(&Packet::udp(CLIENT, server).payload(out).id(9), SIZE, &[0, 1, 2]);
        let seen = whole(&stage.s1, "203.0.113.1", out, server);
        assert_eq!(seen.destination().to_string(), server);
        seconds(0.1);
    }
}

#[test]
fn frg_20_datagrams_of_two_hosts_with_one_id_are_told_apart() {
    const ROUNDS: usize = 100;
    // Datagrams that come in pieces, whose first piece is cut again, and whole ones that are cut here.
    for (mtu, from) in [(1500, SIZE), (1400, SIZE), (1400, 4008)] {
        let stage = Stage::build(Lab::builder().wan_mtu(mtu), gateway::STANDARD);
        let large = from == SIZE;
        // One id for all, more often than any host would: as long as nothing has to wait.
        stage.crosses(&stage.udp("192.168.1.10:40000", SERVER));
        stage.crosses(&stage.udp("192.168.1.11:40001", SERVER));
        let mut sent = Vec::new();
        for _ in 0..ROUNDS {
            let outs = [payload(&stage), payload(&stage)];
            let packets: Vec<Packet> = ["192.168.1.10:40000", "192.168.1.11:40001"]
                .iter()
                .zip(&outs)
                .map(|(client, out)| (client, if large { &out[..] } else { &out[..1472] }))
                .map(|(client, out)| Packet::udp(*client, SERVER).payload(out).id(0x1234))
                .collect();
            if large {
                for fragment in 0..3 {
                    stage.a.send_fragments(&packets[0], SIZE, &[fragment]);
                    stage.b.send_fragments(&packets[1], SIZE, &[fragment]);
                }
            } else {
                stage.a.send(&packets[0]);
                stage.b.send(&packets[1]);
            }
            sent.extend(outs.map(|out| if large { out } else { out[..1472].to_vec() }));
        }
        // Each is whole under an id that no other has: as often as the test sends, none comes again.
        let seen = all_whole(&stage.s1, 2 * ROUNDS, &format!("MTU {mtu}, {from}"));
        let arrived = |out: &[u8]| seen.iter().any(|datagram| datagram.payload() == out);
        assert!(sent.iter().all(|out| arrived(out)), "MTU {mtu}");
    }
}

#[test]
fn frg_26_fragments_are_cut_again_for_a_smaller_link() {
    let stage = Stage::build(Lab::builder().lan_mtu(1280), gateway::STANDARD);
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    for (id, order) in (500..).zip(ORDERS) {
        let out = payload(&stage);
        let packet = Packet::udp(SERVER, mapped.as_str()).payload(&out).id(id);
        stage.s1.send_fragments(&packet, SIZE, &order);
        let seen = whole(&stage.a, "198.51.100.1", &out, &format!("{order:?}"));
        assert_eq!(seen.id, id, "{order:?}");
    }
    let too_big = |seen: &Decoded| seen.ip.as_ref().is_some_and(|ip| ip.total_length > 1280);
    assert_eq!(stage.a.incoming(too_big).len(), 0);
}

#[test]
fn frg_27_fragments_that_may_not_be_cut() {
    let stage = Stage::build(Lab::builder().wan_mtu(1400), gateway::STANDARD);
    let out = payload(&stage);
    let packet = Packet::udp(CLIENT, SERVER).payload(&out).df();
    for (id, size, order) in [(1, 1376, &[0, 1, 2][..]), (2, 1000, &[3, 1, 0, 2, 4])] {
        stage.a.send_fragments(&packet.clone().id(id), size, order);
        whole(&stage.s1, "203.0.113.1", &out, &format!("fragments of {size}"));
        let seen = stage.s1.incoming(|seen| seen.ip.as_ref().is_some_and(Ip::is_fragment));
        assert!(seen.iter().all(|seen| seen.ip().df && seen.ip().body.len() <= size), "{size}");
        stage.s1.clear();
    }
    stage.a.send_fragments(&packet.id(9), SIZE, &[1, 0, 2]);
    let error = stage.a.expect("ICMP 3/4", |seen| {
        seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code, icmp.seq) == (3, 4, 1400))
    });
    assert_eq!(error.icmp().unwrap().quoted.clone().unwrap().source().to_string(), CLIENT);
    // Once: of later fragments nobody is told (RFC 1812 section 4.3.2.7).
    stage.a.expect_silence();
    stage.s1.expect_silence();
}

#[test]
fn frg_30_fragments_and_whole_packets_share_a_mapping() {
    let stage = Stage::standard();
    let mapped = port(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let out = payload(&stage);
    stage.a.send_fragments(&Packet::udp(CLIENT, SERVER).payload(&out), SIZE, &[2, 0, 1]);
    assert_eq!(whole(&stage.s1, "203.0.113.1", &out, "after a whole one").source().port(), mapped);
    assert_eq!(source(&stage.crosses(&stage.udp(CLIENT, SERVER))), public(mapped));
}
