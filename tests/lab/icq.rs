//! ICMP queries: echo and its like, which have an identifier where others have a port.

use nat_tests::Packet;

use crate::stage::{Stage, port, seconds};

/// A timestamp query or its reply: identifier, sequence number, three times.
fn timestamp(source: &str, destination: &str, kind: u8, id: u16) -> Packet {
    Packet::icmp(source, destination, kind, 0).rest(id, 1).payload([7; 12])
}

#[test]
fn icq_01_an_echo_returns_with_its_own_id() {
    let stage = Stage::standard();
    let request = Packet::echo_request("192.168.1.10", "198.51.100.1", 305, 7).payload([0x55; 56]);
    let id = port(&stage.crosses(&request));
    let reply = Packet::echo_reply("198.51.100.1", "203.0.113.1", id, 7).payload([0x55; 56]);
    assert_eq!(port(&stage.reaches(&reply, &stage.a)), 305);
}

#[test]
fn icq_02_two_hosts_with_one_id_get_their_own_replies() {
    let stage = Stage::standard();
    let of = |client: &str| port(&stage.crosses(&Packet::echo_request(client, "198.51.100.1", 305, 1)));
    let (a, b) = (of("192.168.1.10"), of("192.168.1.11"));
    assert_ne!(a, b);
    stage.reaches(&Packet::echo_reply("198.51.100.1", "203.0.113.1", a, 2).payload("to a"), &stage.a);
    stage.reaches(&Packet::echo_reply("198.51.100.1", "203.0.113.1", b, 2).payload("to b"), &stage.b);
}

#[test]
fn icq_03_a_query_lives_its_time() {
    let stage = Stage::timeouts("icmp = \"3s\"");
    let id = port(&stage.crosses(&Packet::echo_request("192.168.1.10", "198.51.100.1", 305, 1)));
    seconds(2.5);
    stage.reaches(&Packet::echo_reply("198.51.100.1", "203.0.113.1", id, 1), &stage.a);
    seconds(4.5);
    stage.stopped(&Packet::echo_reply("198.51.100.1", "203.0.113.1", id, 2), &stage.a);
    assert_eq!(stage.session_count(), 0);
}

#[test]
fn icq_12_pings_of_every_size() {
    let stage = Stage::standard();
    for host in [&stage.lab.a, &stage.lab.s1] {
        host.nft("delete table ip mute");
    }
    for size in ["0", "56", "1472", "1473", "4000", "65507"] {
        let ping = stage.lab.a.run(&format!("ping -c 3 -i 0.05 -W 2 -s {size} 198.51.100.1"));
        let text = String::from_utf8_lossy(&ping.stdout).into_owned();
        assert!(text.contains(" 0% packet loss"), "size {size}:\n{text}");
        // ping compares what comes back byte by byte.
        assert!(!text.contains("wrong data"), "size {size}:\n{text}");
    }
    let flood = stage.lab.a.succeed("ping -f -c 1000 -W 2 198.51.100.1");
    assert!(flood.contains("1000 received"), "{flood}");
}

#[test]
fn icq_13_a_code_is_kept_and_a_stump_is_dropped() {
    let stage = Stage::standard();
    let seen = stage.crosses(&Packet::icmp("192.168.1.10", "198.51.100.1", 8, 5).rest(7, 1));
    assert_eq!(seen.icmp().map(|icmp| icmp.code), Some(5));
    let stump = Packet::raw("192.168.1.10", "198.51.100.1", 1).payload([8, 0, 0xf7, 0xff, 0, 0, 0]);
    stage.stopped(&stump, &stage.s1);
}

#[test]
fn icq_04_timestamps_are_queries_and_address_masks_are_dropped() {
    let stage = Stage::standard();
    let of = |client: &str| port(&stage.crosses(&timestamp(client, "198.51.100.1", 13, 305)));
    let (a, b) = (of("192.168.1.10"), of("192.168.1.11"));
    assert_ne!(a, b, "two queries with one id are told apart");
    for (id, tap) in [(a, &stage.a), (b, &stage.b)] {
        let reply = timestamp("198.51.100.1", "203.0.113.1", 14, id);
        assert_eq!(port(&stage.reaches(&reply, tap)), 305);
    }
    let before = stage.session_count();
    let dropped = || stage.gateway.drops().get("icmp_error").copied().unwrap_or(0);
    assert_eq!(dropped(), 0);
    stage.stopped(&Packet::icmp("192.168.1.10", "198.51.100.1", 17, 0).rest(9, 1).payload([0; 4]), &stage.s1);
    stage.stopped(&Packet::icmp("198.51.100.1", "203.0.113.1", 18, 0).rest(9, 1).payload([0; 4]), &stage.a);
    assert_eq!(stage.session_count(), before);
    assert_eq!(dropped(), 1, "the query; what claims to be a reply was the gateway's own stack's");
}

