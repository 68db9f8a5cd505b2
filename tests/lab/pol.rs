//! Address pools, and which rule a packet meets.

use std::{collections::HashMap, net::Ipv4Addr, time::Duration};

use nat_tests::{Decoded, Lab, Packet, gateway, lab::Q1};

use crate::stage::{Stage, public, seconds, source};

const SERVER: &str = "198.51.100.1:5000";

/// The standard set-up with these external addresses.
fn pool(to: &str) -> Stage {
    Stage::with(&gateway::STANDARD.replace("to = \"masquerade\"", to))
}

#[test]
fn pol_01_one_host_one_address() {
    let stage = pool("to = [\"203.0.113.2-203.0.113.4\"]");
    for client in ["192.168.1.10", "192.168.1.11", "192.168.1.12"] {
        let first = stage.crosses(&stage.udp(&format!("{client}:40000"), SERVER)).ip().source;
        assert!((2..=4).contains(&first.octets()[3]), "{first}");
        for number in 0..20 {
            let inside = format!("{client}:{}", 41_000 + number);
            let udp = stage.crosses(&stage.udp(&inside, SERVER));
            let tcp = stage.crosses(&stage.syn(&inside, "198.51.100.2:80"));
            let echo = stage.crosses(&Packet::echo_request(client, "198.51.101.1", number, 1));
            for seen in [udp, tcp, echo] {
                assert_eq!(seen.ip().source, first, "{client}");
            }
        }
        let mapped = format!("{first}:40000");
        stage.reaches(&stage.udp(SERVER, &mapped), stage.tap(client.parse().unwrap()));
    }
}

#[test]
fn pol_05_exempt_traffic_leaves_as_it_is() {
    let exempt = "[[snat]]\nname = \"exempt\"\ndestination = [\"198.51.101.0/24\"]\nto = \"none\"\n\n[[snat]]\nname = \"office\"";
    let configuration = gateway::STANDARD.replace("[[snat]]\nname = \"office\"", exempt);
    let stage = Stage::build(Lab::builder().forwarding(), &configuration);
    // The private address outside is what this case asks for.
    stage.expect_inside_addresses_outside();
    let seen = stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.101.1:7"));
    assert_eq!(source(&seen), "192.168.1.10:40000");
    assert_eq!(source(&stage.crosses(&stage.udp("192.168.1.10:40000", SERVER))), public(40000));
}

/// The external address that a packet got.
fn external(seen: &Decoded) -> Ipv4Addr {
    seen.ip().source
}

#[test]
fn pol_02_a_paired_address_without_ports_refuses_unless_pooling_is_soft() {
    for pooling in ["paired", "soft"] {
        let stage = pool(&format!(
            "to = [\"203.0.113.2-203.0.113.4\"]\nports = \"20000-20009\"\npooling = \"{pooling}\""
        ));
        let flow = |number: u16| stage.udp(&format!("192.168.1.10:{}", 30_000 + number), SERVER);
        let own = external(&stage.crosses(&flow(0)));
        for number in 1..10 {
            assert_eq!(external(&stage.crosses(&flow(number))), own);
        }
        if pooling == "paired" {
            stage.stopped(&flow(10), &stage.s1);
            assert_ne!(
                external(&stage.crosses(&stage.udp("192.168.1.11:1", SERVER))),
                own,
                "others have theirs"
            );
        } else {
            assert_ne!(external(&stage.crosses(&flow(10))), own);
        }
        assert_eq!(external(&stage.crosses(&flow(0))), own);
    }
}

#[test]
fn pol_03_a_pool_in_pieces() {
    let stage =
        pool("to = [\"203.0.113.2\", \"203.0.113.7\", \"192.0.2.9-192.0.2.12\"]\npooling = \"arbitrary\"");
    stage.expect_bad_packets();
    stage.lab.isp.ip("route add 192.0.2.8/29 via 203.0.113.1");
    let mut used = HashMap::new();
    for number in 0..200 {
        let client = format!("192.168.1.10:{}", 30_000 + number);
        let mapped = stage.crosses(&stage.udp(&client, SERVER));
        let seen = stage.reaches(&stage.udp(SERVER, &source(&mapped)), &stage.a);
        assert_eq!(seen.destination().unwrap().to_string(), client);
        *used.entry(external(&mapped)).or_insert(0) += 1;
    }
    let mut used: Vec<String> = used.keys().map(Ipv4Addr::to_string).collect();
    used.sort();
    assert_eq!(used, ["192.0.2.10", "192.0.2.11", "192.0.2.12", "192.0.2.9", "203.0.113.2", "203.0.113.7"]);
}

