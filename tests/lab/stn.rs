//! Discovery by STUN (RFC 5780): what an independent client, coturn's, says about this NAT.

use std::{thread, time::Duration};

use nat_tests::host::Process;

use crate::stage::Stage;

/// A STUN server at two addresses, and its clients' kernels talking again.
fn server(stage: &Stage) -> Process {
    let Stage { lab, .. } = stage;
    for host in [&lab.a, &lab.s1] {
        host.nft("delete table ip mute");
    }
    lab.s1.ip("addr add 198.51.100.3/24 dev eth0");
    let server = lab.s1.spawn(
        "turnserver -n -S --listening-ip 198.51.100.1 --listening-ip 198.51.100.3 --no-tls --no-dtls --no-cli \
         --log-file /dev/null --pidfile /dev/null",
    );
    for _ in 0..100 {
        let sockets = lab.s1.succeed("ss -lun");
        if sockets.contains("198.51.100.1:3478") && sockets.contains("198.51.100.3:3479") {
            return server;
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!("turnserver does not listen:\n{}", lab.s1.succeed("ss -lunp"));
}

/// What the client of `stage.lab.a` prints.
fn discover(stage: &Stage, test: &str) -> String {
    let line = format!("turnutils_natdiscovery {test} -L 192.168.1.10 -l 40000 198.51.100.1");
    let output = stage.lab.a.run(&line);
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn stn_01_endpoint_independent_mapping() {
    let stage = Stage::standard();
    let _server = server(&stage);
    // B holds the client's port toward the address that the client asks second: keeping ports alone, and even
    // reusing a mapping where nothing is in the way, does not pass this.
    stage.reaches(&stage.udp("192.168.1.11:40000", "198.51.100.3:3478"), &stage.s1);
    let said = discover(&stage, "-m");
    assert!(said.contains("NAT with Endpoint Independent Mapping!"), "{said}");
}

#[test]
fn stn_02_filtering_is_what_the_rule_says() {
    for (filtering, verdict) in [
        ("endpoint-independent", "NAT with Endpoint Independent Filtering!"),
        ("address-dependent", "NAT with Address Dependent Filtering!"),
        ("address-and-port-dependent", "NAT with Address and Port Dependent Filtering!"),
    ] {
        let stage = Stage::snat(&format!("filtering = \"{filtering}\""));
        let _server = server(&stage);
        let said = discover(&stage, "-f");
        assert!(said.contains(verdict), "{filtering}:\n{said}");
    }
}

#[test]
fn stn_03_hairpin() {
    let stage = Stage::snat("filtering = \"endpoint-independent\"");
    let _server = server(&stage);
    let said = discover(&stage, "-H");
    assert!(said.contains("Received a request (maybe a successful hairpinning)"), "{said}");
}
