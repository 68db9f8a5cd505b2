//! Packets of virtual servers that are sent on as they are: by the frame's destination alone, or inside another.

use nat_common::{
    FlowKey, Realm, Reason,
    flow::{Action, Rewrite},
};
use nat_tests::{
    Decoded, Packet,
    packet::tcp::{ACK, FIN, RST, SYN},
};
use natgw::gateway::network;

use crate::stage::{CLIENT_MAC, Hop, LAN_MAC, Link, ROUTER_MAC, SMALL, Stage, WAN_MAC, on_stage};

const SERVICE: &str = "203.0.113.1:80";
/// From `<linux/bpf.h>`.
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;

/// Opens a session of a client's port with [`SERVICE`].
fn open(stage: &mut Stage, port: u16, action: Action, hop: Hop) {
    let [client, service, server, own] =
        [[198, 51, 100, 1], [203, 0, 113, 1], [192, 168, 1, 10], [192, 168, 1, 1]]
            .map(|address| network(address.into()));
    let key = FlowKey {
        source: client,
        destination: service,
        source_port: port.to_be(),
        destination_port: u16::to_be(80),
        protocol: 6,
        query: 0,
        realm: Realm::Outside as u16,
    };
    let ends = Rewrite { source: own, destination: server, source_port: 0, destination_port: u16::to_be(80) };
    stage.relay(u32::from(port), key, action, &ends, hop);
}

fn segment(port: u16, flags: u8) -> Packet {
    Packet::tcp(("198.51.100.1", port), SERVICE).seq(7).ack(9).flags(flags).tos(0xb8).id(5)
}

/// What the client sends in the course of a connection, sizes and lifetimes of all kinds.
fn conversation(port: u16) -> Vec<Packet> {
    vec![
        Packet::tcp(("198.51.100.1", port), SERVICE).syn(1),
        segment(port, ACK).ttl(1),
        segment(port, ACK).payload([7; 1000]).df(),
        segment(port, ACK).payload("an odd one").ip_options([1, 1, 1, 1]),
        segment(port, FIN | ACK),
        segment(port, RST),
    ]
}

/// As it comes from the router.
fn arriving(packet: &Packet) -> Vec<u8> {
    packet.clone().between(ROUTER_MAC, WAN_MAC).build()
}

#[test]
fn lbs_15_direct_routing_changes_the_frames_ends_and_nothing_else() {
    on_stage(|stage| {
        open(stage, 200, Action::Direct, Hop::Client);
        for packet in conversation(200) {
            let (action, left, moved) = stage.run(Link::Wan, &arriving(&packet));
            assert_eq!((action, moved), (XDP_REDIRECT, vec![(Reason::Relayed, 1)]), "{packet:?}");
            assert_eq!(left, packet.between(LAN_MAC, CLIENT_MAC).build());
        }
    });
}

#[test]
fn lbs_15_a_tunnel_carries_the_packet_as_it_is() {
    on_stage(|stage| {
        open(stage, 201, Action::Tunnel, Hop::Client);
        for packet in conversation(201) {
            let (action, left, moved) = stage.run(Link::Wan, &arriving(&packet));
            assert_eq!((action, moved), (XDP_REDIRECT, vec![(Reason::Relayed, 1)]), "{packet:?}");
            let sent = Decoded::parse(&left);
            assert_eq!((sent.to, sent.from), (CLIENT_MAC, LAN_MAC));
            let (outer, inner) = (sent.ip(), Decoded::parse(&arriving(&packet)));
            assert_eq!(outer.body, packet.ip());
            assert_eq!(
                (outer.source.to_string(), outer.destination.to_string()),
                ("192.168.1.1".to_owned(), "192.168.1.10".to_owned())
            );
            assert_eq!((outer.protocol, outer.ttl, outer.header.len()), (4, 64, 20));
            assert_eq!((outer.tos, outer.df, outer.more_fragments), (inner.ip().tos, inner.ip().df, false));
            assert_eq!(sent.checksums_valid(), Ok(()));
        }
    });
}

/// What the program cannot finish is left as it came.
#[test]
fn lbs_15_what_is_the_daemons_to_relay_is_untouched() {
    on_stage(|stage| {
        let judge = |stage: &Stage, packet: &Packet, wanted: (u32, &[(Reason, u64)]), what: &str| {
            // From a neighbour that none of them goes to.
            let frame = packet.clone().between([2, 0, 0, 0, 2, 99], WAN_MAC).build();
            let (action, left, moved) = stage.run(Link::Wan, &frame);
            assert_eq!((action, moved.as_slice()), wanted, "{what}");
            if wanted.1 != [(Reason::Relayed, 1)] {
                assert_eq!(left, frame, "{what}");
            }
        };
        let relayed: (u32, &[(Reason, u64)]) = (XDP_REDIRECT, &[(Reason::Relayed, 1)]);
        let punted: (u32, &[(Reason, u64)]) = (XDP_REDIRECT, &[(Reason::Punted, 1)]);
        for (number, action, overhead) in [(210, Action::Direct, 0), (220, Action::Tunnel, 20)] {
            open(stage, number, action, Hop::Small);
            let fits = usize::from(SMALL) - overhead - 40;
            judge(stage, &segment(number, ACK).payload(vec![7; fits]), relayed, "as big as fits");
            judge(stage, &segment(number, ACK).payload(vec![7; fits + 1]), punted, "a byte too big");
            judge(stage, &segment(number, ACK).payload(vec![7; fits + 1]).df(), punted, "the same with DF");
            open(stage, number + 1, action, Hop::Unresolved);
            judge(stage, &segment(number + 1, ACK), punted, "no neighbour yet");
            open(stage, number + 2, action, Hop::Stack);
            judge(stage, &segment(number + 2, ACK), (XDP_PASS, &[]), "a way out without redirects");
            open(stage, number + 3, action, Hop::Client);
            stage.with_syns_asked_for(Hop::Client, |stage| {
                judge(stage, &segment(number + 3, SYN), punted, "a SYN may begin another connection");
                judge(stage, &segment(number + 3, ACK), relayed, "anything else does not");
            });
        }
    });
}

#[test]
fn lbs_15_what_a_server_sends_back_ends_here() {
    on_stage(|stage| {
        // The session of a client on the server's own link.
        let [client, service] = [[192, 168, 1, 11], [203, 0, 113, 1]].map(|address| network(address.into()));
        let key = FlowKey {
            source: client,
            destination: service,
            source_port: u16::to_be(230),
            destination_port: u16::to_be(80),
            protocol: 6,
            query: 0,
            realm: Realm::Inside as u16,
        };
        let ends = Rewrite {
            source: 0,
            destination: network([192, 168, 1, 10].into()),
            source_port: 0,
            destination_port: 0,
        };
        stage.relay(230, key, Action::Direct, &ends, Hop::Client);
        let packet = Packet::tcp("192.168.1.11:230", SERVICE).seq(1).ack(1).flags(ACK);
        let from_client = packet.clone().between([2, 0, 0, 0, 1, 11], LAN_MAC).build();
        assert_eq!(stage.run(Link::Lan, &from_client).2, [(Reason::Relayed, 1)]);
        let from_server = packet.between(CLIENT_MAC, LAN_MAC).build();
        let (action, _, moved) = stage.run(Link::Lan, &from_server);
        assert_eq!((action, moved), (XDP_DROP, vec![(Reason::DropLoop, 1)]));
    });
}
