//! TCP: every way to open, close and abort, and what the timers make of it (scaled).

use std::{net::TcpListener, time::Duration};

use nat_tests::{
    Decoded, Packet, checksum,
    packet::tcp::{ACK, FIN, PSH, RST, SYN, URG},
};

use crate::stage::{CLIENT_SEQ, SERVER_SEQ, Stage, public, seconds, source};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:80";
/// Long enough to tell apart on a busy machine, short enough to wait for.
const TIMERS: &str = "tcp_established = \"1h\"\ntcp_transitory = \"3s\"";

/// MSS, SACK permitted, timestamps, window scale, and a fast-open cookie.
const OPTIONS: [u8; 30] =
    [2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7, 34, 10, 1, 2, 3, 4, 5, 6, 7, 8];

#[test]
fn tcp_01_options_pass_as_they_are() {
    let stage = Stage::standard();
    // `crosses` compares all but the ports.
    let seen = stage.crosses(&stage.syn(CLIENT, SERVER).tcp_options(OPTIONS));
    let answer = Packet::tcp(SERVER, source(&seen).as_str()).seq(77).ack(1).flags(SYN | ACK);
    stage.reaches(&answer.tcp_options(OPTIONS), &stage.a);
}

#[test]
fn tcp_02_options_pass_inward_as_they_are() {
    let forward = "[[forward]]\nexternal = \"203.0.113.1:8080\"\ninternal = \"192.168.1.11:80\"\n";
    let stage = Stage::snat(&format!("filtering = \"endpoint-independent\"\n{forward}"));
    let mapped = source(&stage.crosses(&stage.syn(CLIENT, SERVER)));
    // A stranger to an open mapping, and one to a forward.
    for (public, client, tap) in
        [(mapped.as_str(), CLIENT, &stage.a), ("203.0.113.1:8080", "192.168.1.11:80", &stage.b)]
    {
        let remote = "198.51.100.2:5555";
        stage.reaches(&Packet::tcp(remote, public).syn(SERVER_SEQ).tcp_options(OPTIONS), tap);
        let answer = Packet::tcp(client, remote).seq(CLIENT_SEQ).ack(SERVER_SEQ + 1).flags(SYN | ACK);
        assert_eq!(source(&stage.crosses(&answer.tcp_options(OPTIONS))), public);
        stage.reaches(&Packet::tcp(remote, public).seq(SERVER_SEQ + 1).ack(CLIENT_SEQ + 1), tap);
        stage.reaches(&stage.data(remote, public), tap);
        stage.crosses(&stage.data(client, remote));
    }
}

#[test]
fn tcp_28_sack_and_timestamps_pass_untouched() {
    let stage = Stage::standard();
    // The port is taken: sequence numbers could be mistaken for what has to be rewritten.
    stage.connect("192.168.1.11:40000", SERVER);
    let mapped = stage.connect(CLIENT, SERVER);
    let mut options = vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 1, 1, 5, 18];
    for edge in [SERVER_SEQ + 101, SERVER_SEQ + 201, u32::MAX - 5, 7] {
        options.extend(edge.to_be_bytes());
    }
    for _ in 0..3 {
        // `crosses` and `reaches` compare options bit by bit.
        stage.crosses(&stage.data(CLIENT, SERVER).tcp_options(&options));
        stage.reaches(&stage.data(SERVER, &mapped).tcp_options(&options), &stage.a);
        options[7] += 1;
    }
}

#[test]
fn tcp_03_both_ends_open_at_once() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&Packet::tcp(CLIENT, SERVER).syn(1000)));
    stage.reaches(&Packet::tcp(SERVER, mapped.as_str()).syn(5000), &stage.a);
    stage.crosses(&Packet::tcp(CLIENT, SERVER).seq(1000).ack(5001).flags(SYN | ACK));
    stage.reaches(&Packet::tcp(SERVER, mapped.as_str()).seq(5000).ack(1001).flags(SYN | ACK), &stage.a);
    stage.crosses(&stage.data(CLIENT, SERVER));
    stage.reaches(&stage.data(SERVER, &mapped), &stage.a);
}

#[test]
fn tcp_04_a_syn_that_came_too_early_spoils_nothing() {
    let stage = Stage::standard();
    let early = Packet::tcp(SERVER, public(40000).as_str()).syn(5000);
    stage.stopped(&early, &stage.a);
    seconds(1.0);
    assert_eq!(source(&stage.crosses(&Packet::tcp(CLIENT, SERVER).syn(1000))), public(40000));
    stage.reaches(&early, &stage.a);
    stage.s1.expect_none("an answer to the early SYN", |seen| {
        seen.tcp().is_some_and(|tcp| tcp.flags & RST != 0) || seen.icmp().is_some()
    });
}

