//! The log of translations: who had which external endpoint when, as JSON and syslog, and a collector that is gone.

use std::{
    cell::Cell,
    fs,
    net::UdpSocket,
    process::Command,
    time::{Duration, SystemTime},
};

use nat_tests::{Decoded, Packet};
use serde_json::Value;

use crate::{
    log_ipfix::{Nfcapd, open_collector},
    log_records::{COLLECTOR, SERVER, Scratch, awaited_lines, counted, flows, history, lines, stage, text},
    stage::{Stage, seconds, source},
};

#[test]
fn log_01_and_02_who_had_an_endpoint_is_told_for_ten_thousand_flows_and_not_whom_it_met() {
    const ROUNDS: usize = 10;
    const FLOWS: usize = 1000;
    let scratch = Scratch::new();
    let file = scratch.path("events.json");
    // So few ports that each is had by many, one after the other.
    let stage = stage(
        "ports = \"20000-20499\"\n[timeouts]\nquarantine = \"0s\"",
        &format!("sessions = \"json\"\nfile = \"{}\"\nevents = [\"sessions\", \"mappings\"]", file.display()),
    );
    let (mut random, mut truth) = (1, Vec::new());
    for _ in 0..ROUNDS {
        let packets = flows(&stage, &mut random, FLOWS);
        let seen = stage.cross_many(&packets);
        let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_millis();
        for (packet, seen) in packets.iter().zip(&seen) {
            let protocol = match seen.ip().protocol {
                17 => "udp",
                6 => "tcp",
                _ => "icmp",
            };
            let inside = Decoded::parse(&packet.build());
            truth.push((at, protocol, source(seen), source(&inside)));
        }
        stage.gateway.text(&["session", "flush"]);
        for tap in [&stage.a, &stage.b, &stage.c, &stage.s1, &stage.wan] {
            tap.clear();
        }
    }
    let records = awaited_lines(&stage, &file, 4 * ROUNDS * FLOWS);
    assert_eq!(records.len(), 4 * ROUNDS * FLOWS);
    let [sessions, mappings] = ["session", "mapping"].map(|kind| {
        let of_kind: Vec<Value> =
            records.iter().filter(|record| text(record, "event").starts_with(kind)).cloned().collect();
        (kind, of_kind)
    });
    for (kind, records) in [&sessions, &mappings] {
        let history = history(records, kind);
        for (at, protocol, outside, inside) in &truth {
            let holders = &history[&(*protocol, outside.as_str())];
            let had: Vec<&str> = holders
                .iter()
                .filter(|(from, until, _)| from <= at && at < until)
                .map(|(.., inside)| *inside)
                .collect();
            assert_eq!(had, [inside], "who had {outside} at {at}, by {kind} records");
        }
        assert!(history.values().any(|holders| holders.len() > 3), "ports are had by several");
    }
    assert!(!fs::read_to_string(&file).expect("the log").contains("198.51.100.1"), "no destination");
    assert!((counted(&stage, "natgw_log_records_total") - 40_000.0).abs() < 0.5);
    assert!(counted(&stage, "natgw_log_lost_records_total") < 0.5);
}

#[test]
fn log_02_destinations_are_there_when_asked_for() {
    let scratch = Scratch::new();
    let file = scratch.path("events.json");
    let stage =
        stage("", &format!("sessions = \"json\"\nfile = \"{}\"\ndestinations = true", file.display()));
    stage.crosses(&stage.udp("192.168.1.10:40000", SERVER));
    let records = awaited_lines(&stage, &file, 1);
    assert_eq!((text(&records[0], "remote"), text(&records[0], "remote_inside")), (SERVER, SERVER));
    // A file that was moved away is made anew, as logrotate wants it.
    fs::rename(&file, scratch.path("events.json.1")).expect("move the log");
    stage.crosses(&stage.udp("192.168.1.10:40001", SERVER));
    let records = awaited_lines(&stage, &file, 1);
    assert_eq!(text(&records[0], "inside"), "192.168.1.10:40001");
}

