//! Port forwarding: inside servers behind external ports.

use std::{net::UdpSocket, time::Duration};

use nat_tests::{Decoded, Lab, Packet, gateway, packet::tcp};

use crate::stage::{Stage, port, public, seconds, source};

/// P1:8080 is a's web server, for TCP and UDP; P1:6000 to 6009 go to b.
const FORWARDS: &str = r#"
[[forward]]
protocol = ["tcp", "udp"]
external = "203.0.113.1:8080"
internal = "192.168.1.10:80"

[[forward]]
protocol = ["udp"]
external = "203.0.113.1:6000-6009"
internal = "192.168.1.11:7000-7009"
"#;

/// The standard set-up with these forwards.
pub(crate) fn forwards() -> Stage {
    Stage::with(&format!("{}{FORWARDS}", gateway::STANDARD))
}

#[test]
fn pfw_01_a_forward_keeps_the_source() {
    let stage = forwards();
    let seen = stage.reaches(&stage.syn("198.51.100.1:5555", "203.0.113.1:8080"), &stage.a);
    assert_eq!(source(&seen), "198.51.100.1:5555");
    assert_eq!(seen.destination().unwrap().to_string(), "192.168.1.10:80");
    let answer = Packet::tcp("192.168.1.10:80", "198.51.100.1:5555").seq(9).ack(2).flags(tcp::SYN | tcp::ACK);
    assert_eq!(source(&stage.crosses(&answer)), public(8080));
}

#[test]
fn pfw_02_session_then_forward_then_the_gateway() {
    let stage = forwards();
    stage.s1.send(&Packet::echo_request("198.51.100.1", "203.0.113.1", 1, 1).payload("to the gateway"));
    stage.s1.expect_payload("to the gateway");
    stage.reaches(&stage.udp("198.51.100.1:5555", "203.0.113.1:8080"), &stage.a);
    let mapped = source(&stage.crosses(&stage.udp("192.168.1.12:40000", "198.51.100.1:1000")));
    stage.reaches(&stage.udp("198.51.100.1:1000", &mapped), &stage.c);
}

#[test]
fn pfw_03_a_range_goes_port_by_port() {
    let stage = forwards();
    for offset in [0, 4, 9] {
        let outside = format!("203.0.113.1:{}", 6000 + offset);
        let seen = stage.reaches(&stage.udp("198.51.100.1:5555", &outside), &stage.b);
        assert_eq!(seen.destination().unwrap().port(), 7000 + offset);
        let inside = format!("192.168.1.11:{}", 7000 + offset);
        assert_eq!(source(&stage.crosses(&stage.udp(&inside, "198.51.100.1:5555"))), outside);
    }
    stage.s1.send(&stage.udp("198.51.100.1:5555", "203.0.113.1:6010"));
    stage.lan_is_silent();
}

#[test]
fn pfw_05_a_forward_for_some_sources_only() {
    let some = FORWARDS.replace("\ninternal", "\nsource = [\"198.51.100.0/24\"]\ninternal");
    let stage = Stage::with(&format!("{}{some}", gateway::STANDARD));
    stage.reaches(&stage.udp("198.51.100.1:5555", "203.0.113.1:8080"), &stage.a);
    stage.stopped(&stage.udp("198.51.101.1:5555", "203.0.113.1:8080"), &stage.a);
}

#[test]
fn prt_11_a_forwarded_port_is_nobody_elses() {
    let stage = forwards();
    let seen = port(&stage.crosses(&stage.syn("192.168.1.12:8080", "198.51.100.1:80")));
    assert_ne!(seen, 8080);
}

/// Where a packet goes to, `address:port`.
fn destination(packet: &Decoded) -> String {
    packet.destination().map_or_else(|| panic!("no destination in {packet}"), |to| to.to_string())
}

