//! Fragments that contradict themselves or each other, and floods of them.

use std::{
    io,
    net::UdpSocket,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nat_tests::{Decoded, Host, Packet, decode::Ip, gateway};

use crate::{
    frg::{ORDERS, SIZE, payload, waiting, whole},
    stage::{Stage, seconds, source},
};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";

/// The server's kernel is the judge: what it takes for a datagram to one of these ports.
fn judges(stage: &Stage, ports: &[u16]) -> Vec<UdpSocket> {
    stage.lab.s1.nft("delete table ip mute");
    let listen = |port: &u16| {
        let socket = stage.lab.s1.within(|| UdpSocket::bind(("198.51.100.1", *port))).expect("bind");
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("set a timeout");
        socket
    };
    ports.iter().map(listen).collect()
}

/// All that a socket gets until it gets nothing for a moment.
fn heard(socket: &UdpSocket) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut buffer = vec![0; 65_536];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, _)) => all.push(buffer[..length].to_vec()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return all,
            Err(error) => panic!("receive: {error}"),
        }
    }
}

fn is_fragment(seen: &Decoded) -> bool {
    seen.ip.as_ref().is_some_and(Ip::is_fragment)
}

#[test]
fn frg_08_overlaps_of_equal_bytes() {
    let stage = Stage::standard();
    let sockets = judges(&stage, &[5000]);
    for id in 1..5_u16 {
        let out = payload(&stage);
        let packet = Packet::udp(CLIENT, SERVER).payload(&out).id(id);
        // Cuts of 200 bytes (21 of them) and of 296 (14), mixed: forwards, backwards, one after the other.
        let (mut small, mut large): (Vec<usize>, Vec<usize>) = ((0..21).collect(), (0..14).collect());
        if id % 2 == 0 {
            small.reverse();
            large.reverse();
        }
        if id > 2 {
            stage.a.send_fragments(&packet, 200, &small);
            stage.a.send_fragments(&packet, 296, &large);
        } else {
            for (number, fragment) in small.into_iter().enumerate() {
                stage.a.send_fragments(&packet, 200, &[fragment]);
                stage.a.send_fragments(&packet, 296, large.get(number..=number).unwrap_or_default());
            }
        }
        for datagram in heard(&sockets[0]) {
            assert!(datagram == out, "id {id}: a datagram that nobody has sent");
        }
    }
    // And what nobody overlaps passes.
    let out = payload(&stage);
    stage.a.send_fragments(&Packet::udp(CLIENT, SERVER).payload(&out).id(9), 200, &[20, 1, 0]);
    stage.a.send_fragments(
        &Packet::udp(CLIENT, SERVER).payload(&out).id(9),
        200,
        &(2..20).collect::<Vec<_>>(),
    );
    assert_eq!(heard(&sockets[0]), [out]);
}

#[test]
fn frg_09_overlaps_of_other_bytes() {
    let stage = Stage::standard();
    let sockets = judges(&stage, &[5000, 5001]);
    for (id, order) in (1..).zip(ORDERS) {
        let (right, mut wrong) = (payload(&stage), payload(&stage));
        wrong.reverse();
        let packet = Packet::udp(CLIENT, SERVER).payload(&right).id(id);
        // Teardrop: what lies over the end of the first and the beginning of the third has other bytes.
        let other = Packet::udp(CLIENT, SERVER).payload(&wrong).id(id);
        let over = Decoded::parse(&packet.build()).ip().body[..SIZE + 16].len() / 8 - 4;
        let teardrop = Packet::raw("192.168.1.10", "198.51.100.1", 17)
            .payload(&wrong[..SIZE])
            .fragment_offset(u16::try_from(over).unwrap())
            .more_fragments()
            .id(id);
        // A second beginning: other ports, other bytes.
        let elsewhere = Packet::udp("192.168.1.10:40001", "198.51.100.1:5001").payload(&wrong).id(id);
        for fragment in order {
            stage.a.send_fragments(&packet, SIZE, &[fragment]);
            match id % 3 {
                0 => drop(stage.a.send(&teardrop)),
                1 => stage.a.send_fragments(&elsewhere, SIZE, &[0]),
                _ => stage.a.send_fragments(&other, SIZE, &[fragment.min(1)]),
            }
        }
        for (socket, port) in sockets.iter().zip([5000, 5001]) {
            for datagram in heard(socket) {
                let sent = datagram == right || datagram == wrong;
                assert!(
                    sent,
                    "{order:?}: a datagram to {port} that nobody has sent, {} bytes",
                    datagram.len()
                );
            }
        }
        // Wherever a beginning passes, its ports are those that were translated.
        for first in stage.s1.incoming(|seen| is_fragment(seen) && seen.ip().offset == 0) {
            let inside = if first.destination().unwrap().port() == 5001 { 40_001 } else { 40_000 };
            assert_eq!(source(&first), format!("203.0.113.1:{inside}"), "{order:?}");
        }
    }
    let out = payload(&stage);
    stage.a.send_fragments(&Packet::udp(CLIENT, SERVER).payload(&out).id(99), SIZE, &[1, 0, 2]);
    assert_eq!(heard(&sockets[0]), [out]);
}

