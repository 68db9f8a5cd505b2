//! The `natgw` command as it is run, against a daemon that makes things up.

use std::io::Read as _;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use natgw::api::{
    ApiError, Counted, Deleted, Direction, Handler, Metrics, PoolRow, Reloaded, Reply, Request, Row, RuleRow,
    Server, ServerRow, ServiceRow, SessionRow, TopReport, TopRow, Traffic,
};
use natgw::eventlog::{Place, Record};
use natgw::trace::{By, Frames, Missed, TraceLine, TraceRow};
use serde_json::{Value, json};

/// Has `sessions` sessions, one external address and one rule.
struct Made {
    sessions: u32,
}

impl Made {
    fn rows(&self) -> impl Iterator<Item = SessionRow> {
        (0..self.sessions).map(|number| {
            let port = u16::try_from(number % 65536).expect("a port");
            let host = 12 + u8::try_from(number / 65536).expect("few hosts");
            SessionRow {
                protocol: if number % 2 == 0 { "tcp" } else { "udp" }.into(),
                inside: SocketAddrV4::new([10, 1, 1, host].into(), port),
                outside: SocketAddrV4::new([203, 0, 113, host].into(), port),
                remote: SocketAddrV4::new([198, 51, 100, 7].into(), 80),
                remote_inside: SocketAddrV4::new([198, 51, 100, 7].into(), 80),
                direction: Direction::Outbound,
                state: if number % 2 == 0 { "established" } else { "active" }.into(),
                expires_in: 7440,
                age: 3,
                packets_out: 1,
                bytes_out: 60,
                packets_in: 1,
                bytes_in: 60,
                rule: "office".to_owned(),
                filtering: Some("address-dependent".into()),
            }
        })
    }
}

/// What a change of rules has done.
fn reloaded(saved: Option<&str>) -> Reloaded {
    Reloaded {
        kept: 12,
        ended: 1,
        changes: vec!["snat office: changed".to_owned()],
        saved: saved.map(str::to_owned),
        warnings: vec!["[limits] has changed".to_owned()],
    }
}

/// Two inside hosts, of which one has the sessions and the other the bits.
fn busy(interval: f64, most: usize) -> TopReport {
    let host = |name: &str, sessions, bits| TopRow {
        name: name.to_owned(),
        sessions,
        new: 0.5,
        traffic: Traffic { packets_out: 1.0, packets_in: 2.0, bits_out: bits, bits_in: 0.0 },
    };
    let mut hosts = vec![host("10.1.1.12", 1, 34_500_000.0), host("10.1.1.13", 9, 500.0)];
    hosts.truncate(most);
    TopReport {
        time: "2026-03-01T12:00:00Z".to_owned(),
        interval,
        uptime: 7440,
        sessions: 10,
        sessions_limit: 100,
        hosts,
        ..TopReport::default()
    }
}

/// A packet that was dropped, with its frame if one is asked for.
fn traced(snap: u32) -> [TraceLine; 3] {
    let place = |place: &str| Place::Endpoint(place.parse().expect("an endpoint"));
    let row = TraceRow {
        time: "2026-03-01T12:00:00.123456Z".to_owned(),
        interface: "lan".to_owned(),
        out: None,
        by: By::Xdp,
        protocol: Some("tcp".into()),
        before: Some([place("10.1.1.12:40000"), place("198.51.100.7:80")]),
        after: None,
        length: 60,
        found: "snat".into(),
        rule: Some("office".to_owned()),
        verdict: "dropped".into(),
        reason: Some("no_route".into()),
        why: Some("no route to the destination".into()),
        advice: Some("add it".into()),
        frames: (snap > 0).then(|| Frames {
            before: "00".repeat(60),
            after: String::new(),
            lengths: [60, 0],
        }),
    };
    let missed = Missed { suppressed: 7, lost: 1 };
    [TraceLine::Begun, TraceLine::Packet(Box::new(row)), TraceLine::Missed(missed)]
}

