//! A server with a handler that makes things up, clients well and ill behaved.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::server::{LONGEST_LINE, MOST_CLIENTS, READ_TIMEOUT};
use super::*;

/// Lists `rows` sessions and counts those it could send.
#[derive(Default)]
struct Made {
    rows: u64,
    sent: AtomicU64,
}

impl Handler for Made {
    fn handle(&self, request: Request, reply: &mut dyn Reply) -> Result<Value, ApiError> {
        match request {
            Request::SessionList { filter } => {
                let mut sessions = 0;
                for port in 0..self.rows {
                    let row = session(u16::try_from(port % 65536).expect("a port"));
                    if filter.matches(&row) {
                        reply.row(Row::Session(&row))?;
                        self.sent.fetch_add(1, Ordering::Relaxed);
                        sessions += 1;
                    }
                }
                Ok(json!(Counted { sessions }))
            }
            Request::SessionFlush => Err(ApiError::new("flush sessions: not today", "come back tomorrow")),
            Request::PoolList => panic!("a handler that panics costs one client its answer"),
            _ => Ok(json!({})),
        }
    }
}

fn session(port: u16) -> SessionRow {
    let at = |last, port| SocketAddrV4::new(Ipv4Addr::new(10, 1, 1, last), port);
    SessionRow {
        protocol: "tcp".into(),
        inside: at(12, port),
        outside: at(1, port),
        remote: at(7, 80),
        remote_inside: at(7, 80),
        direction: Direction::Outbound,
        state: "established".into(),
        expires_in: 7440,
        age: 3,
        packets_out: 1,
        bytes_out: 60,
        packets_in: 1,
        bytes_in: 60,
        rule: "office".to_owned(),
        filtering: Some("address-dependent".into()),
    }
}

struct Served {
    folder: tempfile::TempDir,
    handler: Arc<Made>,
    server: Option<Server>,
}

impl Served {
    fn new(rows: u64) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let handler = Arc::new(Made { rows, ..Made::default() });
        let mut served = Self { folder, handler, server: None };
        let server = Server::bind(&served.path(), Arc::clone(&served.handler) as _).expect("bind");
        served.server = Some(server);
        served
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("run/natgw.sock")
    }

    fn ask(&self, request: &Request) -> Result<Value, ClientError> {
        Client::connect(&self.path())?.request(request, |_: Value| Ok(()))
    }

    /// What the server answers to bytes that no client of ours would send.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = UnixStream::connect(self.path()).expect("connect");
        // The server may have answered and closed before all is written.
        let _ = stream.write_all(bytes);
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).expect("an answer");
        line
    }
}

fn list() -> Request {
    Request::SessionList { filter: SessionFilter::default() }
}

#[test]
fn rows_have_the_promised_form() {
    let served = Served::new(1);
    let line = served.raw(b"{\"version\":1,\"request\":{\"verb\":\"session-list\"}}\n");
    assert_eq!(
        line.trim(),
        r#"{"row":{"protocol":"tcp","inside":"10.1.1.12:0","outside":"10.1.1.1:0","remote":"10.1.1.7:80","remote_inside":"10.1.1.7:80","direction":"outbound","state":"established","expires_in":7440,"age":3,"packets_out":1,"bytes_out":60,"packets_in":1,"bytes_in":60,"rule":"office","filtering":"address-dependent"}}"#
    );
}

#[test]
fn many_rows_stream() {
    let served = Served::new(200_000);
    let (mut rows, mut bytes) = (0_u64, 0);
    let done: Counted = Client::connect(&served.path())
        .expect("connect")
        .request(&list(), |row: Box<RawValue>| {
            rows += 1;
            bytes += row.get().len();
            Ok(())
        })
        .expect("a listing");
    assert_eq!((done.sessions, rows), (200_000, 200_000));
    assert!(bytes > 200_000 * 200);
}

#[test]
fn a_client_that_leaves_ends_its_listing() {
    let served = Served::new(u64::MAX);
    let mut rows = 0;
    let error = Client::connect(&served.path())
        .expect("connect")
        .request::<SessionRow, Counted>(&list(), |_| {
            rows += 1;
            if rows < 1000 { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
        })
        .expect_err("the row's error");
    assert!(matches!(error, ClientError::Output(error) if error.kind() == io::ErrorKind::BrokenPipe));
    // The handler stops: what it has sent stays what it is.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let before = served.handler.sent.load(Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(50));
        if served.handler.sent.load(Ordering::Relaxed) == before {
            break;
        }
        assert!(Instant::now() < deadline, "the handler goes on without a client");
    }
}

