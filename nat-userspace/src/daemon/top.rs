//! Rates for `natgw top`: two looks at all sessions, an interval apart, and what moved between them.
//!
//! The worker goes through the table in pieces, between two rounds of frames; sums and differences are made on the
//! client's thread.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant, SystemTime};

use nat_common::Reason;

use super::control::{PIECE, Post};
use super::worker::Worker;
use crate::api::{ApiError, CpuUse, PacketRates, Reply, Row, TopDrop, TopReport, TopRow, Traffic};
use crate::datapath::Traced;
use crate::gateway::{FlowTotals, Origin};
use crate::hash::HashMap;

/// How often it is looked whether the client is still there.
const LOOK_AFTER: Duration = Duration::from_millis(250);
/// Bounds of the interval.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_mins(1);

/// Counters at an instant.
struct Counters {
    at: Instant,
    uptime: u64,
    sessions: [u64; 2],
    opened: u64,
    reasons: Vec<u64>,
    fast_path: Option<Duration>,
    slow_path: Duration,
}

impl Counters {
    fn read(worker: &Worker) -> Self {
        let datapath = worker.kernel.datapath.run_time();
        let traced = worker.tracers.programs().and_then(Traced::run_time);
        Self {
            at: Instant::now(),
            uptime: worker.started.elapsed().as_secs(),
            sessions: [worker.gateway.session_count(), worker.gateway.session_limit()].map(u64::from),
            opened: worker.gateway.opened().values().sum(),
            reasons: Reason::ALL.iter().map(|&reason| worker.count(reason)).collect(),
            fast_path: datapath.map(|own| own + traced.unwrap_or_default()),
            slow_path: cpu_time(),
        }
    }
}

/// CPU that this process has used.
fn cpu_time() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let part = |part: i64| u64::try_from(part).unwrap_or(0);
    Duration::new(part(used.tv_sec), u32::try_from(used.tv_nsec).unwrap_or(0))
}

/// What a host, a remote or a rule has.
#[derive(Clone, Copy, Default)]
struct Sum {
    sessions: u64,
    new: u64,
    packets: [u64; 2],
    bytes: [u64; 2],
}

impl Sum {
    fn add(&mut self, is_new: bool, packets: [u64; 2], bytes: [u64; 2]) {
        self.sessions += 1;
        self.new += u64::from(is_new);
        for way in 0..2 {
            self.packets[way] += packets[way];
            self.bytes[way] += bytes[way];
        }
    }

    fn traffic(&self, seconds: f64) -> Traffic {
        Traffic {
            packets_out: rate(self.packets[0], seconds),
            packets_in: rate(self.packets[1], seconds),
            bits_out: 8.0 * rate(self.bytes[0], seconds),
            bits_in: 8.0 * rate(self.bytes[1], seconds),
        }
    }

    fn row(&self, name: String, seconds: f64) -> TopRow {
        TopRow { name, sessions: self.sessions, new: rate(self.new, seconds), traffic: self.traffic(seconds) }
    }
}

