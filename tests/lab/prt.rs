//! Port assignment: kept where possible, of the same kind where not, unpredictable, and within the configured range.

use std::time::Duration;

use nat_tests::{Decoded, Packet};

use crate::stage::{Stage, port, public, seconds, source};

#[test]
fn prt_01_a_free_port_is_preserved() {
    let stage = Stage::standard();
    assert_eq!(source(&stage.crosses(&stage.udp("192.168.1.10:64125", "198.51.100.1:53"))), public(64125));
    assert_eq!(stage.connect("192.168.1.10:64125", "198.51.100.1:80"), public(64125));
}

#[test]
fn prt_02_low_ports_stay_low_and_high_ports_high() {
    let stage = Stage::snat("ports = \"1-65535\"");
    for number in [500_u16, 1023, 1024, 40000] {
        for client in ["192.168.1.10", "192.168.1.11", "192.168.1.12"] {
            let packet = stage.udp(&format!("{client}:{number}"), "198.51.100.1:500");
            let seen = port(&stage.crosses(&packet));
            assert_eq!(seen < 1024, number < 1024, "{client}:{number} became {seen}");
        }
    }
}

#[test]
fn prt_03_and_05_a_conflict_keeps_parity_and_is_not_predictable() {
    let stage = Stage::standard();
    let from = |client: &str| -> Vec<Packet> {
        (20_000..21_000).map(|number| stage.udp(&format!("{client}:{number}"), "198.51.100.1:53")).collect()
    };
    stage.cross_many(&from("192.168.1.10"));
    let seen = stage.cross_many(&from("192.168.1.11"));
    let ports: Vec<u16> = seen.iter().map(port).collect();
    for (wanted, got) in (20_000..).zip(&ports) {
        assert_ne!(wanted, *got);
        assert_eq!(wanted % 2, got % 2, "parity of {wanted} and {got}");
    }
    let correlation = lag_one_correlation(&ports);
    assert!(correlation.abs() < 0.15, "successive ports correlate: r = {correlation}");
    // 15 degrees of freedom: one run of ten thousand exceeds this by chance.
    let chi_square = chi_square(&ports, 16);
    assert!(chi_square < 44.3, "ports are not spread evenly: chi-square = {chi_square}");
}

#[test]
fn prt_04_rtp_and_rtcp_keep_their_ports_or_at_least_their_parity() {
    let stage = Stage::standard();
    let pair = |client: &str| {
        [5004, 5005].map(|number| {
            port(&stage.crosses(&stage.udp(&format!("{client}:{number}"), "198.51.100.1:6000")))
        })
    };
    assert_eq!(pair("192.168.1.10"), [5004, 5005]);
    for client in ["192.168.1.11", "192.168.1.12"] {
        let [rtp, rtcp] = pair(client);
        assert_eq!((rtp % 2, rtcp % 2), (0, 1), "{rtp} and {rtcp}");
    }
}

/// The range, not the time, is scaled: B opens as many as it can while A's port has its 120 s of rest.
#[test]
fn prt_06_a_port_rests_before_another_host_gets_it() {
    let stage = Stage::snat("ports = \"20000-20099\"\n[timeouts]\nudp = \"2s\"");
    let held = port(&stage.crosses(&stage.udp("192.168.1.10:20050", "198.51.100.1:53")));
    stage.forgets_within(Duration::from_secs(5));
    let sent: Vec<Decoded> = (0..100)
        .map(|number| stage.send(&stage.udp(&format!("192.168.1.11:{}", 30_000 + number), "198.51.100.1:53")))
        .collect();
    let got = |sent: &Decoded| {
        let patience = Duration::from_millis(200);
        stage
            .s1
            .recv_matching(patience, |seen| seen.payload() == sent.payload())
            .map(|seen| port(&seen.decoded))
    };
    let mut ports: Vec<u16> = sent.iter().filter_map(got).collect();
    ports.sort_unstable();
    let all_but_the_one: Vec<u16> = (20_000..20_100).filter(|other| *other != held).collect();
    assert_eq!(ports, all_but_the_one);
    // It is still A's.
    assert_eq!(port(&stage.crosses(&stage.udp("192.168.1.10:20050", "198.51.100.1:53"))), held);
}

