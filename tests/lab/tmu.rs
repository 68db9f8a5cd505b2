//! UDP timers, scaled: what refreshes a session, and what does not.

use std::{
    fs, thread,
    time::{Duration, Instant, UNIX_EPOCH},
};

use nat_tests::{Decoded, Packet};

use crate::stage::{Stage, port, preload, seconds, source};

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
fn tmu_04_inbound_packets_refresh_where_they_are_said_to() {
    for refreshes in [false, true] {
        let stage = Stage::timeouts(&format!("udp = \"3s\"\ninbound_refresh = {refreshes}"));
        let mapped = source(&stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.1:1000")));
        stage.reaches(&stage.udp("198.51.100.1:1000", &mapped), &stage.a);
        let since = Instant::now();
        while since.elapsed() < Duration::from_secs(5) {
            seconds(0.5);
            stage.send(&stage.udp("198.51.100.1:1000", &mapped));
        }
        let last = stage.udp("198.51.100.1:1000", &mapped);
        if refreshes {
            stage.reaches(&last, &stage.a);
            stage.forgets_within(Duration::from_secs(6));
        } else {
            stage.stopped(&last, &stage.a);
            assert_eq!(stage.session_count(), 0);
        }
    }
}

#[test]
fn tmu_06_a_destination_port_may_have_its_own_timer() {
    let stage = Stage::timeouts("udp = \"8s\"\nudp_ports = { 53 = \"2s\" }");
    let [short, long] = ["198.51.100.1:53", "198.51.100.1:5353"].map(|server| {
        (server, source(&stage.crosses(&stage.udp(&format!("192.168.1.10:4{}", &server[13..]), server))))
    });
    seconds(1.0);
    stage.reaches(&stage.udp(short.0, &short.1), &stage.a);
    stage.reaches(&stage.udp(long.0, &long.1), &stage.a);
    seconds(2.5);
    stage.stopped(&stage.udp(short.0, &short.1), &stage.a);
    stage.reaches(&stage.udp(long.0, &long.1), &stage.a);
}

#[test]
fn tmu_05_errors_from_the_inside_pass_and_refresh_nothing() {
    let stage = Stage::timeouts("udp = \"3s\"");
    let mapped = source(&stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.1:1000")));
    let since = Instant::now();
    let mut answered = 0;
    while since.elapsed() < Duration::from_secs(4) {
        let sent = stage.send(&stage.udp("198.51.100.1:1000", &mapped));
        let seen = stage.a.recv_matching(Duration::from_millis(300), |seen| seen.payload() == sent.payload());
        // Towards the end it no longer arrives, but the error is sent all the same.
        let quoted = seen.as_ref().map_or_else(
            || Packet::udp("198.51.100.1:1000", "192.168.1.10:40000").payload("refused").ip(),
            |seen| seen.frame[14..].to_vec(),
        );
        stage.a.send(&Packet::icmp_error("192.168.1.10", "198.51.100.1", 3, 3, &quoted));
        if seen.is_some() && since.elapsed() < Duration::from_secs(2) {
            let error = stage.s1.expect("ICMP 3/3", |seen| seen.icmp().is_some());
            assert_eq!(error.ip().source.to_string(), "203.0.113.1");
            let quoted = error.icmp().unwrap().quoted.clone().unwrap();
            assert_eq!(quoted.destination().to_string(), mapped);
            answered += 1;
        }
        seconds(0.4);
    }
    assert!(answered >= 2, "{answered} errors arrived");
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

/// natgw alone sees the wall clock step: the machine's own stays as it is. Its log shows that it does see it.
#[test]
fn tmu_09_steps_of_the_wall_clock_end_nothing_and_prolong_nothing() {
    let mut stage = Stage::timeouts("udp = \"4s\"");
    let library = preload(&stage.gateway, include_str!("clock.c"));
    let clock = library.with_file_name("clock");
    fs::write(&clock, "0").unwrap();
    stage.gateway.restart_with(&[("LD_PRELOAD", &library), ("NATGW_TEST_CLOCK", &clock)]);
    for step in [3600_i64, -3600] {
        let mapped = source(&stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.1:1000")));
        let opened = Instant::now();
        fs::write(&clock, step.to_string()).unwrap();
        stage.gateway.text(&["reload"]);
        let log = stage.gateway.log();
        let stamp = log.lines().rfind(|line| line.contains("reloaded")).expect("a line about the reload");
        // 2026-11-21T13:38:25Z: the hour is another one, or the minute's turn was between the two.
        let hour = |seconds: i64| format!("T{:02}:", seconds.rem_euclid(86_400) / 3600);
        let now = i64::try_from(UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap() + step;
        assert!([now - 30, now].map(hour).iter().any(|hour| stamp.contains(hour.as_str())), "{stamp}");
        seconds(1.5);
        stage.reaches(&stage.udp("198.51.100.1:1000", &mapped), &stage.a);
        assert_eq!(stage.session_count(), 1, "it has not lived its time");
        stage.forgets_within(Duration::from_secs(5));
        assert!(opened.elapsed() > Duration::from_secs(3), "gone after {:?}", opened.elapsed());
        stage.stopped(&stage.udp("198.51.100.1:1000", &mapped), &stage.a);
    }
}

/// How many sessions natgw counts: listing very many takes its time.
fn open(stage: &Stage) -> u64 {
    stage.gateway.natgw(&["status", "--json"])["sessions"].as_u64().unwrap()
}

/// What was refreshed together is over together; packets that have nothing to do with it do not notice.
#[test]
fn tmu_10_a_hundred_thousand_sessions_expire_at_once_and_nobody_waits() {
    const SESSIONS: u32 = 100_000;
    const LIFE: Duration = Duration::from_secs(20);
    let stage = Stage::snat("filtering = \"endpoint-independent\"\n[timeouts]\nudp = \"20s\"");
    let packets: Vec<Packet> = (0..SESSIONS)
        .map(|number| {
            let port = |number| u16::try_from(number).expect("a port");
            let client = (stage.lab.a.address, port(40_000 + number % 4));
            Packet::udp(client, (stage.lab.s1.address, port(1 + number / 4))).payload(number.to_be_bytes())
        })
        .collect();
    for some in packets.chunks(4000) {
        let before = open(&stage);
        for packet in some {
            stage.a.send(packet);
        }
        stage.gateway.wait_until("they are open", LIFE, |_| open(&stage) == before + 4000);
        for tap in [&stage.a, &stage.s1, &stage.wan] {
            tap.clear();
        }
    }
    for packet in &packets {
        stage.a.send(packet);
    }
    let refreshed = Instant::now();
    for tap in [&stage.a, &stage.s1, &stage.wan] {
        tap.clear();
    }
    // One datagram each way every two milliseconds, from before until after.
    let mapped = source(&stage.crosses(&stage.udp("192.168.1.11:50000", "198.51.100.2:7")));
    let (from, until) = (LIFE.saturating_sub(Duration::from_secs(3)), LIFE.mul_f64(1.1));
    thread::sleep(from.saturating_sub(refreshed.elapsed()));
    let before = open(&stage);
    assert!(before > 100_000, "{before} are left before the time has come");
    let mut sent = 0_usize;
    while refreshed.elapsed() < until {
        stage.b.send(&stage.udp("192.168.1.11:50000", "198.51.100.2:7"));
        stage.s2.send(&stage.udp("198.51.100.2:7", &mapped));
        sent += 1;
        seconds(0.002);
    }
    stage.gateway.wait_until("one is left", Duration::from_secs(2), |_| open(&stage) == 1);
    let datagrams = |seen: &Decoded| seen.udp().is_some();
    seconds(0.2);
    // And the one that opened it.
    assert_eq!(stage.s2.incoming(datagrams).len(), sent + 1, "{:?}", stage.gateway.drops());
    assert_eq!(stage.b.incoming(datagrams).len(), sent, "{:?}", stage.gateway.drops());
}