#[test]
fn tcp_05_an_unsolicited_syn_meets_silence() {
    let stage = Stage::standard();
    stage.s1.send(&stage.syn(SERVER, &public(40000)));
    let answer = stage.s1.recv_matching(Duration::from_secs(6), |seen| {
        seen.ip.as_ref().is_some_and(|ip| ip.protocol != nat_tests::packet::protocol::IGMP)
    });
    assert!(answer.is_none(), "{}", answer.unwrap().decoded);
    assert_eq!(stage.session_count(), 0);
    assert_eq!(source(&stage.crosses(&stage.syn(CLIENT, SERVER))), public(40000));
}

#[test]
fn tcp_06_the_gateways_own_listener_answers() {
    let stage = Stage::standard();
    let listener = stage.lab.gateway.within(|| TcpListener::bind("203.0.113.1:8022")).unwrap();
    stage.s1.send(&stage.syn("198.51.100.1:9", "203.0.113.1:8022"));
    stage.s1.expect("SYN-ACK", |seen| seen.tcp().is_some_and(|tcp| tcp.flags == SYN | ACK));
    drop(listener);
    stage.carries_the_next();
}

#[test]
fn tcp_08_and_09_only_a_whole_handshake_earns_the_long_timer() {
    let stage = Stage::timeouts(TIMERS);
    stage.crosses(&stage.syn(CLIENT, SERVER));
    let mapped = source(&stage.crosses(&Packet::tcp("192.168.1.11:5", SERVER).syn(1000)));
    stage.reaches(&Packet::tcp(SERVER, mapped.as_str()).seq(5000).ack(1001).flags(SYN | ACK), &stage.b);
    let established = stage.connect("192.168.1.12:6", SERVER);
    seconds(5.0);
    assert_eq!(stage.session_count(), 1, "{:?}", stage.gateway.sessions());
    stage.reaches(&stage.data(SERVER, &established), &stage.c);
}

#[test]
fn tcp_08_an_answer_in_time_passes_and_each_end_of_a_connection_has_its_timer() {
    let stage = Stage::timeouts("tcp_opening = \"4s\"\ntcp_closing = \"1s\"");
    let closed = stage.connect("192.168.1.12:6", SERVER);
    stage.crosses(&stage.data("192.168.1.12:6", SERVER).flags(FIN | ACK));
    stage.reaches(&stage.data(SERVER, &closed).flags(FIN | ACK), &stage.c);
    stage.crosses(&stage.syn("192.168.1.10:40001", SERVER));
    let mapped = source(&stage.crosses(&Packet::tcp(CLIENT, SERVER).syn(1000)));
    seconds(2.5);
    assert_eq!(stage.session_count(), 2, "only what is closed is gone: {:?}", stage.gateway.sessions());
    seconds(1.0);
    stage.reaches(&Packet::tcp(SERVER, mapped.as_str()).seq(5000).ack(1001).flags(SYN | ACK), &stage.a);
    stage.crosses(&Packet::tcp(CLIENT, SERVER).seq(1001).ack(5001));
    // The SYN that nobody answered: gone a tenth after its time, and what the clock's ticks add.
    stage.gateway.wait_until("one is left", Duration::from_secs(2), |gateway| gateway.sessions().len() == 1);
    stage.reaches(&stage.data(SERVER, &mapped), &stage.a);
}

#[test]
fn tcp_10_a_half_closed_connection_lives_on() {
    let stage = Stage::timeouts(TIMERS);
    let mapped = stage.connect(CLIENT, SERVER);
    stage.crosses(&stage.data(CLIENT, SERVER).flags(FIN | ACK));
    stage.reaches(&stage.data(SERVER, &mapped), &stage.a);
    seconds(5.0);
    stage.reaches(&stage.data(SERVER, &mapped), &stage.a);
}

#[test]
fn tcp_11_closed_by_both_it_goes_after_the_short_timer() {
    for order in ["the client first", "the server first", "crossing"] {
        let stage = Stage::timeouts(TIMERS);
        let mapped = stage.connect(CLIENT, SERVER);
        let from_client = stage.data(CLIENT, SERVER).flags(FIN | ACK);
        let from_server = stage.data(SERVER, &mapped).flags(FIN | ACK);
        match order {
            "the client first" => {
                stage.crosses(&from_client);
                stage.reaches(&from_server, &stage.a);
            }
            "the server first" => {
                stage.reaches(&from_server, &stage.a);
                stage.crosses(&from_client);
            }
            _ => {
                let sent = [stage.send(&from_client), stage.send(&from_server)];
                stage.s1.expect_payload(sent[0].payload());
                stage.a.expect_payload(sent[1].payload());
            }
        }
        // The last ACK and a FIN sent again still pass.
        let last = Packet::tcp(CLIENT, SERVER).seq(1030).ack(5030);
        stage.crosses(&last);
        stage.reaches(&from_server, &stage.a);
        stage.forgets_within(Duration::from_secs(6));
        stage.stopped(&stage.data(SERVER, &mapped), &stage.a);
        // An ACK that comes too late is no reason to remember anything.
        stage.stopped(&last, &stage.s1);
        assert_eq!(stage.session_count(), 0, "{order}");
    }
}

