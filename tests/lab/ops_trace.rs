//! Packets told of one by one, and captured.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nat_tests::{Lab, Packet, gateway, host::Process};
use serde_json::{Value, json};

use crate::stage::{Stage, public, seconds};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";

/// A `natgw trace --json` that is at work.
struct Trace<'stage> {
    stage: &'stage Stage,
    path: PathBuf,
    _process: Process,
}

impl<'stage> Trace<'stage> {
    fn begin(stage: &'stage Stage, name: &str, arguments: &[&str]) -> Self {
        let path = stage.gateway.socket().with_extension(name);
        let process = stage.gateway.spawn(&[&["trace", "--json"], arguments].concat(), &path);
        let trace = Self { stage, path, _process: process };
        trace.wait("it has begun", |lines| lines.iter().any(|line| line["event"] == "begun"));
        trace
    }

    fn wait(&self, what: &str, settled: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        // An emulated machine takes its time to verify the tracing programs.
        self.stage.gateway.wait_until(what, Duration::from_secs(60), |_| settled(&lines(&self.path)));
        lines(&self.path)
    }

    /// What is told once there are so many packets, in their order: fast path and daemon tell at times of their own.
    fn packets(&self, count: usize) -> Vec<Value> {
        let packets = |lines: &[Value]| -> Vec<Value> {
            lines.iter().filter(|line| line["event"] == "packet").cloned().collect()
        };
        let lines = self.wait(&format!("{count} packets are told of"), |lines| packets(lines).len() >= count);
        let mut packets = packets(&lines);
        packets.sort_by_key(|line| line["time"].as_str().map(str::to_owned));
        packets
    }
}

/// The whole lines of a file, as JSON.
fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_inclusive('\n')
        .filter_map(|line| serde_json::from_str(line.strip_suffix('\n')?).ok())
        .collect()
}

/// What matters of a packet: interfaces, endpoints before and after, what it found, and what became of it.
fn told(line: &Value) -> Value {
    json!([
        line["interface"],
        line["out"],
        line["before"],
        line["after"],
        line["found"],
        line["rule"],
        line["verdict"],
        line["reason"],
    ])
}

/// Has the neighbours known, so that nothing waits for them.
fn warm_up(stage: &Stage) {
    for (port, tap) in [(2010, &stage.a), (2011, &stage.b), (2012, &stage.c)] {
        stage.crosses(&stage.udp(&format!("192.168.1.{}:{port}", port - 2000), SERVER));
        stage.reaches(&stage.udp(SERVER, &public(port)), tap);
    }
}

#[test]
fn ops_15_a_trace_tells_rule_endpoints_and_verdict_of_each_packet() {
    let lab = Lab::standard();
    // Else the tc program would send.
    lab.gro_on();
    let stage = Stage::on(lab, gateway::STANDARD);
    warm_up(&stage);
    let trace = Trace::begin(&stage, "trace", &["udp", "and", "host", "192.168.1.10"]);
    stage.crosses(&stage.udp(CLIENT, SERVER));
    stage.crosses(&stage.udp(CLIENT, SERVER));
    stage.reaches(&stage.udp(SERVER, &public(40000)), &stage.a);
    // Neither of these is asked for: another host's, another protocol.
    stage.crosses(&stage.udp("192.168.1.11:40001", SERVER));
    stage.crosses(&stage.syn(CLIENT, SERVER));
    stage.stopped(&stage.udp(CLIENT, "198.51.99.1:53").ttl(1), &stage.s1);
    let packets: Vec<Value> = trace.packets(4).iter().map(told).collect();
    let seen = public(40000);
    let none = Value::Null;
    assert_eq!(
        packets,
        [
            json!(["lan", "wan", [CLIENT, SERVER], [seen, SERVER], "snat", "office", "translated", none]),
            json!(["lan", "wan", [CLIENT, SERVER], [seen, SERVER], "flow", "office", "translated", none]),
            json!(["wan", "lan", [SERVER, seen], [SERVER, CLIENT], "flow", "office", "translated", none]),
            json!(["lan", none, [CLIENT, "198.51.99.1:53"], none, "snat", "office", "dropped", "ttl"]),
        ],
        "{packets:#?}"
    );
    let packets = trace.packets(4);
    let by: Vec<&str> = packets.iter().filter_map(|line| line["by"].as_str()).collect();
    assert_eq!(by, ["daemon", stage.gateway.redirected_by(), stage.gateway.redirected_by(), "daemon"]);
    assert!(packets[3]["why"].is_string() && packets[3]["advice"].is_string(), "{:?}", packets[3]);
}

