//! Sessions as they begin, change and end.

use std::{fs, path::PathBuf, time::Duration};

use nat_tests::{Packet, host::Process, packet::tcp};
use serde_json::Value;

use crate::stage::{CLIENT_SEQ, SERVER_SEQ, Stage, public};

const SERVER: &str = "198.51.100.1:5000";

/// A `natgw session watch --json` that is at work.
struct Watch<'stage> {
    stage: &'stage Stage,
    path: PathBuf,
    _process: Process,
}

impl<'stage> Watch<'stage> {
    /// Begins, and makes sure of it by sessions of another host, which it is asked for, too.
    fn begin(stage: &'stage Stage, name: &str, filter: &[&str]) -> Self {
        let path = stage.gateway.socket().with_extension(name);
        let process = stage.gateway.spawn(&[&["session", "watch", "--json"], filter].concat(), &path);
        Self { stage, path, _process: process }
    }

    /// What is told of an inside endpoint: the event, the state and the rule.
    fn told(&self, inside: &str) -> Vec<[String; 3]> {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        let lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        let lines = lines.map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"));
        let of = lines.filter(|line| line["inside"] == inside);
        of.map(|line| ["event", "state", "rule"].map(|field| line[field].as_str().unwrap_or("").to_owned()))
            .collect()
    }

    fn expect(&self, inside: &str, wanted: &[[&str; 3]]) {
        self.stage
            .gateway
            .wait_until(&format!("{wanted:?}"), Duration::from_secs(12), |_| self.told(inside) == wanted);
    }
}

#[test]
fn a_watch_tells_each_step_of_a_session() {
    let stage = Stage::timeouts("tcp_closing = \"3s\"\nudp = \"3s\"");
    let watches = [
        Watch::begin(&stage, "all", &[]),
        Watch::begin(
            &stage,
            "filtered",
            &["--inside", "192.168.1.10", "--protocol", "tcp", "--state", "established"],
        ),
        Watch::begin(&stage, "none", &["--rule", "other"]),
    ];
    // Until all three watch; of these sessions the second and the third are told nothing.
    let mut port = 50_000;
    while watches[0].told(&format!("192.168.1.12:{port}")).is_empty() {
        port += 1;
        stage.crosses(&stage.udp(&format!("192.168.1.12:{port}"), SERVER));
        crate::stage::seconds(0.3);
    }
    crate::stage::seconds(0.5);
    let client = "192.168.1.10:41000";
    let seen = stage.connect(client, SERVER);
    let created = ["session_created", "opening", "office"];
    let established = ["session_established", "established", "office"];
    watches[0].expect(client, &[created, established]);
    // Both ends finish.
    let fin = |source: &str, destination: &str, own: u32, other: u32| {
        Packet::tcp(source, destination).flags(tcp::FIN).seq(own + 1).ack(other + 1)
    };
    stage.crosses(&fin(client, SERVER, CLIENT_SEQ, SERVER_SEQ));
    stage.reaches(&fin(SERVER, &seen, SERVER_SEQ, CLIENT_SEQ), &stage.a);
    let closed = ["session_closed", "closing", "office"];
    watches[0].expect(client, &[created, established, closed]);
    watches[0].expect(client, &[created, established, closed, ["session_expired", "closing", "office"]]);
    assert_eq!(watches[1].told(client), [established]);
    // A datagram's session begins and expires; one that is deleted is told apart.
    let (idle, deleted) = ("192.168.1.11:42000", "192.168.1.11:42001");
    stage.crosses(&stage.udp(idle, SERVER));
    stage.crosses(&stage.udp(deleted, SERVER));
    stage.gateway.text(&["session", "delete", "--inside", deleted]);
    let created = ["session_created", "active", "office"];
    watches[0].expect(deleted, &[created, ["session_deleted", "active", "office"]]);
    watches[0].expect(idle, &[created, ["session_expired", "active", "office"]]);
    // A connection that is refused is closed without having been established.
    let refused = "192.168.1.10:41001";
    stage.crosses(&Packet::tcp(refused, SERVER).syn(7));
    stage.reaches(&Packet::tcp(SERVER, public(41001).as_str()).flags(tcp::RST).seq(0).ack(8), &stage.a);
    watches[0]
        .expect(refused, &[["session_created", "opening", "office"], ["session_closed", "reset", "office"]]);
    assert_eq!(fs::read_to_string(&watches[2].path).expect("a file"), "");
}