#[test]
fn filters_travel() {
    let served = Served::new(100);
    let mut ports = Vec::new();
    let filter = SessionFilter {
        inside: Some("10.1.1.0/24:42".parse().expect("a filter")),
        protocol: Some("tcp".to_owned()),
        ..SessionFilter::default()
    };
    let done: Counted = Client::connect(&served.path())
        .expect("connect")
        .request(&Request::SessionList { filter }, |row: SessionRow| {
            ports.push(row.inside.port());
            Ok(())
        })
        .expect("a listing");
    assert_eq!((done.sessions, ports), (1, vec![42]));
}

#[test]
fn filters_match() {
    let row = session(40000);
    let matches = |filter: SessionFilter| filter.matches(&row);
    let endpoint = |word: &str| Some(word.parse::<EndpointFilter>().expect(word));
    let any = SessionFilter::default;
    assert!(matches(any()) && any().is_empty());
    for word in ["10.1.1.12", "10.1.1.12:40000", "10.1.1.0/24", "0.0.0.0/0:40000"] {
        assert!(matches(SessionFilter { inside: endpoint(word), ..any() }), "{word}");
        assert_eq!(endpoint(word).map(|filter| filter.to_string()).as_deref(), Some(word));
    }
    assert!(!matches(SessionFilter { inside: endpoint("10.1.1.12:40001"), ..any() }));
    assert!(!matches(SessionFilter { outside: endpoint("10.1.1.12"), ..any() }));
    assert!(!matches(SessionFilter { remote: endpoint("10.1.2.0/24"), ..any() }));
    assert!(!matches(SessionFilter { protocol: Some("udp".to_owned()), ..any() }));
    assert!(!matches(SessionFilter { state: Some("closing".to_owned()), ..any() }));
    assert!(!matches(SessionFilter { rule: Some("guest".to_owned()), ..any() }));
    for word in ["", "host", "10.1.1.1:http", "10.1.1.1:65536", "10.1.1.1/33", ":80"] {
        assert!(word.parse::<EndpointFilter>().is_err(), "{word}");
    }
}

#[test]
fn errors_reach_the_client() {
    let served = Served::new(0);
    let error = served.ask(&Request::SessionFlush).expect_err("refused");
    assert_eq!(
        (error.to_string().as_str(), error.hint()),
        ("flush sessions: not today", "come back tomorrow")
    );
    let everything = Request::SessionDelete { filter: SessionFilter::default() };
    let error = served.ask(&everything).expect_err("no filter");
    assert!(error.to_string().contains("no filter is given"), "{error}");
    let error = served.ask(&Request::PoolList).expect_err("no answer");
    assert!(matches!(error, ClientError::Talk { .. }), "{error}");
    served.ask(&Request::Status).expect("the server goes on");
}

#[test]
fn garbage() {
    let served = Served::new(0);
    for bytes in [
        "\n",
        "hello\n",
        "{\"version\":1}\n",
        "{\"version\":1,\"request\":{\"verb\":\"dance\"}}\n",
        "{\"version\":1,\"request\":{\"verb\":\"session-list\",\"filter\":{\"inside\":\"x\"}}}\n",
        "{\"version\":1,\"request\":{\"verb\":\"session-list\",\"filter\":{\"insid\":\"10.1.1.1\"}}}\n",
    ] {
        let answer = served.raw(bytes.as_bytes());
        assert!(answer.starts_with("{\"error\":{\"message\":\"the request is not understood"), "{answer}");
    }
    assert!(served.raw(&[0xff, 0x00, b'\n']).contains("not understood"));
    let answer = served.raw(b"{\"version\":2,\"request\":{\"verb\":\"from the future\"}}\n");
    assert!(answer.contains("version 2, the daemon's is 1"), "{answer}");
    served.ask(&Request::Status).expect("the server goes on");
}