/// So many in so many seconds.
#[expect(clippy::cast_precision_loss, reason = "a rate of 2^53 would be wrong by one")]
pub fn rate(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

/// Sums of one look.
#[derive(Default)]
struct Sums {
    all: Sum,
    hosts: HashMap<Ipv4Addr, Sum>,
    remotes: HashMap<Ipv4Addr, Sum>,
    rules: HashMap<Origin, Sum>,
}

/// What was last seen of a session.
#[derive(Clone, Copy, Default)]
struct Last {
    /// When it was opened, in milliseconds from the daemon's start, and one more: 0 is none.
    opened: u64,
    packets: [u64; 2],
    bytes: [u64; 2],
}

/// What was last seen, by slot.
#[derive(Default)]
struct Memory(Vec<Last>);

impl Memory {
    /// What a session carried since it was last seen, and whether it is new.
    fn moved(&mut self, slot: u32, flow: &FlowTotals) -> (bool, [u64; 2], [u64; 2]) {
        let slot = slot as usize;
        if self.0.len() <= slot {
            self.0.resize(slot + 1, Last::default());
        }
        let now = Last { opened: flow.opened + 1, packets: flow.packets, bytes: flow.bytes };
        let last = std::mem::replace(&mut self.0[slot], now);
        if last.opened != now.opened {
            return (true, now.packets, now.bytes);
        }
        let since = |now: [u64; 2], last: [u64; 2]| [0, 1].map(|way| now[way].saturating_sub(last[way]));
        (false, since(now.packets, last.packets), since(now.bytes, last.bytes))
    }
}

impl Post {
    /// Sends rates until the client goes.
    pub(super) fn top(&self, interval: Duration, most: usize, reply: &mut dyn Reply) -> Result<(), ApiError> {
        let interval = interval.clamp(SHORTEST, LONGEST);
        let mut memory = Memory::default();
        let mut before = self.ask(|worker| Counters::read(worker))?;
        self.look(&mut memory)?;
        loop {
            while let Some(left) = interval.checked_sub(before.at.elapsed()).filter(|left| !left.is_zero()) {
                if !reply.flush()? {
                    return Ok(());
                }
                std::thread::sleep(left.min(LOOK_AFTER));
            }
            let now = self.ask(|worker| Counters::read(worker))?;
            let sums = self.look(&mut memory)?;
            let mut report = self.report(&before, &now, &sums, most)?;
            // The kernel measures programs only while somebody wants it, who may not have had the right to ask.
            if now.fast_path == before.fast_path {
                report.cpu.fast_path = None;
            }
            reply.row(Row::Top(&report))?;
            if !reply.flush()? {
                return Ok(());
            }
            before = now;
        }
    }

    /// Looks at every session once.
    fn look(&self, memory: &mut Memory) -> Result<Sums, ApiError> {
        let mut sums = Sums::default();
        let mut start = 0;
        loop {
            let (flows, slots) = self.ask(move |worker| {
                let slots = worker.gateway.session_slots();
                let flows: Vec<(u32, FlowTotals)> = (start..slots.min(start + PIECE))
                    .filter_map(|slot| Some((slot, worker.gateway.totals(&worker.kernel, slot)?)))
                    .collect();
                (flows, slots)
            })?;
            for (slot, flow) in flows {
                let (is_new, packets, bytes) = memory.moved(slot, &flow);
                let own = [
                    &mut sums.all,
                    sums.hosts.entry(flow.inside).or_default(),
                    sums.remotes.entry(flow.remote).or_default(),
                    sums.rules.entry(flow.origin).or_default(),
                ];
                for sum in own {
                    sum.add(is_new, packets, bytes);
                }
            }
            start += PIECE;
            if start >= slots {
                return Ok(sums);
            }
        }
    }

    fn report(
        &self,
        before: &Counters,
        now: &Counters,
        sums: &Sums,
        most: usize,
    ) -> Result<TopReport, ApiError> {
        let seconds = now.at.duration_since(before.at).as_secs_f64();
        let share =
            |before: Duration, now: Duration| 100.0 * now.saturating_sub(before).as_secs_f64() / seconds;
        let counted = |wanted: &dyn Fn(Reason) -> bool| {
            let counts = Reason::ALL.iter().zip(now.reasons.iter().zip(&before.reasons));
            let moved = counts.filter(|(reason, _)| wanted(**reason));
            rate(moved.map(|(_, (now, before))| now.saturating_sub(*before)).sum(), seconds)
        };
        let names: Vec<Origin> = sums.rules.keys().copied().collect();
        let names = self.ask(move |worker| {
            let rules = worker.gateway.rules();
            names.into_iter().map(|origin| (origin, rules.name(origin))).collect::<Vec<_>>()
        })?;
        // A rule may stand behind more than one origin.
        let mut rules: HashMap<String, Sum> = HashMap::default();
        for (origin, name) in names {
            let sum = sums.rules.get(&origin).copied().unwrap_or_default();
            let rule = rules.entry(name).or_default();
            rule.sessions += sum.sessions;
            rule.new += sum.new;
            for way in 0..2 {
                rule.packets[way] += sum.packets[way];
                rule.bytes[way] += sum.bytes[way];
            }
        }
        Ok(TopReport {
            time: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            interval: seconds,
            uptime: now.uptime,
            sessions: now.sessions[0],
            sessions_limit: now.sessions[1],
            new: rate(now.opened.saturating_sub(before.opened), seconds),
            packets: PacketRates {
                translated: counted(&|reason| {
                    matches!(
                        reason,
                        Reason::Translated
                            | Reason::TranslatedStatic
                            | Reason::TranslatedByStack
                            | Reason::Relayed
                    )
                }),
                passed: counted(&|reason| reason == Reason::Passed),
                punted: counted(&|reason| reason == Reason::Punted),
                dropped: counted(&|reason| reason.is_drop()),
            },
            traffic: sums.all.traffic(seconds),
            cpu: CpuUse {
                fast_path: now.fast_path.zip(before.fast_path).map(|(now, before)| share(before, now)),
                slow_path: share(before.slow_path, now.slow_path),
            },
            hosts: busiest(sums.hosts.iter().map(|(host, sum)| sum.row(host.to_string(), seconds)), most),
            remotes: busiest(
                sums.remotes.iter().map(|(remote, sum)| sum.row(remote.to_string(), seconds)),
                most,
            ),
            rules: busiest(rules.into_iter().map(|(name, sum)| sum.row(name, seconds)), most),
            drops: drops(before, now, seconds),
        })
    }
}

/// Those with the most bits, then those with the most sessions.
fn busiest(rows: impl Iterator<Item = TopRow>, most: usize) -> Vec<TopRow> {
    let mut rows: Vec<TopRow> = rows.collect();
    let bits = |row: &TopRow| row.traffic.bits_out + row.traffic.bits_in;
    rows.sort_by(|one, other| {
        let by_bits = bits(other).total_cmp(&bits(one));
        by_bits.then(other.sessions.cmp(&one.sessions)).then_with(|| one.name.cmp(&other.name))
    });
    rows.truncate(most);
    rows
}

fn drops(before: &Counters, now: &Counters, seconds: f64) -> Vec<TopDrop> {
    let counts = Reason::ALL.iter().zip(now.reasons.iter().zip(&before.reasons));
    let mut drops: Vec<TopDrop> = counts
        .filter(|(reason, (now, _))| reason.is_drop() && **now > 0)
        .map(|(reason, (now, before))| TopDrop {
            reason: reason.name().to_owned(),
            description: reason.description().to_owned(),
            rate: rate(now.saturating_sub(*before), seconds),
            packets: *now,
        })
        .collect();
    drops.sort_by(|one, other| other.rate.total_cmp(&one.rate).then(other.packets.cmp(&one.packets)));
    drops
}
