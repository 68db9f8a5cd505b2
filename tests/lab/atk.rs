//! Attacks.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use nat_tests::{Decoded, Gateway, Lab, Packet, gateway, lab::P1};

use crate::stage::{Stage, port, public, source};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";

#[test]
fn atk_01_forged_sources_from_outside() {
    let stage = Stage::with(&format!(
        "{}filtering = \"endpoint-independent\"\n[timeouts]\nudp = \"3s\"\n",
        gateway::STANDARD
    ));
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let opened = Instant::now();
    let forged = [
        "192.168.1.11:9",
        "192.168.1.10:40000",
        "192.168.1.1:9",
        "192.168.2.10:9",
        "203.0.113.1:9",
        mapped.as_str(),
        "127.0.0.1:9",
        "0.0.0.0:9",
        "224.0.0.1:9",
    ];
    while opened.elapsed() < Duration::from_secs(2) {
        for source in forged {
            stage.wan.send(&Packet::udp(source, mapped.as_str()).payload("forged"));
            stage.wan.send(&Packet::tcp(source, "203.0.113.1:80").syn(1));
            stage.wan.send(&Packet::echo_request(source.split(':').next().unwrap(), "203.0.113.1", 7, 1));
            let about = Packet::udp(mapped.as_str(), SERVER).payload("quoted").ip();
            stage.wan.send(&Packet::icmp_error(
                source.split(':').next().unwrap(),
                "203.0.113.1",
                3,
                3,
                &about,
            ));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    stage.lan_is_silent();
    let answers = |seen: &Decoded| {
        seen.ip
            .as_ref()
            .is_some_and(|ip| ip.source.is_private() || ip.destination.is_private() || ip.icmp().is_some())
            || seen.destination().is_some_and(|to| to.ip() == &P1)
    };
    stage.wan.expect_none("an answer to a forged packet", answers);
    // None of them kept the mapping: it ends when its own packets say so, not three seconds after the last.
    let left = Duration::from_millis(4500).saturating_sub(opened.elapsed());
    stage.forgets_within(left);
    stage.stopped(&stage.udp("198.51.100.2:9", &mapped), &stage.a);
}

#[test]
fn atk_02_packets_that_are_their_own_answer() {
    let stage = Stage::snat("filtering = \"endpoint-independent\"");
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    stage.wan.clear();
    for endpoint in ["203.0.113.1:80", mapped.as_str(), CLIENT] {
        for tap in [&stage.wan, &stage.a] {
            tap.send(&Packet::tcp(endpoint, endpoint).syn(1));
            tap.send(&Packet::udp(endpoint, endpoint).payload("land"));
        }
    }
    // From the LAN by its own public endpoint, which its hairpin would turn into itself.
    stage.a.send(&Packet::udp("192.168.1.10:80", "192.168.1.10:80").payload("land"));
    stage.wan.expect_none("a land packet", |seen| seen.ip.is_some());
    stage.lan_is_silent();
    assert_eq!(stage.session_count(), 1);
    stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
}

/// Sources that are no inside network's, from the LAN.
const FORGED: [&str; 4] = ["10.77.0.5:7000", "198.51.100.1:7001", "172.16.0.1:7002", "192.0.2.1:7003"];

#[test]
fn atk_03_forged_sources_from_inside() {
    // The kernel forwards and does not look at sources itself: all depends on natgw.
    let stage = Stage::build(Lab::builder().forwarding(), gateway::STANDARD);
    let send_all = || {
        for source in FORGED {
            stage.a.send(&Packet::udp(source, "198.51.100.2:9").payload("forged"));
            stage.a.send(&Packet::tcp(source, "198.51.100.2:80").syn(1));
        }
        // Within the rule's selector, but no network of the LAN: answers would go to the provider.
        stage.a.send(&Packet::udp("192.168.77.5:7000", "198.51.100.2:9").payload("forged"));
    };
    send_all();
    stage.wan.expect_none("a forged packet", |seen| seen.ip.is_some());
    assert_eq!(stage.session_count(), 0);
    let spoofed = stage.gateway.drops()["spoofed"];
    assert_eq!(spoofed, 9, "{:?}", stage.gateway.drops());
    stage.crosses(&stage.udp(CLIENT, SERVER));
    // Inner networks that the kernel knows a way to are plainly routed.
    stage.lab.gateway.ip("route add 10.77.0.0/24 via 192.168.1.10");
    stage.a.send(&Packet::udp(FORGED[0], "198.51.100.2:9").payload("of an inner network"));
    assert_eq!(source(&stage.wan.expect_payload("of an inner network")), FORGED[0]);
    // And all are if the policy says so.
    stage.gateway.configure(&format!("{}[unmatched]\nforged = \"pass\"\n", gateway::STANDARD));
    stage.gateway.text(&["reload"]);
    stage.a.send(&Packet::udp(FORGED[3], "198.51.100.2:9").payload("plainly routed"));
    assert_eq!(source(&stage.wan.expect_payload("plainly routed")), FORGED[3]);
    stage.expect_bad_packets();
}

/// Scaled: as fast as the machine sends, not 100 000 a second.
#[test]
fn atk_04_a_scan_of_every_port() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let mut sent = Vec::new();
    for port in 1..=u16::MAX {
        stage.wan.send(&Packet::udp("198.51.100.66:9", (P1, port)).payload("scan"));
        stage.wan.send(&Packet::tcp("198.51.100.66:9", (P1, port)).syn(1));
        if port % 64 == 0 {
            sent.push(stage.send(&stage.udp(SERVER, &mapped)).payload().to_vec());
            sent.push(stage.send(&stage.udp(CLIENT, SERVER)).payload().to_vec());
        }
        if port % 256 == 0 {
            for tap in [&stage.a, &stage.b, &stage.wan, &stage.s1] {
                tap.drain();
            }
        }
    }
    std::thread::sleep(Duration::from_millis(500));
    let mut arrived: HashSet<Vec<u8>> = HashSet::new();
    for tap in [&stage.a, &stage.s1] {
        arrived.extend(tap.incoming(|seen| seen.udp().is_some()).iter().map(|seen| seen.payload().to_vec()));
    }
    let lost = sent.iter().filter(|payload| !arrived.contains(*payload)).count();
    assert!(lost * 1000 <= sent.len(), "{lost} of {} established packets are lost", sent.len());
    let from_attacker = |seen: &Decoded| seen.ip.as_ref().is_some_and(|ip| ip.source.octets()[3] == 66);
    for tap in [&stage.a, &stage.b, &stage.c] {
        tap.expect_none("a packet of the scan", from_attacker);
    }
    assert_eq!(stage.session_count(), 1);
}

/// Scaled: thousands of flows, not a million; a table whose hash could be foreseen would make chains of them.
#[test]
fn atk_06_flows_chosen_to_collide_cost_what_others_do() {
    const FLOWS: u16 = 4000;
    // Equal sums, equal exclusive ors, equal low bits, of source and destination ports and addresses.
    type Family = fn(u16) -> (u16, u16, u8);
    let families: [(&str, Family); 4] = [
        ("unlike each other", |n| (n.wrapping_mul(40503) | 1024, n.wrapping_mul(30011), 1)),
        ("of equal sums", |n| (20_000 + n, 60_000 - n, 1)),
        ("of equal exclusive ors", |n| (20_000 + n, (20_000 + n) ^ 0x5555, 1)),
        ("of equal low bits", |n| (1024 + (n % 250) * 256, n / 250 * 256, 2)),
    ];
    let mut costs = Vec::new();
    for (what, family) in families {
        let stage = Stage::snat("mapping = \"endpoint-dependent\"");
        let packet = |n: u16, round: u8| {
            let (from, to, server) = family(n);
            Packet::udp(("192.168.1.10", from), (format!("198.51.100.{server}").as_str(), to))
                .payload([round; 8])
        };
        let mut best = [Duration::MAX; 2];
        for round in 0..4 {
            let begun = Instant::now();
            let mut arrived = 0;
            for n in 0..FLOWS {
                stage.a.send(&packet(n, round));
                if n % 500 == 499 {
                    arrived += usize::from(
                        stage
                            .wan
                            .recv_matching(Duration::from_secs(5), |seen| seen.payload() == [round; 8])
                            .is_some(),
                    );
                    stage.gateway.text(&["session", "count"]);
                    stage.wan.clear();
                    for tap in [&stage.a, &stage.s1, &stage.s2] {
                        tap.clear();
                    }
                }
            }
            assert_eq!(arrived, usize::from(FLOWS / 500), "{what}");
            // The first round opens the flows, the others find them.
            let kind = usize::from(round > 0);
            best[kind] = best[kind].min(begun.elapsed());
        }
        let open = stage.session_count();
        assert!(open > usize::from(FLOWS) * 9 / 10, "{what}: {open} sessions");
        costs.push((what, best));
    }
    let usual = costs[0].1;
    for (what, cost) in &costs {
        let within = |kind: usize| cost[kind] < usual[kind] * 3 + Duration::from_millis(100);
        assert!(within(0) && within(1), "{what}: {costs:?}");
    }
}

#[test]
fn atk_07_a_forged_path_mtu_harms_nobody_else() {
    let stage = Stage::standard();
    let mapped = stage.connect("192.168.1.10:40001", SERVER);
    let of_b = stage.connect("192.168.1.11:40001", SERVER);
    // Sequence numbers that were never sent, and no router's place on the way: what an outsider can make up.
    let about = Packet::tcp(mapped.as_str(), SERVER).seq(0xdead_beef).ack(1).ip();
    for source in ["198.51.100.66", "203.0.113.254", "198.51.100.1"] {
        stage.wan.send(&Packet::icmp_error(source, P1, 3, 4, &about).rest(0, 68));
    }
    let is_error = |seen: &Decoded| seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code) == (3, 4));
    stage.a.expect("the error, for a's stack to judge", is_error);
    for tap in [&stage.b, &stage.c] {
        tap.expect_none("an error about a's connection", is_error);
    }
    // Nobody's path has become smaller, a's included.
    let route = stage.lab.gateway.ip("route get 198.51.100.1");
    assert!(!route.contains("mtu"), "{route}");
    for client in ["192.168.1.10:40001", "192.168.1.11:40001"] {
        let seen = stage.crosses(&stage.data(client, SERVER).payload([7; 1460]).df());
        assert_eq!(seen.ip().total_length, 1500);
    }
    stage.reaches(&stage.data(SERVER, &of_b).payload([8; 1460]).df(), &stage.b);
}

