//! Virtual servers: one public endpoint, several servers of the LAN behind it.

use std::{
    collections::BTreeMap,
    net::SocketAddrV4,
    time::{Duration, Instant},
};

use nat_tests::{
    Decoded, Lab, Packet, Tap, gateway,
    host::connect_from,
    packet::tcp::{ACK, FIN, RST, SYN},
    wire::{Direction, PATIENCE},
};
use serde_json::Value;

use crate::stage::{CLIENT_SEQ, SERVER_SEQ, Stage, public, source};

/// The public endpoint.
pub(crate) const V: &str = "203.0.113.1:80";
const CLIENT: &str = "198.51.100.1:5555";
/// The servers: a, b and c.
pub(crate) const SERVERS: [&str; 3] = ["192.168.1.10:8080", "192.168.1.11:8080", "192.168.1.12:8080"];

/// A service at [`V`] whose servers' kernels are mute: nothing checks them.
pub(crate) fn service(lines: &str, servers: &[&str]) -> String {
    let servers: Vec<String> =
        servers.iter().map(|server| format!("[[service.server]]\naddress = \"{server}\"\n")).collect();
    let servers = servers.concat();
    format!(
        "[[service]]\nname = \"web\"\nexternal = \"{V}\"\ncheck = {{ kind = \"none\" }}\n{lines}\n{servers}"
    )
}

/// The standard set-up and such a service.
pub(crate) fn stage(lines: &str, servers: &[&str]) -> Stage {
    Stage::with(&format!("{}{}", gateway::STANDARD, service(lines, servers)))
}

/// Where a packet goes to, `address:port`.
pub(crate) fn destination(packet: &Decoded) -> String {
    packet.destination().map_or_else(|| panic!("no destination in {packet}"), |to| to.to_string())
}

/// Whether a packet goes to an endpoint.
pub(crate) fn is_to(packet: &Decoded, endpoint: &str) -> bool {
    packet.destination().is_some_and(|to| to.to_string() == endpoint)
}

/// Opens a connection to the service by hand, and says which server has it.
pub(crate) fn connect(stage: &Stage, client: &str) -> String {
    let sent = stage.send(&Packet::tcp(client, V).syn(CLIENT_SEQ));
    let is_it =
        |seen: &Decoded| seen.source() == sent.source() && seen.tcp().is_some_and(|tcp| tcp.flags == SYN);
    let server = arrival(stage, is_it).unwrap_or_else(|| panic!("{sent} reaches no server"));
    let answer = Packet::tcp(server, client).syn(SERVER_SEQ).ack(CLIENT_SEQ + 1);
    assert_eq!(source(&stage.crosses(&answer)), V);
    stage.reaches(&Packet::tcp(client, V).seq(CLIENT_SEQ + 1).ack(SERVER_SEQ + 1), tap_of(stage, server));
    server.to_owned()
}

/// The server at which such a packet arrives, whichever it is.
fn arrival(stage: &Stage, is_it: impl Fn(&Decoded) -> bool) -> Option<&'static str> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let at =
            |server: &&str| tap_of(stage, server).recv_matching(Duration::from_millis(5), &is_it).is_some();
        if let Some(server) = SERVERS.into_iter().find(at) {
            return Some(server);
        }
    }
    None
}

pub(crate) fn tap_of<'a>(stage: &'a Stage, server: &str) -> &'a Tap {
    stage.tap(*server.parse::<SocketAddrV4>().expect("an endpoint").ip())
}

/// The listed servers of the service, by endpoint.
pub(crate) fn listed(stage: &Stage) -> BTreeMap<String, Value> {
    let rows = stage.gateway.natgw(&["service", "list", "--json"]);
    let servers = rows[0]["servers"].as_array().unwrap_or_else(|| panic!("no servers in {rows}"));
    servers.iter().map(|row| (row["address"].as_str().expect("an address").to_owned(), row.clone())).collect()
}

