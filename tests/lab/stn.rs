//! Discovery by STUN (RFC 5780): what an independent client, coturn's, says about this NAT.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    thread,
    time::Duration,
};

use nat_tests::{
    Gateway, Host, Lab,
    decode::Ip,
    host::{Process, connect_from},
    packet::tcp::{ACK, RST, SYN},
};

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

/// Where the server saw a request from: the ports of the WAN side, one for each inside endpoint.
fn reflexive(stage: &Stage) -> Vec<u16> {
    let mut ports: Vec<u16> = stage
        .wan
        .incoming(|seen| seen.udp().is_some_and(|udp| udp.destination == 3478))
        .iter()
        .map(|seen| seen.udp().map_or(0, |udp| udp.source))
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

#[test]
fn stn_04_two_inside_endpoints_have_two_ports() {
    let stage = Stage::snat("filtering = \"endpoint-independent\"");
    let _server = server(&stage);
    stage.lab.a.ip("addr add 192.168.1.20/24 dev eth0");
    stage.wan.clear();
    let line = "turnutils_natdiscovery -c -L 192.168.1.10 -l 40010 -A 192.168.1.20 198.51.100.1";
    let output = stage.lab.a.run(line);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let ports = reflexive(&stage);
    assert_eq!(ports.len(), 2, "{ports:?}\n{said}");
    let answered = stage.a.incoming(|seen| seen.udp().is_some_and(|udp| udp.source == 3478));
    let mut hosts: Vec<_> = answered.iter().map(|seen| seen.ip().destination.to_string()).collect();
    hosts.sort_unstable();
    hosts.dedup();
    assert_eq!(hosts, ["192.168.1.10", "192.168.1.20"], "both are answered:\n{said}");
}

#[test]
fn stn_06_padded_requests_are_fragments() {
    for (filtering, test, verdict) in [
        ("endpoint-independent", "-m -P", "NAT with Endpoint Independent Mapping!"),
        ("endpoint-independent", "-f -P", "NAT with Endpoint Independent Filtering!"),
        ("endpoint-independent", "-H -P", "Received a request (maybe a successful hairpinning)"),
    ] {
        let stage = Stage::snat(&format!("filtering = \"{filtering}\""));
        let _server = server(&stage);
        let said = discover(&stage, test);
        assert!(said.contains(verdict), "{test}:\n{said}");
        let fragments = stage.wan.incoming(|seen| seen.ip.as_ref().is_some_and(Ip::is_fragment));
        assert!(!fragments.is_empty(), "{test}: the requests are fragments");
    }
}

#[test]
fn stn_07_no_application_gateway_touches_the_answer() {
    let stage = Stage::standard();
    let _server = server(&stage);
    for test in ["-m", "-f"] {
        let said = discover(&stage, test);
        assert!(said.contains("No ALG: Mapped == XOR-Mapped"), "{test}:\n{said}");
        assert!(!said.contains("ALG: Mapped != XOR-Mapped"), "{test}:\n{said}");
    }
}

#[test]
fn stn_08_the_older_client_agrees() {
    let stage = Stage::snat("filtering = \"endpoint-independent\"");
    let _server = server(&stage);
    let output = stage.lab.a.run("stun 198.51.100.1 -v -p 40020");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("Independent Mapping, Independent Filter"), "{said}");
    assert!(said.contains("preserves ports") && said.contains("will hairpin"), "{said}");
}

/// Scaled: a timeout of four seconds.
#[test]
fn stn_05_a_binding_lives_as_long_as_its_timeout() {
    for (wait, lives) in [(2, true), (6, false)] {
        let stage = Stage::timeouts("udp = \"4s\"");
        let _server = server(&stage);
        // The client asks from another port for an answer at the first one, whose binding that does not refresh.
        let said = discover(&stage, &format!("-t -T {wait}"));
        assert!(said.contains("RFC 5780 response 1"), "{said}");
        assert_eq!(said.contains("RFC 5780 response 2"), lives, "after {wait} s:\n{said}");
        let at_first_port = stage.a.incoming(|seen| seen.udp().is_some_and(|udp| udp.destination == 40000));
        assert_eq!(at_first_port.len(), if lives { 2 } else { 1 }, "after {wait} s:\n{said}");
    }
}

/// The other network's gateway: s3, with d behind it.
const OTHER: &str = r#"
[[interface]]
name = "home"
side = "inside"

[[interface]]
name = "eth0"
side = "outside"

[[snat]]
source = ["192.168.2.0/24"]
out = "eth0"
to = "masquerade"
"#;

/// Connects from `own`, again while the other side has not opened its own way yet.
fn punch(host: &Host, own: &str, remote: &str) -> TcpStream {
    host.within(|| {
        let connected = (0..4).find_map(|_| connect_from(own, remote).ok());
        connected.unwrap_or_else(|| panic!("{own} does not reach {remote}"))
    })
}

#[test]
fn stn_09_two_hosts_behind_two_gateways_meet() {
    let lab = Lab::builder().second_gateway().build();
    let _gateways = [Gateway::standard(&lab), Gateway::start_on(&lab.s3, OTHER, lab.watch_second_gateway())];
    // Where each is seen: ports are kept.
    let (of_a, of_d) = ("203.0.113.1", "198.51.101.1");
    // UDP, by a tool made for it.
    let traverse = |local: u16, peer: &str, remote: u16| {
        format!("nat-traverse --window=2 --timeout=8 --quit-after-connect {local}:{peer}:{remote}")
    };
    thread::scope(|scope| {
        let ends = [(&lab.a, traverse(40000, of_d, 40001)), (lab.d(), traverse(40001, of_a, 40000))]
            .map(|(host, line)| (host, scope.spawn(move || host.run(&line))));
        for (host, end) in ends {
            let output = end.join().expect("it ends");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(
                output.status.success() && said.contains("Connection established."),
                "{}: {said}",
                host.namespace
            );
        }
    });
    // TCP, by both connecting at once (RFC 5382 REQ-4): the SYN that comes first waits for its own side's.
    let (a, d, between) = (lab.a.tap(), lab.d().tap(), lab.wan());
    let (one, two) = thread::scope(|scope| {
        let one = scope.spawn(|| punch(&lab.a, "192.168.1.10:41000", "198.51.101.1:41001"));
        let two = scope.spawn(|| punch(lab.d(), "192.168.2.10:41001", "203.0.113.1:41000"));
        (one.join().expect("a connects"), two.join().expect("d connects"))
    });
    for (mut from, mut to, text) in [(&one, &two, b"from a to d"), (&two, &one, b"and d to a!")] {
        to.set_read_timeout(Some(Duration::from_secs(5))).expect("set a timeout");
        from.write_all(text).expect("send");
        let mut read = [0; 11];
        to.read_exact(&mut read).expect("receive");
        assert_eq!(&read, text);
    }
    // Nobody listened: each has asked, and nobody was refused.
    for tap in [&a, &d] {
        let flags: Vec<u8> = tap
            .captured()
            .iter()
            .filter_map(|captured| captured.decoded.tcp().map(|tcp| tcp.flags))
            .collect();
        assert!(flags.iter().all(|flags| flags & RST == 0), "{flags:02x?}");
    }
    let syns = |ports: (u16, u16)| {
        let captured = between.captured().into_iter();
        let tcp = captured.filter_map(|captured| captured.decoded.tcp().cloned());
        tcp.filter(|tcp| (tcp.source, tcp.destination) == ports && tcp.flags & (SYN | ACK) == SYN).count()
    };
    assert!(syns((41000, 41001)) > 0 && syns((41001, 41000)) > 0, "both have asked");
}
