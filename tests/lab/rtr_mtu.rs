//! Router behaviour where the way out is narrower than the way in.

use std::{collections::BTreeSet, time::Duration};

use nat_tests::{
    Decoded, Lab, Packet, Tap,
    decode::{Ip, reassemble},
    gateway,
};

use crate::{
    frg::all_whole,
    stage::{Stage, public, source},
};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";

fn is_icmp(packet: &Decoded, kind: u8, code: u8) -> bool {
    packet.icmp().is_some_and(|icmp| (icmp.kind, icmp.code) == (kind, code))
}

fn is_fragment(seen: &Decoded) -> bool {
    seen.ip.as_ref().is_some_and(Ip::is_fragment)
}

#[test]
fn rtr_07_too_big_to_leave_is_said_with_the_private_address() {
    let stage = Stage::build(Lab::builder().wan_mtu(1400), gateway::STANDARD);
    let big = stage.udp(CLIENT, SERVER).payload([7; 1472]).df();
    let sent = stage.a.send(&big);
    let error = stage.a.expect("ICMP 3/4", |seen| is_icmp(seen, 3, 4));
    assert_eq!(error.ip().source.to_string(), "192.168.1.1");
    assert_eq!(error.icmp().unwrap().seq, 1400, "the MTU");
    assert_eq!(Some(error.icmp().unwrap().quoted.clone().unwrap().source()), sent.source());
    assert!(error.ip().total_length <= 576);
    stage.s1.expect_silence();
    stage.crosses(&stage.udp(CLIENT, SERVER).payload([8; 1372]).df());
}

#[test]
fn rtr_08_too_big_to_enter_is_said_with_the_public_address() {
    let stage = Stage::build(Lab::builder().lan_mtu(1400), gateway::STANDARD);
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    stage.s1.send(&stage.udp(SERVER, &mapped).payload([7; 1472]).df());
    let error = stage.s1.expect("ICMP 3/4", |seen| is_icmp(seen, 3, 4));
    assert_eq!(error.ip().source.to_string(), "203.0.113.1");
    assert_eq!(error.icmp().unwrap().seq, 1400, "the MTU");
    assert_eq!(error.icmp().unwrap().quoted.clone().unwrap().destination().to_string(), mapped);
    stage.a.expect_silence();
}

#[test]
fn rtr_09_without_df_it_is_cut() {
    let narrow_wan = Stage::build(Lab::builder().wan_mtu(1400), gateway::STANDARD);
    let narrow_lan = Stage::build(Lab::builder().lan_mtu(1400), gateway::STANDARD);
    let mapped = source(&narrow_lan.crosses(&narrow_lan.udp(CLIENT, SERVER)));
    narrow_wan.a.send(&Packet::udp(CLIENT, SERVER).payload([7; 1472]));
    narrow_lan.s1.send(&Packet::udp(SERVER, mapped.as_str()).payload([7; 1472]));
    for (tap, from, to) in
        [(&narrow_wan.s1, public(40000), SERVER), (&narrow_lan.a, SERVER.to_owned(), CLIENT)]
    {
        let pieces = [tap.expect("the first piece", is_fragment), tap.expect("the second", is_fragment)];
        assert_eq!(pieces.each_ref().map(|piece| piece.ip().body.len()), [1376, 104], "in order");
        let whole = reassemble(&pieces).unwrap();
        assert_eq!((whole.source().to_string(), whole.destination().to_string()), (from, to.to_owned()));
        assert_eq!(whole.checksums_valid(), Ok(()));
    }
}

