//! The core under any sequence of operations, beside a naive model: who had which outside endpoint stays its owner,
//! no session is without its entries, and at the end nothing is left.

use std::{collections::HashMap, net::SocketAddrV4, time::Duration};

use nat_common::{tcp, wire};
use natgw::gateway::Outcome;

use super::{
    Bytes,
    world::{LAN, Packet, Simulation, WAN, client, server},
};

const RULES: [&str; 3] = [
    "[[snat]]\nto = \"masquerade\"\n",
    "[[snat]]\nto = \"masquerade\"\nfiltering = \"endpoint-independent\"\n[timeouts]\nquarantine = \"0s\"\n",
    "[[snat]]\nto = \"masquerade\"\nports = \"2000-2007\"\n[limits]\nsessions = 24\n",
];

/// Operations of one input: more are other inputs'.
const MOST: usize = 400;

pub(super) fn run(input: &[u8]) {
    let mut bytes = Bytes(input);
    let rules = RULES[usize::from(bytes.byte()) % RULES.len()];
    let mut simulation = Simulation::new(rules, u64::from(bytes.byte()));
    // The naive model: outside endpoints in use, and whose they are.
    let mut owners: HashMap<(u8, SocketAddrV4), SocketAddrV4> = HashMap::new();
    for _ in 0..MOST {
        if bytes.is_empty() {
            break;
        }
        let (operation, detail) = (bytes.byte(), bytes.byte());
        let protocol = [wire::UDP, wire::TCP, wire::ICMP][usize::from(detail & 3) % 3];
        let inside = client(detail >> 2 & 3, 2000 + u16::from(detail >> 4));
        match operation % 8 {
            0..=2 => {
                let remote = server(operation >> 3 & 3, 53);
                let packet = packet(protocol, inside, remote, operation >> 5);
                if let (Outcome::Send { .. }, sent) = simulation.handle(LAN, packet) {
                    assert!(!sent.from.ip().is_private(), "{packet:?} left as {sent:?}");
                    let known = owners.get(&(protocol, sent.from));
                    assert!(known.is_none_or(|owner| *owner == packet.from), "{sent:?} has two owners");
                }
            }
            3 | 4 => {
                let sessions = simulation.sessions();
                let Some(session) = sessions.get(usize::from(detail) % sessions.len().max(1)) else {
                    continue;
                };
                let remote =
                    if operation & 0x80 == 0 { session.remote } else { server(operation >> 4 & 3, 9) };
                let kind = if session.protocol == wire::TCP { operation >> 3 & 0x1f } else { 0 };
                let packet = match session.protocol {
                    wire::ICMP => Packet {
                        kind: wire::ICMP_ECHO_REPLY,
                        ..Packet::echo(*remote.ip(), *session.outside.ip(), session.outside.port())
                    },
                    wire::TCP => Packet::tcp(remote, session.outside, kind),
                    _ => Packet::udp(remote, session.outside),
                };
                if let (Outcome::Send { ifindex: LAN, .. }, sent) = simulation.handle(WAN, packet) {
                    assert_eq!(*sent.to.ip(), *session.inside.ip(), "{packet:?} reached {sent:?}");
                }
            }
            5 => simulation.pass(Duration::from_secs(1 + u64::from(detail))),
            6 => {
                let sessions = simulation.sessions();
                if let Some(session) = sessions.get(usize::from(detail) % sessions.len().max(1)) {
                    simulation.delete(session.slot);
                }
            }
            _ => simulation.reload(rules),
        }
        owners = check(&simulation);
    }
    for slot in 0..simulation.gateway.session_slots() {
        simulation.delete(slot);
    }
    simulation.pass(Duration::from_secs(700));
    assert!(simulation.world.flows.is_empty(), "entries without sessions");
    assert_eq!(simulation.gateway.session_count(), 0);
    assert_eq!(simulation.gateway.mapping_count(), 0, "mappings without sessions");
    for pool in simulation.gateway.pools() {
        assert_eq!(pool.used, 0, "{pool:?}");
    }
}

fn packet(protocol: u8, from: SocketAddrV4, to: SocketAddrV4, flags: u8) -> Packet {
    match protocol {
        wire::ICMP => Packet::echo(*from.ip(), *to.ip(), from.port()),
        wire::TCP => {
            Packet::tcp(from, to, [tcp::SYN, tcp::ACK, tcp::ACK | tcp::FIN, tcp::RST][usize::from(flags & 3)])
        }
        _ => Packet::udp(from, to),
    }
}

/// What holds after every operation; the model as it then is.
fn check(simulation: &Simulation) -> HashMap<(u8, SocketAddrV4), SocketAddrV4> {
    let sessions = simulation.sessions();
    let count = usize::try_from(simulation.gateway.session_count()).expect("few");
    assert_eq!(sessions.len(), count, "sessions that are counted are listed");
    let to_themselves = sessions.iter().filter(|session| session.remote == session.inside).count();
    assert_eq!(simulation.world.flows.len(), 2 * count - to_themselves, "two entries a session");
    let mut owners = HashMap::new();
    for session in &sessions {
        let owner = *owners.entry((session.protocol, session.outside)).or_insert(session.inside);
        assert_eq!(owner, session.inside, "{} is given twice", session.outside);
    }
    let mappings = simulation.gateway.mapping_count();
    let most = owners.len() + simulation.gateway.knock_count();
    assert!((owners.len()..=most).contains(&mappings), "{mappings} mappings for {} endpoints", owners.len());
    owners
}
