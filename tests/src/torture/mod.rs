//! Faults at random under traffic of which every packet is counted.
//!
//! A lab with numbered packets both ways, transfers between real kernels, and natgw, to which all happens that
//! may happen to a gateway. What is judged: no packet of a flow that was there is lost, no flow changes its
//! outside endpoint, no inside address is seen outside, new flows work soon after each start, and nothing grows.

mod chance;
mod faults;
mod floods;
mod ledger;
mod memory;
mod report;
mod resources;
mod traffic;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

pub use self::report::Report;
use self::{
    chance::Chance,
    faults::{DEADLY, Fault, SURVIVED},
    memory::MemoryGroup,
    report::Times,
    resources::Resources,
    traffic::Traffic,
};
use crate::{Gateway, Lab, Packet, Tap};

/// Short timers, so that what floods leave is gone soon, but for the flows that are judged, which a machine that stands
/// still for some seconds must not end; a table that a flood can fill.
const CONFIGURATION: &str = r#"
[[interface]]
name = "lan"
side = "inside"

[[interface]]
name = "wan"
side = "outside"

[timeouts]
udp = "8s"
udp_ports = { 7000 = "3m", 9000 = "3m" }
icmp = "40s"
tcp_transitory = "8s"
quarantine = "2s"

[limits]
sessions = 60000
sessions_per_source = 8000

[[snat]]
name = "office"
source = ["192.168.0.0/16"]
out = "wan"
to = "masquerade"
"#;

/// Sessions that it has room for.
const SESSIONS: u64 = 60_000;
/// A packet that is under way for longer is lost.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long new flows may take at the utmost before the run is given up.
const GIVE_UP: Duration = Duration::from_secs(20);

/// What to do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long.
    pub time: Duration,
    /// What chance begins with.
    pub seed: u64,
}

/// Tortures natgw, and says how it was; `progress` gets a line now and then.
pub fn torture(options: Options, progress: &mut dyn FnMut(&str)) -> Report {
    // Its kernel forwards, so that the fast path opens sessions by itself; what natgw let by would get out untranslated.
    let lab = Lab::builder().forwarding().build();
    lab.gro_on();
    for host in [&lab.b, &lab.c, &lab.s2, &lab.s3, &lab.attacker] {
        host.mute();
    }
    let mut gateway = Gateway::prepare(&lab, CONFIGURATION);
    gateway.keep_fast_path();
    gateway.restart();
    let mut torture = Torture {
        program: gateway.program().to_path_buf(),
        gateway,
        chance: Chance::new(options.seed),
        prober: (lab.b.tap(), lab.s3.tap()),
        probes: 0,
        strangers: 0,
        forwards: false,
        traffic: Traffic::start(&lab),
        lab: &lab,
        tally: Tally::default(),
        history: Vec::new(),
        excused: Vec::new(),
        memory: MemoryGroup::new(),
        lost: BTreeMap::new(),
        progress,
    };
    torture.prepare_routes();
    let started = Instant::now();
    torture.run(started + options.time);
    torture.finish(options.seed, started.elapsed())
}

/// What is counted on the way.
#[derive(Debug, Default)]
struct Tally {
    rounds: u64,
    faults: BTreeMap<&'static str, u64>,
    /// Every end of a daemon that was not asked for, by what ended it.
    kills: BTreeMap<&'static str, u64>,
    flood_packets: u64,
    /// From a start to the first packet of a new flow.
    starts: Times,
    /// How long the daemon was on a CPU until then.
    costs: Times,
    /// From the end of a flood to the first packet of a new flow.
    recoveries: Times,
    /// Of either kind, where the table was full: nothing live is put out for a new flow, which waits until a session ends.
    full: Times,
    /// Answers to `status`, floods or not.
    status: Times,
    before: Resources,
    most: Resources,
    after: Resources,
    complaints: Vec<String>,
}

/// What was dropped, by whom.
#[derive(Clone, Debug)]
struct Drops {
    /// By the queues of the lab's devices.
    queues: u64,
    /// By full buffers of the kernels' sockets.
    sockets: u64,
    /// By natgw, as it says.
    natgw: BTreeMap<String, u64>,
}

