//! Hairpinning: inside hosts that reach each other by their public addresses.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use nat_tests::{
    Decoded, Lab, Packet,
    decode::{Ip, reassemble},
    gateway,
};

use crate::pfw::forwards;
use crate::stage::{Stage, port, public, seconds, source};

/// a is P2, b is P3, to the bone.
const STATICS: &str = r#"
[[static]]
external = "203.0.113.2"
internal = "192.168.1.10"

[[static]]
external = "203.0.113.3"
internal = "192.168.1.11"
"#;

fn statics() -> Stage {
    Stage::with(&format!("{}{STATICS}", gateway::STANDARD))
}

#[test]
fn hpn_01_inside_hosts_meet_at_their_public_addresses() {
    let stage = Stage::snat("filtering = \"endpoint-independent\"");
    let of_b = source(&stage.crosses(&stage.udp("192.168.1.11:5000", "198.51.100.1:1000")));
    let at_b = stage.reaches(&stage.udp("192.168.1.10:40000", &of_b), &stage.b);
    assert_eq!(at_b.ip().source.to_string(), "203.0.113.1", "b sees a's public address");
    assert_eq!(at_b.destination().unwrap().to_string(), "192.168.1.11:5000");
    let answer = stage.reaches(&stage.udp("192.168.1.11:5000", &source(&at_b)), &stage.a);
    assert_eq!(source(&answer), of_b);
}

#[test]
fn hpn_02_a_hairpinned_connection_carries_ten_mebibytes_and_ends() {
    let stage = Stage::snat("filtering = \"endpoint-independent\"");
    // Where b listens is mapped by a packet that b's kernel knows nothing of; the kernels do the rest.
    let of_b = source(&stage.crosses(&stage.syn("192.168.1.11:5000", "198.51.100.1:1000")));
    for host in [&stage.lab.a, &stage.lab.b] {
        host.nft("delete table ip mute");
    }
    let listener = stage.lab.b.within(|| TcpListener::bind("192.168.1.11:5000")).expect("listen on b");
    let sent: Vec<u8> = (0..10_u32 << 20).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let received = thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let (mut stream, remote) = listener.accept().expect("accept on b");
            assert_eq!(remote.ip().to_string(), "203.0.113.1", "b sees a's public address");
            let mut received = Vec::new();
            // Ends with a's FIN.
            stream.read_to_end(&mut received).expect("receive on b");
            stream.write_all(b"thanks").expect("answer from b");
            received
        });
        let mut stream = stage.lab.a.within(|| TcpStream::connect(&of_b)).expect("connect from a");
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(&sent).expect("send from a");
        stream.shutdown(Shutdown::Write).expect("FIN from a");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("FIN from b");
        assert_eq!(answer, b"thanks");
        receiver.join().expect("b's side")
    });
    assert!(received == sent, "{} of {} bytes, or others", received.len(), sent.len());
    let private =
        stage.b.incoming(|seen| seen.ip.as_ref().is_some_and(|ip| ip.source == stage.lab.a.address));
    assert_eq!(private.len(), 0, "never a's private address");
    // Checksums on veth are left to the receiver: the invariants judge what is crafted.
    stage.expect_bad_packets();
}

