//! The log of translations: who had which external endpoint when, as JSON, syslog and IPFIX, and a collector that is gone.

use std::{
    cell::Cell,
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    net::UdpSocket,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, SystemTime},
};

use nat_tests::{Decoded, Host, Lab, Metrics, Packet, Tap, gateway, host::Process};
use serde_json::Value;

use crate::stage::{Stage, seconds, source};

const SERVER: &str = "198.51.100.1:5000";
/// Host c gathers the records.
const COLLECTOR: &str = "192.168.1.12:4739";

/// A folder that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("natgw-test-log-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).expect("make a folder");
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The standard set-up, its rule with more lines, and a log.
fn stage(rule: &str, log: &str) -> Stage {
    Stage::with(&format!("{}{rule}\n[log]\n{log}\n", gateway::STANDARD))
}

/// The lines of a JSON log.
fn lines(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

/// The lines of a JSON log once there are so many.
fn awaited_lines(stage: &Stage, file: &Path, count: usize) -> Vec<Value> {
    stage.gateway.wait_until("the records are written", Duration::from_secs(10), |_| {
        fs::read_to_string(file).is_ok_and(|text| text.matches('\n').count() >= count)
    });
    lines(file)
}

fn text<'a>(record: &'a Value, field: &str) -> &'a str {
    record[field].as_str().unwrap_or_else(|| panic!("no {field} in {record}"))
}

/// A counter of natgw's.
fn counted(stage: &Stage, name: &str) -> f64 {
    Metrics::parse(&stage.gateway.text(&["metrics"])).expect("metrics").get(name)
}

/// One round's flows: endpoints of three hosts, three protocols, no endpoint twice.
fn flows(stage: &Stage, random: &mut u64, count: usize) -> Vec<Packet> {
    let mut draw = |below: u64| {
        *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*random >> 33) % below
    };
    let mut taken = HashSet::new();
    (0..count)
        .map(|number| {
            loop {
                let host = format!("192.168.1.{}", 10 + draw(3));
                let port = u16::try_from(1024 + draw(60_000)).expect("a port");
                if !taken.insert((host.clone(), port, number % 3)) {
                    continue;
                }
                let from = format!("{host}:{port}");
                break match number % 3 {
                    0 => stage.udp(&from, SERVER),
                    1 => stage.syn(&from, SERVER),
                    _ => Packet::echo_request(host.as_str(), "198.51.100.1", port, 1).payload(from),
                };
            }
        })
        .collect()
}

/// Milliseconds since 1970 of the log's time.
fn milliseconds(time: &str) -> u128 {
    let time = humantime::parse_rfc3339(time).unwrap_or_else(|error| panic!("{error}: {time}"));
    time.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_millis()
}

/// Who had an external endpoint, by protocol: from when, until when, and which inside endpoint.
type History<'a> = HashMap<(&'a str, &'a str), Vec<(u128, u128, &'a str)>>;

fn history<'a>(records: &'a [Value], kind: &str) -> History<'a> {
    let mut history = History::default();
    for record in records {
        let (event, at) = (text(record, "event"), milliseconds(text(record, "time")));
        let holders = history.entry((text(record, "protocol"), text(record, "outside"))).or_default();
        if event == format!("{kind}_created") {
            holders.push((at, u128::MAX, text(record, "inside")));
        } else if event == format!("{kind}_deleted") {
            let last = holders.last_mut().unwrap_or_else(|| panic!("deleted before it was made: {record}"));
            assert_eq!(last.2, text(record, "inside"));
            last.1 = at;
        }
    }
    history
}

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

/// What tshark says of the records that came to the collector's host: one map of fields a record.
fn decoded(scratch: &Scratch, host: &Host, tap: &Tap) -> Vec<BTreeMap<String, String>> {
    let file = scratch.path("capture.pcap");
    // Microseconds, version 2.4, Ethernet.
    let mut pcap: Vec<u8> = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, 1].map(u32::to_ne_bytes).concat();
    for captured in tap.captured() {
        let length = u32::try_from(captured.frame.len()).expect("a frame");
        pcap.extend([0, 0, length, length].map(u32::to_ne_bytes).concat());
        pcap.extend(&captured.frame);
    }
    fs::write(&file, pcap).expect("write a capture");
    let options = "-d udp.port==4739,cflow -Y cflow -O cflow -T pdml";
    flow_records(&host.succeed(&format!("tshark -r {} {options}", file.display())))
}

