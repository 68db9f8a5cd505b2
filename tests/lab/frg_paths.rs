//! Fragments on other ways than out of the LAN: hairpins, forwards, one-to-one addresses, the gateway's own sockets,
//! several queues, and what has to be refused.

use std::{net::UdpSocket, thread, time::Duration};

use nat_tests::{Decoded, Lab, Packet, decode::Ip, gateway, host::Host, packet::protocol, wire::PATIENCE};

use crate::{
    frg::{ORDERS, SIZE, all_whole, datagram, payload, waiting, whole},
    stage::{Stage, scaled, seconds, source},
};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";

#[test]
fn frg_23_hairpins() {
    let stage = Stage::snat("filtering = \"endpoint-independent\"");
    let of_b = source(&stage.crosses(&stage.udp("192.168.1.11:40001", SERVER)));
    for (flow, order) in (41_000..).zip(ORDERS) {
        let client = format!("192.168.1.10:{flow}");
        let out = payload(&stage);
        let request = Packet::udp(client.as_str(), of_b.as_str()).payload(&out);
        stage.a.send_fragments(&request.id(flow), SIZE, &order);
        let seen = whole(&stage.b, "203.0.113.1", &out, &format!("{order:?}"));
        assert_eq!(seen.destination().to_string(), "192.168.1.11:40001");
        let back = payload(&stage);
        let reply = Packet::udp("192.168.1.11:40001", seen.source()).payload(&back);
        stage.b.send_fragments(&reply.id(flow), SIZE, &order);
        let seen = whole(&stage.a, "203.0.113.1", &back, &format!("{order:?}, back"));
        assert_eq!((seen.source().to_string(), seen.destination().to_string()), (of_b.clone(), client));
    }
}

#[test]
fn frg_24_and_25_forwards_and_one_to_one_addresses() {
    let forward = "[[forward]]\nprotocol = [\"tcp\", \"udp\"]\nexternal = \"203.0.113.1:8080\"\ninternal = \"192.168.1.10:80\"\n";
    let one_to_one = "[[static]]\nexternal = \"203.0.113.2\"\ninternal = \"192.168.1.10\"\n";
    for (rules, outside, inside) in
        [(forward, "203.0.113.1:8080", "192.168.1.10:80"), (one_to_one, "203.0.113.2:80", "192.168.1.10:80")]
    {
        let stage = Stage::with(&format!("{}{rules}", gateway::STANDARD));
        let mut id = 100;
        for number in [protocol::UDP, protocol::TCP] {
            for (flow, order) in (5000..).zip(ORDERS) {
                // The first fragments of a flow, and for one-to-one of anything: no neighbour is known yet.
                let (server, what) =
                    (format!("198.51.100.1:{flow}"), format!("{outside}, {number}, {order:?}"));
                let request = payload(&stage);
                let packet = match number {
                    protocol::UDP => datagram(number, &server, outside, 0, false),
                    _ => Packet::tcp(server.as_str(), outside).syn(77),
                };
                stage.s1.send_fragments(&packet.payload(&request).id(id), SIZE, &order);
                let seen = whole(&stage.a, "198.51.100.1", &request, &what);
                assert_eq!(
                    (seen.source().to_string(), seen.destination().to_string()),
                    (server.clone(), inside.to_owned())
                );
                let reply = payload(&stage);
                let packet = datagram(number, inside, &server, 0, true).payload(&reply).id(id);
                stage.a.send_fragments(&packet, SIZE, &order);
                let seen = whole(&stage.s1, &outside[..11], &reply, &what);
                assert_eq!(seen.source().to_string(), outside, "{what}");
                id += 1;
            }
        }
    }
}

#[test]
fn frg_25_one_to_one_fragments_wait_for_nobody() {
    let one_to_one = "[[static]]\nexternal = \"203.0.113.2\"\ninternal = \"192.168.1.10\"\n";
    let stage = Stage::with(&format!("{}{one_to_one}", gateway::STANDARD));
    let out = payload(&stage);
    for number in [protocol::UDP, protocol::TCP, protocol::ICMP, protocol::GRE] {
        let sent = |source: &str, destination: &str| match number {
            protocol::GRE => Packet::raw(source, destination, number),
            _ => datagram(number, source, destination, 5, false),
        };
        for fragment in [2, 1, 0] {
            // Each is at its destination before the next is sent: the first is no one to wait for.
            let came = |tap: &nat_tests::Tap, from: &str| {
                let from: std::net::Ipv4Addr = from.parse().unwrap();
                tap.expect(&format!("fragment {fragment} of {number}"), |seen| {
                    seen.ip.as_ref().is_some_and(|ip| ip.is_fragment() && ip.source == from)
                })
            };
            stage.s1.send_fragments(&sent(SERVER, "203.0.113.2:9").payload(&out).id(77), SIZE, &[fragment]);
            assert_eq!(came(&stage.a, "198.51.100.1").ip().id, 77);
            stage.a.send_fragments(&sent("192.168.1.10:9", SERVER).payload(&out).id(78), SIZE, &[fragment]);
            assert_eq!(came(&stage.s1, "203.0.113.2").ip().id, 78);
        }
    }
    assert_eq!((stage.session_count(), waiting(&stage.gateway)), (0, 0));
}

