//! Findings of `natgw doctor` about interfaces, routes and a daemon that is not there: each made to happen.

use std::{collections::BTreeMap, time::Duration};

use nat_tests::{Gateway, Lab, gateway, host::finish};
use serde_json::Value;

use crate::stage::{Stage, public, source};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";

/// The findings, by check.
pub fn diagnosis(gateway: &Gateway) -> BTreeMap<String, String> {
    diagnosis_of(gateway, &[])
}

/// The findings about a host, by check.
fn diagnosis_of(gateway: &Gateway, host: &[&str]) -> BTreeMap<String, String> {
    let findings = gateway.natgw(&[&["doctor", "--json"], host].concat());
    let found = findings.as_array().expect("an array").iter();
    found
        .map(|finding| (finding["check"].as_str().expect("a check").to_owned(), finding.to_string()))
        .collect()
}

/// Is not there, is there with these words, and is gone again.
pub fn happens(gateway: &Gateway, check: &str, words: &[&str], begin: impl FnOnce(), end: impl FnOnce()) {
    let before = diagnosis(gateway);
    assert!(!before.contains_key(check), "{check} before it happens: {before:?}");
    begin();
    gateway.wait_until(check, Duration::from_secs(10), |gateway| diagnosis(gateway).contains_key(check));
    let found = &diagnosis(gateway)[check];
    assert!(words.iter().all(|word| found.contains(word)), "{check}: {found}");
    end();
    gateway.wait_until(&format!("no {check}"), Duration::from_secs(10), |gateway| {
        !diagnosis(gateway).contains_key(check)
    });
}

#[test]
fn routes_that_lead_nowhere_or_astray_are_named() {
    let stage = Stage::standard();
    let (own, gateway) = (&stage.lab.gateway, &stage.gateway);
    let ip = |line: &str| drop(own.ip(line));
    happens(
        gateway,
        "no_default_route",
        &["ip route add default"],
        || ip("route del default"),
        || ip("route add default via 203.0.113.254"),
    );
    happens(
        gateway,
        "default_routes",
        &["203.0.113.254", "203.0.113.253", "metric 0"],
        || ip("route append default via 203.0.113.253 dev wan"),
        || ip("route del default via 203.0.113.253 dev wan"),
    );
    ip("route del default");
    ip("route add default via 203.0.113.254 metric 50");
    happens(
        gateway,
        "default_route_inside",
        &["by lan", "via 192.168.1.12", "ip route del"],
        || ip("route add default via 192.168.1.12 metric 10"),
        || ip("route del default via 192.168.1.12 metric 10"),
    );
    happens(
        gateway,
        "router_silent",
        &["203.0.113.99", "arping"],
        // Nothing was sent there yet: the doctor asks for it.
        || ip("route add default via 203.0.113.99 metric 10"),
        || ip("route del default via 203.0.113.99 metric 10"),
    );
    stage.crosses(&stage.udp(CLIENT, SERVER));
}

#[test]
fn interfaces_that_are_down_or_overlap_are_named() {
    let stage = Stage::standard();
    let (own, gateway) = (&stage.lab.gateway, &stage.gateway);
    let ip = |line: &str| drop(own.ip(line));
    happens(
        gateway,
        "interface_down",
        &["wan is down", "ip link set wan up"],
        || ip("link set wan down"),
        || ip("link set wan up"),
    );
    happens(
        gateway,
        "same_subnet",
        &["192.168.1.0/24 on lan", "192.168.1.128/25 on wan"],
        || ip("address add 192.168.1.201/25 dev wan"),
        || ip("address del 192.168.1.201/25 dev wan"),
    );
    happens(
        gateway,
        "same_address",
        &["lan and wan have the same address 192.168.1.1", "ip address del 192.168.1.1 dev wan"],
        || ip("address add 192.168.1.1/32 dev wan"),
        || ip("address del 192.168.1.1/32 dev wan"),
    );
}

/// Queues that come into use after the start: natgw has no sockets there.
#[test]
fn queues_that_nobody_serves_are_named() {
    let stage = Stage::standard();
    let change = |queues: u32| drop(stage.lab.gateway.succeed(&format!("ethtool -L lan rx {queues}")));
    happens(
        &stage.gateway,
        "queues_without_sockets",
        &["lan receives on 2 queues", "serves 1"],
        || change(2),
        || change(1),
    );
}

