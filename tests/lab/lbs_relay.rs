//! Virtual servers whose answers go past the gateway: direct routing and tunnel.

use std::time::Duration;

use nat_tests::{
    Decoded, Lab, Packet, Tap,
    decode::{Ip, reassemble},
    gateway,
    lab::Builder,
    packet::tcp::{ACK, FIN, RST, SYN},
    wire::Direction,
};

use crate::{
    lbs::{V, destination, listed, service},
    stage::{CLIENT_SEQ, SERVER_SEQ, Stage, seconds, source},
};

const CLIENT: &str = "198.51.100.1:5555";
const DIRECT: &str = "method = \"direct-routing\"";
const TUNNEL: &str = "method = \"tunnel\"";
const TIMEOUTS: &str =
    "[timeouts]\ntcp_opening = \"2s\"\ntcp_closing = \"2s\"\ntcp_established = \"60s\"\nudp = \"2s\"\n";

/// A stage with such a service; with redirects, its wires take frames from XDP, else by the stack.
fn stage(builder: Builder, redirects: bool, method: &str, server: &str) -> Stage {
    let stage = Stage::build(builder, gateway::STANDARD);
    if redirects {
        stage.lab.gro_on();
    }
    stage.gateway.configure(&format!("{}{}{TIMEOUTS}", gateway::STANDARD, service(method, &[server])));
    stage.gateway.text(&["reload"]);
    stage
}

/// An IP packet's bytes.
fn bytes(ip: &Ip) -> Vec<u8> {
    [ip.header.clone(), ip.body.clone()].concat()
}

/// Sends a packet from the client; as it went to the gateway.
fn offered(stage: &Stage, packet: &Packet) -> Vec<u8> {
    let sent = stage.s1.send(packet);
    let at_gateway = |frame: &nat_tests::wire::Captured| {
        let ip = frame.decoded.ip.as_ref()?;
        let same = ip.id == sent.ip().id && ip.body == sent.ip().body;
        (frame.direction == Direction::Outgoing && same).then(|| bytes(ip))
    };
    let what = format!("{sent} at the gateway");
    stage.gateway.wait_until(&what, Duration::from_secs(3), |_| {
        stage.wan.drain();
        stage.wan.captured().iter().any(|frame| at_gateway(frame).is_some())
    });
    stage.wan.captured().iter().find_map(at_gateway).expect(&what)
}

/// The next packet in a tunnel that arrives at a tap: the outer, put together, and the inner's bytes.
fn unpacked(tap: &Tap, what: &str) -> (Ip, Vec<u8>) {
    let mut pieces: Vec<Decoded> = Vec::new();
    loop {
        let piece = tap.expect(what, |seen| seen.ip.as_ref().is_some_and(|ip| ip.protocol == 4));
        assert_eq!(piece.checksums_valid(), Ok(()), "{what}");
        pieces.push(piece);
        let last = pieces.last().expect("one").ip().clone();
        if !last.is_fragment() {
            return (last.clone(), last.body);
        }
        if let Some(whole) = reassemble(&pieces) {
            return (whole.clone(), whole.body);
        }
    }
}

/// All that a client sends on a connection whose answers it gets by another wire.
fn conversation() -> Vec<Packet> {
    let segment = |flags: u8, id: u16| {
        Packet::tcp(CLIENT, V).seq(CLIENT_SEQ + 1).ack(SERVER_SEQ + 1).flags(flags).id(id)
    };
    vec![
        Packet::tcp(CLIENT, V).syn(CLIENT_SEQ).id(1).tos(0xb8),
        segment(ACK, 2),
        segment(ACK, 3).payload("a question").ttl(3),
        segment(ACK, 4).payload("with DF").df(),
        segment(FIN | ACK, 5),
        segment(RST, 6),
    ]
}

