//! Document 004: a fragmented ping under overload, in orders that a router has lost.

use nat_tests::{Decoded, Lab, Packet, decode::Ip, packet::protocol, wire::PATIENCE};

use crate::{
    frg::{ORDERS, SIZE, all_whole, datagram, waiting, whole},
    stage::{Stage, seconds},
};

const CLIENT: &str = "172.16.0.1";
const SERVER: &str = "172.17.1.2";
const POOL_OF_ONE: &str = "10.10.10.3";
const POOL_OF_THREE: &str = "10.10.10.3-10.10.10.5";
/// The ICMP id of the document's pings.
const ID: u16 = 24_320;

/// The document's network: 172.16.0.0/24 inside, of which the first 32 are translated to `pool`.
fn founding(pool: &str) -> Stage {
    let lab = Lab::builder().forwarding().build();
    lab.gateway.ip("addr add 172.16.0.254/24 dev lan");
    for client in ["172.16.0.1", "172.16.0.2", "172.16.0.32"] {
        lab.a.ip(&format!("addr add {client}/24 dev eth0"));
    }
    lab.s1.ip("addr add 172.17.1.2/24 dev eth0");
    lab.isp.ip("addr add 172.17.1.254/24 dev inet");
    lab.isp.ip("route add 10.10.10.0/24 via 203.0.113.1");
    lab.isp.ip("route add 172.16.0.0/24 via 203.0.113.1");
    let stage = Stage::on(
        lab,
        &format!(
            r#"
[[interface]]
name = "lan"
side = "inside"

[[interface]]
name = "wan"
side = "outside"

[[snat]]
source = ["172.16.0.0/27"]
out = "wan"
to = ["{pool}"]

[timeouts]
icmp = "3s"
quarantine = "0s"
"#
        ),
    );
    // Here the addresses outside are private ones.
    stage.expect_bad_packets();
    // The server's kernel answers pings.
    stage.lab.s1.nft("delete table ip mute");
    stage
}

/// 3600 bytes of ICMP payload that differ from one ping to the next.
fn payload(stage: &Stage) -> Vec<u8> {
    let token = stage.token();
    (0..900).flat_map(|at: u32| (at * 7919 + token * 104_729).to_be_bytes()).collect()
}

/// Pings from `client` with `ip_id` and `order`: all fragments leave from one address, with one identification, and the
/// answer comes back. Which address that is.
fn ping(stage: &Stage, client: &str, id: u16, ip_id: u16, order: &[usize]) -> String {
    let out = payload(stage);
    let what = format!("{client}, id {id}, IP id {ip_id}, {order:?}");
    stage.s1.clear();
    stage.a.send_fragments(
        &Packet::echo_request(client, SERVER, id, ip_id).payload(&out).id(ip_id),
        SIZE,
        order,
    );
    let seen = all_whole(&stage.s1, 1, &what);
    assert_eq!(seen[0].payload(), out, "{what}");
    let fragments = stage.s1.incoming(|seen| seen.ip.as_ref().is_some_and(Ip::is_fragment));
    assert_eq!(fragments.len(), 3, "{what}");
    assert!(fragments.iter().all(|piece| (piece.ip().source, piece.ip().id) == (seen[0].source, seen[0].id)));
    let reply = whole(&stage.a, SERVER, &out, &format!("the answer to {what}"));
    assert_eq!(reply.destination().to_string(), format!("{client}:{id}"), "{what}");
    seen[0].source.to_string()
}

#[test]
fn s004_01_to_03_05_06_08_and_09_a_pool_of_one() {
    let stage = founding(POOL_OF_ONE);
    // Case 1: the first packet in the order 0, 2, 1; then the one that was lost.
    assert_eq!(ping(&stage, CLIENT, ID, 1, &[0, 2, 1]), POOL_OF_ONE);
    assert_eq!(ping(&stage, CLIENT, ID, 2, &[1, 0, 2]), POOL_OF_ONE);
    let listed = |stage: &Stage| {
        let text = stage.gateway.natgw(&["session", "list", "--json"]);
        let row = |row: &serde_json::Value| {
            ["protocol", "outside", "inside", "remote"].map(|key| row[key].as_str().unwrap_or("").to_owned())
        };
        text.as_array().unwrap().iter().map(row).collect::<Vec<_>>()
    };
    let entry = ["icmp", "10.10.10.3:24320", "172.16.0.1:24320", "172.17.1.2:24320"].map(str::to_owned);
    assert_eq!(listed(&stage), std::slice::from_ref(&entry));
    // Case 2: an empty table and the order 1, 0, 2. The entry is whole, and the address is still there for others.
    stage.gateway.text(&["session", "flush"]);
    assert_eq!(stage.session_count(), 0);
    assert_eq!(ping(&stage, CLIENT, ID, 3, &[1, 0, 2]), POOL_OF_ONE);
    assert_eq!(listed(&stage), [entry]);
    assert_eq!(ping(&stage, "172.16.0.2", ID, 3, &[1, 0, 2]), POOL_OF_ONE);
    assert_eq!(ping(&stage, CLIENT, ID, 4, &[1, 0, 2]), POOL_OF_ONE);
    // With the same ICMP id and with another.
    assert_eq!(ping(&stage, CLIENT, ID, 5, &[0, 2, 1]), POOL_OF_ONE);
    assert_eq!(ping(&stage, CLIENT, ID + 1, 6, &[0, 2, 1]), POOL_OF_ONE);
    // Two pings of one ICMP id under way at once: the IP ids tell their fragments apart.
    let outs = [payload(&stage), payload(&stage)];
    let pings = [7, 8].map(|ip_id| {
        Packet::echo_request(CLIENT, SERVER, ID, ip_id).payload(&outs[usize::from(ip_id) - 7]).id(ip_id)
    });
    for (which, fragment) in [(0, 1), (1, 1), (1, 0), (0, 2), (0, 0), (1, 2)] {
        stage.a.send_fragments(&pings[which], SIZE, &[fragment]);
    }
    let replies = all_whole(&stage.a, 2, "the answers to both");
    assert!(outs.iter().all(|out| replies.iter().any(|reply| reply.payload() == out)));
    // After the table was cleared, and after it ran out, everything works from scratch.
    for (turn, order) in (0..).zip(ORDERS) {
        stage.gateway.text(&["session", "flush"]);
        ping(&stage, CLIENT, ID, 100 + turn, &order);
    }
    stage.forgets_within(2 * PATIENCE);
    for (turn, order) in (0..).zip(ORDERS) {
        ping(&stage, CLIENT, ID, 200 + turn, &order);
    }
    assert_eq!(waiting(&stage.gateway), 0);
}

