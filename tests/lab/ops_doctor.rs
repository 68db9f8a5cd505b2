//! Findings of `natgw doctor` about interfaces, routes and a daemon that is not there: each made to happen.

use std::{collections::BTreeMap, time::Duration};

use nat_tests::{Gateway, Lab, gateway, host::finish};
use serde_json::Value;

use crate::stage::Stage;

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";

/// The findings, by check.
pub fn diagnosis(gateway: &Gateway) -> BTreeMap<String, String> {
    let findings = gateway.natgw(&["doctor", "--json"]);
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
