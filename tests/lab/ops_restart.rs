//! Killed, stopped, started anew: sessions live on, and an end leaves no trace.

use std::{fs, path::PathBuf};

use nat_tests::{Decoded, Gateway, Host, Lab, Packet, gateway, packet::tcp};

use crate::stage::{Stage, scaled, seconds, source};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";

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
    let sessions = stage.gateway.sessions();
    assert_eq!(sessions.len(), 2, "{sessions:?}");
    let of_udp = sessions.iter().find(|session| session["protocol"] == "udp").unwrap();
    let counted = ["packets_out", "packets_in"].map(|field| of_udp[field].as_u64());
    assert_eq!(counted, [Some(4), Some(3)], "counters go on: {of_udp}");
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
    assert!(gateway.pins().is_empty(), "{:?}", gateway.pins());
    let folder = gateway.configuration().with_file_name("bpf").join("natgw");
    assert!(!folder.exists(), "{} is left", folder.display());
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

/// Scaled: 3000 sessions, not 100 000, which are of 24 000 mappings.
#[test]
fn ops_05_a_restart_keeps_every_session() {
    let sessions = scaled(3000, 100_000);
    let mut stage = Stage::timeouts("udp = \"20m\"");
    stage.gateway.keep_fast_path();
    stage.gateway.restart();
    let packets: Vec<_> = (0..sessions)
        .map(|n| {
            let client = format!("192.168.1.{}:{}", 10 + n % 3, 20_000 + n / 3 % 8000);
            stage.udp(&client, &format!("198.51.100.1:{}", 5000 + n / 24_000))
        })
        .collect();
    let is_reset = |seen: &Decoded| seen.tcp().is_some_and(|tcp| tcp.flags & tcp::RST != 0);
    // In parts, each of which the taps forget: looking a packet up among very many takes its time.
    let cross_all = |stage: &Stage| {
        let part = |part: &[Packet]| {
            let seen: Vec<String> = stage.cross_many(part).iter().map(source).collect();
            for tap in [&stage.a, &stage.b, &stage.c, &stage.s1, &stage.wan] {
                assert!(tap.incoming(is_reset).is_empty());
                tap.clear();
            }
            seen
        };
        packets.chunks(1000).flat_map(part).collect::<Vec<_>>()
    };
    let before = cross_all(&stage);
    let tcp = stage.connect("192.168.1.10:40001", SERVER);
    stage.gateway.stop();
    // Between the two there is nobody, and nothing is lost: the pause is none.
    stage.crosses(&packets[7]);
    stage.reaches(&stage.udp(SERVER, &before[7]), stage.tap(Decoded::parse(&packets[7].build()).ip().source));
    stage.gateway.restart();
    assert_eq!(stage.session_count(), sessions + 1);
    let after = cross_all(&stage);
    assert!(before == after, "some have other ports than before");
    assert_eq!(source(&stage.crosses(&stage.data("192.168.1.10:40001", SERVER))), tcp);
    for tap in [&stage.a, &stage.s1] {
        assert!(tap.incoming(is_reset).is_empty());
    }
}

/// Another layout of the tables that is not described is neither read nor cut off, and the message says whose it is and
/// what to do.
#[test]
fn ops_08_state_of_another_layout_is_not_damaged() {
    let mut stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    stage.gateway.kill();
    // As a daemon of another version would have left it that does not say how it is to be read.
    let pins = PathBuf::from(stage.gateway.pin("LINES")).parent().unwrap().to_owned();
    fs::remove_file(pins.join("LAYOUT")).unwrap();
    for layout in ["v1", "v4000000"] {
        let other = pins.with_file_name(layout);
        if other != pins {
            fs::rename(&pins, &other).unwrap();
        }
        let file = stage.gateway.configuration();
        let output = stage.gateway.output(&["run", "--config", &file.to_string_lossy()]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        for word in ["another version of natgw", &format!("layout {}", &layout[1..]), "rm -r"] {
            assert!(said.contains(word), "{said}");
        }
        // Refused before damage: what the other version translates, it still does.
        for _ in 0..3 {
            stage.crosses(&stage.udp(CLIENT, SERVER));
            stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
        }
        let _ = fs::remove_dir(&pins);
        fs::rename(&other, &pins).unwrap();
    }
    // The version that knows the layout goes on with it.
    stage.gateway.restart();
    assert_eq!(source(&stage.crosses(&stage.udp(CLIENT, SERVER))), mapped);
    assert_eq!(stage.session_count(), 1);
}

/// Whoever starts it twice by mistake is told, and the first goes on.
#[test]
fn a_second_daemon_is_refused_and_the_first_notices_nothing() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let configuration = stage.gateway.configuration();
    let second = stage.gateway.output(&["run", "--config", &configuration.to_string_lossy()]);
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains("another daemon answers there") && said.contains("natgw status"), "{said}");
    stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
    stage.crosses(&stage.udp("192.168.1.11:40000", SERVER));
    assert!(!stage.gateway.log().contains("WARN natgw::slowpath"), "{}", stage.gateway.log());
}
