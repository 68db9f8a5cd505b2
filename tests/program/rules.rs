//! Packets without a flow: whose they are by the rules, the gateway's addresses and its sockets.

use nat_common::Reason::{DropFragment, DropMartian, DropNoDaemon, DropUninvited, DropUnsolicited};
use nat_tests::{
    Packet,
    packet::{protocol, tcp},
};

use crate::{
    fixture::{assert_right, check, judge_all, lan, tap, wan},
    stage::on_stage,
};

const SERVER: &str = "198.51.100.1:53";

/// A packet from one address to another.
type Form = fn(&str, &str) -> Packet;

#[test]
fn pol_05_rules() {
    check(vec![
        lan("a new flow", Packet::udp("192.168.1.11:1", SERVER)).punted(),
        lan("a new connection", Packet::tcp("192.168.1.11:1", SERVER).syn(1)).punted(),
        lan("a new echo", Packet::echo_request("192.168.1.11", "198.51.100.1", 1, 1)).punted(),
        lan("a protocol that no rule carries", Packet::raw("192.168.1.11", "198.51.100.1", 89)),
        lan("exempt", Packet::udp("192.168.1.11:1", "198.51.101.1:53")).passed(),
        lan("of no rule", Packet::udp("192.168.2.11:1", SERVER)).passed(),
        wan("exempt, from outside", Packet::udp("198.51.101.1:53", "192.168.1.11:1")).passed(),
        wan("of no rule, from outside", Packet::udp(SERVER, "192.168.2.11:1")).passed(),
        tap("a new flow where no daemon listens", Packet::udp("192.168.1.11:1", SERVER))
            .dropped(DropNoDaemon),
    ]);
}

/// behaviour FLT-08.
#[test]
fn flt_08_uninvited() {
    check(vec![
        wan("UDP", Packet::udp(SERVER, "192.168.1.10:40000")).dropped(DropUninvited),
        wan("TCP", Packet::tcp(SERVER, "192.168.1.10:40000").syn(1)).dropped(DropUninvited),
        wan("echo", Packet::echo_request("198.51.100.1", "192.168.1.10", 1, 1)).dropped(DropUninvited),
        // The inside's own keys are not found from outside.
        wan("with an inside source", Packet::udp("192.168.1.10:40000", SERVER)).passed(),
    ]);
}

#[test]
fn atk_01_martians_and_groups() {
    let from = |source: &str| lan(format!("from {source}"), Packet::udp((source, 1), SERVER));
    let to =
        |destination: &str| lan(format!("to {destination}"), Packet::udp("192.168.1.11:1", (destination, 1)));
    check(vec![
        from("0.0.0.0").dropped(DropMartian),
        from("0.1.2.3").dropped(DropMartian),
        from("127.0.0.1").dropped(DropMartian),
        from("224.0.0.1").dropped(DropMartian),
        from("240.0.0.1").dropped(DropMartian),
        from("255.255.255.255").dropped(DropMartian),
        to("0.0.0.1").dropped(DropMartian),
        to("127.0.0.1").dropped(DropMartian),
        to("240.0.0.1").dropped(DropMartian),
        to("255.255.255.255").passed(),
        to("224.0.0.251").passed(),
        to("239.255.255.250").passed(),
        lan("DHCP", Packet::udp("0.0.0.0:68", "255.255.255.255:67")).passed(),
    ]);
}

#[test]
fn loc_01_the_gateways_own() {
    let to = |port: u16| Packet::udp("198.51.100.9:9", ("203.0.113.1", port));
    let quoted = Packet::udp("203.0.113.1:61000", SERVER).ip();
    let piece = Packet::udp("198.51.100.9:9", "203.0.113.1:61000").payload([0; 8]).more_fragments();
    check(vec![
        wan("a port that a mapping may have", to(61000)).punted(),
        wan("a port below them", to(53)).passed(),
        wan("a forward's port below them", Packet::udp("198.51.100.9:9", "203.0.113.2:53")).punted(),
        wan("another where forwards are", Packet::udp("198.51.100.9:9", "203.0.113.2:54")).passed(),
        wan("a socket's", to(5000)).passed(),
        wan("PFW-11: a socket's and a forward's", Packet::udp("198.51.100.9:9", "203.0.113.2:5053")).punted(),
        wan("that socket's alone", to(5053)).passed(),
        wan("POL-09: nobody's, on no interface", Packet::udp("198.51.100.9:9", "203.0.113.3:54"))
            .dropped(DropUnsolicited),
        wan("POL-09: it seems a socket's", Packet::udp("198.51.100.9:9", "203.0.113.3:5053")).punted(),
        wan("POL-09: an echo request", Packet::echo_request("198.51.100.9", "203.0.113.3", 1, 1))
            .dropped(DropUnsolicited),
        wan("a listener's", Packet::tcp("198.51.100.9:9", "203.0.113.1:5000").syn(1)).passed(),
        wan("nobody's TCP port", Packet::tcp("198.51.100.9:9", "203.0.113.1:5001").syn(1)).punted(),
        wan("ICQ-06: an echo request", Packet::echo_request("198.51.100.9", "203.0.113.1", 1, 1)).passed(),
        wan("ICQ-07: one with a mapping's id", Packet::echo_request("198.51.100.1", "203.0.113.1", 61000, 1))
            .passed(),
        wan("ICQ-08: an echo reply", Packet::echo_reply("198.51.100.9", "203.0.113.1", 1, 1)).punted(),
        wan("an error", Packet::icmp_error("198.51.100.9", "203.0.113.1", 3, 3, &quoted)).punted(),
        wan("a fragment", piece).punted(),
        wan("another protocol", Packet::raw("198.51.100.9", "203.0.113.1", protocol::GRE).payload([0; 8]))
            .passed(),
        lan("the inside address", Packet::udp("192.168.1.11:1", "192.168.1.1:61000")).passed(),
        lan("HPN-11: the outside address from inside", Packet::udp("192.168.1.11:1", "203.0.113.1:61000"))
            .punted(),
    ]);
}

