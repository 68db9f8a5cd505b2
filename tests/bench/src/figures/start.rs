//! How long a start takes.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::{
    gateways::Setup,
    generator::Pattern,
    machine::Unpinned,
    report::{Bound, FigureReport},
    stage::{Settings, Stage},
};

/// One flow, a millisecond a packet.
const PATTERN: Pattern = Pattern { endpoint_bits: 10, ..Pattern::PLAIN };

pub(crate) fn measure(
    settings: &Settings,
    stage: &mut Stage,
    report: &mut FigureReport,
) -> anyhow::Result<()> {
    let (mut times, mut costs) = (Vec::new(), Vec::new());
    for round in settings.rounds(report.name()) {
        round?;
        let Some((number, natgw)) = stage.natgw() else { return Ok(()) };
        natgw.stop()?;
        stage.aim(number, PATTERN)?;
        let before = stage.generator.counts()?.delivered;
        stage.generator.batch = 1;
        let first = first_delivered(settings.cpus, stage, number, before);
        stage.generator.batch = crate::generator::BATCH;
        times.push(first?.as_secs_f64() * 1e3);
        costs.push(stage.generator.helpers.daemon_time_in_all()?.as_secs_f64() * 1e3);
    }
    report.measure("natgw", "start_ms", &times);
    report.measure("natgw", "daemon_cpu_ms", &costs);
    let median = report.median("natgw", "start_ms");
    let (must_reach, aim) = (Bound::AtMost(300.0), Bound::AtMost(100.0));
    report.goal("milliseconds to the first packet", median, Some(must_reach), Some(aim));
    report.note(
        "wall time on all CPUs, as a daemon is started; daemon_cpu_ms is what the daemon's threads were on a CPU, added up, to 10 ms",
    );
    Ok(())
}

/// Starts natgw and sends until a frame has arrived.
fn first_delivered(cpus: usize, stage: &mut Stage, number: usize, before: u64) -> anyhow::Result<Duration> {
    // Neighbours and routes are there already; nothing passes without natgw.
    stage.generator.send(1)?;
    ensure!(stage.generator.counts()?.delivered == before, "frames arrive though natgw is stopped");
    let Stage { gateways, topology, .. } = &mut *stage;
    let natgw = gateways[number].1.daemon().context("natgw has no daemon")?;
    let start = {
        let _unpinned = Unpinned::new(cpus)?;
        natgw.launch(&topology.lanes[number + 1], &Setup::of(1))?
    };
    let processes = gateways[number].1.processes();
    stage.generator.helpers.count(processes);
    let deadline = Instant::now() + Duration::from_secs(10);
    while stage.generator.counts()?.delivered == before {
        ensure!(Instant::now() < deadline, "natgw translates nothing within ten seconds");
        stage.generator.send(1)?;
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(start.elapsed())
}
