//! TCP: resets that are believed or not, endpoints that are used again, and what an end leaves behind.

use std::time::{Duration, Instant};

use nat_tests::{
    Packet,
    packet::{
        protocol,
        tcp::{ACK, FIN, RST, SYN},
    },
};

use crate::stage::{CLIENT_SEQ, SERVER_SEQ, Stage, seconds, source};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:80";
const TIMERS: &str = "tcp_established = \"1h\"\ntcp_transitory = \"3s\"";

fn state(stage: &Stage) -> String {
    let sessions = stage.gateway.sessions();
    assert_eq!(sessions.len(), 1, "{sessions:?}");
    sessions[0]["state"].as_str().unwrap().to_owned()
}

#[test]
fn tcp_14_only_a_reset_that_its_receiver_believes_ends_a_session() {
    let stage = Stage::timeouts(TIMERS);
    let mapped = stage.connect(CLIENT, SERVER);
    // Each is sent on: its receiver judges it. Acknowledged are SERVER_SEQ + 1 and CLIENT_SEQ + 1.
    for seq in [0, SERVER_SEQ + 1_000_000] {
        stage.reaches(&Packet::tcp(SERVER, mapped.as_str()).seq(seq).flags(RST), &stage.a);
    }
    stage.crosses(&Packet::tcp(CLIENT, SERVER).seq(CLIENT_SEQ + 1_000_000).flags(RST));
    assert_eq!(state(&stage), "established");
    seconds(4.5);
    assert_eq!(state(&stage), "established");
    stage.reaches(&stage.data(SERVER, &mapped), &stage.a);
    stage.reaches(&Packet::tcp(SERVER, mapped.as_str()).seq(SERVER_SEQ + 1).flags(RST), &stage.a);
    assert_eq!(state(&stage), "reset");
    stage.forgets_within(Duration::from_secs(6));
}

#[test]
fn tcp_15_after_a_fin_an_inexact_reset_counts() {
    let stage = Stage::timeouts(TIMERS);
    let mapped = stage.connect(CLIENT, SERVER);
    stage.reaches(&stage.data(SERVER, &mapped).flags(FIN | ACK), &stage.a);
    stage.reaches(&Packet::tcp(SERVER, mapped.as_str()).seq(SERVER_SEQ + 200_000).flags(RST), &stage.a);
    assert_eq!(state(&stage), "reset");
    assert!(stage.gateway.drops().is_empty(), "{:?}", stage.gateway.drops());
    stage.forgets_within(Duration::from_secs(6));
}

#[test]
fn tcp_17_a_lonely_syn_after_the_end_establishes_nothing() {
    for by_client in [true, false] {
        let stage = Stage::timeouts(TIMERS);
        let mapped = stage.connect(CLIENT, SERVER);
        stage.crosses(&stage.data(CLIENT, SERVER).flags(FIN | ACK));
        stage.reaches(&stage.data(SERVER, &mapped).flags(FIN | ACK), &stage.a);
        stage.crosses(&Packet::tcp(CLIENT, SERVER).seq(1030).ack(5030));
        seconds(1.0);
        if by_client {
            assert_eq!(source(&stage.crosses(&Packet::tcp(CLIENT, SERVER).syn(900_000))), mapped);
        } else {
            stage.reaches(&Packet::tcp(SERVER, mapped.as_str()).syn(900_000), &stage.a);
        }
        let since = Instant::now();
        assert_eq!(state(&stage), "opening");
        stage.forgets_within(Duration::from_secs(6));
        assert!(since.elapsed() > Duration::from_secs(2), "it had its whole timer");
    }
}

