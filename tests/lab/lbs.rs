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
fn stage(lines: &str, servers: &[&str]) -> Stage {
    Stage::with(&format!("{}{}", gateway::STANDARD, service(lines, servers)))
}

/// Where a packet goes to, `address:port`.
pub(crate) fn destination(packet: &Decoded) -> String {
    packet.destination().map_or_else(|| panic!("no destination in {packet}"), |to| to.to_string())
}

/// Whether a packet goes to an endpoint.
fn is_to(packet: &Decoded, endpoint: &str) -> bool {
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

fn tap_of<'a>(stage: &'a Stage, server: &str) -> &'a Tap {
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

/// Sends first packets, some at a time, and says how many arrived at each server, with the source they came from.
fn spread(stage: &Stage, packets: &[Packet]) -> Vec<usize> {
    let opened = || listed(stage).values().map(|row| row["connections"].as_u64().unwrap()).sum::<u64>();
    let before = opened();
    let taps = [&stage.a, &stage.b, &stage.c];
    taps.into_iter().for_each(Tap::clear);
    for (number, some) in packets.chunks(500).enumerate() {
        for packet in some {
            stage.send(packet);
        }
        let sent = (number * 500 + some.len()) as u64;
        stage.gateway.wait_until("all were judged", Duration::from_secs(20), |_| opened() - before >= sent);
        taps.into_iter().for_each(Tap::drain);
    }
    let counts: Vec<usize> = taps
        .map(|tap| {
            // The last are on their way.
            std::thread::sleep(Duration::from_millis(100));
            tap.drain();
            tap.incoming(|seen| seen.tcp().is_some_and(|tcp| tcp.flags == SYN)).len()
        })
        .to_vec();
    assert_eq!(counts.iter().sum::<usize>(), packets.len(), "every first packet arrives once: {counts:?}");
    counts
}

