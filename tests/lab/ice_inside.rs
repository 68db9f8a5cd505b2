//! ICMP errors from inside, and about what is forwarded, mapped one-to-one or hairpinned.

use nat_tests::{Decoded, Lab, Packet, decode::Ip, gateway};

use crate::{
    ice::{opened, quote_at_a},
    stage::{Stage, public, source},
};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";

/// An IP packet as it was seen: what errors quote.
fn bytes(seen: &Decoded) -> Vec<u8> {
    [seen.ip().header.clone(), seen.ip().body.clone()].concat()
}

/// Waits for an error of this type and code at the server; where it comes from, and what it quotes.
fn error_at_server(stage: &Stage, kind: u8, code: u8) -> (String, Ip) {
    let seen = stage.s1.expect(&format!("ICMP {kind}/{code}"), |seen| {
        seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code) == (kind, code))
    });
    assert_eq!(seen.checksums_valid(), Ok(()));
    (seen.ip().source.to_string(), *seen.icmp().unwrap().quoted.clone().expect("a quote"))
}

/// The ends of a quoted packet.
fn ends(quote: &Ip) -> (String, String) {
    (quote.source().to_string(), quote.destination().to_string())
}

#[test]
fn ice_14_errors_from_the_inside_speak_of_the_public_address() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let unwanted = stage.reaches(&stage.udp(SERVER, &mapped), &stage.a).ip().clone();
    let quoted = [unwanted.header, unwanted.body].concat();
    let seen = stage.reaches(&Packet::icmp_error("192.168.1.10", "198.51.100.1", 3, 3, &quoted), &stage.s1);
    assert_eq!(seen.ip().source.to_string(), "203.0.113.1");
    let quoted = seen.icmp().unwrap().quoted.clone().unwrap();
    assert_eq!((quoted.source().to_string(), quoted.destination().to_string()), (SERVER.to_owned(), mapped));
    assert_eq!(seen.checksums_valid(), Ok(()));
}

#[test]
fn ice_16_errors_from_the_inside_about_nothing_known_go_nowhere() {
    let stage = Stage::standard();
    let never_came = Packet::udp(SERVER, CLIENT).payload("never came").ip();
    stage.a.send(&Packet::icmp_error("192.168.1.10", "198.51.100.1", 3, 3, &never_came));
    stage.s1.expect_silence();
    stage.carries_the_next();
}

#[test]
fn ice_15_and_18_errors_of_a_router_on_the_inside() {
    let own_address = "[[static]]\nexternal = \"203.0.113.9\"\ninternal = \"192.168.1.2\"\n";
    for (rules, reporter) in [("", "203.0.113.1"), (own_address, "203.0.113.9")] {
        let builder = Lab::builder().inner_router();
        let stage = Stage::build(builder, &format!("{}{rules}", gateway::STANDARD));
        stage.d().send(&Packet::udp("192.168.2.10:40000", SERVER).payload("out"));
        let mapped = source(&stage.s1.expect_payload("out"));
        let (q, unwanted) = (stage.lab.q().tap(), Packet::udp(SERVER, mapped.as_str()));
        stage.s1.send(&unwanted.clone().payload("in"));
        let arrived = bytes(&stage.d().expect_payload("in"));
        // The provider, the gateway, and q's kernel has to say what became of it.
        stage.s1.send(&unwanted.clone().payload("dies").ttl(3));
        let (from, quote) = error_at_server(&stage, 11, 0);
        assert_eq!((from.as_str(), ends(&quote)), (reporter, (SERVER.to_owned(), mapped.clone())));
        stage.lab.q().ip("route add unreachable 192.168.2.10");
        stage.s1.send(&unwanted.clone().payload("nowhere"));
        let (from, quote) = error_at_server(&stage, 3, 1);
        assert_eq!((from.as_str(), ends(&quote)), (reporter, (SERVER.to_owned(), mapped.clone())));
        assert_eq!(quote.payload(), b"nowhere");
        // Reassembly is for end hosts: d's own words, with q or d as the source.
        for reporter_inside in ["192.168.1.2", "192.168.2.10"] {
            q.send(&Packet::icmp_error(reporter_inside, "198.51.100.1", 11, 1, &arrived));
            let (from, quote) = error_at_server(&stage, 11, 1);
            let expected = if reporter_inside == "192.168.1.2" { reporter } else { "203.0.113.1" };
            assert_eq!((from.as_str(), ends(&quote)), (expected, (SERVER.to_owned(), mapped.clone())));
        }
    }
}

#[test]
fn ice_17_an_error_about_a_hairpin_shows_outside_addresses_only() {
    let stage = Stage::snat("filtering = \"endpoint-independent\"");
    let of_b = source(&stage.crosses(&stage.udp("192.168.1.11:40001", SERVER)));
    let sent = stage.udp(CLIENT, &of_b);
    let seen = stage.reaches(&sent, &stage.b);
    let of_a = source(&seen);
    assert!(of_a.starts_with("203.0.113.1:"), "{of_a}");
    let error = Packet::icmp_error("192.168.1.11", "203.0.113.1", 3, 3, &bytes(&seen));
    stage.b.send(&error);
    let seen = stage.a.expect("b's error", |seen| seen.icmp().is_some());
    assert_eq!(seen.ip().source.to_string(), "203.0.113.1");
    assert_eq!(ends(&quote_at_a(&seen, &sent)), (CLIENT.to_owned(), of_b));
}