/// A number of a listed server.
pub(crate) fn number(stage: &Stage, server: &str, field: &str) -> u64 {
    listed(stage)[server][field].as_u64().unwrap_or_else(|| panic!("no {field} of {server}"))
}

#[test]
fn lbs_01_and_02_a_server_sees_the_client_and_the_client_the_service() {
    for port in [8080, 80] {
        let server = format!("192.168.1.10:{port}");
        let stage = stage("", &[&server]);
        let seen = stage.reaches(&Packet::tcp(CLIENT, V).syn(CLIENT_SEQ), &stage.a);
        assert_eq!((source(&seen), destination(&seen)), (CLIENT.to_owned(), server.clone()));
        let answer = Packet::tcp(server.as_str(), CLIENT).syn(SERVER_SEQ).ack(CLIENT_SEQ + 1);
        let seen = stage.crosses(&answer);
        assert_eq!((source(&seen), destination(&seen)), (V.to_owned(), CLIENT.to_owned()));
        let own = stage.s1.captured().into_iter().filter_map(|frame| frame.decoded.ip);
        assert!(own.into_iter().all(|ip| !ip.source.is_private()), "no private source reaches the client");
        let session = &stage.gateway.sessions()[0];
        assert_eq!(
            (session["rule"].as_str(), session["inside"].as_str()),
            (Some("web"), Some(server.as_str()))
        );
        assert_eq!((session["outside"].as_str(), session["direction"].as_str()), (Some(V), Some("inbound")));
    }
}

#[test]
fn lbs_03_all_packets_of_a_connection_go_to_one_server() {
    let mut stage = stage("", &SERVERS);
    let server = connect(&stage, CLIENT);
    let others = [connect(&stage, "198.51.100.2:5555"), connect(&stage, "198.51.101.1:5555")];
    assert!(!others.contains(&server));
    let own = tap_of(&stage, &server);
    let check = |stage: &Stage, packet: &Packet| {
        let seen = stage.reaches(packet, tap_of(stage, &server));
        assert_eq!((source(&seen), destination(&seen)), (CLIENT.to_owned(), server.clone()));
    };
    // A SYN again, data, and both sent once more.
    for _ in 0..2 {
        check(&stage, &Packet::tcp(CLIENT, V).syn(CLIENT_SEQ));
        check(&stage, &stage.data(CLIENT, V));
    }
    // Fragments, the last first.
    let large = "large ".repeat(500);
    let datagram = Packet::tcp(CLIENT, V).seq(CLIENT_SEQ + 1).ack(SERVER_SEQ + 1).payload(&large).id(77);
    stage.s1.send_fragments(&datagram, 1480, &[2, 1, 0]);
    let mut pieces = Vec::new();
    for _ in 0..3 {
        pieces.push(
            own.expect("a fragment", |seen| seen.ip.as_ref().is_some_and(nat_tests::decode::Ip::is_fragment)),
        );
    }
    let whole = nat_tests::decode::reassemble(&pieces).expect("all three");
    assert_eq!((whole.destination().to_string(), whole.payload()), (server.clone(), large.as_bytes()));
    assert_eq!(whole.checksums_valid(), Ok(()));
    // An error about what the server has sent.
    let answer = stage.crosses(&stage.data(&server, CLIENT));
    let quoted = [answer.ip().header.clone(), answer.ip().body.clone()].concat();
    stage.s1.send(&Packet::icmp_error("198.51.100.1", "203.0.113.1", 11, 1, &quoted));
    own.expect("the error", |seen| seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code) == (11, 1)));
    // Whoever judges, and after it was killed, too.
    stage.gateway.kill();
    check(&stage, &stage.data(CLIENT, V));
    stage.gateway.restart();
    check(&stage, &stage.data(CLIENT, V));
    assert_eq!(number(&stage, &server, "active"), 1);
    assert!(stage.gateway.text(&["reload"]).contains('3'));
    for flags in [FIN | ACK, RST] {
        let packet = Packet::tcp(CLIENT, V).seq(CLIENT_SEQ + 1).ack(SERVER_SEQ + 1).flags(flags);
        check(&stage, &packet.payload(format!("flags {flags}")));
    }
}

