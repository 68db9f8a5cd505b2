//! ICMP errors with quotes of any bytes: what is sent on is about a session that is there, goes where that session's
//! packets go, tells nothing of the inside outside, and has right checksums.

use std::net::Ipv4Addr;

use nat_common::wire;
use natgw::gateway::Outcome;

use super::{
    Bytes, frame, header_is_right, mend_header,
    packet::sum,
    world::{LAN, PUBLIC, Packet, Simulation, WAN, client, server},
};

pub(super) fn run(input: &[u8]) {
    let mut bytes = Bytes(input);
    let mut simulation = Simulation::new("[[snat]]\nto = \"masquerade\"\n", 1);
    let (inside, remote) = (client(0, 40_000), server(0, 53));
    let opened = [
        Packet::udp(inside, remote),
        Packet::tcp(inside, remote, nat_common::tcp::SYN),
        Packet::echo(*inside.ip(), *remote.ip(), 7),
    ];
    let outside = opened.map(|packet| simulation.sent(LAN, packet));
    let choice = bytes.byte();
    let number = usize::from(choice & 3) % 3;
    let from_outside = choice & 4 == 0;
    // An error from outside quotes what left; one from inside what arrived there.
    let mut quoted =
        if from_outside { outside[number] } else { opened[number].answer() }.frame()[14..].to_vec();
    let mut kind = [bytes.byte(), bytes.byte()];
    if choice & 8 == 0 {
        kind[0] = [3, 11, 12, 4, 5][usize::from(kind[0]) % 5];
    }
    let rest = bytes.quad();
    let cut = usize::from(bytes.byte());
    for _ in 0..(choice >> 5) {
        let (at, value) = (usize::from(bytes.byte()), bytes.byte());
        if let Some(byte) = quoted.get_mut(at) {
            *byte = value;
        }
    }
    quoted.extend(bytes.0);
    if choice & 16 == 0 && quoted[0] & 0x0f >= 5 && quoted.len() >= usize::from(quoted[0] & 0x0f) * 4 {
        mend_header(&mut quoted);
    }
    quoted.truncate(quoted.len().saturating_sub(cut));
    let router = Ipv4Addr::new(198, 51, 100, 77);
    let (from, to) = if from_outside { (router, PUBLIC) } else { (*inside.ip(), *remote.ip()) };
    let mut frame = error(from, to, kind, rest, &quoted);
    let outcome = simulation.handle_frame(if from_outside { WAN } else { LAN }, &mut frame);
    let Outcome::Send { ifindex, .. } = outcome else { return };
    let packet = &frame[14..];
    assert!(header_is_right(packet), "the outer header's checksum");
    let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    let header = usize::from(packet[0] & 0x0f) * 4;
    let message = &packet[header..total];
    assert_eq!(sum(message), 0xffff, "the message's checksum: {message:02x?}");
    let quote = &message[8..];
    let address = |bytes: &[u8]| Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]);
    let (outer_from, outer_to) = (address(&packet[12..16]), address(&packet[16..20]));
    if message[0] != 3 && message[0] != 4 && message[0] != 5 && message[0] != 11 && message[0] != 12 {
        // A query: a session of its own.
        return;
    }
    let (quoted_from, quoted_to) = (address(&quote[12..16]), address(&quote[16..20]));
    if from_outside {
        assert_eq!((ifindex, outer_to), (LAN, *inside.ip()), "it goes to who sent what it quotes");
        assert_eq!(quoted_from, *inside.ip(), "and he knows what it quotes");
    } else {
        assert_eq!(ifindex, WAN);
        for one in [outer_from, outer_to, quoted_from, quoted_to] {
            assert!(!one.is_private(), "{one} is told outside: {packet:02x?}");
        }
    }
}

/// An ICMP error with right checksums.
fn error(from: Ipv4Addr, to: Ipv4Addr, kind: [u8; 2], rest: [u8; 4], quoted: &[u8]) -> Vec<u8> {
    let mut message = [kind.as_slice(), &[0, 0], &rest, quoted].concat();
    let checksum = !u16::try_from(sum(&message)).expect("folded");
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
    frame(from, to, wire::ICMP, 9, 0, &message)
}
