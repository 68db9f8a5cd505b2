//! Which of several servers a new connection gets: weights, persistence, servers that come and go.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use nat_tests::{
    Packet, Tap, gateway,
    packet::tcp::{RST, SYN},
};
use serde_json::Value;

use crate::{
    lbs::{SERVERS, V, connect, destination, is_to, listed, service, stage, tap_of},
    stage::{CLIENT_SEQ, SERVER_SEQ, Stage, source},
};

const CLIENT: &str = "198.51.100.1:5555";

/// Sends first packets, some at a time, and says how many arrived at each server, with the source they came from.
fn spread(stage: &Stage, packets: &[Packet]) -> Vec<usize> {
    let opened = || listed(stage).values().map(|row| row["connections"].as_u64().unwrap()).sum::<u64>();
    let before = opened();
    let taps = [&stage.a, &stage.b, &stage.c];
    taps.into_iter().for_each(Tap::clear);
    for (number, some) in packets.chunks(500).enumerate() {
        for packet in some {
            stage.send(packet);
        }
        let sent = (number * 500 + some.len()) as u64;
        stage.gateway.wait_until("all were judged", Duration::from_secs(20), |_| opened() - before >= sent);
        taps.into_iter().for_each(Tap::drain);
    }
    let counts: Vec<usize> = taps
        .map(|tap| {
            // The last are on their way.
            std::thread::sleep(Duration::from_millis(100));
            tap.drain();
            tap.incoming(|seen| seen.tcp().is_some_and(|tcp| tcp.flags == SYN)).len()
        })
        .to_vec();
    assert_eq!(counts.iter().sum::<usize>(), packets.len(), "every first packet arrives once: {counts:?}");
    counts
}

/// SYNs of many clients.
fn syns(count: u32) -> Vec<Packet> {
    let client = |number: u32| {
        let host = ["198.51.100.1", "198.51.100.2", "198.51.101.1"][number as usize % 3];
        format!("{host}:{}", 1024 + number / 3)
    };
    (0..count).map(|number| Packet::tcp(client(number).as_str(), V).syn(number)).collect()
}

#[test]
fn lbs_05_weights_and_turns_are_kept() {
    let weighted = "[[service.server]]\naddress = \"192.168.1.10:8080\"\nweight = 70\n\
                    [[service.server]]\naddress = \"192.168.1.11:8080\"\nweight = 30\n";
    let weighted = service(&format!("scheduler = \"weighted-round-robin\"\n{weighted}"), &[]);
    let stage = Stage::with(&format!("{}{weighted}", gateway::STANDARD));
    let counts = spread(&stage, &syns(10_000));
    assert!(counts[0].abs_diff(7000) <= 200 && counts[1].abs_diff(3000) <= 200, "{counts:?}");
    // In turn, each the same.
    stage.gateway.configure(&format!("{}{}", gateway::STANDARD, service("", &SERVERS)));
    stage.gateway.text(&["session", "flush"]);
    stage.gateway.text(&["reload"]);
    let counts = spread(&stage, &syns(1000));
    assert!(counts.iter().all(|count| count.abs_diff(333) <= 1), "{counts:?}");
}

#[test]
fn lbs_06_a_client_comes_back_to_its_server() {
    let stage = stage("persistence = \"10800s\"", &SERVERS);
    let server = connect(&stage, CLIENT);
    let end = Packet::tcp(CLIENT, V).seq(CLIENT_SEQ + 1).ack(SERVER_SEQ + 1).flags(RST);
    stage.reaches(&end, tap_of(&stage, &server));
    stage.gateway.text(&["session", "flush"]);
    for port in 6000..6070 {
        let seen = stage.reaches(&stage.syn(&format!("198.51.100.1:{port}"), V), tap_of(&stage, &server));
        assert_eq!(destination(&seen), server);
    }
    let others =
        ["198.51.100.2:1", "198.51.101.1:1", "198.51.100.66:1"].map(|client| connect(&stage, client));
    assert!(others.iter().any(|other| *other != server), "others are spread: {others:?}");
    assert_eq!(connect(&stage, "198.51.100.2:2"), others[0]);
}

#[test]
fn lbs_07_servers_come_and_go_while_connections_stay() {
    let stage = stage("", &SERVERS[..2]);
    let service = |arguments: &[&str]| stage.gateway.text(&[&["service"], arguments].concat());
    let (one, other) = (connect(&stage, "198.51.100.1:1"), connect(&stage, "198.51.100.1:2"));
    assert_ne!(one, other);
    let lives = |client: &str, server: &str| {
        stage.reaches(&stage.data(client, V), tap_of(&stage, server));
        stage.crosses(&stage.data(server, client));
    };
    // One more.
    service(&["add", "web", SERVERS[2]]);
    lives("198.51.100.1:1", &one);
    lives("198.51.100.1:2", &other);
    let mut all: Vec<String> = (3..6).map(|port| connect(&stage, &format!("198.51.100.1:{port}"))).collect();
    all.sort();
    assert_eq!(all, SERVERS);
    // Drained, or of no weight, it finishes what it has.
    for (command, clients) in
        [(&["drain", "web", one.as_str()][..], 10..16), (&["weight", "web", &one, "0"], 20..26)]
    {
        assert!(service(command).contains("draining"));
        for client in clients {
            assert_ne!(connect(&stage, &format!("198.51.100.1:{client}")), one);
        }
        lives("198.51.100.1:1", &one);
        service(&["weight", "web", &one, "1"]);
        let next = (0..3).map(|port| connect(&stage, &format!("198.51.100.2:{}{port}", command.len())));
        assert!(next.collect::<Vec<_>>().contains(&one), "and is back");
    }
    // Taken out, what it has is reset at both ends.
    let clients: Vec<Value> = stage.gateway.sessions();
    service(&["remove", "web", &one]);
    stage.s1.expect("an RST", |seen| {
        is_to(seen, "198.51.100.1:1") && seen.tcp().is_some_and(|tcp| tcp.flags & RST != 0)
    });
    tap_of(&stage, &one).expect("an RST", |seen| {
        seen.source().is_some_and(|from| from.to_string() == "198.51.100.1:1")
            && seen.tcp().is_some_and(|tcp| tcp.flags & RST != 0)
    });
    stage.stopped(&stage.data("198.51.100.1:1", V), tap_of(&stage, &one));
    lives("198.51.100.1:2", &other);
    for client in 30..34 {
        assert_ne!(connect(&stage, &format!("198.51.100.1:{client}")), one);
    }
    let left: Vec<Value> = stage.gateway.sessions();
    let of_one = |rows: &[Value]| rows.iter().filter(|row| row["inside"] == one.as_str()).count();
    assert!(of_one(&clients) > 0 && of_one(&left) == 0, "{left:?}");
    // What does not exist is refused in words.
    let refused = stage.gateway.output(&["service", "drain", "web", &one]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("has no server") && said.contains(&other), "{said}");
}