/// Scaled: 20 000 errors as fast as they can be sent.
#[test]
fn atk_08_a_flood_of_errors_about_nothing() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let (mut sent, mut arrived) = (0, 0);
    for n in 0..20_000_u32 {
        let [_, _, high, low] = (n.wrapping_mul(2_654_435_761)).to_be_bytes();
        let remote = format!("198.51.{high}.{low}:{}", n % 60_000 + 1);
        let own = format!("203.0.113.1:{}", n.wrapping_mul(7919) % 60_000 + 1);
        let about = if n % 2 == 0 {
            Packet::udp(own.as_str(), remote.as_str())
        } else {
            Packet::tcp(own.as_str(), remote.as_str())
        };
        stage.wan.send(&Packet::icmp_error(
            "198.51.100.66",
            P1,
            3,
            u8::try_from(n % 5).unwrap(),
            &about.ip(),
        ));
        if n % 200 == 0 {
            sent += 1;
            let packet = stage.send(&stage.udp(SERVER, &mapped));
            let seen =
                stage.a.recv_matching(Duration::from_secs(2), |seen| seen.payload() == packet.payload());
            arrived += u32::from(seen.is_some());
            stage.wan.clear();
        }
    }
    assert_eq!(arrived, sent, "established traffic suffers");
    let errors = |seen: &Decoded| seen.icmp().is_some();
    for tap in [&stage.a, &stage.b, &stage.c] {
        tap.expect_none("an error about nothing", errors);
    }
    stage.wan.expect_none("an answer to an error", errors);
    assert_eq!(stage.session_count(), 1);
    // First packets are still served at once.
    stage.crosses(&stage.udp("192.168.1.11:40001", SERVER));
}

