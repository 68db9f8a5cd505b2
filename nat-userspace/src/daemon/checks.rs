//! Health checks of servers: a thread each, so that one that hangs delays no other, and none the worker.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use nat_common::checksum::Sum;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, sockopt};

use super::control::Post;
use crate::config::{Check, CheckKind, ServiceRule};

/// Stack of a thread that does nothing but ask.
const STACK: usize = 128 * 1024;
/// What is read of an HTTP answer: its first line is at its beginning.
const STATUS_LINE: usize = 512;

/// The checks that run.
pub struct Checks {
    post: Post,
    running: HashMap<(String, SocketAddrV4), Running>,
}

/// A check that runs until it is dropped.
struct Running {
    check: Check,
    stop: Arc<AtomicBool>,
    thread: Thread,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Not waited for: it may be in the middle of a question. Its answer is nobody's then.
        self.stop.store(true, Ordering::Relaxed);
        self.thread.unpark();
    }
}

impl Checks {
    /// None yet; what they find goes by `post`.
    pub fn new(post: Post) -> Self {
        Self { post, running: HashMap::new() }
    }

    /// Has the servers of these services checked, and no others. Those that go on do so undisturbed.
    pub fn follow(&mut self, services: &[ServiceRule]) {
        let mut before = std::mem::take(&mut self.running);
        for rule in services.iter().filter(|rule| rule.check.kind != CheckKind::None) {
            for server in &rule.servers {
                let key = (rule.name.clone(), server.address);
                let known = before.remove(&key).filter(|running| running.check == rule.check);
                let running = known.map_or_else(|| self.start(rule, server.address), Some);
                self.running.extend(running.map(|running| (key, running)));
            }
        }
    }

    fn start(&self, rule: &ServiceRule, server: SocketAddrV4) -> Option<Running> {
        let stop = Arc::new(AtomicBool::new(false));
        let watch = Watch {
            post: self.post.clone(),
            service: rule.name.clone(),
            server,
            check: rule.check.clone(),
            stop: Arc::clone(&stop),
        };
        let spawned: io::Result<JoinHandle<()>> =
            std::thread::Builder::new().name("check".to_owned()).stack_size(STACK).spawn(move || watch.run());
        match spawned {
            Ok(handle) => Some(Running { check: rule.check.clone(), stop, thread: handle.thread().clone() }),
            Err(error) => {
                tracing::error!(%error, service = rule.name, %server, "no thread for its check: it counts as up");
                None
            }
        }
    }
}

/// A server that is looked at.
struct Watch {
    post: Post,
    service: String,
    server: SocketAddrV4,
    check: Check,
    stop: Arc<AtomicBool>,
}

impl Watch {
    fn run(self) {
        let mut verdict = Verdict::default();
        loop {
            let begun = Instant::now();
            let asked = ask(&self.check, self.server);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            if let Some(is_up) = verdict.after(asked.is_ok(), &self.check)
                && self.tell(is_up, asked.err()).is_none()
            {
                return;
            }
            let next = begun + self.check.interval;
            while !self.stop.load(Ordering::Relaxed) {
                let left = next.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                std::thread::park_timeout(left);
            }
        }
    }

    /// Has the worker know. `None` if there is none any more.
    fn tell(&self, is_up: bool, why: Option<io::Error>) -> Option<()> {
        let (service, server) = (self.service.clone(), self.server);
        let is_news = self
            .post
            .ask(move |worker| worker.gateway.set_health(&service, server, is_up, Instant::now()))
            .ok()?;
        if is_news {
            let Self { service, server, check, .. } = self;
            let kind = check.kind.name();
            if let Some(error) = why {
                tracing::warn!(service, %server, check = kind, %error, "server is down: it gets no new connections");
            } else {
                tracing::info!(service, %server, check = kind, "server is up");
            }
        }
        Some(())
    }
}

/// What follows from answers and failures in a row.
#[derive(Debug, Default)]
struct Verdict {
    answers: u32,
    failures: u32,
}

impl Verdict {
    /// After one more: whether the server is up, or down, if that can be said.
    fn after(&mut self, answered: bool, check: &Check) -> Option<bool> {
        if answered {
            *self = Self { answers: self.answers.saturating_add(1), failures: 0 };
            (self.answers >= check.rise).then_some(true)
        } else {
            *self = Self { answers: 0, failures: self.failures.saturating_add(1) };
            (self.failures >= check.fall).then_some(false)
        }
    }
}

/// Asks once.
fn ask(check: &Check, server: SocketAddrV4) -> io::Result<()> {
    match check.kind {
        CheckKind::Tcp => TcpStream::connect_timeout(&server.into(), check.timeout).map(drop),
        CheckKind::Http => ask_http(check, server),
        CheckKind::Ping => ping(*server.ip(), check.timeout),
        CheckKind::None => Ok(()),
    }
}