#[test]
fn lbs_08_without_a_server_a_client_is_told() {
    for (number, servers) in [&[][..], &SERVERS[..1]].into_iter().enumerate() {
        let stage = stage("", servers);
        if number == 1 {
            connect(&stage, CLIENT);
            stage.gateway.text(&["service", "drain", "web", SERVERS[0]]);
        }
        let before = (stage.session_count(), stage.gateway.natgw(&["pool", "list", "--json"]));
        for port in 7000..7005 {
            let sent = stage.send(&stage.syn(&format!("198.51.100.1:{port}"), V));
            let told = stage
                .s1
                .expect("ICMP 3/1", |seen| seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code) == (3, 1)));
            assert_eq!(told.ip().source.to_string(), "203.0.113.1");
            let quoted = told.icmp().unwrap().quoted.clone().unwrap();
            assert_eq!(
                (Some(quoted.source()), Some(quoted.destination())),
                (sent.source(), sent.destination())
            );
        }
        assert_eq!((stage.session_count(), stage.gateway.natgw(&["pool", "list", "--json"])), before);
        assert_eq!(stage.gateway.drops()["no_server"], 5);
    }
}

#[test]
fn lbs_12_schedulers_spread_and_stay() {
    let ten: Vec<String> = (0..10).map(|number| format!("192.168.1.{}:8080", 10 + number)).collect();
    let ten: Vec<&str> = ten.iter().map(String::as_str).collect();
    // Only a, b and c are there; where the others' go is in the listing, and seven hosts more on c's wire.
    let stage = stage("scheduler = \"maglev\"", &ten);
    for number in 3..10 {
        stage.lab.c.ip(&format!("addr add 192.168.1.{}/24 dev eth0", 10 + number));
    }
    for scheduler in ["maglev", "source-hash"] {
        let line = format!("scheduler = \"{scheduler}\"");
        stage.gateway.configure(&format!("{}{}", gateway::STANDARD, service(&line, &ten)));
        stage.gateway.text(&["session", "flush"]);
        stage.gateway.text(&["reload"]);
        let clients = clients();
        let before = servers_of(&stage, &clients);
        let used: std::collections::BTreeSet<&String> = before.iter().collect();
        assert_eq!(used.len(), 10, "{scheduler}: {used:?}");
        stage.gateway.text(&["service", "remove", "web", ten[4]]);
        stage.gateway.text(&["session", "flush"]);
        let after = servers_of(&stage, &clients);
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        assert!(moved * 100 <= clients.len() * 15, "{scheduler}: {moved} of {} moved", clients.len());
        assert!(after.iter().all(|server| server != ten[4]));
    }
    // The one with the fewest gets the next.
    stage.gateway.configure(&format!(
        "{}{}",
        gateway::STANDARD,
        service("scheduler = \"least-connections\"", &SERVERS)
    ));
    stage.gateway.text(&["session", "flush"]);
    stage.gateway.text(&["reload"]);
    let busy: Vec<String> = (1..7).map(|port| connect(&stage, &format!("198.51.100.1:{port}"))).collect();
    let idle = &busy[0];
    for (port, _) in (1..7).zip(&busy).filter(|(_, server)| *server == idle) {
        stage.gateway.text(&["session", "delete", "--remote", &format!("198.51.100.1:{port}")]);
    }
    assert_eq!(
        [connect(&stage, "198.51.100.1:8"), connect(&stage, "198.51.100.1:9")],
        [idle.clone(), idle.clone()]
    );
}

/// Clients with addresses of their own, as source-hash tells them apart.
fn clients() -> Vec<String> {
    let of = |network: u32| (100..220).map(move |host| format!("198.51.{network}.{host}:4000"));
    (100..102).flat_map(of).collect()
}

/// Which server each client's SYN arrives at.
fn servers_of(stage: &Stage, clients: &[String]) -> Vec<String> {
    let taps = [&stage.a, &stage.b, &stage.c];
    taps.into_iter().for_each(Tap::clear);
    let mut at = BTreeMap::new();
    for some in clients.chunks(100) {
        for client in some {
            stage.s1.send(&Packet::tcp(client.as_str(), V).syn(1));
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while !some.iter().all(|client| at.contains_key(client)) {
            assert!(Instant::now() < deadline, "{} of {} arrived", at.len(), clients.len());
            for tap in taps {
                tap.drain();
                for seen in tap.incoming(|seen| seen.tcp().is_some_and(|tcp| tcp.flags == SYN)) {
                    at.insert(source(&seen), destination(&seen));
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    clients.iter().map(|client| at[client].clone()).collect()
}