#[test]
fn ice_19_a_path_mtu_is_learnt_and_tcp_goes_on() {
    let stage = Stage::standard();
    for host in [&stage.lab.a, &stage.lab.s1] {
        host.nft("delete table ip mute");
        // Else the provider's errors quote packets whose checksum was never computed.
        host.offloads_off();
    }
    stage.lab.isp.ip("link set inet mtu 1280");
    stage.transfer(200_000);
    let error = stage.a.expect("ICMP 3/4", |seen| {
        seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code, icmp.seq) == (3, 4, 1280))
    });
    assert_eq!(error.ip().source.to_string(), "203.0.113.254");
    let route = stage.lab.a.ip("route get 198.51.100.1");
    assert!(route.contains("mtu 1280"), "{route}");
}

#[test]
fn ice_25_errors_about_forwards_and_one_to_one_turn_back_ports_and_addresses() {
    let forward = "[[forward]]\nprotocol = [\"tcp\", \"udp\"]\nexternal = \"203.0.113.1:8080\"\ninternal = \"192.168.1.10:80\"\n";
    let one_to_one = "[[static]]\nexternal = \"203.0.113.2\"\ninternal = \"192.168.1.10\"\n";
    for (rules, outside) in [(forward, "203.0.113.1:8080"), (one_to_one, "203.0.113.2:80")] {
        let stage = Stage::with(&format!("{}{rules}", gateway::STANDARD));
        let address = outside.split(':').next().unwrap();
        for (request, reply) in [
            (stage.udp(SERVER, outside), stage.udp("192.168.1.10:80", SERVER)),
            (stage.syn(SERVER, outside), Packet::tcp("192.168.1.10:80", SERVER).syn(5).ack(1)),
        ] {
            let seen = stage.reaches(&request, &stage.a);
            assert_eq!(seen.destination().unwrap().to_string(), "192.168.1.10:80");
            // From inside, about the request.
            stage.a.send(&Packet::icmp_error("192.168.1.10", "198.51.100.1", 3, 3, &bytes(&seen)));
            let (from, quote) = error_at_server(&stage, 3, 3);
            assert_eq!((from.as_str(), ends(&quote)), (address, (SERVER.to_owned(), outside.to_owned())));
            // From outside, about the reply: from the server, and from a router on the way.
            let (seen, quoted) = opened(&stage, &reply);
            assert_eq!(seen.source().to_string(), outside);
            for from in ["198.51.100.1", "203.0.113.254"] {
                stage.wan.send(&Packet::icmp_error(from, address, 3, 1, &quoted));
                let error = stage.a.expect("an error about the reply", |seen| seen.icmp().is_some());
                assert_eq!(error.ip().source.to_string(), from);
                assert_eq!(
                    ends(&quote_at_a(&error, &reply)),
                    ("192.168.1.10:80".to_owned(), SERVER.to_owned())
                );
            }
        }
    }
}

#[test]
fn ice_26_errors_about_protocols_without_ports() {
    let one_to_one = "[[static]]\nexternal = \"203.0.113.2\"\ninternal = \"192.168.1.10\"\n";
    let stage = Stage::with(&format!("{}{one_to_one}", gateway::STANDARD));
    for number in [2, 47, 50, 253] {
        let sent = Packet::raw("192.168.1.10", "198.51.100.1", number).payload(format!("protocol {number}"));
        let (_, quoted) = opened(&stage, &sent);
        let error = Packet::icmp_error("198.51.100.1", "203.0.113.2", 3, 2, &quoted);
        let seen = stage.reaches(&error, &stage.a);
        assert_eq!(quote_at_a(&seen, &sent).body, Decoded::parse(&sent.build()).ip().body);
        let came = Packet::raw("198.51.100.1", "203.0.113.2", number).payload(format!("answer {number}"));
        let came = bytes(&stage.reaches(&came, &stage.a));
        stage.a.send(&Packet::icmp_error("192.168.1.10", "198.51.100.1", 3, 2, &came));
        let (from, quote) = error_at_server(&stage, 3, 2);
        assert_eq!((from.as_str(), quote.destination.to_string().as_str()), ("203.0.113.2", "203.0.113.2"));
        // Behind the shared address only what has a session.
        let never_sent = Packet::raw("203.0.113.1", "198.51.100.1", number).payload("never sent").ip();
        let error = Packet::icmp_error("198.51.100.1", "203.0.113.1", 3, 2, &never_sent);
        stage.s1.send(&error);
        stage.b.expect_none("an error about nothing", |seen| seen.icmp().is_some());
        if number != 2 {
            let sent =
                Packet::raw("192.168.1.11", "198.51.100.1", number).payload(format!("of b, {number}, too"));
            let (_, quoted) = opened(&stage, &sent);
            let error = Packet::icmp_error("198.51.100.1", "203.0.113.1", 3, 2, &quoted);

            quote_at_a(&stage.reaches(&error, &stage.b), &sent);
        }
    }
    assert_eq!(source(&stage.crosses(&stage.udp("192.168.1.11:40000", SERVER))), public(40000));
}
