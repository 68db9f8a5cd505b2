//! Anything in any order, held against what can be said without knowing how the gateway does it.

use std::{
    collections::{HashMap, HashSet},
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use nat_common::{tcp, wire};
use proptest::prelude::*;

use crate::world::{LAN, PUBLIC, Packet, Simulation, WAN, client, server};

/// Rules to switch between: a filter each, and forwards that come, go and change places.
const RULES: [&str; 4] = [
    "[[snat]]\nto = \"masquerade\"\n",
    "[[snat]]\nto = \"masquerade\"\nfiltering = \"address-dependent\"\n\
     [[forward]]\nprotocol = \"udp\"\nexternal = \"wan:80\"\ninternal = \"192.168.1.10:5061\"\n\
     [[forward]]\nprotocol = \"tcp\"\nexternal = \"wan:81\"\ninternal = \"192.168.1.11:5061\"\n",
    "[[forward]]\nprotocol = \"tcp\"\nexternal = \"wan:81\"\ninternal = \"192.168.1.11:5061\"\n\
     [[snat]]\nto = \"masquerade\"\n",
    "[[snat]]\nto = \"masquerade\"\n\
     [[forward]]\nprotocol = \"tcp\"\nexternal = \"wan:81\"\ninternal = \"192.168.1.11:5061\"\n\
     [[forward]]\nprotocol = \"udp\"\nexternal = \"wan:80\"\ninternal = \"192.168.1.10:5061\"\n",
];

/// Outside ports that a rule set forwards, with their protocols.
fn forwarded(rules: usize) -> &'static [(u8, u16)] {
    match rules {
        0 => &[],
        2 => &[(wire::TCP, 81)],
        _ => &[(wire::UDP, 80), (wire::TCP, 81)],
    }
}

#[derive(Clone, Debug)]
enum Operation {
    /// An inside host sends to the outside.
    Open {
        protocol: u8,
        host: u8,
        port: u8,
        remote: u8,
    },
    /// Somebody outside sends to a port that a session has, or to a forward's.
    Inbound {
        protocol: u8,
        remote: u8,
        session: prop::sample::Index,
        forward: bool,
    },
    /// An inside host sends to another one's external endpoint.
    Hairpin {
        protocol: u8,
        host: u8,
        session: prop::sample::Index,
    },
    /// Time passes.
    Pass(u16),
    Delete(prop::sample::Index),
    Reload(usize),
    /// The gateway gets another address.
    Move(u8),
}

fn protocol() -> impl Strategy<Value = u8> {
    prop_oneof![Just(wire::UDP), Just(wire::TCP), Just(wire::ICMP)]
}

fn operation() -> impl Strategy<Value = Operation> {
    let open = (protocol(), 0u8..3, 0u8..4, 0u8..3)
        .prop_map(|(protocol, host, port, remote)| Operation::Open { protocol, host, port, remote });
    let inbound = (protocol(), 0u8..3, any::<prop::sample::Index>(), any::<bool>()).prop_map(
        |(protocol, remote, session, forward)| Operation::Inbound { protocol, remote, session, forward },
    );
    let hairpin = (protocol(), 0u8..3, any::<prop::sample::Index>())
        .prop_map(|(protocol, host, session)| Operation::Hairpin { protocol, host, session });
    prop_oneof![
        8 => open,
        4 => inbound,
        2 => hairpin,
        2 => (1u16..400).prop_map(Operation::Pass),
        1 => any::<prop::sample::Index>().prop_map(Operation::Delete),
        1 => (0..RULES.len()).prop_map(Operation::Reload),
        1 => (1u8..3).prop_map(Operation::Move),
    ]
}

fn packet(protocol: u8, from: SocketAddrV4, to: SocketAddrV4) -> Packet {
    match protocol {
        wire::ICMP => Packet::echo(*from.ip(), *to.ip(), from.port()),
        wire::TCP => Packet::tcp(from, to, tcp::SYN),
        _ => Packet::udp(from, to),
    }
}

/// The outside endpoint of some session.
fn some_endpoint(
    simulation: &Simulation,
    protocol: u8,
    session: prop::sample::Index,
) -> Option<SocketAddrV4> {
    let sessions: Vec<_> =
        simulation.sessions().into_iter().filter(|session| session.protocol == protocol).collect();
    (!sessions.is_empty()).then(|| session.get(&sessions).outside)
}