impl Handler for Made {
    fn handle(&self, request: Request, reply: &mut dyn Reply) -> Result<Value, ApiError> {
        match request {
            Request::SessionList { filter } => {
                let mut sessions = 0;
                for row in self.rows().filter(|row| filter.matches(row)) {
                    reply.row(Row::Session(&row))?;
                    sessions += 1;
                }
                Ok(json!(Counted { sessions }))
            }
            Request::SessionCount { filter } => {
                let sessions = self.rows().filter(|row| filter.matches(row)).count() as u64;
                Ok(json!(Counted { sessions }))
            }
            Request::SessionDelete { filter } => {
                let deleted = self.rows().filter(|row| filter.matches(row)).count() as u64;
                Ok(json!(Deleted { deleted }))
            }
            Request::SessionFlush => Ok(json!(Deleted { deleted: u64::from(self.sessions) })),
            Request::RuleAdd { kind, keys, before, save } => {
                // Tells back what it was asked for.
                let asked = format!("{kind} {before:?} {}", keys.trim().replace('\n', "; "));
                Ok(json!(Reloaded { changes: vec![asked], ..reloaded(save.then_some("natgw.toml")) }))
            }
            Request::RuleDelete { rule, save } => {
                Ok(json!(Reloaded { changes: vec![rule], ..reloaded(save.then_some("natgw.toml")) }))
            }
            Request::Top { interval, most } => {
                let report = busy(f64::from(interval) / 1000.0, most as usize);
                // The client with --once goes after the first.
                [&report; 2].into_iter().try_for_each(|report| reply.row(Row::Top(report)))?;
                Ok(json!({}))
            }
            Request::Trace { filter, snap, rate } => {
                assert!((filter.as_str(), snap, rate) == ("tcp and port 80", 0, 1000) || snap > 0);
                for line in traced(snap) {
                    reply.row(Row::Trace(&line))?;
                }
                assert!(reply.flush()?, "the client is still there");
                Ok(json!({}))
            }
            Request::SessionWatch { filter } => {
                assert!(filter.is_empty());
                let record = Record {
                    time: "2026-03-01T12:00:00.123Z".to_owned(),
                    event: "session_created".into(),
                    nat_event: 4,
                    protocol: Some("udp".into()),
                    inside: Some(Place::Endpoint("10.1.1.12:40000".parse().expect("an endpoint"))),
                    remote: Some("198.51.100.7:53".parse().expect("an endpoint")),
                    ..Record::default()
                };
                reply.row(Row::Event(&record))?;
                assert!(reply.flush()?, "the client is still there");
                Ok(json!({}))
            }
            Request::PoolList => {
                reply.row(Row::Pool(&PoolRow {
                    address: [203, 0, 113, 1].into(),
                    interface: None,
                    protocol: "udp".into(),
                    used: 1,
                    free: 64511,
                    quarantined: 0,
                }))?;
                Ok(json!({}))
            }
            Request::RuleList => {
                let row = RuleRow {
                    id: 1,
                    kind: "snat".to_owned(),
                    name: "office".to_owned(),
                    source: "10.1.1.0/24".to_owned(),
                    destination: "any".to_owned(),
                    protocol: "any".to_owned(),
                    to: "masquerade".to_owned(),
                    hairpin: Some(true),
                    ..RuleRow::default()
                };
                reply.row(Row::Rule(&row))?;
                Ok(json!({}))
            }
            Request::Reload => Ok(json!(reloaded(None))),
            Request::ServiceList => {
                for row in services() {
                    reply.row(Row::Service(&row))?;
                }
                Ok(json!({}))
            }
            Request::ServiceWeight { service, server, weight }
            | Request::ServiceAdd { service, server, weight } => {
                let mut row = services().remove(0);
                assert_eq!(row.name, service);
                row.servers[0].address = server;
                row.servers[0].weight = weight;
                Ok(json!(row))
            }
            Request::ServiceRemove { .. } => Err(ApiError::new("no such server", "there are: none")),
            Request::Metrics => Ok(json!(Metrics { text: "natgw_sessions 3\n".to_owned() })),
            Request::Status => Err(ApiError::new("report: not today", "come back tomorrow")),
        }
    }
}