#[test]
fn lbs_04_an_answer_past_the_gateway_is_not_the_clients() {
    let stage = stage("", &SERVERS[..1]);
    stage.lab.s1.nft("delete table ip mute");
    std::thread::scope(|scope| {
        let client = scope.spawn(|| stage.lab.s1.within(|| connect_from(CLIENT, V)));
        let syn = stage.a.expect("the SYN", |seen| seen.tcp().is_some_and(|tcp| tcp.flags == SYN));
        let seq = syn.tcp().unwrap().seq;
        let answer = Packet::tcp(SERVERS[0], CLIENT).syn(SERVER_SEQ).ack(seq + 1);
        // By a wire that the gateway is not on.
        stage.s2.send(&answer.clone().to_mac(stage.lab.s1.mac));
        let is_refused = || {
            stage.s1.drain();
            let own = stage.s1.captured().into_iter().filter(|frame| frame.direction == Direction::Outgoing);
            own.map(|frame| frame.decoded)
                .any(|sent| is_to(&sent, SERVERS[0]) && sent.tcp().is_some_and(|tcp| tcp.flags & RST != 0))
        };
        let what = "the client answers it with an RST";
        stage.gateway.wait_until(what, Duration::from_secs(1), |_| is_refused());
        assert!(!client.is_finished(), "and is still waiting");
        stage.s1.clear();
        stage.reaches(&answer, &stage.s1);
        client.join().unwrap().expect("the same answer by way of the gateway connects");
    });
}

#[test]
fn lbs_09_a_server_reached_by_its_own_address_is_left_alone() {
    let routed = gateway::STANDARD.replace(
        "[[snat]]",
        "[[snat]]\nname = \"routed\"\nsource = [\"192.168.1.10/32\"]\nto = \"none\"\n\n[[snat]]",
    );
    let configuration = format!("{routed}{}", service("", &SERVERS[..1]));
    let stage = Stage::build(Lab::builder().forwarding(), &configuration);
    // a is reached by its private address: that is what this is about.
    stage.expect_inside_addresses_outside();
    connect(&stage, CLIENT);
    for _ in 0..2 {
        let seen = stage.reaches(&stage.udp("198.51.100.1:7777", SERVERS[0]), &stage.a);
        assert_eq!((source(&seen).as_str(), destination(&seen).as_str()), ("198.51.100.1:7777", SERVERS[0]));
        let direct = Packet::tcp("198.51.100.1:6666", SERVERS[0]).syn(stage.token());
        assert_eq!(destination(&stage.reaches(&direct, &stage.a)), SERVERS[0]);
        let answer = Packet::tcp(SERVERS[0], "198.51.100.1:6666").syn(9).ack(stage.token());
        assert_eq!(source(&stage.reaches(&answer, &stage.s1)), SERVERS[0]);
        assert_eq!(source(&stage.crosses(&stage.data(SERVERS[0], CLIENT))), V);
        stage.reaches(&stage.data(CLIENT, V), &stage.a);
    }
}

#[test]
fn lbs_10_a_client_on_the_servers_lan_is_served() {
    let configurations =
        [gateway::STANDARD.to_owned(), gateway::STANDARD.split("[[snat]]").next().unwrap().to_owned()];
    for configuration in configurations {
        // With a rule that hides it behind the public address, and with none.
        let stage = Stage::with(&format!("{configuration}{}", service("", &SERVERS[1..2])));
        for (client, tap) in [("192.168.1.12:40000", &stage.c), ("192.168.1.11:40000", &stage.b)] {
            let seen = stage.reaches(&stage.syn(client, V), &stage.b);
            assert_eq!(destination(&seen), SERVERS[1]);
            let hidden = source(&seen);
            assert!(hidden.starts_with("203.0.113.1:") || hidden.starts_with("192.168.1.1:"), "{hidden}");
            let answer = Packet::tcp(SERVERS[1], hidden.as_str()).syn(SERVER_SEQ).ack(stage.token());
            let seen = stage.reaches(&answer, tap);
            assert_eq!((source(&seen), destination(&seen)), (V.to_owned(), client.to_owned()));
            stage.reaches(&Packet::tcp(client, V).seq(stage.token()).ack(1).payload("more"), &stage.b);
        }
        assert_eq!(stage.session_count(), 2);
    }
}

