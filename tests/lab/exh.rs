//! Exhaustion and quotas: what happens when there is no more.

use nat_tests::{Lab, gateway};

use crate::stage::{Stage, seconds, source};

const SERVER: &str = "198.51.100.1:5000";

#[test]
fn exh_01_and_02_a_full_port_range_refuses_and_takes_from_nobody() {
    let stage = Stage::snat("ports = \"20000-20009\"");
    let clients: Vec<String> = (0..10).map(|number| format!("192.168.1.10:{}", 30_000 + number)).collect();
    let mapped: Vec<String> =
        clients.iter().map(|client| source(&stage.crosses(&stage.udp(client, SERVER)))).collect();
    for number in 0..20 {
        stage.stopped_quickly(&stage.udp(&format!("192.168.1.11:{}", 30_000 + number), SERVER));
    }
    for (client, mapped) in clients.iter().zip(&mapped) {
        let seen = stage.reaches(&stage.udp(SERVER, mapped), &stage.a);
        assert_eq!(seen.destination().unwrap().to_string(), *client);
        assert_eq!(source(&stage.crosses(&stage.udp(client, SERVER))), *mapped);
    }
}

#[test]
fn exh_05_a_source_has_its_limit_and_others_have_theirs() {
    let stage = Stage::with(&format!("{}\n[limits]\nsessions_per_source = 10\n", gateway::STANDARD));
    for number in 0..10 {
        stage.crosses(&stage.udp(&format!("192.168.1.10:{}", 30_000 + number), SERVER));
    }
    stage.stopped(&stage.udp("192.168.1.10:40000", SERVER), &stage.s1);
    stage.crosses(&stage.udp("192.168.1.10:30000", SERVER));
    stage.crosses(&stage.udp("192.168.1.11:40000", SERVER));
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
