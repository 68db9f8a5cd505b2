//! How a run was, for people and for machines.

use std::{
    fmt::{self, Display, Formatter},
    sync::{PoisonError, atomic::Ordering},
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    GIVE_UP, Tally,
    traffic::{Traffic, Transfer},
};

/// How long new flows may take after a start.
const START: Duration = Duration::from_millis(300);
/// How long an answer to `status` may take, and new flows after a flood.
const SECOND: Duration = Duration::from_secs(1);
/// How much memory may come and go between two looks, in KiB.
const SWAY: u64 = 16 << 10;

/// See the module.
#[derive(Debug)]
pub struct Report {
    pub(super) seed: u64,
    pub(super) time: Duration,
    pub(super) tally: Tally,
    pub(super) flows: Vec<Flow>,
    pub(super) transfers: Vec<Transferred>,
    pub(super) leaks: Vec<String>,
    pub(super) left_behind: Vec<String>,
}

/// One direction of one flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flow {
    pub(super) name: &'static str,
    pub(super) sent: u64,
    pub(super) arrived: u64,
    /// That had to arrive.
    pub(super) lost: u64,
    /// That were lost with their link, or in its full queue.
    pub(super) excused: u64,
    /// How often its outside endpoint changed.
    pub(super) moved: u64,
}

/// A TCP connection of two kernels.
#[derive(Clone, Debug)]
pub(super) struct Transferred {
    name: &'static str,
    bytes: u64,
    retransmitted: u64,
    longest_stall: u64,
    broken: Option<String>,
}