#[test]
fn tcp_12_a_reset_passes_and_ends_it_after_a_while() {
    for by_server in [true, false] {
        let stage = Stage::timeouts(TIMERS);
        let mapped = stage.connect(CLIENT, SERVER);
        if by_server {
            stage.reaches(&Packet::tcp(SERVER, mapped.as_str()).seq(5001).flags(RST), &stage.a);
        } else {
            stage.crosses(&Packet::tcp(CLIENT, SERVER).seq(1001).flags(RST));
        }
        stage.reaches(&Packet::tcp(SERVER, mapped.as_str()).seq(5001).ack(1001), &stage.a);
        stage.gateway.wait_until("gone or established again", Duration::from_secs(6), |gateway| {
            // Data after a reset takes it back (TCP-13), a bare ACK need not.
            let sessions = gateway.sessions();
            sessions.is_empty() || sessions[0]["state"] == "established"
        });
    }
}

#[test]
fn tcp_12_after_a_reset_and_silence_nothing_is_left() {
    let stage = Stage::timeouts(TIMERS);
    stage.connect(CLIENT, SERVER);
    stage.crosses(&Packet::tcp(CLIENT, SERVER).seq(1001).flags(RST));
    assert_eq!(stage.session_count(), 1);
    stage.forgets_within(Duration::from_secs(6));
}

#[test]
fn tcp_13_data_after_a_reset_proves_it_false() {
    let stage = Stage::timeouts(TIMERS);
    let mapped = stage.connect(CLIENT, SERVER);
    stage.reaches(&Packet::tcp(SERVER, mapped.as_str()).seq(5001).flags(RST), &stage.a);
    stage.crosses(&Packet::tcp(CLIENT, SERVER).seq(1001).ack(5001).flags(PSH | ACK).payload("still here"));
    stage.reaches(&Packet::tcp(SERVER, mapped.as_str()).seq(5001).ack(1011).payload("so am i"), &stage.a);
    seconds(5.0);
    stage.reaches(&stage.data(SERVER, &mapped), &stage.a);
}

#[test]
fn tcp_16_a_new_syn_takes_a_closed_connection_over() {
    let stage = Stage::standard();
    let mapped = stage.connect(CLIENT, SERVER);
    stage.crosses(&stage.data(CLIENT, SERVER).flags(FIN | ACK));
    stage.reaches(&stage.data(SERVER, &mapped).flags(FIN | ACK), &stage.a);
    stage.crosses(&Packet::tcp(CLIENT, SERVER).seq(1030).ack(5030));
    assert_eq!(stage.connect(CLIENT, SERVER), mapped);
    let sessions = stage.gateway.sessions();
    let expires_in = sessions[0]["expires_in"].as_f64().unwrap();
    assert!(expires_in > 7000.0, "a new connection has the long timer: {sessions:?}");
}

#[test]
fn tcp_21_a_connection_from_before_is_picked_up_with_its_port() {
    let stage = Stage::standard();
    assert_eq!(source(&stage.crosses(&stage.data(CLIENT, SERVER))), public(40000));
    stage.reaches(&stage.data(SERVER, &public(40000)), &stage.a);
}

#[test]
fn tcp_22_scans_leave_nothing_and_reach_nobody() {
    let stage = Stage::standard();
    for flags in [SYN | ACK, ACK, FIN, FIN | ACK, RST, RST | ACK, 0, FIN | PSH | URG] {
        stage.attacker.send(&stage.syn("198.51.100.66:9", &public(40000)).flags(flags));
    }
    stage.lan_is_silent();
    assert_eq!(stage.session_count(), 0);
    assert_eq!(source(&stage.crosses(&stage.syn(CLIENT, SERVER))), public(40000));
}

