//! How much one address carries, and what happens when it carries no more.

use std::collections::HashSet;

use nat_common::{Reason, wire};
use natgw::gateway::Outcome;

use crate::world::{LAN, PUBLIC, Packet, Simulation, WAN, client, server};

/// behaviour MAP-09: more sessions than ports, every reply to its owner.
#[test]
fn map_09_80_000_sessions_on_one_address() {
    let mut simulation =
        Simulation::new("[[snat]]\nto = \"masquerade\"\nmapping = \"endpoint-dependent\"\n", 1);
    let flows: Vec<Packet> = (0..80_000u32)
        .map(|n| {
            let port = u16::try_from(1024 + n / 9).expect("a port");
            let third = |n: u32| u8::try_from(n % 3).expect("below three");
            Packet::udp(client(third(n), port), server(third(n / 3), 5000))
        })
        .collect();
    let sent: Vec<Packet> = flows.iter().map(|flow| simulation.sent(LAN, *flow)).collect();
    assert_eq!(simulation.gateway.session_count(), 80_000);
    assert_eq!(simulation.world.flows.len(), 160_000);
    assert_eq!(sent.iter().map(|packet| (packet.from, packet.to)).collect::<HashSet<_>>().len(), 80_000);
    for (flow, sent) in flows.iter().zip(sent) {
        assert_eq!(*sent.from.ip(), PUBLIC);
        assert_eq!(simulation.sent(WAN, sent.answer()), flow.answer());
    }
}

/// behaviour MAP-10: an inside endpoint has one port outside, whomever it talks to.
#[test]
fn map_10_70_000_sessions_share_a_port() {
    let mut simulation = Simulation::new("[[snat]]\nto = \"masquerade\"\n", 2);
    let mut ports = HashSet::new();
    for n in 0..70_000u32 {
        let to =
            server(u8::try_from(n / 60_000).expect("few"), u16::try_from(1 + n % 60_000).expect("a port"));
        ports.insert(simulation.sent(LAN, Packet::udp(client(0, 40_000), to)).from);
    }
    assert_eq!(simulation.gateway.session_count(), 70_000);
    assert_eq!(ports.len(), 1);
    assert_eq!(simulation.gateway.mapping_count(), 1);
    let used: u32 = simulation.gateway.pools().iter().map(|pool| pool.used).sum();
    assert_eq!(used, 1);
}

/// behaviour EXH-01 and EXH-02: who comes too late is told, and nobody is thrown out for it.
#[test]
fn exh_01_exhaustion_is_told_and_exh_02_evicts_nobody() {
    let mut simulation = Simulation::new("[[snat]]\nto = \"masquerade\"\nports = \"20000-20099\"\n", 3);
    let flow = |n: u16| Packet::udp(client(0, 30_000 + n), server(0, 53));
    let before: Vec<Packet> = (0..100).map(|n| simulation.sent(LAN, flow(n))).collect();
    assert!(before.iter().all(|packet| (20_000..20_100).contains(&packet.from.port())));
    let (outcome, _) = simulation.handle(LAN, flow(100));
    assert_eq!(outcome, Outcome::Drop(Reason::DropPortsExhausted));
    let told = std::mem::take(&mut simulation.gateway.emissions);
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].ifindex, &told[0].frame[34..36]), (LAN, &[wire::ICMP_UNREACHABLE, 13][..]));
    assert_eq!(Packet::of(&told[0].frame).to.ip(), client(0, 0).ip());
    assert_eq!(simulation.gateway.session_count(), 100);
    for (n, sent) in (0..).zip(before) {
        assert_eq!(simulation.sent(WAN, sent.answer()).to, flow(n).from);
    }
}

/// A full session table refuses, too, and lives.
#[test]
fn exh_a_full_session_table_refuses() {
    let mut simulation = Simulation::new("[[snat]]\nto = \"masquerade\"\n[limits]\nsessions = 10\n", 4);
    for n in 0..10 {
        simulation.sent(LAN, Packet::udp(client(0, 40_000), server(0, 1 + n)));
    }
    let one_more = Packet::udp(client(1, 40_000), server(0, 53));
    assert_eq!(simulation.handle(LAN, one_more).0, Outcome::Drop(Reason::DropSessionsFull));
    assert_eq!((simulation.gateway.session_count(), simulation.gateway.mapping_count()), (10, 1));
}