/// A daemon that is killed leaves its sessions in the kernel, where the next one finds them: B asks for A's ports,
/// first while nobody decides, then of the new daemon.
#[test]
fn prt_07_ports_in_use_before_a_crash_are_nobody_elses_after_it() {
    let mut stage = Stage::standard();
    let numbers = 40_000_u16..40_050;
    let of = |client: &str, number: u16| {
        Packet::udp((client, number), "198.51.100.1:53").payload(number.to_be_bytes())
    };
    let flows: Vec<Packet> = numbers.clone().map(|number| of("192.168.1.10", number)).collect();
    stage.cross_many(&flows);
    let tcp = stage.connect("192.168.1.10:40000", "198.51.100.1:80");
    stage.gateway.kill();
    let sent = stage.send(&stage.udp("192.168.1.11:40000", "198.51.100.1:53"));
    stage.s1.expect_none("a new flow while nobody decides", |seen| seen.payload() == sent.payload());
    stage.gateway.restart();
    for number in numbers.clone() {
        let other = port(&stage.crosses(&stage.udp(&format!("192.168.1.11:{number}"), "198.51.100.1:53")));
        assert!(!numbers.contains(&other), "B got {other}");
        stage.reaches(&stage.udp("198.51.100.1:53", &public(number)), &stage.a);
    }
    assert_ne!(stage.connect("192.168.1.11:40000", "198.51.100.1:80"), tcp);
    stage.reaches(&stage.data("198.51.100.1:80", &tcp), &stage.a);
}

#[test]
fn prt_08_nothing_leaves_the_configured_range() {
    let stage = Stage::snat("ports = \"20000-20099\"");
    let packets: Vec<Packet> = (1..=100)
        .map(|number| stage.udp(&format!("192.168.1.10:{}", 30_000 + number), "198.51.100.1:53"))
        .collect();
    let mut ports: Vec<u16> = stage.cross_many(&packets).iter().map(port).collect();
    ports.sort_unstable();
    assert_eq!(ports, (20_000..20_100).collect::<Vec<u16>>());
    let sent = stage.send(&stage.udp("192.168.1.11:30000", "198.51.100.1:53"));
    stage.s1.expect_none("the 101st endpoint", |seen| seen.payload() == sent.payload());
    // EXH-01: the refusal is said to the one who asked, about the packet as it was sent.
    let refusal =
        stage.b.expect("ICMP 3/13", |seen| seen.icmp().is_some_and(|icmp| (icmp.kind, icmp.code) == (3, 13)));
    let quoted = refusal.icmp().unwrap().quoted.clone().unwrap();
    assert_eq!(Some(quoted.source()), sent.source());
    let id = port(&stage.crosses(&Packet::echo_request("192.168.1.10", "198.51.100.1", 5, 1)));
    assert!((20_000..20_100).contains(&id), "ICMP id {id}");
    let tcp = port(&stage.crosses(&stage.syn("192.168.1.10:40000", "198.51.100.1:80")));
    assert!((20_000..20_100).contains(&tcp), "TCP port {tcp}");
}

#[test]
fn prt_09_three_ports_serve_three_flows_at_a_time() {
    let configuration = format!(
        "{}ports = \"20000-20002\"\n[timeouts]\ntcp_transitory = \"2s\"\n",
        nat_tests::gateway::STANDARD
    );
    let stage = Stage::with(&configuration);
    let passes = |number: u16| {
        let sent = stage.send(&stage.syn(&format!("192.168.1.10:{number}"), "198.51.100.1:80"));
        let seq = |packet: &Decoded| packet.tcp().map(|tcp| tcp.seq);
        stage.s1.recv_matching(Duration::from_millis(300), |seen| seq(seen) == seq(&sent)).is_some()
    };
    let passed: Vec<u16> = (30_000..30_005).filter(|number| passes(*number)).collect();
    assert_eq!(passed, [30_000, 30_001, 30_002]);
    seconds(4.0);
    assert!(passes(30_003) && passes(30_004), "the ports of expired flows serve others");
}