/// The first packet to a neighbour that is not known waits: both is told, with its endpoints as it came.
#[test]
fn a_trace_tells_of_packets_that_wait() {
    let stage = Stage::standard();
    let trace = Trace::begin(&stage, "trace", &["src", "host", "192.168.1.10"]);
    stage.crosses(&stage.udp(CLIENT, SERVER));
    let packets: Vec<Value> = trace.packets(2).iter().map(told).collect();
    let none = Value::Null;
    assert_eq!(
        packets,
        [
            json!(["lan", none, [CLIENT, SERVER], none, "snat", "office", "held", none]),
            json!([
                "lan",
                "wan",
                [CLIENT, SERVER],
                [public(40000), SERVER],
                "flow",
                "office",
                "translated",
                none
            ]),
        ]
    );
}

#[test]
fn a_trace_names_what_a_packet_finds() {
    let configuration = format!(
        "{}\n[[static]]\nname = \"mail\"\nexternal = \"203.0.113.50\"\ninternal = \"192.168.1.11\"\n\
         [[forward]]\nname = \"web\"\nprotocol = \"tcp\"\nexternal = \"wan:80\"\ninternal = \"192.168.1.12:8080\"\n",
        gateway::STANDARD
    );
    let stage = Stage::with(&configuration);
    stage.reaches(&stage.udp("198.51.100.2:7", "203.0.113.50:7"), &stage.b);
    stage.reaches(&stage.syn("198.51.100.2:5000", &public(80)), &stage.c);
    stage.crosses(&stage.udp("192.168.1.11:7", "198.51.100.2:5000"));
    let trace = Trace::begin(&stage, "trace", &["host", "198.51.100.1"]);
    stage.crosses(&stage.udp("192.168.1.11:7", SERVER));
    stage.reaches(&stage.syn(SERVER, &public(80)), &stage.c);
    stage.send(&stage.udp(SERVER, &public(50000)));
    trace.packets(3);
    stage.send(&Packet::udp("198.51.100.1:9", "192.168.1.10:9").payload("uninvited"));
    let packets = trace.packets(4);
    let found: Vec<Value> = packets
        .iter()
        .map(|line| json!([line["found"], line["rule"], line["verdict"], line["reason"]]))
        .collect();
    assert_eq!(
        found[..3],
        [
            json!(["static", "mail", "translated", null]),
            json!(["forward", "web", "translated", null]),
            json!(["own address", null, "dropped", "unsolicited"]),
        ],
        "{packets:#?}"
    );
    assert_eq!(packets[3]["reason"], "uninvited", "{packets:#?}");
}