/// The records in what tshark prints as PDML.
fn flow_records(pdml: &str) -> Vec<BTreeMap<String, String>> {
    let attribute = |line: &str, name: &str| {
        let (_, rest) = line.split_once(&format!(" {name}=\""))?;
        rest.split_once('"').map(|(value, _)| value.to_owned())
    };
    let mut records: Vec<BTreeMap<String, String>> = Vec::new();
    let mut is_record = false;
    for line in pdml.lines().map(str::trim_start).filter(|line| line.starts_with("<field")) {
        let name = attribute(line, "name").unwrap_or_default();
        let show = attribute(line, "show").unwrap_or_default();
        if name.is_empty() {
            is_record = show.starts_with("Flow ");
            if is_record {
                records.push(BTreeMap::new());
            }
        } else if let Some(name) = name.strip_prefix("cflow.").filter(|_| is_record)
            && let Some(record) = records.last_mut()
        {
            record.insert(name.to_owned(), show);
        }
    }
    records
}

/// Lets the collector's host receive, which is mute like the others.
fn open_collector(stage: &Stage) {
    stage.lab.c.succeed("nft insert rule ip mute input udp dport 4739 accept");
}

/// A collector, nfcapd, on its host; what it has gathered is there once it has ended.
struct Nfcapd {
    folder: PathBuf,
    process: Process,
}

impl Nfcapd {
    fn start(stage: &Stage, scratch: &Scratch) -> Self {
        let folder = scratch.path("nfcapd");
        fs::create_dir(&folder).expect("make nfcapd's folder");
        let line = format!("nfcapd -4 -b 192.168.1.12 -p 4739 -w {} -t 3600", folder.display());
        let process = stage.lab.c.spawn(&line);
        stage.gateway.wait_until("nfcapd listens", Duration::from_secs(5), |_| {
            stage.lab.c.succeed("ss -ulnH").contains(COLLECTOR)
        });
        Self { folder, process }
    }

    /// Ends it; the records it took, each ends with `inside outside`.
    fn end(mut self, stage: &Stage) -> Vec<String> {
        stage.lab.c.succeed(&format!("kill -TERM {}", self.process.id()));
        self.process.wait(Duration::from_secs(5));
        let format = "fmt:%pr %sa:%sp %nsa:%nsp";
        let mut nfdump = stage.lab.c.command("nfdump");
        nfdump.args(["-q", "-N", "-R", &self.folder.display().to_string(), "-o", format]);
        let output = nfdump.output().expect("run nfdump");
        let text = String::from_utf8_lossy(&output.stdout);
        text.lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ").replace(": ", ":"))
            .collect()
    }
}

/// The fields of one record, in the order asked for.
fn fields<'a>(record: &'a BTreeMap<String, String>, names: &[&str]) -> Vec<&'a str> {
    names.iter().map(|name| record.get(*name).map_or("", String::as_str)).collect()
}

#[test]
fn log_03_tshark_and_nfdump_read_the_records() {
    for destinations in [false, true] {
        let scratch = Scratch::new();
        let log = format!("sessions = \"ipfix\"\ncollector = \"{COLLECTOR}\"\ndestinations = {destinations}");
        let stage = stage("ports = \"20000-29999\"", &log);
        open_collector(&stage);
        let nfcapd = Nfcapd::start(&stage, &scratch);
        let begun = SystemTime::now();
        let packets = flows(&stage, &mut 7, 60);
        let seen = stage.cross_many(&packets);
        stage.gateway.text(&["session", "flush"]);
        stage.gateway.wait_until("the records are sent", Duration::from_secs(5), |_| {
            counted(&stage, "natgw_log_records_total") > 119.5
        });
        let took = begun.elapsed().expect("a clock that goes on");
        let records = decoded(&scratch, &stage.lab.c, &stage.c);
        let gathered = nfcapd.end(&stage);
        assert_eq!((records.len(), gathered.len()), (120, 120), "{gathered:#?}");
        for (packet, seen) in packets.iter().zip(&seen) {
            let sent = Decoded::parse(&packet.build());
            let (protocol, inside, outside) = (sent.ip().protocol, source(&sent), source(seen));
            let remote_port = if protocol == 1 { outside.rsplit(':').next().unwrap() } else { "5000" };
            let inside_remote_port = if protocol == 1 { inside.rsplit(':').next().unwrap() } else { "5000" };
            for event in ["4", "5"] {
                let wanted = |record: &&BTreeMap<String, String>| {
                    let [from, to] = [
                        ("srcaddr", "srcport"),
                        ("post_natsource_ipv4_address", "post_naptsource_transport_port"),
                    ]
                    .map(|(address, port)| format!("{}:{}", record[address], record[port]));
                    (record["nat_event"].as_str(), record["protocol"].as_str(), from, to)
                        == (event, protocol.to_string().as_str(), inside.clone(), outside.clone())
                };
                let found: Vec<_> = records.iter().filter(wanted).collect();
                assert_eq!(found.len(), 1, "{event} of {inside} as {outside} in {records:#?}");
                let names = [
                    "dstaddr",
                    "post_natdestination_ipv4_address",
                    "dstport",
                    "post_naptdestination_transport_port",
                ];
                let remote = fields(found[0], &names);
                if destinations {
                    assert_eq!(remote, ["198.51.100.1", "198.51.100.1", inside_remote_port, remote_port]);
                } else {
                    assert_eq!(remote, [""; 4]);
                }
                let line = format!("{inside} {outside}");
                let gathered = gathered.iter().filter(|gathered| gathered.ends_with(&line)).count();
                // Identifiers of ICMP are no ports to nfdump.
                assert!(gathered == 2 || protocol == 1, "{line}: {gathered} times");
            }
        }
        // Times are milliseconds of the wall's clock, within the time that it took.
        let stamp = &records[0]["observation_time_milliseconds"];
        assert!(stamp.contains(" UTC") && took < Duration::from_secs(60), "{stamp}");
    }
}

