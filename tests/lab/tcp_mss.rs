//! TCP: the MSS of SYNs is clamped where an interface says so, and nothing else is.

use nat_tests::{
    Decoded, Packet, gateway,
    packet::tcp::{ACK, SYN},
};

use crate::stage::{CLIENT_SEQ, SERVER_SEQ, Stage, source};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:80";

/// Options as sent and as they have to arrive behind a clamp of 1360 (05 50).
const CASES: [(&str, &[u8], &[u8]); 7] = [
    ("1460", &[2, 4, 5, 180], &[2, 4, 5, 80]),
    ("1360", &[2, 4, 5, 80], &[2, 4, 5, 80]),
    ("1200", &[2, 4, 4, 176], &[2, 4, 4, 176]),
    ("none", &[], &[]),
    ("after one byte", &[1, 2, 4, 5, 180, 4, 2, 0], &[1, 2, 4, 5, 80, 4, 2, 0]),
    ("after the end of options", &[0, 2, 4, 5, 180, 0, 0, 0], &[0, 2, 4, 5, 180, 0, 0, 0]),
    ("cut off", &[1, 1, 2, 4], &[1, 1, 2, 4]),
];

fn clamped(side: &str) -> String {
    let line = format!("side = \"{side}\"\n");
    gateway::STANDARD.replace(&line, &format!("{line}mss_clamp = 1360\n"))
}

/// The options with which a segment arrives at the host it is sent to.
fn options(stage: &Stage, packet: &Packet, to_client: bool) -> Vec<u8> {
    let sent = stage.send(packet);
    let tap = if to_client { &stage.a } else { &stage.s1 };
    let id = |seen: &Decoded| seen.tcp().map(|tcp| (tcp.seq, tcp.ack, tcp.flags));
    let seen = tap.expect(&format!("{sent} after translation"), |seen| id(seen) == id(&sent));
    seen.checksums_valid().unwrap();
    seen.tcp().unwrap().options.clone()
}

#[test]
fn tcp_26_the_mss_of_syns_is_clamped_and_nothing_else() {
    // Where the outer interface says so, the inner, or neither.
    for (configuration, clamps) in
        [(clamped("outside"), true), (clamped("inside"), true), (gateway::STANDARD.to_owned(), false)]
    {
        let stage = Stage::with(&configuration);
        for (number, (name, sent, clamped)) in (0..).zip(CASES) {
            let client = format!("192.168.1.10:{}", 40_000 + number);
            let expected = if clamps { clamped } else { sent };
            let syn = Packet::tcp(client.as_str(), SERVER).syn(CLIENT_SEQ).tcp_options(sent);
            // The first makes the session, the second is of one that the fast path knows.
            for turn in ["first", "again"] {
                assert_eq!(options(&stage, &syn, false), expected, "SYN, {name}, {turn}");
            }
            let mapped = format!("203.0.113.1:{}", 40_000 + number);
            let answer = Packet::tcp(SERVER, mapped.as_str()).seq(SERVER_SEQ).ack(CLIENT_SEQ + 1);
            let answer = answer.flags(SYN | ACK).tcp_options(sent);
            assert_eq!(options(&stage, &answer, true), expected, "SYN-ACK, {name}");
            let ack = Packet::tcp(client.as_str(), SERVER).seq(CLIENT_SEQ + 1).ack(SERVER_SEQ + 1);
            assert_eq!(options(&stage, &ack.tcp_options(sent), false), sent, "ACK, {name}");
        }
    }
}

#[test]
fn tcp_26_one_to_one_is_clamped_too() {
    let rule = "[[static]]\nexternal = \"203.0.113.2\"\ninternal = \"192.168.1.10\"\n";
    let stage = Stage::with(&format!("{}{rule}", clamped("outside")));
    for (name, sent, clamped) in CASES {
        let syn = Packet::tcp(CLIENT, SERVER).syn(stage.token()).tcp_options(sent);
        assert_eq!(options(&stage, &syn, false), clamped, "outward, {name}");
        let syn = Packet::tcp(SERVER, "203.0.113.2:80").syn(stage.token()).tcp_options(sent);
        assert_eq!(options(&stage, &syn, true), clamped, "inward, {name}");
    }
    assert_eq!(source(&stage.crosses(&stage.udp(CLIENT, SERVER))), "203.0.113.2:40000");
}
