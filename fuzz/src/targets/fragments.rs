//! Fragments in any order, size and number: what leaves is translated, what waits is bounded, and in the end nothing
//! waits any more.

use std::{net::Ipv4Addr, time::Duration};

use nat_common::wire;
use natgw::gateway::Outcome;

use super::{
    Bytes, frame, header_is_right,
    world::{LAN, PUBLIC, Packet, Simulation, WAN, client, server},
};

/// Fragments of one input.
const MOST: usize = 300;

pub(super) fn run(input: &[u8]) {
    let mut bytes = Bytes(input);
    let mut simulation = Simulation::new("[[snat]]\nto = \"masquerade\"\n", 1);
    let (inside, remote) = (client(0, 40_000), server(0, 53));
    let outside = simulation.sent(LAN, Packet::udp(inside, remote)).from;
    for _ in 0..MOST {
        if bytes.is_empty() {
            break;
        }
        let (choice, place, size, flags) = (bytes.byte(), bytes.byte(), bytes.byte(), bytes.byte());
        if choice & 0x80 != 0 && flags & 0x80 != 0 {
            simulation.pass(Duration::from_secs(u64::from(size & 63)));
            continue;
        }
        let outgoing = choice & 1 == 0;
        let (from, to) = if outgoing { (inside, remote) } else { (remote, outside) };
        // The first carries ports; what follows is whatever it is.
        let mut payload: Vec<u8> = (0..size).collect();
        if place == 0 && choice & 2 == 0 {
            let ports = [from.port(), to.port()].map(u16::to_be_bytes);
            payload.splice(0..payload.len().min(4), ports.as_flattened().iter().copied());
        }
        let offset = u16::from(place) | if choice & 4 == 0 { 0 } else { 0x1f00 };
        let more = if flags & 1 == 0 { 0 } else { 0x2000 };
        let protocol = if choice & 8 == 0 { wire::UDP } else { wire::TCP };
        let mut frame =
            frame(*from.ip(), *to.ip(), protocol, (flags >> 1 & 7).into(), offset | more, &payload);
        let side = if outgoing { LAN } else { WAN };
        let outcome = simulation.handle_frame(side, &mut frame);
        if let Outcome::Send { ifindex, .. } = outcome {
            judge(ifindex, &frame);
        }
        for sent in std::mem::take(&mut simulation.gateway.emissions) {
            judge(sent.ifindex, &sent.frame);
        }
        for sent in std::mem::take(&mut simulation.gateway.released) {
            if let Outcome::Send { ifindex, .. } = sent.outcome {
                judge(ifindex, &sent.frame);
            }
        }
        assert!(simulation.gateway.waiting_fragments() <= 1024, "more wait than one source may have");
    }
    simulation.pass(Duration::from_secs(120));
    assert_eq!(simulation.gateway.waiting_fragments(), 0, "some wait for ever");
}

/// What leaves by an interface has the addresses that belong there.
fn judge(ifindex: u32, frame: &[u8]) {
    let packet = &frame[14..];
    let address = |at: usize| Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
    let (source, destination) = (address(12), address(16));
    assert!(header_is_right(packet), "{packet:02x?}");
    if ifindex == WAN {
        assert_eq!(source, PUBLIC, "{packet:02x?}");
        assert!(!destination.is_private(), "{packet:02x?}");
    } else {
        assert!(destination.is_private(), "{packet:02x?}");
    }
}