/// GETs a path, and looks at the status.
fn ask_http(check: &Check, server: SocketAddrV4) -> io::Result<()> {
    let deadline = Instant::now() + check.timeout;
    let left = || {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::Error::from(io::ErrorKind::TimedOut)) } else { Ok(left) }
    };
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from(server), check.timeout)?;
    stream.set_write_timeout(Some(left()?))?;
    let path = &check.path;
    // In one piece: a server may answer the first it sees, and close.
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {server}\r\nUser-Agent: natgw\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut piece = [0; STATUS_LINE];
    while !answer.contains(&b'\n') && answer.len() < STATUS_LINE {
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut piece)? {
            0 => break,
            length => answer.extend_from_slice(&piece[..length]),
        }
    }
    match status(&answer) {
        Some(status) if status == check.status => Ok(()),
        Some(status) => Err(io::Error::other(format!("status {status}, not {}", check.status))),
        None => Err(io::Error::other("the answer is no HTTP")),
    }
}

/// The status of an answer: `HTTP/1.1 200 OK`.
fn status(answer: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(answer.split(|&byte| byte == b'\r' || byte == b'\n').next()?).ok()?;
    let mut words = line.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next()?.parse().ok()
}

/// Sends an echo request and waits for its answer.
fn ping(server: Ipv4Addr, timeout: Duration) -> io::Result<()> {
    let deadline = Instant::now() + timeout;
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP))?;
    rustix::net::connect(&socket, &SocketAddrV4::new(server, 0))?;
    // Tells it from other threads' and programs' pings, whose answers a raw socket sees, too.
    let token = token();
    let mut request = [0u8; 16];
    request[0] = 8;
    request[4..].copy_from_slice(&token);
    let checksum = Sum::ZERO.add_bytes(&request).checksum();
    request[2..4].copy_from_slice(&checksum.to_ne_bytes());
    rustix::net::send(&socket, &request, SendFlags::empty())?;
    let mut packet = [MaybeUninit::uninit(); 2048];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(left))?;
        let ((packet, _), _) = rustix::net::recv(&socket, &mut packet[..], RecvFlags::empty())?;
        let header = packet.first().map_or(0, |first| usize::from(first & 0x0f) * 4);
        if let Some([0, 0, _, _, rest @ ..]) = packet.get(header..)
            && rest.starts_with(&token)
        {
            return Ok(());
        }
    }
}

/// Identifier, sequence number and payload of an echo request that nobody else sends.
fn token() -> [u8; 12] {
    use std::hash::{BuildHasher as _, RandomState};
    let random = RandomState::new().hash_one(0).to_ne_bytes();
    let mut token = *b"natgw\0\0\0chck";
    token[..8].copy_from_slice(&random);
    token
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn check(kind: CheckKind) -> Check {
        Check {
            kind,
            interval: Duration::from_secs(1),
            timeout: Duration::from_millis(500),
            fall: 3,
            rise: 2,
            path: "/health".to_owned(),
            status: 200,
        }
    }

    #[test]
    fn three_failures_in_a_row_and_two_answers() {
        let check = check(CheckKind::Tcp);
        let mut verdict = Verdict::default();
        let mut after = |answers: &[bool]| -> Vec<Option<bool>> {
            answers.iter().map(|&answered| verdict.after(answered, &check)).collect()
        };
        assert_eq!(after(&[true, true]), [None, Some(true)]);
        assert_eq!(after(&[false, false, true, false, false]), [None; 5]);
        assert_eq!(after(&[false, false]), [Some(false), Some(false)]);
        assert_eq!(after(&[true, false, true, true]), [None, None, None, Some(true)]);
    }

    #[test]
    fn the_status_is_read() {
        assert_eq!(status(b"HTTP/1.0 200 OK\r\nServer: x\r\n"), Some(200));
        assert_eq!(status(b"HTTP/1.1 503\n"), Some(503));
        for other in [&b""[..], b"SSH-2.0-x\r\n", b"HTTP/1.1\r\n", b"HTTP/1.1 abc\r\n", &[0xff, 0xfe]] {
            assert_eq!(status(other), None);
        }
    }

    /// What a server answers, if it answers, and what the check makes of it.
    #[test]
    fn servers_of_all_kinds() {
        for (answer, well) in [
            (Some("HTTP/1.1 200 OK\r\n\r\n"), true),
            (Some("HTTP/1.1 500 Oops\r\n\r\n"), false),
            (Some("hello\r\n"), false),
            (Some(""), false),
            (None, false),
        ] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let SocketAddr::V4(server) = listener.local_addr().unwrap() else { unreachable!() };
            let serving = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 1024];
                let length = stream.read(&mut request).unwrap();
                if let Some(answer) = answer {
                    stream.write_all(answer.as_bytes()).unwrap();
                } else {
                    std::thread::sleep(Duration::from_secs(1));
                }
                request[..length].to_vec()
            });
            // Patient with a busy machine, unless it is silence that is waited for.
            let timeout = Duration::from_millis(if answer.is_some() { 20_000 } else { 300 });
            let check = Check { timeout, ..check(CheckKind::Http) };
            assert_eq!(ask(&check, server).is_ok(), well, "{answer:?}");
            let request = String::from_utf8(serving.join().unwrap()).unwrap();
            assert!(request.starts_with("GET /health HTTP/1.1\r\nHost: 127.0.0.1:"), "{request}");
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(server) = listener.local_addr().unwrap() else { unreachable!() };
        let check = Check { timeout: Duration::from_secs(20), ..check(CheckKind::Tcp) };
        assert!(ask(&check, server).is_ok());
        drop(listener);
        assert!(ask(&check, server).is_err());
    }
}
