//! What can go wrong, made to happen.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::Ipv4Addr,
    os::unix::net::UnixStream,
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::{CONFIGURATION, SESSIONS, Torture, floods::Flood};
use crate::{host::Host, lab::P1};

/// An outside address that comes and goes.
const PASSING: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
/// The provider's router has a second address, for routes to flip to.
const OTHER_ROUTER: &str = "203.0.113.253";

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// SIGKILL, and a new daemon after a while.
    Kill,
    /// SIGABRT, likewise.
    Abort,
    /// SIGKILL while it writes new flows down.
    KillUnderFlood,
    /// SIGKILL at some moment of its start, several times over.
    KillWhileStarting,
    /// The kernel has no memory for it.
    OutOfMemory,
    /// Another file takes its place.
    Upgrade,
    /// It is stopped for a second, and floods go on: its rings are full.
    Hang,
    /// The configuration changes.
    Reload,
    /// The configuration is cut off somewhere.
    BrokenReload,
    /// Clients of the control socket that hang, send garbage or half a request.
    BadClients,
    /// More than it can take.
    Flood(Flood),
    /// The default route goes by another router, which is the same one.
    RouteFlip,
    /// An address is added outside and goes again.
    Address,
    /// The link inside goes down and up.
    LanFlap,
    /// The link outside goes down and up.
    WanFlap,
    /// The provider's router has another Ethernet address.
    NewMac,
}

/// Those that the daemon lives through.
pub(super) const SURVIVED: [Fault; 18] = [
    Fault::Reload,
    Fault::BrokenReload,
    Fault::BadClients,
    Fault::Hang,
    Fault::RouteFlip,
    Fault::Address,
    Fault::LanFlap,
    Fault::WanFlap,
    Fault::NewMac,
    Fault::Flood(Flood::Udp),
    Fault::Flood(Flood::Syn),
    Fault::Flood(Flood::Ping),
    Fault::Flood(Flood::Spoofed),
    Fault::Flood(Flood::Forged),
    Fault::Flood(Flood::Fragments),
    Fault::Flood(Flood::Errors),
    Fault::Flood(Flood::Inbound),
    Fault::Flood(Flood::Full),
];

/// Those that end it.
pub(super) const DEADLY: [Fault; 8] = [
    Fault::Kill,
    Fault::Kill,
    Fault::Abort,
    Fault::KillUnderFlood,
    Fault::KillUnderFlood,
    Fault::KillWhileStarting,
    Fault::OutOfMemory,
    Fault::Upgrade,
];

/// Starts that are killed in a row.
const STARTS: u32 = 16;

impl Fault {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kill => "SIGKILL",
            Self::Abort => "SIGABRT",
            Self::KillUnderFlood => "SIGKILL under a flood of flows",
            Self::KillWhileStarting => "SIGKILL while starting",
            Self::OutOfMemory => "out of memory",
            Self::Upgrade => "upgrade",
            Self::Hang => "SIGSTOP for a second under a flood",
            Self::Reload => "reload",
            Self::BrokenReload => "reload of a truncated file",
            Self::BadClients => "bad clients of the control socket",
            Self::Flood(flood) => flood.name(),
            Self::RouteFlip => "route flip",
            Self::Address => "address added and removed",
            Self::LanFlap => "inside link down and up",
            Self::WanFlap => "outside link down and up",
            Self::NewMac => "next hop changes its MAC",
        }
    }

    /// Whether it sends more than the wire takes.
    pub(super) fn is_flood(self) -> bool {
        matches!(self, Self::Flood(_) | Self::KillUnderFlood | Self::OutOfMemory | Self::Hang)
    }

    /// Whether packets are lost by the fault itself, and not by natgw: there is no link, or nobody at its end.
    pub(super) fn costs_packets(self) -> bool {
        matches!(self, Self::LanFlap | Self::WanFlap | Self::NewMac)
    }
}