#[test]
fn frg_28_the_gateways_own() {
    let stage = Stage::standard();
    // A mapping lives there as well, so that the gateway's addresses are not its own alone.
    stage.crosses(&stage.udp(CLIENT, SERVER));
    let ike = listen(&stage.lab.gateway, "203.0.113.1:500");
    let dns = listen(&stage.lab.gateway, "203.0.113.1:33333");
    let inside = listen(&stage.lab.gateway, "192.168.1.1:33333");
    for (id, order) in (1..).zip(ORDERS) {
        for (from, to, socket, tap) in [
            (SERVER, "203.0.113.1:500", &ike, &stage.s1),
            (SERVER, "203.0.113.1:33333", &dns, &stage.s1),
            (CLIENT, "192.168.1.1:33333", &inside, &stage.a),
        ] {
            let out = payload(&stage);
            tap.send_fragments(&Packet::udp(from, to).payload(&out).id(id), SIZE, &order);
            let mut buffer = vec![0; 65_536];
            let (length, _) =
                socket.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{to}, {order:?}: {error}"));
            assert!(buffer[..length] == out, "{to}, {order:?}");
        }
        for (from, to, tap) in [
            ("198.51.100.1", "203.0.113.1", &stage.s1),
            ("192.168.1.10", "203.0.113.1", &stage.a),
            ("192.168.1.10", "192.168.1.1", &stage.a),
        ] {
            let out = payload(&stage);
            let echo = Packet::echo_request(from, to, 305, id).payload(&out).id(1000 + id);
            tap.send_fragments(&echo, SIZE, &order);
            let reply = whole(tap, to, &out, &format!("an echo of {to}, {order:?}"));
            assert_eq!(reply.icmp().map(|icmp| (icmp.kind, icmp.id, icmp.seq)), Some((0, 305, id)));
        }
    }
}

/// A UDP socket of a host.
fn listen(host: &Host, own: &str) -> UdpSocket {
    let socket = host.within(|| UdpSocket::bind(own)).unwrap_or_else(|error| panic!("bind {own}: {error}"));
    socket.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
    socket
}

/// In the normal run fewer datagrams than the row has.
#[test]
fn frg_29_one_datagram_by_two_queues() {
    let datagrams: u16 = scaled(500, 10_000);
    let lab = Lab::standard();
    lab.gateway.succeed("ethtool -L wan rx 2 tx 2");
    lab.isp.succeed("ethtool -L gw rx 2 tx 2");
    let stage = Stage::on(lab, gateway::STANDARD);
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let outs: Vec<Vec<u8>> = (0..datagrams).map(|_| payload(&stage)).collect();
    let packets: Vec<Packet> = (0..datagrams)
        .zip(&outs)
        .map(|(id, out)| Packet::udp(SERVER, mapped.as_str()).payload(out).id(id))
        .collect();
    let mut seen = Vec::new();
    // Some at a time: how many fragments of one source may wait is bounded, and one CPU may be far ahead of the other.
    for packets in packets.chunks(250) {
        // A tap sends by the queue of its CPU, as RSS would by a hash: first fragments by one, the others by the other.
        thread::scope(|scope| {
            for (cpu, fragments) in [(0, &[0][..]), (1, &[1, 2])] {
                let isp = stage.lab.isp.clone();
                scope.spawn(move || {
                    let mut set = rustix::thread::CpuSet::new();
                    set.set(cpu);
                    rustix::thread::sched_setaffinity(None, &set).expect("pin to a CPU");
                    let tap = isp.tap();
                    for packet in packets {
                        tap.send_fragments(packet, SIZE, fragments);
                    }
                });
            }
            // Under load: whole packets of the same session.
            for _ in 0..50 {
                stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
            }
        });
        seen.extend(all_whole(&stage.a, packets.len(), "two queues"));
        stage.a.clear();
    }
    let mut arrived: Vec<&[u8]> = seen.iter().map(Ip::payload).collect();
    let mut sent: Vec<&[u8]> = outs.iter().map(Vec::as_slice).collect();
    arrived.sort_unstable();
    sent.sort_unstable();
    assert!(arrived == sent, "each as it was sent");
}

