//! Sessions that the fast path opens by itself, for hosts that the daemon knows. Whether it did shows in that the
//! daemon was stopped meanwhile, or dead.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use nat_tests::{Decoded, Lab, Packet, gateway};

use crate::stage::{Stage, seconds, source};

const SERVER: &str = "198.51.100.1:4000";
const OTHER: &str = "198.51.100.2:4000";

/// A has had a session of each protocol: whatever it opens now may be opened without the daemon.
fn known(configuration: &str) -> Stage {
    // The kernel's routing table is asked, which answers only where it forwards.
    let stage = Stage::build(Lab::builder().forwarding(), configuration);
    stage.crosses(&stage.udp("192.168.1.10:30000", SERVER));
    stage.crosses(&stage.syn("192.168.1.10:30000", SERVER));
    // The grant that names both protocols' ports is the last one's.
    stage.crosses(&stage.udp("192.168.1.10:30001", SERVER));
    // Whoever is lent slots has to be woken first.
    seconds(0.1);
    stage
}

impl Stage {
    fn signal(&self, signal: Signal) {
        let id = self.gateway.id().and_then(|id| i32::try_from(id).ok()).expect("it runs");
        kill_process(Pid::from_raw(id).expect("not process 0"), signal).expect("send a signal to natgw");
    }

    /// Does something while the daemon does nothing.
    fn while_stopped<T>(&self, what: impl FnOnce(&Self) -> T) -> T {
        self.signal(Signal::STOP);
        let result = what(self);
        self.signal(Signal::CONT);
        result
    }

    fn has_sessions(&self, number: usize) {
        self.gateway.wait_until("the sessions are listed", Duration::from_secs(5), |gateway| {
            gateway.sessions().len() == number
        });
    }
}

#[test]
fn a_known_host_needs_no_daemon_an_unknown_one_does() {
    let stage = known(gateway::STANDARD);
    stage.while_stopped(|stage| {
        let udp = stage.crosses(&stage.udp("192.168.1.10:40000", SERVER));
        assert_eq!(source(&udp), "203.0.113.1:40000", "the port is kept");
        let tcp = stage.crosses(&stage.syn("192.168.1.10:40000", SERVER));
        assert_eq!(source(&tcp), "203.0.113.1:40000");
        stage.reaches(&stage.udp(SERVER, "203.0.113.1:40000"), &stage.a);
        stage.reaches(&Packet::tcp(SERVER, "203.0.113.1:40000").syn(7).ack(1), &stage.a);
        // Not to whoever else would like it.
        stage.stopped(&stage.udp("198.51.100.66:4000", "203.0.113.1:41000"), &stage.a);
        stage.stopped_quickly(&stage.udp("192.168.1.11:40000", SERVER));
        // Nor what is picked up in the middle: that takes more thought.
        stage.stopped_quickly(&stage.data("192.168.1.10:40002", SERVER));
    });
    stage.has_sessions(7);
    // What came up meanwhile was judged once the daemon went on.
    let of_b = stage.crosses(&stage.udp("192.168.1.11:40000", SERVER));
    assert_ne!(source(&of_b), "203.0.113.1:40000", "the port is taken");
}