#[test]
fn frg_15_16_and_17_fragments_that_cannot_be_right() {
    let one_to_one = "[[static]]\nexternal = \"203.0.113.2\"\ninternal = \"192.168.1.11\"\n";
    let stage = Stage::with(&format!("{}{one_to_one}", gateway::STANDARD));
    // Behind the shared address, and behind one of its own.
    for (client, public) in [("192.168.1.10", "203.0.113.1"), ("192.168.1.11", "203.0.113.2")] {
        let tap = stage.tap(client.parse().unwrap());
        for number in [17, 6, 1] {
            let piece = |length: usize| {
                Packet::raw(client, "198.51.100.1", number).payload(vec![0x5a; length]).id(number.into())
            };
            let ping_of_death = piece(1480).fragment_offset(8190);
            let odd = piece(1001).fragment_offset(100).more_fragments();
            let odd_first = piece(1001).more_fragments();
            let empty = piece(0).fragment_offset(100);
            let empty_first = piece(0).more_fragments();
            for packet in [ping_of_death, odd, odd_first, empty, empty_first] {
                tap.send(&packet);
            }
        }
        let of_tcp = |seen: &Decoded| {
            is_fragment(seen) && seen.ip().protocol == 6 && seen.ip().source.to_string() == public
        };
        let is_new = |seen: &Decoded| is_fragment(seen) && seen.ip().source.to_string() == public;
        stage.wan.expect_none("a fragment that cannot be right", is_new);
        assert_eq!(waiting(&stage.gateway), 0);
        let udp = |id| Packet::udp(format!("{client}:40000").as_str(), SERVER).id(id);
        // The least there can be: eight bytes in the first, one in the last.
        for (id, order) in (100..).zip(ORDERS) {
            let out = [&[0x5a; 8][..], b"1"].concat();
            tap.send_fragments(&udp(id).payload(&out), 8, &order);
            whole(&stage.s1, public, &out, &format!("{public}, eight bytes, {order:?}"));
        }
        // A TCP header in pieces, and a piece that would lie over a header that was whole.
        let tcp = Packet::tcp(format!("{client}:40001").as_str(), SERVER).seq(77).ack(1).payload([7; 400]);
        tap.send_fragments(&tcp.clone().id(200), 8, &[0, 1]);
        stage.wan.expect_none("half a TCP header", of_tcp);
        tap.send_fragments(&tcp.clone().id(201), 8, &[1, 0]);
        stage.wan.expect_none("half a TCP header", of_tcp);
        tap.send_fragments(&tcp.clone().id(202), 208, &[0]);
        tap.send_fragments(&tcp.clone().id(202), 8, &[1]);
        tap.send_fragments(&tcp.id(202), 208, &[1, 2]);
        whole(&stage.s1, public, &[7; 400], &format!("{public}, around a piece of a header"));
        let pieces = stage.s1.incoming(of_tcp);
        assert!(pieces.iter().all(|piece| piece.ip().offset != 8), "{public}");
        stage.s1.clear();
    }
}

