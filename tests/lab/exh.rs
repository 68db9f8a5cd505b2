//! Exhaustion and quotas: what happens when there is no more.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use nat_tests::{Lab, Packet, Tap, gateway};

use crate::stage::{Stage, seconds, source};

const SERVER: &str = "198.51.100.1:5000";

/// One flow of each kind from a port, or with an identifier.
fn flows(stage: &Stage, host: &str, number: u16) -> [Packet; 3] {
    let from = format!("{host}:{number}");
    [
        stage.udp(&from, SERVER),
        stage.syn(&from, SERVER),
        Packet::echo_request(host, "198.51.100.1", number, 1).payload(from),
    ]
}

#[test]
fn exh_01_a_full_port_range_refuses_tells_and_takes_from_nobody() {
    let stage = Stage::snat("ports = \"20000-20009\"");
    let mut mapped = Vec::new();
    for number in 0..10 {
        for packet in flows(&stage, "192.168.1.10", 30_000 + number) {
            mapped.push((packet.clone(), stage.crosses(&packet)));
        }
    }
    let exhausted = || stage.gateway.drops().get("ports_exhausted").copied().unwrap_or(0);
    assert_eq!(exhausted(), 0);
    for number in 0..5 {
        for packet in flows(&stage, "192.168.1.11", 30_000 + number) {
            stage.b.clear();
            let sent = stage.send(&packet);
            let told = stage.b.expect("ICMP 3/13", |seen| {
                seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code) == (3, 13))
            });
            assert_eq!(told.ip().source.to_string(), "192.168.1.1");
            let quoted = told.icmp().unwrap().quoted.clone().expect("a quote");
            assert_eq!(
                (&quoted.header, &quoted.body),
                (&sent.ip().header, &sent.ip().body),
                "as it was sent"
            );
            stage.stopped_quickly(&packet);
        }
    }
    assert_eq!(exhausted(), 30, "each counted once, whether it was the first or again");
    for (packet, seen) in mapped {
        let again = stage.crosses(&packet);
        assert_eq!((again.source(), again.ip().source), (seen.source(), seen.ip().source));
    }
}

/// Sends datagrams from S1 to external endpoints; each has to reach the inside endpoint that has it.
fn answer_all(stage: &Stage, tap: &Tap, endpoints: &[(String, String)]) {
    for some in endpoints.chunks(64) {
        let sent: Vec<_> =
            some.iter().map(|(_, external)| stage.send(&stage.udp(SERVER, external))).collect();
        for ((inside, _), sent) in some.iter().zip(&sent) {
            let seen = tap.expect_payload(sent.payload());
            assert_eq!(seen.destination().unwrap().to_string(), *inside);
        }
        for tap in [&stage.wan, &stage.a, &stage.s1] {
            tap.clear();
        }
    }
}

#[test]
fn exh_02_one_host_may_have_every_port_and_keeps_them_all() {
    let stage = Stage::standard();
    let mut endpoints = Vec::new();
    for ports in (1024..=65_535_u16).collect::<Vec<_>>().chunks(512) {
        let packets: Vec<Packet> =
            ports.iter().map(|port| stage.udp(&format!("192.168.1.10:{port}"), SERVER)).collect();
        let seen = stage.cross_many(&packets);
        endpoints.extend(
            ports.iter().zip(&seen).map(|(port, seen)| (format!("192.168.1.10:{port}"), source(seen))),
        );
        for tap in [&stage.wan, &stage.a, &stage.s1] {
            tap.clear();
        }
    }
    let distinct: HashSet<&String> = endpoints.iter().map(|(_, external)| external).collect();
    assert_eq!(distinct.len(), 64_512);
    for number in 0..200 {
        stage.b.send(&stage.udp(&format!("192.168.1.11:{}", 30_000 + number), SERVER));
    }
    stage.stopped(&stage.udp("192.168.1.11:40000", SERVER), &stage.s1);
    answer_all(&stage, &stage.a, &endpoints);
}

#[test]
fn exh_03_sixty_four_thousand_colliding_flows_get_a_port_each() {
    let stage = Stage::standard();
    let mut taken = HashSet::new();
    for host in ["192.168.1.10", "192.168.1.11"] {
        for ports in (1024..1024 + 32_256_u16).collect::<Vec<_>>().chunks(512) {
            let packets: Vec<Packet> = ports
                .iter()
                .map(|port| Packet::tcp(format!("{host}:{port}").as_str(), SERVER).syn(1))
                .collect();
            for some in packets.chunks(64) {
                for packet in some {
                    stage.send(packet);
                }
                for _ in some {
                    let seen = stage.s1.expect("a SYN", |seen| seen.tcp().is_some());
                    assert!(taken.insert(source(&seen)), "{} twice", source(&seen));
                }
            }
            for tap in [&stage.wan, &stage.a, &stage.b, &stage.s1] {
                tap.clear();
            }
        }
    }
    assert_eq!(taken.len(), 64_512);
    stage.stopped(&stage.syn("192.168.1.12:40000", SERVER), &stage.s1);
}

