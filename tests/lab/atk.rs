//! Attacks.

use nat_tests::Packet;

use crate::stage::{Stage, source};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";

#[test]
fn atk_01_and_02_forged_sources_from_outside() {
    let stage = Stage::snat("filtering = \"endpoint-independent\"");
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let forged = ["192.168.1.11:9", "192.168.1.10:40000", "203.0.113.1:9", mapped.as_str(), "127.0.0.1:9"];
    for source in forged {
        stage.wan.send(&Packet::udp(source, mapped.as_str()).payload("forged"));
        stage.wan.send(&Packet::tcp(source, "203.0.113.1:80").syn(1));
    }
    stage.lan_is_silent();
    stage.wan.expect_none("an answer to a forged packet", |seen| {
        seen.ip.as_ref().is_some_and(|ip| ip.destination.to_string() == "203.0.113.1")
    });
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