#[test]
fn icq_05_and_10_what_is_obsolete_or_for_the_link_makes_no_state() {
    // A kernel that forwards: what natgw left to it would be seen outside.
    let stage = Stage::build(nat_tests::Lab::builder().forwarding(), nat_tests::gateway::STANDARD);
    let mapped = stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.1:5000"));
    let quoted = [mapped.ip().header.clone(), mapped.ip().body.clone()].concat();
    let kinds = [(4, "source quench"), (15, "information request"), (16, "information reply")];
    let more =
        [(10, "router solicitation"), (9, "router advertisement"), (40, "photuris"), (253, "experiment")];
    for (kind, name) in kinds.into_iter().chain(more) {
        for payload in [&quoted[..], &[]] {
            stage
                .a
                .send(&Packet::icmp("192.168.1.10", "198.51.100.1", kind, 0).rest(305, 1).payload(payload));
            stage
                .s1
                .send(&Packet::icmp("198.51.100.1", "203.0.113.1", kind, 0).rest(40_000, 1).payload(payload));
        }
        // RFC 1256: solicitations and advertisements go to groups or to the link's neighbours.
        stage.a.send(&Packet::icmp("192.168.1.10", "192.168.1.1", kind, 0));
        stage.a.send(&Packet::icmp("192.168.1.10", "255.255.255.255", kind, 0));
        stage.s1.expect_none(name, |seen| seen.icmp().is_some());
        stage.a.expect_none(name, |seen| seen.icmp().is_some());
        assert_eq!(stage.session_count(), 1, "{name}");
    }
    stage.crosses(&Packet::echo_request("192.168.1.10", "198.51.100.1", 305, 1));
}

#[test]
fn icq_06_and_07_the_gateway_answers_for_itself() {
    let stage = Stage::timeouts("icmp = \"4s\"");
    let query = Packet::echo_request("192.168.1.10", "198.51.100.1", 305, 1);
    let mapped = port(&stage.crosses(&query));
    let opened = std::time::Instant::now();
    while opened.elapsed().as_secs_f64() < 3.5 {
        for id in [mapped, 4711] {
            stage.s1.send(&Packet::echo_request("198.51.100.1", "203.0.113.1", id, 3).payload("knock"));
            let reply = stage.s1.expect_payload("knock");
            let icmp = reply.icmp().unwrap();
            assert_eq!((icmp.kind, icmp.id, icmp.seq), (0, id, 3));
            assert_eq!(reply.ip().source.to_string(), "203.0.113.1");
        }
        seconds(0.5);
    }
    stage.lan_is_silent();
    // Requests with the mapping's id have not kept the session alive.
    stage.forgets_within(std::time::Duration::from_secs(3));
}

#[test]
fn icq_08_replies_that_nobody_asked_for_stay_out() {
    for (filtering, admitted) in [("address-dependent", false), ("endpoint-independent", true)] {
        let stage = Stage::snat(&format!("filtering = \"{filtering}\""));
        let id = port(&stage.crosses(&Packet::echo_request("192.168.1.10", "198.51.100.1", 305, 1)));
        stage.s1.send(&Packet::echo_reply("198.51.100.1", "203.0.113.1", id ^ 1, 1));
        let of_another = Packet::echo_reply("198.51.100.66", "203.0.113.1", id, 7);
        if admitted {
            assert_eq!(port(&stage.reaches(&of_another, &stage.a)), 305);
        } else {
            stage.attacker.send(&of_another);
        }
        stage.lan_is_silent();
        stage.s1.expect_silence();
        stage.attacker.expect_silence();
        stage.reaches(&Packet::echo_reply("198.51.100.1", "203.0.113.1", id, 1), &stage.a);
    }
}

#[test]
fn icq_11_a_query_mapping_goes_with_its_last_session() {
    let stage = Stage::build(
        nat_tests::Lab::builder(),
        &format!(
            "{}filtering = \"endpoint-independent\"\n[timeouts]\nicmp = \"2s\"\n",
            nat_tests::gateway::STANDARD
        ),
    );
    let ids: Vec<u16> = ["198.51.100.1", "198.51.100.2"]
        .map(|server| port(&stage.crosses(&Packet::echo_request("192.168.1.10", server, 305, 1))))
        .to_vec();
    assert_eq!(ids[0], ids[1], "one mapping, two sessions");
    let late = |server: &str| Packet::echo_reply(server, "203.0.113.1", ids[0], 2);
    // One session of the two is kept: the mapping lives with it, and answers for anybody.
    for _ in 0..4 {
        seconds(0.8);
        stage.crosses(&Packet::echo_request("192.168.1.10", "198.51.100.2", 305, 1));
    }
    stage.gateway.wait_until("the idle session is gone", std::time::Duration::from_secs(3), |gateway| {
        gateway.sessions().len() == 1
    });
    stage.reaches(&late("198.51.100.1"), &stage.a);
    stage.forgets_within(std::time::Duration::from_secs(6));
    stage.stopped(&late("198.51.100.2"), &stage.a);
    stage.stopped(&late("198.51.100.1"), &stage.a);
    let pools = stage.gateway.natgw(&["pool", "list", "--json"]);
    let used: u64 = pools.as_array().unwrap().iter().map(|row| row["used"].as_u64().unwrap()).sum();
    assert_eq!(used, 0, "{pools}");
}