#[test]
fn log_07_a_collector_that_is_down_slow_or_silent_costs_records_and_nothing_else() {
    let scratch = Scratch::new();
    let log = format!("sessions = \"ipfix\"\ncollector = \"{COLLECTOR}\"\ntemplate_refresh = \"1s\"");
    let stage = stage("", &log);
    let lost = || counted(&stage, "natgw_log_lost_records_total");
    let templates = || {
        let of_templates = |payload: &[u8]| payload.get(16..18) == Some(&[0, 2][..]);
        stage.c.incoming(|seen| {
            seen.udp().is_some_and(|udp| udp.destination == 4739 && of_templates(&udp.payload))
        })
    };
    let flow = |number: u16| stage.crosses(&stage.udp(&format!("192.168.1.10:{number}"), SERVER));
    // Silent: nobody can know, but the templates come again and again, also when nothing happens.
    flow(30_000);
    seconds(3.6);
    let count = templates().len();
    assert!((3..=6).contains(&count), "{count} times the templates in 3.6 s");
    // Down: its host says so.
    open_collector(&stage);
    let begun = std::time::Instant::now();
    for number in 0..50 {
        flow(31_000 + number);
        seconds(0.01);
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    stage.gateway.wait_until("lost records are counted", Duration::from_secs(5), |_| lost() > 20.0);
    assert!(stage.gateway.log().contains("records are lost until it works"), "{}", stage.gateway.log());
    // Back: what it receives first are the templates, so that it understands all the rest.
    let nfcapd = Nfcapd::start(&stage, &scratch);
    seconds(1.2);
    let before = lost();
    for number in 0..50 {
        flow(32_000 + number);
    }
    seconds(1.5);
    let gathered = nfcapd.end(&stage);
    for number in 0..50 {
        let line = format!("192.168.1.10:{0} 203.0.113.1:{0}", 32_000 + number);
        assert!(gathered.iter().any(|gathered| gathered.ends_with(&line)), "no {line} in {gathered:#?}");
    }
    assert!(lost() - before < 0.5, "nothing is lost any more");
}

#[test]
fn log_07_a_file_that_blocks_holds_up_neither_packets_nor_the_end() {
    let scratch = Scratch::new();
    let pipe = scratch.path("events.json");
    let mut mkfifo = Command::new("mkfifo");
    assert!(mkfifo.arg(&pipe).status().expect("run mkfifo").success());
    // Nobody reads it: whoever opens it waits for ever.
    let log =
        format!("sessions = \"json\"\nfile = \"{}\"\nevents = [\"sessions\", \"mappings\"]", pipe.display());
    let mut stage = stage("[timeouts]\nquarantine = \"0s\"", &log);
    for _ in 0..2 {
        let packets: Vec<Packet> =
            (0..9000).map(|number| stage.udp(&format!("192.168.1.10:{}", 20_000 + number), SERVER)).collect();
        stage.cross_many(&packets);
        stage.gateway.text(&["session", "flush"]);
        for tap in [&stage.a, &stage.s1, &stage.wan] {
            tap.clear();
        }
    }
    let lost = counted(&stage, "natgw_log_lost_records_total");
    // What fits the queue waits in it; a batch may be in the writer's hands.
    assert!((1.0..=8000.0).contains(&lost), "{lost} of 72000 are lost");
    stage.gateway.stop();
}

#[test]
fn a_syslog_elsewhere_gets_a_line_for_each_record() {
    let scratch_port = "192.168.1.12:514";
    let stage =
        stage("", &format!("sessions = \"syslog\"\ncollector = \"{scratch_port}\"\ndestinations = true"));
    stage.lab.c.succeed("nft insert rule ip mute input udp dport 514 accept");
    let listener = stage.lab.c.within(|| UdpSocket::bind(scratch_port)).expect("listen");
    listener.set_read_timeout(Some(Duration::from_secs(5))).expect("set a timeout");
    stage.crosses(&stage.udp("192.168.1.10:40000", SERVER));
    let mut line = [0; 2048];
    let length = listener.recv(&mut line).expect("a line");
    let line = String::from_utf8_lossy(&line[..length]).into_owned();
    let words: Vec<&str> = line.split(' ').collect();
    assert_eq!(
        (words[0], words[3], words[5], words[6]),
        ("<30>1", "natgw", "session_created", "-"),
        "{line}"
    );
    assert!(humantime::parse_rfc3339(words[1]).is_ok(), "{line}");
    let rest = "nat_event=4 protocol=udp inside=192.168.1.10:40000 outside=203.0.113.1:40000 remote=198.51.100.1:5000 remote_inside=198.51.100.1:5000";
    assert!(line.ends_with(rest), "{line}");
}

#[test]
fn who_watches_sees_sessions_begin_and_end() {
    let stage = Stage::standard();
    let socket = stage.gateway.socket();
    let (path, seen) = (socket.with_extension("watch"), socket.with_extension("seen"));
    let watchers = [
        stage.gateway.spawn(&["session", "watch", "--json"], &path),
        stage.gateway.spawn(&["session", "watch"], &seen),
    ];
    // Those that begin before it watches are not told of.
    let number = Cell::new(0);
    stage.gateway.wait_until("a session is told of", Duration::from_secs(5), |_| {
        number.set(number.get() + 1);
        stage.crosses(&stage.udp(&format!("192.168.1.10:{}", 40_000 + number.get()), SERVER));
        !lines(&path).is_empty() && fs::read(&seen).is_ok_and(|seen| !seen.is_empty())
    });
    stage.gateway.text(&[
        "session",
        "delete",
        "--inside",
        &format!("192.168.1.10:{}", 40_000 + number.get()),
    ]);
    let inside = format!("192.168.1.10:{}", 40_000 + number.get());
    stage.gateway.wait_until("its end is told of", Duration::from_secs(5), |_| {
        let told = |event: &str| {
            lines(&path).iter().any(|line| {
                line["event"] == event && line["inside"] == inside.as_str() && line["remote"] == SERVER
            })
        };
        told("session_created") && told("session_deleted")
    });
    let seen = fs::read_to_string(&seen).expect("what was printed");
    assert!(seen.lines().any(|line| line.contains("session_created      udp   192.168.1.10:4000")), "{seen}");
    drop(watchers);
    // Once they are gone, nobody asks the core for events.
    seconds(1.5);
    stage.crosses(&stage.udp("192.168.1.11:40000", SERVER));
    assert_eq!(stage.session_count(), number.get());
}