/// Everything that is recorded, decoded, once `natgw` has sent so many records.
fn sent_records(stage: &Stage, scratch: &Scratch, count: f64) -> Vec<BTreeMap<String, String>> {
    stage.gateway.wait_until("the records are sent", Duration::from_secs(8), |_| {
        counted(stage, "natgw_log_records_total") > count - 0.5
    });
    decoded(scratch, &stage.lab.c, &stage.c)
}

/// A log to the collector of all kinds of events, with levels at 80 %.
fn everything() -> String {
    let events = "[\"sessions\", \"mappings\", \"addresses\", \"blocks\", \"limits\"]";
    format!(
        "[log]\nsessions = \"ipfix\"\ncollector = \"{COLLECTOR}\"\ntemplate_refresh = \"1s\"\nevents = {events}\nthreshold = 80\n"
    )
}

/// Those of an event, as the fields asked for.
fn of_event<'a>(records: &'a [BTreeMap<String, String>], event: &str, names: &[&str]) -> Vec<Vec<&'a str>> {
    let wanted = records.iter().filter(|record| record["nat_event"] == event);
    wanted.map(|record| fields(record, names)).collect()
}

const QUOTA: &str = "nat_quota_exceeded_event";
const THRESHOLD: &str = "nat_threshold_event";

#[test]
fn log_04_and_05_each_event_has_its_number_and_its_limit() {
    let scratch = Scratch::new();
    let rule = "ports = \"20000-20009\"\n[limits]\nsessions = 20\nsessions_per_source = 12\n";
    let stage = Stage::with(&format!("{}{rule}{}", gateway::STANDARD, everything()));
    open_collector(&stage);
    let _nfcapd = Nfcapd::start(&stage, &scratch);
    let udp = |host: &str, number: u16| stage.udp(&format!("{host}:{}", 30_000 + number), SERVER);
    let syn = |host: &str, number: u16| stage.syn(&format!("{host}:{}", 30_000 + number), SERVER);
    let refused = |packet: &Packet| {
        for _ in 0..3 {
            stage.stopped_quickly(packet);
        }
    };
    for number in 0..10 {
        stage.crosses(&udp("192.168.1.10", number));
    }
    refused(&udp("192.168.1.10", 10));
    for number in 0..2 {
        stage.crosses(&syn("192.168.1.10", number));
    }
    refused(&syn("192.168.1.10", 2));
    for number in 0..8 {
        stage.crosses(&syn("192.168.1.11", number));
    }
    refused(&Packet::echo_request("192.168.1.11", "198.51.100.1", 30_000, 1).payload("echo"));
    // Fragments whose first never comes, more than one source may have.
    for id in 0..1100 {
        stage.a.send(&stage.udp("192.168.1.10:9", SERVER).id(id).fragment_offset(100));
    }
    stage.gateway.text(&["session", "flush"]);
    // 20 of each of four, and what is counted below.
    let records = sent_records(&stage, &scratch, 80.0 + 8.0);
    for event in ["4", "5", "8", "9"] {
        let names = ["srcaddr", "srcport", "post_natsource_ipv4_address"];
        let found = of_event(&records, event, &names);
        assert_eq!(found.len(), 20, "event {event}");
        assert!(
            found.iter().any(|fields| fields[..] == ["192.168.1.10", "30000", "203.0.113.1"]),
            "{found:?}"
        );
    }
    assert_eq!(
        of_event(&records, "12", &["post_natsource_ipv4_address", "protocol"]),
        [["203.0.113.1", "17"]],
        "once, not for each packet"
    );
    let names =
        [QUOTA, "max_session_entries", "max_entries_per_user", "max_fragments_pending_reassembly", "srcaddr"];
    let mut quotas = of_event(&records, "13", &names);
    quotas.sort_unstable();
    assert_eq!(
        quotas,
        [["1", "20", "", "", ""], ["3", "", "12", "", "192.168.1.10"], ["5", "", "", "8192", ""]]
    );
    let names = [
        THRESHOLD,
        "addressport_mapping_highthreshold",
        "addressport_mapping_per_user_highthreshold",
        "global_addressmapping_highthreshold",
        "srcaddr",
    ];
    let mut levels = of_event(&records, "18", &names);
    levels.sort_unstable();
    assert_eq!(
        levels,
        [
            ["3", "8", "", "", ""],
            ["3", "8", "", "", ""],
            ["4", "", "9", "", "192.168.1.10"],
            ["5", "", "", "16", ""],
        ],
        "UDP's ports and TCP's"
    );
    let others = ["4", "5", "8", "9", "12", "13", "18"];
    assert!(records.iter().all(|record| others.contains(&record["nat_event"].as_str())));
}

