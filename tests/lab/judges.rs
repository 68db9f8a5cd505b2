//! Independent judges: programs that others wrote, asked about natgw, and their word against the taps'.
//!
//! Each is installed by `cargo xtask setup`; where a distribution has none, its test says so and ends.

use std::{collections::BTreeMap, path::Path};

use nat_tests::{
    Decoded, Host, Lab, Tap,
    decode::reassemble,
    gateway,
    lab::{Builder, P1},
    packet::protocol::{ICMP, TCP, UDP},
    pcap,
};

use crate::{
    log_records::Scratch,
    stage::{Stage, source},
};

/// Whether this machine has such a program.
fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join(program).exists());
    if !found {
        println!("not judged: there is no {program} here; `cargo xtask setup` installs it");
    }
    found
}

/// A stage where a and s1 are kernels that talk, and checksums are computed before a tap sees them.
fn talking(builder: Builder) -> Stage {
    let stage = Stage::build(builder, gateway::STANDARD);
    for host in [&stage.lab.a, &stage.lab.s1] {
        host.nft("delete table ip mute");
        host.offloads_off();
    }
    stage
}

/// What a program says, also where it fails.
fn said(host: &Host, line: &str) -> String {
    let output = host.run(line);
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// The fragments of a protocol that came in since the tap was cleared.
fn fragments(tap: &Tap, protocol: u8) -> Vec<Decoded> {
    tap.incoming(|seen| seen.ip.as_ref().is_some_and(|ip| ip.protocol == protocol && ip.is_fragment()))
}

#[test]
fn hping3_fragments_arrive_whole_and_are_answered() {
    if !has("hping3") {
        return;
    }
    let stage = talking(Lab::builder());
    // Fragments of 16 and of 40 bytes; the other kernel puts them together, and answers what is whole and right only.
    for (line, protocol, answer, count) in [
        ("-1 -f -d 100 -c 3 -i u100000", ICMP, "3 packets received, 0% packet loss", 21),
        ("-2 -f -d 200 -c 1 -s 40000 -p 5000", UDP, "ICMP Port Unreachable from ip=198.51.100.1", 13),
        ("-S -m 40 -d 200 -c 1 -s 40001 -p 5000", TCP, "flags=RA", 6),
    ] {
        stage.a.clear();
        stage.s1.clear();
        let said = said(&stage.lab.a, &format!("hping3 -n {line} 198.51.100.1"));
        assert!(said.contains(answer), "{line}:\n{said}");
        let here = fragments(&stage.s1, protocol);
        assert_eq!(here.len(), count, "{line}");
        assert!(here.iter().all(|seen| seen.ip().source == P1), "{line}: as the gateway, each of them");
        let first = here.iter().filter(|seen| seen.ip().id == here[0].ip().id);
        let whole = reassemble(first).unwrap_or_else(|| panic!("{line}: a datagram"));
        assert_eq!(whole.checksums_valid(), Ok(()), "{line}");
    }
    // And toward a forward's host there is nothing that a whole packet would not say: -y sets DF, -x more fragments.
    for (line, df, more) in [("-2 -y -d 200 -s 40003", true, false), ("-2 -x -d 200 -s 40004", false, true)] {
        stage.s1.clear();
        said(&stage.lab.a, &format!("hping3 -n {line} -c 1 -p 5000 198.51.100.1"));
        let seen = stage.s1.incoming(|seen| seen.ip.as_ref().is_some_and(|ip| ip.protocol == UDP));
        let [seen] = seen.as_slice() else { panic!("{line}: {seen:?}") };
        assert_eq!((seen.ip().df, seen.ip().more_fragments, seen.ip().source), (df, more, P1), "{line}");
    }
}

/// RFC 1858: a first TCP fragment without the flags' row is for nobody; hping3 -f cuts just there.
#[test]
fn hping3_tiny_tcp_fragments_go_nowhere() {
    if !has("hping3") {
        return;
    }
    let stage = talking(Lab::builder());
    let said = said(&stage.lab.a, "hping3 -n -S -f -d 200 -c 1 -s 40002 -p 5000 198.51.100.1");
    assert!(said.contains("1 packets transmitted, 0 packets received"), "{said}");
    assert_eq!(fragments(&stage.s1, TCP).len(), 0);
    assert_eq!(stage.gateway.drops()["fragment"], 14);
    stage.carries_the_next();
}

/// Every frame of a mixed run, as each end and the wire between saw it, with all of tshark's checksum checks on.
#[test]
fn tshark_finds_no_wrong_checksum() {
    if !has("tshark") {
        return;
    }
    let stage = talking(Lab::builder().wan_mtu(1400));
    for host in [&stage.lab.isp, &stage.lab.gateway] {
        // What they say themselves has its checksum before it is seen, too.
        let links =
            if host.namespace == stage.lab.isp.namespace { ["gw", "port-s1"] } else { ["lan", "wan"] };
        for link in links {
            host.succeed(&format!("ethtool -K {link} tx off tso off gso off gro off"));
        }
    }
    let Stage { lab, .. } = &stage;
    lab.a.succeed("ping -c 3 -i 0.05 198.51.100.1");
    // Cut on the way out, and put together on the way back; then too big to be cut.
    lab.a.succeed("ping -c 2 -i 0.05 -s 3000 198.51.100.1");
    said(&lab.a, "ping -M do -s 1400 -c 1 -W 1 198.51.100.1");
    said(&lab.a, "traceroute -n -q 1 -w 1 -m 4 198.51.100.1");
    stage.transfer(200_000);
    for round in 0..20 {
        let from = format!("192.168.1.11:{}", 40_000 + round);
        let mapped = source(&stage.crosses(&stage.udp(&from, "198.51.100.2:53")));
        stage.reaches(&stage.udp("198.51.100.2:53", &mapped), &stage.b);
    }
    let scratch = Scratch::new();
    for (name, tap, wanted) in [
        ("a", &stage.a, &["tcp", "icmp"][..]),
        ("b", &stage.b, &["udp"]),
        ("s1", &stage.s1, &["tcp", "icmp", "udp"]),
        ("wan", &stage.wan, &["tcp", "icmp", "udp"]),
    ] {
        let file = scratch.path(name);
        let captured = tap.captured();
        pcap::write(&file, &captured);
        let found = checksums(&stage.lab.a, &file);
        assert!(found.values().all(|(_, bad)| *bad == 0), "{name}: {found:?}");
        assert!(wanted.iter().chain(&["ip"]).all(|protocol| found[protocol].0 > 3), "{name}: {found:?}");
        // The control: one bit of one packet's payload.
        let of = wanted[0];
        let mut captured = captured;
        let victim = captured
            .iter_mut()
            .find(|seen| {
                let ip = seen.decoded.ip.as_ref();
                let whole = ip.is_some_and(|ip| !ip.is_fragment()) && !seen.decoded.payload().is_empty();
                whole && if of == "udp" { seen.decoded.udp().is_some() } else { seen.decoded.tcp().is_some() }
            })
            .unwrap_or_else(|| panic!("a packet with {of} and a payload at {name}"));
        *victim.frame.last_mut().expect("a frame") ^= 1;
        pcap::write(&file, &captured);
        let found = checksums(&stage.lab.a, &file);
        assert_eq!(found[of].1, 1, "{name}: tshark would have found it: {found:?}");
    }
}

/// By protocol, how many checksums tshark finds good and how many bad, those of quoted packets among them.
fn checksums(host: &Host, file: &Path) -> BTreeMap<&'static str, (usize, usize)> {
    const PROTOCOLS: [&str; 4] = ["ip", "tcp", "udp", "icmp"];
    let checks = ["ip", "tcp", "udp"].map(|layer| format!("-o {layer}.check_checksum:TRUE")).join(" ");
    let fields = PROTOCOLS.map(|protocol| format!("-e {protocol}.checksum.status")).join(" ");
    let table = host.succeed(&format!("tshark -n -r {} {checks} -T fields {fields}", file.display()));
    let count = |column: usize, status: &str| {
        let of_line = |line: &str| {
            line.split('\t')
                .nth(column)
                .map_or(0, |field| field.split(',').filter(|one| *one == status).count())
        };
        table.lines().map(of_line).sum()
    };
    (0..)
        .zip(PROTOCOLS)
        .map(|(column, protocol)| (protocol, (count(column, "1"), count(column, "0"))))
        .collect()
}

