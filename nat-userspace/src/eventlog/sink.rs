//! Where records go: a file, a syslog, a collector of IPFIX.

use std::fs::{self, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::ipfix::Exporter;
use super::{Record, Sink, Written};
use crate::gateway::Event;

/// Where the host's own syslog listens.
const LOCAL_SYSLOG: &str = "/dev/log";
/// Facility daemon, severity informational (RFC 5424 section 6.2.1).
const PRIORITY: u8 = 3 << 3 | 6;
/// How long a datagram may wait for its receiver.
const PATIENCE: Duration = Duration::from_secs(1);
/// After a failure, how long until it is tried again: meanwhile records are lost at once.
const PAUSE: Duration = Duration::from_secs(1);
/// What identifies people is nobody else's to read.
const MODE: u32 = 0o640;

fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

/// Whether something works: told once when it stops, and once when it does again.
struct Health {
    what: String,
    failed: Option<Instant>,
}

impl Health {
    fn new(what: String) -> Self {
        Self { what, failed: None }
    }

    /// Whether it failed a moment ago.
    fn rests(&self) -> bool {
        self.failed.is_some_and(|failed| failed.elapsed() < PAUSE)
    }

    fn fails(&mut self, error: &io::Error) {
        if self.failed.is_none() {
            tracing::warn!("event log: {}: {error}; records are lost until it works", self.what);
        }
        self.failed = Some(Instant::now());
    }

    fn works(&mut self) {
        if self.failed.take().is_some() {
            tracing::info!("event log: {} works again", self.what);
        }
    }
}

/// Lines of JSON at the end of a file. A file that was moved away or removed is made anew.
pub(super) struct File {
    path: PathBuf,
    destinations: bool,
    open: Option<BufWriter<fs::File>>,
    health: Health,
}

impl File {
    pub(super) fn new(path: PathBuf, destinations: bool) -> Self {
        let health = Health::new(format!("write {}", path.display()));
        Self { path, destinations, open: None, health }
    }

    /// The file at the path, as it is now.
    fn file(&mut self) -> io::Result<&mut BufWriter<fs::File>> {
        let is_there = match &self.open {
            Some(open) => is_same(open.get_ref(), &self.path),
            None => false,
        };
        if !is_there {
            if let Some(folder) = self.path.parent() {
                fs::create_dir_all(folder)?;
            }
            let file = OpenOptions::new().create(true).append(true).mode(MODE).open(&self.path)?;
            self.open = Some(BufWriter::with_capacity(1 << 16, file));
        }
        self.open.as_mut().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Writes lines, and how many bytes they had.
    fn lines(&mut self, lines: &[String]) -> io::Result<usize> {
        let file = self.file()?;
        for line in lines {
            file.write_all(line.as_bytes())?;
        }
        file.flush()?;
        Ok(lines.iter().map(String::len).sum())
    }
}

fn is_same(file: &fs::File, path: &Path) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let [open, there] = [file.metadata(), fs::metadata(path)].map(|found| found.map(identity).ok());
    open.is_some() && open == there
}

impl Sink for File {
    fn write(&mut self, events: &mut dyn Iterator<Item = Event>, written: &Written) {
        let destinations = self.destinations;
        let line = |event: Event| {
            let record = serde_json::to_string(&Record::new(&event, destinations));
            record.unwrap_or_default() + "\n"
        };
        let lines: Vec<String> = events.map(line).collect();
        if self.health.rests() {
            return add(&written.lost, lines.len());
        }
        match self.lines(&lines) {
            Ok(bytes) => {
                self.health.works();
                add(&written.records, lines.len());
                add(&written.bytes, bytes);
            }
            Err(error) => {
                // Half a line may be in it: what follows begins after it, in a file opened anew.
                self.open = None;
                self.health.fails(&error);
                add(&written.lost, lines.len());
            }
        }
    }

    fn idle(&mut self, _written: &Written) {}
}

/// Syslog: the host's own, in the form that its listeners read, or another by UDP (RFC 5424, RFC 5426).
pub(super) struct Syslog {
    collector: Option<SocketAddr>,
    destinations: bool,
    open: Option<Channel>,
    health: Health,
    host: String,
}

enum Channel {
    Local(UnixDatagram),
    Remote(UdpSocket),
}

impl Syslog {
    pub(super) fn new(collector: Option<SocketAddr>, destinations: bool) -> Self {
        let name = collector.map_or_else(|| LOCAL_SYSLOG.to_owned(), |address| address.to_string());
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        Self {
            collector,
            destinations,
            open: None,
            health: Health::new(format!("send to syslog at {name}")),
            host: if host.is_empty() { "-".to_owned() } else { host },
        }
    }

    fn line(&self, event: &Event) -> String {
        let record = Record::new(event, self.destinations);
        let process = std::process::id();
        let words = record.words();
        if self.collector.is_none() {
            return format!("<{PRIORITY}>natgw[{process}]: {words}");
        }
        let Record { time, event, .. } = &record;
        format!("<{PRIORITY}>1 {time} {} natgw {process} {event} - {words}", self.host)
    }

    fn send(&mut self, line: &str) -> io::Result<()> {
        let channel = match self.open.take() {
            Some(channel) => channel,
            None => self.connect()?,
        };
        match &channel {
            Channel::Local(socket) => socket.send(line.as_bytes())?,
            Channel::Remote(socket) => socket.send(line.as_bytes())?,
        };
        self.open = Some(channel);
        Ok(())
    }

    fn connect(&self) -> io::Result<Channel> {
        let Some(collector) = self.collector else {
            let socket = UnixDatagram::unbound()?;
            socket.set_write_timeout(Some(PATIENCE))?;
            socket.connect(LOCAL_SYSLOG)?;
            return Ok(Channel::Local(socket));
        };
        connect(collector).map(Channel::Remote)
    }
}

impl Sink for Syslog {
    fn write(&mut self, events: &mut dyn Iterator<Item = Event>, written: &Written) {
        for event in events {
            if self.health.rests() {
                add(&written.lost, 1);
                continue;
            }
            let line = self.line(&event);
            match self.send(&line) {
                Ok(()) => {
                    self.health.works();
                    add(&written.records, 1);
                    add(&written.bytes, line.len());
                }
                Err(error) => {
                    self.health.fails(&error);
                    add(&written.lost, 1);
                }
            }
        }
    }

    fn idle(&mut self, _written: &Written) {}
}

fn connect(collector: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match collector {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.connect(collector)?;
    Ok(socket)
}

/// A collector of IPFIX, by UDP: it may come and go, so the templates are sent again and again.
pub(super) struct Collector {
    address: SocketAddr,
    refresh: Duration,
    exporter: Exporter,
    open: Option<UdpSocket>,
    /// When the templates were sent last to this socket's peer, as far as is known.
    templates: Option<Instant>,
    /// Records of the last message, and when it was sent: an ICMP error that comes speaks of it.
    unsure: Option<(usize, Instant)>,
    health: Health,
}

impl Collector {
    pub(super) fn new(collector: SocketAddr, refresh: Duration, destinations: bool) -> Self {
        Self {
            address: collector,
            refresh,
            exporter: Exporter::new(destinations),
            open: None,
            templates: None,
            unsure: None,
            health: Health::new(format!("send to the collector {collector}")),
        }
    }

    /// Sends the templates if it is time to, and before anything else to whoever refused: the first record that is
    /// received has to be understood.
    fn introduce(&mut self) -> io::Result<()> {
        if self.open.is_none() {
            self.open = Some(connect(self.address)?);
            self.templates = None;
        }
        if self.templates.is_some_and(|sent| sent.elapsed() < self.refresh) {
            return Ok(());
        }
        let Some(socket) = &self.open else { return Ok(()) };
        let mut templates = self.exporter.apart();
        templates.add_templates();
        socket.send(templates.finish())?;
        self.templates = Some(Instant::now());
        Ok(())
    }

    /// The collector's host said that nobody listens: what was sent last is lost.
    fn refused(&mut self, error: &io::Error, written: &Written) {
        let lost = self.unsure.take().map_or(0, |(records, _)| records);
        written.records.fetch_sub(lost as u64, Ordering::Relaxed);
        add(&written.lost, lost);
        self.templates = None;
        self.health.fails(error);
    }

    /// Sends the message that is being filled.
    fn flush(&mut self, written: &Written) {
        let records = self.exporter.records() as usize;
        if records == 0 {
            return;
        }
        self.look_for_errors(written);
        if self.health.rests() {
            // Who refused a moment ago says so at most once a second: nothing said is no consent.
            add(&written.lost, records);
            return self.exporter.next();
        }
        let sent = self.introduce().and_then(|()| {
            let Some(socket) = &self.open else { return Err(io::ErrorKind::NotConnected.into()) };
            socket.send(self.exporter.finish())
        });
        match sent {
            Ok(bytes) => {
                self.unsure = Some((records, Instant::now()));
                add(&written.records, records);
                add(&written.bytes, bytes);
            }
            Err(error) => {
                self.refused(&error, written);
                add(&written.lost, records);
                self.open = None;
            }
        }
        self.exporter.next();
    }

    /// Takes what the network said of earlier messages.
    fn look_for_errors(&mut self, written: &Written) {
        let error = self.open.as_ref().and_then(|socket| socket.take_error().ok().flatten());
        if let Some(error) = error {
            self.refused(&error, written);
        } else if self.unsure.is_some_and(|(_, sent)| sent.elapsed() > PAUSE) {
            self.health.works();
        }
    }
}

impl Sink for Collector {
    fn write(&mut self, events: &mut dyn Iterator<Item = Event>, written: &Written) {
        for event in events {
            if !self.exporter.add(&event) {
                self.flush(written);
                self.exporter.add(&event);
            }
        }
        self.flush(written);
    }

    fn idle(&mut self, written: &Written) {
        self.look_for_errors(written);
        if let Err(error) = self.introduce() {
            self.refused(&error, written);
            self.open = None;
        }
    }
}
