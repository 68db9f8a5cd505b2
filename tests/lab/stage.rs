//! A lab, a natgw in it, and a tap on every host: what nearly every case begins with.

use std::{
    cell::Cell,
    env, fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener},
    path::PathBuf,
    process::Command,
    thread,
    time::Duration,
};

use nat_tests::{
    Decoded, Gateway, Lab, Packet, Tap, gateway,
    host::connect_from,
    invariants,
    lab::{Builder, ISP, P1},
};

/// The initial sequence numbers of connections that [`Stage::connect`] opens.
pub(crate) const CLIENT_SEQ: u32 = 1000;
/// The server's.
pub(crate) const SERVER_SEQ: u32 = 5000;

/// The kernels of all hosts are mute: taps send what a case says and see what comes.
///
/// Whatever a case proves, the invariants hold for all that passed: they are judged when the stage is dropped.
pub(crate) struct Stage {
    pub(crate) a: Tap,
    pub(crate) b: Tap,
    pub(crate) c: Tap,
    pub(crate) s1: Tap,
    pub(crate) s2: Tap,
    pub(crate) s3: Tap,
    pub(crate) attacker: Tap,
    /// The host behind `lan2`, or behind the inner router, where the lab has one.
    d: Option<Tap>,
    /// The provider's end of the gateway's WAN link.
    pub(crate) wan: Tap,
    pub(crate) gateway: Gateway,
    pub(crate) lab: Lab,
    token: Cell<u32>,
    /// A case about packets that are wrong on purpose judges them itself.
    judged: Cell<bool>,
}

impl Stage {
    /// NAPT of the LAN behind P1, with natgw's defaults.
    pub(crate) fn standard() -> Self {
        Self::with(gateway::STANDARD)
    }

    /// The standard set-up with more lines in its `[[snat]]` table.
    pub(crate) fn snat(lines: &str) -> Self {
        Self::with(&format!("{}{lines}\n", gateway::STANDARD))
    }

    /// The standard set-up with other timeouts.
    pub(crate) fn timeouts(lines: &str) -> Self {
        Self::with(&format!("{}\n[timeouts]\n{lines}\n", gateway::STANDARD))
    }

    /// Any configuration in the standard lab.
    pub(crate) fn with(configuration: &str) -> Self {
        Self::build(Lab::builder(), configuration)
    }

    /// Any configuration in any lab.
    pub(crate) fn build(builder: Builder, configuration: &str) -> Self {
        Self::on(builder.build(), configuration)
    }

    /// Any configuration in a lab that is there.
    pub(crate) fn on(lab: Lab, configuration: &str) -> Self {
        lab.mute_all();
        let gateway = Gateway::start(&lab, configuration);
        Self {
            a: lab.a.tap(),
            b: lab.b.tap(),
            c: lab.c.tap(),
            s1: lab.s1.tap(),
            s2: lab.s2.tap(),
            s3: lab.s3.tap(),
            attacker: lab.attacker.tap(),
            d: lab.has_d().then(|| lab.d().tap()),
            wan: lab.wan(),
            gateway,
            lab,
            token: Cell::new(0),
            judged: Cell::new(true),
        }
    }

    /// The tap of the host that has this address.
    pub(crate) fn tap(&self, address: Ipv4Addr) -> &Tap {
        if let Some(d) = &self.d
            && address == self.lab.d().address
        {
            return d;
        }
        let clients = self.lab.clients().into_iter().zip([&self.a, &self.b, &self.c]);
        let servers = self.lab.servers().into_iter().zip([&self.s1, &self.s2, &self.s3, &self.attacker]);
        let found = clients.chain(servers).find(|(host, _)| host.address == address);
        found.map_or_else(|| panic!("no host has {address}"), |(_, tap)| tap)
    }

    /// The tap of the host behind `lan2`.
    pub(crate) fn d(&self) -> &Tap {
        self.d.as_ref().expect("a lab with a second LAN")
    }

    /// A number that no packet of this stage has carried.
    pub(crate) fn token(&self) -> u32 {
        self.token.set(self.token.get() + 1);
        self.token.get()
    }

    /// A UDP datagram with a payload of its own.
    pub(crate) fn udp(&self, source: &str, destination: &str) -> Packet {
        Packet::udp(source, destination).payload(format!("datagram {}", self.token()))
    }

    /// A SYN with a sequence number of its own.
    pub(crate) fn syn(&self, source: &str, destination: &str) -> Packet {
        Packet::tcp(source, destination).syn(self.token() << 16)
    }