#[test]
fn pfw_04_a_forward_is_its_servers_mapping_outwards_too() {
    let stage = forwards();
    for remote in ["198.51.100.2:53", "198.51.101.1:9"] {
        assert_eq!(source(&stage.crosses(&stage.udp("192.168.1.10:80", remote))), public(8080));
        assert_eq!(source(&stage.crosses(&stage.syn("192.168.1.10:80", remote))), public(8080));
    }
    assert_eq!(source(&stage.crosses(&stage.udp("192.168.1.11:7004", "198.51.100.2:53"))), public(6004));
    // One that is for some remotes only says nothing of what its server sends on its own.
    let some = FORWARDS.replace("\ninternal", "\nsource = [\"198.51.100.0/24\"]\ninternal");
    let stage = Stage::with(&format!("{}{some}", gateway::STANDARD));
    assert_ne!(port(&stage.crosses(&stage.udp("192.168.1.10:80", "198.51.100.2:53"))), 8080);
}

#[test]
fn pfw_06_two_forwards_to_one_server_are_not_mixed_up() {
    let second = "[[forward]]\nexternal = \"203.0.113.1:8081\"\ninternal = \"192.168.1.10:80\"\n";
    let stage = Stage::with(&format!("{}{FORWARDS}{second}", gateway::STANDARD));
    for tcp in [false, true] {
        let packet = |from: &str, to: &str| if tcp { stage.syn(from, to) } else { stage.udp(from, to) };
        let at_a = [8080, 8081].map(|external| {
            let seen = stage.reaches(&packet("198.51.100.1:5555", &public(external)), &stage.a);
            assert_eq!(destination(&seen), "192.168.1.10:80");
            assert_eq!(seen.ip().source.to_string(), "198.51.100.1");
            source(&seen)
        });
        assert_eq!(at_a[0], "198.51.100.1:5555");
        assert_ne!(at_a[0], at_a[1], "a can tell them apart");
        for (remote, external) in at_a.iter().zip([8080, 8081]) {
            let answer = if tcp {
                Packet::tcp("192.168.1.10:80", remote.as_str())
                    .seq(external.into())
                    .ack(1)
                    .flags(tcp::SYN | tcp::ACK)
            } else {
                stage.udp("192.168.1.10:80", remote)
            };
            let seen = stage.reaches(&answer, &stage.s1);
            assert_eq!(
                (source(&seen), destination(&seen)),
                (public(external), "198.51.100.1:5555".to_owned())
            );
        }
    }
}

#[test]
fn pfw_07_a_forward_and_plain_routing_to_one_server_are_not_mixed_up() {
    let configuration = gateway::STANDARD.replace(
        "[[snat]]",
        "[[snat]]\nname = \"routed\"\nsource = [\"192.168.1.10/32\"]\nto = \"none\"\n\n[[snat]]",
    );
    let forward = "[[forward]]\nexternal = \"203.0.113.1:1234\"\ninternal = \"192.168.1.10:1234\"\n";
    for forward_first in [false, true] {
        let stage = Stage::build(Lab::builder().forwarding(), &format!("{configuration}{forward}"));
        // a is reached by its private address: that is what this is about.
        stage.expect_inside_addresses_outside();
        let (remote, routed, forwarded) = ("198.51.100.1:4321", "192.168.1.10:1234", "203.0.113.1:1234");
        if forward_first {
            let seen = stage.reaches(&stage.udp(remote, forwarded), &stage.a);
            assert_eq!(source(&seen), remote);
            // The second is refused: its answers could not be told from the first's.
            stage.stopped(&stage.udp(remote, routed), &stage.a);
            assert_eq!(source(&stage.reaches(&stage.udp(routed, remote), &stage.s1)), forwarded);
        } else {
            let seen = stage.reaches(&stage.udp(remote, routed), &stage.a);
            assert_eq!(source(&seen), remote);
            // The second comes by another port.
            let seen = stage.reaches(&stage.udp(remote, forwarded), &stage.a);
            assert_ne!(source(&seen), remote);
            let answer = stage.reaches(&stage.udp(routed, &source(&seen)), &stage.s1);
            assert_eq!((source(&answer), destination(&answer)), (forwarded.to_owned(), remote.to_owned()));
            assert_eq!(source(&stage.reaches(&stage.udp(routed, remote), &stage.s1)), routed);
        }
        // Other ports of a are routed all the same.
        stage.reaches(&stage.udp("198.51.100.1:4321", "192.168.1.10:99"), &stage.a);
    }
}