/// MAP-E (RFC 7597 section 5.1) counts the offset from the highest bit: behind 6 bits the 6 of the set are bits 4 to 9
/// of the port. With an offset of 4 they are bits 6 to 11, which is where VPP's offset of 6, counted from the lowest,
/// has them.
#[test]
fn prt_10_ports_of_one_port_set() {
    for (offset, shift) in [(6, 4), (4, 6)] {
        for mapping in ["endpoint-independent", "endpoint-dependent"] {
            let set = format!("port_set = {{ offset = {offset}, length = 6, id = 10 }}");
            let stage = Stage::snat(&format!("{set}\nmapping = \"{mapping}\""));
            let mut flows: Vec<Packet> = (0..200)
                .map(|number| stage.udp(&format!("192.168.1.10:{}", 30_000 + number), "198.51.100.1:53"))
                .collect();
            flows.extend(
                (0..20).map(|number| stage.syn(&format!("192.168.1.11:{number}99"), "198.51.100.1:80")),
            );
            flows.extend((0..20).map(|id| Packet::echo_request("192.168.1.12", "198.51.100.1", id, 1)));
            for seen in stage.cross_many(&flows) {
                let number = port(&seen);
                assert_eq!((number >> shift) & 63, 10, "{seen}");
                assert!(number >= 1024, "{seen}");
                let remote = seen.destination().unwrap().to_string();
                if seen.udp().is_some() {
                    stage.reaches(&stage.udp(&remote, &public(number)), &stage.a);
                }
            }
        }
    }
}

/// The only set of ports that is left is used to the last one, and then refuses.
#[test]
fn prt_10_a_port_set_is_used_up() {
    let stage = Stage::snat("ports = \"1024-5000\"\nport_set = { length = 6, id = 10 }");
    let mut ports = Vec::new();
    for number in 0..70 {
        let sent = stage.send(&stage.udp(&format!("192.168.1.10:{}", 30_000 + number), "198.51.100.1:53"));
        let patience = Duration::from_millis(if number < 64 { 3000 } else { 50 });
        let seen = stage.s1.recv_matching(patience, |seen| seen.payload() == sent.payload());
        ports.extend(seen.map(|seen| port(&seen.decoded)));
    }
    ports.sort_unstable();
    let wanted: Vec<u16> = (1024..=5000).filter(|number| (number >> 4) & 63 == 10).collect();
    assert_eq!((ports, wanted.len()), (wanted, 64));
}

fn lag_one_correlation(ports: &[u16]) -> f64 {
    let values: Vec<f64> = ports.iter().copied().map(f64::from).collect();
    let mean = mean(&values);
    let products: Vec<f64> = values.windows(2).map(|pair| (pair[0] - mean) * (pair[1] - mean)).collect();
    let squares: Vec<f64> = values.iter().map(|value| (value - mean).powi(2)).collect();
    products.iter().sum::<f64>() / squares.iter().sum::<f64>()
}

fn chi_square(ports: &[u16], bins: usize) -> f64 {
    let mut counts = vec![0_u32; bins];
    for port in ports {
        counts[usize::from(port - 1024) * bins / (65_536 - 1024)] += 1;
    }
    let counts: Vec<f64> = counts.into_iter().map(f64::from).collect();
    let expected = mean(&counts);
    counts.iter().map(|count| (count - expected).powi(2) / expected).sum()
}

fn mean(values: &[f64]) -> f64 {
    let count = u32::try_from(values.len()).expect("a test has few values");
    values.iter().sum::<f64>() / f64::from(count)
}