/// Later fragments without end from one side, until told to stop: a few thousand a second.
fn flood(host: &Host, packet: impl Fn(u32) -> Packet, stop: &AtomicBool) -> u32 {
    let tap = host.tap();
    let mut sent = 0_u32;
    // An end of its own: a case that fails must not flood on.
    let end = Instant::now() + Duration::from_secs(60);
    while !stop.load(Ordering::Relaxed) && Instant::now() < end {
        for _ in 0..50 {
            // Numbers that look random, and do not come again.
            tap.send(&packet(sent.wrapping_mul(2_654_435_761)));
            sent += 1;
        }
        tap.clear();
        thread::sleep(Duration::from_millis(4));
    }
    sent
}

fn later(source: std::net::Ipv4Addr, destination: &str, id: u32) -> Packet {
    let id = u16::try_from(id >> 16).unwrap();
    Packet::raw(source, destination, 17).payload([0; 64]).fragment_offset(185).more_fragments().id(id)
}

/// 200 000 fragments a second for 30 s are for a machine of its own; here both ends, the gateway (not optimised) and
/// the flood share two CPUs, so it is about 20 000 in all, enough to fill the table several times over.
#[test]
fn frg_12_and_13_floods_of_later_fragments() {
    const BOUND: u64 = 8192;
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let stop = AtomicBool::new(false);
    let (from_lan, from_wan, from_one) = thread::scope(|scope| {
        let lan = scope.spawn(|| {
            let source = |number: u32| std::net::Ipv4Addr::from(0xc0a8_0000 | (number >> 8) & 0xffff);
            flood(&stage.lab.c, |number| later(source(number), "198.51.100.1", number), &stop)
        });
        let wan = scope.spawn(|| {
            let source = |number: u32| std::net::Ipv4Addr::from(0x0800_0000 | (number >> 8));
            flood(&stage.lab.isp, |number| later(source(number), "203.0.113.1", number), &stop)
        });
        let one = scope.spawn(|| {
            flood(&stage.lab.b, |number| later(stage.lab.b.address, "198.51.100.1", number), &stop)
        });
        stage.gateway.wait_until("the table is full", Duration::from_secs(20), |gateway| {
            gateway.drops().get("hold_full").is_some_and(|dropped| *dropped > 2000)
        });
        let begun = stage.gateway.drops()["hold_full"];
        for round in 0..5 {
            // Whole packets of what is established, both ways; datagrams in order and reversed, of old flows and of new.
            for _ in 0..20 {
                stage.crosses(&stage.udp(CLIENT, SERVER));
                stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
            }
            for (turn, order) in (0..).zip([[0, 1, 2], [2, 1, 0]]) {
                let id = 60_000 + 2 * round + turn;
                let out = payload(&stage);
                let client = format!("192.168.1.10:{}", id - 10_000);
                stage.a.send_fragments(
                    &Packet::udp(client.as_str(), SERVER).payload(&out).id(id),
                    SIZE,
                    &order,
                );
                whole(&stage.s1, "203.0.113.1", &out, &format!("out, {order:?}"));
                let back = payload(&stage);
                stage.s1.send_fragments(
                    &Packet::udp(SERVER, mapped.as_str()).payload(&back).id(id),
                    SIZE,
                    &order,
                );
                whole(&stage.a, "198.51.100.1", &back, &format!("in, {order:?}"));
            }
            let held = waiting(&stage.gateway);
            assert!((BOUND / 2..=BOUND).contains(&held), "{held} wait");
            seconds(0.1);
        }
        assert!(stage.gateway.drops()["hold_full"] > begun, "the flood went on all the time");
        stop.store(true, Ordering::Relaxed);
        (lan.join().unwrap(), wan.join().unwrap(), one.join().unwrap())
    });
    assert!(from_lan > 4000 && from_wan > 4000 && from_one > 4000, "{from_lan}, {from_wan}, {from_one}");
    let of_flood = |seen: &Decoded| seen.ip.as_ref().is_some_and(|ip| ip.body == [0; 64]);
    assert_eq!(stage.wan.incoming(of_flood).len(), 0, "nothing of it is forwarded");
    stage.wan.expect_none("an answer to a flood", |seen| seen.icmp().is_some());
}
