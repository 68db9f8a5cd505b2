//! Router behaviour: time to live, options, what is told to whom.

use std::time::{Duration, Instant};

use nat_tests::{Decoded, Lab, Packet, gateway, wire::PATIENCE};

use crate::stage::{Stage, public, seconds, source};

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
    stage.carries_the_next();
}

#[test]
fn rtr_05_traceroute_into_a_forward_does_not_show_the_inside() {
    let forward = "[[forward]]\nprotocol = [\"tcp\"]\nexternal = \"203.0.113.1:8080\"\ninternal = \"192.168.2.10:80\"\n";
    let builder = Lab::builder().inner_router();
    let stage = Stage::build(builder, &format!("{}{forward}", gateway::STANDARD));
    for host in [stage.lab.d(), &stage.lab.s1] {
        host.nft("delete table ip mute");
        host.offloads_off();
    }
    let text = stage.lab.s1.succeed("traceroute -T -p 8080 -n -q 1 -w 3 -m 8 203.0.113.1");
    let hops: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(hops, ["198.51.100.254", "203.0.113.1", "203.0.113.1", "203.0.113.1"], "{text}");
}

#[test]
fn rtr_12_of_some_packets_nobody_is_told() {
    let stage = Stage::build(Lab::builder().forwarding(), gateway::STANDARD);
    let (_, about) = crate::ice::opened(&stage, &stage.udp(CLIENT, SERVER));
    let dying = || stage.udp(CLIENT, SERVER).ttl(1);
    let to = |destination: &str| Packet::udp(CLIENT, destination).payload("to many").ttl(1);
    let from = |source: &str| Packet::udp(source, SERVER).payload("from nowhere").ttl(1);
    let from_inside = [
        ("an ICMP error", Packet::icmp_error("192.168.1.10", "198.51.100.1", 3, 3, &about).ttl(1)),
        (
            "a later fragment",
            Packet::raw("192.168.1.10", "198.51.100.1", 17).payload([0; 64]).fragment_offset(9).ttl(1),
        ),
        ("a broadcast frame", dying().to_mac([0xff; 6])),
        ("a multicast frame", dying().to_mac([0x01, 0, 0x5e, 0, 0, 5])),
        ("a broadcast", to("255.255.255.255:5000")),
        ("a directed broadcast", to("192.168.1.255:5000").to_mac([0xff; 6])),
        ("a multicast", to("224.0.0.5:5000").to_mac([0x01, 0, 0x5e, 0, 0, 5])),
        ("from 0.0.0.1", from("0.0.0.1:9")),
        ("from 127.0.0.1", from("127.0.0.1:9")),
        ("from 224.0.0.5", from("224.0.0.5:9")),
        ("from everyone", from("255.255.255.255:9")),
        ("a wrong header checksum", dying().bad_ip_checksum()),
        ("a length beyond the frame", dying().total_length(1000)),
    ];
    for (what, packet) in from_inside {
        stage.a.send(&packet);
        let told = stage.a.recv_matching(Duration::from_millis(100), |seen| seen.icmp().is_some());
        assert!(told.is_none(), "{what}: {}", told.unwrap().decoded);
    }
    let mapped = public(40000);
    let error = Packet::icmp_error("198.51.100.1", "203.0.113.1", 3, 3, &about).ttl(1);
    let later = Packet::raw("198.51.100.1", "203.0.113.1", 17).payload([0; 64]).fragment_offset(9).ttl(1);
    let forged = Packet::udp("224.0.0.5:5000", mapped.as_str()).ttl(1);
    for packet in [error, later, forged, Packet::udp(SERVER, mapped.as_str()).ttl(1).bad_ip_checksum()] {
        // From the provider's end of the link: its router would not carry them.
        stage.wan.send(&packet);
    }
    stage.wan.expect_none("an error", |seen| seen.icmp().is_some());
    // Others are told.
    stage.a.send(&dying());
    stage.a.expect("ICMP 11/0", |seen| is_icmp(seen, 11, 0));
    stage.wan.send(&Packet::udp(SERVER, mapped.as_str()).ttl(1));
    stage.wan.expect("ICMP 11/0", |seen| is_icmp(seen, 11, 0));
}

#[test]
fn rtr_13_errors_have_a_rate() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let begun = Instant::now();
    let mut others = 0;
    for number in 0..10_000 {
        stage.a.send(&Packet::udp("192.168.1.10:41000", SERVER).ttl(1));
        if number % 100 == 0 {
            stage.crosses(&stage.udp(CLIENT, SERVER));
            stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
            others += 1;
        }
    }
    seconds(0.3);
    let took = begun.elapsed().as_secs_f64();
    let told = stage.a.incoming(|seen| is_icmp(seen, 11, 0)).len();
    // A thousand a second, and a thousand at once.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few thousand")]
    let most = 1000 + (1000.0 * took) as usize;
    assert!((500..=most).contains(&told) && told < 9000, "{told} errors in {took} s");
    assert_eq!(others, 100, "all others passed");
}