#[test]
fn an_endpoint_has_one_mapping_whoever_makes_it() {
    let stage = known(gateway::STANDARD);
    let first = stage.while_stopped(|stage| {
        let first = source(&stage.crosses(&stage.udp("192.168.1.10:40000", SERVER)));
        // Its next session needs the mapping: the daemon's to find.
        stage.stopped_quickly(&stage.udp("192.168.1.10:40000", OTHER));
        first
    });
    assert_eq!(source(&stage.crosses(&stage.udp("192.168.1.10:40000", OTHER))), first);
    assert_eq!(source(&stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.2:9"))), first);
    // And the other way round.
    let second = source(&stage.crosses(&stage.udp("192.168.1.10:30000", OTHER)));
    assert_eq!(second, "203.0.113.1:30000");
}

#[test]
fn no_two_hosts_have_one_port() {
    let stage = known(gateway::STANDARD);
    stage.crosses(&stage.udp("192.168.1.11:30002", SERVER));
    let (of_a, of_b) = stage.while_stopped(|stage| {
        let of_a = source(&stage.crosses(&stage.udp("192.168.1.10:40001", SERVER)));
        (of_a, source(&stage.crosses(&stage.udp("192.168.1.11:40001", SERVER))))
    });
    assert_eq!(of_a, "203.0.113.1:40001");
    assert_ne!(of_b, of_a);
    let port: u16 = of_b.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    assert!(port >= 1024 && port % 2 == 1, "{of_b} has the parity of 40001 (RFC 4787 REQ-4)");
    stage.has_sessions(6);
    stage.reaches(&stage.udp(SERVER, &of_b), &stage.b);
    stage.reaches(&stage.udp(SERVER, &of_a), &stage.a);
    // A port that the program has taken is taken for the daemon, too, and the other way round.
    let of_c = source(&stage.crosses(&stage.udp("192.168.1.12:40001", SERVER)));
    assert!(of_c != of_a && of_c != of_b);
}

#[test]
fn what_the_program_opened_ends_as_all_do_and_its_port_is_free_again() {
    let stage = known(&format!("{}\n[timeouts]\nudp = \"2s\"\nquarantine = \"0s\"\n", gateway::STANDARD));
    stage.while_stopped(|stage| stage.crosses(&stage.udp("192.168.1.10:40000", SERVER)));
    stage.has_sessions(4);
    stage
        .gateway
        .wait_until("UDP sessions end", Duration::from_secs(10), |gateway| gateway.sessions().len() == 1);
    stage.stopped(&stage.udp(SERVER, "203.0.113.1:40000"), &stage.a);
    stage.crosses(&stage.udp("192.168.1.11:30002", SERVER));
    let of_b = stage.while_stopped(|stage| source(&stage.crosses(&stage.udp("192.168.1.11:40000", SERVER))));
    assert_eq!(of_b, "203.0.113.1:40000");
}

#[test]
fn what_was_opened_while_no_daemon_was_there_lives_on() {
    let mut stage = known(gateway::STANDARD);
    stage.gateway.kill();
    let udp = source(&stage.crosses(&stage.udp("192.168.1.10:40000", SERVER)));
    let tcp = source(&stage.crosses(&stage.syn("192.168.1.10:40004", SERVER)));
    stage.gateway.restart();
    stage.has_sessions(5);
    stage.reaches(&stage.udp(SERVER, &udp), &stage.a);
    stage.reaches(&Packet::tcp(SERVER, tcp.as_str()).syn(7).ack(1), &stage.a);
    assert_ne!(source(&stage.crosses(&stage.udp("192.168.1.11:40000", SERVER))), udp);
    assert_eq!(source(&stage.crosses(&stage.udp("192.168.1.10:40000", OTHER))), udp);
}

#[test]
fn a_new_rule_holds_at_once() {
    let stage = known(gateway::STANDARD);
    let configuration = stage.gateway.configuration();
    let text = std::fs::read_to_string(&configuration).expect("read the configuration");
    let other = text.replace("to = \"masquerade\"", "to = \"masquerade\"\nports = \"50000-50099\"");
    assert_ne!(text, other);
    std::fs::write(&configuration, other).expect("write the configuration");
    stage.gateway.text(&["reload"]);
    stage.while_stopped(|stage| stage.stopped_quickly(&stage.udp("192.168.1.10:40000", SERVER)));
    let seen = source(&stage.crosses(&stage.udp("192.168.1.10:40002", SERVER)));
    assert!(seen.starts_with("203.0.113.1:500"), "{seen}");
    let seen = stage.while_stopped(|stage| source(&stage.crosses(&stage.udp("192.168.1.10:40003", SERVER))));
    assert!(seen.starts_with("203.0.113.1:500"), "{seen}");
}

#[test]
fn limits_are_the_daemons() {
    let limited = format!("{}\n[limits]\nsessions_per_source = 4\n", gateway::STANDARD);
    let stage = known(&limited);
    stage.while_stopped(|stage| stage.stopped_quickly(&stage.udp("192.168.1.10:40000", SERVER)));
    let off = known(&format!("{}\n[limits]\ndelegated = 0\n", gateway::STANDARD));
    off.while_stopped(|stage| stage.stopped_quickly(&stage.udp("192.168.1.10:40000", SERVER)));
    off.crosses(&off.udp("192.168.1.10:40001", SERVER));
}

#[test]
fn a_socket_of_the_gateway_keeps_its_port() {
    let stage = known(gateway::STANDARD);
    let _socket = stage.lab.gateway.within(|| std::net::UdpSocket::bind("203.0.113.1:40000").expect("bind"));
    stage.while_stopped(|stage| stage.stopped_quickly(&stage.udp("192.168.1.10:40000", SERVER)));
    assert_ne!(source(&stage.crosses(&stage.udp("192.168.1.10:40000", SERVER))), "203.0.113.1:40000");
}

/// LOC-03 and LOC-04 while so many sessions are opened that the program goes by the daemon's list of sockets.
#[test]
fn no_port_of_the_gateways_own_is_given_away_in_a_flood() {
    const ATTEMPTS: u16 = 30;
    const FLOOD: u16 = 1500;
    let stage = known(gateway::STANDARD);
    let bind = |port: u16| {
        stage.lab.gateway.within(|| std::net::UdpSocket::bind(("203.0.113.1", port)).expect("bind"))
    };
    let _services: Vec<_> = (0..ATTEMPTS).map(|number| bind(60_000 + number)).collect();
    let mut given = Vec::new();
    for number in 0..ATTEMPTS {
        for flow in 0..FLOOD {
            let inside = format!("192.168.1.10:{}", 1024 + number * FLOOD + flow);
            stage.a.send(&stage.udp(&inside, OTHER));
        }
        stage.s2.clear();
        // One that no list can have yet.
        let own = 50_000 + number;
        if given.contains(&format!("203.0.113.1:{own}")) {
            // To the same server: a client was first.
            continue;
        }
        let payload = format!("own {own}");
        let socket = bind(own);
        socket.send_to(payload.as_bytes(), SERVER).expect("send");
        stage.s1.expect_payload(&payload);
        for held in [own, 60_000 + number] {
            let mapped = source(&stage.crosses(&stage.udp(&format!("192.168.1.10:{held}"), SERVER)));
            assert_ne!(mapped, format!("203.0.113.1:{held}"));
            given.push(mapped);
        }
    }
}

/// TMU-08 of a session that the program opened, and of the next.
#[test]
fn a_port_that_rests_is_its_last_holders() {
    let stage = known(&format!("{}\n[timeouts]\nudp = \"2s\"\n", gateway::STANDARD));
    stage.while_stopped(|stage| stage.crosses(&stage.udp("192.168.1.10:40000", SERVER)));
    stage.has_sessions(4);
    stage
        .gateway
        .wait_until("UDP sessions end", Duration::from_secs(10), |gateway| gateway.sessions().len() == 1);
    stage.crosses(&stage.udp("192.168.1.11:30002", SERVER));
    let of_b = source(&stage.crosses(&stage.udp("192.168.1.11:40000", SERVER)));
    assert_ne!(of_b, "203.0.113.1:40000", "it rests");
    assert_eq!(source(&stage.crosses(&stage.udp("192.168.1.10:40000", SERVER))), "203.0.113.1:40000");
}

/// What the dead daemon never read is not taken for news of what its slots are lent for now.
#[test]
fn reports_to_a_daemon_that_died_are_not_the_next_ones() {
    let mut stage = known(gateway::STANDARD);
    stage.gateway.kill();
    for port in 40_000..40_030 {
        stage.crosses(&stage.udp(&format!("192.168.1.10:{port}"), SERVER));
    }
    // The next one's rules allow none of them, so that their slots are free.
    let configuration = stage.gateway.configuration();
    let text = std::fs::read_to_string(&configuration).expect("read the configuration");
    let other = text.replace("source = [\"192.168.0.0/16\"]", "source = [\"192.168.1.11\"]");
    assert_ne!(text, other);
    std::fs::write(&configuration, other).expect("write the configuration");
    stage.gateway.restart();
    assert_eq!(stage.gateway.sessions().len(), 0);
    stage.crosses(&stage.udp("192.168.1.11:30000", SERVER));
    seconds(0.1);
    for port in 50_000..50_040 {
        let seen = source(&stage.crosses(&stage.udp(&format!("192.168.1.11:{port}"), SERVER)));
        assert_eq!(seen, format!("203.0.113.1:{port}"));
    }
    stage.has_sessions(41);
    let sessions = stage.gateway.sessions();
    assert!(
        sessions
            .iter()
            .all(|session| session["inside"].as_str().is_some_and(|inside| inside.contains(".11:")))
    );
}

/// Whoever asks for ports that there are none of must not keep the daemon busy: most are refused where they come in. The
/// first port that is free again is given at once.
#[test]
fn a_flood_that_finds_no_port_is_refused_without_the_daemon() {
    const FLOOD: u16 = 3000;
    let rules =
        gateway::STANDARD.replace("to = \"masquerade\"", "to = \"masquerade\"\nports = \"20000-20009\"");
    let stage = known(&format!("{rules}\n[timeouts]\nquarantine = \"0s\"\n"));
    for number in 0..8 {
        stage.crosses(&stage.udp(&format!("192.168.1.10:{}", 31_000 + number), SERVER));
    }
    let refused = || stage.gateway.drops().get("ports_exhausted").copied().unwrap_or(0);
    stage.stopped_quickly(&stage.udp("192.168.1.10:32000", SERVER));
    assert_eq!(refused(), 1);
    stage.a.clear();
    stage.while_stopped(|stage| {
        for number in 0..FLOOD {
            stage.a.send(&stage.udp(&format!("192.168.1.10:{}", 40_000 + number), SERVER));
        }
        // Whoever has a port keeps it, and the others' lack of one is no hindrance to TCP.
        stage.crosses(&stage.udp("192.168.1.10:31000", SERVER));
        stage.crosses(&stage.syn("192.168.1.10:31000", SERVER));
    });
    let all = u64::from(FLOOD) + 1;
    stage.gateway.wait_until("all are counted", Duration::from_secs(20), |_| refused() == all);
    let told = stage.a.incoming(|seen| seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code) == (3, 13)));
    assert!(told.len() < usize::from(FLOOD) / 2, "{} of {FLOOD} were the daemon's", told.len());
    stage.gateway.text(&["session", "delete", "--inside", "192.168.1.10:31003"]);
    stage.crosses(&stage.udp("192.168.1.10:50001", SERVER));
    stage.stopped_quickly(&stage.udp("192.168.1.10:50002", SERVER));
}

