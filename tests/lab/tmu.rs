//! UDP timers, scaled: what refreshes a session, and what does not.

use std::time::Duration;

use nat_tests::Packet;

use crate::stage::{Stage, port, seconds, source};

#[test]
fn tmu_01_and_02_a_session_lives_its_time_and_no_longer() {
    let stage = Stage::timeouts("udp = \"3s\"");
    let mapped = source(&stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.1:1000")));
    seconds(2.5);
    stage.reaches(&stage.udp("198.51.100.1:1000", &mapped), &stage.a);
    // Whether an answer refreshes is a setting (TMU-04); this is past the timeout after it in either case.
    seconds(3.0 * 1.1 + 1.0);
    stage.stopped(&stage.udp("198.51.100.1:1000", &mapped), &stage.a);
    assert_eq!(stage.session_count(), 0);
}

#[test]
fn tmu_02_the_default_is_five_minutes() {
    let stage = Stage::standard();
    stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.1:1000"));
    let sessions = stage.gateway.sessions();
    let expires_in = sessions[0]["expires_in"].as_f64().unwrap();
    assert!((295.0..=300.0).contains(&expires_in), "{sessions:?}");
}

#[test]
fn tmu_03_outbound_packets_refresh() {
    let stage = Stage::timeouts("udp = \"2s\"");
    for _ in 0..5 {
        stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.1:1000"));
        seconds(1.0);
    }
    stage.reaches(&stage.udp("198.51.100.1:1000", "203.0.113.1:40000"), &stage.a);
}

#[test]
fn tmu_05_errors_from_the_inside_refresh_nothing() {
    let stage = Stage::timeouts("udp = \"3s\"");
    stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.1:1000"));
    for _ in 0..8 {
        // The datagram itself may no longer arrive towards the end, but the error is sent all the same.
        let datagram = Packet::udp("198.51.100.1:1000", "192.168.1.10:40000").payload("refused").ip();
        stage.a.send(&Packet::icmp_error("192.168.1.10", "198.51.100.1", 3, 3, &datagram));
        seconds(0.6);
    }
    assert_eq!(stage.session_count(), 0, "{:?}", stage.gateway.sessions());
}

#[test]
fn tmu_07_a_mapping_lives_while_one_of_its_sessions_does() {
    let stage = Stage::timeouts("udp = \"2s\"");
    // B holds the port number: A's mapping is one that would not come again by preservation.
    stage.crosses(&stage.udp("192.168.1.11:40000", "198.51.101.1:1"));
    let first = port(&stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.1:1000")));
    for _ in 0..5 {
        seconds(0.8);
        stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.2:1000"));
    }
    let again = port(&stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.1:1000")));
    assert_eq!(first, again);
}

#[test]
fn tmu_08_after_expiry_the_same_endpoint_gets_its_port_again() {
    let stage = Stage::timeouts("udp = \"2s\"");
    let first = port(&stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.1:1000")));
    stage.forgets_within(Duration::from_secs(5));
    let again = port(&stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.1:1000")));
    assert_eq!(first, again);
}