#[test]
fn rtr_14_type_of_service_is_kept_and_copied_to_errors() {
    let stage = Stage::standard();
    for tos in 0..=255 {
        let seen = stage.crosses(&stage.udp(CLIENT, SERVER).tos(tos));
        stage.reaches(&stage.udp(SERVER, &source(&seen)).tos(tos), &stage.a);
        if tos % 4 == 0 {
            stage.a.send(&stage.udp(CLIENT, SERVER).tos(tos).ttl(1));
            let error = stage.a.expect("ICMP 11/0", |seen| is_icmp(seen, 11, 0));
            assert_eq!(error.ip().tos, tos, "the DSCP of an error");
            assert_eq!(error.icmp().unwrap().quoted.clone().unwrap().tos, tos);
        }
    }
}

#[test]
fn rtr_15_no_way_to_go() {
    let stage = Stage::standard();
    stage.lab.gateway.ip("route del default");
    stage.lab.gateway.ip("route add 198.51.101.0/24 via 203.0.113.254");
    let lost = stage.udp(CLIENT, SERVER);
    // The daemon hears of routes when it hears of them.
    let error = (0..20).find_map(|_| {
        stage.a.send(&lost);
        stage.a.recv_matching(Duration::from_millis(200), |seen| is_icmp(seen, 3, 0))
    });
    let error = error.expect("ICMP 3/0").decoded;
    assert_eq!(error.ip().source.to_string(), "192.168.1.1");
    assert_eq!(error.icmp().unwrap().quoted.clone().unwrap().source().to_string(), CLIENT);
    stage.gateway.wait_until("no session", PATIENCE, |gateway| gateway.sessions().is_empty());
    // The provider is silent: three ARP requests, a second apart.
    stage.lab.isp.ip("link set gw arp off");
    stage.lab.gateway.ip("neigh flush dev wan");
    stage.a.send(&stage.udp(CLIENT, "198.51.101.1:5000"));
    let error = stage
        .a
        .recv_matching(3 * PATIENCE, |seen| is_icmp(seen, 3, 1))
        .expect("ICMP 3/1 once ARP gave up")
        .decoded;
    assert_eq!(error.ip().source.to_string(), "192.168.1.1");
    assert_eq!(error.icmp().unwrap().quoted.clone().unwrap().source().to_string(), CLIENT);
    stage.gateway.wait_until("no session", PATIENCE, |gateway| gateway.sessions().is_empty());
}

#[test]
fn rtr_19_nobody_is_redirected() {
    let one_armed = "\n[[snat]]\nout = \"lan\"\ndestination = [\"192.168.2.0/24\"]\nto = \"masquerade\"\n";
    let filtering = "filtering = \"endpoint-independent\"";
    let lab = Lab::builder().inner_router().forwarding().build();
    for key in ["all", "lan"] {
        lab.gateway.sysctl(&format!("ipv4.conf.{key}.send_redirects"), "1");
    }
    let stage = Stage::on(lab, &format!("{}{filtering}\n{one_armed}", gateway::STANDARD));
    let of_b = source(&stage.crosses(&stage.udp("192.168.1.11:40001", SERVER)));
    for number in 0..20 {
        stage.reaches(&stage.udp(CLIENT, &of_b), &stage.b);
        // In and out by one interface: the LAN hosts could go to the inner router themselves.
        let payload = format!("one-armed {number}");
        stage.a.send(&Packet::udp(CLIENT, "192.168.2.10:5000").payload(&payload));
        let seen = stage.d().expect_payload(&payload);
        assert_eq!(seen.ip().source.to_string(), "192.168.1.1");
        stage.d().send(
            &Packet::udp("192.168.2.10:5000", seen.source().unwrap()).payload(format!("back {number}")),
        );
        stage.a.expect_payload(format!("back {number}"));
    }
    for tap in [&stage.a, &stage.b, stage.d()] {
        assert_eq!(tap.incoming(|seen| seen.icmp().is_some()).len(), 0, "redirects");
    }
}

#[test]
fn rtr_22_atomic_packets_may_have_any_id() {
    let stage = Stage::standard();
    for id in [0, 0, 1, 0x8000, 0xffff] {
        for packet in [stage.udp(CLIENT, SERVER), stage.syn(CLIENT, SERVER)] {
            let seen = stage.crosses(&packet.df().id(id));
            let reply = match seen.tcp() {
                Some(_) => Packet::tcp(SERVER, source(&seen).as_str()).syn(stage.token()).ack(1),
                None => stage.udp(SERVER, &source(&seen)),
            };
            stage.reaches(&reply.df().id(id), &stage.a);
        }
    }
}