impl Drops {
    /// What has been since an earlier look, in words.
    fn since(&self, before: &Self) -> String {
        let earlier = |reason: &str| before.natgw.get(reason).copied().unwrap_or_default();
        let reasons = self.natgw.iter().filter(|(reason, now)| **now > earlier(reason));
        let reasons: Vec<String> =
            reasons.map(|(reason, now)| format!("{reason} {}", now - earlier(reason))).collect();
        format!(
            "full queues dropped {}, full sockets {}, natgw {}",
            self.queues.saturating_sub(before.queues),
            self.sockets.saturating_sub(before.sockets),
            if reasons.is_empty() { "nothing".to_owned() } else { reasons.join(", ") }
        )
    }
}

/// A run.
struct Torture<'lab> {
    lab: &'lab Lab,
    gateway: Gateway,
    /// The binary under test, which upgrades are copies of.
    program: PathBuf,
    chance: Chance,
    traffic: Traffic,
    /// Where new flows are sent and seen.
    prober: (Tap, Tap),
    probes: u32,
    /// Who sent them last.
    strangers: u8,
    forwards: bool,
    tally: Tally,
    /// When which fault began, and what had been dropped by then.
    history: Vec<(Instant, Fault, Drops)>,
    /// When packets could not but be lost.
    excused: Vec<(Instant, Instant)>,
    /// Where the daemon can be short of memory, if the kernel limits any.
    memory: Option<MemoryGroup>,
    /// Packets lost, by flow: those that had to arrive, and the others.
    lost: BTreeMap<&'static str, (u64, u64)>,
    progress: &'lab mut dyn FnMut(&str),
}

