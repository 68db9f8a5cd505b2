//! One-to-one NAT.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    thread,
    time::Duration,
};

use nat_tests::{Gateway, Lab, Packet, checksum, gateway};

use crate::stage::{Stage, port, source};

const SERVER: &str = "198.51.100.1:5000";

fn statics(external: &str, internal: &str) -> Stage {
    let rule = format!("[[static]]\nexternal = \"{external}\"\ninternal = \"{internal}\"\n");
    Stage::with(&format!("{}{rule}", gateway::STANDARD))
}

#[test]
fn one_01_and_07_an_address_stands_for_a_host() {
    // Nobody puts 203.0.113.2 on an interface: natgw answers for it (ONE-10).
    let stage = statics("203.0.113.2", "192.168.1.10");
    for number in [1, 80, 65_535] {
        let (outside, inside) = (format!("203.0.113.2:{number}"), format!("192.168.1.10:{number}"));
        for packet in [stage.udp(SERVER, &outside), stage.syn(SERVER, &outside), stage.data(SERVER, &outside)]
        {
            let seen = stage.reaches(&packet, &stage.a);
            assert_eq!(
                (source(&seen), seen.destination().unwrap().to_string()),
                (SERVER.to_owned(), inside.clone())
            );
        }
        assert_eq!(source(&stage.crosses(&stage.udp(&inside, SERVER))), outside);
        assert_eq!(source(&stage.crosses(&stage.data(&inside, SERVER))), outside);
        let echo = Packet::echo_request("198.51.100.1", "203.0.113.2", number, 1);
        assert_eq!(port(&stage.reaches(&echo, &stage.a)), number);
        let reply = Packet::echo_reply("192.168.1.10", "198.51.100.1", number, 1);
        assert_eq!(source(&stage.crosses(&reply)), outside);
    }
    assert_eq!(stage.session_count(), 0, "one-to-one keeps no state");
}

/// A UDP-Lite datagram (RFC 3828): the checksum is over a pseudo-header with the addresses, and over as many bytes
/// as the coverage says; zero is all.
fn lite(from: &str, to: &str, coverage: u16, payload: &[u8]) -> Packet {
    let ends = [from, to].map(|end| end.parse::<SocketAddrV4>().expect("address:port"));
    let ports = ends.map(|end| end.port().to_be_bytes()).concat();
    let body = [&ports[..], &coverage.to_be_bytes(), &[0, 0], payload].concat();
    let checksum = !lite_sum(*ends[0].ip(), *ends[1].ip(), &body);
    let body = [&body[..6], &checksum.to_be_bytes(), payload].concat();
    Packet::raw(*ends[0].ip(), *ends[1].ip(), 136).payload(body)
}

/// The sum of what a UDP-Lite checksum covers: all ones where the checksum is in it and right.
fn lite_sum(from: Ipv4Addr, to: Ipv4Addr, body: &[u8]) -> u16 {
    let coverage = usize::from(u16::from_be_bytes([body[4], body[5]]));
    let covered = if coverage == 0 { body } else { &body[..coverage] };
    !checksum::internet(&[&checksum::pseudo_header(from, to, 136, body.len()), covered])
}

#[test]
fn one_03_every_protocol_passes() {
    let stage = statics("203.0.113.2", "192.168.1.10");
    for protocol in [47, 50, 51, 253] {
        let payload = format!("protocol {protocol}");
        stage.reaches(&Packet::raw("198.51.100.1", "203.0.113.2", protocol).payload(&payload), &stage.a);
        let seen = stage.crosses(&Packet::raw("192.168.1.10", "198.51.100.1", protocol).payload(&payload));
        assert_eq!(seen.ip().source.to_string(), "203.0.113.2");
    }
    // SCTP: ports, tag, CRC32c, which covers no address, and a chunk: not a byte changes.
    let sctp =
        [&7_u16.to_be_bytes()[..], &9_u16.to_be_bytes(), &[1, 2, 3, 4, 0xc3, 0x2c, 0xc3, 0x2c], b"chunk..."]
            .concat();
    let seen = stage.reaches(&Packet::raw("198.51.100.1", "203.0.113.2", 132).payload(&sctp), &stage.a);
    assert_eq!(seen.ip().body, sctp);
    let seen = stage.crosses(&Packet::raw("192.168.1.10", "198.51.100.1", 132).payload(&sctp));
    assert_eq!(seen.ip().body, sctp);
    // UDP-Lite: the checksum covers a pseudo-header with the addresses, and the header at least.
    for coverage in [8, 12, 0] {
        for (from, to, tap) in [(SERVER, "203.0.113.2:9", &stage.a), ("192.168.1.10:9", SERVER, &stage.s1)] {
            let sent = stage.send(&lite(from, to, coverage, b"covered, and not"));
            let seen = tap.expect("the datagram", |seen| seen.payload().ends_with(b"and not"));
            assert_eq!(seen.ip().body[..6], sent.ip().body[..6], "ports and coverage");
            let ip = seen.ip();
            assert_eq!(lite_sum(ip.source, ip.destination, &ip.body), 0xffff, "coverage {coverage}");
        }
    }
}

