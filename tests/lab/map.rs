//! Address and port mapping: one inside endpoint, one outside endpoint, whoever it talks to.

use std::{
    collections::HashSet,
    thread,
    time::{Duration, Instant},
};

use nat_tests::{Lab, Packet, decode::Decoded, gateway, invariants};

use crate::stage::{Stage, port, public, source};

const SERVERS: [&str; 4] = ["198.51.100.1:1000", "198.51.100.1:2000", "198.51.100.2:1000", "198.51.101.1:53"];

#[test]
fn map_01_one_udp_mapping_for_all_destinations() {
    let stage = Stage::standard();
    let seen = SERVERS.map(|server| source(&stage.crosses(&stage.udp("192.168.1.10:40000", server))));
    assert_eq!(seen, [public(40000), public(40000), public(40000), public(40000)]);
}

#[test]
fn map_02_one_tcp_mapping_for_all_destinations() {
    let stage = Stage::standard();
    let seen = SERVERS.map(|server| stage.connect("192.168.1.10:40000", server));
    assert!(seen.iter().all(|source| *source == seen[0]), "{seen:?}");
}

#[test]
fn map_03_one_icmp_mapping_for_all_destinations() {
    let stage = Stage::standard();
    let seen = ["198.51.100.1", "198.51.100.2"]
        .map(|server| port(&stage.crosses(&Packet::echo_request("192.168.1.10", server, 777, 1))));
    assert_eq!(seen[0], seen[1]);
}