#[test]
fn tcp_23_unusual_segments_pass_unchanged() {
    let stage = Stage::standard();
    let mapped = stage.connect(CLIENT, SERVER);
    for (flags, window) in [(ACK, 0), (ACK, 0xffff), (0xc0 | ACK, 1), (0x80 | PSH | ACK, 7)] {
        stage.crosses(&stage.data(CLIENT, SERVER).flags(flags).window(window));
        stage.reaches(&stage.data(SERVER, &mapped).flags(flags).window(window), &stage.a);
    }
    // Reserved bits, all of them, and an urgent pointer; both are covered by the checksum.
    for (from, to, sender, receiver) in
        [(CLIENT, SERVER, &stage.a, &stage.s1), (SERVER, mapped.as_str(), &stage.s1, &stage.a)]
    {
        let host = if from == CLIENT { &stage.lab.a } else { &stage.lab.s1 };
        let packet = stage.data(from, to).flags(URG | ACK).between(host.mac, host.next_hop);
        let sent = Decoded::parse(&packet.build());
        let mut segment = sent.ip().body.clone();
        segment[12] |= 0x0e;
        segment[16..18].fill(0);
        segment[18..20].copy_from_slice(&3_u16.to_be_bytes());
        let pseudo = checksum::pseudo_header(sent.ip().source, sent.ip().destination, 6, segment.len());
        let sum = checksum::internet(&[&pseudo, &segment]);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        let frame = [&packet.build()[..34], &segment].concat();
        sender.send_frame(&frame);
        let seen = receiver.expect_payload(sent.payload());
        // All but ports and checksum.
        assert_eq!((&seen.ip().body[4..16], &seen.ip().body[18..]), (&segment[4..16], &segment[18..]));
        seen.checksums_valid().unwrap();
    }
    stage.crosses(&stage.syn("192.168.1.10:40001", SERVER).payload([7; 1000]));
}

#[test]
fn tcp_23_a_keepalive_refreshes() {
    let stage = Stage::timeouts("tcp_established = \"3s\"\ntcp_transitory = \"3s\"");
    let mapped = stage.connect(CLIENT, SERVER);
    for _ in 0..5 {
        seconds(1.0);
        stage.crosses(&Packet::tcp(CLIENT, SERVER).seq(CLIENT_SEQ).ack(SERVER_SEQ + 1));
    }
    stage.reaches(&stage.data(SERVER, &mapped), &stage.a);
}

#[test]
fn tcp_07_an_idle_connection_lives_its_time_and_no_longer() {
    let stage = Stage::timeouts("tcp_established = \"5s\"\ntcp_transitory = \"1s\"");
    let mapped = stage.connect(CLIENT, SERVER);
    seconds(4.0);
    stage.crosses(&stage.data(CLIENT, SERVER));
    seconds(4.0);
    stage.reaches(&stage.data(SERVER, &mapped), &stage.a);
    stage.forgets_within(Duration::from_secs(8));
    stage.stopped(&stage.data(SERVER, &mapped), &stage.a);
}

#[test]
fn tcp_07_the_default_is_two_hours_and_four_minutes() {
    let stage = Stage::standard();
    stage.connect(CLIENT, SERVER);
    let sessions = stage.gateway.sessions();
    let expires_in = sessions[0]["expires_in"].as_f64().unwrap();
    assert!((7430.0..=7440.0).contains(&expires_in), "{sessions:?}");
}

/// behaviour ICE-13, too: an error is delivered, and ends nothing.
#[test]
fn tcp_24_errors_end_no_session() {
    let stage = Stage::standard();
    let public = stage.connect("192.168.1.10:40000", "198.51.100.1:80");
    let quoted = Packet::tcp(public.as_str(), "198.51.100.1:80").seq(CLIENT_SEQ + 1).ack(SERVER_SEQ + 1).ip();
    // From the server, and from a router on the way; a source quench need not be delivered.
    for (tap, reporter) in [(&stage.s1, "198.51.100.1"), (&stage.wan, "203.0.113.254")] {
        for (kind, code) in (0..=15).map(|code| (3, code)).chain([(11, 0), (11, 1), (12, 0), (4, 0)]) {
            tap.send(&Packet::icmp_error(reporter, "203.0.113.1", kind, code, &quoted));
            if kind != 4 {
                let error = stage.a.expect(&format!("error {kind}/{code}"), |seen| {
                    seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code) == (kind, code))
                });
                assert_eq!(error.ip().source.to_string(), reporter);
            }
            stage.reaches(&stage.data("198.51.100.1:80", &public), &stage.a);
        }
    }
    stage.crosses(&stage.data("192.168.1.10:40000", "198.51.100.1:80"));
    let sessions = stage.gateway.sessions();
    assert_eq!((sessions.len(), &sessions[0]["state"]), (1, &"established".into()), "{sessions:?}");
}