#[test]
fn lbs_15_and_16_and_s003_06_to_07_relayed_packets_stay_as_they_are() {
    for redirects in [false, true] {
        let stage = stage(Lab::builder(), redirects, DIRECT, "192.168.1.10:80");
        for packet in conversation() {
            let sent = offered(&stage, &packet);
            let arrived = stage.a.recv_matching(Duration::from_secs(3), |seen| {
                seen.ip.as_ref().is_some_and(|ip| bytes(ip) == sent)
            });
            let frame =
                arrived.unwrap_or_else(|| panic!("{packet:?} with nothing changed, {redirects}")).frame;
            assert_eq!((&frame[..6], &frame[6..12]), (&stage.lab.a.mac[..], &stage.a.next_hop()[..]));
        }
        one_direction(&stage, "192.168.1.10:80", conversation().len());
        for (server, tap) in [("198.51.100.2:80", "s2"), ("192.168.1.10:80", "a")] {
            let configuration = format!("{}{}{TIMEOUTS}", gateway::STANDARD, service(TUNNEL, &[server]));
            stage.gateway.configure(&configuration);
            stage.gateway.text(&["session", "flush"]);
            stage.gateway.text(&["reload"]);
            let (tap, own) = if tap == "a" { (&stage.a, "192.168.1.1") } else { (&stage.s2, "203.0.113.1") };
            for packet in conversation() {
                let sent = offered(&stage, &packet);
                let (outer, inner) = unpacked(tap, &format!("{packet:?} in a tunnel, {redirects}"));
                assert_eq!(inner, sent);
                assert_eq!(outer.source.to_string(), own);
                assert_eq!(format!("{}:80", outer.destination), server);
                let sent = Decoded::parse(&packet.build());
                assert_eq!((outer.df, outer.tos), (sent.ip().df, sent.ip().tos));
                // The provider's router is on the way to s2.
                assert_eq!(outer.ttl, if own == "192.168.1.1" { 64 } else { 63 });
            }
            one_direction(&stage, server, conversation().len());
            stage.wan.clear();
        }
    }
}

/// The table counts what went to the server, and nothing back; nothing was answered by the gateway.
fn one_direction(stage: &Stage, server: &str, packets: usize) {
    let row = &listed(stage)[server];
    assert_eq!(row["packets_in"].as_u64(), Some(packets as u64), "{row}");
    assert_eq!((row["packets_out"].as_u64(), row["bytes_out"].as_u64()), (Some(0), Some(0)));
    let sent: usize = conversation().iter().map(|packet| packet.ip().len()).sum();
    assert_eq!(row["bytes_in"].as_u64(), Some(sent as u64));
    let sessions = stage.gateway.sessions();
    assert_eq!((sessions.len(), sessions[0]["inside"].as_str()), (1, Some(server)));
    assert_eq!(sessions[0]["packets_out"].as_u64(), Some(0));
    stage.s1.expect_silence();
}

#[test]
fn lbs_15_tunnels_and_sizes() {
    for redirects in [false, true] {
        let stage = stage(Lab::builder(), redirects, TUNNEL, "198.51.100.2:80");
        let syn = offered(&stage, &Packet::tcp(CLIENT, V).syn(CLIENT_SEQ).id(9));
        assert_eq!(unpacked(&stage.s2, "the SYN").1, syn);
        let segment = |length: usize, id: u16| {
            let payload: Vec<u8> = (0..length).map(|at| at.to_le_bytes()[0]).collect();
            Packet::tcp(CLIENT, V).seq(CLIENT_SEQ + 1).ack(SERVER_SEQ + 1).payload(payload).id(id)
        };
        // What just fits, and one byte more.
        let fits = offered(&stage, &segment(1440, 10).df());
        assert_eq!(unpacked(&stage.s2, "1480 bytes in 1500").1, fits);
        let sent = stage.s1.send(&segment(1441, 11).df());
        let told = stage
            .s1
            .expect("ICMP 3/4", |seen| seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code) == (3, 4)));
        let icmp = told.icmp().unwrap();
        assert_eq!(told.ip().source.to_string(), "203.0.113.1");
        assert_eq!(icmp.seq, 1480);
        let quoted = icmp.quoted.clone().unwrap();
        assert_eq!((Some(quoted.source()), Some(quoted.destination())), (sent.source(), sent.destination()));
        // What may be cut is: its outside.
        let large = offered(&stage, &segment(1460, 12));
        let (outer, inner) = unpacked(&stage.s2, "1500 bytes in two");
        assert_eq!((inner, outer.df), (large, false));
        // Fragments of the client's own, each in a packet of its own; the last is early.
        stage.s1.send_fragments(&segment(3000, 13), 1480, &[2, 0, 1]);
        let mut inside: Vec<Decoded> = Vec::new();
        for _ in 0..3 {
            let (_, inner) = unpacked(&stage.s2, "a fragment in a tunnel");
            let ethernet = [&[0u8; 12][..], &[8, 0], &inner].concat();
            inside.push(Decoded::parse(&ethernet));
        }
        let whole = reassemble(&inside).expect("all of the datagram");
        assert_eq!((whole.payload().len(), whole.checksums_valid()), (3000, Ok(())));
        assert_eq!(whole.destination().to_string(), V);
    }
}