#[test]
fn exh_04_and_10_refused_hosts_succeed_once_ports_are_free_and_two_lines_say_so() {
    let configuration = gateway::STANDARD.to_owned()
        + "ports = \"20000-20009\"\n[timeouts]\nudp = \"3s\"\nquarantine = \"0s\"\n";
    let stage = Stage::with(&configuration);
    for number in 0..10 {
        stage.crosses(&stage.udp(&format!("192.168.1.10:{}", 30_000 + number), SERVER));
    }
    for number in 0..500 {
        stage.b.send(&stage.udp(&format!("192.168.1.11:{}", 30_000 + number), SERVER));
    }
    stage.stopped(&stage.udp("192.168.1.11:40000", SERVER), &stage.s1);
    let told = |what: &str| stage.gateway.log().lines().filter(|line| line.contains(what)).count();
    assert_eq!(
        told("new flows are refused for want of external ports for udp"),
        1,
        "{}",
        stage.gateway.log()
    );
    stage.forgets_within(Duration::from_secs(8));
    for number in 0..10 {
        stage.crosses(&stage.udp(&format!("192.168.1.11:{}", 30_000 + number), SERVER));
    }
    stage.gateway.wait_until("it is told that it is over", Duration::from_secs(12), |_| {
        told("no longer refused for want of external ports for udp") == 1
    });
    assert_eq!(told("for want of"), 2);
}

#[test]
fn exh_08_a_table_full_of_expired_sessions_takes_new_ones_at_once() {
    let configuration = gateway::STANDARD.to_owned()
        + "[timeouts]\nudp = \"3s\"\nquarantine = \"0s\"\n[limits]\nsessions = 2000\n";
    let stage = Stage::with(&configuration);
    let flood = |host: &str| {
        let packets: Vec<Packet> =
            (0..2000).map(|number| stage.udp(&format!("{host}:{}", 30_000 + number), SERVER)).collect();
        stage.cross_many(&packets)
    };
    flood("192.168.1.10");
    stage.stopped(&stage.udp("192.168.1.11:40000", SERVER), &stage.s1);
    // The longest that the last one may live, and the time it may take to be noticed.
    seconds(3.0 + 1.5);
    flood("192.168.1.11");
}

#[test]
fn exh_09_one_host_that_floods_spoils_nothing_for_others() {
    let configuration = gateway::STANDARD.to_owned()
        + "[timeouts]\ntcp_transitory = \"4s\"\n[limits]\nsessions_per_source = 2000\nnew_per_second_per_source = 500\n";
    let stage = Stage::with(&configuration);
    stage.lab.isp.ip("route add blackhole 198.18.0.0/15");
    let flows: Vec<String> = (0..20).map(|number| format!("192.168.1.11:{}", 40_000 + number)).collect();
    for flow in &flows {
        stage.crosses(&stage.udp(flow, SERVER));
    }
    let (stop, flooder) = (AtomicBool::new(false), stage.lab.a.tap());
    thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let flooder = flooder;
            let mut count = 0_u32;
            // An end of its own: a case that fails must not flood on.
            let end = Instant::now() + Duration::from_secs(30);
            while !stop.load(Ordering::Relaxed) && Instant::now() < end {
                let random = count.wrapping_mul(2_654_435_761);
                let to = format!("198.18.{}.{}:{}", random >> 24, random >> 16 & 0xff, 1 + (random & 0x7fff));
                let from = format!("192.168.1.10:{}", 1024 + count % 60_000);
                flooder.send(&Packet::tcp(from.as_str(), to.as_str()).syn(count));
                count += 1;
                if count.is_multiple_of(1000) {
                    flooder.clear();
                }
            }
            count
        });
        let (mut sent, mut opened) = (Vec::new(), 0);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(5) {
            for flow in &flows {
                sent.push(stage.send(&stage.udp(flow, SERVER)).payload().to_vec());
            }
            // As TCP would: again if there is no answer.
            let new = stage.syn(&format!("192.168.1.11:{}", 50_000 + opened), SERVER);
            let succeeded = (0..10).any(|_| {
                let seq = stage.send(&new).tcp().unwrap().seq;
                let patience = Duration::from_millis(200);
                stage
                    .s1
                    .recv_matching(patience, |seen| seen.tcp().is_some_and(|tcp| tcp.seq == seq))
                    .is_some()
            });
            assert!(succeeded, "new flow {opened} of another host");
            opened += 1;
            stage.wan.clear();
            seconds(0.02);
        }
        stop.store(true, Ordering::Relaxed);
        let flooded = flood.join().expect("the flood");
        seconds(0.3);
        let arrived: HashSet<Vec<u8>> =
            stage.s1.captured().iter().map(|captured| captured.decoded.payload().to_vec()).collect();
        let lost = sent.iter().filter(|payload| !arrived.contains(*payload)).count();
        assert!(lost * 100 < sent.len(), "{lost} of {} lost while {flooded} SYNs came", sent.len());
        assert!(flooded > 50_000 && opened > 5, "{flooded} SYNs, {opened} flows");
    });
    // The flooder itself is served again before its timers would have run twice.
    stage.gateway.wait_until("half-open sessions are gone", Duration::from_secs(8), |gateway| {
        gateway.sessions().len() < 200
    });
    stage.crosses(&stage.udp("192.168.1.10:9", SERVER));
}

