//! Filtering: who may answer.

use std::{
    net::UdpSocket,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nat_tests::{Lab, Packet, gateway, packet::tcp};

use crate::stage::{Stage, public, seconds, source};

/// Opens a UDP mapping from a toward S1:1000 and says who gets through it.
fn who_gets_in(stage: &Stage) -> [bool; 3] {
    let mapped = source(&stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.1:1000")));
    ["198.51.100.1:1000", "198.51.100.1:9", "198.51.100.2:9"].map(|remote| {
        let sent = stage.send(&stage.udp(remote, &mapped));
        let patience = Duration::from_millis(300);
        stage.a.recv_matching(patience, |seen| seen.payload() == sent.payload()).is_some()
    })
}

#[test]
fn flt_01_endpoint_independent() {
    let stage = Stage::snat("filtering = \"endpoint-independent\"");
    assert_eq!(who_gets_in(&stage), [true, true, true]);
    let answer = stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.2:9"));
    assert_eq!(source(&answer), public(40000));
}

#[test]
fn flt_02_address_dependent_is_the_default() {
    assert_eq!(who_gets_in(&Stage::standard()), [true, true, false]);
    assert_eq!(who_gets_in(&Stage::snat("filtering = \"address-dependent\"")), [true, true, false]);
}

#[test]
fn flt_03_address_and_port_dependent() {
    let stage = Stage::snat("filtering = \"address-and-port-dependent\"");
    assert_eq!(who_gets_in(&stage), [true, false, false]);
}

#[test]
fn flt_04_a_stranger_connects_to_an_open_tcp_mapping() {
    let stage = Stage::snat("filtering = \"endpoint-independent\"");
    let mapped = stage.connect("192.168.1.10:40000", "198.51.100.1:1000");
    stage.reaches(&stage.syn("198.51.100.2:9", &mapped), &stage.a);
    let answer = Packet::tcp("192.168.1.10:40000", "198.51.100.2:9").seq(7).ack(1);
    let answer = stage.crosses(&answer.flags(tcp::SYN | tcp::ACK));
    assert_eq!(source(&answer), mapped);
    stage.reaches(&stage.data("198.51.100.2:9", &mapped), &stage.a);
}

#[test]
fn flt_05_a_tcp_mapping_lets_no_udp_in() {
    let stage = Stage::snat("filtering = \"endpoint-independent\"");
    let mapped = stage.connect("192.168.1.10:40000", "198.51.100.1:1000");
    stage.stopped(&stage.udp("198.51.100.1:1000", &mapped), &stage.a);
}

#[test]
fn flt_06_rejected_packets_keep_nothing_alive() {
    let stage = Stage::timeouts("udp = \"3s\"");
    let mapped = source(&stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.1:1000")));
    for _ in 0..12 {
        stage.stopped(&stage.udp("198.51.100.2:1000", &mapped), &stage.a);
        seconds(0.1);
    }
    assert_eq!(stage.session_count(), 0, "{:?}", stage.gateway.sessions());
}

#[test]
fn flt_07_nothing_uninvited_comes_in() {
    let stage = Stage::standard();
    for number in [22, 1024, 40000, 65535] {
        stage.attacker.send(&stage.udp("198.51.100.66:9", &public(number)));
        stage.attacker.send(&stage.syn("198.51.100.66:9", &public(number)));
        stage.attacker.send(&Packet::echo_reply("198.51.100.66", "203.0.113.1", number, 1));
    }
    stage.lan_is_silent();
    assert_eq!(stage.session_count(), 0);
    stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.66:9"));
    stage.reaches(&stage.udp("198.51.100.66:9", &public(40000)), &stage.a);
}

#[test]
fn flt_08_the_inside_is_not_reached_by_its_own_addresses() {
    // Whatever the kernel would forward: natgw stands before it.
    for builder in [Lab::builder(), Lab::builder().forwarding()] {
        let stage = Stage::build(builder, gateway::STANDARD);
        stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.1:1000"));
        for remote in ["198.51.100.1:1000", "198.51.100.66:1000"] {
            stage.stopped(&stage.udp(remote, "192.168.1.10:40000"), &stage.a);
            stage.stopped(&stage.syn(remote, "192.168.1.10:22"), &stage.a);
        }
        stage.attacker.send(&Packet::echo_request("198.51.100.66", "192.168.1.10", 1, 1));
        stage.lan_is_silent();
    }
}

#[test]
fn flt_08_nothing_leaks_while_natgw_reloads_or_restarts() {
    // With forwarding on, the kernel would carry what natgw lets by; the capture's judgement is that it does not.
    let mut stage = Stage::build(Lab::builder().forwarding(), gateway::STANDARD);
    let client = stage.lab.a.within(|| UdpSocket::bind("192.168.1.10:40000")).unwrap();
    let done = AtomicBool::new(false);
    let deadline = Instant::now() + Duration::from_secs(20);
    thread::scope(|scope| {
        scope.spawn(|| {
            // Should a step below fail, the scope waits for this thread, and nobody says that it is done.
            while !done.load(Ordering::Relaxed) && Instant::now() < deadline {
                client.send_to(b"knock", "198.51.100.1:1000").unwrap();
                seconds(0.001);
            }
        });
        stage.gateway.text(&["reload"]);
        stage.gateway.kill();
        seconds(0.3);
        stage.gateway.restart();
        seconds(0.3);
        done.store(true, Ordering::Relaxed);
    });
    stage.s1.expect_payload(b"knock");
}

#[test]
fn flt_10_another_public_address_is_another_mapping() {
    let stage = Stage::snat("filtering = \"endpoint-independent\"");
    stage.lab.add_spare_addresses();
    stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.1:1000"));
    stage.stopped(&stage.udp("198.51.100.1:1000", "203.0.113.2:40000"), &stage.a);
    stage.reaches(&stage.udp("198.51.100.1:1000", "203.0.113.1:40000"), &stage.a);
}

#[test]
fn flt_11_a_datagram_to_a_port_that_mappings_may_have_meets_silence() {
    let stage = Stage::standard();
    let answer = |number: u16| {
        stage.s1.send(&stage.udp("198.51.100.1:53", &public(number)));
        let seen = stage.s1.recv_matching(Duration::from_millis(100), |seen| seen.icmp().is_some());
        seen.map(|seen| seen.decoded.icmp().map(|icmp| (icmp.kind, icmp.code)).unwrap_or_default())
    };
    // Ephemeral ports of the gateway's own kernel, ports on either side of them, and the ends of the range.
    for number in [1024, 1025, 5353, 32_767, 32_768, 40_000, 60_999, 61_000, 65_535] {
        assert_eq!(answer(number), None, "port {number}");
    }
    // A closed port that no mapping can have is the kernel's.
    let stage = Stage::snat("ports = \"20000-29999\"");
    stage.s1.send(&stage.udp("198.51.100.1:53", &public(9)));
    stage.s1.expect("ICMP 3/3", |seen| seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code) == (3, 3)));
    stage.s1.send(&stage.udp("198.51.100.1:53", &public(20_000)));
    stage.s1.expect_silence();
}

/// Public addresses inside: nothing is translated, and yet only what belongs to a session comes in.
#[test]
fn flt_09_tracking_without_translation() {
    let configuration = gateway::STANDARD.replace("\"masquerade\"", "\"track\"");
    let mut stage = Stage::build(Lab::builder().forwarding(), &configuration);
    // The addresses inside are private, and outside as they are inside.
    stage.expect_inside_addresses_outside();
    let client = "192.168.1.10:40000";
    assert_eq!(source(&stage.crosses(&stage.udp(client, "198.51.100.1:1000"))), client);
    assert_eq!(stage.connect(client, "198.51.100.1:80"), client);
    let echo = stage.crosses(&Packet::echo_request("192.168.1.10", "198.51.100.1", 7, 1));
    assert_eq!(source(&echo), "192.168.1.10:7");
    let active = |stage: &Stage| {
        stage.reaches(&stage.udp("198.51.100.1:1000", client), &stage.a);
        stage.reaches(&stage.data("198.51.100.1:80", client), &stage.a);
        stage.reaches(&Packet::echo_reply("198.51.100.1", "192.168.1.10", 7, 1), &stage.a);
        // What is only recognised by what it quotes, and what comes in pieces.
        let quoted = Packet::udp(client, "198.51.100.1:1000").payload("too far").ip();
        stage.s1.send(&Packet::icmp_error("198.51.100.1", "192.168.1.10", 3, 3, &quoted));
        stage.a.expect("ICMP 3/3", |seen| seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code) == (3, 3)));
        let whole = stage.udp("198.51.100.1:1000", client).payload([7; 2000]).id(5);
        stage.s1.send_fragments(&whole, 1000, &[2, 0, 1]);
        for _ in 0..3 {
            stage.a.expect("a fragment", |seen| {
                seen.ip.as_ref().is_some_and(nat_tests::decode::Ip::is_fragment)
            });
        }
    };
    let strays = |stage: &Stage| {
        stage.send(&stage.udp("198.51.100.1:1001", client));
        stage.send(&stage.udp("198.51.100.66:1000", client));
        stage.send(&stage.syn("198.51.100.1:81", client));
        stage.send(&stage.syn("198.51.100.1:80", "192.168.1.10:22"));
        stage.send(&Packet::echo_request("198.51.100.1", "192.168.1.10", 7, 2));
        let quoted = Packet::udp("192.168.1.10:9", "198.51.100.1:1000").payload("never sent").ip();
        stage.send(&Packet::icmp_error("198.51.100.1", "192.168.1.10", 3, 1, &quoted));
        let whole = stage.udp("198.51.100.1:1009", client).payload([9; 2000]).id(6);
        stage.s1.send_fragments(&whole, 1000, &[2, 0, 1]);
        stage.lan_is_silent();
    };
    active(&stage);
    let before: u64 = stage.gateway.drops().values().sum();
    strays(&stage);
    let after: u64 = stage.gateway.drops().values().sum();
    assert!(after >= before + 8, "strays are told apart: {:?}", stage.gateway.drops());
    let sessions = stage.gateway.sessions();
    assert_eq!(sessions.len(), 3, "{sessions:?}");
    assert!(sessions.iter().all(|session| session["inside"] == session["outside"]), "{sessions:?}");
    // A daemon that takes over tells them apart as well.
    stage.gateway.kill();
    stage.gateway.restart();
    assert_eq!(stage.session_count(), 3);
    active(&stage);
    strays(&stage);
    stage.gateway.text(&["session", "flush"]);
    stage.send(&stage.udp("198.51.100.1:1000", client));
    stage.lan_is_silent();
}