#[test]
fn lbs_15_timers_do_not_wait_for_answers() {
    for method in [DIRECT, TUNNEL] {
        let mut stage = stage(Lab::builder(), false, method, "192.168.1.10:80");
        let state = |stage: &Stage| {
            stage.gateway.sessions().first().map(|row| row["state"].as_str().unwrap_or_default().to_owned())
        };
        // A SYN that nothing follows is soon forgotten.
        offered(&stage, &Packet::tcp(CLIENT, V).syn(CLIENT_SEQ).id(1));
        assert_eq!(state(&stage).as_deref(), Some("opening"));
        stage.forgets_within(Duration::from_secs(6));
        let packets = conversation();
        for packet in &packets[..2] {
            offered(&stage, packet);
        }
        assert_eq!(state(&stage).as_deref(), Some("established"));
        seconds(3.0);
        // Also after a new daemon has taken over.
        stage.gateway.kill();
        stage.gateway.restart();
        assert_eq!(state(&stage).as_deref(), Some("established"));
        assert_eq!(listed(&stage)["192.168.1.10:80"]["active"], 1);
        stage.a.drain();
        stage.a.clear();
        let sent = offered(&stage, &packets[2]);
        let seen = stage.a.expect("data after the restart", |seen| seen.ip.is_some());
        let carried = if method == DIRECT { bytes(seen.ip()) } else { seen.ip().body.clone() };
        assert_eq!(carried, sent);
        // A client that closes is forgotten once it has nothing to say any more.
        offered(&stage, &packets[4]);
        assert_eq!(state(&stage).as_deref(), Some("closing"));
        stage.forgets_within(Duration::from_secs(6));
        // Drained, taken out: the client learns it.
        for packet in &packets[..2] {
            offered(&stage, packet);
        }
        stage.gateway.text(&["service", "remove", "web", "192.168.1.10:80"]);
        let reset = stage.s1.expect("an RST", |seen| seen.tcp().is_some_and(|tcp| tcp.flags & RST != 0));
        assert_eq!((source(&reset), destination(&reset)), (V.to_owned(), CLIENT.to_owned()));
        assert_eq!(reset.tcp().unwrap().seq, SERVER_SEQ + 1);
        assert_eq!(stage.session_count(), 0);
    }
}

#[test]
fn lbs_15_answers_that_come_by_and_errors_about_those_that_do_not() {
    for method in [DIRECT, TUNNEL] {
        let stage = stage(Lab::builder(), false, method, "192.168.1.10:80");
        let carried = |seen: &Decoded| {
            if method == DIRECT { bytes(seen.ip()) } else { seen.ip().body.clone() }
        };
        offered(&stage, &Packet::tcp(CLIENT, V).syn(CLIENT_SEQ).id(1));
        stage.a.expect("the SYN", |seen| seen.ip.is_some());
        // A server whose default route leads here, too.
        let answer = Packet::tcp(V, CLIENT).syn(SERVER_SEQ).ack(CLIENT_SEQ + 1);
        stage.a.send(&answer);
        let seen = stage.s1.expect("the answer", |seen| seen.tcp().is_some_and(|tcp| tcp.flags == SYN | ACK));
        assert_eq!((source(&seen), seen.ip().ttl), (V.to_owned(), 62));
        // An error about an answer is for its server.
        let error = Packet::icmp_error("198.51.100.1", "203.0.113.1", 3, 4, &answer.ip()).rest(0, 1280);
        let sent = offered(&stage, &error);
        let seen = stage.a.expect("the error", |seen| seen.ip.as_ref().is_some_and(|ip| ip.protocol != 6));
        assert_eq!(carried(&seen), sent);
    }
}

#[test]
fn lbs_15_a_server_without_the_address_makes_no_loop() {
    let stage = stage(Lab::builder(), false, DIRECT, "192.168.1.10:80");
    // From a client on the server's link, and as such a server would send it back: to its default route.
    let syn = Packet::tcp("192.168.1.11:4000", V).syn(1);
    stage.b.send(&syn);
    let seen = stage.a.expect("the SYN", |seen| seen.tcp().is_some());
    assert_eq!(seen.ip().ttl, 64);
    stage.a.send(&syn.clone().ttl(63));
    stage.a.expect_none("the same once more", |seen| seen.tcp().is_some());
    assert_eq!(stage.gateway.drops()["loop"], 1);
    // A server behind a router cannot be reached so, and that is said.
    stage.gateway.configure(&format!("{}{}", gateway::STANDARD, service(DIRECT, &["198.51.100.2:80"])));
    let told = stage.gateway.output(&["reload"]);
    let told = String::from_utf8_lossy(&[told.stdout, told.stderr].concat()).into_owned();
    assert!(told.contains("198.51.100.2:80 is behind the router 203.0.113.254"), "{told}");
    stage.s1.send(&Packet::tcp(CLIENT, V).syn(5));
    stage.s1.expect("ICMP 3/1", |seen| seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code) == (3, 1)));
}
