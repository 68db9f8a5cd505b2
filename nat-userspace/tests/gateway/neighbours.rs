//! First packets whose next hop has to be asked for first.

use std::{collections::HashSet, time::Duration};

use nat_common::{Reason, wire};
use natgw::gateway::Outcome;

use crate::world::{LAN, Packet, ROUTER, Simulation, WAN, client, server};

const RULES: &str = "[[snat]]\nto = \"masquerade\"\n";

fn cold() -> Simulation {
    let mut simulation = Simulation::new(RULES, 1);
    simulation.world.cold.insert(ROUTER);
    simulation
}

/// behaviour RTR-21.
#[test]
fn rtr_21_packets_wait_for_a_neighbour_in_order() {
    let mut simulation = cold();
    let flow =
        |id: u16| Packet { id, ..Packet::udp(client(u8::try_from(id % 3).unwrap(), 1), server(0, 53)) };
    for id in 0..300 {
        assert_eq!(simulation.handle(LAN, flow(id)).0, Outcome::Held);
    }
    assert!(simulation.world.asked.contains(&ROUTER));
    assert_eq!((simulation.gateway.held(), simulation.gateway.session_count()), (300, 3));
    simulation.answers(WAN, ROUTER);
    let released = std::mem::take(&mut simulation.gateway.released);
    let ids = released.iter().map(|released| Packet::of(&released.frame).id);
    assert!(ids.eq(0..300));
    for released in &released {
        assert!(matches!(released.outcome, Outcome::Send { ifindex: WAN, .. }));
        assert_eq!(released.ingress, LAN);
    }
    assert_eq!(simulation.gateway.held(), 0);
}

#[test]
fn packets_that_wait_are_bounded() {
    let mut simulation = cold();
    let flow = Packet::udp(client(0, 1), server(0, 53));
    let held = (0..10_000).filter(|_| simulation.handle(LAN, flow).0 == Outcome::Held).count();
    assert_eq!(held, 4096);
    assert_eq!(simulation.gateway.counts().get(Reason::DropHoldFull), 10_000 - 4096);
    assert_eq!(simulation.gateway.held(), held);
}

/// behaviour RTR-15: after ARP's patience the sender is told, and the session is over.
#[test]
fn rtr_15_a_neighbour_that_never_answers() {
    let mut simulation = cold();
    let flow = Packet::udp(client(0, 1), server(0, 53));
    simulation.handle(LAN, flow);
    simulation.pass(Duration::from_secs(2));
    assert!(simulation.gateway.emissions.is_empty());
    simulation.pass(Duration::from_secs(2));
    let told = std::mem::take(&mut simulation.gateway.emissions);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].ifindex, LAN);
    assert_eq!(told[0].frame[34..36], [wire::ICMP_UNREACHABLE, 1]);
    simulation.end_unreachable();
    assert_eq!((simulation.gateway.session_count(), simulation.gateway.mapping_count()), (0, 0));
    assert!(simulation.world.flows.is_empty());
    // The next packet asks anew.
    assert_eq!(simulation.handle(LAN, flow).0, Outcome::Held);
}

/// Daemons may be killed and started for ever: the slots that the flows name are left alone until they name others, and
/// then given out anew.
#[test]
fn takeovers_use_up_no_slots() {
    let mut simulation = Simulation::new(RULES, 1);
    let flow = |host: u8, port| Packet::udp(client(host, port), server(0, 53));
    for host in 0..20 {
        simulation.sent(LAN, flow(host, 1));
    }
    for round in 0..60_u16 {
        let named = |simulation: &Simulation| -> HashSet<u16> {
            simulation.world.flows.values().map(|value| value.next_hop).collect()
        };
        let before = named(&simulation);
        simulation.restart(RULES, u64::from(round));
        assert!(named(&simulation).is_disjoint(&before));
        // A new neighbour gets a slot that was left.
        simulation.sent(LAN, flow(u8::try_from(100 + round).unwrap(), 1 + round));
        assert_eq!(named(&simulation).intersection(&before).count(), 1);
        let out = simulation.sent(LAN, flow(3, 1));
        assert_eq!(simulation.sent(WAN, out.answer()).to, client(3, 1));
        simulation.pass(Duration::from_secs(1));
    }
    let highest = simulation.world.hops.keys().max().unwrap();
    assert!(*highest < 200, "slot {highest} after 60 takeovers of at most 81 neighbours");
}