/// RTR-10, but for jumbo frames of 9000 bytes: natgw takes no interface with more than 3818.
#[test]
fn mtu_steps_and_bulk_through_each() {
    let stage = Stage::build(Lab::builder().lan_mtu(3800), gateway::STANDARD);
    stage.lab.a.ip("link set eth0 mtu 3800");
    stage.lab.each_switch_port(|port| format!("link set {port} mtu 3800"));
    stage.crosses(&stage.udp(CLIENT, SERVER));
    for (turn, mtu) in (0..).zip([1500_u16, 1280, 576, 68]) {
        for (host, interface) in [(&stage.lab.gateway, "wan"), (&stage.lab.isp, "gw")] {
            host.ip(&format!("link set {interface} mtu {mtu}"));
        }
        let big = Packet::udp(CLIENT, SERVER).payload(vec![turn; 3700]);
        let error = (0..20).find_map(|_| {
            stage.a.send(&big.clone().df());
            stage.a.recv_matching(Duration::from_millis(200), |seen| {
                is_icmp(seen, 3, 4) && seen.icmp().is_some_and(|icmp| icmp.seq == mtu)
            })
        });
        let error = error.unwrap_or_else(|| panic!("ICMP 3/4 with {mtu}")).decoded;
        assert_eq!(error.ip().source.to_string(), "192.168.1.1");
        assert_eq!(error.icmp().unwrap().quoted.clone().unwrap().source().to_string(), CLIENT);
        stage.s1.clear();
        stage.a.send(&big);
        let seen = all_whole(&stage.s1, 1, &format!("MTU {mtu}"));
        assert_eq!(seen[0].payload(), vec![turn; 3700]);
        let fits = Packet::udp(CLIENT, SERVER).payload(vec![turn; usize::from(mtu) - 28]).df();
        stage.crosses(&fits);
    }
    for host in [&stage.lab.a, &stage.lab.s1] {
        host.nft("delete table ip mute");
        host.offloads_off();
    }
    for (host, interface) in [(&stage.lab.gateway, "wan"), (&stage.lab.isp, "gw")] {
        host.ip(&format!("link set {interface} mtu 1280"));
    }
    // The server would take 1460 bytes in a segment. With path MTU discovery, and without.
    for (discovery_off, port) in [("0", 40_010), ("1", 40_011)] {
        stage.lab.a.sysctl("ipv4.ip_no_pmtu_disc", discovery_off);
        stage.lab.a.ip("route flush cache");
        stage.transfer_from(port, 10 << 20);
    }
    let cut = stage.s1.incoming(|seen| is_fragment(seen) && seen.tcp().is_some());
    assert!(!cut.is_empty(), "without discovery, segments are cut");
}

#[test]
fn rtr_11_merged_packets() {
    let one_to_one = "[[static]]\nexternal = \"203.0.113.2\"\ninternal = \"192.168.1.10\"\n";
    let generic = gateway::STANDARD.replace("name = ", "mode = \"generic\"\nname = ");
    let generic = generic.replace("mode = \"generic\"\nname = \"office\"", "name = \"office\"");
    for rules in ["", one_to_one] {
        // One-to-one asks the kernel's routes, which answer where it forwards.
        let stage = Stage::build(Lab::builder().forwarding(), &format!("{generic}{rules}"));
        // What offloads leave undone is in no quote's checksum.
        stage.expect_bad_packets();
        for host in [&stage.lab.a, &stage.lab.s1] {
            host.nft("delete table ip mute");
        }
        let merged = |seen: &Decoded| seen.tcp().is_some() && seen.ip().total_length > 1500;
        stage.transfer_from(40_010, 2 << 20);
        assert!(!stage.wan.incoming(merged).is_empty(), "segments travel together");
        assert!(stage.a.incoming(|seen| is_icmp(seen, 3, 4)).is_empty(), "all segments fit");
        for (host, interface) in [(&stage.lab.gateway, "wan"), (&stage.lab.isp, "gw")] {
            host.ip(&format!("link set {interface} mtu 1280"));
        }
        stage.wan.clear();
        for (discovery_off, port) in [("0", 40_011), ("1", 40_012)] {
            stage.lab.a.sysctl("ipv4.ip_no_pmtu_disc", discovery_off);
            stage.lab.a.ip("route flush cache");
            stage.a.clear();
            stage.transfer_from(port, 2 << 20);
            let told = stage.a.incoming(|seen| is_icmp(seen, 3, 4));
            if discovery_off == "1" {
                assert!(told.is_empty(), "segments that may be cut are made to fit");
                continue;
            }
            let error = told.first().expect("segments that may not be cut are told of");
            let quoted = error.icmp().unwrap().quoted.clone().unwrap();
            assert_eq!(
                (error.ip().source.to_string(), error.icmp().unwrap().seq),
                ("192.168.1.1".into(), 1280)
            );
            assert_eq!(quoted.source().to_string(), format!("192.168.1.10:{port}"));
        }
        // However they travel, what is on the wire fits it.
        let segment = |seen: &Decoded| seen.tcp().map_or(0, |tcp| tcp.payload.len());
        let whole = stage.wan.incoming(|seen| seen.tcp().is_some() && seen.ip().total_length <= 1500);
        assert!(
            whole.iter().all(|seen| seen.ip().total_length <= 1280),
            "{:?}",
            whole.iter().map(segment).max()
        );
    }
}

