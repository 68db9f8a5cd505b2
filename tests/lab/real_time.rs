//! The default timers by the clock on the wall: what the normal run has scaled, once as it is.
//!
//! `cargo xtask test behaviour --real-time` runs these, all at once; a name ends with how long its test takes, so that
//! `--minutes 8` runs those that take no longer.

use std::{
    thread,
    time::{Duration, Instant},
};

use nat_tests::{
    Packet,
    packet::tcp::{ACK, FIN, PSH, RST, SYN},
};

use crate::stage::{CLIENT_SEQ, SERVER_SEQ, Stage, port, source};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:80";
const DNS: &str = "198.51.100.1:53";

/// What a clock on the wall shows since the case began.
struct Clock(Instant);

impl Clock {
    fn start() -> Self {
        Self(Instant::now())
    }

    /// Waits until so many seconds have passed.
    fn at(&self, seconds: f64) {
        let elapsed = self.0.elapsed();
        let wanted = Duration::from_secs_f64(seconds);
        // All cases run at once; one that is late has not seen what it says.
        assert!(
            elapsed < wanted + Duration::from_secs(1),
            "{elapsed:?} have passed, {wanted:?} were to be waited for"
        );
        thread::sleep(wanted.saturating_sub(elapsed));
    }
}

/// The inside endpoints that natgw lists.
fn listed(stage: &Stage) -> Vec<String> {
    let sessions = stage.gateway.sessions();
    let inside = sessions.iter().map(|session| session["inside"].as_str().unwrap_or_default().to_owned());
    let mut inside: Vec<String> = inside.collect();
    inside.sort_unstable();
    inside
}

#[test]
#[ignore = "in real time"]
fn tmu_01_and_02_waits_for_6_minutes() {
    let stage = Stage::standard();
    let clock = Clock::start();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, DNS)));
    clock.at(119.0);
    stage.reaches(&stage.udp(DNS, &mapped), &stage.a);
    clock.at(299.0);
    stage.reaches(&stage.udp(DNS, &mapped), &stage.a);
    clock.at(331.0);
    stage.stopped(&stage.udp(DNS, &mapped), &stage.a);
    assert_eq!(stage.session_count(), 0);
    stage.carries_the_next();
}

#[test]
#[ignore = "in real time"]
fn tmu_03_waits_for_21_minutes() {
    let stage = Stage::timeouts("udp = \"120s\"");
    let clock = Clock::start();
    for round in 0..12 {
        clock.at(f64::from(round) * 100.0);
        let mapped = source(&stage.crosses(&stage.udp(CLIENT, DNS)));
        clock.at(f64::from(round) * 100.0 + 99.0);
        stage.reaches(&stage.udp(DNS, &mapped), &stage.a);
    }
    clock.at(1200.0);
    stage.reaches(&stage.udp(DNS, "203.0.113.1:40000"), &stage.a);
}

#[test]
#[ignore = "in real time"]
fn tmu_06_waits_for_6_minutes() {
    let stage = Stage::timeouts("udp_ports = { 53 = \"15s\" }");
    let other = "198.51.100.1:5353";
    let clock = Clock::start();
    let short = source(&stage.crosses(&stage.udp(CLIENT, DNS)));
    let long = source(&stage.crosses(&stage.udp("192.168.1.11:40001", other)));
    clock.at(14.0);
    stage.reaches(&stage.udp(DNS, &short), &stage.a);
    clock.at(17.5);
    stage.stopped(&stage.udp(DNS, &short), &stage.a);
    clock.at(299.0);
    stage.reaches(&stage.udp(other, &long), &stage.b);
}

#[test]
#[ignore = "in real time"]
fn icq_03_waits_for_2_minutes() {
    let stage = Stage::standard();
    let clock = Clock::start();
    let [first, second] = ["192.168.1.10", "192.168.1.11"].map(|client| {
        port(&stage.crosses(&Packet::echo_request(client, "198.51.100.1", 77, 1).payload(client)))
    });
    clock.at(59.0);
    stage.reaches(&Packet::echo_reply("198.51.100.1", "203.0.113.1", first, 1).payload("late"), &stage.a);
    clock.at(67.0);
    stage.stopped(&Packet::echo_reply("198.51.100.1", "203.0.113.1", second, 1).payload("later"), &stage.b);
    assert_eq!(stage.session_count(), 0);
    stage.carries_the_next();
}

#[test]
#[ignore = "in real time"]
fn tcp_08_waits_for_5_minutes() {
    let stage = Stage::standard();
    let clock = Clock::start();
    let mapped = source(&stage.crosses(&Packet::tcp(CLIENT, SERVER).syn(1000)));
    let forgotten = source(&stage.crosses(&Packet::tcp("192.168.1.11:40001", SERVER).syn(1000)));
    clock.at(239.0);
    let answer = |public: &str| Packet::tcp(SERVER, public).seq(5000).ack(1001).flags(SYN | ACK);
    stage.reaches(&answer(&mapped), &stage.a);
    stage.crosses(&Packet::tcp(CLIENT, SERVER).seq(1001).ack(5001));
    clock.at(265.0);
    stage.stopped(&answer(&forgotten), &stage.b);
    assert_eq!(listed(&stage), [CLIENT]);
}