/// The kernel tells the program of no MTU that a route merely has.
#[test]
fn a_session_by_a_route_with_an_mtu_is_the_daemons_to_open() {
    let stage = known(gateway::STANDARD);
    stage.lab.gateway.ip("route add 198.51.100.2 via 203.0.113.254 mtu 1000");
    let big = |port: u16, server: &str| {
        stage.udp(&format!("192.168.1.10:{port}"), server).payload(port.to_be_bytes().repeat(736)).df()
    };
    let is_told = |patience| {
        let icmp =
            |seen: &Decoded| seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code, icmp.seq) == (3, 4, 1000));
        stage.a.recv_matching(patience, icmp).is_some()
    };
    stage.gateway.wait_until("the route is known", Duration::from_secs(5), |_| {
        stage.send(&big(31_000, OTHER));
        is_told(Duration::from_millis(200))
    });
    // What ended the grants has; the next packet brings another.
    stage.crosses(&stage.udp("192.168.1.10:31001", SERVER));
    seconds(0.1);
    stage.while_stopped(|stage| {
        stage.crosses(&big(40_000, SERVER));
        stage.crosses(&stage.udp("192.168.1.10:40001", SERVER));
        stage.stopped_quickly(&big(40_002, OTHER));
        stage.stopped_quickly(&stage.udp("192.168.1.10:40003", OTHER));
        stage.stopped_quickly(&big(40_003, OTHER));
        stage.crosses(&stage.udp("192.168.1.10:40004", SERVER));
    });
    assert!(is_told(Duration::from_secs(2)), "the daemon tells of it once it goes on");
    // The flow that was opened for a small packet is no way around.
    stage.crosses(&stage.udp("192.168.1.10:40003", OTHER));
    stage.stopped_quickly(&big(40_003, OTHER));
    stage.crosses(&big(40_001, SERVER));
    // A route that goes gives all back.
    stage.lab.gateway.ip("route del 198.51.100.2");
    seconds(0.3);
    stage.crosses(&stage.udp("192.168.1.10:31002", SERVER));
    seconds(0.1);
    stage.while_stopped(|stage| stage.crosses(&big(40_005, OTHER)));
}
