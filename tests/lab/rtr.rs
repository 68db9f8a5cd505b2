//! Router behaviour: time to live, MTU, options.

use nat_tests::{Decoded, Lab, gateway};

use crate::stage::{Stage, public, source};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";

fn is_icmp(packet: &Decoded, kind: u8, code: u8) -> bool {
    packet.icmp().is_some_and(|icmp| (icmp.kind, icmp.code) == (kind, code))
}

#[test]
fn rtr_02_a_packet_that_dies_here_is_told_to_its_sender_as_sent() {
    let stage = Stage::standard();
    let sent = stage.a.send(&stage.udp(CLIENT, SERVER).ttl(1));
    let error = stage.a.expect("ICMP 11/0", |seen| is_icmp(seen, 11, 0));
    assert_eq!(error.ip().source.to_string(), "192.168.1.1");
    let quoted = error.icmp().unwrap().quoted.clone().unwrap();
    assert_eq!(Some(quoted.source()), sent.source());
    assert_eq!(Some(quoted.destination()), sent.destination());
    assert_eq!(error.checksums_valid(), Ok(()));
    stage.s1.expect_silence();
    assert_eq!(stage.session_count(), 0, "a packet that died made a session");
}

#[test]
fn rtr_03_the_outside_is_told_of_the_public_address() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    // The provider's router takes one of the two.
    stage.s1.send(&stage.udp(SERVER, &mapped).ttl(2));
    let error = stage.s1.expect("ICMP 11/0", |seen| is_icmp(seen, 11, 0));
    assert_eq!(error.ip().source.to_string(), "203.0.113.1");
    assert_eq!(error.icmp().unwrap().quoted.clone().unwrap().destination().to_string(), mapped);
    stage.a.expect_silence();
}

#[test]
fn rtr_04_traceroute_sees_every_hop() {
    let stage = Stage::standard();
    for host in [&stage.lab.a, &stage.lab.s1] {
        host.nft("delete table ip mute");
        // Else errors quote packets whose checksum was never computed, and the judge of quotes complains.
        host.offloads_off();
    }
    for method in ["-U", "-I", "-T"] {
        let text = stage.lab.a.succeed(&format!("traceroute {method} -n -q 1 -w 2 -m 5 198.51.100.1"));
        let hops: Vec<&str> =
            text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
        assert_eq!(hops, ["192.168.1.1", "203.0.113.254", "198.51.100.1"], "{method}:\n{text}");
    }
}

#[test]
fn rtr_06_the_last_hops_count_exactly() {
    let stage = Stage::standard();
    stage.a.send(&stage.udp(CLIENT, SERVER).ttl(0));
    stage.s1.expect_silence();
    // Two hops: it arrives with 1.
    assert_eq!(stage.crosses(&stage.udp(CLIENT, SERVER).ttl(3)).ip().ttl, 1);
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
    let stage = Stage::build(Lab::builder().wan_mtu(1400), gateway::STANDARD);
    stage.a.send(&stage.udp(CLIENT, SERVER).payload([7; 1472]));
    let fragment = |seen: &Decoded| seen.ip.as_ref().is_some_and(nat_tests::decode::Ip::is_fragment);
    let pieces = [stage.s1.expect("the first piece", fragment), stage.s1.expect("the second", fragment)];
    assert_eq!(pieces.each_ref().map(|piece| piece.ip().body.len()), [1376, 104]);
    let whole = nat_tests::decode::reassemble(&pieces).unwrap();
    assert_eq!(whole.source().to_string(), public(40000));
    assert_eq!(whole.checksums_valid(), Ok(()));
}

#[test]
fn rtr_14_every_type_of_service_passes() {
    let stage = Stage::standard();
    // Not all 256 one by one: every bit alone, and all.
    for tos in [0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff] {
        let seen = stage.crosses(&stage.udp(CLIENT, SERVER).tos(tos));
        stage.reaches(&stage.udp(SERVER, &source(&seen)).tos(tos), &stage.a);
    }
}

#[test]
fn rtr_16_and_18_options_pass_and_ports_are_found_behind_them() {
    let stage = Stage::standard();
    let router_alert = [0x94, 4, 0, 0];
    let unknown = [0x9e, 4, 1, 2];
    for options in [&[1, 1, 1, 1][..], &router_alert, &unknown, &[1; 40]] {
        for packet in [stage.udp(CLIENT, SERVER), stage.syn(CLIENT, SERVER)] {
            let seen = stage.crosses(&packet.ip_options(options));
            assert_eq!(source(&seen), public(40000));
        }
        stage.reaches(&stage.udp(SERVER, &public(40000)).ip_options(options), &stage.a);
    }
}

#[test]
fn rtr_17_source_routes_are_refused() {
    let stage = Stage::standard();
    for kind in [0x83, 0x89] {
        let route = [kind, 7, 4, 198, 51, 100, 2, 0];
        stage.a.send(&stage.udp(CLIENT, SERVER).ip_options(route));
    }
    stage.s1.expect_none("a source-routed packet", |seen| seen.udp().is_some());
    stage.s2.expect_none("a source-routed packet", |seen| seen.udp().is_some());
}