impl Torture<'_> {
    fn run(&mut self, until: Instant) {
        // Tables grow with what they hold and do not shrink, and who takes over holds the links it has found: what
        // both take is no leak.
        self.start();
        let drops = self.drops();
        self.history.push((Instant::now(), Fault::Flood(floods::Flood::Full), drops));
        self.inject(Fault::Flood(floods::Flood::Full));
        thread::sleep(Duration::from_secs(10));
        let start = self.resources();
        (self.tally.before, self.tally.most) = (start, start);
        while Instant::now() < until {
            // One daemon lives through many faults before others end it: what leaks has time to.
            let (mut survived, mut deadly) = (SURVIVED, DEADLY.repeat(4));
            self.chance.shuffle(&mut survived);
            self.chance.shuffle(&mut deadly);
            for fault in survived.into_iter().chain(deadly) {
                if Instant::now() > until {
                    break;
                }
                self.round(fault);
            }
        }
    }

    fn round(&mut self, fault: Fault) {
        self.tally.rounds += 1;
        *self.tally.faults.entry(fault.name()).or_default() += 1;
        let (began, drops) = (Instant::now(), self.drops());
        self.history.push((began, fault, drops));
        self.inject(fault);
        if fault.costs_packets() {
            self.excused.push((began, Instant::now()));
        }
        self.pause(300);
        if let Some(status) = self.gateway.ended() {
            self.complain(format!("natgw ended by itself, {status}, after {}", fault.name()));
            self.start();
        }
        self.look_for_losses();
        if self.tally.rounds.is_multiple_of(5) {
            self.check_sessions();
            let now = self.resources();
            self.tally.most = self.tally.most.most(now);
        }
        if self.tally.rounds.is_multiple_of(20) {
            let rounds = self.tally.rounds;
            let lost: u64 = self.lost.values().map(|(lost, _)| lost).sum();
            (self.progress)(&format!("round {rounds}: {lost} packets lost"));
        }
    }

    /// Ends the daemon at once, and counts that.
    fn kill(&mut self, signal: Signal, how: &'static str) {
        self.gateway.signal(signal);
        *self.tally.kills.entry(how).or_default() += 1;
    }

    /// Starts the daemon, which may still be ending; notes how long it takes from then on until the first packet of a
    /// flow that only it can open, of a host that it knows nothing of, has arrived.
    fn start(&mut self) {
        self.gateway.kill();
        let start = Instant::now();
        self.gateway.launch(&[]);
        if let Some((time, room)) = self.first_flow_since(start) {
            if room { &mut self.tally.starts } else { &mut self.tally.full }.note(time);
            self.tally.costs.note(resources::processor_time(&self.gateway));
        }
        // It answers once all is in place.
        while !self.gateway.socket().exists() && start.elapsed() < GIVE_UP {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Notes how long it takes from now on until new flows work.
    fn recover(&mut self) {
        if let Some((time, room)) = self.first_flow_since(Instant::now()) {
            if room { &mut self.tally.recoveries } else { &mut self.tally.full }.note(time);
        }
    }

    fn wait_for_flows(&mut self) {
        self.first_flow_since(Instant::now());
    }

    /// Opens flows of a host that has had none lately, which only the daemon opens, until one gets through. How long that
    /// took, and whether the table had room when the daemon first answered.
    fn first_flow_since(&mut self, start: Instant) -> Option<(Duration, bool)> {
        self.strangers = (self.strangers + 1) % 70;
        let stranger = Ipv4Addr::new(192, 168, 1, 20 + self.strangers);
        let first = self.probes + 1;
        let mut sessions = None;
        let number_of = |payload: &[u8]| payload.try_into().ok().map(u32::from_be_bytes);
        let time = loop {
            if start.elapsed() > GIVE_UP {
                break None;
            }
            self.probes += 1;
            let port = u16::try_from(50_000 + self.probes % 15_000).expect("a port");
            let remote_port = u16::try_from(1 + self.probes / 15_000 % 60_000).expect("a port");
            let packet = Packet::udp((stranger, port), (self.lab.s3.address, remote_port));
            let (own, remote) = &self.prober;
            own.send(&packet.payload(self.probes.to_be_bytes()));
            let is_new =
                |seen: &crate::Decoded| number_of(seen.payload()).is_some_and(|number| number >= first);
            if let Some(seen) = remote.recv_matching(Duration::from_millis(4), is_new) {
                break Some((seen.at.duration_since(start), sessions.is_none_or(|count| count < SESSIONS)));
            }
            if sessions.is_none() {
                sessions = self.status().and_then(|status| status["sessions"].as_u64());
            }
        };
        let (own, remote) = &self.prober;
        own.clear();
        remote.clear();
        if time.is_none() {
            self.complain(format!("no new flow within {GIVE_UP:?}; natgw's log ends:\n{}", self.log_end()));
        }
        time
    }

    fn look_for_losses(&mut self) {
        let queues = self.queue_drops();
        let mut complaints = Vec::new();
        for ledger in &self.traffic.ledgers {
            let lost = ledger.lost(PATIENCE);
            let is_excused = |sent: Instant| {
                self.excused.iter().any(|&(from, until)| (from..=until).contains(&sent))
                    || self.was_dropped_by_a_queue(sent, queues)
            };
            let (excused, due): (Vec<_>, Vec<_>) = lost.into_iter().partition(|lost| is_excused(lost.sent));
            let entry = self.lost.entry(ledger.name).or_default();
            entry.0 += due.len() as u64;
            entry.1 += excused.len() as u64;
            if let (Some(first), Some(last)) =
                (due.iter().min_by_key(|lost| lost.number), due.iter().max_by_key(|lost| lost.number))
            {
                complaints.push((ledger.name, due.len(), *first, *last));
            }
        }
        for (name, count, first, last) in complaints {
            let (number, end) = (first.number, last.number);
            let (first, last) = (self.when(first.sent), self.when(last.sent));
            self.complain(format!(
                "{name}: {count} lost, number {number} to {end}, the first {first}, the last {last}"
            ));
        }
        // Only packets that are under way may still be excused.
        self.excused.retain(|(_, until)| until.elapsed() < 10 * PATIENCE);
    }

    /// Frames that found a full queue of a device of the lab's: the wire is slower than the flood. natgw has sent
    /// them, or has not seen them yet.
    fn queue_drops(&self) -> u64 {
        let hosts = [&self.lab.gateway, &self.lab.isp, &self.lab.lan()];
        let devices = hosts
            .map(|host| host.within(|| fs::read_to_string("/proc/thread-self/net/dev")).unwrap_or_default());
        let lines = devices.iter().flat_map(|text| text.lines()).filter_map(|line| line.split_once(':'));
        // What is received: bytes, packets, errs, drop, …; the same of what is sent from the ninth on.
        let drops = lines.flat_map(|(_, numbers)| {
            let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            [3, 11].map(|at| numbers.get(at).copied().unwrap_or_default())
        });
        drops.sum()
    }

    /// What has been dropped so far, by whom.
    fn drops(&mut self) -> Drops {
        let snmp = [&self.lab.a, &self.lab.s1]
            .map(|host| host.within(|| fs::read_to_string("/proc/thread-self/net/snmp")).unwrap_or_default());
        // `Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors …`, then the same with numbers.
        let sockets = snmp.iter().flat_map(|text| text.lines()).filter_map(|line| line.strip_prefix("Udp: "));
        let sockets = sockets.filter_map(|line| line.split(' ').nth(4)?.parse::<u64>().ok()).sum();
        let mut natgw = BTreeMap::new();
        for row in
            self.ask().iter().flat_map(|status| status["drops"].as_array().cloned().unwrap_or_default())
        {
            natgw.insert(
                row["reason"].as_str().unwrap_or_default().to_owned(),
                row["packets"].as_u64().unwrap_or_default(),
            );
        }
        Drops { queues: self.queue_drops(), sockets, natgw }
    }

    /// Whether queues dropped something in the round that a moment was in; `now` is how much they have by now.
    fn was_dropped_by_a_queue(&self, moment: Instant, now: u64) -> bool {
        let Some(round) = self.history.iter().rposition(|(began, ..)| *began <= moment) else { return false };
        let (_, fault, before) = &self.history[round];
        let after = self.history.get(round + 1).map_or(now, |(_, _, drops)| drops.queues);
        fault.is_flood() && after > before.queues
    }

    /// In which round a moment was, how long after its fault began, and what was dropped in it.
    fn when(&mut self, moment: Instant) -> String {
        let Some(round) = self.history.iter().rposition(|(began, ..)| *began <= moment) else {
            return "before all rounds".to_owned();
        };
        let after = match self.history.get(round + 1) {
            Some((_, _, drops)) => drops.clone(),
            None => self.drops(),
        };
        let (began, fault, before) = &self.history[round];
        format!(
            "{:.3} s after round {round}, {}, began, in which {}",
            moment.duration_since(*began).as_secs_f64(),
            fault.name(),
            after.since(before)
        )
    }

    /// No outside endpoint is given twice.
    fn check_sessions(&mut self) {
        let mut owners = HashMap::new();
        for session in self.gateway.sessions() {
            let text = |field: &str| session[field].as_str().unwrap_or_default().to_owned();
            let owner = owners.entry((text("protocol"), text("outside"))).or_insert_with(|| text("inside"));
            if *owner != text("inside") {
                let both = format!("{} and {} have one endpoint: {session}", owner, text("inside"));
                self.tally.complaints.push(both);
            }
        }
    }

    fn resources(&self) -> Resources {
        Resources::of(&self.gateway)
    }

    fn pause(&mut self, at_most: u32) {
        thread::sleep(Duration::from_millis(u64::from(self.chance.below(at_most))));
    }

    fn complain(&mut self, what: String) {
        (self.progress)(&what);
        self.tally.complaints.push(what);
    }

    fn log_end(&self) -> String {
        let log = self.gateway.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// Lets all come to rest, counts, and takes natgw away.
    fn finish(mut self, seed: u64, time: Duration) -> Report {
        // What floods have left expires within eight seconds, and ports rest for two.
        thread::sleep(Duration::from_secs(4));
        self.traffic.stop();
        self.look_for_losses();
        self.check_sessions();
        self.inject(Fault::Flood(floods::Flood::Full));
        self.gateway.output(&["session", "flush"]);
        thread::sleep(Duration::from_secs(1));
        self.tally.after = self.resources();
        self.tally.most = self.tally.most.most(self.tally.after);
        let panicked = self.gateway.log().matches("panicked").count();
        if panicked > 0 {
            self.complain(format!("{panicked} panics are in natgw's log"));
        }
        let mut flows = Vec::new();
        for ledger in &self.traffic.ledgers {
            let (sent, arrived, moved) = ledger.totals();
            let (lost, excused) = self.lost.get(ledger.name).copied().unwrap_or_default();
            flows.push(report::Flow { name: ledger.name, sent, arrived, lost, excused, moved });
        }
        let transfers =
            self.traffic.transfers.iter().map(|transfer| report::Transferred::of(transfer)).collect();
        let left_behind = self.uninstall();
        let leaks = self.gateway.leaks();
        Report { seed, time, tally: self.tally, flows, transfers, leaks, left_behind }
    }

    /// A daemon that was not told to keep its fast path takes everything along.
    fn uninstall(&mut self) -> Vec<String> {
        self.gateway.stop();
        self.gateway.drop_fast_path();
        self.gateway.restart();
        // A transfer's kernel may still say goodbye: without natgw the lab's would forward it as it is.
        self.lab.gateway.sysctl("ipv4.ip_forward", "0");
        self.gateway.stop();
        let mut left = self.gateway.pins();
        let programs = self.lab.gateway.succeed("ip -details link show");
        left.extend(programs.lines().filter(|line| line.contains("prog/xdp")).map(str::to_owned));
        left
    }
}
