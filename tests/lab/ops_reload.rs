//! Reloading: what a new configuration changes, and what it leaves alone.

use std::{thread, time::Duration};

use nat_tests::{Packet, gateway};

use crate::stage::{Stage, public, source};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";

#[test]
fn ops_03_a_reload_leaves_sessions_alone() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let forward = "[[forward]]\nprotocol = [\"udp\"]\nexternal = \"203.0.113.1:8080\"\ninternal = \"192.168.1.11:80\"\n";
    stage.gateway.configure(&format!("{}{forward}", gateway::STANDARD));
    stage.gateway.text(&["reload"]);
    stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
    stage.reaches(&stage.udp(SERVER, &public(8080)), &stage.b);
    stage.gateway.configure(gateway::STANDARD);
    stage.gateway.text(&["reload"]);
    stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
    stage.stopped(&stage.udp("198.51.100.2:7", &public(8080)), &stage.b);
}

/// Scaled: what the lab's taps send, not a gigabit; and not one packet of it is lost.
#[test]
fn ops_03_reloads_under_traffic_lose_nothing() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let tcp = stage.connect("192.168.1.11:40001", SERVER);
    let forward = "[[forward]]\nprotocol = [\"udp\"]\nexternal = \"203.0.113.1:8080\"\ninternal = \"192.168.1.11:80\"\n";
    let with_forward = format!("{}{forward}", gateway::STANDARD);
    let gateway = &stage.gateway;
    thread::scope(|scope| {
        let reloads = scope.spawn(|| {
            for round in 0..20 {
                gateway.configure(if round % 2 == 0 { &with_forward } else { gateway::STANDARD });
                gateway.text(&["reload"]);
            }
        });
        let mut rounds = 0;
        while !reloads.is_finished() || rounds < 50 {
            stage.crosses(&stage.udp(CLIENT, SERVER));
            stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
            stage.crosses(&stage.data("192.168.1.11:40001", SERVER));
            stage.reaches(&stage.data(SERVER, &tcp), &stage.b);
            rounds += 1;
        }
    });
    assert_eq!(stage.session_count(), 2);
}

#[test]
fn ops_03_a_session_stays_its_rules_when_another_comes_before_it() {
    let mut stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let guests = "[[snat]]\nname = \"guests\"\nsource = [\"10.9.0.0/16\"]\nfiltering = \"endpoint-independent\"\nto = \"masquerade\"\n\n[[snat]]\n";
    stage.gateway.configure(&gateway::STANDARD.replace("[[snat]]\n", guests));
    let answer = stage.gateway.natgw(&["reload", "--json"]);
    assert_eq!((answer["kept"].as_u64(), answer["ended"].as_u64()), (Some(1), Some(0)), "{answer}");
    assert_eq!(stage.gateway.sessions()[0]["rule"], "office");
    stage.reaches(&stage.udp("198.51.100.1:9", &mapped), &stage.a);
    stage.stopped(&stage.udp("198.51.100.2:9", &mapped), &stage.a);
    stage.gateway.kill();
    stage.gateway.restart();
    assert!(stage.gateway.sessions().iter().all(|session| session["rule"] == "office"));
    stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
}

#[test]
fn ops_04_a_bad_file_changes_nothing_and_says_where_it_is_bad() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    stage.gateway.configure(&gateway::STANDARD.replace("to = \"masquerade\"", "to = \"nowhere\""));
    let output = stage.gateway.output(&["reload"]);
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("nowhere") && message.contains(":15"), "{message}");
    stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
    stage.crosses(&stage.udp("192.168.1.11:40001", SERVER));
}

#[test]
fn ops_19_timers_change_at_run_time() {
    let stage = Stage::standard();
    stage.crosses(&stage.udp(CLIENT, SERVER));
    let echo = |seq| Packet::echo_request("192.168.1.10", "198.51.100.1", 7, seq).payload([7; 8]);
    stage.crosses(&echo(1));
    let left = |stage: &Stage, protocol: &str| {
        let sessions = stage.gateway.sessions();
        let session = sessions.iter().find(|session| session["protocol"] == protocol).unwrap();
        session["expires_in"].as_u64().unwrap()
    };
    assert!(left(&stage, "udp") > 250 && left(&stage, "icmp") > 40);
    let timeouts =
        "\n[timeouts]\nudp = \"3s\"\nicmp = \"2s\"\ntcp_established = \"1h\"\ntcp_transitory = \"10s\"\n";
    stage.gateway.configure(&format!("{}{timeouts}", gateway::STANDARD));
    let said = stage.gateway.natgw(&["reload", "--json"])["warnings"].to_string();
    for floor in ["RFC 4787", "RFC 5508", "RFC 5382"] {
        assert!(said.contains(floor), "{said}");
    }
    stage.crosses(&stage.udp(CLIENT, SERVER));
    stage.crosses(&echo(2));
    assert!(left(&stage, "udp") <= 3 && left(&stage, "icmp") <= 2, "{:?}", stage.gateway.sessions());
    stage.forgets_within(Duration::from_secs(8));
}
