//! Ports by arithmetic (RFC 7422).

use std::{collections::HashSet, fs, time::Duration};

use nat_tests::{Packet, gateway};
use serde_json::Value;

use crate::stage::{Stage, source};

const SERVER: &str = "198.51.100.1:5000";

fn deterministic(to: &str, subscribers: &str, more: &str) -> Stage {
    let lines = format!("to = [\"{to}\"]\ndeterministic = {{ {subscribers} }}");
    let stage = Stage::with(&format!("{}{more}", gateway::STANDARD.replace("to = \"masquerade\"", &lines)));
    // Subscribers without a host of their own are sent for by a.
    stage.lab.isp.ip("route add 192.0.2.0/28 via 203.0.113.1");
    stage.expect_bad_packets();
    stage
}

/// Sends as a, whoever it says it is; where the server saw it come from.
fn sent_by_a(stage: &Stage, packet: &Packet) -> Option<String> {
    stage.a.send(packet);
    let seen = stage.s1.recv_matching(Duration::from_millis(700), |seen| {
        seen.udp().is_some() || seen.icmp().is_some() || seen.tcp().is_some()
    });
    seen.map(|seen| source(&seen.decoded))
}

#[test]
fn det_01_and_02_and_04_each_subscriber_has_a_block_that_is_looked_up_without_a_log() {
    let stage = deterministic("192.0.2.1", "subscribers = \"192.168.1.1-192.168.1.14\", dynamic = 2", "");
    let blocks = [(2, 5056, 9087), (10, 37_312, 41_343), (14, 53_440, 57_471)];
    for (host, first, last) in blocks {
        let host = format!("192.168.1.{host}");
        let mut taken = HashSet::new();
        for number in 0..60_u16 {
            let from = format!("{host}:{}", 60_000 + number);
            let packets = [
                stage.udp(&from, SERVER),
                stage.syn(&from, SERVER),
                Packet::echo_request(host.as_str(), "198.51.100.1", 60_000 + number, 1),
            ];
            for packet in &packets {
                let mapped = sent_by_a(&stage, packet).expect("it passes");
                let (address, port) = mapped.split_once(':').expect("address:port");
                let port: u16 = port.parse().expect("a port");
                assert_eq!(address, "192.0.2.1");
                assert!((first..=last).contains(&port), "{host} has {port}");
                taken.insert(port);
            }
        }
        // Random: neither one after the other nor the same for all protocols.
        let mut ports: Vec<u16> = taken.into_iter().collect();
        ports.sort_unstable();
        assert!(ports.len() > 120 && ports[ports.len() - 1] - ports[0] > 2000, "{ports:?}");
        for port in [first, last] {
            let config = stage.gateway.configuration();
            let endpoint = format!("192.0.2.1:{port}");
            let asked = [
                "pool",
                "owner",
                &endpoint,
                "--protocol",
                "tcp",
                "--json",
                "--config",
                config.to_str().unwrap(),
            ];
            assert_eq!(stage.gateway.natgw(&asked)["inside"], host.as_str());
        }
    }
    // Who is no subscriber has nothing.
    assert_eq!(sent_by_a(&stage, &stage.udp("192.168.1.15:1", SERVER)), None);
    let config = stage.gateway.configuration();
    let nobodys = ["pool", "owner", "192.0.2.1:57472", "--config", config.to_str().unwrap()];
    assert!(!stage.gateway.output(&nobodys).status.success());
}

#[test]
fn det_05_and_06_two_hundred_and_fifty_six_subscribers_share_an_address() {
    let more = "[limits]\nsessions_per_source = 300\n[timeouts]\nudp = \"3s\"\n";
    let stage = deterministic("192.0.2.1", "subscribers = \"192.168.1.0/24\"", more);
    let fill = || {
        let mut ports = HashSet::new();
        for number in 0..252 {
            let mapped = sent_by_a(&stage, &stage.udp(&format!("192.168.1.10:{}", 30_000 + number), SERVER));
            let mapped = mapped.unwrap_or_else(|| panic!("flow {number} is refused"));
            let port: u16 = mapped.strip_prefix("192.0.2.1:").expect("the address").parse().expect("a port");
            assert!((3544..=3795).contains(&port), "{port}: 1024 + 10 * 252 and 252 ports");
            ports.insert(port);
        }
        assert_eq!(ports.len(), 252);
    };
    fill();
    stage.a.clear();
    assert_eq!(sent_by_a(&stage, &stage.udp("192.168.1.10:40000", SERVER)), None, "its block is full");
    stage.a.expect("ICMP 3/13", |seen| seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code) == (3, 13)));
    let other = sent_by_a(&stage, &stage.udp("192.168.1.11:40000", SERVER)).expect("others have theirs");
    assert!(other.starts_with("192.0.2.1:3") || other.starts_with("192.0.2.1:4"), "{other}");
    // Every port may be had again at once: it was nobody else's to wait for.
    stage.forgets_within(Duration::from_secs(10));
    fill();
}

