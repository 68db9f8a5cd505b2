//! Answers `GET /metrics`, as much of HTTP as a scraper needs: each client has a thread of its own and
//! so many seconds, and only few are served at a time.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::seats::Seats;

/// Clients served at a time; a scraper needs one.
const MOST_CLIENTS: usize = 8;
/// Clients that may wait to be accepted.
const BACKLOG: i32 = 16;
/// How long a client may take to ask, and again to read the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// A request's head, in bytes.
const LONGEST_HEAD: usize = 8 * 1024;
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);

/// What the answer's body is: in words why not if there is none.
type Source = dyn Fn() -> Result<String, String> + Send + Sync;

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("listen on {address} for metrics: {source}")]
pub struct ResponderError {
    address: SocketAddr,
    source: io::Error,
}

impl ResponderError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        if self.source.kind() == io::ErrorKind::AddrInUse {
            "another program listens there (`ss -tlnp`): name another port in [metrics] listen"
        } else {
            "name another address in [metrics] listen, or none: listen = \"\""
        }
    }
}

/// A responder that has its address and does not answer yet.
pub struct Bound(TcpListener);

/// Metrics being served; no longer when dropped.
pub struct Responder {
    listener: Arc<TcpListener>,
    stopping: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl Responder {
    /// Takes the address. It may be one that the host does not have yet: a gateway starts early.
    pub fn bind(address: SocketAddr) -> Result<Bound, ResponderError> {
        listen(address).map(Bound).map_err(|source| ResponderError { address, source })
    }

    /// Answers from threads of its own.
    pub fn serve(bound: Bound, source: Arc<Source>) -> io::Result<Self> {
        let listener = Arc::new(bound.0);
        let stopping = Arc::new(AtomicBool::new(false));
        let acceptor = std::thread::Builder::new().name("metrics".to_owned()).spawn({
            let (listener, stopping) = (Arc::clone(&listener), Arc::clone(&stopping));
            move || accept(&listener, &source, &stopping)
        })?;
        Ok(Self { listener, stopping, acceptor: Some(acceptor) })
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        // Wakes the thread that waits in accept(2). Should it fail, the thread stays.
        if rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both).is_ok()
            && let Some(acceptor) = self.acceptor.take()
        {
            let _ = acceptor.join();
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv4() {
        sockopt::set_ip_freebind(&socket, true)?;
    } else {
        sockopt::set_ipv6_freebind(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

fn accept(listener: &TcpListener, source: &Arc<Source>, stopping: &AtomicBool) {
    let seats = Seats::new("metrics", MOST_CLIENTS);
    while !stopping.load(Ordering::Relaxed) {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                if !stopping.load(Ordering::Relaxed) {
                    tracing::warn!("metrics: accept a client: {error}");
                    std::thread::sleep(PAUSE_AFTER_ERROR);
                }
                continue;
            }
        };
        // The connection is closed unheard.
        if seats.are_taken() {
            continue;
        }
        let source = Arc::clone(source);
        seats.serve(move || serve(&stream, &*source));
    }
}

fn serve(mut stream: &TcpStream, source: &Source) -> io::Result<()> {
    let Some(head) = read_head(stream)? else { return Ok(()) };
    let answer = respond(&head, source);
    let deadline = Instant::now() + PATIENCE;
    let mut rest = answer.as_slice();
    while !rest.is_empty() {
        stream.set_write_timeout(Some(left(deadline)?))?;
        match stream.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => rest = rest.get(length..).unwrap_or_default(),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    stream.shutdown(Shutdown::Write)
}

/// Reads up to the empty line, in bounded time and space. None if the client ended before it.
fn read_head(mut stream: &TcpStream) -> io::Result<Option<Vec<u8>>> {
    let deadline = Instant::now() + PATIENCE;
    let mut head = Vec::new();
    let mut chunk = [0; 2048];
    while head.len() < LONGEST_HEAD {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(None),
            Ok(length) => head.extend_from_slice(&chunk[..length]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
        if head.windows(4).any(|four| four == b"\r\n\r\n") {
            return Ok(Some(head));
        }
    }
    Ok(Some(head))
}

/// What is left of the time; an error once it is over.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// The answer to a request's head.
fn respond(head: &[u8], source: &Source) -> Vec<u8> {
    const PLAIN: &str = "text/plain; charset=utf-8";
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    let is_http = version.is_some_and(|version| version.starts_with("HTTP/1."));
    let path = target.unwrap_or_default().split('?').next();
    let (status, kind, body) = match (method, path) {
        _ if !is_http => ("400 Bad Request", PLAIN, "this is HTTP: GET /metrics\n".to_owned()),
        (Some("GET" | "HEAD"), Some("/metrics")) => match source() {
            Ok(text) => ("200 OK", "text/plain; version=0.0.4; charset=utf-8", text),
            Err(reason) => ("503 Service Unavailable", PLAIN, format!("{reason}\n")),
        },
        (Some("GET" | "HEAD"), _) => ("404 Not Found", PLAIN, "natgw's metrics are at /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", PLAIN, "GET /metrics\n".to_owned()),
    };
    let length = body.len();
    let allow = if status.starts_with("405") { "Allow: GET, HEAD\r\n" } else { "" };
    let shown = if method == Some("HEAD") { "" } else { &*body };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{allow}Connection: close\r\n\r\n{shown}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_line(request: &str) -> String {
        let source: &Source = &|| Ok("natgw_sessions 1\n".to_owned());
        let answer = String::from_utf8(respond(request.as_bytes(), source)).unwrap();
        answer.lines().next().unwrap_or_default().to_owned()
    }

    #[test]
    fn only_a_get_of_metrics_is_answered_with_them() {
        let cases = [
            ("GET /metrics HTTP/1.1\r\n\r\n", "200"),
            ("GET /metrics?name=x HTTP/1.0\r\n\r\n", "200"),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", "200"),
            ("GET / HTTP/1.1\r\n\r\n", "404"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
            ("GET /metrics\r\n\r\n", "400"),
            ("\0\u{1}", "400"),
            ("", "400"),
        ];
        for (request, status) in cases {
            assert!(first_line(request).contains(status), "{request:?}: {}", first_line(request));
        }
    }

    #[test]
    fn clients_that_hang_hurt_nobody() {
        let bound = Responder::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = bound.0.local_addr().unwrap();
        let responder = Responder::serve(bound, Arc::new(|| Ok("natgw_sessions 1\n".to_owned()))).unwrap();
        let ask = || {
            let mut stream = TcpStream::connect(address)?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok::<_, io::Error>(answer)
        };
        let hanging: Vec<TcpStream> =
            (0..MOST_CLIENTS - 1).map(|_| TcpStream::connect(address).unwrap()).collect();
        assert!(ask().unwrap().ends_with("natgw_sessions 1\n"));
        // Those that hang beyond the bound are turned away, and the places are free again in time.
        let more: Vec<TcpStream> = (0..MOST_CLIENTS).map(|_| TcpStream::connect(address).unwrap()).collect();
        let deadline = Instant::now() + 3 * PATIENCE;
        while !ask().is_ok_and(|answer| answer.ends_with("natgw_sessions 1\n")) {
            assert!(Instant::now() < deadline, "places are not free again");
            std::thread::sleep(Duration::from_millis(100));
        }
        drop((hanging, more, responder));
        assert!(TcpStream::connect(address).is_err(), "nothing listens any more");
    }
}
