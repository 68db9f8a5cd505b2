//! The configurations of docs/guides, in force: what each guide promises.

use std::time::Duration;

use nat_tests::{Lab, Packet};

use crate::stage::{Stage, public, source};

const SERVER: &str = "198.51.100.1:5000";

/// An example, with the addresses and names of the lab.
fn example(text: &str) -> String {
    let names =
        [("10.1.", "192.168."), ("10.0.0.0/8", "192.168.0.0/16"), ("\"fiber", "\"wan"), ("\"lte", "\"wan2")];
    // The metrics of several tests at once would want one port.
    let text = text.replace("listen = \"127.0.0.1:9477\"", "listen = \"\"");
    names.iter().fold(text, |text, (from, to)| text.replace(from, to))
}

#[test]
fn home() {
    let stage = Stage::with(&example(include_str!("../../examples/home.toml")));
    assert_eq!(source(&stage.crosses(&stage.udp("192.168.1.10:40000", SERVER))), public(40000));
    let words = "rule add forward --name console --protocol udp --external wan:3074 --internal 192.168.1.12:3074 --save";
    stage.gateway.text(&words.split_whitespace().collect::<Vec<_>>());
    stage.reaches(&stage.udp("198.51.100.2:7", &public(3074)), &stage.c);
    // Also from inside, at the external address.
    stage.reaches(&stage.udp("192.168.1.10:40001", &public(3074)), &stage.c);
    stage.stopped(&stage.udp("198.51.100.2:7", &public(3075)), &stage.c);
}

#[test]
fn two_uplinks() {
    let text = example(include_str!("../../examples/two-uplinks.toml"))
        .replace("192.168.1.25:25", "192.168.1.12:25");
    let stage = Stage::build(Lab::builder().second_uplink(), &text);
    let own = &stage.lab.gateway;
    own.ip("route replace default via 203.0.113.254 metric 100");
    own.ip("route add default via 192.0.2.254 metric 200");
    assert_eq!(source(&stage.crosses(&stage.udp("192.168.1.10:40000", SERVER))), public(40000));
    for external in ["203.0.113.1:25", "192.0.2.1:25"] {
        stage.reaches(&stage.syn("198.51.100.2:7", external), &stage.c);
    }
    // The first fails: what is new leaves by the second.
    own.ip("link set wan down");
    stage.gateway.wait_until("the other way is taken", Duration::from_secs(10), |gateway| {
        stage.send(&stage.udp("192.168.1.11:40001", SERVER));
        gateway.sessions().iter().any(|session| session["outside"] == "192.0.2.1:40001")
    });
    assert_eq!(source(&stage.crosses(&stage.udp("192.168.1.11:40001", SERVER))), "192.0.2.1:40001");
}

#[test]
fn cloud() {
    let stage = Stage::with(&example(include_str!("../../examples/cloud.toml")));
    assert_eq!(source(&stage.crosses(&stage.udp("192.168.1.10:40000", SERVER))), public(40000));
    // Its filter lets the remote's own port in and no other.
    stage.reaches(&stage.udp(SERVER, &public(40000)), &stage.a);
    stage.stopped(&stage.udp("198.51.100.1:5001", &public(40000)), &stage.a);
}

#[test]
fn one_to_one() {
    let text = example(include_str!("../../examples/one-to-one.toml"))
        .replace("192.168.1.50", "192.168.1.10")
        .replace("192.168.2.0/28", "192.168.1.0/28")
        .replace("internal = \"192.168.1.10\"", "internal = \"192.168.1.50\"");
    let stage = Stage::with(&text);
    // The thirteenth of sixteen.
    assert_eq!(source(&stage.crosses(&stage.udp("192.168.1.12:40000", SERVER))), "203.0.113.76:40000");
    stage.reaches(&stage.udp("198.51.100.2:7", "203.0.113.76:9"), &stage.c);
    assert_eq!(stage.session_count(), 0);
    assert!(stage.lab.gateway.ip("address show wan").contains("203.0.113.50/32"));
}

#[test]
fn web_farm() {
    // Their kernels are mute: nothing checks them here.
    let text = example(include_str!("../../examples/web-farm.toml"))
        .replace("192.168.1.21", "192.168.1.11")
        .replace("192.168.1.22", "192.168.1.12");
    let at = text.find("check = ").expect("a check");
    let end = at + text[at..].find('\n').expect("a line");
    let stage = Stage::with(&format!("{}check = {{ kind = \"none\" }}{}", &text[..at], &text[end..]));
    let asks = |client: &str| Packet::tcp(client, public(80).as_str()).syn(stage.token() << 16);
    // The first gets the first server, and comes back to it; with that drained, another gets the second.
    stage.reaches(&asks("198.51.100.1:6000"), &stage.b);
    stage.reaches(&asks("198.51.100.1:6001"), &stage.b);
    stage.gateway.text(&["service", "drain", "web", "192.168.1.11:8080"]);
    stage.reaches(&asks("198.51.100.2:6000"), &stage.c);
}
