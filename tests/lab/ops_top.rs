//! Rates as they are: against what the taps sent.

use std::time::{Duration, Instant};

use nat_tests::{Packet, gateway};
use serde_json::{Value, json};

use crate::stage::Stage;

const SERVER: &str = "198.51.100.1:5000";

/// Looks, each over half a second, while `work` goes on.
fn looks(stage: &Stage, count: usize, mut work: impl FnMut()) -> Vec<Value> {
    let path = stage.gateway.socket().with_extension("top");
    let _process = stage.gateway.spawn(&["top", "--json", "--interval", "0.5"], &path);
    let lines = || -> Vec<Value> {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        text.split_inclusive('\n')
            .filter_map(|line| serde_json::from_str(line.strip_suffix('\n')?).ok())
            .collect()
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    while lines().len() < count {
        assert!(Instant::now() < deadline, "{count} looks");
        work();
    }
    lines()
}

/// The sum over all looks of what a rate was, times how long it was.
fn total(looks: &[Value], of: impl Fn(&Value) -> f64) -> f64 {
    looks.iter().map(|look| of(look) * look["interval"].as_f64().unwrap_or(0.0)).sum()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

fn row<'look>(look: &'look Value, list: &str, name: &str) -> &'look Value {
    let rows = look[list].as_array().map(Vec::as_slice).unwrap_or_default();
    rows.iter().find(|row| row["name"] == name).unwrap_or(&Value::Null)
}

#[test]
fn top_shows_who_sends_how_much() {
    let stage = Stage::standard();
    // Two hosts whose packets are of different sizes, and one that is refused.
    let (small, large) = ("192.168.1.10:40000", "192.168.1.11:40001");
    stage.crosses(&stage.udp(small, SERVER));
    stage.crosses(&stage.udp(large, SERVER));
    let sent = std::cell::Cell::new(0_u32);
    let looks = looks(&stage, 4, || {
        stage.crosses(&Packet::udp(small, SERVER).payload(format!("{:0100}", stage.token())));
        stage.crosses(&Packet::udp(large, SERVER).payload(format!("{:01000}", stage.token())));
        stage.stopped_quickly(&stage.udp("192.168.1.12:9", "198.51.100.2:9").ttl(1));
        sent.set(sent.get() + 1);
    });
    let sent = f64::from(sent.get());
    let bits = |host: &str| total(&looks, |look| number(&row(look, "hosts", host)["bits_out"])) / 8.0;
    let packets = |host: &str| total(&looks, |look| number(&row(look, "hosts", host)["packets_out"]));
    for (host, size) in [("192.168.1.10", 128.0), ("192.168.1.11", 1028.0)] {
        // Some were sent before the first look and after the last.
        let seen = packets(host);
        assert!(seen > 0.4 * sent && seen <= sent + 1.0, "{seen} of {sent}: {looks:#?}");
        let bytes = bits(host) / seen;
        assert!((bytes - size).abs() < 1.0, "{bytes} bytes a packet from {host}");
    }
    let busiest = looks.last().expect("a look");
    assert_eq!(busiest["hosts"][0]["name"], "192.168.1.11", "{busiest}");
    assert_eq!(busiest["remotes"][0]["name"], "198.51.100.1");
    assert_eq!(
        (&busiest["rules"][0]["name"], &busiest["rules"][0]["sessions"]),
        (&json!("office"), &json!(2))
    );
    assert_eq!(busiest["drops"][0]["reason"], "ttl");
    assert!(total(&looks, |look| number(&look["packets"]["dropped"])) > 0.4 * sent);
    assert!(total(&looks, |look| number(&look["packets"]["translated"])) > 0.8 * sent);
    // The kernel measures the programs while somebody looks.
    assert!(looks.iter().any(|look| number(&look["cpu"]["fast_path"]) > 0.0), "{busiest}");
    assert!(looks.iter().all(|look| number(&look["cpu"]["slow_path"]) > 0.0));
}

/// Sessions that begin are counted to their host; those that were there are not.
#[test]
fn top_counts_new_sessions() {
    let stage = Stage::with(gateway::STANDARD);
    let packets: Vec<Packet> =
        (0..50).map(|host| stage.udp(&format!("192.168.1.11:{}", 50_000 + host), SERVER)).collect();
    stage.cross_many(&packets);
    let next = std::cell::Cell::new(40_000_u16);
    let looks = looks(&stage, 4, || {
        stage.crosses(&stage.udp(&format!("192.168.1.10:{}", next.get()), SERVER));
        next.set(next.get() + 1);
    });
    let opened = f64::from(next.get() - 40_000);
    let new = |host: &str| total(&looks, |look| number(&row(look, "hosts", host)["new"]));
    let seen = new("192.168.1.10");
    assert!(seen > 0.4 * opened && seen <= opened + 1.0, "{seen} of {opened}");
    assert!(new("192.168.1.11") < 1.0, "they were there");
    assert!(total(&looks, |look| number(&look["new"])) > 0.4 * opened);
    assert_eq!(row(&looks[3], "hosts", "192.168.1.11")["sessions"], 50);
}

/// `status` tells the rate of what is sent, and nothing a second later of what is not.
#[test]
fn status_tells_packets_a_second() {
    let stage = Stage::standard();
    stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.1:9"));
    let rate = || number(&stage.gateway.natgw(&["status", "--json"])["rates"]["translated"]);
    let begun = Instant::now();
    let mut sent = 0;
    while begun.elapsed() < Duration::from_secs(4) {
        stage.a.send(&stage.udp("192.168.1.10:40000", "198.51.100.1:9"));
        // The daemon wakes for what is new.
        stage.a.send(&stage.udp(&format!("192.168.1.11:{}", 20_000 + sent), "198.51.100.1:9"));
        sent += 1;
        std::thread::sleep(Duration::from_millis(20));
    }
    let seen = stage.s1.incoming(|seen| seen.udp().is_some()).len();
    let wanted = f64::from(u32::try_from(seen).expect("few")) / 4.0;
    let told = rate();
    assert!(told > 0.3 * wanted && told < 2.0 * wanted, "{told} a second, not {wanted}");
    stage.gateway.wait_until("nothing is sent", Duration::from_secs(10), |_| {
        stage.stopped_quickly(&stage.udp("192.168.1.12:9", "198.51.100.2:9").ttl(1));
        rate() < 0.1
    });
}