/// A service with one server.
fn services() -> Vec<ServiceRow> {
    let server = ServerRow {
        address: SocketAddrV4::new([10, 1, 1, 21].into(), 8080),
        weight: 3,
        state: "up".to_owned(),
        since: 12,
        falls: 0,
        active: 4,
        connections: 5,
        rate: 0.4,
        packets_in: 6,
        bytes_in: 700,
        packets_out: 8,
        bytes_out: 900,
    };
    vec![ServiceRow {
        name: "web".to_owned(),
        protocol: "tcp".to_owned(),
        external: "wan:80".to_owned(),
        method: "nat".to_owned(),
        scheduler: "round-robin".to_owned(),
        persistence: 0,
        check: "tcp".to_owned(),
        servers: vec![server],
    }]
}

#[test]
fn services_are_listed_and_changed() {
    let daemon = Daemon::new(0);
    let listed = String::from_utf8(daemon.run("service list").stdout).expect("text");
    let lines: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        lines[1..],
        [
            vec!["web", "tcp", "wan:80", "nat", "round-robin", "1/1", "up", "4", "5", "0.4", "700", "900"],
            vec!["10.1.1.21:8080", "3", "up", "4", "5", "0.4", "700", "900"],
        ]
    );
    let json: Value = serde_json::from_slice(&daemon.run("service list --json").stdout).expect("JSON");
    assert_eq!(json[0]["servers"][0]["address"], "10.1.1.21:8080");
    for (arguments, weight) in [
        ("service drain web 10.1.1.22:80", "0"),
        ("service weight web 10.1.1.22:80 7", "7"),
        ("service add web 10.1.1.22:80 --weight 9", "9"),
        ("service add web 10.1.1.22:80", "1"),
    ] {
        let said = String::from_utf8(daemon.run(arguments).stdout).expect("text");
        let server: Vec<&str> = said.lines().nth(2).expect("a server").split_whitespace().collect();
        assert_eq!(server[..2], ["10.1.1.22:80", weight], "{arguments}");
    }
    assert_eq!(daemon.run("service remove web 10.1.1.22:80").status.code(), Some(1));
    assert_eq!(daemon.run("service weight web 10.1.1.22:80 70000").status.code(), Some(2));
    let nobody = daemon.run("service drain web nobody");
    assert_eq!(nobody.status.code(), Some(2));
    assert!(text(&nobody.stderr).contains("address:port is wanted, such as"));
    assert!(text(&daemon.run("doctor nobody").stderr).contains("an address is wanted, such as"));
}

struct Daemon {
    _server: Server,
    folder: tempfile::TempDir,
}

impl Daemon {
    fn new(sessions: u32) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let server =
            Server::bind(&folder.path().join("natgw.sock"), Arc::new(Made { sessions })).expect("bind");
        Self { _server: server, folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("natgw.sock")
    }

    fn run(&self, arguments: &str) -> Output {
        natgw(&self.socket(), arguments).output().expect("natgw runs")
    }

    /// Standard output of a command that must do well.
    #[track_caller]
    fn stdout(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
        text(&output.stdout)
    }
}