#[test]
fn one_04_a_prefix_keeps_the_host_part() {
    let stage = statics("203.0.113.16/28", "192.168.1.16/28");
    for last in 16..32 {
        let (inside, outside) = (format!("192.168.1.{last}"), format!("203.0.113.{last}"));
        let sent = stage.a.send(&stage.udp(&format!("{inside}:7"), SERVER));
        assert_eq!(source(&stage.s1.expect_payload(sent.payload())), format!("{outside}:7"));
    }
    // Inwards they are resolved: each has to be somewhere.
    for last in 16..32 {
        stage.lab.b.ip(&format!("addr add 192.168.1.{last}/24 dev eth0"));
        let sent = stage.s1.send(&stage.udp(SERVER, &format!("203.0.113.{last}:7")));
        let seen = stage.b.expect_payload(sent.payload());
        assert_eq!(seen.destination().unwrap().to_string(), format!("192.168.1.{last}:7"));
    }
    for beyond in ["192.168.1.10:7", "192.168.1.12:7"] {
        assert_eq!(stage.crosses(&stage.udp(beyond, SERVER)).ip().source.to_string(), "203.0.113.1");
    }
}

#[test]
fn one_09_fragments_pass_at_once_in_any_order() {
    let stage = statics("203.0.113.2", "192.168.1.10");
    let payload = [7; 4000];
    stage.s1.send_fragments(&Packet::udp(SERVER, "203.0.113.2:9").payload(payload), 1480, &[2, 0, 1]);
    for _ in 0..3 {
        stage.a.expect("a fragment", |seen| {
            seen.ip.as_ref().is_some_and(|ip| ip.is_fragment() && ip.destination == stage.lab.a.address)
        });
    }
}

#[test]
fn one_02_a_million_packets_leave_no_state_and_pass_a_restart() {
    // Only a kernel that forwards tells the fast path the way; otherwise the daemon has to send them all.
    let lab = Lab::builder().forwarding().build();
    lab.mute_all();
    let rule = "[[static]]\nexternal = \"203.0.113.2\"\ninternal = \"192.168.1.10\"\n";
    let mut gateway = Gateway::start(&lab, &format!("{}{rule}", gateway::STANDARD));
    // From the provider's end of the wire: the gateway is what is tested.
    let wan = lab.wan();
    let received = || -> u64 {
        let counter = lab.a.succeed("cat /sys/class/net/eth0/statistics/rx_packets");
        counter.trim().parse().expect("a number")
    };
    let mut state = 0x9e37_79b9_u32;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    let mut next = move || {
        let (word, more) = (random(), random());
        let remote = format!(
            "{}.{}.{}.{}",
            20 + word % 100,
            word >> 8 & 0xff,
            word >> 16 & 0xff,
            1 + (word >> 24) % 250
        );
        let endpoint = format!("{remote}:{}", more & 0xffff);
        let own = format!("203.0.113.2:{}", more >> 16);
        let packet = match word % 4 {
            0 => Packet::tcp(endpoint.as_str(), own.as_str()).seq(word).ack(more),
            1 => Packet::udp(endpoint.as_str(), own.as_str()),
            2 => Packet::echo_request(
                remote.as_str(),
                "203.0.113.2",
                u16::try_from(more >> 16).unwrap_or(0),
                1,
            ),
            _ => Packet::raw(remote.as_str(), "203.0.113.2", 200).payload([1, 2, 3, 4]),
        };
        packet.between(lab.isp.mac, lab.isp.next_hop).build()
    };
    wan.send_frame(&next());
    thread::sleep(Duration::from_millis(200));
    let before = received();
    let mut sent = 0;
    let mut send = |count: u32| {
        for _ in 0..count {
            wan.send_frame(&next());
            sent += 1;
            if sent % 5000 == 0 {
                wan.clear();
            }
        }
        sent
    };
    send(900_000);
    gateway.kill();
    send(50_000);
    gateway.restart();
    let sent = send(50_000);
    assert_eq!(gateway.sessions().len(), 0);
    gateway.wait_until("all have arrived", Duration::from_secs(5), |_| received() - before >= sent);
    assert!(received() - before < sent + 100, "{sent} sent, {} came", received() - before);
}

