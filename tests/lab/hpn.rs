//! Hairpinning and port forwarding: the inside from the outside, and from the inside by way of it.

use nat_tests::{Packet, gateway, packet::tcp};

use crate::stage::{Stage, port, public, source};

/// P1:8080 is a's web server, for TCP and UDP; P1:6000 to 6009 go to b.
const FORWARDS: &str = r#"
[[forward]]
protocol = ["tcp", "udp"]
external = "203.0.113.1:8080"
internal = "192.168.1.10:80"

[[forward]]
protocol = ["udp"]
external = "203.0.113.1:6000-6009"
internal = "192.168.1.11:7000-7009"
"#;

fn forwards() -> Stage {
    Stage::with(&format!("{}{FORWARDS}", gateway::STANDARD))
}

#[test]
fn hpn_01_inside_hosts_meet_at_their_public_addresses() {
    let stage = Stage::snat("filtering = \"endpoint-independent\"");
    let of_b = source(&stage.crosses(&stage.udp("192.168.1.11:5000", "198.51.100.1:1000")));
    let at_b = stage.reaches(&stage.udp("192.168.1.10:40000", &of_b), &stage.b);
    assert_eq!(at_b.ip().source.to_string(), "203.0.113.1", "b sees a's public address");
    assert_eq!(at_b.destination().unwrap().to_string(), "192.168.1.11:5000");
    let answer = stage.reaches(&stage.udp("192.168.1.11:5000", &source(&at_b)), &stage.a);
    assert_eq!(source(&answer), of_b);
}

#[test]
fn hpn_02_a_hairpinned_connection_opens() {
    let stage = Stage::snat("filtering = \"endpoint-independent\"");
    let of_b = stage.connect("192.168.1.11:5000", "198.51.100.1:1000");
    let of_a = source(&stage.reaches(&stage.syn("192.168.1.10:40000", &of_b), &stage.b));
    let answer = Packet::tcp("192.168.1.11:5000", of_a.as_str()).seq(9).ack(2).flags(tcp::SYN | tcp::ACK);
    assert_eq!(source(&stage.reaches(&answer, &stage.a)), of_b);
    stage.reaches(&stage.data("192.168.1.10:40000", &of_b), &stage.b);
}

#[test]
fn hpn_07_a_host_reaches_itself() {
    let stage = Stage::snat("filtering = \"endpoint-independent\"");
    let own = source(&stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.1:1000")));
    let seen = stage.reaches(&stage.udp("192.168.1.10:40000", &own), &stage.a);
    assert_eq!(source(&seen), own);
}

#[test]
fn hpn_09_filtering_holds_inside_too() {
    let stage = Stage::standard();
    let of_b = source(&stage.crosses(&stage.udp("192.168.1.11:5000", "198.51.100.1:1000")));
    stage.stopped(&stage.udp("192.168.1.10:40000", &of_b), &stage.b);
}

#[test]
fn hpn_11_what_nobody_mapped_does_not_go_outside() {
    let stage = Stage::standard();
    stage.a.send(&stage.udp("192.168.1.10:40000", "203.0.113.1:33333"));
    stage.wan.expect_silence();
}

#[test]
fn pfw_01_a_forward_keeps_the_source() {
    let stage = forwards();
    let seen = stage.reaches(&stage.syn("198.51.100.1:5555", "203.0.113.1:8080"), &stage.a);
    assert_eq!(source(&seen), "198.51.100.1:5555");
    assert_eq!(seen.destination().unwrap().to_string(), "192.168.1.10:80");
    let answer = Packet::tcp("192.168.1.10:80", "198.51.100.1:5555").seq(9).ack(2).flags(tcp::SYN | tcp::ACK);
    assert_eq!(source(&stage.crosses(&answer)), public(8080));
}

#[test]
fn pfw_02_session_then_forward_then_the_gateway() {
    let stage = forwards();
    stage.s1.send(&Packet::echo_request("198.51.100.1", "203.0.113.1", 1, 1).payload("to the gateway"));
    stage.s1.expect_payload("to the gateway");
    stage.reaches(&stage.udp("198.51.100.1:5555", "203.0.113.1:8080"), &stage.a);
    let mapped = source(&stage.crosses(&stage.udp("192.168.1.12:40000", "198.51.100.1:1000")));
    stage.reaches(&stage.udp("198.51.100.1:1000", &mapped), &stage.c);
}

#[test]
fn pfw_03_a_range_goes_port_by_port() {
    let stage = forwards();
    for offset in [0, 4, 9] {
        let outside = format!("203.0.113.1:{}", 6000 + offset);
        let seen = stage.reaches(&stage.udp("198.51.100.1:5555", &outside), &stage.b);
        assert_eq!(seen.destination().unwrap().port(), 7000 + offset);
        let inside = format!("192.168.1.11:{}", 7000 + offset);
        assert_eq!(source(&stage.crosses(&stage.udp(&inside, "198.51.100.1:5555"))), outside);
    }
    stage.s1.send(&stage.udp("198.51.100.1:5555", "203.0.113.1:6010"));
    stage.lan_is_silent();
}

#[test]
fn pfw_05_a_forward_for_some_sources_only() {
    let some = FORWARDS.replace("\ninternal", "\nsource = [\"198.51.100.0/24\"]\ninternal");
    let stage = Stage::with(&format!("{}{some}", gateway::STANDARD));
    stage.reaches(&stage.udp("198.51.100.1:5555", "203.0.113.1:8080"), &stage.a);
    stage.stopped(&stage.udp("198.51.101.1:5555", "203.0.113.1:8080"), &stage.a);
}

#[test]
fn hpn_05_and_06_a_forward_works_from_the_inside() {
    let stage = forwards();
    for (client, tap) in [("192.168.1.11:40000", &stage.b), ("192.168.1.10:40000", &stage.a)] {
        let seen = stage.reaches(&stage.udp(client, "203.0.113.1:8080"), &stage.a);
        assert_eq!(seen.ip().source.to_string(), "203.0.113.1");
        let answer = stage.reaches(&stage.udp("192.168.1.10:80", &source(&seen)), tap);
        assert_eq!(source(&answer), public(8080));
    }
}

#[test]
fn prt_11_a_forwarded_port_is_nobody_elses() {
    let stage = forwards();
    let seen = port(&stage.crosses(&stage.syn("192.168.1.12:8080", "198.51.100.1:80")));
    assert_ne!(seen, 8080);
}