#[test]
fn det_06_more_sessions_than_a_subscriber_may_have_are_refused() {
    let more = "[limits]\nsessions_per_source = 1000\n";
    let stage = deterministic("192.0.2.1", "subscribers = \"192.168.1.0/24\"", more);
    let packet = |number: u16| stage.udp("192.168.1.10:40000", &format!("198.51.100.1:{}", 1000 + number));
    for number in 0..1000 {
        assert!(sent_by_a(&stage, &packet(number)).is_some(), "session {number}");
    }
    stage.a.clear();
    assert_eq!(sent_by_a(&stage, &packet(1000)), None);
    stage.a.expect("ICMP 3/13", |seen| seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code) == (3, 13)));
    assert!(sent_by_a(&stage, &packet(0)).is_some(), "those that are there go on");
}

/// Sends datagrams as a, some at a time; where the server saw those that passed come from.
fn sent_many(stage: &Stage, packets: &[Packet]) -> Vec<String> {
    let mut mapped = Vec::new();
    for some in packets.chunks(64) {
        for packet in some {
            stage.a.send(packet);
        }
        for _ in some {
            let seen = stage.s1.recv_matching(Duration::from_millis(700), |seen| seen.udp().is_some());
            mapped.extend(seen.map(|seen| source(&seen.decoded)));
        }
        for tap in [&stage.a, &stage.wan, &stage.s1] {
            tap.clear();
        }
    }
    mapped
}

#[test]
fn det_03_and_log_06_blocks_beyond_a_subscribers_own_cost_one_record_each() {
    let log = std::env::temp_dir().join(format!("natgw-test-blocks-{}.json", std::process::id()));
    let more = format!(
        "[timeouts]\nquarantine = \"0s\"\n[log]\nsessions = \"json\"\nfile = \"{}\"\nevents = [\"blocks\"]\n",
        log.display()
    );
    let subscribers = "subscribers = \"192.168.1.1-192.168.1.14\", dynamic = 2, block = 100, most = 5032";
    let mut stage = deterministic("192.0.2.1", subscribers, &more);
    let records = || -> Vec<Value> {
        let text = fs::read_to_string(&log).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let range = |record: &Value| -> (u64, u64) {
        (record["ports"][0].as_u64().expect("first"), record["ports"][1].as_u64().expect("last"))
    };
    let flow = |number: u16| stage.udp(&format!("192.168.1.2:{}", 10_000 + number), SERVER);
    let packets: Vec<Packet> = (0..5032).map(flow).collect();
    let mapped = sent_many(&stage, &packets);
    let ports: HashSet<u64> = mapped
        .iter()
        .map(|mapped| mapped.strip_prefix("192.0.2.1:").expect("the address").parse().expect("a port"))
        .collect();
    assert_eq!(ports.len(), 5032, "each has a port of its own");
    stage.gateway.wait_until("the blocks are recorded", Duration::from_secs(5), |_| records().len() >= 10);
    let taken = records();
    assert_eq!(taken.len(), 10, "{taken:#?}");
    let blocks: HashSet<(u64, u64)> = taken.iter().map(range).collect();
    assert_eq!(blocks.len(), 10);
    for (record, (first, last)) in taken.iter().zip(taken.iter().map(range)) {
        assert_eq!((record["event"].as_str(), record["nat_event"].as_u64()), (Some("block_taken"), Some(16)));
        assert_eq!(
            (record["inside"].as_str(), record["outside"].as_str()),
            (Some("192.168.1.2"), Some("192.0.2.1"))
        );
        assert!(first >= 57_472 && last == first + 99 && last <= 65_535, "{record}");
    }
    let own = ports.iter().filter(|port| (5056..=9087).contains(*port)).count();
    let beyond = ports.iter().filter(|port| blocks.iter().any(|(first, last)| (first..=last).contains(port)));
    assert_eq!((own, beyond.count()), (4032, 1000), "his own first, all the others of his blocks");
    // The most that he may have: refused and told. Another subscriber has his.
    stage.a.clear();
    assert_eq!(sent_by_a(&stage, &flow(6000)), None);
    stage.a.expect("ICMP 3/13", |seen| seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code) == (3, 13)));
    assert!(sent_by_a(&stage, &stage.udp("192.168.1.3:10000", SERVER)).is_some());
    // Killed and started again, the blocks are still his.
    stage.gateway.kill();
    stage.gateway.restart();
    assert_eq!(sent_by_a(&stage, &packets[5031]), Some(mapped[5031].clone()));
    assert_eq!(sent_by_a(&stage, &stage.udp("192.168.1.2:16000", SERVER)), None);
    stage.gateway.text(&["session", "delete", "--inside", "192.168.1.2"]);
    stage.gateway.wait_until("they are released", Duration::from_secs(5), |_| records().len() >= 20);
    let released: Vec<Value> = records().split_off(10);
    assert_eq!(released.len(), 10, "{released:#?}");
    assert!(released.iter().all(|record| record["event"] == "block_released" && record["nat_event"] == 17));
    assert_eq!(released.iter().map(range).collect::<HashSet<_>>(), blocks);
    let bytes = fs::metadata(&log).expect("the log").len();
    println!("5032 sessions of one subscriber cost {bytes} bytes of records: {} a block", bytes / 10);
    assert!(bytes < 20 * 200);
    let _ = fs::remove_file(&log);
    // And he may have them anew.
    assert_eq!(sent_many(&stage, &packets[..64]).len(), 64);
}
