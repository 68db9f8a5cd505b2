//! Timers with their defaults, by a clock that the test moves.

use std::time::Duration;

use nat_common::tcp::{ACK, FIN, RST, SYN};
use natgw::gateway::Outcome;

use crate::world::{LAN, Packet, Simulation, WAN, client, server};

const RULES: &str = "[[snat]]\nto = \"masquerade\"\n";

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A session that lives through `idle` without a packet, and is over a tenth later.
fn lives(simulation: &mut Simulation, idle: u64) {
    simulation.pass(seconds(idle - 1));
    assert_eq!(simulation.gateway.session_count(), 1, "ended before {idle} s");
    simulation.pass(seconds(1 + idle.div_ceil(10)));
    assert_eq!(simulation.gateway.session_count(), 0, "lives longer than {idle} s and a tenth");
    assert_eq!(simulation.gateway.mapping_count(), 0);
    assert!(simulation.world.flows.is_empty());
}

#[test]
fn tmu_01_udp_and_tmu_02_default() {
    let mut simulation = Simulation::new(RULES, 1);
    let sent = simulation.sent(LAN, Packet::udp(client(0, 40_000), server(0, 53)));
    simulation.pass(seconds(119));
    simulation.sent(WAN, sent.answer());
    simulation.pass(seconds(180));
    simulation.sent(WAN, sent.answer());
    // behaviour TMU-04: what comes from outside keeps no mapping alive.
    simulation.pass(seconds(31));
    assert_eq!(simulation.gateway.session_count(), 0);
    assert!(matches!(simulation.handle(WAN, sent.answer()).0, Outcome::Drop(_)));
}

#[test]
fn tmu_03_outbound_packets_keep_it() {
    let mut simulation = Simulation::new(RULES, 2);
    let flow = Packet::udp(client(0, 40_000), server(0, 53));
    let first = simulation.sent(LAN, flow);
    for _ in 0..12 {
        simulation.pass(seconds(299));
        assert_eq!(simulation.sent(LAN, flow), first);
    }
    lives(&mut simulation, 300);
}

/// behaviour TMU-07: a mapping lives while any of its sessions does.
#[test]
fn tmu_07_a_mapping_outlives_its_first_session() {
    let mut simulation = Simulation::new(RULES, 3);
    let [one, other] = [server(0, 53), server(1, 53)].map(|to| Packet::udp(client(0, 40_000), to));
    let before = simulation.sent(LAN, one).from;
    for _ in 0..4 {
        simulation.sent(LAN, other);
        simulation.pass(seconds(200));
    }
    assert_eq!((simulation.gateway.session_count(), simulation.gateway.mapping_count()), (1, 1));
    assert_eq!(simulation.sent(LAN, one).from, before);
}

/// A TCP session after segments: `true` for those from inside.
fn connection(segments: &[(bool, u8)]) -> Simulation {
    let mut simulation = Simulation::new(RULES, 4);
    let (from, to) = (client(0, 40_000), server(0, 80));
    let outside = simulation.sent(LAN, Packet::tcp(from, to, SYN)).from;
    for &(outbound, flags) in segments {
        if outbound {
            simulation.sent(LAN, Packet::tcp(from, to, flags));
        } else {
            simulation.sent(WAN, Packet::tcp(to, outside, flags));
        }
        simulation.pass(seconds(1));
    }
    simulation.pass(Duration::ZERO);
    simulation
}

const OPEN: [(bool, u8); 2] = [(false, SYN | ACK), (true, ACK)];

/// Lives so long after its last segment, which was a second ago.
fn closes_after(segments: &[(bool, u8)], idle: u64) {
    lives(&mut connection(segments), idle - 1);
}

#[test]
fn tcp_07_established() {
    closes_after(&OPEN, 7440);
}

#[test]
fn tcp_08_opening() {
    lives(&mut connection(&[]), 240);
    closes_after(&[(false, SYN | ACK)], 240);
}

#[test]
fn tcp_10_half_close() {
    closes_after(&[&OPEN[..], &[(true, FIN | ACK), (false, ACK)]].concat(), 7440);
    closes_after(&[&OPEN[..], &[(false, FIN | ACK), (true, ACK)]].concat(), 7440);
}

#[test]
fn tcp_11_close() {
    let both = [(true, FIN | ACK), (false, FIN | ACK), (true, ACK)];
    closes_after(&[&OPEN[..], &both].concat(), 240);
    let crossing = [(true, FIN | ACK), (false, FIN | ACK), (false, ACK), (true, ACK)];
    closes_after(&[&OPEN[..], &crossing].concat(), 240);
}

#[test]
fn tcp_12_reset() {
    closes_after(&[&OPEN[..], &[(false, RST)]].concat(), 240);
    closes_after(&[&OPEN[..], &[(true, RST | ACK)]].concat(), 240);
}

#[test]
fn tcp_13_data_after_a_reset() {
    closes_after(&[&OPEN[..], &[(false, RST), (true, ACK), (false, ACK)]].concat(), 7440);
}

#[test]
fn tcp_16_a_closed_tuple_opens_again() {
    let closed = [(true, FIN | ACK), (false, FIN | ACK), (true, ACK)];
    closes_after(&[&OPEN[..], &closed, &[(true, SYN)], &OPEN].concat(), 7440);
}

#[test]
fn tcp_17_half_reopened() {
    let closed = [(true, FIN | ACK), (false, FIN | ACK), (true, ACK)];
    closes_after(&[&OPEN[..], &closed, &[(true, SYN)]].concat(), 240);
}

#[test]
fn icq_03_queries() {
    let mut simulation = Simulation::new(RULES, 5);
    let query = Packet::echo(*client(0, 0).ip(), *server(0, 0).ip(), 777);
    let sent = simulation.sent(LAN, query);
    simulation.pass(seconds(59));
    assert_eq!(simulation.sent(WAN, sent.answer()), query.answer());
    simulation.pass(seconds(7));
    // The gateway pings by itself: its stack knows whether this answers one of its own.
    assert_eq!(simulation.handle(WAN, sent.answer()).0, Outcome::ToStack);
    assert_eq!(simulation.gateway.session_count(), 0);
}
