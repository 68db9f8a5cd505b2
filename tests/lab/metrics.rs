//! Counters for Prometheus: what a scraper reads is what was on the wire.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use nat_tests::{Metrics, gateway, host::connect_from};

use crate::stage::{Stage, seconds};

const SERVER: &str = "198.51.100.1:5000";
const LISTEN: &str = "\n[metrics]\nlisten = \"192.168.1.1:9477\"\n";

fn read(text: &str) -> Metrics {
    Metrics::parse(text).unwrap_or_else(|wrong| panic!("{wrong}\nin\n{text}"))
}

/// What curl in the gateway fetches from the configured address.
fn scraped(stage: &Stage) -> String {
    stage.lab.gateway.succeed("curl -sS --fail --max-time 10 http://192.168.1.1:9477/metrics")
}

#[test]
fn a_scraper_reads_what_was_on_the_wire() {
    let stage = Stage::with(&format!("{}ports = \"20000-20009\"\n{LISTEN}", gateway::STANDARD));
    let before = read(&scraped(&stage));
    assert!(before.get("natgw_dropped_packets_total{reason=\"ports_exhausted\"}") < 0.5);
    for number in 0..10 {
        stage.crosses(&stage.udp(&format!("192.168.1.10:{}", 30_000 + number), SERVER));
    }
    for _ in 0..5 {
        stage.crosses(&stage.udp("192.168.1.10:30000", SERVER));
    }
    stage.stopped(&stage.udp("192.168.1.11:1", SERVER), &stage.s1);
    stage.crosses(&stage.syn("192.168.1.10:30000", SERVER));
    let text = scraped(&stage);
    let after = read(&text);
    let expected = [
        ("natgw_sessions", 11.0),
        ("natgw_mappings", 11.0),
        ("natgw_sessions_opened_total{rule=\"office\"}", 11.0),
        ("natgw_dropped_packets_total{reason=\"ports_exhausted\"}", 1.0),
        ("natgw_ports{address=\"203.0.113.1\",protocol=\"udp\",state=\"used\"}", 10.0),
        ("natgw_ports{address=\"203.0.113.1\",protocol=\"udp\",state=\"free\"}", 0.0),
        ("natgw_ports{address=\"203.0.113.1\",protocol=\"tcp\",state=\"free\"}", 9.0),
        ("natgw_interface_up{interface=\"lan\",side=\"inside\"}", 1.0),
        ("natgw_interface_up{interface=\"wan\",side=\"outside\"}", 1.0),
        ("natgw_rules{kind=\"snat\"}", 1.0),
        ("natgw_held_frames", 0.0),
        ("natgw_lost_frames_total", 0.0),
    ];
    for (series, value) in expected {
        assert!((after.get(series) - value).abs() < 0.5, "{series} is {}, not {value}", after.get(series));
    }
    let translated = |metrics: &Metrics| -> f64 {
        let wanted = |name: &str| name.starts_with("natgw_packets_total{verdict=\"translated");
        metrics.series().filter(|(name, _)| wanted(name)).map(|(_, value)| value).sum()
    };
    // All that passed but first packets that the daemon had to judge.
    let by_program = translated(&after) - translated(&before);
    assert!(by_program > 4.5 && by_program < 15.5, "{text}");
    let version = format!("natgw_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    assert!((after.get(&version) - 1.0).abs() < 0.1);
    // The command prints the same, and promtool has nothing to say about it where it is installed.
    let printed = stage.gateway.text(&["metrics"]);
    assert!(read(&printed).names().eq(after.names()), "{printed}");
    if Command::new("promtool").arg("--version").output().is_ok() {
        let file = stage.gateway.configuration().with_extension("prom");
        fs::write(&file, &printed).expect("write what was printed");
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../contrib/prometheus/natgw.rules.yml");
        for check in [
            format!("promtool check metrics < {}", file.display()),
            format!("promtool check rules {}", rules.display()),
        ] {
            let checked = stage.lab.gateway.shell(&check);
            assert!(checked.status.success(), "{check}: {}", String::from_utf8_lossy(&checked.stderr));
        }
    }
}

#[test]
fn a_client_that_hangs_neither_delays_packets_nor_other_clients() {
    let stage = Stage::with(&format!("{}{LISTEN}", gateway::STANDARD));
    let hanging: Vec<TcpStream> = (0..6)
        .map(|number| {
            let from = format!("192.168.1.1:{}", 50_000 + number);
            let mut client = stage
                .lab
                .gateway
                .within(|| connect_from(&from, "192.168.1.1:9477"))
                .expect("connect to the responder");
            client.write_all(b"GET /metrics HT").expect("begin to ask");
            client
        })
        .collect();
    let begun = Instant::now();
    read(&scraped(&stage));
    for number in 0..50 {
        stage.crosses(&stage.udp(&format!("192.168.1.10:{}", 30_000 + number), SERVER));
    }
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    // Whoever does not ask in time is hung up on.
    seconds(5.5);
    for mut client in hanging {
        client.set_read_timeout(Some(Duration::from_secs(3))).expect("set a timeout");
        let mut answer = Vec::new();
        assert!(client.read_to_end(&mut answer).is_ok() || answer.is_empty(), "hung up");
        assert!(answer.is_empty());
    }
    read(&scraped(&stage));
}

#[test]
fn a_port_that_is_taken_is_told_before_anything_is_changed() {
    let stage = Stage::with(&format!("{}{LISTEN}", gateway::STANDARD));
    let config = stage.gateway.configuration();
    let run = format!("run --config {}", config.display());
    let output = stage.gateway.output(&run.split(' ').collect::<Vec<_>>());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(
        said.contains("listen on 192.168.1.1:9477 for metrics") && said.contains("[metrics] listen"),
        "{said}"
    );
    stage.crosses(&stage.udp("192.168.1.10:30000", SERVER));
}