#[test]
fn hpn_07_a_host_reaches_itself() {
    for filtering in ["address-dependent", "endpoint-independent"] {
        let stage = Stage::snat(&format!("filtering = \"{filtering}\""));
        let own = source(&stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.1:1000")));
        for _ in 0..3 {
            let seen = stage.reaches(&stage.udp("192.168.1.10:40000", &own), &stage.a);
            assert_eq!(source(&seen), own);
        }
        stage.a.expect_silence();
    }
}

#[test]
fn hpn_09_filtering_holds_inside_too() {
    let stage = Stage::standard();
    let of_b = source(&stage.crosses(&stage.udp("192.168.1.11:5000", "198.51.100.1:1000")));
    let of_a = source(&stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.1:1000")));
    stage.stopped(&stage.udp("192.168.1.10:40000", &of_b), &stage.b);
    // b has sent to a's public address: now a may.
    stage.send(&stage.udp("192.168.1.11:5000", &of_a));
    stage.reaches(&stage.udp("192.168.1.10:40000", &of_b), &stage.b);
}

#[test]
fn hpn_11_what_nobody_mapped_does_not_go_outside() {
    let stage = Stage::standard();
    stage.a.send(&stage.udp("192.168.1.10:40000", "203.0.113.1:33333"));
    stage.wan.expect_silence();
    stage.carries_the_next();
}

#[test]
fn hpn_05_and_06_a_forward_works_from_the_inside() {
    let stage = forwards();
    for (client, tap) in [("192.168.1.11:40000", &stage.b), ("192.168.1.10:40000", &stage.a)] {
        let seen = stage.reaches(&stage.udp(client, "203.0.113.1:8080"), &stage.a);
        assert_eq!(seen.ip().source.to_string(), "203.0.113.1");
        let answer = stage.reaches(&stage.udp("192.168.1.10:80", &source(&seen)), tap);
        assert_eq!(source(&answer), public(8080));
    }
}

#[test]
fn hpn_03_an_echo_to_a_one_to_one_address_is_its_hosts_to_answer() {
    let stage = statics();
    let request = Packet::echo_request("192.168.1.12", "203.0.113.3", 305, 1).payload("to b");
    let seen = stage.reaches(&request, &stage.b);
    assert_eq!(seen.ip().source.to_string(), "203.0.113.1", "c is behind P1");
    let reply = Packet::echo_reply("192.168.1.11", "203.0.113.1", port(&seen), 1).payload("to c");
    let answer = stage.reaches(&reply, &stage.c);
    assert_eq!((answer.ip().source.to_string(), port(&answer)), ("203.0.113.3".to_owned(), 305));
    // Behind NAPT it is the gateway's own (decision 9), whoever has the id.
    let mapped = port(&stage.crosses(&Packet::echo_request("192.168.1.12", "198.51.100.1", 7, 1)));
    stage.c.send(&Packet::echo_request("192.168.1.12", "203.0.113.1", mapped, 2).payload("to the gateway"));
    let answer = stage.c.expect_payload("to the gateway");
    assert_eq!((answer.ip().source.to_string(), answer.icmp().unwrap().kind), ("203.0.113.1".to_owned(), 0));
}

#[test]
fn hpn_04_and_12_one_to_one_hosts_see_each_others_public_addresses() {
    let stage = statics();
    let both = |seen: &Decoded| (seen.ip().source.to_string(), seen.ip().destination.to_string());
    let ways = [
        ("192.168.1.10", "203.0.113.2", &stage.a, "192.168.1.11", "203.0.113.3", &stage.b),
        ("192.168.1.11", "203.0.113.3", &stage.b, "192.168.1.10", "203.0.113.2", &stage.a),
    ];
    for (from, from_public, own, to, to_public, other) in ways {
        for packet in [
            stage.udp(&format!("{from}:7"), &format!("{to_public}:9")),
            stage.syn(&format!("{from}:40000"), &format!("{to_public}:80")),
        ] {
            let seen = stage.reaches(&packet, other);
            let sent = Decoded::parse(&packet.build());
            assert_eq!(both(&seen), (from_public.to_owned(), to.to_owned()));
            let ports =
                |packet: &Decoded| (packet.source().unwrap().port(), packet.destination().unwrap().port());
            assert_eq!(ports(&seen), ports(&sent));
        }
        let answer = stage.reaches(&stage.udp(&format!("{to}:9"), &format!("{from_public}:7")), own);
        assert_eq!(source(&answer), format!("{to_public}:9"));
        let seen = stage.reaches(&Packet::echo_request(from, to_public, 305, 1).payload("ping"), other);
        assert_eq!((both(&seen), port(&seen)), ((from_public.to_owned(), to.to_owned()), 305));
        let answer = stage.reaches(&Packet::echo_reply(to, from_public, 305, 1).payload("pong"), own);
        assert_eq!((both(&answer), port(&answer)), ((to_public.to_owned(), from.to_owned()), 305));
        // GRE, which has neither ports nor a checksum that knows of addresses.
        let gre = Packet::raw(from, to_public, 47).payload([0, 0, 8, 0, 1, 2, 3, 4]);
        assert_eq!(both(&stage.reaches(&gre, other)), (from_public.to_owned(), to.to_owned()));
    }
    stage.wan.expect_silence();
}

#[test]
fn hpn_08_a_mapping_that_leads_back_to_the_gateway_does_not_loop() {
    let forward = |external: &str, internal: &str| {
        format!("[[forward]]\nexternal = \"{external}\"\ninternal = \"{internal}\"\n")
    };
    let configuration = [
        gateway::STANDARD,
        &forward("203.0.113.1:9000", "192.168.1.1:80"),
        &forward("203.0.113.1:9001", "203.0.113.1:9002"),
        &forward("203.0.113.1:9002", "203.0.113.1:9001"),
        &forward("203.0.113.1:9003", "203.0.113.1:9003"),
        &forward("203.0.113.1:9004", "203.0.113.2:9004"),
        "[[static]]\nexternal = \"203.0.113.2\"\ninternal = \"203.0.113.3\"\n",
        "[[static]]\nexternal = \"203.0.113.3\"\ninternal = \"203.0.113.2\"\n",
    ]
    .concat();
    let stage = Stage::build(Lab::builder().forwarding(), &configuration);
    let mapped = source(&stage.crosses(&stage.udp("192.168.1.12:40000", "198.51.100.1:1000")));
    let targets = (9000..=9004).map(|port| format!("203.0.113.1:{port}"));
    for target in targets.chain(["203.0.113.2:9".to_owned(), "203.0.113.3:9".to_owned()]) {
        stage.wan.clear();
        for (from, tap) in [("198.51.100.1:5555", &stage.s1), ("192.168.1.10:5555", &stage.a)] {
            tap.send(&stage.udp(from, &target).ttl(200));
            tap.send(&stage.syn(from, &target).ttl(200));
        }
        seconds(0.2);
        let came_out = stage.wan.incoming(|seen| seen.ip.is_some());
        assert!(came_out.len() <= 4, "{target}: {} packets for 4", came_out.len());
        stage.reaches(&stage.udp("198.51.100.1:1000", &mapped), &stage.c);
    }
    // Addresses that swap places are wrong on purpose.
    stage.expect_bad_packets();
}

#[test]
fn hpn_10_a_hairpin_is_one_hop_with_fragments_and_errors_and_without_redirects() {
    let configuration = format!("{}\nfiltering = \"endpoint-independent\"\n{LAN2}", gateway::STANDARD);
    let stage = Stage::build(Lab::builder().second_lan(), &configuration);
    let of_b = source(&stage.crosses(&stage.udp("192.168.1.11:5000", "198.51.100.1:1000")));
    // `reaches` asserts the TTL.
    let seen = stage.reaches(&stage.udp("192.168.1.10:40000", &of_b), &stage.b).ip().clone();
    // b does not want it (ICE-17): a hears of it from b's public address, about its own packet.
    let quoted = [seen.header.clone(), seen.body.clone()].concat();
    let error = Packet::icmp_error("192.168.1.11", "203.0.113.1", 3, 3, &quoted);
    stage.b.send(&error);
    let told = stage.a.expect("port unreachable", |seen| seen.icmp().is_some_and(|icmp| icmp.kind == 3));
    assert_eq!(told.ip().source.to_string(), "203.0.113.1");
    let quote = told.icmp().unwrap().quoted.clone().expect("a quote");
    assert_eq!(
        (quote.source().to_string(), quote.destination().to_string()),
        ("192.168.1.10:40000".to_owned(), of_b.clone())
    );
    // Fragments, in any order (FRG-23).
    for (id, order) in [(1, [0, 1, 2]), (2, [2, 1, 0])] {
        let payload: Vec<u8> = (0..3000_u32).map(|n| (n + id).to_be_bytes()[3]).collect();
        let packet =
            Packet::udp("192.168.1.10:40000", of_b.as_str()).payload(&payload).id(u16::try_from(id).unwrap());
        stage.a.send_fragments(&packet, 1480, &order);
        let mut pieces = Vec::new();
        while pieces.len() < 3 {
            pieces.push(stage.b.expect("a fragment", |seen| seen.ip.as_ref().is_some_and(Ip::is_fragment)));
        }
        let whole = reassemble(&pieces).expect("all of the datagram");
        assert_eq!((whole.payload(), whole.source().to_string()), (payload.as_slice(), source_of_a(&stage)));
    }
    // What is too big for the second LAN is cut, or told with the next hop's MTU.
    let of_d = source(&stage.crosses(&stage.udp("192.168.2.10:5000", "198.51.100.1:1000")));
    stage.lab.gateway.ip("link set lan2 mtu 1000");
    let big = |df: bool| {
        let packet = Packet::udp("192.168.1.10:40000", of_d.as_str()).payload([9; 1200]);
        if df { packet.df() } else { packet }
    };
    let mut told = None;
    for _ in 0..50 {
        stage.a.send(&big(true));
        told = stage.a.recv_matching(Duration::from_millis(100), |seen| seen.icmp().is_some());
        if told.is_some() {
            break;
        }
    }
    let told = told.expect("ICMP 3/4").decoded;
    let icmp = told.icmp().unwrap();
    assert_eq!((icmp.kind, icmp.code, icmp.seq), (3, 4, 1000));
    assert_eq!(icmp.quoted.as_ref().unwrap().destination().to_string(), of_d);
    stage.d().clear();
    stage.a.send(&big(false));
    let pieces: Vec<_> = (0..2)
        .map(|_| stage.d().expect("a piece", |seen| seen.ip.as_ref().is_some_and(Ip::is_fragment)))
        .collect();
    assert_eq!(reassemble(&pieces).expect("the whole").payload(), [9; 1200]);
    for tap in [&stage.a, &stage.b] {
        tap.expect_none("a redirect", |seen| seen.icmp().is_some_and(|icmp| icmp.kind == 5));
    }
}

/// Where b sees a's port 40000.
fn source_of_a(stage: &Stage) -> String {
    source(&stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.2:1")))
}

/// The second inside interface.
const LAN2: &str = "[[interface]]\nname = \"lan2\"\nside = \"inside\"\n";

#[test]
fn hpn_13_two_inside_interfaces_hairpin_to_each_other() {
    let configuration = format!("{}\nfiltering = \"endpoint-independent\"\n{LAN2}", gateway::STANDARD);
    let stage = Stage::build(Lab::builder().second_lan(), &configuration);
    let of_b = source(&stage.crosses(&stage.udp("192.168.1.11:5000", "198.51.100.1:1000")));
    let of_d = source(&stage.crosses(&stage.udp("192.168.2.10:5000", "198.51.100.1:1000")));
    let ways = [
        ("192.168.2.10", &of_b, &stage.b, "192.168.1.11:5000", stage.d()),
        ("192.168.1.11", &of_d, stage.d(), "192.168.2.10:5000", &stage.b),
    ];
    for (from, to, tap, inside, back) in ways {
        let from = format!("{from}:6000");
        for packet in [stage.udp(&from, to), stage.syn(&from, &to.replace("5000", "5001"))] {
            // The TCP port is nobody's: it is not carried across.
            if Decoded::parse(&packet.build()).tcp().is_some() {
                stage.stopped(&packet, tap);
                continue;
            }
            let seen = stage.reaches(&packet, tap);
            assert_eq!(seen.ip().source.to_string(), "203.0.113.1");
            assert_eq!(source(&stage.reaches(&stage.udp(inside, &source(&seen)), back)), *to);
        }
    }
}