#[test]
fn s004_04_and_05_a_pool_of_three() {
    let stage = founding(POOL_OF_THREE);
    // An extended entry is there.
    let first = ping(&stage, CLIENT, ID, 1, &[0, 1, 2]);
    assert!(first.starts_with("10.10.10."), "{first} is of the pool");
    for (ip_id, order) in (2..).zip([[1, 0, 2], [0, 2, 1], [2, 1, 0]]) {
        assert_eq!(ping(&stage, CLIENT, ID, ip_id, &order), first, "{order:?}");
        assert_eq!(ping(&stage, CLIENT, ID + ip_id, 10 + ip_id, &order), first, "{order:?}, another ICMP id");
    }
}

#[test]
fn s004_07_all_144_runs() {
    let mut runs = 0;
    for pool in [POOL_OF_ONE, POOL_OF_THREE] {
        let stage = founding(pool);
        stage.lab.s1.mute();
        let (client, server) = ("172.16.0.1:24320", "172.17.1.2:7");
        for number in [protocol::UDP, protocol::TCP, protocol::ICMP] {
            for order in ORDERS {
                for warm in [false, true] {
                    for reply_direction in [false, true] {
                        runs += 1;
                        let what = format!(
                            "pool {pool}, protocol {number}, {order:?}, warm {warm}, reply {reply_direction}"
                        );
                        let ids = [1000 + 2 * runs, 1001 + 2 * runs];
                        if !warm {
                            stage.gateway.text(&["session", "flush"]);
                        }
                        let [there, back] =
                            if reply_direction { [[0, 1, 2], order] } else { [order, [0, 1, 2]] };
                        let out = payload(&stage);
                        let packet = datagram(number, client, server, ID, false).payload(&out).id(ids[0]);
                        stage.a.send_fragments(&packet, SIZE, &there);
                        let seen = arrival(&stage, &out, &what);
                        let answer = payload(&stage);
                        let id = seen.rsplit(':').next().unwrap().parse().unwrap();
                        let packet = datagram(number, server, &seen, id, true).payload(&answer).id(ids[1]);
                        stage.s1.send_fragments(&packet, SIZE, &back);
                        let seen = whole(&stage.a, SERVER, &answer, &what);
                        assert_eq!(seen.destination().to_string(), client, "{what}");
                    }
                }
            }
        }
    }
    assert_eq!(runs, 144);
}

/// The one datagram that came to the server: from where.
fn arrival(stage: &Stage, out: &[u8], what: &str) -> String {
    let first = stage.s1.expect(what, |seen| seen.ip.as_ref().is_some_and(Ip::is_fragment));
    let from = first.ip().source;
    let mut pieces: Vec<Decoded> = vec![first];
    while pieces.len() < 3 {
        pieces.push(
            stage.s1.expect(what, |seen| {
                seen.ip.as_ref().is_some_and(|ip| ip.is_fragment() && ip.source == from)
            }),
        );
    }
    let datagram = nat_tests::decode::reassemble(&pieces).unwrap_or_else(|| panic!("{what}: not whole"));
    assert_eq!((datagram.checksums_valid(), datagram.payload()), (Ok(()), out), "{what}");
    assert!(from.to_string().starts_with("10.10.10."), "{what}: from {from}");
    datagram.source().to_string()
}

#[test]
fn s004_10_who_is_not_in_the_list_is_not_translated() {
    let stage = founding(POOL_OF_ONE);
    for (turn, order) in (0..).zip(ORDERS) {
        let out = payload(&stage);
        let echo = Packet::echo_request("172.16.0.32", SERVER, ID, turn).payload(&out).id(turn);
        stage.a.send_fragments(&echo, SIZE, &order);
        whole(&stage.s1, "172.16.0.32", &out, &format!("{order:?}"));
        whole(&stage.a, SERVER, &out, &format!("{order:?}, the answer"));
        // And its neighbour in the list is.
        assert_eq!(ping(&stage, "172.16.0.2", ID, 100 + turn, &order), POOL_OF_ONE);
    }
    seconds(0.1);
    assert!(stage.gateway.sessions().iter().all(|row| row["inside"] == "172.16.0.2:24320"));
}