#[test]
fn tracepath_and_ping_find_the_narrowest_link() {
    if !has("tracepath") {
        return;
    }
    let stage = talking(Lab::builder().wan_mtu(1400));
    let ping = |size: u16| said(&stage.lab.a, &format!("ping -M do -c 1 -W 2 -s {size} 198.51.100.1"));
    let path = || {
        stage.lab.a.ip("route flush cache");
        said(&stage.lab.a, "tracepath -n 198.51.100.1")
    };
    // The gateway's own link, told of by the gateway.
    assert!(ping(1372).contains(" 0% packet loss"));
    let told = ping(1373);
    assert!(told.contains("From 192.168.1.1") && told.contains("(mtu = 1400)"), "{told}");
    let found = path();
    assert!(found.contains("192.168.1.1 ") && found.contains("Resume: pmtu 1400 hops 3 back 3"), "{found}");
    // One beyond, told of by the provider's router to the gateway, whose word has to reach the host.
    stage.lab.isp.ip("link set inet mtu 1300");
    stage.lab.a.ip("route flush cache");
    let told = ping(1300);
    assert!(told.contains("From 203.0.113.254") && told.contains("(mtu = 1300)"), "{told}");
    let found = path();
    assert!(found.contains("Resume: pmtu 1300 hops 3 back 3"), "{found}");
}

/// It compares what routers quote with what it has sent: a NAT that leaves its addresses in there shows.
#[test]
fn dublin_traceroute_sees_every_hop_and_no_nat() {
    if !has("dublin-traceroute") {
        return;
    }
    let stage = talking(Lab::builder());
    // It asks for names, which nobody here knows; and four paths are more than kernels answer at once.
    stage
        .lab
        .a
        .nft("table ip names { chain output { type filter hook output priority 0; udp dport 53 reject; }; }");
    for host in [&stage.lab.isp, &stage.lab.s1] {
        host.sysctl("ipv4.icmp_ratelimit", "0");
    }
    let scratch = Scratch::new();
    // It leaves a file where it is.
    let script = format!(
        "cd {} && dublin-traceroute --npaths=4 --max-ttl=4 --delay=1 198.51.100.1 2>&1",
        scratch.path("").display()
    );
    let trace = || String::from_utf8_lossy(&stage.lab.a.shell(&script).stdout).into_owned();
    // Its capture may begin after its first packet was answered: then that hop is a star, and it is asked again.
    let mut said = trace();
    for _ in 0..3 {
        if said.lines().any(|line| line.trim_end().ends_with('*')) {
            said = trace();
        }
    }
    for (number, hop) in ["192.168.1.1", "203.0.113.254", "198.51.100.1"].into_iter().enumerate() {
        let line = format!("{}    {hop} ", number + 1);
        assert_eq!(said.matches(&line).count(), 4, "{hop} on each of four paths:\n{said}");
    }
    assert_eq!(said.matches("NAT ID: 0,").count(), 12, "{said}");
}