    /// A segment of a connection that [`Stage::connect`] opened, with a payload of its own.
    pub(crate) fn data(&self, source: &str, destination: &str) -> Packet {
        let packet = Packet::tcp(source, destination).payload(format!("segment {}", self.token()));
        let from_client = Decoded::parse(&packet.build()).ip().source.is_private();
        let (own, other) = if from_client { (CLIENT_SEQ, SERVER_SEQ) } else { (SERVER_SEQ, CLIENT_SEQ) };
        packet.seq(own + 1).ack(other + 1)
    }

    /// Sends it from its source's host. Returns it as sent.
    pub(crate) fn send(&self, packet: &Packet) -> Decoded {
        let source = Decoded::parse(&packet.build()).ip().source;
        self.tap(source).send(packet)
    }

    /// Sends it from its source's host; it has to arrive at its destination's, whole. Returns it as it arrived.
    pub(crate) fn crosses(&self, packet: &Packet) -> Decoded {
        let destination = Decoded::parse(&packet.build()).ip().destination;
        self.reaches(packet, self.tap(destination))
    }

    /// Sends it from its source's host; it has to arrive at `tap`, whole. Returns it as it arrived.
    pub(crate) fn reaches(&self, packet: &Packet, tap: &Tap) -> Decoded {
        let sent = self.send(packet);
        let seen = tap.expect(&format!("{sent} after translation"), |seen| same(&sent, seen));
        // Between inside and outside lie the gateway and the provider's router; a hairpin sees the gateway alone.
        let (from_inside, to_inside) = (sent.ip().source.is_private(), seen.ip().destination.is_private());
        invariants::assert_translated(&sent, &seen, if from_inside && to_inside { 1 } else { 2 });
        seen
    }

    /// Sends it from its source's host; it must not arrive at `tap`.
    pub(crate) fn stopped(&self, packet: &Packet, tap: &Tap) {
        let sent = self.send(packet);
        tap.expect_none(&format!("{sent} after translation"), |seen| same(&sent, seen));
    }

    /// Sends it from its source's host; nothing of its kind may come out of the gateway for an instant.
    pub(crate) fn stopped_quickly(&self, packet: &Packet) {
        let sent = self.send(packet);
        let seen = self.wan.recv_matching(Duration::from_millis(20), |seen| same(&sent, seen));
        assert!(seen.is_none(), "{sent} must not come out");
    }

    /// Sends many, some at a time, and gives back how each arrived at its destination.
    pub(crate) fn cross_many(&self, packets: &[Packet]) -> Vec<Decoded> {
        let mut seen = Vec::new();
        for some in packets.chunks(64) {
            let sent: Vec<Decoded> = some.iter().map(|packet| self.send(packet)).collect();
            for sent in &sent {
                let tap = self.tap(sent.ip().destination);
                seen.push(tap.expect(&format!("{sent} after translation"), |seen| same(sent, seen)));
            }
            self.wan.drain();
        }
        seen
    }

    /// Opens a TCP connection by hand, SYN, SYN-ACK, ACK; where the server sees the client.
    pub(crate) fn connect(&self, client: &str, server: &str) -> String {
        let seen = self.crosses(&Packet::tcp(client, server).syn(CLIENT_SEQ));
        let public = source(&seen);
        let client_tap = self.tap(Decoded::parse(&Packet::tcp(client, server).build()).ip().source);
        let syn_ack = Packet::tcp(server, public.as_str()).syn(SERVER_SEQ).ack(CLIENT_SEQ + 1);
        self.reaches(&syn_ack, client_tap);
        self.crosses(&Packet::tcp(client, server).seq(CLIENT_SEQ + 1).ack(SERVER_SEQ + 1));
        public
    }

    /// Has a's kernel send so many bytes to the server's by TCP, from port 40000 to 5000; all of them have to arrive.
    pub(crate) fn transfer(&self, length: usize) {
        self.transfer_from(40_000, length);
    }

    /// The same from another port.
    pub(crate) fn transfer_from(&self, port: u16, length: usize) {
        let listener = self.lab.s1.within(|| TcpListener::bind("198.51.100.1:5000")).expect("listen");
        let own = format!("192.168.1.10:{port}");
        let mut client =
            self.lab.a.within(|| connect_from(&own, "198.51.100.1:5000")).expect("connect to the server");
        let (mut server, _) = listener.accept().expect("accept the connection");
        server.set_read_timeout(Some(Duration::from_secs(15))).expect("set a timeout");
        let sent: Vec<u8> = (0..length).map(|at| at.to_le_bytes()[at % 3]).collect();
        let received = thread::scope(|scope| {
            scope.spawn(|| {
                // The receiver tells what came, and a connection that is stuck must not hold the test.
                client.set_write_timeout(Some(Duration::from_secs(15))).expect("set a timeout");
                let _ = client.write_all(&sent).and_then(|()| client.shutdown(Shutdown::Write));
            });
            let mut received = Vec::with_capacity(length);
            let ended = server.read_to_end(&mut received);
            ended.map(|_| received)
        });
        let received = received.unwrap_or_else(|error| panic!("the transfer got stuck: {error}"));
        assert!(received == sent, "{} of {length} bytes arrived as they were sent", received.len());
    }