#[test]
fn atk_09_nothing_makes_the_gateway_say_more_than_it_heard() {
    let stage = Stage::with(&format!(
        "{}filtering = \"endpoint-independent\"\n[limits]\nsessions_per_source = 2\n",
        gateway::STANDARD
    ));
    stage.lab.gateway.sysctl("ipv4.icmp_ratelimit", "0");
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let host = "198.51.100.66";
    let about = |to: &str| Packet::udp(mapped.as_str(), to).payload([7; 400]).ip();
    let from_outside = [
        Packet::udp("198.51.100.66:9", mapped.as_str()).payload("for a client"),
        Packet::udp("198.51.100.66:9", "203.0.113.1:2000").payload("for nobody"),
        Packet::udp("198.51.100.66:9", "203.0.113.1:5351").payload([0, 0]),
        Packet::udp("198.51.100.66:9", "203.0.113.1:3478").payload([0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42]),
        Packet::tcp("198.51.100.66:9", "203.0.113.1:3000").syn(1),
        Packet::tcp("198.51.100.66:9", "203.0.113.1:3000").ack(1),
        Packet::echo_request(host, P1, 7, 1).payload([7; 100]),
        Packet::icmp(host, P1, 13, 0).payload([0; 12]),
        Packet::icmp(host, P1, 17, 0).payload([0; 4]),
        Packet::icmp_error(host, P1, 3, 3, &about("198.51.100.66:9")),
        Packet::icmp_error(host, P1, 3, 3, &about("198.51.100.2:9")),
        Packet::raw(host, P1, 47).payload([0; 24]),
        Packet::udp("198.51.100.66:9", "203.0.113.1:2001").payload([7; 64]).more_fragments(),
        Packet::udp("198.51.100.66:9", "203.0.113.1:2001").payload([7; 64]).fragment_offset(9),
        Packet::udp("198.51.100.66:9", mapped.as_str()).payload([7; 600]).ttl(1),
    ];
    let from_inside = [
        Packet::udp("192.168.1.12:1", SERVER).payload([7; 600]).ttl(1),
        Packet::udp("192.168.1.12:3", "192.168.1.1:9").payload([7; 600]),
        Packet::tcp("192.168.1.12:4", "192.168.1.1:9").syn(1),
        Packet::echo_request("192.168.1.12", "192.168.1.1", 7, 1).payload([7; 100]),
    ];
    let of = |from: &nat_tests::Tap, packet: &Packet| {
        from.clear();
        let sent = from.send(packet);
        std::thread::sleep(Duration::from_millis(150));
        let answers =
            from.incoming(|seen| seen.ip.as_ref().is_some_and(|ip| ip.destination == sent.ip().source));
        (sent, answers)
    };
    for (tap, packets) in [(&stage.wan, &from_outside[..]), (&stage.c, &from_inside[..])] {
        for packet in packets {
            let (sent, answers) = of(tap, packet);
            assert!(answers.len() <= 1, "{sent}: {answers:?}");
            let Some(answer) = answers.first() else { continue };
            // An error quotes what it is about, behind headers of its own (RFC 792): never more than these.
            let headers = if answer.icmp().is_some_and(|icmp| icmp.quoted.is_some()) { 28 } else { 0 };
            let (heard, said) = (sent.ip().total_length, answer.ip().total_length);
            assert!(
                said <= heard + headers && said <= heard.max(576),
                "{heard} bytes of {sent}, {said} of {answer}"
            );
        }
    }
}