#[test]
fn oversized_line() {
    let served = Served::new(0);
    let answer = served.raw(&vec![b' '; LONGEST_LINE + 1]);
    assert!(answer.contains("more than 65536 bytes"), "{answer}");
    // A line of just that length is read: it is only no request.
    let mut line = vec![b' '; LONGEST_LINE];
    line.push(b'\n');
    assert!(served.raw(&line).contains("not understood"));
}

#[test]
fn hanging_clients() {
    let served = Served::new(0);
    let start = Instant::now();
    let mut hanging: Vec<UnixStream> = (0..MOST_CLIENTS)
        .map(|_| {
            let mut stream = UnixStream::connect(served.path()).expect("connect");
            stream.write_all(b"{\"version\"").expect("half a line");
            stream
        })
        .collect();
    let error = served.ask(&Request::Status).expect_err("no seat left");
    assert!(error.to_string().contains("serves 32 clients already"), "{error}");

    // One that leaves gives its seat to another at once.
    drop(hanging.pop());
    let deadline = start + READ_TIMEOUT;
    while let Err(error) = served.ask(&Request::Status) {
        assert!(Instant::now() < deadline, "{error}");
        std::thread::sleep(Duration::from_millis(10));
    }
    // The others are told when their time is up.
    let mut answer = String::new();
    hanging[0].read_to_string(&mut answer).expect("an answer");
    assert!(answer.contains("no request came within 5 s"), "{answer}");
    assert!(start.elapsed() >= READ_TIMEOUT);
}

#[test]
fn socket_comes_and_goes() {
    let mut served = Served::new(0);
    let path = served.path();
    let mode = path.metadata().expect("the socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);

    let error = Server::bind(&path, Arc::new(Made::default())).err().expect("taken");
    assert!(error.to_string().contains("another daemon answers there"), "{error}");
    served.ask(&Request::Status).expect("the first one goes on");

    served.server = None;
    assert!(!path.exists());
    let error = served.ask(&Request::Status).expect_err("nobody there");
    assert!(error.to_string().contains("no daemon at"), "{error}");
    assert!(error.hint().contains("`natgw run`"));
}

#[test]
fn stale_socket_is_replaced_and_other_files_are_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("natgw.sock");
    drop(UnixListener::bind(&path).expect("bind"));
    let error = Client::connect(&path).expect_err("stale");
    assert!(error.to_string().contains("no daemon at"), "{error}");
    let server = Server::bind(&path, Arc::new(Made::default())).expect("replaces the stale one");

    // A successor's socket is not removed by the one before.
    std::fs::remove_file(&path).expect("remove");
    let successor = Server::bind(&path, Arc::new(Made::default())).expect("bind");
    drop(server);
    Client::connect(&path).expect("the successor answers");
    drop(successor);

    std::fs::write(&path, "notes").expect("write");
    let error = Server::bind(&path, Arc::new(Made::default())).err().expect("refused");
    assert!(error.to_string().contains("is not a socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).expect("untouched"), "notes");
}

#[test]
fn rules_of_a_configuration() {
    let text = r#"
[[interface]]
name = "lan"
side = "inside"
[[interface]]
name = "wan"
side = "outside"
[[snat]]
to = "none"
destination = ["10.2.0.0/16"]
[[snat]]
to = ["203.0.113.10-203.0.113.12"]
out = "wan"
[[forward]]
external = "wan:8080-8081"
internal = "10.1.1.12:80"
[[static]]
external = "203.0.113.50"
internal = "10.1.1.50"
"#;
    let rows = rule_rows(&crate::config::Config::parse(text, "test.toml").expect("valid"));
    let names: Vec<_> = rows.iter().map(|row| (row.id, row.name.as_str())).collect();
    assert_eq!(names, [(1, "static-1"), (2, "forward-1"), (3, "snat-1"), (4, "snat-2")]);
    assert_eq!(rows[0].destination, "203.0.113.50");
    assert_eq!((rows[1].destination.as_str(), rows[1].to.as_str()), ("wan:8080-8081", "10.1.1.12:80-81"));
    assert_eq!((rows[2].to.as_str(), rows[2].mapping.as_deref()), ("none", None));
    assert_eq!(rows[3].ports.as_deref(), Some("1024-65535"));
}
