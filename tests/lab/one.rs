//! One-to-one NAT, address pools, exemptions, and what happens when there is no more.

use nat_tests::{Lab, Packet, gateway};

use crate::stage::{Stage, port, public, seconds, source};

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
    // ONE-05: the others go on as before.
    assert_eq!(
        stage.crosses(&stage.udp("192.168.1.11:40000", SERVER)).ip().source.to_string(),
        "203.0.113.1"
    );
}

#[test]
fn one_03_protocols_without_ports_pass() {
    let stage = statics("203.0.113.2", "192.168.1.10");
    for protocol in [47, 50, 253] {
        let payload = format!("protocol {protocol}");
        stage.reaches(&Packet::raw("198.51.100.1", "203.0.113.2", protocol).payload(&payload), &stage.a);
        let seen = stage.crosses(&Packet::raw("192.168.1.10", "198.51.100.1", protocol).payload(&payload));
        assert_eq!(seen.ip().source.to_string(), "203.0.113.2");
    }
}

#[test]
fn one_04_a_prefix_keeps_the_host_part() {
    let stage = statics("203.0.113.16/30", "192.168.1.8/30");
    for (inside, outside, tap) in
        [("192.168.1.10:7", "203.0.113.18:7", &stage.a), ("192.168.1.11:7", "203.0.113.19:7", &stage.b)]
    {
        assert_eq!(source(&stage.crosses(&stage.udp(inside, SERVER))), outside);
        stage.reaches(&stage.udp(SERVER, outside), tap);
    }
    let c = stage.crosses(&stage.udp("192.168.1.12:7", SERVER));
    assert_eq!(c.ip().source.to_string(), "203.0.113.1", "c is not in the prefix");
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
    stage.expect_bad_packets();
    let seen = stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.101.1:7"));
    assert_eq!(source(&seen), "192.168.1.10:40000");
    assert_eq!(source(&stage.crosses(&stage.udp("192.168.1.10:40000", SERVER))), public(40000));
}

#[test]
fn exh_01_and_02_a_full_port_range_refuses_and_takes_from_nobody() {
    let stage = Stage::snat("ports = \"20000-20009\"");
    let clients: Vec<String> = (0..10).map(|number| format!("192.168.1.10:{}", 30_000 + number)).collect();
    let mapped: Vec<String> =
        clients.iter().map(|client| source(&stage.crosses(&stage.udp(client, SERVER)))).collect();
    for number in 0..20 {
        stage.stopped_quickly(&stage.udp(&format!("192.168.1.11:{}", 30_000 + number), SERVER));
    }
    for (client, mapped) in clients.iter().zip(&mapped) {
        let seen = stage.reaches(&stage.udp(SERVER, mapped), &stage.a);
        assert_eq!(seen.destination().unwrap().to_string(), *client);
        assert_eq!(source(&stage.crosses(&stage.udp(client, SERVER))), *mapped);
    }
}

#[test]
fn exh_05_a_source_has_its_limit_and_others_have_theirs() {
    let stage = Stage::with(&format!("{}\n[limits]\nsessions_per_source = 10\n", gateway::STANDARD));
    for number in 0..10 {
        stage.crosses(&stage.udp(&format!("192.168.1.10:{}", 30_000 + number), SERVER));
    }
    stage.stopped(&stage.udp("192.168.1.10:40000", SERVER), &stage.s1);
    stage.crosses(&stage.udp("192.168.1.10:30000", SERVER));
    stage.crosses(&stage.udp("192.168.1.11:40000", SERVER));
}

#[test]
fn exh_06_a_source_has_its_rate() {
    let stage = Stage::with(&format!("{}\n[limits]\nnew_per_second_per_source = 10\n", gateway::STANDARD));
    for number in 0..200 {
        stage.a.send(&stage.udp(&format!("192.168.1.10:{}", 30_000 + number), SERVER));
    }
    stage.crosses(&stage.udp("192.168.1.11:40000", SERVER));
    let passed = stage.s1.incoming(|seen| seen.udp().is_some_and(|udp| udp.source != 40_000)).len();
    assert!((1..=40).contains(&passed), "{passed} of 200");
    seconds(1.5);
    stage.crosses(&stage.udp("192.168.1.10:50000", SERVER));
}

#[test]
fn exh_07_a_full_table_refuses_and_leaks_nothing() {
    let stage = Stage::build(
        Lab::builder().forwarding(),
        &format!("{}\n[limits]\nsessions = 1000\n", gateway::STANDARD),
    );
    let first = source(&stage.crosses(&stage.udp("192.168.1.10:20000", SERVER)));
    for number in 1..1200 {
        stage.a.send(&stage.udp(&format!("192.168.1.10:{}", 20_000 + number), SERVER));
        if number % 50 == 0 {
            seconds(0.02);
        }
    }
    seconds(0.5);
    assert!(stage.session_count() <= 1000);
    stage.stopped(&stage.udp("192.168.1.11:40000", SERVER), &stage.s1);
    stage.reaches(&stage.udp(SERVER, &first), &stage.a);
}