#[test]
fn frg_31_a_refused_datagram_is_dropped_whole_and_told_of_once() {
    let stage = Stage::snat("ports = \"20000-20000\"");
    stage.crosses(&stage.udp("192.168.1.11:40000", SERVER));
    stage.a.send_fragments(&Packet::udp(CLIENT, SERVER).payload(payload(&stage)), SIZE, &[1, 2]);
    stage.gateway.wait_until("both wait", PATIENCE, |gateway| waiting(gateway) == 2);
    stage.a.send_fragments(&Packet::udp(CLIENT, SERVER).payload(payload(&stage)), SIZE, &[0]);
    let refusal =
        stage.a.expect("ICMP 3/13", |seen| seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code) == (3, 13)));
    assert_eq!(refusal.icmp().unwrap().quoted.clone().unwrap().source().to_string(), CLIENT);
    stage.a.expect_silence();
    stage.s1.expect_none("a fragment", |seen| seen.ip.as_ref().is_some_and(Ip::is_fragment));
    assert_eq!((waiting(&stage.gateway), stage.session_count()), (0, 1));
    assert_eq!(stage.gateway.drops().get("ports_exhausted"), Some(&3));
}

#[test]
fn frg_32_protocols_without_ports() {
    let stage = Stage::standard();
    for (id, number) in (1..).zip([9, 47, 50]) {
        for (turn, order) in (0..).zip(ORDERS) {
            let out = payload(&stage);
            let packet =
                Packet::raw("192.168.1.10", "198.51.100.1", number).payload(&out).id(id * 100 + turn);
            stage.a.send_fragments(&packet, SIZE, &order);
            whole(&stage.s1, "203.0.113.1", &out, &format!("protocol {number}, {order:?}"));
        }
        // The same remote for another host: there is no port to tell them apart by, and nothing may stay behind.
        let packet = Packet::raw("192.168.1.11", "198.51.100.1", number).payload(payload(&stage)).id(id);
        stage.b.send_fragments(&packet, SIZE, &[2, 1, 0]);
        stage.s1.expect_none("b's", |seen| seen.ip.as_ref().is_some_and(Ip::is_fragment));
        assert_eq!(waiting(&stage.gateway), 0, "protocol {number}");
    }
}

#[test]
fn frg_33_headers_of_unlike_length() {
    let stage = Stage::standard();
    // Record route stays with the first fragment, router alert is copied (RFC 791).
    let (record_route, router_alert) = ([7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 1], [0x94, 4, 0, 0]);
    let mut id = 0;
    for number in [protocol::UDP, protocol::TCP, protocol::ICMP] {
        for (flow, order) in (50_000_u16..).zip(ORDERS) {
            id += 1;
            let out = payload(&stage);
            let packet =
                datagram(number, &format!("192.168.1.10:{flow}"), SERVER, flow, false).payload(&out).id(id);
            let first = packet.clone().ip_options([&record_route[..], &router_alert].concat());
            let later = packet.ip_options(router_alert);
            for fragment in order {
                let piece = if fragment == 0 { &first } else { &later };
                stage.a.send_fragments(piece, 1400, &[fragment]);
            }
            let seen = whole(&stage.s1, "203.0.113.1", &out, &format!("protocol {number}, {order:?}"));
            assert_eq!(seen.header.len(), 36, "the first one's options");
        }
    }
}

#[test]
fn frg_34_a_thousand_at_once() {
    const HOSTS: u8 = 64;
    const EACH: u16 = 16;
    let stage = Stage::standard();
    stage.crosses(&stage.udp(CLIENT, SERVER));
    let mut packets = Vec::new();
    for host in 0..HOSTS {
        for id in 0..EACH {
            let client = format!("192.168.1.{}:{}", 100 + host, 40_000 + id);
            packets.push((payload(&stage), client, id));
        }
    }
    let send = |fragments: &[usize]| {
        for (number, (out, client, id)) in packets.iter().enumerate() {
            let packet = Packet::udp(client.as_str(), SERVER).payload(out).id(*id);
            stage.a.send_fragments(&packet, SIZE, fragments);
            // No faster than a link: the lab's switch has room for a thousand frames.
            if number % 64 == 0 {
                seconds(0.005);
            }
        }
    };
    send(&[2, 1]);
    let half = u64::from(HOSTS) * u64::from(EACH);
    stage.gateway.wait_until("all wait", Duration::from_secs(5), |gateway| waiting(gateway) == 2 * half);
    send(&[0]);
    let seen = all_whole(&stage.s1, packets.len(), "1024 datagrams");
    let arrived: std::collections::HashSet<&[u8]> = seen.iter().map(Ip::payload).collect();
    assert!(packets.iter().all(|(out, ..)| arrived.contains(&out[..])));
    assert_eq!(waiting(&stage.gateway), 0);
    let too_late = |seen: &Decoded| seen.icmp().is_some();
    assert_eq!(stage.a.incoming(too_late).len(), 0);
}