#[test]
#[ignore = "in real time"]
fn tcp_10_waits_for_11_minutes() {
    let stage = Stage::standard();
    let clock = Clock::start();
    let mapped = stage.connect(CLIENT, SERVER);
    stage.crosses(&stage.data(CLIENT, SERVER).flags(FIN | ACK));
    for pause in [300.0, 600.0] {
        clock.at(pause);
        stage.reaches(&stage.data(SERVER, &mapped), &stage.a);
    }
}

/// Closed by both, in each order, and aborted by either: kept for four minutes, and gone after a tenth more.
#[test]
#[ignore = "in real time"]
fn tcp_11_and_12_waits_for_5_minutes() {
    let stage = Stage::standard();
    let clock = Clock::start();
    let clients: Vec<String> = (0..5).map(|number| format!("192.168.1.10:{}", 40_001 + number)).collect();
    let mapped: Vec<String> = clients.iter().map(|client| stage.connect(client, SERVER)).collect();
    for (number, (client, mapped)) in clients.iter().zip(&mapped).enumerate() {
        let from_client = stage.data(client, SERVER).flags(FIN | ACK);
        let from_server = stage.data(SERVER, mapped).flags(FIN | ACK);
        match number {
            0 | 1 => {
                stage.crosses(&from_client);
                stage.reaches(&from_server, &stage.a);
            }
            2 => {
                stage.reaches(&from_server, &stage.a);
                stage.crosses(&from_client);
            }
            3 => {
                stage.crosses(&Packet::tcp(client.as_str(), SERVER).seq(CLIENT_SEQ + 1).flags(RST));
            }
            _ => {
                let reset = Packet::tcp(SERVER, mapped.as_str()).seq(SERVER_SEQ + 1).flags(RST);
                stage.reaches(&reset, &stage.a);
            }
        }
    }
    clock.at(235.0);
    assert_eq!(listed(&stage), clients, "each is still known");
    // A FIN that is sent again, and the last ACK.
    stage.reaches(&stage.data(SERVER, &mapped[0]).flags(FIN | ACK), &stage.a);
    stage.crosses(&Packet::tcp(clients[0].as_str(), SERVER).seq(CLIENT_SEQ + 30).ack(SERVER_SEQ + 30));
    clock.at(266.0);
    // What came at last may have prolonged the first.
    let left = listed(&stage);
    assert!(left.is_empty() || left == clients[..1], "{left:?}");
    stage.stopped(&stage.data(SERVER, &mapped[1]), &stage.a);
    stage.stopped(
        &Packet::tcp(clients[2].as_str(), SERVER).seq(CLIENT_SEQ + 30).ack(SERVER_SEQ + 30),
        &stage.s1,
    );
    assert_eq!(listed(&stage), left, "an ACK that comes too late opens nothing");
    stage.carries_the_next();
}

#[test]
#[ignore = "in real time"]
fn tcp_13_and_14_waits_for_6_minutes() {
    let stage = Stage::standard();
    let clock = Clock::start();
    let taken_back = stage.connect(CLIENT, SERVER);
    stage.reaches(&Packet::tcp(SERVER, taken_back.as_str()).seq(SERVER_SEQ + 1).flags(RST), &stage.a);
    let untouched = stage.connect("192.168.1.11:40001", SERVER);
    for offset in [0, 1_000_000] {
        // From somebody who sees nothing of the connection; it may pass, and must not count.
        stage.send(&Packet::tcp(SERVER, untouched.as_str()).seq(offset).flags(RST));
    }
    clock.at(239.0);
    let said = Packet::tcp(CLIENT, SERVER).seq(CLIENT_SEQ + 1).ack(SERVER_SEQ + 1);
    stage.crosses(&said.flags(PSH | ACK).payload("still here"));
    clock.at(270.0);
    stage.reaches(&stage.data(SERVER, &untouched), &stage.b);
    clock.at(330.0);
    stage.reaches(&stage.data(SERVER, &taken_back), &stage.a);
}

/// RFC 6888 REQ-8: for two minutes after its session is over, a port is nobody else's.
#[test]
#[ignore = "in real time"]
fn prt_06_waits_for_8_minutes() {
    let stage = Stage::standard();
    let clock = Clock::start();
    assert_eq!(port(&stage.crosses(&stage.udp(CLIENT, DNS))), 40_000);
    clock.at(331.0);
    assert_eq!(stage.session_count(), 0);
    // Its session was over at 300 s at the earliest.
    clock.at(415.0);
    assert_ne!(port(&stage.crosses(&stage.udp("192.168.1.11:40000", DNS))), 40_000);
    clock.at(455.0);
    assert_eq!(port(&stage.crosses(&stage.udp("192.168.1.12:40000", DNS))), 40_000);
}

/// The whole of RFC 5382 REQ-5: two hours and four minutes of silence.
#[test]
#[ignore = "in real time"]
fn tcp_07_waits_for_137_minutes() {
    let stage = Stage::standard();
    let clock = Clock::start();
    let mapped = stage.connect(CLIENT, SERVER);
    let forgotten = stage.connect("192.168.1.11:40001", SERVER);
    clock.at(7439.0);
    stage.reaches(&stage.data(SERVER, &mapped), &stage.a);
    stage.crosses(&stage.data(CLIENT, SERVER));
    clock.at(8186.0);
    stage.stopped(&stage.data(SERVER, &forgotten), &stage.b);
    assert_eq!(listed(&stage), [CLIENT]);
}