#[test]
fn slow_and_large_interfaces_are_named() {
    let lab = Lab::builder().lan_mtu(3600).build();
    let line = "side = \"outside\"\nmode = \"generic\"";
    let text = gateway::STANDARD.replace("side = \"outside\"", line) + "\n[timeouts]\nudp = \"3s\"\n";
    let gateway = Gateway::start(&lab, &text);
    let found = diagnosis(&gateway);
    // Whatever else the daemon itself warns of.
    assert!(found["warning"].contains("RFC 4787"), "{found:?}");
    assert!(found["generic_mode"].contains("XDP on wan is generic"), "{found:?}");
    assert!(
        found["mtu"].contains("the MTU of lan is 3600") && found["mtu"].contains("mtu 3498"),
        "{found:?}"
    );
}

#[test]
fn a_daemon_that_is_not_there_is_named() {
    let lab = Lab::standard();
    let mut gateway = Gateway::start(&lab, gateway::STANDARD);
    assert!(!diagnosis(&gateway).contains_key("not_running"));
    gateway.stop();
    let found = diagnosis(&gateway);
    assert!(found["not_running"].contains("natgw.sock"), "{found:?}");
    assert!(!found.contains_key("no_af_xdp") && !found.contains_key("privileges"), "{found:?}");
    // Where no BPF file system is mounted: in mounts of its own.
    let script = format!(
        "umount --all --types bpf; exec {} --socket /run/nowhere doctor --json",
        gateway::binary().display()
    );
    let output = finish(lab.gateway.command("unshare").args(["--mount", "sh", "-c", &script]), "doctor");
    let without: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    assert!(without.to_string().contains("no_bpffs"), "{output:?}");
    assert!(!found.contains_key("no_bpffs"), "{found:?}");
    // Somebody else, who could not start it either.
    let mut command = lab.gateway.command("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(gateway::binary());
    let output = finish(command.args(["--socket", "/run/nowhere", "doctor", "--json"]), "doctor of a user");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    assert!(found.to_string().contains("CAP_NET_ADMIN"), "{output:?}");
}

#[test]
fn ops_13_netfilter_that_translates_as_well_is_found() {
    let stage = Stage::standard();
    assert!(!diagnosis(&stage.gateway).contains_key("double_nat"));
    stage.lab.gateway.nft(
        "table ip nat { chain post { type nat hook postrouting priority 100; oifname \"wan\" masquerade; }; }",
    );
    let found = diagnosis(&stage.gateway);
    assert!(found["double_nat"].contains("masquerade in ip nat post"), "{found:?}");
    // What natgw translates does not meet it.
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    assert_eq!(mapped, public(40000));
    stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
    stage.lab.gateway.nft("delete table ip nat");
    assert!(!diagnosis(&stage.gateway).contains_key("double_nat"));
}

#[test]
fn ops_14_what_natgw_itself_refuses_is_named() {
    let limits =
        "ports = \"5000-5001\"\n[limits]\nnew_per_second_per_source = 3\n[timeouts]\nudp = \"120s\"\n";
    let stage = Stage::with(&format!("{}{limits}", gateway::STANDARD));
    let named = |check: &str, words: &[&str]| {
        let found = diagnosis_of(&stage.gateway, &["192.168.1.10"]);
        let text = found.get(check).unwrap_or_else(|| panic!("{check} is not among {found:?}"));
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    };
    let quiet = diagnosis_of(&stage.gateway, &["192.168.1.10"]);
    for check in ["no_route", "ports_exhausted", "source_limit", "no_replies", "no_rule"] {
        assert!(!quiet.contains_key(check), "{quiet:?}");
    }
    for n in 0..3 {
        stage.a.send(&stage.udp(CLIENT, SERVER));
        stage.a.send(&stage.udp(&format!("192.168.1.10:{}", 41000 + n), SERVER));
    }
    named("no_replies", &["198.51.100.1:5000", "0 back", "traceroute"]);
    named("ports_exhausted", &["natgw pool list"]);
    for n in 0..10 {
        stage.c.send(&stage.udp(&format!("192.168.1.12:{}", 42000 + n), SERVER));
    }
    named("source_limit", &["sessions_per_source"]);
    stage.lab.gateway.ip("route del default");
    stage.b.send(&stage.udp("192.168.1.11:43000", "198.51.101.1:9"));
    named("no_route", &["ip route get"]);
    let stranger = diagnosis_of(&stage.gateway, &["10.5.5.5"]);
    assert!(stranger["no_rule"].contains("snat office: source 192.168.0.0/16"), "{stranger:?}");
    assert!(stranger["no_route_back"].contains("no route to 10.5.5.5"), "{stranger:?}");
}