#[test]
fn pol_04_hosts_are_spread_evenly_over_the_addresses() {
    let stage = pool("to = [\"203.0.113.64-203.0.113.127\"]");
    let mut hosts: HashMap<Ipv4Addr, u32> = HashMap::new();
    for host in 100..200 {
        let packet = stage.udp(&format!("192.168.1.{host}:40000"), SERVER);
        let sent = stage.a.send(&packet);
        let seen = stage.s1.expect_payload(sent.payload());
        *hosts.entry(external(&seen)).or_default() += 1;
    }
    let mean = 100.0 / 64.0;
    let counts = (64..128).map(|last| f64::from(*hosts.get(&Ipv4Addr::new(203, 0, 113, last)).unwrap_or(&0)));
    let variance = counts.map(|count| (count - mean) * (count - mean)).sum::<f64>() / 64.0;
    assert!(variance < 0.33 * mean, "variance {variance}: {hosts:?}");
}

/// The standard interfaces, and rules.
fn rules(rules: &str) -> String {
    let interfaces = gateway::STANDARD.split("[[snat]]").next().unwrap();
    format!("{interfaces}{rules}")
}

/// What becomes of a datagram from one to the other: the external address, or none if it goes untranslated.
fn fate(stage: &Stage, from: &str, to: &str) -> Option<String> {
    let sent = stage.a.send(&stage.udp(from, to));
    let server = stage.tap(to.split(':').next().unwrap().parse().unwrap());
    let seen = server.expect_payload(sent.payload());
    let seen = external(&seen).to_string();
    (!from.starts_with(&format!("{seen}:"))).then_some(seen)
}