impl Torture<'_> {
    /// Makes it happen, and waits until natgw is as before.
    pub(super) fn inject(&mut self, fault: Fault) {
        match fault {
            Fault::Kill => {
                self.kill(Signal::KILL, "SIGKILL");
                self.pause(400);
                self.start();
            }
            Fault::Abort => {
                self.kill(Signal::ABORT, "SIGABRT");
                self.pause(400);
                self.start();
            }
            Fault::KillUnderFlood => {
                let flood = Flood::Spoofed.prepare(self.lab, &mut self.chance);
                let moment = Duration::from_micros(u64::from(self.chance.below(200_000)));
                thread::scope(|scope| {
                    scope.spawn(move || flood.send_for(Duration::from_millis(300)));
                    thread::sleep(moment);
                    self.kill(Signal::KILL, "SIGKILL under a flood");
                });
                self.start();
            }
            Fault::KillWhileStarting => {
                self.kill(Signal::KILL, "SIGKILL");
                for _ in 0..STARTS {
                    self.gateway.launch(&[]);
                    let moment = u64::from(self.chance.below(250_000));
                    thread::sleep(Duration::from_micros(moment));
                    self.kill(Signal::KILL, "SIGKILL of a start, or soon after");
                }
                self.start();
            }
            Fault::OutOfMemory => self.out_of_memory(),
            Fault::Upgrade => self.upgrade(),
            Fault::Hang => self.hang(),
            Fault::Reload => self.reload(),
            Fault::BrokenReload => self.broken_reload(),
            Fault::BadClients => self.bad_clients(),
            Fault::Flood(flood) => self.flood(flood),
            Fault::RouteFlip => {
                for router in [OTHER_ROUTER, "203.0.113.254"] {
                    self.lab.gateway.ip(&format!("route replace default via {router}"));
                    self.pause(300);
                }
            }
            Fault::Address => {
                self.lab.gateway.ip(&format!("addr add {PASSING}/24 dev wan"));
                self.pause(300);
                self.lab.gateway.ip(&format!("addr del {PASSING}/24 dev wan"));
            }
            Fault::LanFlap => self.flap("lan"),
            Fault::WanFlap => self.flap("wan"),
            Fault::NewMac => self.new_mac(),
        }
    }

    /// The router's second address.
    pub(super) fn prepare_routes(&self) {
        self.lab.isp.ip(&format!("addr add {OTHER_ROUTER}/24 dev gw"));
    }

    fn upgrade(&mut self) {
        let mut other = self.gateway.configuration().with_file_name("natgw-other");
        if self.gateway.program() == other {
            other.set_file_name("natgw-another");
        }
        fs::copy(&self.program, &other).expect("copy natgw");
        self.gateway.stop();
        self.gateway.use_program(&other);
        self.start();
    }

    /// What runs gets no more memory, under a flood that wants some; what is started has too little for a start.
    fn out_of_memory(&mut self) {
        let Some(group) = self.memory.take() else { return };
        let before = group.killed();
        let limited = |gateway: &crate::Gateway, bytes| {
            group.limit(bytes).and_then(|()| group.take_in(gateway.id().unwrap_or_default()))
        };
        let mut failed = limited(&self.gateway, 64 << 10).err();
        let flood = Flood::Full.prepare(self.lab, &mut self.chance);
        thread::scope(|scope| {
            scope.spawn(move || flood.send_for(Duration::from_millis(700)));
            let deadline = Instant::now() + Duration::from_secs(3);
            while self.gateway.ended().is_none() && Instant::now() < deadline {
                self.gateway.output(&["session", "list", "--json"]);
            }
        });
        for _ in 0..3 {
            self.gateway.kill();
            failed = failed.or(group.free().err());
            let bytes = u64::from(1 + self.chance.below(40)) << 20;
            self.gateway.launch(&[]);
            failed = failed.or(limited(&self.gateway, bytes).err());
            let deadline = Instant::now() + Duration::from_secs(2);
            while self.gateway.ended().is_none() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(5));
            }
        }
        self.gateway.kill();
        *self.tally.kills.entry("out of memory").or_default() += group.killed() - before;
        if let Some(error) = failed.or(group.free().err()) {
            self.complain(format!("the group's memory could not be limited: {error}"));
        }
        self.memory = Some(group);
        self.start();
    }

    fn hang(&mut self) {
        let flood = Flood::Spoofed.prepare(self.lab, &mut self.chance);
        self.gateway.signal(Signal::STOP);
        self.tally.flood_packets += flood.send_for(Duration::from_millis(700));
        self.pause(300);
        self.gateway.signal(Signal::CONT);
        self.recover();
    }

    fn reload(&mut self) {
        self.forwards = !self.forwards;
        let forward = "[[forward]]\nexternal = \"wan:1023\"\ninternal = \"192.168.1.12:80\"\n";
        self.gateway.configure(&if self.forwards {
            format!("{CONFIGURATION}{forward}")
        } else {
            CONFIGURATION.to_owned()
        });
        let output = self.gateway.output(&["reload"]);
        if !output.status.success() {
            self.complain(format!("reload: {}", String::from_utf8_lossy(&output.stderr)));
        }
    }

    fn broken_reload(&mut self) {
        let file = self.gateway.configuration();
        let whole = fs::read(&file).expect("read the configuration");
        // What is left of the first interface's table alone is never a whole configuration.
        fs::write(&file, &whole[..self.chance.below(40) as usize]).expect("write half of it");
        if self.gateway.output(&["reload"]).status.success() {
            self.complain("a truncated configuration was taken".to_owned());
        }
        fs::write(&file, &whole).expect("write the configuration");
    }

    fn bad_clients(&mut self) {
        let long = vec![b'['; 100_000];
        let texts: [&[u8]; 5] = [
            b"",
            b"{\"version\":1,\"requ",
            b"\xff\xfe\0\0\n",
            b"{\"version\":1,\"request\":{\"verb\":\"session-list\"}}\n",
            &long,
        ];
        let connect = |text: &&[u8]| {
            let mut client = UnixStream::connect(self.gateway.socket()).ok()?;
            let _ = client.set_nonblocking(true);
            let _ = client.write_all(text);
            Some(client)
        };
        // None reads its answer; all hang up only later.
        let clients: Vec<_> = texts.iter().cycle().take(20).filter_map(connect).collect();
        self.pause(200);
        self.ask();
        drop(clients);
    }

    fn flood(&mut self, flood: Flood) {
        let prepared = flood.prepare(self.lab, &mut self.chance);
        let time = Duration::from_millis(u64::from(500 + self.chance.below(700)));
        let sent = thread::scope(|scope| {
            let sender = scope.spawn(move || prepared.send_for(time));
            while !sender.is_finished() {
                self.ask();
                thread::sleep(Duration::from_millis(50));
            }
            sender.join().expect("a flood ends")
        });
        self.tally.flood_packets += sent;
        if flood == Flood::Full {
            self.wait_for_room();
        }
        self.recover();
    }

    /// Sessions of a flood have to end by themselves: nothing live is put out for them.
    fn wait_for_room(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(40);
        while self
            .ask()
            .is_none_or(|status| status["sessions"].as_u64().is_none_or(|count| count > SESSIONS * 2 / 3))
        {
            if Instant::now() > deadline {
                return self.complain("a table that a flood has filled is not free again".to_owned());
            }
            thread::sleep(Duration::from_millis(200));
        }
    }

    fn flap(&mut self, interface: &str) {
        let gateway = &self.lab.gateway;
        gateway.ip(&format!("link set {interface} down"));
        self.pause(400);
        gateway.ip(&format!("link set {interface} up"));
        if interface == "wan" {
            gateway.ip("route replace default via 203.0.113.254");
        }
        self.wait_for_flows();
        // Neighbours are asked for anew, and the switch learns.
        thread::sleep(Duration::from_secs(2));
    }

    fn new_mac(&mut self) {
        let mac = [2, 0, 0, 0, 2, 0x10 + self.chance.short(200).to_be_bytes()[1]];
        self.lab.isp.ip(&format!("link set gw address 02:00:00:00:02:{:02x}", mac[5]));
        // It speaks up from both of its addresses: nobody else can know.
        let router = Host { mac, ..self.lab.isp.clone() }.tap();
        for address in ["203.0.113.254", OTHER_ROUTER] {
            let address: Ipv4Addr = address.parse().expect("an address");
            // Ethernet for IPv4, a request: who is there, and where to answer (RFC 826).
            let mut frame = [[0xff; 6], mac].concat();
            frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
            frame.extend([mac.as_slice(), &address.octets(), &[0; 6], &P1.octets()].concat());
            router.send_frame(&frame);
        }
        self.wait_for_flows();
        thread::sleep(Duration::from_secs(1));
    }

    /// Asks for the status: what it says, unless there is no answer; how long that takes is noted.
    pub(super) fn ask(&mut self) -> Option<serde_json::Value> {
        let start = Instant::now();
        let answer = self.status();
        self.tally.status.note(start.elapsed());
        if answer.is_none() {
            self.complain("no answer to status".to_owned());
        }
        answer
    }

    /// What the daemon says of its status, if it answers.
    pub(super) fn status(&self) -> Option<serde_json::Value> {
        let mut client = UnixStream::connect(self.gateway.socket()).ok()?;
        client.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        client.write_all(b"{\"version\":1,\"request\":{\"verb\":\"status\"}}\n").ok()?;
        let mut text = String::new();
        client.read_to_string(&mut text).ok()?;
        serde_json::from_str::<serde_json::Value>(&text).ok().map(|mut line| line["done"].take())
    }
}