#[test]
fn map_04_udp_and_tcp_mappings_live_apart() {
    let stage = Stage::standard();
    let udp = source(&stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.1:1000")));
    let tcp = stage.connect("192.168.1.10:40000", "198.51.100.1:1000");
    stage.gateway.text(&["session", "delete", "--protocol", "udp"]);
    stage.stopped(&stage.udp("198.51.100.1:1000", &udp), &stage.a);
    stage.reaches(&stage.data("198.51.100.1:1000", &tcp), &stage.a);
}

#[test]
fn map_05_independent_of_the_endpoint_even_when_ports_collide() {
    let stage = Stage::standard();
    let held = stage.crosses(&stage.udp("192.168.1.10:40050", "198.51.100.1:1000"));
    assert_eq!(source(&held), public(40050));
    let toward_s2 = stage.crosses(&stage.udp("192.168.1.11:40050", "198.51.100.2:1000"));
    let toward_s1 = stage.crosses(&stage.udp("192.168.1.11:40050", "198.51.100.1:1000"));
    assert_eq!(source(&toward_s2), source(&toward_s1));
    assert_ne!(port(&toward_s1), 40050);
}

/// What MAP-01, FLT-01 to FLT-04 and TMU-01 find for one client: one mapping, who gets in by UDP and by TCP, and how
/// long it lives.
fn behaviour_of(stage: &Stage, client: &str) -> (bool, [bool; 6], u64) {
    let seen = SERVERS.map(|server| source(&stage.crosses(&stage.udp(&format!("{client}:5060"), server))));
    let inside = format!("{client}:5062");
    let udp = source(&stage.crosses(&stage.udp(&inside, SERVERS[0])));
    let tcp = source(&stage.crosses(&stage.syn(&inside, SERVERS[0])));
    let tap = stage.tap(client.parse().unwrap());
    let remotes = ["198.51.100.1:1000", "198.51.100.1:9", "198.51.100.2:9"];
    let sent = remotes
        .map(|remote| [stage.udp(remote, &udp), stage.syn(remote, &tcp)].map(|packet| stage.send(&packet)));
    let mark = |packet: &Decoded| (packet.payload().to_vec(), packet.tcp().map(|tcp| tcp.seq));
    let admitted = |sent: &Decoded| {
        tap.recv_matching(Duration::from_millis(200), |seen| mark(seen) == mark(sent)).is_some()
    };
    let mut got_in = [false; 6];
    for (got_in, sent) in got_in.iter_mut().zip(sent.as_flattened()) {
        *got_in = admitted(sent);
    }
    let sessions = stage.gateway.sessions();
    let own =
        sessions.iter().find(|session| session["inside"] == inside && session["protocol"] == "udp").unwrap();
    // In hundreds of seconds, rounded: nobody counts from the same instant.
    (seen.iter().all(|other| *other == seen[0]), got_in, (own["expires_in"].as_u64().unwrap() + 50) / 100)
}

#[test]
fn map_06_the_same_behaviour_for_the_second_and_third_user_of_a_port() {
    for (filtering, admitted) in [
        ("endpoint-independent", [true; 6]),
        ("address-dependent", [true, true, true, true, false, false]),
        ("address-and-port-dependent", [true, true, false, false, false, false]),
    ] {
        let stage = Stage::snat(&format!("filtering = \"{filtering}\""));
        for client in ["192.168.1.10", "192.168.1.11", "192.168.1.12"] {
            assert_eq!(behaviour_of(&stage, client), (true, admitted, 3), "{client}, {filtering}");
        }
    }
}

#[test]
fn map_07_two_users_of_one_port_never_hear_each_other() {
    let stage = Stage::standard();
    let from_a = source(&stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.1:80")));
    let from_b = source(&stage.crosses(&stage.udp("192.168.1.11:40000", "198.51.100.1:80")));
    assert_ne!(from_a, from_b);
    for turn in 0..500 {
        stage.s1.send(&Packet::udp("198.51.100.1:80", from_a.as_str()).payload(format!("a {turn}")));
        stage.s1.send(&Packet::udp("198.51.100.1:80", from_b.as_str()).payload(format!("b {turn}")));
    }
    for (tap, name) in [(&stage.a, "a"), (&stage.b, "b")] {
        tap.expect_payload(format!("{name} 499"));
        let datagrams = tap.incoming(|seen| seen.udp().is_some());
        let own = datagrams.iter().filter(|seen| seen.payload().starts_with(name.as_bytes()));
        assert_eq!((own.count(), datagrams.len()), (500, 500), "{name}");
    }
}

#[test]
fn map_07_two_tcp_users_of_one_port() {
    let stage = Stage::standard();
    let from_a = stage.connect("192.168.1.10:40000", "198.51.100.1:80");
    let from_b = stage.connect("192.168.1.11:40000", "198.51.100.1:80");
    assert_ne!(from_a, from_b);
    stage.reaches(&stage.data("198.51.100.1:80", &from_a), &stage.a);
    stage.reaches(&stage.data("198.51.100.1:80", &from_b), &stage.b);
}

#[test]
fn map_08_remotes_share_a_port_where_the_rule_says_so() {
    let stage = Stage::snat("mapping = \"endpoint-dependent\"");
    let from_a = source(&stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.1:80")));
    let from_b = source(&stage.crosses(&stage.udp("192.168.1.11:40000", "198.51.100.2:80")));
    assert_eq!((from_a.clone(), from_b.clone()), (public(40000), public(40000)));
    stage.reaches(&stage.udp("198.51.100.1:80", &from_a), &stage.a);
    stage.reaches(&stage.udp("198.51.100.2:80", &from_b), &stage.b);
    // The same remote for both: then the ports have to differ.
    let clash = stage.crosses(&stage.udp("192.168.1.11:40000", "198.51.100.1:80"));
    assert_ne!(source(&clash), from_a);
}

/// More sessions than an address has ports, opened by three clients, each known to its owner by the answer.
#[test]
fn map_09_eighty_thousand_sessions_on_one_address() {
    // On an emulated machine they take longer to open than RFC 4787's five minutes.
    let stage = Stage::snat("mapping = \"endpoint-dependent\"\n[timeouts]\nudp = \"1h\"");
    let clients = [stage.lab.a.address, stage.lab.b.address, stage.lab.c.address];
    let servers = [stage.lab.s1.address, stage.lab.s2.address];
    let packets: Vec<Packet> = (0..80_000u32)
        .map(|n| {
            // Every client uses the same ports to the same servers: 13,334 clashes in each place.
            let port = u16::try_from(20_000 + n / 6).expect("a port");
            let (client, server) = (clients[n as usize % 3], servers[n as usize / 3 % 2]);
            Packet::udp((client, port), (server, 5000)).payload(stage.token().to_be_bytes())
        })
        .collect();
    let seen = stage.cross_many(&packets);
    let outside: HashSet<_> = seen.iter().map(|packet| (source(packet), destination(packet))).collect();
    assert_eq!(outside.len(), 80_000, "every reply names one session");
    assert_eq!(stage.session_count(), 80_000);
    // Answers to some of them, all over the table.
    for (sent, seen) in packets.iter().zip(&seen).step_by(997) {
        let (client, server) = (Decoded::parse(&sent.build()), destination(seen));
        let answer = stage.udp(&server, &source(seen));
        let delivered = stage.reaches(&answer, stage.tap(client.ip().source));
        assert_eq!(Some(destination(&delivered)), client.source().map(|own| own.to_string()));
    }
}

/// Ten thousand flows in one burst, as fast as a tap can send: every first packet arrives, and no two share a
/// tuple.
#[test]
fn map_07_bursts_of_new_flows_lose_nothing() {
    const BURST: usize = 10_000;
    let stage = Stage::standard();
    let flows: Vec<Packet> = (0..10_000u16)
        .map(|n| {
            let client = ["192.168.1.10", "192.168.1.11"][usize::from(n % 2)];
            Packet::udp((client, 10_000 + n / 2), (stage.lab.s1.address, 5000)).payload(n.to_be_bytes())
        })
        .collect();
    // What waits for a neighbour is bounded; this is about what waits for nothing.
    stage.crosses(&stage.udp("192.168.1.12:1", "198.51.100.1:5000"));
    stage.s1.clear();
    let arrived = || stage.s1.incoming(|seen| seen.udp().is_some());
    let deadline = Instant::now() + Duration::from_secs(20);
    for (burst, number) in flows.chunks(BURST).zip(1..) {
        for flow in burst {
            stage.send(flow);
        }
        while arrived().len() < number * BURST && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(arrived().len(), number * BURST, "drops: {:?}", stage.gateway.drops());
    }
    let outside: HashSet<String> = arrived().iter().map(source).collect();
    assert_eq!(outside.len(), flows.len());
    assert_eq!(stage.session_count(), flows.len() + 1);
}

#[test]
fn map_10_seventy_thousand_destinations_take_one_port() {
    let stage = Stage::standard();
    let destinations = (1..=65_535).map(|port| (stage.lab.s1.address, port));
    let more = (1..=4_465).map(|port| (stage.lab.s2.address, port));
    let packets: Vec<Packet> = destinations
        .chain(more)
        .map(|server| Packet::udp("192.168.1.10:40000", server).payload(stage.token().to_be_bytes()))
        .collect();
    assert_eq!(packets.len(), 70_000);
    let seen = stage.cross_many(&packets);
    assert!(seen.iter().all(|packet| source(packet) == public(40000)));
    assert_eq!(stage.session_count(), 70_000);
}

/// A network outside has the numbers of the one inside, as behind a second router of the same make.
#[test]
fn map_11_the_same_subnet_on_both_sides() {
    let stage = Stage::standard();
    // The provider's numbers are private here: not a leak.
    stage.expect_inside_addresses_outside();
    let Lab { gateway, isp, .. } = &stage.lab;
    for line in [
        "addr del 203.0.113.1/24 dev wan",
        "addr add 192.168.1.2/24 dev wan",
        "route add default via 192.168.1.254 dev wan",
    ] {
        gateway.ip(line);
    }
    for line in
        ["route del 192.168.0.0/16", "addr add 192.168.1.254/24 dev gw", "route add 192.168.1.77 dev gw"]
    {
        isp.ip(line);
    }
    stage.gateway.wait_until("the conflict is told", Duration::from_secs(3), |gateway| {
        let status = gateway.natgw(&["status", "--json"]);
        let warnings = status["warnings"].as_array().unwrap();
        let names = |text: &str| ["lan", "wan", "192.168.1.0/24"].iter().all(|word| text.contains(word));
        warnings.iter().any(|warning| warning.as_str().is_some_and(names))
    });
    // Beyond the subnet everything works.
    for (number, server) in (1..).zip(["198.51.100.1", "198.51.100.2", "198.51.101.1"]) {
        let echo = stage.crosses(&Packet::echo_request("192.168.1.10", server, number, 1));
        assert_eq!(echo.ip().source.to_string(), "192.168.1.2");
        let reply = Packet::echo_reply(server, "192.168.1.2", port(&echo), 1);
        assert_eq!(port(&stage.reaches(&reply, &stage.a)), number);
        let seen = source(&stage.crosses(&stage.udp("192.168.1.10:40000", &format!("{server}:7"))));
        stage.reaches(&stage.udp(&format!("{server}:7"), &seen), &stage.a);
    }
    // A host of the subnet that sends to the gateway from outside is not taken for one inside, nor led there.
    let stray = stage.udp("192.168.1.77:7", "192.168.1.2:40000");
    isp.tap().send(&stray);
    stage.lan_is_silent();
}

/// RFC 3022 section 2.2, figure 3, number by number.
#[test]
fn map_12_the_example_of_rfc_3022() {
    let configuration = gateway::STANDARD.replace("192.168.0.0/16\"]\ndest", "10.0.0.0/8\"]\ndest");
    let stage = Stage::with(&configuration.replace("\"masquerade\"", "[\"138.76.28.4\"]"));
    // The public addresses are the example's.
    stage.expect_bad_packets();
    let Lab { gateway, isp, s1, .. } = &stage.lab;
    gateway.ip("route add 10.0.0.0/8 via 192.168.1.10 dev lan");
    isp.ip("route add 138.76.28.4 via 203.0.113.1");
    isp.ip("route add 138.76.29.7 via 198.51.100.1");
    s1.ip("addr add 138.76.29.7/32 dev eth0");
    let out = Packet::tcp("10.0.0.10:3017", "138.76.29.7:23").syn(1000);
    let sent = stage.a.send(&out);
    let seen = stage.s1.expect("the SYN", |seen| seen.tcp().is_some_and(|tcp| tcp.destination == 23));
    assert_eq!(seen.ip().source.to_string(), "138.76.28.4");
    assert_eq!(destination(&seen), "138.76.29.7:23");
    invariants::assert_translated(&sent, &seen, 2);
    let reply = Packet::tcp("138.76.29.7:23", source(&seen).as_str()).syn(5000).ack(1001);
    let sent = stage.s1.send(&reply);
    let back = stage.a.expect("the SYN-ACK", |seen| seen.tcp().is_some_and(|tcp| tcp.seq == 5000));
    assert_eq!(
        (source(&back), destination(&back)),
        ("138.76.29.7:23".to_owned(), "10.0.0.10:3017".to_owned())
    );
    invariants::assert_translated(&sent, &back, 2);
}

#[test]
fn map_14_two_inside_networks_share_one_address() {
    let second = "[[interface]]\nname = \"lan2\"\nside = \"inside\"\n";
    let stage = Stage::build(Lab::builder().second_lan(), &format!("{}{second}", gateway::STANDARD));
    for server in ["198.51.100.1:1000", "198.51.100.2:1000"] {
        let of_a = source(&stage.crosses(&stage.udp("192.168.1.10:40000", server)));
        let of_d = source(&stage.crosses(&stage.udp("192.168.2.10:40000", server)));
        assert_eq!((&of_a, of_d.starts_with("203.0.113.1:")), (&public(40000), true));
        assert_ne!(of_a, of_d);
        for tap in [&stage.a, stage.d()] {
            tap.clear();
        }
        let clients = [(&of_a, &stage.a, stage.lab.a.mac), (&of_d, stage.d(), stage.lab.d().mac)];
        for (public, tap, mac) in clients {
            assert_eq!(stage.reaches(&stage.udp(server, public), tap).to, mac);
        }
        for tap in [&stage.a, stage.d()] {
            assert_eq!(tap.incoming(|seen| seen.udp().is_some()).len(), 1, "only what is its own");
        }
    }
}

/// A source port of 0 says that no answer is wanted (RFC 768); it is mapped like any other, to a port that is not 0.
#[test]
fn map_13_odd_ports_and_ids_come_back_as_they_were() {
    let stage = Stage::standard();
    for number in [0, 1, 1023, 1024, 65_535] {
        let client = format!("192.168.1.10:{number}");
        let seen = stage.crosses(&stage.udp(&client, "198.51.100.1:7"));
        assert_ne!(port(&seen), 0);
        let reply = stage.reaches(&stage.udp("198.51.100.1:7", &source(&seen)), &stage.a);
        assert_eq!(destination(&reply), client);
        let seen = stage.connect(&client, "198.51.100.1:80");
        assert!(!seen.ends_with(":0"), "{seen}");
        let reply = stage.reaches(&stage.data("198.51.100.1:80", &seen), &stage.a);
        assert_eq!(destination(&reply), client);
    }
    for id in [0, 65_535] {
        let seen = port(&stage.crosses(&Packet::echo_request("192.168.1.10", "198.51.100.1", id, 9)));
        let reply = Packet::echo_reply("198.51.100.1", "203.0.113.1", seen, 9);
        assert_eq!(port(&stage.reaches(&reply, &stage.a)), id);
    }
}

fn destination(packet: &Decoded) -> String {
    packet.destination().unwrap().to_string()
}

#[test]
fn s000_r2_towards_the_inside_a_rule_hides_remotes_behind_the_inside_address() {
    let rule = "[[snat]]\nname = \"inward\"\ndestination = [\"192.168.1.0/24\"]\nout = \"lan\"\nto = \"masquerade\"\n";
    let stage = Stage::snat(rule);
    // The remote knows the private address: that is what this case asks for.
    stage.expect_inside_addresses_outside();
    let seen = stage.reaches(&stage.udp("198.51.100.1:1000", "192.168.1.10:40000"), &stage.a);
    assert_eq!(source(&seen), "192.168.1.1:1000");
    let answer = stage.send(&stage.udp("192.168.1.10:40000", "192.168.1.1:1000"));
    let back = stage.s1.expect_payload(answer.payload());
    assert_eq!(source(&back), "192.168.1.10:40000");
}
