//! What must not be lost: numbered packets both ways, and transfers between real kernels.

use std::{
    io::{self, Read, Write},
    net::{SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::net::sockopt;

use super::ledger::{LENGTH, Ledger};
use crate::{
    decode::Decoded,
    host::{Host, connect_from},
    lab::{Lab, P1},
    packet::{Packet, tcp},
    wire::{Direction, Tap},
};

/// From one packet of a flow to its next.
const INTERVAL: Duration = Duration::from_millis(2);
/// How long the last packets are waited for.
const FINAL: Duration = Duration::from_secs(2);
/// How much a transfer writes at a time.
const CHUNK: usize = 16 << 10;
/// From one such piece to the next.
const PAUSE: Duration = Duration::from_millis(10);
/// The sequence numbers of the connection that the taps hold.
const SEQ: [u32; 2] = [1000, 5000];
/// The port that the kernels' datagrams go to.
const UDP_PORT: u16 = 7000;
/// The port that the kernels' transfers go to.
const TCP_PORT: u16 = 5000;

/// The longest time in which a thread that sends by a tap was not on a CPU when its turn was, in milliseconds: so long
/// did the machine stand still.
static STOOD_STILL: AtomicU64 = AtomicU64::new(0);

/// Everything that runs through the gateway while it is tortured.
#[derive(Debug)]
pub(super) struct Traffic {
    pub(super) ledgers: Vec<Arc<Ledger>>,
    pub(super) transfers: Vec<Arc<Transfer>>,
    done: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// A TCP connection between two kernels.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) name: &'static str,
    /// Bytes that arrived as they were sent.
    pub(super) bytes: AtomicU64,
    /// Segments that its kernel sent again, rightly or because the machine was busy.
    pub(super) retransmitted: AtomicU64,
    /// The longest time in which nothing arrived, in milliseconds.
    pub(super) longest_stall: AtomicU64,
    /// What broke it.
    pub(super) broken: Mutex<Option<String>>,
}

/// Two directions of one flow.
struct Both {
    out: Arc<Ledger>,
    back: Arc<Ledger>,
}

impl Both {
    fn new(out: &'static str, back: &'static str, mark: u32) -> Self {
        Self { out: Arc::new(Ledger::new(out, mark)), back: Arc::new(Ledger::new(back, mark + 1)) }
    }
}

impl Traffic {
    /// Opens everything, and has it run until it is stopped. Hosts b and s2 have to be mute.
    pub(super) fn start(lab: &Lab) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let kernels = Both::new("udp of kernels, out", "udp of kernels, in", 0x10);
        let crafted = [
            Both::new("udp, out", "udp, in", 0x20),
            Both::new("tcp segments, out", "tcp segments, in", 0x30),
            Both::new("ping, out", "ping, in", 0x40),
        ];
        let ledgers = [&kernels]
            .into_iter()
            .chain(&crafted)
            .flat_map(|both| [Arc::clone(&both.out), Arc::clone(&both.back)]);
        let ledgers = ledgers.collect();
        let mut threads = crafted_flows(lab, &crafted, &done);
        threads.extend(kernel_datagrams(lab, &kernels, &done));
        let mut transfers = Vec::new();
        for (name, port, upload) in [("upload", 40_001, true), ("download", 40_002, false)] {
            let transfer = Arc::new(Transfer {
                name,
                bytes: AtomicU64::new(0),
                retransmitted: AtomicU64::new(0),
                longest_stall: AtomicU64::new(0),
                broken: Mutex::default(),
            });
            threads.extend(kernel_transfer(lab, port, upload, &transfer, &done));
            transfers.push(transfer);
        }
        Self { ledgers, transfers, done, threads }
    }

    /// The longest time in which the machine has let none of it run.
    pub(super) fn stood_still() -> Duration {
        Duration::from_millis(STOOD_STILL.load(Ordering::Relaxed))
    }

    /// Ends sending; what is under way still arrives until then.
    pub(super) fn stop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

/// What a tap of a muted host sends every [`INTERVAL`].
type Sender = Box<dyn Fn(&Tap) + Send>;

/// The flows that taps send and receive: complete frames, which the fast path sends on by itself.
fn crafted_flows(lab: &Lab, flows: &[Both; 3], done: &Arc<AtomicBool>) -> Vec<JoinHandle<()>> {
    let client = SocketAddrV4::new(lab.b.address, 41_000);
    let server = SocketAddrV4::new(lab.s2.address, 9000);
    let segment = |from: usize, source: SocketAddrV4, destination: SocketAddrV4| {
        Packet::tcp(source, destination).seq(SEQ[from] + 1).ack(SEQ[1 - from] + 1)
    };
    // The one that begins a flow has to arrive before the other can answer.
    let (inside, outside) = (lab.b.tap(), lab.s2.tap());
    let [udp, _, ping] = flows;
    let opened = |packet: &Packet, ledger: &Ledger| {
        let payload = ledger.next();
        inside.send(&packet.clone().payload(payload));
        let seen = outside.expect_payload(payload);
        ledger.arrived(&payload, seen.source());
        seen.source().expect("what the server sees has a source")
    };
    let udp_outside = opened(&Packet::udp(client, server), &udp.out);
    let ping_outside = opened(&Packet::echo_request(lab.b.address, lab.s2.address, 77, 1), &ping.out);
    inside.send(&Packet::tcp(client, server).syn(SEQ[0]));
    let is_syn = |seen: &Decoded| seen.tcp().is_some_and(|segment| segment.flags == tcp::SYN);
    let tcp_outside = outside.expect("the SYN", is_syn).source().expect("a SYN has a source");
    outside.send(&Packet::tcp(server, tcp_outside).syn(SEQ[1]).ack(SEQ[0] + 1));
    inside.expect("the SYN-ACK", |seen| seen.tcp().is_some_and(|segment| segment.flags & tcp::SYN != 0));
    inside.send(&segment(0, client, server));

    let ledgers: Vec<[Arc<Ledger>; 2]> =
        flows.iter().map(|both| [Arc::clone(&both.out), Arc::clone(&both.back)]).collect();
    let from_inside: Sender = {
        let ledgers = ledgers.clone();
        Box::new(move |tap| {
            tap.send(&Packet::udp(client, server).payload(ledgers[0][0].next()));
            tap.send(&segment(0, client, server).payload(ledgers[1][0].next()));
            tap.send(&Packet::echo_request(*client.ip(), *server.ip(), 77, 1).payload(ledgers[2][0].next()));
        })
    };
    let from_outside: Sender = {
        let ledgers = ledgers.clone();
        Box::new(move |tap| {
            tap.send(&Packet::udp(server, udp_outside).payload(ledgers[0][1].next()));
            tap.send(&segment(1, server, tcp_outside).payload(ledgers[1][1].next()));
            tap.send(
                &Packet::echo_reply(*server.ip(), P1, ping_outside.port(), 1).payload(ledgers[2][1].next()),
            );
        })
    };
    let to_inside = ledgers.iter().map(|[_, back]| Arc::clone(back)).collect();
    let to_outside = ledgers.iter().map(|[out, _]| Arc::clone(out)).collect();
    vec![
        run_tap("inside", inside, from_inside, to_inside, done),
        run_tap("outside", outside, from_outside, to_outside, done),
    ]
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    thread::Builder::new().name(name.to_owned()).spawn(work).expect("start a thread")
}

/// Sends at the pace of [`INTERVAL`] and takes what comes, until done and a second after.
fn run_tap(
    name: &str,
    tap: Tap,
    send: Sender,
    expected: Vec<Arc<Ledger>>,
    done: &Arc<AtomicBool>,
) -> JoinHandle<()> {
    let done = Arc::clone(done);
    spawn(name, move || {
        let mut pace = Pace::new(INTERVAL);
        let mut ended = None;
        while ended.is_none_or(|at: Instant| at.elapsed() < FINAL) {
            if done.load(Ordering::Relaxed) {
                ended.get_or_insert_with(Instant::now);
            } else if let late = pace.late()
                && pace.is_due()
            {
                let late = u64::try_from(late.as_millis()).unwrap_or(u64::MAX);
                STOOD_STILL.fetch_max(late, Ordering::Relaxed);
                send(&tap);
            }
            while let Some(frame) = tap.take(pace.left().min(Duration::from_millis(1))) {
                if frame.direction != Direction::Incoming {
                    continue;
                }
                let (payload, source) = (frame.decoded.payload(), frame.decoded.source());
                expected.iter().any(|ledger| ledger.arrived(payload, source));
                if pace.left().is_zero() {
                    break;
                }
            }
        }
    })
}

/// Datagrams of two kernels: their checksums are left to an offload, so that the stack's transmit path is used.
fn kernel_datagrams(lab: &Lab, both: &Both, done: &Arc<AtomicBool>) -> Vec<JoinHandle<()>> {
    let bind = |host: &Host, port| {
        let socket = host.within(|| UdpSocket::bind((host.address, port))).expect("bind a UDP socket");
        sockopt::set_socket_recv_buffer_size_force(&socket, 64 << 20).expect("make its buffer large");
        // Errors that routers send while a link is down are no news to it.
        socket.set_read_timeout(Some(Duration::from_millis(1))).expect("set a timeout");
        socket
    };
    let (client, server) = (bind(&lab.a, 41_000), bind(&lab.s1, UDP_PORT));
    let to_server = SocketAddrV4::new(lab.s1.address, UDP_PORT);
    let run = |name, socket: UdpSocket, own: Arc<Ledger>, other: Arc<Ledger>, to: Option<SocketAddrV4>| {
        let done = Arc::clone(done);
        spawn(name, move || {
            let mut pace = Pace::new(INTERVAL);
            let mut buffer = [0; 2 * LENGTH];
            let mut ended = None;
            while ended.is_none_or(|at: Instant| at.elapsed() < FINAL) {
                if done.load(Ordering::Relaxed) {
                    ended.get_or_insert_with(Instant::now);
                } else if pace.is_due()
                    && let Some(to) = to.or_else(|| other.endpoint())
                {
                    let payload = own.next();
                    // An error may be that of an earlier packet: this one was not sent.
                    while socket.send_to(&payload, to).is_err() {
                        thread::sleep(Duration::from_millis(1));
                    }
                }
                while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    if let std::net::SocketAddr::V4(from) = from {
                        other.arrived(&buffer[..length], Some(from));
                    }
                    if pace.left().is_zero() {
                        break;
                    }
                }
            }
        })
    };
    vec![
        run("datagrams out", client, Arc::clone(&both.out), Arc::clone(&both.back), Some(to_server)),
        run("datagrams in", server, Arc::clone(&both.back), Arc::clone(&both.out), None),
    ]
}

/// A connection of two kernels whose bytes are numbers in a row.
fn kernel_transfer(
    lab: &Lab,
    port: u16,
    upload: bool,
    transfer: &Arc<Transfer>,
    done: &Arc<AtomicBool>,
) -> Vec<JoinHandle<()>> {
    let at = SocketAddrV4::new(lab.s1.address, TCP_PORT + port % 10);
    let listener = lab.s1.within(|| TcpListener::bind(at)).expect("listen");
    let own = format!("{}:{port}", lab.a.address);
    let client = lab.a.within(|| connect_from(&own, &at.to_string())).expect("connect through the gateway");
    client.set_write_timeout(None).expect("take the timeout back");
    let (server, _) = listener.accept().expect("accept the connection");
    let (source, sink) = if upload { (client, server) } else { (server, client) };
    let writer = {
        let (transfer, done) = (Arc::clone(transfer), Arc::clone(done));
        spawn("transfer", move || {
            if let Err(error) = write_numbers(source, &done, &transfer) {
                transfer.fail(&format!("write: {error}"));
            }
        })
    };
    let reader = {
        let transfer = Arc::clone(transfer);
        spawn("transfer", move || {
            if let Err(error) = read_numbers(sink, &transfer) {
                transfer.fail(&format!("read: {error}"));
            }
        })
    };
    vec![writer, reader]
}

impl Transfer {
    fn fail(&self, why: &str) {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| why.to_owned());
    }
}