#[test]
fn lbs_11_udp_services_answer_from_their_port_and_time_out() {
    let dns =
        service("protocol = \"udp\"", &["192.168.1.10:53", "192.168.1.11:53"]).replace(V, "203.0.113.1:53");
    let stage = Stage::with(&format!("{}{dns}\n[timeouts]\nudp = \"2s\"\n", gateway::STANDARD));
    let service = public(53);
    let question = stage.udp(CLIENT, &service);
    let seen = stage.reaches(&question, &stage.a);
    assert_eq!((source(&seen).as_str(), destination(&seen).as_str()), (CLIENT, "192.168.1.10:53"));
    assert_eq!(source(&stage.crosses(&stage.udp("192.168.1.10:53", CLIENT))), service);
    // Either direction keeps it.
    for number in 0..4 {
        crate::stage::seconds(1.0);
        if number % 2 == 0 {
            stage.reaches(&stage.udp(CLIENT, &service), &stage.a);
        } else {
            assert_eq!(source(&stage.crosses(&stage.udp("192.168.1.10:53", CLIENT))), service);
        }
    }
    stage.forgets_within(Duration::from_secs(5));
    assert_eq!(listed(&stage)["192.168.1.10:53"]["active"], 0);
    // The next in turn.
    stage.reaches(&stage.udp(CLIENT, &service), &stage.b);
}

#[test]
fn lbs_13_errors_of_both_ends_are_turned() {
    let stage = stage("", &SERVERS);
    let server = connect(&stage, CLIENT);
    let host = server.split(':').next().unwrap();
    let bytes = |seen: &Decoded| [seen.ip().header.clone(), seen.ip().body.clone()].concat();
    let at_server = stage.reaches(&stage.data(CLIENT, V), tap_of(&stage, &server));
    for code in [3, 4] {
        let error = Packet::icmp_error(host, "198.51.100.1", 3, code, &bytes(&at_server));
        let told = stage.reaches(&error, &stage.s1);
        assert_eq!(told.ip().source.to_string(), "203.0.113.1");
        let quoted = told.icmp().unwrap().quoted.clone().unwrap();
        assert_eq!(
            (quoted.source().to_string(), quoted.destination().to_string()),
            (CLIENT.into(), V.into())
        );
        assert_eq!(told.checksums_valid(), Ok(()));
    }
    let at_client = stage.crosses(&stage.data(&server, CLIENT));
    assert_eq!(source(&at_client), V);
    for reporter in ["198.51.100.1", "203.0.113.254"] {
        let error = Packet::icmp_error(reporter, "203.0.113.1", 3, 4, &bytes(&at_client)).rest(0, 1280);
        if reporter == "198.51.100.1" {
            stage.s1.send(&error);
        } else {
            stage.wan.send(&error);
        }
        let told = tap_of(&stage, &server).expect("the error", |seen| {
            seen.ip.as_ref().is_some_and(|ip| ip.source.to_string() == reporter) && seen.icmp().is_some()
        });
        assert_eq!(told.ip().destination.to_string(), host);
        let quoted = told.icmp().unwrap().quoted.clone().unwrap();
        assert_eq!(
            (quoted.source().to_string(), quoted.destination().to_string()),
            (server.clone(), CLIENT.into())
        );
        assert_eq!(told.checksums_valid(), Ok(()));
    }
}