/// SYNs of many clients.
fn syns(count: u32) -> Vec<Packet> {
    let client = |number: u32| {
        let host = ["198.51.100.1", "198.51.100.2", "198.51.101.1"][number as usize % 3];
        format!("{host}:{}", 1024 + number / 3)
    };
    (0..count).map(|number| Packet::tcp(client(number).as_str(), V).syn(number)).collect()
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
fn lbs_05_weights_and_turns_are_kept() {
    let weighted = "[[service.server]]\naddress = \"192.168.1.10:8080\"\nweight = 70\n\
                    [[service.server]]\naddress = \"192.168.1.11:8080\"\nweight = 30\n";
    let weighted = service(&format!("scheduler = \"weighted-round-robin\"\n{weighted}"), &[]);
    let stage = Stage::with(&format!("{}{weighted}", gateway::STANDARD));
    let counts = spread(&stage, &syns(10_000));
    assert!(counts[0].abs_diff(7000) <= 200 && counts[1].abs_diff(3000) <= 200, "{counts:?}");
    // In turn, each the same.
    stage.gateway.configure(&format!("{}{}", gateway::STANDARD, service("", &SERVERS)));
    stage.gateway.text(&["session", "flush"]);
    stage.gateway.text(&["reload"]);
    let counts = spread(&stage, &syns(1000));
    assert!(counts.iter().all(|count| count.abs_diff(333) <= 1), "{counts:?}");
}

#[test]
fn lbs_06_a_client_comes_back_to_its_server() {
    let stage = stage("persistence = \"10800s\"", &SERVERS);
    let server = connect(&stage, CLIENT);
    let end = Packet::tcp(CLIENT, V).seq(CLIENT_SEQ + 1).ack(SERVER_SEQ + 1).flags(RST);
    stage.reaches(&end, tap_of(&stage, &server));
    stage.gateway.text(&["session", "flush"]);
    for port in 6000..6070 {
        let seen = stage.reaches(&stage.syn(&format!("198.51.100.1:{port}"), V), tap_of(&stage, &server));
        assert_eq!(destination(&seen), server);
    }
    let others =
        ["198.51.100.2:1", "198.51.101.1:1", "198.51.100.66:1"].map(|client| connect(&stage, client));
    assert!(others.iter().any(|other| *other != server), "others are spread: {others:?}");
    assert_eq!(connect(&stage, "198.51.100.2:2"), others[0]);
}

#[test]
fn lbs_07_servers_come_and_go_while_connections_stay() {
    let stage = stage("", &SERVERS[..2]);
    let service = |arguments: &[&str]| stage.gateway.text(&[&["service"], arguments].concat());
    let (one, other) = (connect(&stage, "198.51.100.1:1"), connect(&stage, "198.51.100.1:2"));
    assert_ne!(one, other);
    let lives = |client: &str, server: &str| {
        stage.reaches(&stage.data(client, V), tap_of(&stage, server));
        stage.crosses(&stage.data(server, client));
    };
    // One more.
    service(&["add", "web", SERVERS[2]]);
    lives("198.51.100.1:1", &one);
    lives("198.51.100.1:2", &other);
    let mut all: Vec<String> = (3..6).map(|port| connect(&stage, &format!("198.51.100.1:{port}"))).collect();
    all.sort();
    assert_eq!(all, SERVERS);
    // Drained, or of no weight, it finishes what it has.
    for (command, clients) in
        [(&["drain", "web", one.as_str()][..], 10..16), (&["weight", "web", &one, "0"], 20..26)]
    {
        assert!(service(command).contains("draining"));
        for client in clients {
            assert_ne!(connect(&stage, &format!("198.51.100.1:{client}")), one);
        }
        lives("198.51.100.1:1", &one);
        service(&["weight", "web", &one, "1"]);
        let next = (0..3).map(|port| connect(&stage, &format!("198.51.100.2:{}{port}", command.len())));
        assert!(next.collect::<Vec<_>>().contains(&one), "and is back");
    }
    // Taken out, what it has is reset at both ends.
    let clients: Vec<Value> = stage.gateway.sessions();
    service(&["remove", "web", &one]);
    stage.s1.expect("an RST", |seen| {
        is_to(seen, "198.51.100.1:1") && seen.tcp().is_some_and(|tcp| tcp.flags & RST != 0)
    });
    tap_of(&stage, &one).expect("an RST", |seen| {
        seen.source().is_some_and(|from| from.to_string() == "198.51.100.1:1")
            && seen.tcp().is_some_and(|tcp| tcp.flags & RST != 0)
    });
    stage.stopped(&stage.data("198.51.100.1:1", V), tap_of(&stage, &one));
    lives("198.51.100.1:2", &other);
    for client in 30..34 {
        assert_ne!(connect(&stage, &format!("198.51.100.1:{client}")), one);
    }
    let left: Vec<Value> = stage.gateway.sessions();
    let of_one = |rows: &[Value]| rows.iter().filter(|row| row["inside"] == one.as_str()).count();
    assert!(of_one(&clients) > 0 && of_one(&left) == 0, "{left:?}");
    // What does not exist is refused in words.
    let refused = stage.gateway.output(&["service", "drain", "web", &one]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("has no server") && said.contains(&other), "{said}");
}

#[test]
fn lbs_08_without_a_server_a_client_is_told() {
    for (number, servers) in [&[][..], &SERVERS[..1]].into_iter().enumerate() {
        let stage = stage("", servers);
        if number == 1 {
            connect(&stage, CLIENT);
            stage.gateway.text(&["service", "drain", "web", SERVERS[0]]);
        }
        let before = (stage.session_count(), stage.gateway.natgw(&["pool", "list", "--json"]));
        for port in 7000..7005 {
            let sent = stage.send(&stage.syn(&format!("198.51.100.1:{port}"), V));
            let told = stage
                .s1
                .expect("ICMP 3/1", |seen| seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code) == (3, 1)));
            assert_eq!(told.ip().source.to_string(), "203.0.113.1");
            let quoted = told.icmp().unwrap().quoted.clone().unwrap();
            assert_eq!(
                (Some(quoted.source()), Some(quoted.destination())),
                (sent.source(), sent.destination())
            );
        }
        assert_eq!((stage.session_count(), stage.gateway.natgw(&["pool", "list", "--json"])), before);
        assert_eq!(stage.gateway.drops()["no_server"], 5);
    }
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
fn lbs_12_schedulers_spread_and_stay() {
    let ten: Vec<String> = (0..10).map(|number| format!("192.168.1.{}:8080", 10 + number)).collect();
    let ten: Vec<&str> = ten.iter().map(String::as_str).collect();
    // Only a, b and c are there; where the others' go is in the listing, and seven hosts more on c's wire.
    let stage = stage("scheduler = \"maglev\"", &ten);
    for number in 3..10 {
        stage.lab.c.ip(&format!("addr add 192.168.1.{}/24 dev eth0", 10 + number));
    }
    for scheduler in ["maglev", "source-hash"] {
        let line = format!("scheduler = \"{scheduler}\"");
        stage.gateway.configure(&format!("{}{}", gateway::STANDARD, service(&line, &ten)));
        stage.gateway.text(&["session", "flush"]);
        stage.gateway.text(&["reload"]);
        let clients = clients();
        let before = servers_of(&stage, &clients);
        let used: std::collections::BTreeSet<&String> = before.iter().collect();
        assert_eq!(used.len(), 10, "{scheduler}: {used:?}");
        stage.gateway.text(&["service", "remove", "web", ten[4]]);
        stage.gateway.text(&["session", "flush"]);
        let after = servers_of(&stage, &clients);
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        assert!(moved * 100 <= clients.len() * 15, "{scheduler}: {moved} of {} moved", clients.len());
        assert!(after.iter().all(|server| server != ten[4]));
    }
    // The one with the fewest gets the next.
    stage.gateway.configure(&format!(
        "{}{}",
        gateway::STANDARD,
        service("scheduler = \"least-connections\"", &SERVERS)
    ));
    stage.gateway.text(&["session", "flush"]);
    stage.gateway.text(&["reload"]);
    let busy: Vec<String> = (1..7).map(|port| connect(&stage, &format!("198.51.100.1:{port}"))).collect();
    let idle = &busy[0];
    for (port, _) in (1..7).zip(&busy).filter(|(_, server)| *server == idle) {
        stage.gateway.text(&["session", "delete", "--remote", &format!("198.51.100.1:{port}")]);
    }
    assert_eq!(
        [connect(&stage, "198.51.100.1:8"), connect(&stage, "198.51.100.1:9")],
        [idle.clone(), idle.clone()]
    );
}

/// Clients with addresses of their own, as source-hash tells them apart.
fn clients() -> Vec<String> {
    let of = |network: u32| (100..220).map(move |host| format!("198.51.{network}.{host}:4000"));
    (100..102).flat_map(of).collect()
}

/// Which server each client's SYN arrives at.
fn servers_of(stage: &Stage, clients: &[String]) -> Vec<String> {
    let taps = [&stage.a, &stage.b, &stage.c];
    taps.into_iter().for_each(Tap::clear);
    let mut at = BTreeMap::new();
    for some in clients.chunks(100) {
        for client in some {
            stage.s1.send(&Packet::tcp(client.as_str(), V).syn(1));
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while !some.iter().all(|client| at.contains_key(client)) {
            assert!(Instant::now() < deadline, "{} of {} arrived", at.len(), clients.len());
            for tap in taps {
                tap.drain();
                for seen in tap.incoming(|seen| seen.tcp().is_some_and(|tcp| tcp.flags == SYN)) {
                    at.insert(source(&seen), destination(&seen));
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    clients.iter().map(|client| at[client].clone()).collect()
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