#[test]
fn atk_11_each_start_has_another_sequence_of_ports() {
    let lab = Lab::standard();
    lab.mute_all();
    let (a, b, s1) = (lab.a.tap(), lab.b.tap(), lab.s1.tap());
    let sequence = || {
        let _gateway = Gateway::start(&lab, gateway::STANDARD);
        let of_b = |n: u16| {
            // The port is a's already: b gets one by chance, of the same parity.
            a.send(&Packet::udp(("192.168.1.10", 20_000 + n), SERVER).payload([1, n.to_be_bytes()[1]]));
            s1.expect_payload([1, n.to_be_bytes()[1]]);
            b.send(&Packet::udp(("192.168.1.11", 20_000 + n), SERVER).payload([2, n.to_be_bytes()[1]]));
            port(&s1.expect_payload([2, n.to_be_bytes()[1]]))
        };
        let ports: Vec<u16> = (0..24).map(of_b).collect();
        for tap in [&a, &b, &s1] {
            tap.clear();
        }
        ports
    };
    let runs = [sequence(), sequence(), sequence()];
    for (index, run) in runs.iter().enumerate() {
        let unlike = |(one, other): (&u16, &u16)| one != other;
        for other in &runs[index + 1..] {
            assert!(run.iter().zip(other).filter(|&(a, b)| unlike((a, b))).count() > 20, "{run:?} {other:?}");
        }
        // Nor do they follow each other within a run.
        let steps: HashSet<i32> =
            run.windows(2).map(|pair| i32::from(pair[1]) - i32::from(pair[0])).collect();
        assert!(steps.len() > 18, "{run:?}");
    }
    assert_ne!(public(runs[0][0]), public(20_000));
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