/// Linux holds what it forwards to the MTU of the route, whatever the interface would take.
#[test]
fn a_route_may_be_narrower_than_its_interface() {
    let stage = Stage::build(Lab::builder().forwarding(), gateway::STANDARD);
    // One of these flows is there before the route, the other is not.
    stage.crosses(&stage.udp(CLIENT, SERVER).payload([1; 1472]).df());
    held_to_the_route(&stage, &[CLIENT, "192.168.1.11:40001"]);
    // The way to an inside host may be the narrow one, too.
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    stage.lab.gateway.ip("route add 192.168.1.10 dev lan mtu 900");
    tells_of_it(&stage, &stage.s1, &Packet::udp(SERVER, mapped.as_str()), "203.0.113.1", 900);
}

#[test]
fn a_route_may_be_narrower_for_one_to_one_addresses() {
    let one_to_one = "\n[[static]]\nexternal = \"203.0.113.2\"\ninternal = \"192.168.1.10\"\n";
    let stage = Stage::build(Lab::builder().forwarding(), &format!("{}{one_to_one}", gateway::STANDARD));
    stage.crosses(&stage.udp(CLIENT, SERVER).payload([1; 1472]).df());
    held_to_the_route(&stage, &[CLIENT]);
    stage.lab.gateway.ip("route add 192.168.1.10 dev lan mtu 900");
    tells_of_it(&stage, &stage.s1, &Packet::udp(SERVER, "203.0.113.2:40000"), "203.0.113.1", 900);
}

/// What these clients send to a server is held to the MTU of the route to it, which changes; not what they send to
/// another.
fn held_to_the_route(stage: &Stage, clients: &[&str]) {
    let route = |what: &str| stage.lab.gateway.ip(&format!("route {what}"));
    let by_isp = "198.51.100.1 via 203.0.113.254";
    for mtu in [1000, 600] {
        route(&format!("replace {by_isp} mtu {mtu}"));
        for (id, client) in (mtu..).zip(clients) {
            let tap = stage.tap(client.split(':').next().and_then(|host| host.parse().ok()).unwrap());
            tells_of_it(stage, tap, &Packet::udp(*client, SERVER), "192.168.1.1", mtu);
            stage.s1.clear();
            tap.send(&Packet::udp(*client, SERVER).payload([4; 1472]).id(id));
            tap.send_fragments(&Packet::udp(*client, SERVER).payload([4; 2952]).id(id + 500), 1480, &[1, 0]);
            let cut = all_whole(&stage.s1, 2, &format!("cut to {mtu}"));
            let lengths: BTreeSet<usize> = cut.iter().map(|whole| whole.payload().len()).collect();
            assert_eq!(lengths, [1472, 2952].into());
            let longest = stage.s1.captured().iter().map(|seen| seen.decoded.ip().total_length).max();
            assert!(longest.is_some_and(|longest| longest <= mtu.into()), "{longest:?} of {mtu}");
            stage.crosses(&stage.udp(client, SERVER).payload(vec![5; usize::from(mtu) - 28]).df());
            stage.crosses(&stage.udp(client, "198.51.100.2:5000").payload([6; 1472]).df());
        }
    }
    route(&format!("replace {by_isp}"));
    stage.gateway.wait_until("packets leave whole", Duration::from_secs(5), |_| {
        stage.send(&Packet::udp(clients[0], SERVER).payload([7; 1472]).df());
        stage.s1.recv_matching(Duration::from_millis(200), |seen| seen.payload() == [7; 1472]).is_some()
    });
}

/// Whoever sends a packet of 1500 bytes that may not be cut is told, as soon as the gateway has heard of the route.
fn tells_of_it(stage: &Stage, tap: &Tap, packet: &Packet, own: &str, mtu: u16) {
    stage.gateway.wait_until("packets are held to the route", Duration::from_secs(5), |_| {
        tap.send(&packet.clone().payload([3; 1472]).df());
        let error = tap.recv_matching(Duration::from_millis(200), |seen| is_icmp(seen, 3, 4));
        error.is_some_and(|error| {
            let error = error.decoded;
            assert_eq!(error.ip().source.to_string(), own);
            error.icmp().is_some_and(|icmp| icmp.seq == mtu)
        })
    });
}