#[test]
fn pfw_08_with_its_rule_a_forwards_sessions_end() {
    let stage = forwards();
    stage.reaches(&stage.syn("198.51.100.1:5555", "203.0.113.1:8080"), &stage.a);
    stage.reaches(&stage.udp("198.51.100.1:5555", "203.0.113.1:6001"), &stage.b);
    stage.gateway.configure(&format!("{}{}", gateway::STANDARD, FORWARDS.replace("8080", "8088")));
    assert!(stage.gateway.text(&["reload"]).contains('1'), "says what it did");
    stage.stopped(&stage.syn("198.51.100.1:5555", "203.0.113.1:8080"), &stage.a);
    stage.stopped(&stage.syn("198.51.100.2:5556", "203.0.113.1:8080"), &stage.a);
    stage.stopped(&stage.data("198.51.100.1:5555", "203.0.113.1:8080"), &stage.a);
    stage.reaches(&stage.syn("198.51.100.2:5556", "203.0.113.1:8088"), &stage.a);
    // The other forward has stayed, and its session with it.
    let seen = stage.crosses(&stage.udp("192.168.1.11:7001", "198.51.100.1:5555"));
    assert_eq!(source(&seen), public(6001));
    assert_eq!(stage.session_count(), 2);
}

#[test]
fn pfw_09_a_forward_to_a_host_that_is_not_there_is_told() {
    let dead = FORWARDS.replace("192.168.1.10:80", "192.168.1.99:80");
    let stage = Stage::with(&format!("{}{dead}", gateway::STANDARD));
    for packet in [
        stage.syn("198.51.100.1:5555", "203.0.113.1:8080"),
        stage.udp("198.51.100.1:5556", "203.0.113.1:8080"),
    ] {
        let sent = stage.send(&packet);
        let told = stage
            .s1
            .recv_matching(Duration::from_secs(8), |seen| seen.icmp().is_some())
            .expect("ICMP")
            .decoded;
        let icmp = told.icmp().unwrap();
        assert_eq!((icmp.kind, icmp.code), (3, 1));
        assert_eq!(told.ip().source.to_string(), "203.0.113.1");
        let quoted = icmp.quoted.as_ref().expect("a quote");
        assert_eq!((Some(quoted.source()), Some(quoted.destination())), (sent.source(), sent.destination()));
    }
    stage.forgets_within(Duration::from_secs(5));
    stage.reaches(&stage.udp("198.51.100.1:5555", "203.0.113.1:6001"), &stage.b);
}

#[test]
fn pfw_10_a_forward_on_an_interface_follows_its_address() {
    let stage = Stage::with(&format!("{}{}", gateway::STANDARD, FORWARDS.replace("203.0.113.1:", "wan:")));
    stage.reaches(&stage.udp("198.51.100.1:5555", "203.0.113.1:8080"), &stage.a);
    stage.lab.gateway.ip("addr add 203.0.113.9/24 dev wan");
    stage.lab.gateway.ip("addr del 203.0.113.1/24 dev wan");
    stage.lab.gateway.ip("addr add 203.0.113.9/24 dev wan");
    stage.lab.gateway.ip("route replace default via 203.0.113.254");
    stage
        .gateway
        .wait_until("the session is gone", Duration::from_secs(3), |gateway| gateway.sessions().is_empty());
    for number in 0..2 {
        let seen = stage.reaches(
            &stage.udp("198.51.100.1:5555", &format!("203.0.113.9:{}", 8080 - 2080 * number)),
            if number == 0 { &stage.a } else { &stage.b },
        );
        assert_eq!(source(&seen), "198.51.100.1:5555");
    }
    assert_eq!(
        source(&stage.crosses(&stage.udp("192.168.1.10:80", "198.51.100.1:5555"))),
        "203.0.113.9:8080"
    );
    stage.stopped(&stage.udp("198.51.100.1:5555", "203.0.113.1:8080"), &stage.a);
}

