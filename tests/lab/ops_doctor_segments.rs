//! Findings of `natgw doctor` about stations, devices and the machine: each made to happen.

use std::{fs, os::unix::fs::PermissionsExt as _};

use nat_tests::{Gateway, Host, Lab, gateway, host::finish, packet::Mac};
use serde_json::Value;

use crate::{
    ops_doctor::{diagnosis, happens},
    stage::{Stage, preload},
};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";

fn words(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// What `natgw doctor` says where it is started by a shell script that ends in `"$@"`.
fn diagnosis_by(host: &Host, gateway: &Gateway, script: &str) -> String {
    let mut command = host.command("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(gateway::binary());
    let output = finish(command.arg("--socket").arg(gateway.socket()).args(["doctor", "--json"]), script);
    let found: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{script}: {output:?}"));
    found.to_string()
}

/// Whether it is among them.
fn has(diagnosis: &str, check: &str) -> bool {
    diagnosis.contains(&format!("\"{check}\""))
}

#[test]
fn addresses_that_two_stations_have_are_named() {
    let lab = Lab::standard();
    lab.gateway.run("ping -c 1 -W 1 192.168.1.10");
    let gateway = Gateway::start(&lab, gateway::STANDARD);
    let b = |line: &str| drop(lab.b.ip(&format!("{line} dev {}", lab.b.interface)));
    happens(
        &gateway,
        "duplicate_address",
        &["2 stations have the address 192.168.1.10 on lan", &words(lab.a.mac), &words(lab.b.mac), "arping"],
        || b("address add 192.168.1.10/24"),
        || b("address del 192.168.1.10/24"),
    );
    happens(
        &gateway,
        "address_taken",
        &["gateway's own address 192.168.1.1 on lan", &words(lab.b.mac)],
        || b("address add 192.168.1.1/24"),
        || b("address del 192.168.1.1/24"),
    );
    let of_host = |host| gateway.natgw(&["doctor", host, "--json"]).to_string();
    let nobody = of_host("192.168.1.77");
    assert!(nobody.contains("192.168.1.77 does not answer ARP on lan"), "{nobody}");
    assert!(!of_host("192.168.1.10").contains("host_silent"));
}

/// A veth takes what is redirected to it while its other end polls; natgw sends by the stack until then.
#[test]
fn a_veth_whose_peer_does_not_poll_is_named() {
    let stage = Stage::standard();
    stage.lab.gro_on();
    let grow = |on: &str| drop(stage.lab.isp.succeed(&format!("ethtool -K gw gro {on}")));
    happens(
        &stage.gateway,
        "veth_peer",
        &["the veth wan takes no redirected frames", "gro on"],
        || {
            grow("off");
            stage.crosses(&stage.udp(CLIENT, SERVER));
        },
        || grow("on"),
    );
    stage.crosses(&stage.udp(CLIENT, SERVER));
}

#[test]
fn frames_that_are_larger_than_a_buffer_are_named() {
    let stage = Stage::standard();
    let lan = |mtu: u32| drop(stage.lab.gateway.ip(&format!("link set lan mtu {mtu}")));
    happens(
        &stage.gateway,
        "mtu",
        &["the MTU of lan is 3819, more than natgw takes (3818)", "ip link set dev lan mtu 3818"],
        || lan(3819),
        || lan(1500),
    );
    stage.crosses(&stage.udp(CLIENT, SERVER));
}

/// A kernel without types, as far as one can be had by hiding them: natgw starts, passes packets, and says so.
#[test]
fn a_kernel_that_does_not_tell_its_types_is_named_and_will_do() {
    let lab = Lab::standard();
    let mut gateway = Gateway::prepare(&lab, gateway::STANDARD);
    let hide = "mount -t tmpfs none /sys/kernel/btf";
    let wrapper = gateway.configuration().with_file_name("without-types");
    let exec = format!(
        "#!/bin/sh\nexec unshare --mount sh -c '{hide} && exec \"$@\"' sh {} \"$@\"\n",
        gateway::binary().display()
    );
    fs::write(&wrapper, exec).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    gateway.use_program(&wrapper);
    gateway.restart();
    gateway.use_program(&gateway::binary());
    assert!(!diagnosis(&gateway).contains_key("no_btf"));
    let without = diagnosis_by(&lab.gateway, &gateway, &format!("{hide} && exec \"$@\""));
    assert!(without.contains("no_btf") && without.contains("CONFIG_DEBUG_INFO_BTF"), "{without}");
    let server = lab.s1.tap();
    let packet = nat_tests::Packet::udp(CLIENT, SERVER).payload("without types");
    lab.a.tap().send(&packet);
    server.expect_payload("without types");
}

/// Where nobody has mounted a BPF file system at its usual place, as in a `/sys` that `ip netns exec` has made anew.
#[test]
fn a_missing_bpf_file_system_is_mounted_at_its_usual_place() {
    let lab = Lab::standard();
    let mut gateway = Gateway::prepare(&lab, gateway::STANDARD);
    let own = gateway.configuration().with_file_name("bpf").join("natgw");
    let text = fs::read_to_string(gateway.configuration()).unwrap();
    let usual = text.replace(&own.display().to_string(), "/sys/fs/bpf/natgw");
    assert_ne!(text, usual);
    fs::write(gateway.configuration(), usual).unwrap();
    gateway.restart();
    let server = lab.s1.tap();
    lab.a.tap().send(&nat_tests::Packet::udp(CLIENT, SERVER).payload("pinned"));
    server.expect_payload("pinned");
    gateway.stop();
}

/// Whoever may not look at everything is told what was not looked at; so is who has too old a kernel.
#[test]
fn what_who_asks_lacks_is_named() {
    let lab = Lab::standard();
    let mut gateway = Gateway::start(&lab, gateway::STANDARD);
    let found = diagnosis(&gateway);
    assert!(!found.contains_key("privileges") && !found.contains_key("old_kernel"), "{found:?}");
    let without = "exec setpriv --bounding-set=-all --inh-caps=-all \"$@\"";
    let told = diagnosis_by(&lab.gateway, &gateway, without);
    assert!(told.contains("privileges") && told.contains("CAP_NET_ADMIN, CAP_NET_RAW"), "{told}");
    assert!(told.contains("double_nat"), "{told}");
    gateway.stop();
    // To a process of this personality, any kernel is a Linux 2.6.
    let old = "exec setarch --uname-2.6 \"$@\"";
    let told = diagnosis_by(&lab.gateway, &gateway, old);
    assert!(told.contains("old_kernel") && told.contains("natgw needs Linux 5.18"), "{told}");
}

/// The lab's devices do not merge: the doctor alone is told that one does.
#[test]
fn a_device_that_merges_segments_is_named() {
    let lab = Lab::standard();
    let gateway = Gateway::start(&lab, gateway::STANDARD);
    let library = preload(&gateway, include_str!("lro.c"));
    let told = |device: &str| {
        let script = format!("LD_PRELOAD={} NATGW_TEST_LRO={device} exec \"$@\"", library.display());
        diagnosis_by(&lab.gateway, &gateway, &script)
    };
    let found = told("wan");
    assert!(has(&found, "lro") && found.contains("ethtool -K wan lro off"), "{found}");
    assert!(!has(&told("other"), "lro"));
}

/// The machine's own settings stay as they are: others stand before them where the doctor looks.
#[test]
fn a_kernel_that_interprets_programs_or_has_no_af_xdp_is_named() {
    let lab = Lab::standard();
    let mut gateway = Gateway::start(&lab, gateway::STANDARD);
    let with_jit = |value: u8| {
        let core = "/proc/sys/net/core";
        let script =
            format!("mount -t tmpfs none {core} && echo {value} > {core}/bpf_jit_enable && exec \"$@\"");
        diagnosis_by(&lab.gateway, &gateway, &script)
    };
    let found = with_jit(0);
    assert!(has(&found, "no_jit") && found.contains("bpf_jit_enable=1"), "{found}");
    assert!(!has(&with_jit(1), "no_jit"));
    gateway.stop();
    // A single file of `/proc/net` cannot be mounted on.
    let protocols = gateway.configuration().with_file_name("protocols");
    let listing = |filter: &str| {
        let file = protocols.display();
        let script = format!(
            "{filter} /proc/net/protocols > {file} && mount -t tmpfs none /proc/$$/net && cp {file} /proc/$$/net && exec \"$@\""
        );
        diagnosis_by(&lab.gateway, &gateway, &script)
    };
    let found = listing("grep -v ^XDP");
    assert!(has(&found, "no_af_xdp") && found.contains("CONFIG_XDP_SOCKETS"), "{found}");
    assert!(!has(&listing("cat"), "no_af_xdp"));
}
