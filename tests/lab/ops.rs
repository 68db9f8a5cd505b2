//! Operation: what is listed, deleted, reloaded, killed, stopped; and a WAN that goes away or changes its address.

use std::{process::Command, time::Duration};

use nat_tests::{Gateway, Host, Lab, gateway};

use crate::stage::{Stage, public, seconds, source};

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
fn ops_06_killed_it_still_translates_and_a_new_start_loses_nothing() {
    let mut stage = Stage::standard();
    let udp = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let tcp = stage.connect("192.168.1.11:40001", SERVER);
    stage.gateway.kill();
    for _ in 0..3 {
        stage.crosses(&stage.udp(CLIENT, SERVER));
        stage.reaches(&stage.udp(SERVER, &udp), &stage.a);
        stage.reaches(&stage.data(SERVER, &tcp), &stage.b);
        seconds(0.2);
    }
    stage.gateway.restart();
    assert_eq!(stage.session_count(), 2, "{:?}", stage.gateway.sessions());
    stage.reaches(&stage.udp(SERVER, &udp), &stage.a);
    assert_eq!(source(&stage.crosses(&stage.data("192.168.1.11:40001", SERVER))), tcp);
    // Its port is still taken, and its mapping still endpoint-independent.
    let of_c = stage.crosses(&stage.udp("192.168.1.12:40000", SERVER));
    assert_ne!(source(&of_c), udp);
    assert_eq!(source(&stage.crosses(&stage.udp(CLIENT, "198.51.100.2:1"))), udp);
}

#[test]
fn ops_07_stopped_it_leaves_no_trace() {
    let lab = Lab::standard();
    let before = traces(&lab.gateway);
    let mut gateway = Gateway::prepare(&lab, gateway::STANDARD);
    gateway.restart();
    let sent = lab.a.run("ping -c 1 -W 2 198.51.100.1");
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stdout));
    gateway.stop();
    for ((look, before), (_, after)) in before.into_iter().zip(traces(&lab.gateway)) {
        assert!(before == after, "{look}, before:\n{before}\nafter:\n{after}");
    }
}

/// What another program could find changed: where it looks, and what it sees.
fn traces(host: &Host) -> Vec<(&'static str, String)> {
    let looks = [
        "ip -details link show",
        "ip address show",
        "ip rule show",
        "ip route show table all",
        "tc qdisc show",
        "tc filter show dev lan ingress",
        "tc filter show dev wan ingress",
        "nft list ruleset",
        "sysctl --all --pattern ^net.ipv4.(ip_forward|conf.*(rp_filter|proxy_arp|forwarding|arp_))",
    ];
    looks.map(|look| (look, host.succeed(look))).to_vec()
}

#[test]
fn ops_09_sessions_resume_when_the_link_is_back() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    stage.lab.gateway.ip("link set wan down");
    seconds(0.5);
    stage.lab.gateway.ip("link set wan up");
    stage.lab.gateway.ip("route replace default via 203.0.113.254");
    seconds(1.5);
    assert_eq!(source(&stage.crosses(&stage.udp(CLIENT, SERVER))), mapped);
    stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
}

#[test]
fn ops_11_a_new_address_is_used_at_once_and_the_old_one_never_again() {
    let stage = Stage::standard();
    stage.crosses(&stage.udp(CLIENT, SERVER));
    let gateway = &stage.lab.gateway;
    gateway.ip("addr add 203.0.113.2/24 dev wan");
    // A secondary address goes with its primary one, unless it is promoted.
    gateway.sysctl("ipv4.conf.wan.promote_secondaries", "1");
    gateway.ip("addr del 203.0.113.1/24 dev wan");
    gateway.ip("route replace default via 203.0.113.254");
    seconds(1.0);
    stage.wan.clear();
    let seen = stage.crosses(&stage.udp(CLIENT, SERVER));
    assert_eq!(seen.ip().source.to_string(), "203.0.113.2");
    stage.reaches(&stage.udp(SERVER, &source(&seen)), &stage.a);
    let old =
        stage.wan.incoming(|seen| seen.ip.as_ref().is_some_and(|ip| ip.source.to_string() == "203.0.113.1"));
    assert!(old.is_empty(), "{old:?}");
}

#[test]
fn rtr_20_a_new_next_hop_takes_over_live_sessions() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    // The provider's router is replaced: the same address at another Ethernet address.
    let isp = &stage.lab.isp;
    isp.ip("link set gw address 02:00:00:00:02:fd");
    let mut announce = Command::new("ip");
    announce.args(["netns", "exec", &isp.namespace, "ping", "-c", "1", "-W", "1", "203.0.113.1"]);
    // Its own question tells the gateway where it now is.
    announce.output().expect("run ping");
    stage.gateway.wait_until("traffic follows", Duration::from_secs(3), |_| {
        let sent = stage.send(&stage.udp(CLIENT, SERVER));
        let patience = Duration::from_millis(200);
        stage.s1.recv_matching(patience, |seen| seen.payload() == sent.payload()).is_some()
    });
    assert_eq!(source(&stage.crosses(&stage.udp(CLIENT, SERVER))), mapped);
}
