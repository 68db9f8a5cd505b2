//! What sessions cost that carry nothing, and that end.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use nat_bench_ebpf::IN_TURN;
use serde_json::Value;

use crate::{
    gateways::Setup,
    generator::Pattern,
    report::{Bound, FigureReport, quotient},
    stage::{Settings, Stage, nanoseconds},
};

/// Sessions that go on, and their packets a second.
const KEPT: u32 = 1 << 10;
const KEPT_RATE: f64 = 1e5;
/// Seconds that idle sessions have left when they stop.
const TIMEOUT: u32 = 4;
/// So late, and it is given up.
const PATIENCE: Duration = Duration::from_secs(60);

fn pattern(settings: &Settings) -> Pattern {
    let flows = if settings.quick { 1 << 18 } else { 1 << 20 };
    Pattern { kind: IN_TURN, flows, endpoint_bits: 14, ..Pattern::PLAIN }
}

pub(crate) fn measure_idle(
    settings: &Settings,
    stage: &mut Stage,
    report: &mut FigureReport,
) -> anyhow::Result<()> {
    let pattern = pattern(settings);
    let Some((number, _)) = stage.natgw() else { return Ok(()) };
    stage.prepare(number, &Setup::of(pattern.flows.into()))?;
    stage.open(number, pattern, report)?;
    stage.generator.helpers.wait_idle()?;
    let mut shares = Vec::new();
    for round in settings.rounds(report.name()) {
        round?;
        let (before, start) = (stage.generator.helpers.daemon_time()?, Instant::now());
        // Less says nothing of a daemon that wakes ten times a second.
        thread::sleep(settings.round.max(Duration::from_secs(1)));
        let busy = stage.generator.helpers.daemon_time()?.saturating_sub(before);
        shares.push(quotient(nanoseconds(busy), nanoseconds(start.elapsed())) * 100.0);
    }
    report.measure("natgw", "core_percent", &shares);
    let median = report.median("natgw", "core_percent");
    report.goal("per cent of a core", median, Some(Bound::AtMost(5.0)), Some(Bound::AtMost(0.5)));
    report.note(format!("{} sessions", pattern.flows));
    Ok(())
}

pub(crate) fn measure(
    settings: &Settings,
    stage: &mut Stage,
    report: &mut FigureReport,
) -> anyhow::Result<()> {
    let pattern = pattern(settings);
    let Some((number, _)) = stage.natgw() else { return Ok(()) };
    let rounds = if settings.quick { 1 } else { settings.rounds };
    let (mut late, mut lost, mut costs) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds {
        settings.check_interrupt()?;
        eprintln!("{}: round {round} of {rounds}", report.name());
        stage.prepare(number, &Setup::of(pattern.flows.into()))?;
        stage.open(number, pattern, report)?;
        let end = expire(settings, stage, number, pattern)?;
        late.push(end.late.as_secs_f64());
        lost.push(quotient(end.sent - end.delivered, end.sent) * 100.0);
        costs.push(quotient(nanoseconds(end.busy), u64::from(pattern.flows - KEPT)));
    }
    report.measure("natgw", "late_seconds", &late);
    report.measure("natgw", "lost_percent", &lost);
    report.measure("natgw", "daemon_ns_each", &costs);
    report.goal(
        "per cent lost meanwhile",
        report.median("natgw", "lost_percent"),
        Some(Bound::AtMost(0.0)),
        None,
    );
    let median = report.median("natgw", "late_seconds");
    report.goal("seconds until the last is gone", median, None, Some(Bound::AtMost(2.0)));
    report.note(format!(
        "{} sessions; daemon_ns_each is all that the daemon did from the reload that sets the timeout on",
        pattern.flows
    ));
    Ok(())
}

/// How sessions ended.
struct End {
    late: Duration,
    sent: u64,
    delivered: u64,
    /// The daemon's time.
    busy: Duration,
}

/// Has all sessions used once more, lets all but a few be, and waits for their end.
fn expire(settings: &Settings, stage: &mut Stage, number: usize, pattern: Pattern) -> anyhow::Result<End> {
    stage.aim(number, pattern)?;
    stage.generator.blast_by(pattern.flows, Duration::from_nanos(1))?;
    let due = Instant::now() + Duration::from_secs(TIMEOUT.into());
    let before = stage.generator.helpers.daemon_time()?;
    let natgw = stage.natgw().context("natgw takes no part")?.1;
    natgw.reload(&Setup { timeout: TIMEOUT, ..Setup::of(pattern.flows.into()) })?;
    stage.aim(number, Pattern { flows: KEPT, ..pattern })?;
    let mut end = End { late: Duration::ZERO, sent: 0, delivered: 0, busy: Duration::ZERO };
    loop {
        settings.check_interrupt()?;
        let sample = stage.generator.pace(KEPT_RATE, Duration::from_millis(100))?;
        end.sent += sample.frames;
        end.delivered += sample.delivered;
        if Instant::now() < due {
            continue;
        }
        let natgw = stage.natgw().context("natgw takes no part")?.1;
        let sessions = natgw.status()?.get("sessions").and_then(Value::as_u64);
        if sessions.context("natgw status has no sessions")? <= u64::from(KEPT) {
            break;
        }
        ensure!(due.elapsed() < PATIENCE, "{sessions:?} sessions are left {PATIENCE:?} after they were due");
    }
    end.late = due.elapsed();
    end.busy = stage.generator.helpers.daemon_time()?.saturating_sub(before);
    Ok(end)
}