#[test]
fn log_04_and_05_addresses_of_their_own_and_none_at_all() {
    let scratch = Scratch::new();
    let own = "to = [\"203.0.113.10-203.0.113.11\"]\npooling = \"exclusive\"";
    let configuration = gateway::STANDARD.replace("to = \"masquerade\"", own);
    let stage = Stage::with(&format!("{configuration}{}", everything()));
    open_collector(&stage);
    let _nfcapd = Nfcapd::start(&stage, &scratch);
    stage.crosses(&stage.udp("192.168.1.10:30000", SERVER));
    stage.gateway.text(&["session", "flush"]);
    let records = sent_records(&stage, &scratch, 8.0);
    let names = ["srcaddr", "post_natsource_ipv4_address"];
    for event in ["14", "15"] {
        assert_eq!(of_event(&records, event, &names), [["192.168.1.10", "203.0.113.10"]], "event {event}");
    }
    let names = [THRESHOLD, "nat_pool_id", "addresspool_highthreshold", "addresspool_lowthreshold"];
    assert_eq!(of_event(&records, "18", &names), [["1", "1", "1", ""], ["2", "1", "", "1"]]);
    drop(stage);

    let scratch = Scratch::new();
    let stage = Stage::build(Lab::builder().forwarding(), &format!("{}{}", gateway::STANDARD, everything()));
    open_collector(&stage);
    let _nfcapd = Nfcapd::start(&stage, &scratch);
    stage.lab.gateway.ip("addr del 203.0.113.1/24 dev wan");
    stage.lab.gateway.ip("route add default via 203.0.113.254 dev wan onlink");
    seconds(0.3);
    for _ in 0..3 {
        stage.stopped_quickly(&stage.udp("192.168.1.10:30000", SERVER));
    }
    let records = sent_records(&stage, &scratch, 1.0);
    assert_eq!(of_event(&records, "3", &["nat_pool_id"]), [["1"]]);
}

#[test]
fn log_04_and_06_blocks_are_told_by_ipfix_with_their_ports() {
    let scratch = Scratch::new();
    let lines = "to = [\"203.0.113.10\"]\nports = \"1000-1099\"\ndeterministic = { subscribers = \"192.168.1.10-192.168.1.12\", dynamic = 1, block = 5 }";
    let configuration = gateway::STANDARD.replace("to = \"masquerade\"", lines);
    let stage = Stage::with(&format!(
        "{configuration}{}",
        everything()
            .replace("[\"sessions\", \"mappings\", \"addresses\", \"blocks\", \"limits\"]", "[\"blocks\"]")
    ));
    open_collector(&stage);
    let _nfcapd = Nfcapd::start(&stage, &scratch);
    for number in 0..30 {
        stage.crosses(&stage.udp(&format!("192.168.1.10:{}", 30_000 + number), SERVER));
    }
    stage.gateway.text(&["session", "flush"]);
    let records = sent_records(&stage, &scratch, 2.0);
    assert_eq!(records.len(), 2, "one block, taken and released, for 30 sessions: {records:#?}");
    let names = ["srcaddr", "post_natsource_ipv4_address", "port_range_start", "port_range_end"];
    let (taken, released) = (of_event(&records, "16", &names), of_event(&records, "17", &names));
    assert_eq!((taken.len(), &taken), (1, &released));
    let ports: Vec<u16> = taken[0][2..].iter().map(|port| port.parse().expect("a port")).collect();
    assert_eq!(taken[0][..2], ["192.168.1.10", "203.0.113.10"]);
    assert!(ports[0] >= 1075 && ports[0].is_multiple_of(5) && ports[1] == ports[0] + 4, "{ports:?}");
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
    assert!(seen.lines().any(|line| line.contains("session_created  udp   192.168.1.10:4000")), "{seen}");
    drop(watchers);
    // Once they are gone, nobody asks the core for events.
    seconds(1.5);
    stage.crosses(&stage.udp("192.168.1.11:40000", SERVER));
    assert_eq!(stage.session_count(), number.get());
}