fn natgw(socket: &Path, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_natgw"));
    command.env("NATGW_SOCKET", socket).args(arguments.split_whitespace()).stdin(Stdio::null());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

#[test]
fn tables() {
    let daemon = Daemon::new(2);
    let listing = daemon.stdout("session list");
    let lines: Vec<&str> = listing.lines().collect();
    assert_eq!(lines.len(), 3);
    let first =
        "tcp       10.1.1.12:0  203.0.113.12:0  198.51.100.7:80  outbound   established     2h4m   3s";
    assert!(
        lines[0].starts_with("PROTOCOL  INSIDE       OUTSIDE         REMOTE           DIRECTION  STATE  ")
    );
    assert!(lines[1].starts_with(first), "{listing}");
    assert!(lines[2].ends_with("            1         60           1        60  office"), "{listing}");
    assert_eq!(
        daemon.stdout("pool list"),
        "ADDRESS      INTERFACE  PROTOCOL  USED   FREE  QUARANTINED\n\
         203.0.113.1  -          udp          1  64511            0\n"
    );
    assert_eq!(
        daemon.stdout("rule list"),
        "ID  KIND  NAME    SOURCE       DESTINATION  PROTOCOL  OUT  TO          PACKETS  SESSIONS  OPTIONS\n \
         1  snat  office  10.1.1.0/24  any          any       -    masquerade        0         0  hairpin=true\n"
    );
    assert_eq!(
        daemon.stdout("session watch"),
        "12:00:00.123  session_created      udp   10.1.1.12:40000        -                      198.51.100.7:53\n"
    );
    assert_eq!(daemon.stdout("metrics"), "natgw_sessions 3\n");
}

#[test]
fn json() {
    let daemon = Daemon::new(3);
    let parsed = |arguments: &str| -> Value { daemon.stdout(arguments).parse().expect("JSON") };
    let sessions = parsed("session list --json --protocol 17");
    assert_eq!(sessions.as_array().map(Vec::len), Some(1));
    assert_eq!(sessions[0]["inside"], "10.1.1.12:1");
    assert_eq!(parsed("session list --json --rule none"), json!([]));
    assert_eq!(parsed("pool list --json")[0]["free"], 64511);
    let rules = parsed("rule list --json");
    assert_eq!((&rules[0]["kind"], rules[0].get("ports")), (&json!("snat"), None));
    assert_eq!(parsed("session count --json"), json!({ "sessions": 3 }));
    assert_eq!(parsed("reload --json")["kept"], 12);
    assert_eq!(parsed("session delete --json --state active"), json!({ "deleted": 1 }));
}

#[test]
fn rules_are_added_and_deleted() {
    let daemon = Daemon::new(0);
    let changes = |arguments: &str| -> String {
        let told: Value = daemon.stdout(&format!("{arguments} --json")).parse().expect("JSON");
        told["changes"][0].as_str().expect("a change").to_owned()
    };
    assert_eq!(
        changes(
            "rule add snat --name guests --source 10.1.9.0/24,!10.1.9.1/32 --destination 198.51.100.0/24 --protocol \
             tcp,17 --out wan --to 203.0.113.10-203.0.113.12,203.0.113.20 --ports 2000-2999 --mapping \
             endpoint-dependent --filtering endpoint-independent --pooling soft --hairpin false --before office"
        ),
        "snat Some(\"office\") name = \"guests\"; source = [\"10.1.9.0/24\", \"!10.1.9.1/32\"]; \
         destination = [\"198.51.100.0/24\"]; protocol = [\"tcp\", \"17\"]; out = \"wan\"; \
         to = [\"203.0.113.10-203.0.113.12\", \"203.0.113.20\"]; ports = \"2000-2999\"; \
         mapping = \"endpoint-dependent\"; filtering = \"endpoint-independent\"; pooling = \"soft\"; hairpin = false"
    );
    assert_eq!(changes("rule add snat --to masquerade"), "snat None to = \"masquerade\"");
    assert_eq!(changes("rule add snat --to masqurade"), "snat None to = \"masqurade\"");
    assert_eq!(
        changes("rule add static --external 203.0.113.50 --internal 10.1.1.50"),
        "static None external = \"203.0.113.50\"; internal = \"10.1.1.50\""
    );
    assert_eq!(
        changes(
            "rule add forward --protocol tcp,udp --external wan:80 --internal 10.1.1.12:8080 --source \
             198.51.100.0/24 --masquerade-source"
        ),
        "forward None protocol = [\"tcp\", \"udp\"]; external = \"wan:80\"; internal = \"10.1.1.12:8080\"; \
         source = [\"198.51.100.0/24\"]; masquerade_source = true"
    );
    assert_eq!(
        daemon.stdout("rule delete office --save"),
        "deleted: 12 sessions kept, 1 ended\n  office\nsaved in natgw.toml\nwarning: [limits] has changed\n"
    );
    assert_eq!(daemon.run("rule add snat --source 10.1.1.0/24").status.code(), Some(2));
}

#[test]
fn top_without_a_terminal() {
    let daemon = Daemon::new(0);
    assert_eq!(
        daemon.stdout("top --once --interval 2"),
        "natgw  12:00:00 UTC  up 2h4m  over 2.0 s\n\
         sessions   10 of 100, 0 new a second\n\
         packets/s  0 translated, 0 passed, 0 punted, 0 dropped\n\
         traffic    out 0 bit/s in 0 packets/s, in 0 bit/s in 0 packets/s\n\
         CPU        fast path not told, slow path 0.0 % (of one CPU)\n\
         \n\
         INSIDE-HOST  SESSIONS  NEW/S  PACKETS-OUT/S  PACKETS-IN/S  BITS-OUT/S  BITS-IN/S\n\
         10.1.1.12           1    0.5            1.0           2.0       34.5M          0\n\
         10.1.1.13           9    0.5            1.0           2.0         500          0\n"
    );
    let by_sessions = daemon.stdout("top --once --sort sessions");
    assert!(by_sessions.lines().nth(7).is_some_and(|line| line.starts_with("10.1.1.13")), "{by_sessions}");
    let one: Value = daemon.stdout("top --once --json --filter .13").parse().expect("JSON");
    assert_eq!(
        (&one["hosts"][0]["name"], one["hosts"].as_array().map(Vec::len)),
        (&json!("10.1.1.13"), Some(1))
    );
    let lines = daemon.stdout("top --json --most 1");
    let lines: Vec<Value> = lines.lines().map(|line| line.parse().expect("JSON")).collect();
    assert_eq!(lines.len(), 2);
    assert_eq!((&lines[1]["hosts"][0]["bits_out"], lines[1]["hosts"].get(1)), (&json!(34_500_000.0), None));
    assert_eq!(daemon.run("top --interval 0").status.code(), Some(2));
}

#[test]
fn traces_and_captures() {
    let daemon = Daemon::new(0);
    let output = daemon.run("trace tcp and port 80");
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(
        text(&output.stdout),
        "12:00:00.123456 lan  tcp 10.1.1.12:40000 > 198.51.100.7:80  snat office: dropped: \
         no route to the destination (to do: add it)\n"
    );
    assert_eq!(
        text(&output.stderr),
        "tracing; end it with Ctrl-C\n\
         not shown since the beginning: 7 packets beyond --rate, 1 that were too many to take\n"
    );
    let lines = daemon.stdout("trace tcp and port 80 --json");
    let lines: Vec<Value> = lines.lines().map(|line| line.parse().expect("JSON")).collect();
    let events: Vec<&Value> = lines.iter().map(|line| &line["event"]).collect();
    assert_eq!(events, ["begun", "packet", "missed"]);
    assert_eq!((&lines[1]["reason"], lines[1].get("frames")), (&json!("no_route"), None));
    let output = daemon.run("capture -w -");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stderr).ends_with("1 packet captured, 7 beyond --rate and 1 lost\n"));
    assert!(output.stdout.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]), "a section header");
    for arguments in ["trace", "capture -w -"] {
        let output = daemon.run(&format!("{arguments} port http"));
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains("`http` is no port"));
    }
}