fn write_numbers(mut stream: TcpStream, done: &AtomicBool, transfer: &Transfer) -> io::Result<()> {
    let mut number = 0_u64;
    let mut pace = Pace::new(PAUSE);
    while !done.load(Ordering::Relaxed) {
        if !pace.is_due() {
            thread::sleep(pace.left());
            continue;
        }
        let numbers = number..number + CHUNK as u64 / 8;
        number = numbers.end;
        let chunk: Vec<u8> = numbers.flat_map(u64::to_be_bytes).collect();
        stream.write_all(&chunk)?;
    }
    transfer.retransmitted.store(retransmitted(&stream)?, Ordering::Relaxed);
    stream.shutdown(std::net::Shutdown::Write)
}

fn read_numbers(mut stream: TcpStream, transfer: &Transfer) -> io::Result<()> {
    // Longer than a kernel takes to try again after a link was down for some seconds.
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut expected = 0_u64;
    let mut buffer = [0; 8];
    let mut stream = io::BufReader::with_capacity(CHUNK, &mut stream);
    loop {
        let before = Instant::now();
        match stream.read_exact(&mut buffer) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error),
        }
        let stall = u64::try_from(before.elapsed().as_millis()).unwrap_or(u64::MAX);
        transfer.longest_stall.fetch_max(stall, Ordering::Relaxed);
        if u64::from_be_bytes(buffer) != expected {
            return Err(io::Error::other(format!("number {expected} arrived as {buffer:?}")));
        }
        expected += 1;
        transfer.bytes.fetch_add(8, Ordering::Relaxed);
    }
}

/// Segments that the kernel has sent again.
fn retransmitted(stream: &TcpStream) -> io::Result<u64> {
    // SAFETY: all zeros is a valid tcp_info.
    let mut information: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).unwrap_or_default();
    // SAFETY: the pointer and the length are those of `information`.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut information).cast(),
            &raw mut length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(information.tcpi_total_retrans.into()) }
}

/// Says when the next of a row of events is due. What was missed while the machine was busy is made up for by no
/// burst.
struct Pace {
    interval: Duration,
    next: Instant,
}

impl Pace {
    fn new(interval: Duration) -> Self {
        Self { interval, next: Instant::now() }
    }

    /// Whether it is; once for each.
    fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let due = now >= self.next;
        if due {
            self.next = now.max(self.next + self.interval);
        }
        due
    }

    /// How long ago one was due.
    fn late(&self) -> Duration {
        Instant::now().saturating_duration_since(self.next)
    }

    fn left(&self) -> Duration {
        self.next.saturating_duration_since(Instant::now())
    }
}