#[test]
fn exh_11_without_an_address_nothing_leaves_and_with_one_all_does() {
    let stage = Stage::build(Lab::builder().forwarding(), gateway::STANDARD);
    stage.lab.gateway.ip("addr del 203.0.113.1/24 dev wan");
    stage.lab.gateway.ip("route add default via 203.0.113.254 dev wan onlink");
    let refused = |packet: &Packet| {
        let sent = stage.send(packet);
        let leak = stage.wan.recv_matching(Duration::from_millis(300), |seen| seen.ip.is_some());
        assert!(leak.is_none(), "{sent} leaves as {}", leak.unwrap().decoded);
    };
    for number in 0..5 {
        for packet in flows(&stage, "192.168.1.10", 40_000 + number) {
            refused(&packet);
        }
    }
    assert!(
        stage.gateway.drops().get("no_address").is_some_and(|packets| *packets > 0),
        "{:?}",
        stage.gateway.drops()
    );
    stage.lab.gateway.ip("addr add 203.0.113.1/24 dev wan");
    seconds(0.3);
    for packet in flows(&stage, "192.168.1.10", 40_000) {
        assert_eq!(stage.crosses(&packet).ip().source.to_string(), "203.0.113.1");
    }
}

#[test]
fn cgn_02_counters_for_machines_say_what_was_on_the_wire() {
    let stage = Stage::snat("ports = \"20000-20009\"");
    for number in 0..10 {
        stage.crosses(&stage.udp(&format!("192.168.1.10:{}", 30_000 + number), SERVER));
    }
    stage.stopped(&stage.udp("192.168.1.11:1", SERVER), &stage.s1);
    let status = stage.gateway.natgw(&["status", "--json"]);
    assert_eq!(stage.gateway.drops()["ports_exhausted"], 1, "{status}");
    let pools = stage.gateway.natgw(&["pool", "list", "--json"]);
    let udp = pools.as_array().unwrap().iter().find(|row| row["protocol"] == "udp").expect("UDP's ports");
    assert_eq!(
        (udp["address"].as_str(), udp["used"].as_u64(), udp["free"].as_u64()),
        (Some("203.0.113.1"), Some(10), Some(0)),
        "{pools}"
    );
    assert_eq!(stage.gateway.sessions().len(), 10);
    let rules = stage.gateway.natgw(&["rule", "list", "--json"]);
    assert!(rules.to_string().contains("office"), "{rules}");
}

#[test]
fn exh_05_a_source_has_its_limit_and_others_have_theirs() {
    let mut stage = Stage::with(&format!("{}\n[limits]\nsessions_per_source = 10\n", gateway::STANDARD));
    for number in 0..10 {
        stage.crosses(&stage.udp(&format!("192.168.1.10:{}", 30_000 + number), SERVER));
    }
    let holds = |stage: &Stage, other: &str| {
        stage.stopped(&stage.udp("192.168.1.10:40000", SERVER), &stage.s1);
        stage.crosses(&stage.udp("192.168.1.10:30000", SERVER));
        stage.crosses(&stage.udp(other, SERVER));
    };
    holds(&stage, "192.168.1.11:40000");
    // Also by a daemon that has taken the sessions over.
    stage.gateway.kill();
    stage.gateway.restart();
    holds(&stage, "192.168.1.11:40001");
    stage.gateway.text(&["session", "delete", "--inside", "192.168.1.10:30009"]);
    stage.crosses(&stage.udp("192.168.1.10:40000", SERVER));
}