#[test]
fn pfw_11_a_forward_goes_before_a_service_of_the_gateway_and_says_so() {
    let stage = forwards();
    let within = |work: fn() -> UdpSocket| stage.lab.gateway.within(work);
    let service = within(|| UdpSocket::bind("0.0.0.0:8080").expect("bind on the gateway"));
    let other = within(|| UdpSocket::bind("0.0.0.0:9090").expect("bind on the gateway"));
    let _listener = stage.lab.gateway.within(|| std::net::TcpListener::bind("0.0.0.0:8080")).expect("listen");
    let heard = |socket: &UdpSocket| {
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut buffer = [0; 2048];
        socket.recv_from(&mut buffer).is_ok()
    };
    // From outside: the forward.
    for _ in 0..2 {
        stage.reaches(&stage.udp("198.51.100.1:5555", "203.0.113.1:8080"), &stage.a);
        stage.reaches(&stage.syn("198.51.100.2:5555", "203.0.113.1:8080"), &stage.a);
    }
    // A port without a forward: the service.
    stage.s1.send(&stage.udp("198.51.100.1:5555", "203.0.113.1:9090"));
    assert!(heard(&other));
    // From inside, by the inside address: the service.
    stage.b.send(&stage.udp("192.168.1.11:5555", "192.168.1.1:8080"));
    assert!(heard(&service));
    stage.b.send(&stage.syn("192.168.1.11:5555", "192.168.1.1:8080"));
    stage
        .b
        .expect("a SYN-ACK", |seen| seen.tcp().is_some_and(|segment| segment.flags == tcp::SYN | tcp::ACK));
    seconds(1.1);
    let told = stage.gateway.output(&["reload"]);
    let told = String::from_utf8_lossy(&[told.stdout, told.stderr].concat()).into_owned();
    assert!(told.contains("203.0.113.1:8080 is held by a socket"), "{told}");
    assert!(!told.contains("9090"), "{told}");
}

#[test]
fn pfw_12_full_nat_serves_a_host_with_another_way_out() {
    let full = FORWARDS.replace("\ninternal", "\nmasquerade_source = true\ninternal");
    let stage = Stage::with(&format!("{}{full}", gateway::STANDARD));
    stage.lab.a.ip("route del default");
    stage.lab.a.nft("delete table ip mute");
    let server = stage.lab.a.within(|| UdpSocket::bind("192.168.1.10:80")).expect("bind on a");
    server.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    for number in 0..3 {
        let sent = stage.udp(&format!("198.51.100.1:{}", 5555 + number), "203.0.113.1:8080");
        stage.send(&sent);
        let mut buffer = [0; 2048];
        let (length, remote) = server.recv_from(&mut buffer).expect("the datagram");
        assert_eq!(remote.ip().to_string(), "192.168.1.1", "a sees the gateway");
        server.send_to(&buffer[..length], remote).expect("answer");
        let answer = stage.s1.expect_payload(&buffer[..length]);
        assert_eq!(
            (source(&answer), destination(&answer)),
            (public(8080), format!("198.51.100.1:{}", 5555 + number))
        );
    }
    // Two remotes with one port are told apart.
    let [one, two] = ["198.51.100.1:7", "198.51.100.2:7"]
        .map(|remote| source(&stage.reaches(&stage.udp(remote, "203.0.113.1:8080"), &stage.a)));
    assert_ne!(one, two);
}

#[test]
fn pfw_13_client_and_server_on_one_side() {
    let one_armed = "[[forward]]\nexternal = \"203.0.113.1:8080\"\ninternal = \"198.51.100.2:80\"\nmasquerade_source = true\n";
    let stage = Stage::with(&format!("{}{one_armed}", gateway::STANDARD));
    // Each way passes the provider's router twice, and the gateway once.
    let crosses = |from: &str, to: &str, tap: &nat_tests::Tap| {
        let sent = stage.send(&stage.udp(from, to));
        let seen = tap.expect_payload(sent.payload());
        assert_eq!((seen.ip().ttl, seen.checksums_valid()), (sent.ip().ttl - 3, Ok(())));
        seen
    };
    for _ in 0..3 {
        let seen = crosses("198.51.100.1:5555", "203.0.113.1:8080", &stage.s2);
        assert_eq!(seen.ip().source.to_string(), "203.0.113.1", "s2 sees the gateway");
        let answer = crosses("198.51.100.2:80", &source(&seen), &stage.s1);
        assert_eq!((source(&answer), destination(&answer)), (public(8080), "198.51.100.1:5555".to_owned()));
    }
}