/// From, to, and the external address, if it is translated.
type Case = (&'static str, &'static str, Option<&'static str>);

#[test]
fn pol_06_and_07_selectors() {
    let table: [(&str, &[Case]); 4] = [
        // By source prefix and negated destination; no match is plain routing.
        (
            "[[snat]]\nsource = [\"192.168.1.0/28\"]\ndestination = [\"!198.51.101.0/24\"]\nto = \"masquerade\"\n",
            &[
                ("192.168.1.10:1", "198.51.100.1:9", Some("203.0.113.1")),
                ("192.168.1.10:1", "198.51.101.1:9", None),
                ("192.168.1.16:1", "198.51.100.1:9", None),
            ],
        ),
        // By negated source and destination.
        (
            "[[snat]]\nsource = [\"!192.168.1.11/32\"]\ndestination = [\"198.51.100.0/24\"]\nout = \"wan\"\nto = \"masquerade\"\n",
            &[
                ("192.168.1.10:1", "198.51.100.1:9", Some("203.0.113.1")),
                ("192.168.1.11:1", "198.51.100.1:9", None),
                ("192.168.1.10:1", "198.51.101.1:9", None),
            ],
        ),
        // The first match wins, also where a later one is narrower.
        (
            "[[snat]]\nsource = [\"192.168.1.0/24\"]\ndestination = [\"198.51.100.2/32\"]\nto = \"none\"\n\
             [[snat]]\nsource = [\"192.168.1.0/24\"]\nto = [\"203.0.113.2\"]\n\
             [[snat]]\nsource = [\"192.168.1.10/32\"]\nto = [\"203.0.113.3\"]\n",
            &[
                ("192.168.1.10:1", "198.51.100.1:9", Some("203.0.113.2")),
                ("192.168.1.10:1", "198.51.100.2:9", None),
                ("192.168.2.10:1", "198.51.100.1:9", None),
            ],
        ),
        // POL-07: exactly the prefix.
        (
            "[[snat]]\nsource = [\"172.16.0.0/27\"]\nto = \"masquerade\"\n",
            &[
                ("172.16.0.0:1", "198.51.100.1:9", Some("203.0.113.1")),
                ("172.16.0.1:1", "198.51.100.1:9", Some("203.0.113.1")),
                ("172.16.0.31:1", "198.51.100.1:9", Some("203.0.113.1")),
                ("172.16.0.32:1", "198.51.100.1:9", None),
            ],
        ),
    ];
    for (text, cases) in table {
        let stage = Stage::build(Lab::builder().forwarding(), &rules(text));
        // What no rule translates is on the WAN as it was.
        stage.expect_inside_addresses_outside();
        // Behind a router on the LAN: a source that is routed elsewhere would be forged.
        for net in ["192.168.2.0/24", "172.16.0.0/24"] {
            stage.lab.gateway.ip(&format!("route add {net} via 192.168.1.10"));
        }
        stage.lab.gateway.sysctl("ipv4.conf.all.rp_filter", "0");
        for interface in ["lan", "wan"] {
            stage.lab.gateway.sysctl(&format!("ipv4.conf.{interface}.rp_filter"), "0");
        }
        for (from, to, expected) in cases {
            for _ in 0..2 {
                assert_eq!(fate(&stage, from, to).as_deref(), *expected, "{from} > {to} under\n{text}");
            }
        }
    }
}

#[test]
fn pol_08_an_address_that_leaves_the_pool_is_cut_and_answers_no_more() {
    let stage = pool("to = [\"203.0.113.2-203.0.113.4\"]");
    let mapped = ["192.168.1.10", "192.168.1.11", "192.168.1.12"]
        .map(|client| (client, source(&stage.crosses(&stage.udp(&format!("{client}:40000"), SERVER)))));
    let gone = mapped.iter().filter(|(_, mapped)| mapped.starts_with("203.0.113.3:")).count();
    assert_eq!(gone, 1, "{mapped:?}");
    let resolves = |address: &str| {
        stage.lab.isp.ip("neigh flush dev gw");
        stage.lab.isp.run(&format!("ping -c 1 -W 1 {address}")).status.success()
    };
    assert!(resolves("203.0.113.3"));
    let without = gateway::STANDARD.replace("to = \"masquerade\"", "to = [\"203.0.113.2\", \"203.0.113.4\"]");
    stage.gateway.configure(&without);
    let told = stage.gateway.natgw(&["reload", "--json"]);
    assert_eq!((told["kept"].as_u64(), told["ended"].as_u64()), (Some(2), Some(1)), "{told}");
    for (client, mapped) in &mapped {
        let tap = stage.tap(client.parse().unwrap());
        if mapped.starts_with("203.0.113.3:") {
            stage.stopped(&stage.udp(SERVER, mapped), tap);
        } else {
            stage.reaches(&stage.udp(SERVER, mapped), tap);
        }
        let anew = stage.crosses(&stage.udp(&format!("{client}:40000"), SERVER));
        assert_ne!(external(&anew).to_string(), "203.0.113.3");
    }
    assert!(!resolves("203.0.113.3"), "the gateway still answers for it");
    assert!(resolves("203.0.113.2"));
}

#[test]
fn pol_09_an_address_on_no_subnet_does_not_loop() {
    let configuration = gateway::STANDARD.replace("to = \"masquerade\"", "to = [\"192.0.2.9\"]");
    let stage = Stage::build(Lab::builder().forwarding(), &configuration);
    stage.expect_bad_packets();
    stage.lab.isp.ip("route add 192.0.2.8/29 via 203.0.113.1");
    // A socket bound to no address is none of this address's.
    let _socket = stage.lab.gateway.within(|| std::net::UdpSocket::bind("0.0.0.0:9")).expect("bind");
    let mapped = source(&stage.crosses(&stage.udp("192.168.1.10:40000", SERVER)));
    assert_eq!(mapped, "192.0.2.9:40000");
    stage.wan.clear();
    let nobodys = [
        stage.udp(SERVER, "192.0.2.9:9"),
        stage.udp(SERVER, "192.0.2.9:40001"),
        stage.syn(SERVER, "192.0.2.9:22"),
        stage.data(SERVER, "192.0.2.9:40002"),
        Packet::echo_request("198.51.100.1", "192.0.2.9", 7, 1).payload("ping"),
        Packet::raw("198.51.100.1", "192.0.2.9", 47).payload("gre"),
        stage.udp(SERVER, "192.0.2.9:9").payload([1; 64]).more_fragments(),
    ];
    for packet in &nobodys {
        stage.s1.send(&packet.clone().ttl(200));
        let inside = packet.clone();
        stage.s1.expect_none("a TTL that ran out", |seen| seen.icmp().is_some_and(|icmp| icmp.kind == 11));
        let back = stage.wan.recv_matching(Duration::from_millis(100), |seen| seen.ip.is_some());
        assert!(
            back.is_none(),
            "{} goes back to the provider: {}",
            Decoded::parse(&inside.build()),
            back.unwrap().decoded
        );
    }
    // From inside, too.
    stage.a.send(&stage.udp("192.168.1.10:7", "192.0.2.9:9"));
    stage.a.send(&Packet::echo_request("192.168.1.10", "192.0.2.9", 7, 1));
    assert!(stage.wan.recv_matching(Duration::from_millis(200), |seen| seen.ip.is_some()).is_none());
    stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
}

#[test]
fn pol_10_and_11_each_way_out_has_its_addresses() {
    let second = "[[interface]]\nname = \"wan2\"\nside = \"outside\"\n";
    let text = format!(
        "{second}\
         [[snat]]\nsource = [\"192.168.1.11/32\"]\nout = \"wan\"\nto = [\"203.0.113.2\"]\n\
         [[snat]]\nsource = [\"192.168.1.0/24\"]\nout = \"wan\"\nto = \"masquerade\"\n\
         [[snat]]\nsource = [\"192.168.1.0/24\"]\nout = \"wan2\"\nto = \"masquerade\"\n\
         [[snat]]\nout = \"lan\"\ndestination = [\"192.168.1.12/32\"]\nto = \"masquerade\"\n\
         [[forward]]\nexternal = \"wan2:8080\"\ninternal = \"192.168.1.10:80\"\n\
         [[forward]]\nexternal = \"wan:2222\"\ninternal = \"192.168.1.12:22\"\n",
    );
    let stage = Stage::build(Lab::builder().second_uplink(), &rules(&text));
    stage.lab.gateway.ip("route add 198.51.101.0/24 via 192.0.2.254");
    stage.lab.gateway.ip("route add default via 192.0.2.254 metric 500");
    let wan2 = stage.lab.wan2();
    let cases = [
        ("192.168.1.10:40000", SERVER, "203.0.113.1"),
        ("192.168.1.11:40000", SERVER, "203.0.113.2"),
        ("192.168.1.10:40000", "198.51.101.1:7", "192.0.2.1"),
        ("192.168.1.11:40000", "198.51.101.1:7", "192.0.2.1"),
    ];
    for (from, to, expected) in cases {
        let seen = stage.crosses(&stage.udp(from, to));
        assert_eq!(external(&seen).to_string(), expected);
        stage.reaches(
            &stage.udp(to, &source(&seen)),
            stage.tap(from.split(':').next().unwrap().parse().unwrap()),
        );
    }
    // Towards the LAN, the gateway's address there.
    let seen = stage.reaches(&stage.udp(SERVER, &public(2222)), &stage.c);
    assert_eq!(external(&seen).to_string(), "198.51.100.1", "forwards keep the source");
    // Who comes by the second uplink is answered by it, wherever the best route leads.
    let asked = format!("{Q1}:8080");
    let seen = stage.reaches(&stage.udp(SERVER, &asked), &stage.a);
    let answer = |what: &str| {
        wan2.clear();
        stage.wan.clear();
        let sent = stage.send(&stage.udp("192.168.1.10:80", &source(&seen)));
        let seen = stage.s1.expect_payload(sent.payload());
        assert_eq!(source(&seen), asked, "{what}");
        wan2.expect_payload(sent.payload());
        stage.wan.expect_none(what, |seen| seen.payload() == sent.payload());
    };
    answer("at first");
    stage.lab.gateway.ip("route add 10.9.9.0/24 via 203.0.113.254");
    seconds(0.5);
    answer("after routes have changed");
}