impl Transferred {
    pub(super) fn of(transfer: &Transfer) -> Self {
        Self {
            name: transfer.name,
            bytes: transfer.bytes.load(Ordering::Relaxed),
            retransmitted: transfer.retransmitted.load(Ordering::Relaxed),
            longest_stall: transfer.longest_stall.load(Ordering::Relaxed),
            broken: transfer.broken.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

/// Times of one kind.
#[derive(Clone, Debug, Default)]
pub(super) struct Times(Vec<Duration>);

impl Times {
    pub(super) fn note(&mut self, time: Duration) {
        self.0.push(time);
    }

    fn sorted(&self) -> Vec<Duration> {
        let mut times = self.0.clone();
        times.sort_unstable();
        times
    }

    fn median(&self) -> Duration {
        self.sorted().get(self.0.len() / 2).copied().unwrap_or_default()
    }

    fn longest(&self) -> Duration {
        self.0.iter().max().copied().unwrap_or_default()
    }

    fn beyond(&self, bar: Duration) -> usize {
        self.0.iter().filter(|time| **time > bar).count()
    }

    fn json(&self, bar: Duration) -> Value {
        json!({
            "count": self.0.len(),
            "median_ms": milliseconds(self.median()),
            "longest_ms": milliseconds(self.longest()),
            "bar_ms": milliseconds(bar),
            "beyond_bar": self.beyond(bar),
        })
    }

    fn row(&self, what: &str, bar: Duration, to: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            to,
            "| {what} | {} | {:.0} ms | {:.0} ms | {:.0} ms | {} |",
            self.0.len(),
            milliseconds(self.median()),
            milliseconds(self.longest()),
            milliseconds(bar),
            self.beyond(bar)
        )
    }
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}

impl Report {
    /// What must never be: losses, moves, leaks, growth, crashes, broken transfers.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = self.tally.complaints.clone();
        for flow in &self.flows {
            if flow.moved > 0 {
                failures.push(format!("{} changed its outside endpoint {} times", flow.name, flow.moved));
            }
            if flow.arrived == 0 {
                failures.push(format!("{}: nothing arrived at all", flow.name));
            }
        }
        for transfer in &self.transfers {
            failures.extend(transfer.broken.iter().map(|why| format!("{}: {why}", transfer.name)));
        }
        failures.extend(self.leaks.iter().take(10).cloned());
        failures.extend(self.left_behind.iter().map(|what| format!("uninstalling leaves {what}")));
        let Tally { before, after, .. } = &self.tally;
        for (what, before, after, sway) in [
            ("file descriptors", before.descriptors, after.descriptors, 0),
            ("threads", before.threads, after.threads, 0),
            ("pins", before.pins, after.pins, 0),
            ("KiB of memory", before.memory, after.memory, SWAY),
        ] {
            if after > before + sway {
                failures.push(format!("{after} {what} at the end, {before} at the beginning"));
            }
        }
        failures
    }

    /// The bars that a busy machine may miss.
    pub fn slow(&self) -> Vec<String> {
        let Tally { starts, recoveries, status, .. } = &self.tally;
        let kinds =
            [("starts", starts, START), ("recoveries", recoveries, SECOND), ("answers", status, SECOND)];
        let slow = kinds.into_iter().filter(|(_, times, bar)| times.beyond(*bar) > 0);
        slow.map(|(what, times, bar)| format!("{} {what} took longer than {bar:?}", times.beyond(bar)))
            .collect()
    }

    /// The report for machines.
    pub fn json(&self) -> Value {
        let Tally { starts, costs, recoveries, full, status, before, most, after, .. } = &self.tally;
        let resources = |of: &super::Resources| {
            json!({
                "descriptors": of.descriptors, "threads": of.threads, "resident_kib": of.memory, "pins": of.pins,
            })
        };
        let flow = |flow: &Flow| {
            json!({
                "name": flow.name, "sent": flow.sent, "arrived": flow.arrived, "lost": flow.lost,
                "lost_with_the_link_or_in_its_queue": flow.excused, "moved": flow.moved,
            })
        };
        let transfer = |transfer: &Transferred| {
            json!({
                "name": transfer.name, "bytes": transfer.bytes, "retransmitted": transfer.retransmitted,
                "longest_stall_ms": transfer.longest_stall, "broken": transfer.broken,
            })
        };
        json!({
            "seed": self.seed,
            "seconds": self.time.as_secs(),
            "rounds": self.tally.rounds,
            "faults": self.tally.faults,
            "kills": self.tally.kills,
            "flood_packets": self.tally.flood_packets,
            "flows": self.flows.iter().map(flow).collect::<Vec<_>>(),
            "transfers": self.transfers.iter().map(transfer).collect::<Vec<_>>(),
            "start": starts.json(START),
            "start_on_cpu": costs.json(START),
            "recovery": recoveries.json(SECOND),
            "until_the_full_table_had_room": full.json(GIVE_UP),
            "status": status.json(SECOND),
            "resources": { "before": resources(before), "most": resources(most), "after": resources(after) },
            "stood_still_ms": milliseconds(Traffic::stood_still()),
            "leaks": self.leaks.len(),
            "left_behind": self.left_behind,
            "failures": self.failures(),
            "slow": self.slow(),
        })
    }
}

impl Display for Report {
    fn fmt(&self, to: &mut Formatter<'_>) -> fmt::Result {
        let tally = &self.tally;
        let total = |of: fn(&Flow) -> u64| self.flows.iter().map(of).sum::<u64>();
        let kills: u64 = tally.kills.values().sum();
        let seconds = self.time.as_secs();
        writeln!(
            to,
            "{seconds} s, seed {}: {} rounds, the daemon killed {kills} times",
            self.seed, tally.rounds
        )?;
        writeln!(
            to,
            "packets sent: {}, packets lost: {}, lost with their link or in its full queue: {}, packets of floods: {}\n",
            total(|flow| flow.sent),
            total(|flow| flow.lost),
            total(|flow| flow.excused),
            tally.flood_packets
        )?;
        writeln!(to, "| fault | times |\n|---|--:|")?;
        for (name, times) in &tally.faults {
            writeln!(to, "| {name} | {times} |")?;
        }
        writeln!(to, "\n| the daemon was ended by | times |\n|---|--:|")?;
        for (how, times) in &tally.kills {
            writeln!(to, "| {how} | {times} |")?;
        }
        writeln!(
            to,
            "\n| flow | sent | arrived | lost | lost with the link or in its queue | moved |\n|---|--:|--:|--:|--:|--:|"
        )?;
        for flow in &self.flows {
            let Flow { name, sent, arrived, lost, excused, moved } = flow;
            writeln!(to, "| {name} | {sent} | {arrived} | {lost} | {excused} | {moved} |")?;
        }
        writeln!(to, "\n| transfer | bytes | retransmitted | longest pause | |\n|---|--:|--:|--:|---|")?;
        for Transferred { name, bytes, retransmitted, longest_stall, broken } in &self.transfers {
            let state = broken.as_deref().unwrap_or("whole");
            writeln!(to, "| {name} | {bytes} | {retransmitted} | {longest_stall} ms | {state} |")?;
        }
        writeln!(to, "\n| time | times | median | longest | bar | beyond it |\n|---|--:|--:|--:|--:|--:|")?;
        tally.starts.row("from a start to the first new flow", START, to)?;
        tally.costs.row("of it on a CPU", START, to)?;
        tally.recoveries.row("from a flood's end to the first new flow", SECOND, to)?;
        tally.full.row("either, until a full table had room", GIVE_UP, to)?;
        tally.status.row("`status`, floods or not", SECOND, to)?;
        writeln!(to, "\n| | before | most | after |\n|---|--:|--:|--:|")?;
        let (before, most, after) = (&tally.before, &tally.most, &tally.after);
        for (what, of) in [
            ("file descriptors", (|of| of.descriptors) as fn(&super::Resources) -> u64),
            ("threads", |of| of.threads),
            ("resident KiB", |of| of.memory),
            ("pins", |of| of.pins),
        ] {
            writeln!(to, "| {what} | {} | {} | {} |", of(before), of(most), of(after))?;
        }
        writeln!(to, "\nthe machine stood still for at most {} ms", Traffic::stood_still().as_millis())?;
        writeln!(to, "inside addresses seen outside: {}", self.leaks.len())?;
        writeln!(to, "left behind after the end: {}", self.left_behind.len())?;
        for failure in self.failures() {
            writeln!(to, "FAILED: {failure}")?;
        }
        for slow in self.slow() {
            writeln!(to, "SLOW: {slow}")?;
        }
        Ok(())
    }
}