/// As many inside hosts as may have sessions, and as many mappings as may be: what is new is refused, what there is
/// goes on, and what ends makes room; also after a takeover.
#[test]
fn sources_and_mappings_have_limits_of_their_own() {
    for (limit, last, refused) in [
        ("sources = 2", "192.168.1.11:30001", "192.168.1.12:30001"),
        ("mappings = 2", "192.168.1.11:30000", "192.168.1.10:30001"),
    ] {
        let text = format!("{}\n[limits]\n{limit}\n[timeouts]\nquarantine = \"0s\"\n", gateway::STANDARD);
        let mut stage = Stage::build(Lab::builder().forwarding(), &text);
        for client in ["192.168.1.10:30000", "192.168.1.11:30000", last] {
            stage.crosses(&stage.udp(client, SERVER));
        }
        for _ in 0..2 {
            stage.stopped(&stage.udp(refused, SERVER), &stage.s1);
            // A session through a mapping that is there is none too many.
            stage.crosses(&stage.udp("192.168.1.10:30000", "198.51.100.2:9"));
            stage.gateway.kill();
            stage.gateway.restart();
        }
        stage.gateway.text(&["session", "delete", "--inside", "192.168.1.11"]);
        stage.crosses(&stage.udp(refused, SERVER));
    }
}

#[test]
fn exh_06_a_source_has_its_rate() {
    let stage = Stage::with(&format!("{}\n[limits]\nnew_per_second_per_source = 10\n", gateway::STANDARD));
    for number in 0..200 {
        stage.a.send(&stage.udp(&format!("192.168.1.10:{}", 30_000 + number), SERVER));
    }
    stage.crosses(&stage.udp("192.168.1.11:40000", SERVER));
    let passed = stage.s1.incoming(|seen| seen.udp().is_some_and(|udp| udp.source != 40_000)).len();
    assert!((1..=40).contains(&passed), "{passed} of 200");
    seconds(1.5);
    stage.crosses(&stage.udp("192.168.1.10:50000", SERVER));
}

/// Most of what a host floods with while it is at its limit is refused where it comes in; all of it is counted.
#[test]
fn exh_06_a_flood_beyond_the_rate_is_not_judged_packet_by_packet() {
    const FLOOD: u16 = 8000;
    let stage = Stage::with(&format!("{}\n[limits]\nnew_per_second_per_source = 10\n", gateway::STANDARD));
    let went_up = || {
        let status = stage.gateway.natgw(&["status", "--json"]);
        status["packets"]["punted"].as_u64().expect("a count")
    };
    let before = went_up();
    let others = (0..8_u16).map(|number| stage.udp(&format!("192.168.1.11:{}", 40_000 + number), SERVER));
    for (part, other) in (0..).zip(others) {
        for number in part * FLOOD / 8..(part + 1) * FLOOD / 8 {
            stage.a.send(&stage.udp(&format!("192.168.1.10:{}", 30_000 + number), SERVER));
        }
        stage.crosses(&other);
    }
    let passed = || stage.s1.incoming(|seen| seen.udp().is_some_and(|udp| udp.source < 40_000)).len() as u64;
    let refused = || stage.gateway.drops().get("source_limit").copied().unwrap_or(0);
    stage
        .gateway
        .wait_until("all are counted", Duration::from_secs(5), |_| refused() + passed() == u64::from(FLOOD));
    let up = went_up() - before;
    assert!(up < u64::from(FLOOD) / 2, "{up} of {FLOOD} went up");
    seconds(1.5);
    stage.crosses(&stage.udp("192.168.1.10:50000", SERVER));
}

#[test]
fn exh_07_a_full_table_refuses_and_leaks_nothing() {
    let stage = Stage::build(
        Lab::builder().forwarding(),
        &format!("{}\n[limits]\nsessions = 1000\n", gateway::STANDARD),
    );
    let first = source(&stage.crosses(&stage.udp("192.168.1.10:20000", SERVER)));
    for number in 1..1200 {
        stage.a.send(&stage.udp(&format!("192.168.1.10:{}", 20_000 + number), SERVER));
        if number % 50 == 0 {
            seconds(0.02);
        }
    }
    seconds(0.5);
    assert!(stage.session_count() <= 1000);
    stage.stopped(&stage.udp("192.168.1.11:40000", SERVER), &stage.s1);
    stage.reaches(&stage.udp(SERVER, &first), &stage.a);
}