#[test]
fn lbs_14_only_its_port_is_the_services() {
    let stage = stage("", &SERVERS);
    stage.s1.send(&Packet::echo_request("198.51.100.1", "203.0.113.1", 1, 1).payload("for the gateway"));
    let answer = stage.s1.expect_payload("for the gateway");
    assert_eq!(answer.icmp().map(|icmp| icmp.kind), Some(0));
    for packet in [
        stage.syn(CLIENT, "203.0.113.1:81"),
        stage.syn(CLIENT, "203.0.113.1:8080"),
        stage.udp(CLIENT, V),
        Packet::tcp(CLIENT, V).seq(5).ack(6).payload("of no connection"),
    ] {
        stage.s1.send(&packet);
    }
    stage.lan_is_silent();
    assert_eq!(stage.session_count(), 0);
    stage.reaches(&stage.syn(CLIENT, V), &stage.a);
}

#[test]
fn lbs_19_what_a_server_opens_is_ordinary() {
    let stage = stage("", &SERVERS);
    let server = connect(&stage, CLIENT);
    // From the service's own port, to its client and to others: translated, and not by the service's port.
    for remote in ["198.51.100.2:80", "198.51.100.1:5556"] {
        let seen = stage.crosses(&stage.syn(&server, remote));
        assert_eq!(seen.ip().source.to_string(), "203.0.113.1");
        assert_ne!(source(&seen), V);
        let answer = Packet::tcp(remote, source(&seen).as_str()).syn(SERVER_SEQ).ack(1);
        let seen = stage.reaches(&answer, tap_of(&stage, &server));
        assert_eq!(destination(&seen), server);
    }
    assert_eq!(
        source(&stage.crosses(&stage.udp("192.168.1.12:80", "198.51.100.2:53"))),
        public(80),
        "UDP's is free"
    );
    let rules: Vec<String> = stage
        .gateway
        .sessions()
        .iter()
        .map(|row| row["rule"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(rules.iter().filter(|rule| *rule == "web").count(), 1, "{rules:?}");
    assert_eq!(source(&stage.crosses(&stage.data(&server, CLIENT))), V);
}

/// A client that soon takes a port of its own again must not be led to the server that it had: that one may be down.
#[test]
fn lbs_17_a_port_used_again_is_a_new_connection() {
    for redirects in [false, true] {
        let stage = Stage::with(gateway::STANDARD);
        if redirects {
            stage.lab.gro_on();
        }
        stage.gateway.configure(&format!("{}{}", gateway::STANDARD, service("", &SERVERS[..2])));
        stage.gateway.text(&["reload"]);
        for reset in [false, true] {
            let first = connect(&stage, CLIENT);
            let close = |flags: u8| {
                stage.reaches(&stage.data(CLIENT, V).flags(flags), tap_of(&stage, &first));
                if flags & FIN != 0 {
                    stage.crosses(&stage.data(&first, CLIENT).flags(flags));
                }
            };
            close(if reset { RST } else { FIN | ACK });
            stage.gateway.text(&["service", "drain", "web", &first]);
            // Also while the daemon is told, the kernel alone would send the SYN to where the others went.
            let second = connect(&stage, CLIENT);
            assert_ne!(first, second, "after a reset {reset}, with redirects {redirects}");
            assert_eq!(stage.session_count(), 1);
            // One that is open stays where it is.
            stage.gateway.text(&["service", "drain", "web", &second]);
            stage.gateway.text(&["service", "weight", "web", &first, "1"]);
            stage.reaches(&stage.data(CLIENT, V), tap_of(&stage, &second));
            stage.gateway.text(&["service", "weight", "web", &second, "1"]);
            stage.gateway.text(&["session", "flush"]);
        }
        // A SYN that no answer was seen to, sent again once its server takes nothing new.
        let syn = Packet::tcp(CLIENT, V).syn(CLIENT_SEQ);
        let arrives = || {
            stage.send(&syn);
            arrival(&stage, |seen| seen.tcp().is_some_and(|tcp| tcp.flags == SYN))
                .expect("the SYN at a server")
        };
        let first = arrives();
        assert_eq!(arrives(), first, "a SYN that is sent again");
        stage.gateway.text(&["service", "drain", "web", first]);
        assert_ne!(arrives(), first);
    }
}