    /// The control of a case about what must not happen: a new flow passes, so that there is a gateway at all.
    pub(crate) fn carries_the_next(&self) {
        self.crosses(&self.udp("192.168.1.12:9", "198.51.100.2:9"));
    }

    /// No IP packet reaches a client for a while.
    pub(crate) fn lan_is_silent(&self) {
        for tap in [&self.a, &self.b, &self.c] {
            tap.expect_silence();
        }
    }

    /// Leaves the checksums of this stage's packets unjudged: some are wrong on purpose.
    pub(crate) fn expect_bad_packets(&self) {
        self.judged.set(false);
    }

    /// Neither judges the packets nor holds inside addresses that are seen outside for leaks: the case asks for them.
    pub(crate) fn expect_inside_addresses_outside(&self) {
        self.expect_bad_packets();
        self.gateway.expect_inside_addresses_outside();
    }

    /// How many sessions natgw lists.
    pub(crate) fn session_count(&self) -> usize {
        self.gateway.sessions().len()
    }

    /// Waits until natgw lists no session any more.
    pub(crate) fn forgets_within(&self, patience: Duration) {
        self.gateway.wait_until("all sessions are gone", patience, |gateway| gateway.sessions().is_empty());
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if thread::panicking() || !self.judged.get() {
            return;
        }
        // Everything in the provider's subnet but the provider may be the gateway's.
        let public: Vec<Ipv4Addr> =
            (1..ISP.octets()[3]).map(|host| Ipv4Addr::new(203, 0, 113, host)).collect();
        invariants::assert_wan(&self.wan.captured(), &public);
        for tap in [&self.a, &self.b, &self.c] {
            invariants::assert_lan(&tap.captured());
        }
    }
}

/// Where a packet claims to come from, `address:port`.
pub(crate) fn source(packet: &Decoded) -> String {
    packet.source().map_or_else(|| panic!("no source in {packet}"), |source| source.to_string())
}

/// The port, or ICMP id, that a packet claims to come from.
pub(crate) fn port(packet: &Decoded) -> u16 {
    packet.source().map_or_else(|| panic!("no source in {packet}"), |source| source.port())
}

/// P1 with a port.
pub(crate) fn public(port: u16) -> String {
    format!("{P1}:{port}")
}

/// How many of something a case does: fewer than its row says in the normal run, and as many as the row says where
/// `NATGW_FULL` is set (`cargo xtask test behaviour --full --id TCP-27`).
pub(crate) fn scaled<T>(fewer: T, full: T) -> T {
    if env::var_os("NATGW_FULL").is_some() { full } else { fewer }
}

/// Sleeps for so many seconds: timers are what some cases are about.
pub(crate) fn seconds(seconds: f64) {
    thread::sleep(Duration::from_secs_f64(seconds));
}

/// Whether `seen` is `sent` with other addresses, ports or ids.
fn same(sent: &Decoded, seen: &Decoded) -> bool {
    let (Some(sent_ip), Some(seen_ip)) = (&sent.ip, &seen.ip) else { return false };
    if sent_ip.protocol != seen_ip.protocol || sent_ip.offset != seen_ip.offset {
        return false;
    }
    if let (Some(sent), Some(seen)) = (sent.tcp(), seen.tcp()) {
        return (sent.seq, sent.ack, sent.flags) == (seen.seq, seen.ack, seen.flags)
            && sent.payload == seen.payload;
    }
    if let (Some(sent), Some(seen)) = (sent.icmp(), seen.icmp()) {
        let fixed = (sent.kind, sent.code, sent.seq) == (seen.kind, seen.code, seen.seq);
        return fixed && (sent.quoted.is_some() || sent.payload == seen.payload);
    }
    sent.payload() == seen.payload()
}

/// A library made of C, for `LD_PRELOAD`; it goes with the gateway's folder.
pub(crate) fn preload(gateway: &Gateway, source: &str) -> PathBuf {
    let library = gateway.configuration().with_file_name("preload.so");
    let file = library.with_extension("c");
    fs::write(&file, source).expect("write the source");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&file);
    assert!(compiler.status().expect("run cc").success(), "{compiler:?}");
    library
}
