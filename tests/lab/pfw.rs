//! Port forwarding: inside servers behind external ports.

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

/// The standard set-up with these forwards.
pub(crate) fn forwards() -> Stage {
    Stage::with(&format!("{}{FORWARDS}", gateway::STANDARD))
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
fn prt_11_a_forwarded_port_is_nobody_elses() {
    let stage = forwards();
    let seen = port(&stage.crosses(&stage.syn("192.168.1.12:8080", "198.51.100.1:80")));
    assert_ne!(seen, 8080);
}
