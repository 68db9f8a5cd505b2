//! Founding document 001: how NAT works, at home one for many, in the cloud one for one.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    time::Duration,
};

use nat_tests::{Decoded, Gateway, Lab, gateway, host::connect_from, invariants, wire::Direction};

use crate::stage::{Stage, public, source};

/// The document's drawing with its numbers: 192.168.1.4, seen as 51.6.191.203, talks to 35.190.176.201, which is
/// 10.142.0.2. The second natgw is the cloud's.
#[test]
fn s001_01_and_02_two_translations_in_a_row() {
    let home = gateway::STANDARD.replace("\"masquerade\"", "[\"51.6.191.203\"]");
    let stage = Stage::with(&home);
    // The public addresses are the document's, and so is what is private behind the cloud's router.
    stage.expect_bad_packets();
    let Stage { lab, .. } = &stage;
    lab.a.ip("addr add 192.168.1.4/24 dev eth0");
    lab.isp.ip("route add 51.6.191.203 via 203.0.113.1");
    lab.isp.ip("addr add 10.142.0.1/24 dev inet");
    lab.s1.ip("addr add 10.142.0.2/24 dev eth0");
    for host in [&lab.a, &lab.s1] {
        host.nft("delete table ip mute");
    }
    let cloud = "[[interface]]\nname = \"gw\"\nside = \"outside\"\n[[interface]]\nname = \"inet\"\nside = \"inside\"\n\
                 [[static]]\nexternal = \"35.190.176.201\"\ninternal = \"10.142.0.2\"\n";
    // Not watched for leaks: the end of its uplink is the other natgw's, whose program takes frames before any capture.
    let _cloud = Gateway::start_on(&lab.isp, cloud, Vec::new());
    let listener = lab.s1.within(|| TcpListener::bind("10.142.0.2:12345")).unwrap();
    let client = lab.a.within(|| connect_from("192.168.1.4:64125", "35.190.176.201:12345")).unwrap();
    let (server, seen) = listener.accept().unwrap();
    // The server sees the home's public address, the client's socket its own private one.
    assert_eq!(seen.to_string(), "51.6.191.203:64125");
    assert_eq!(server.local_addr().unwrap().to_string(), "10.142.0.2:12345");
    assert_eq!(client.local_addr().unwrap().to_string(), "192.168.1.4:64125");
    assert_eq!(client.peer_addr().unwrap().to_string(), "35.190.176.201:12345");
    for (mut from, mut to) in [(&client, &server), (&server, &client)] {
        to.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        from.write_all(b"both ways").unwrap();
        let mut bytes = [0; 9];
        to.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"both ways");
    }
    // On each of the three wires, in each direction, the two addresses that the drawing has there.
    let wires = [
        (&stage.a, ["192.168.1.4:64125", "35.190.176.201:12345"]),
        (&stage.wan, ["51.6.191.203:64125", "35.190.176.201:12345"]),
        (&stage.s1, ["51.6.191.203:64125", "10.142.0.2:12345"]),
    ];
    for (tap, [near, far]) in wires {
        let captured = tap.captured();
        let segments = captured.iter().filter(|frame| frame.decoded.tcp().is_some());
        let mut ends: Vec<(String, String)> =
            segments.map(|frame| (source(&frame.decoded), destination(&frame.decoded))).collect();
        ends.sort();
        ends.dedup();
        let mut drawn = [(near.to_owned(), far.to_owned()), (far.to_owned(), near.to_owned())];
        drawn.sort();
        assert_eq!(ends, drawn);
    }
    let outside = stage.wan.captured();
    let home = outside.iter().filter(|frame| frame.direction == Direction::Incoming).cloned();
    invariants::assert_wan(&home.collect::<Vec<_>>(), &["51.6.191.203".parse().unwrap()]);
}

#[test]
fn s001_05_only_what_goes_outside_is_rewritten() {
    let second = "[[interface]]\nname = \"lan2\"\nside = \"inside\"\n";
    let builder = Lab::builder().second_lan().forwarding();
    let stage = Stage::build(builder, &format!("{}{second}", gateway::STANDARD));
    let client = "192.168.1.10:40000";
    assert_eq!(source(&stage.crosses(&stage.udp(client, "198.51.100.1:1000"))), public(40000));
    assert_eq!(source(&stage.reaches(&stage.udp(client, "192.168.2.10:1000"), stage.d())), client);
    assert_eq!(
        source(&stage.reaches(&stage.udp("192.168.2.10:1000", client), &stage.a)),
        "192.168.2.10:1000"
    );
}

/// Two hosts with one source port, to two ports of one server: under one public port where the rule shares ports,
/// under two where it does not; either way nobody hears the other.
#[test]
fn s001_06_and_08_replies_find_their_owner_by_the_whole_tuple() {
    for (mapping, shared) in [("endpoint-independent", false), ("endpoint-dependent", true)] {
        let stage = Stage::snat(&format!("mapping = \"{mapping}\""));
        let users = [
            ("192.168.1.10:64125", "198.51.100.1:12345", &stage.a),
            ("192.168.1.11:64125", "198.51.100.1:12346", &stage.b),
            ("192.168.1.12:64125", "198.51.100.2:12345", &stage.c),
        ];
        let seen = users.map(|(client, server, _)| stage.connect(client, server));
        assert_eq!(seen[0], public(64125));
        assert_eq!([&seen[1], &seen[2]].map(|other| *other == seen[0]), [shared; 2], "{seen:?}");
        for tap in [&stage.a, &stage.b, &stage.c] {
            tap.clear();
        }
        for _ in 0..20 {
            for ((client, server, tap), public) in users.iter().zip(&seen) {
                stage.crosses(&stage.data(client, server));
                stage.reaches(&stage.data(server, public), tap);
            }
        }
        for tap in [&stage.a, &stage.b, &stage.c] {
            assert_eq!(tap.incoming(|seen| seen.tcp().is_some()).len(), 20, "{mapping}");
        }
    }
}

fn destination(packet: &Decoded) -> String {
    packet.destination().unwrap().to_string()
}