#[test]
fn filters_and_counts() {
    let daemon = Daemon::new(10);
    assert_eq!(daemon.stdout("session count"), "10\n");
    assert_eq!(daemon.stdout("session count --inside 10.1.1.12:4"), "1\n");
    assert_eq!(daemon.stdout("session count --outside 203.0.113.0/24 --protocol TCP"), "5\n");
    assert_eq!(daemon.stdout("session count --remote 198.51.100.7:80 --state active --rule office"), "5\n");
    assert_eq!(daemon.stdout("session delete --inside 10.1.1.0/24"), "10 sessions deleted\n");
    assert_eq!(daemon.stdout("session flush"), "10 sessions deleted\n");
    assert_eq!(
        daemon.stdout("reload"),
        "reloaded: 12 sessions kept, 1 ended\n  snat office: changed\nwarning: [limits] has changed\n"
    );
}

#[test]
fn exit_codes_and_errors() {
    let daemon = Daemon::new(0);
    let failed = |arguments: &str, code: i32| {
        let output = daemon.run(arguments);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
        stderr
    };
    assert_eq!(failed("status", 1), "error: report: not today\n  hint: come back tomorrow\n");
    assert!(
        failed("--socket /nonexistent/natgw.sock status", 1).starts_with("error: no daemon at /nonexistent")
    );
    assert!(failed("check --config /nonexistent/natgw.toml", 1).contains("\n  hint: "));
    assert!(failed("session delete", 2).contains("no filter is given"));
    assert!(failed("session list --inside here", 2).contains("10.1.1.0/24"));
    assert!(failed("session list --state opened", 2).contains("[possible values: opening, "));
    assert!(failed("dance", 2).contains("unrecognized subcommand"));
    failed("", 2);
}

