//! The log of translations as IPFIX (RFC 8158): what tshark and nfdump read, each event, each limit.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use nat_tests::{Decoded, Host, Lab, Packet, Tap, gateway, host::Process, pcap};

use crate::{
    log_records::{COLLECTOR, SERVER, Scratch, counted, flows, stage},
    stage::{Stage, seconds, source},
};

/// What tshark says of the records that came to the collector's host: one map of fields a record.
fn decoded(scratch: &Scratch, host: &Host, tap: &Tap) -> Vec<BTreeMap<String, String>> {
    let file = scratch.path("capture.pcap");
    pcap::write(&file, &tap.captured());
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
pub(crate) fn open_collector(stage: &Stage) {
    stage.lab.c.succeed("nft insert rule ip mute input udp dport 4739 accept");
}

/// A collector, nfcapd, on its host; what it has gathered is there once it has ended.
pub(crate) struct Nfcapd {
    folder: PathBuf,
    process: Process,
}

impl Nfcapd {
    pub(crate) fn start(stage: &Stage, scratch: &Scratch) -> Self {
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
    pub(crate) fn end(mut self, stage: &Stage) -> Vec<String> {
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
        // Counted, they are on their way.
        stage.gateway.wait_until("the records arrive", Duration::from_secs(5), |_| {
            decoded(&scratch, &stage.lab.c, &stage.c).len() >= 120
        });
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
    stage.gateway.wait_until("the records are sent", Duration::from_secs(20), |_| {
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
        if id % 100 == 99 {
            // A busy machine's queue takes no more at once.
            seconds(0.05);
        }
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
fn log_05_quotas_of_mappings_and_of_subscribers() {
    let scratch = Scratch::new();
    let limits = "[limits]\nmappings = 2\nsources = 1\n";
    let stage = Stage::with(&format!("{}{limits}{}", gateway::STANDARD, everything()));
    open_collector(&stage);
    let _nfcapd = Nfcapd::start(&stage, &scratch);
    for port in [30_000, 30_001] {
        stage.crosses(&stage.udp(&format!("192.168.1.10:{port}"), SERVER));
    }
    for refused in ["192.168.1.10:30002", "192.168.1.11:30000"] {
        for _ in 0..3 {
            stage.stopped_quickly(&stage.udp(refused, SERVER));
        }
    }
    // Two sessions and their mappings.
    let records = sent_records(&stage, &scratch, 4.0 + 2.0);
    let names = [QUOTA, "max_bib_entries", "max_subscribers"];
    let mut quotas = of_event(&records, "13", &names);
    quotas.sort_unstable();
    assert_eq!(quotas, [["2", "2", ""], ["4", "", "1"]]);
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