#[test]
fn flt_07_what_matches_nothing_may_be_dropped() {
    let to = |port: u16| Packet::udp("198.51.100.9:9", ("203.0.113.1", port));
    let fixtures = [
        wan("below the mappings", to(53)).dropped(DropUnsolicited),
        wan("a port that a mapping may have", to(61000)).punted(),
        wan("a socket's", to(5000)).passed(),
        lan("from inside", Packet::udp("192.168.1.11:1", "203.0.113.1:53")).passed(),
    ];
    assert_right(&on_stage(move |stage| stage.dropping_unmatched(|stage| judge_all(stage, &fixtures))));
}

/// behaviour ONE-01 to ONE-03 and FRG-25: the address is all that changes, and nothing is remembered.
#[test]
fn one_01_one_to_one() {
    let inside = "192.168.1.17";
    let outside = "203.0.113.17";
    let remote = "198.51.100.1";
    let forms: [(&str, Form); 11] = [
        ("UDP", |from, to| Packet::udp((from, 7), (to, 9)).payload(b"x")),
        ("UDP without a checksum", |from, to| Packet::udp((from, 7), (to, 9)).checksum(0).payload(b"x")),
        ("UDP-Lite", |from, to| Packet::udplite((from, 7), (to, 9)).payload(b"x")),
        ("TCP in its middle", |from, to| Packet::tcp((from, 7), (to, 9)).flags(tcp::ACK).payload(b"x")),
        ("an echo request", |from, to| Packet::echo_request(from, to, 5, 1)),
        ("an echo reply", |from, to| Packet::echo_reply(from, to, 5, 1)),
        ("GRE", |from, to| Packet::raw(from, to, protocol::GRE).payload([1, 2, 3])),
        ("SCTP", |from, to| Packet::raw(from, to, 132).payload([1, 2, 3, 4])),
        ("protocol 253", |from, to| Packet::raw(from, to, 253)),
        ("options", |from, to| Packet::udp((from, 7), (to, 9)).ip_options([1; 40]).payload(b"x")),
        ("a later fragment", |from, to| {
            Packet::raw(from, to, protocol::UDP).payload([9; 8]).fragment_offset(9)
        }),
    ];
    let mut fixtures = Vec::new();
    for (name, packet) in forms {
        fixtures.push(
            lan(format!("{name}, out"), packet(inside, remote))
                .sent_one_to_one(packet(outside, remote).ttl(63)),
        );
        fixtures.push(
            wan(format!("{name}, in"), packet(remote, outside))
                .sent_one_to_one(packet(remote, inside).ttl(63)),
        );
    }
    let quoted = Packet::udp((outside, 7), (remote, 9)).ip();
    fixtures.extend([
        lan("to the gateway", Packet::udp((inside, 7), "192.168.1.1:53")).passed(),
        lan("to its own side", Packet::udp((inside, 7), "192.168.1.10:53")).passed(),
        lan("HPN-04: to another one's outside address", Packet::udp((inside, 7), "203.0.113.18:53")).punted(),
        lan("TTL 1", Packet::udp((inside, 7), (remote, 9)).ttl(1)).punted(),
        wan("TTL 1, in", Packet::udp((remote, 9), (outside, 7)).ttl(1)).punted(),
        wan("an error", Packet::icmp_error(remote, outside, 3, 3, &quoted)).punted(),
        wan("nobody answers there", Packet::udp((remote, 9), "203.0.113.18:7")).punted(),
    ]);
    check(fixtures);
}

/// A first fragment has a checksum over all of the datagram, of which only the pseudo-header changes.
#[test]
fn frg_25_first_fragments_one_to_one() {
    let forms: [Form; 2] = [
        |from, to| Packet::udp((from, 7), (to, 9)).payload([0x5a; 64]),
        |from, to| Packet::tcp((from, 7), (to, 9)).ack(3).payload([0x5a; 64]),
    ];
    let mut fixtures = Vec::new();
    for packet in forms {
        let [came, leaves] = [("192.168.1.17", 64), ("203.0.113.17", 63)]
            .map(|(from, ttl)| packet(from, "198.51.100.1").ttl(ttl).fragments(32));
        for (piece, sent) in came.into_iter().zip(leaves) {
            fixtures.push(crate::fixture::outbound_one_to_one(piece, sent));
        }
    }
    fixtures.push(
        lan("too short for its checksum", {
            Packet::raw("192.168.1.17", "198.51.100.1", protocol::TCP).payload([0; 16]).more_fragments()
        })
        .dropped(DropFragment),
    );
    check(fixtures);
}