#[test]
fn check() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("natgw.toml");
    let home = include_str!("../../examples/home.toml");
    std::fs::write(&path, format!("{home}[timeouts]\nudp = \"10s\"\n")).expect("write");
    let run = || natgw(Path::new("/nonexistent"), "check --config").arg(&path).output().expect("natgw runs");
    assert_eq!(
        text(&run().stdout),
        format!(
            "configuration {} is valid: 2 interfaces, 1 snat, 0 static, 0 forward, 0 service\n\
             warning: [timeouts] udp = 10s is below the 2m of RFC 4787 REQ-5\n",
            path.display()
        )
    );
    std::fs::write(&path, home.replace("outside", "outsid")).expect("write");
    let output = run();
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    assert!(
        text(&output.stderr)
            .contains("natgw.toml:9:8: `outsid` is not known here\n    hint: one of \"inside\"")
    );
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let daemon = Daemon::new(100_000);
    for arguments in ["session list", "session list --json"] {
        let mut child = natgw(&daemon.socket(), arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("natgw runs");
        let mut stdout = child.stdout.take().expect("piped");
        stdout.read_exact(&mut [0; 100]).expect("the beginning");
        drop(stdout);
        let output = child.wait_with_output().expect("natgw ends");
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{arguments}");
    }
}

/// Not a measurement: the slowest build on a busy machine has to manage.
#[test]
fn a_million_rows_in_ten_seconds() {
    let daemon = Daemon::new(1_000_000);
    let start = Instant::now();
    let mut child =
        natgw(&daemon.socket(), "session list --json").stdout(Stdio::piped()).spawn().expect("natgw runs");
    let mut stdout = child.stdout.take().expect("piped");
    let (mut lines, mut chunk) = (0, vec![0; 1 << 16]);
    loop {
        let length = stdout.read(&mut chunk).expect("a listing");
        if length == 0 {
            break;
        }
        lines += chunk[..length].split(|&byte| byte == b'\n').count() - 1;
    }
    assert!(child.wait().expect("natgw ends").success());
    assert_eq!(lines, 1_000_002);
    let limit = Duration::from_secs(if cfg!(debug_assertions) { 180 } else { 10 });
    assert!(start.elapsed() < limit, "{:?}", start.elapsed());
}