#[test]
fn a_trace_ends_after_count_and_is_read_by_people() {
    let stage = Stage::standard();
    stage.crosses(&stage.udp(CLIENT, SERVER));
    let path = stage.gateway.socket().with_extension("words");
    let mut process = stage.gateway.spawn(&["trace", "--count", "2", "dst", "port", "5000"], &path);
    let mut sent = 0;
    while process.ended().is_none() {
        assert!(sent < 200, "it ends after two packets");
        sent += 1;
        stage.crosses(&stage.udp(CLIENT, SERVER));
        seconds(0.05);
    }
    assert!(process.ended().is_some_and(|status| status.success()));
    let text = fs::read_to_string(&path).expect("what was printed");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    let seen = public(40000);
    let wanted =
        format!("lan -> wan  udp {CLIENT} > {SERVER}  =>  {seen} > {SERVER}  flow office: translated");
    assert!(lines.iter().all(|line| line.ends_with(&wanted)), "{text}");
    let output = stage.gateway.output(&["trace", "hosts", "10.1.1.1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("`hosts` is not understood"));
}

/// More a second than is asked for is counted, and said.
#[test]
fn a_trace_is_rate_limited() {
    let stage = Stage::standard();
    stage.crosses(&stage.udp(CLIENT, SERVER));
    let trace = Trace::begin(&stage, "trace", &["--rate", "5"]);
    for _ in 0..100 {
        stage.crosses(&stage.udp(CLIENT, SERVER));
    }
    let lines = trace.wait("it is said that packets are missing", |lines| {
        lines.iter().any(|line| line["event"] == "missed" && line["suppressed"].as_u64() > Some(0))
    });
    let told = lines.iter().filter(|line| line["event"] == "packet").count();
    assert!((5..=60).contains(&told), "{told} of 100");
}

/// Tracers come and go while packets of one flow pass: none is lost, reordered or left as it was.
#[test]
fn established_traffic_does_not_notice_a_trace() {
    for mode in ["native", "generic"] {
        let configuration = gateway::STANDARD.replace("side = ", &format!("mode = \"{mode}\"\nside = "));
        let stage = Stage::with(&configuration);
        stage.crosses(&stage.udp(CLIENT, SERVER));
        for round in 0..3 {
            let trace = stage.gateway.spawn(
                &["trace", "--json", "--rate", "0"],
                &stage.gateway.socket().with_extension(format!("{mode}{round}")),
            );
            let packets: Vec<Packet> = (0..400).map(|_| stage.udp(CLIENT, SERVER)).collect();
            for seen in stage.cross_many(&packets) {
                assert_eq!(crate::stage::source(&seen), public(40000));
            }
            drop(trace);
            stage.cross_many(&packets[..100]);
            stage.s1.clear();
        }
        // Once the last is gone, the plain program is back.
        let status = stage.gateway.natgw(&["status", "--json"]);
        let kind = if mode == "native" { "xdp" } else { "xdp-generic" };
        let pin = stage.gateway.pin(&format!("link-{kind}-{}", status["interfaces"][0]["index"]));
        stage.gateway.wait_until("the plain program is back", Duration::from_secs(5), |gateway| {
            let link = gateway.bpftool(&["link", "show", "pinned", &pin]);
            let program = gateway.bpftool(&["prog", "show", "id", &link["prog_id"].to_string()]);
            program["name"] == "natgw_xdp"
        });
        assert_eq!(stage.session_count(), 1);
    }
}

/// A daemon that is killed while somebody traces leaves the tracing programs behind: they go on translating, and the
/// next daemon puts the plain ones back.
#[test]
fn a_daemon_killed_in_a_trace_goes_on() {
    let mut stage = Stage::standard();
    stage.crosses(&stage.udp(CLIENT, SERVER));
    drop(Trace::begin(&stage, "first", &[]));
    let path = stage.gateway.socket().with_extension("second");
    let trace = stage.gateway.spawn(&["trace", "--json"], &path);
    stage.gateway.wait_until("it has begun", Duration::from_secs(60), |_| !lines(&path).is_empty());
    stage.gateway.kill();
    drop(trace);
    stage.cross_many(&(0..200).map(|_| stage.udp(CLIENT, SERVER)).collect::<Vec<_>>());
    stage.gateway.restart();
    stage.crosses(&stage.udp(CLIENT, SERVER));
    assert_eq!(stage.session_count(), 1);
    let status = stage.gateway.natgw(&["status", "--json"]);
    let pin = stage.gateway.pin(&format!("link-xdp-{}", status["interfaces"][0]["index"]));
    let link = stage.gateway.bpftool(&["link", "show", "pinned", &pin]);
    let program = stage.gateway.bpftool(&["prog", "show", "id", &link["prog_id"].to_string()]);
    assert_eq!(program["name"], "natgw_xdp");
    // And it can be traced anew.
    let trace = Trace::begin(&stage, "third", &[]);
    stage.crosses(&stage.udp(CLIENT, SERVER));
    trace.packets(1);
}

/// A kernel's own TCP leaves its checksums to an offload: the tc program finishes them, and tells.
#[test]
fn a_trace_tells_of_the_tc_hook() {
    let stage = Stage::standard();
    for host in [&stage.lab.a, &stage.lab.s1] {
        host.nft("delete table ip mute");
    }
    let trace =
        Trace::begin(&stage, "trace", &["tcp", "and", "port", "5000", "and", "src", "host", "192.168.1.10"]);
    stage.transfer(20_000);
    let packets = trace.packets(4);
    let first = &packets[0];
    assert_eq!((&first["found"], &first["by"]), (&json!("snat"), &json!("daemon")), "{first}");
    let by_tc: Vec<&Value> = packets.iter().filter(|line| line["by"] == "tc").collect();
    assert!(!by_tc.is_empty(), "{packets:#?}");
    for line in by_tc {
        assert_eq!(
            told(line),
            json!([
                "lan",
                "wan",
                [CLIENT, SERVER],
                [public(40000), SERVER],
                "flow",
                "office",
                "translated",
                null
            ])
        );
    }
}

/// A client that does not read costs nobody anything but itself.
#[test]
fn a_tracer_that_does_not_read_holds_nobody_up() {
    let stage = Stage::standard();
    stage.crosses(&stage.udp(CLIENT, SERVER));
    let mut client = UnixStream::connect(stage.gateway.socket()).expect("connect to natgw");
    client
        .write_all(b"{\"version\":1,\"request\":{\"verb\":\"trace\",\"snap\":4095,\"rate\":0}}\n")
        .expect("ask natgw");
    let mut begun = [0; 20];
    client.read_exact(&mut begun).expect("an answer");
    assert!(begun.starts_with(b"{\"row\":"), "{}", String::from_utf8_lossy(&begun));
    let large = |stage: &Stage| {
        let text = format!("{:01400}", stage.token());
        Packet::udp(CLIENT, SERVER).payload(text)
    };
    for _ in 0..60 {
        let packets: Vec<Packet> = (0..128).map(|_| large(&stage)).collect();
        stage.cross_many(&packets);
        stage.s1.clear();
        stage.wan.clear();
    }
    // First packets, too.
    for port in 41_000..41_100 {
        stage.crosses(&stage.udp(&format!("192.168.1.10:{port}"), SERVER));
    }
    assert_eq!(stage.session_count(), 101);
}

#[test]
fn a_capture_is_read_by_tshark_and_agrees_with_the_sessions() {
    let stage = Stage::standard();
    warm_up(&stage);
    let file = stage.gateway.socket().with_extension("pcapng");
    let name = file.to_str().expect("UTF-8").to_owned();
    let printed = file.with_extension("printed");
    let mut capture =
        stage.gateway.spawn(&["capture", "-w", &name, "--count", "6", "host", "198.51.100.1"], &printed);
    stage.gateway.wait_until("its file has begun", Duration::from_secs(5), |_| {
        fs::metadata(&file).is_ok_and(|file| file.len() > 0)
    });
    stage.crosses(&stage.udp(CLIENT, SERVER).payload("one"));
    stage.crosses(&stage.udp(CLIENT, SERVER).payload("two"));
    stage.reaches(&stage.udp(SERVER, &public(40000)).payload("three"), &stage.a);
    let server = stage.connect("192.168.1.11:41000", "198.51.100.1:80");
    assert!(capture.wait(Duration::from_secs(5)).success());
    let rows = tshark(
        &file,
        &["frame.interface_name", "ip.src", "ip.dst", "udp.srcport", "tcp.srcport", "frame.comment"],
    );
    let short: Vec<String> = rows.iter().take(6).map(|row| row[..4].join(" ")).collect();
    assert_eq!(
        short,
        [
            "lan in 192.168.1.10 198.51.100.1 40000",
            "wan out 203.0.113.1 198.51.100.1 40000",
            "lan in 192.168.1.10 198.51.100.1 40000",
            "wan out 203.0.113.1 198.51.100.1 40000",
            "wan in 198.51.100.1 203.0.113.1 5000",
            "lan out 198.51.100.1 192.168.1.10 5000",
        ],
        "{rows:#?}"
    );
    assert_eq!(rows.len(), 12, "both sides of six packets");
    assert!(rows[0][5].contains("snat office: translated"), "{}", rows[0][5]);
    assert!(rows[2][5].contains("flow office: translated"), "{}", rows[2][5]);
    assert!(
        rows[1][5].contains(&format!("{CLIENT} > {SERVER} => {} > {SERVER}", public(40000))),
        "{}",
        rows[1][5]
    );
    // What left is what the session table says.
    let sessions = stage.gateway.sessions();
    for row in rows.iter().filter(|row| row[0] == "wan out") {
        let port = if row[3].is_empty() { &row[4] } else { &row[3] };
        let outside = format!("{}:{port}", row[1]);
        assert!(sessions.iter().any(|session| session["outside"] == outside.as_str()), "{outside}");
    }
    assert!(sessions.iter().any(|session| session["outside"] == server.as_str()));
    // Every checksum of the frames is right, and what they carry is what was sent.
    let checked = tshark(&file, &["udp.checksum.status", "tcp.checksum.status", "data.text", "data"]);
    assert!(checked.iter().all(|row| row[0] != "0" && row[1] != "0"), "{checked:?}");
    assert!(checked[0][3].contains("6f6e65"), "{checked:?}");
}

#[test]
fn a_capture_goes_into_a_pipe_and_is_cut_where_it_is_said() {
    let stage = Stage::standard();
    stage.crosses(&stage.udp(CLIENT, SERVER));
    let file = stage.gateway.socket().with_extension("piped");
    let mut capture =
        stage.gateway.spawn(&["capture", "-w", "-", "--snaplen", "64", "--count", "2", "udp"], &file);
    let mut sent = 0;
    while capture.ended().is_none() {
        assert!(sent < 200, "it ends after two packets");
        sent += 1;
        stage.crosses(&Packet::udp(CLIENT, SERVER).payload(format!("{:0500}", stage.token())));
        seconds(0.05);
    }
    let rows = tshark(&file, &["frame.cap_len", "frame.len", "frame.interface_name"]);
    assert_eq!(rows.len(), 4);
    assert!(rows.iter().all(|row| row[0] == "64" && row[1] == "542"), "{rows:?}");
    let output = stage.gateway.output(&["capture", "-w", "/nowhere/at/all", "--count", "1"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("capture: write /nowhere/at/all: No such file"), "{said}");
}

/// Fields of every frame in a file, as tshark reads it.
fn tshark(file: &Path, fields: &[&str]) -> Vec<Vec<String>> {
    let mut command = Command::new("tshark");
    command.args(["-r"]).arg(file).args([
        "-T",
        "fields",
        "-E",
        "separator=|",
        "-o",
        "udp.check_checksum:TRUE",
    ]);
    command.args(["-o", "tcp.check_checksum:TRUE"]);
    for field in fields {
        command.args(["-e", field]);
    }
    let output = command.output().expect("tshark runs");
    assert!(output.status.success(), "tshark: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().map(|line| line.split('|').map(str::to_owned).collect()).collect()
}