fn run(simulation: &mut Simulation, rules: &mut usize, operation: &Operation) {
    match operation {
        Operation::Open { protocol, host, port, remote } => {
            // Port 5061 is the one that forwards go to.
            let from = client(*host, [5061, 40_000, 40_001, 5060][usize::from(*port)]);
            simulation.handle(LAN, packet(*protocol, from, server(*remote, 53)));
        }
        Operation::Inbound { protocol, remote, session, forward } => {
            let own = simulation.world.public;
            let to = if *forward {
                Some(SocketAddrV4::new(own, if *protocol == wire::TCP { 81 } else { 80 }))
            } else {
                some_endpoint(simulation, *protocol, *session)
            };
            if let Some(to) = to {
                simulation.handle(WAN, packet(*protocol, server(*remote, 9), to));
            }
        }
        Operation::Hairpin { protocol, host, session } => {
            if let Some(to) = some_endpoint(simulation, *protocol, *session) {
                simulation.handle(LAN, packet(*protocol, client(*host, 40_000), to));
            }
        }
        Operation::Pass(seconds) => simulation.pass(Duration::from_secs((*seconds).into())),
        Operation::Delete(session) => {
            let sessions = simulation.sessions();
            if !sessions.is_empty() {
                simulation.delete(session.get(&sessions).slot);
            }
        }
        Operation::Reload(number) => {
            *rules = *number;
            simulation.reload(RULES[*number]);
        }
        Operation::Move(number) => simulation.set_public(Ipv4Addr::new(203, 0, 113, *number)),
    }
}

/// What holds after every operation.
fn check(simulation: &Simulation, rules: usize) {
    let sessions = simulation.sessions();
    let count = usize::try_from(simulation.gateway.session_count()).unwrap();
    let to_themselves = sessions.iter().filter(|session| session.remote == session.inside).count();
    assert_eq!(
        simulation.world.flows.len(),
        2 * count - to_themselves,
        "entries without a session, or the reverse"
    );
    // An outside endpoint is one inside endpoint's.
    let mut owners = HashMap::new();
    let mut mappings = HashSet::new();
    for session in &sessions {
        let owner = *owners.entry((session.protocol, session.outside)).or_insert(session.inside);
        assert_eq!(owner, session.inside, "{} is given twice", session.outside);
        assert_eq!(*session.outside.ip(), simulation.world.public, "an address that is gone");
        mappings.insert((session.protocol, session.outside));
        // Who came from inside to an outside endpoint has a mapping for that.
        if !session.outbound && session.remote.ip().is_private() {
            mappings.insert((session.protocol, session.remote_inside));
        }
        // A forward's mapping is there while the forward is, whoever still uses its port.
        mappings.retain(|(_, outside)| outside.port() != 80 && outside.port() != 81);
    }
    let own = simulation.world.public;
    mappings
        .extend(forwarded(rules).iter().map(|(protocol, port)| (*protocol, SocketAddrV4::new(own, *port))));
    // Who knocks at another's filter has a mapping before a session.
    let there_are = simulation.gateway.mapping_count();
    let most = mappings.len() + simulation.gateway.knock_count();
    assert!((mappings.len()..=most).contains(&there_are), "{there_are}, but {most} at most: {mappings:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_operations(seed in any::<u64>(), operations in proptest::collection::vec(operation(), 1..60)) {
        let mut simulation = Simulation::new(RULES[0], seed);
        let mut rules = 0;
        for operation in &operations {
            run(&mut simulation, &mut rules, operation);
            check(&simulation, rules);
        }
        for slot in 0..simulation.gateway.session_slots() {
            simulation.delete(slot);
        }
        // Longer than any knock counts.
        simulation.pass(Duration::from_secs(600));
        check(&simulation, rules);
        prop_assert!(simulation.world.flows.is_empty());
        prop_assert_eq!(simulation.gateway.session_count(), 0);
        prop_assert_eq!(simulation.gateway.mapping_count(), forwarded(rules).len());
        simulation.set_public(PUBLIC);
        simulation.reload(RULES[0]);
        for pool in simulation.gateway.pools() {
            prop_assert_eq!(pool.used, 0, "{:?}", pool);
        }
    }
}