#[test]
fn one_05_one_to_one_goes_before_rules_and_a_forward_on_it_is_refused() {
    let stage = statics("203.0.113.2", "192.168.1.10");
    for number in 0..20 {
        let seen = stage.crosses(&stage.udp(&format!("192.168.1.10:{}", 40_000 + number), SERVER));
        assert_eq!(source(&seen), format!("203.0.113.2:{}", 40_000 + number));
        let seen = stage.crosses(&stage.syn(&format!("192.168.1.11:{}", 40_000 + number), SERVER));
        assert_eq!(seen.ip().source.to_string(), "203.0.113.1", "the others go on as before");
    }
    // A forward that a one-to-one rule would hide is an error, which says so.
    let rules = "[[static]]\nexternal = \"203.0.113.2\"\ninternal = \"192.168.1.10\"\n\
                 [[forward]]\nexternal = \"203.0.113.2:80\"\ninternal = \"192.168.1.11:80\"\n";
    stage.gateway.configure(&format!("{}{rules}", gateway::STANDARD));
    let refused = stage.gateway.output(&["reload"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && told.contains("takes all of its address"), "{told}");
}

#[test]
fn one_06_a_host_that_becomes_one_to_one_keeps_the_sessions_it_has() {
    let stage = Stage::standard();
    let old = stage.connect("192.168.1.10:40000", SERVER);
    let udp = source(&stage.crosses(&stage.udp("192.168.1.10:40001", SERVER)));
    let rule = "[[static]]\nexternal = \"203.0.113.2\"\ninternal = \"192.168.1.10\"\n";
    stage.gateway.configure(&format!("{}{rule}", gateway::STANDARD));
    stage.gateway.text(&["reload"]);
    for _ in 0..3 {
        // What is there goes on as it was, both ways.
        assert_eq!(source(&stage.crosses(&stage.data("192.168.1.10:40000", SERVER))), old);
        assert_eq!(source(&stage.crosses(&stage.udp("192.168.1.10:40001", SERVER))), udp);
        stage.reaches(&stage.udp(SERVER, &udp), &stage.a);
        // What is new has the new address, also to where an old session leads.
        assert_eq!(source(&stage.crosses(&stage.syn("192.168.1.10:40002", SERVER))), "203.0.113.2:40002");
        assert_eq!(
            source(&stage.crosses(&stage.udp("192.168.1.10:40001", "198.51.100.2:7"))),
            "203.0.113.2:40001"
        );
        assert_eq!(
            source(&stage.crosses(&stage.udp("192.168.1.11:40001", SERVER))).split(':').next(),
            Some("203.0.113.1")
        );
    }
}

/// The ARP packet in a frame: operation, sender's MAC, sender's address, target's address.
fn arp(frame: &[u8]) -> Option<[&[u8]; 4]> {
    let is_arp = frame.len() >= 42 && frame[12..14] == [0x08, 0x06];
    is_arp.then(|| [&frame[21..22], &frame[22..28], &frame[28..32], &frame[38..42]])
}

#[test]
fn one_10_the_gateway_answers_for_its_addresses_and_announces_them() {
    let lab = Lab::standard();
    lab.mute_all();
    let wan = lab.wan();
    let rules = "[[static]]\nexternal = \"203.0.113.2\"\ninternal = \"192.168.1.10\"\n";
    let pool = gateway::STANDARD.replace("to = \"masquerade\"", "to = [\"203.0.113.3-203.0.113.4\"]");
    let gateway = Gateway::start(&lab, &format!("{pool}{rules}"));
    let announced = |last: u8| {
        wan.captured().iter().any(|captured| {
            let own = [203, 0, 113, last];
            captured.frame[..6] == [0xff; 6]
                && arp(&captured.frame) == Some([&[1], &lab.gateway.mac, &own, &own])
        })
    };
    for last in 2..=4 {
        gateway.wait_until("it is announced", Duration::from_secs(2), |_| announced(last));
    }
    for last in 2..=4 {
        let own = [203, 0, 113, last];
        let mut question = [
            &[0xff; 6][..],
            &lab.isp.mac,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
            &lab.isp.mac,
            &[203, 0, 113, 254],
        ]
        .concat();
        question.extend_from_slice(&[0; 6]);
        question.extend_from_slice(&own);
        wan.send_frame(&question);
        let answered = || {
            wan.captured().iter().any(|captured| {
                arp(&captured.frame) == Some([&[2], &lab.gateway.mac, &own, &[203, 0, 113, 254]])
            })
        };
        gateway.wait_until("it is answered for", Duration::from_secs(2), |_| answered());
    }
    // One that comes with a reload is announced, too.
    assert!(!announced(5));
    gateway.configure(&format!("{pool}{}", rules.replace("203.0.113.2", "203.0.113.5")));
    gateway.text(&["reload"]);
    gateway.wait_until("it is announced", Duration::from_secs(2), |_| announced(5));
}

#[test]
fn one_08_hosts_get_addresses_of_their_own_in_the_order_they_come() {
    for pooling in ["exclusive", "exclusive-then-shared"] {
        let to = format!("to = [\"203.0.113.2-203.0.113.4\"]\npooling = \"{pooling}\"");
        let configuration = gateway::STANDARD.replace("to = \"masquerade\"", &to);
        let mut stage = Stage::with(&format!("{configuration}[timeouts]\nudp = \"3s\"\nicmp = \"3s\"\n"));
        // The fourth is c's neighbour, on the same wire.
        stage.lab.c.ip("addr add 192.168.1.13/24 dev eth0");
        let of = |stage: &Stage, host: &str, port: u16| {
            let tap = if host == "192.168.1.13" { &stage.c } else { stage.tap(host.parse().unwrap()) };
            let sent = tap.send(&stage.udp(&format!("{host}:{port}"), SERVER));
            let seen =
                stage.s1.recv_matching(Duration::from_millis(500), |seen| seen.payload() == sent.payload());
            seen.map(|seen| source(&seen.decoded))
        };
        let hosts = [
            ("192.168.1.10", "203.0.113.2"),
            ("192.168.1.11", "203.0.113.3"),
            ("192.168.1.12", "203.0.113.4"),
        ];
        let own = if pooling == "exclusive" { 3 } else { 2 };
        for (host, external) in &hosts[..own] {
            // Low, high, taken by all the others: every port stays as it is.
            for port in [7, 123, 1023, 1024, 40_000, 65_535] {
                assert_eq!(of(&stage, host, port), Some(format!("{external}:{port}")));
            }
            let echo = Packet::echo_request(*host, "198.51.100.1", 305, 1).payload(*host);
            assert_eq!(source(&stage.crosses(&echo)), format!("{external}:305"));
            stage.reaches(&stage.udp(SERVER, &format!("{external}:123")), stage.tap(host.parse().unwrap()));
        }
        if pooling == "exclusive" {
            assert_eq!(of(&stage, "192.168.1.13", 40_000), None, "refused");
            let told = stage.c.expect("ICMP 3/13", |seen| seen.icmp().is_some_and(|icmp| icmp.code == 13));
            assert_eq!(told.ip().destination.to_string(), "192.168.1.13");
        } else {
            // The last address is everybody's, with its ports translated.
            assert_eq!(of(&stage, "192.168.1.12", 40_000).as_deref(), Some("203.0.113.4:40000"));
            let shared = of(&stage, "192.168.1.13", 40_000).expect("NAPT");
            assert!(shared.starts_with("203.0.113.4:") && shared != "203.0.113.4:40000", "{shared}");
        }
        // A restart finds the addresses where they were.
        stage.gateway.kill();
        stage.gateway.restart();
        assert_eq!(of(&stage, "192.168.1.11", 50_000).as_deref(), Some("203.0.113.3:50000"));
        assert_eq!(of(&stage, "192.168.1.13", 50_000).is_some(), pooling != "exclusive");
        // Idle, they are free again, with all their ports.
        stage.forgets_within(Duration::from_secs(10));
        assert_eq!(of(&stage, "192.168.1.13", 123).as_deref(), Some("203.0.113.2:123"));
        assert_eq!(of(&stage, "192.168.1.10", 123).as_deref(), Some("203.0.113.3:123"));
    }
}
