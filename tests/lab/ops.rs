//! Operation: what is listed and deleted, and what is left after churn.

use std::{fs, time::Duration};

use nat_tests::{Packet, gateway};

use crate::stage::{Stage, seconds, source};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";

#[test]
fn ops_01_the_listing_says_what_was_on_the_wire() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    for _ in 0..2 {
        stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
    }
    // Counters are written at most once a tick.
    seconds(1.5);
    let sessions = stage.gateway.sessions();
    assert_eq!(sessions.len(), 1, "{sessions:?}");
    let session = &sessions[0];
    let texts = [
        ("protocol", "udp"),
        ("inside", CLIENT),
        ("outside", "203.0.113.1:40000"),
        ("remote", SERVER),
        ("remote_inside", SERVER),
        ("direction", "outbound"),
        ("rule", "office"),
    ];
    for (field, value) in texts {
        assert_eq!(session[field], value, "{field} of {session}");
    }
    assert_eq!(
        (session["packets_out"].as_u64(), session["packets_in"].as_u64()),
        (Some(1), Some(2)),
        "{session}"
    );
    assert!(session["bytes_in"].as_u64() > session["bytes_out"].as_u64(), "{session}");
    assert_eq!(
        stage.gateway.natgw(&["session", "list", "--protocol", "tcp", "--json"]).as_array().unwrap().len(),
        0
    );
    assert!(stage.gateway.text(&["session", "list"]).contains(CLIENT));
}

#[test]
fn ops_02_deleting_one_session_breaks_that_one() {
    let stage = Stage::standard();
    let of_a = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let of_b = source(&stage.crosses(&stage.udp("192.168.1.11:40001", SERVER)));
    stage.gateway.text(&["session", "delete", "--inside", "192.168.1.10"]);
    stage.stopped(&stage.udp(SERVER, &of_a), &stage.a);
    stage.reaches(&stage.udp(SERVER, &of_b), &stage.b);
    stage.crosses(&stage.udp(CLIENT, SERVER));
    stage.gateway.text(&["session", "flush"]);
    assert_eq!(stage.session_count(), 0);
    stage.stopped(&stage.udp(SERVER, &of_b), &stage.b);
}

/// Scaled: seconds, not a day. Memory and gauges after churn are what they were after the first of it.
#[test]
fn ops_17_churn_leaves_nothing_behind() {
    let stage = Stage::with(&format!(
        "{}\n[timeouts]\nudp = \"1s\"\ntcp_transitory = \"1s\"\nquarantine = \"0s\"\n",
        gateway::STANDARD
    ));
    let resident = || {
        let status = fs::read_to_string(format!("/proc/{}/status", stage.gateway.id().unwrap())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().to_owned();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    let mut after_first = 0;
    for round in 0..5_u16 {
        for n in 0..1500_u16 {
            let port = 20_000 + round * 1500 + n;
            stage.a.send(&Packet::udp(("192.168.1.10", port), SERVER).payload("churn"));
            stage.b.send(&Packet::tcp(("192.168.1.11", port), SERVER).syn(1));
            if n % 100 == 0 {
                stage.s1.drain();
                stage.wan.drain();
            }
        }
        // The listing and the gauges say the same while there are many.
        let status = stage.gateway.natgw(&["status", "--json"]);
        assert!(status["sessions"].as_u64().unwrap() > 0, "{status}");
        stage.forgets_within(Duration::from_secs(8));
        let status = stage.gateway.natgw(&["status", "--json"]);
        assert_eq!(
            (status["sessions"].as_u64(), status["mappings"].as_u64()),
            (Some(0), Some(0)),
            "{status}"
        );
        let used = status["pools"].as_array().unwrap().iter().map(|pool| pool["used"].as_u64().unwrap());
        assert_eq!(used.sum::<u64>(), 0, "{status}");
        let now = resident();
        if round == 1 {
            after_first = now;
        }
        assert!(round < 2 || now <= after_first + after_first / 50, "{now} KiB after {after_first} KiB");
        for tap in [&stage.a, &stage.b, &stage.s1, &stage.wan] {
            tap.clear();
        }
    }
    stage.crosses(&stage.udp(CLIENT, SERVER));
}