/// A has forgotten a connection that S1 still has; so has the gateway, or not.
#[test]
fn tcp_18_and_19_a_syn_that_is_challenged_opens_in_the_end() {
    for gateway_knows in [false, true] {
        let stage = Stage::timeouts(TIMERS);
        if gateway_knows {
            stage.connect(CLIENT, SERVER);
        }
        let syn = Packet::tcp(CLIENT, SERVER).syn(900_000);
        let mapped = source(&stage.crosses(&syn));
        let challenge = Packet::tcp(SERVER, mapped.as_str()).seq(SERVER_SEQ + 1).ack(CLIENT_SEQ + 1);
        stage.reaches(&challenge, &stage.a);
        stage.crosses(&Packet::tcp(CLIENT, SERVER).seq(CLIENT_SEQ + 1).flags(RST));
        assert_eq!(source(&stage.crosses(&syn)), mapped);
        let answer = Packet::tcp(SERVER, mapped.as_str()).seq(70_000).ack(900_001).flags(SYN | ACK);
        stage.reaches(&answer, &stage.a);
        stage.crosses(&Packet::tcp(CLIENT, SERVER).seq(900_001).ack(70_001));
        assert_eq!(state(&stage), "established");
        seconds(4.0);
        stage.reaches(&Packet::tcp(SERVER, mapped.as_str()).seq(70_001).ack(900_001).payload("on"), &stage.a);
        assert!(stage.gateway.drops().is_empty(), "{:?}", stage.gateway.drops());
    }
}

#[test]
fn tcp_20_a_syn_to_a_mapping_that_is_over_meets_silence() {
    let lines = format!("filtering = \"endpoint-independent\"\n[timeouts]\n{TIMERS}");
    let stage = Stage::snat(&lines);
    let mapped = source(&stage.crosses(&stage.syn(CLIENT, SERVER)));
    stage.reaches(&stage.syn("198.51.100.2:7", &mapped), &stage.a);
    stage.forgets_within(Duration::from_secs(8));
    let late = stage.send(&stage.syn("198.51.100.2:8", &mapped));
    let answer = stage.s2.recv_matching(Duration::from_secs(6), |seen| {
        seen.ip.as_ref().is_some_and(|ip| ip.protocol != protocol::IGMP)
    });
    assert!(answer.is_none(), "{}", answer.unwrap().decoded);
    let seq = |seen: &nat_tests::Decoded| seen.tcp().map(|tcp| tcp.seq);
    stage.a.expect_none("the late SYN", |seen| seq(seen) == seq(&late));
    assert_eq!(stage.session_count(), 0);
}

#[test]
fn tcp_29_giving_a_session_up_is_silent_or_told_as_configured() {
    for told in [false, true] {
        for by_expiry in [false, true] {
            let stage = Stage::timeouts(&format!(
                "tcp_established = \"2s\"\ntcp_transitory = \"2s\"\ntcp_reset = {told}"
            ));
            let mapped = stage.connect(CLIENT, SERVER);
            stage.crosses(&stage.data(CLIENT, SERVER));
            if by_expiry {
                stage.forgets_within(Duration::from_secs(6));
            } else {
                stage.gateway.text(&["session", "delete", "--inside", "192.168.1.10"]);
            }
            let is_reset = |seen: &nat_tests::Decoded| seen.tcp().is_some_and(|tcp| tcp.flags & RST != 0);
            if !told {
                stage.a.expect_none("an RST", is_reset);
                stage.s1.expect_none("an RST", is_reset);
                continue;
            }
            // What each end waits for, as the other's last ACK said.
            let ends = [
                (&stage.a, SERVER, CLIENT, SERVER_SEQ + 1),
                (&stage.s1, mapped.as_str(), SERVER, CLIENT_SEQ + 1),
            ];
            for (tap, from, to, seq) in ends {
                let seen = tap.expect("an RST", is_reset);
                let ports = (source(&seen), seen.destination().unwrap().to_string());
                assert_eq!(ports, (from.to_owned(), to.to_owned()));
                assert_eq!(seen.tcp().unwrap().seq, seq, "{seen}");
                tap.expect_none("a second RST", is_reset);
            }
        }
    }
}
