//! What an established packet costs: nanoseconds a hop, and of the program alone.

use std::collections::BTreeMap;

use anyhow::Context as _;
use aya::{
    programs::ProgramInfo,
    sys::{Stats, enable_stats},
};
use nat_bench_ebpf::{IN_TURN, RANDOM, ZIPF};

use crate::{
    gateways::{Readiness, Setup, most_flows},
    generator::Pattern,
    report::{Bound, FigureReport, quotient},
    stage::{FLOOR, RunTime, Settings, Stage, nanoseconds_each},
};

/// Established traffic, and what a hop of it may cost: against the router, nftables against it, and P.
///
/// Flows share their inside endpoints among remotes (4096 endpoints × 16 remotes, say), as hosts do: an
/// endpoint-independent mapping suffices, and no port is wanted twice.
pub(crate) struct Traffic {
    pattern: Pattern,
    of_router: Option<f64>,
    of_netfilter: Option<f64>,
    aim: Option<f64>,
}

pub(crate) const FEW: Traffic = Traffic {
    pattern: Pattern { kind: IN_TURN, flows: 1 << 10, endpoint_bits: 10, ..Pattern::PLAIN },
    of_router: Some(0.9),
    of_netfilter: Some(7.0),
    aim: Some(0.6),
};
pub(crate) const MANY: Traffic = Traffic {
    pattern: Pattern { kind: RANDOM, flows: 1 << 16, endpoint_bits: 12, ..Pattern::PLAIN },
    of_router: Some(1.6),
    of_netfilter: Some(5.0),
    aim: Some(1.0),
};
pub(crate) const MILLION: Traffic = Traffic {
    pattern: Pattern { kind: RANDOM, flows: 1 << 20, endpoint_bits: 14, ..Pattern::PLAIN },
    of_router: Some(4.0),
    of_netfilter: Some(2.5),
    aim: Some(2.2),
};
pub(crate) const MIX: Traffic = Traffic {
    pattern: Pattern {
        kind: ZIPF,
        flows: 1 << 16,
        endpoint_bits: 12,
        mixed: true,
        reflected: true,
        ..Pattern::PLAIN
    },
    of_router: None,
    of_netfilter: None,
    aim: None,
};

/// Measures a figure: all gateways in turn, round by round, so that what else the machine does hits all alike.
pub(crate) fn measure(
    settings: &Settings,
    stage: &mut Stage,
    report: &mut FigureReport,
    traffic: &Traffic,
) -> anyhow::Result<()> {
    let pattern = traffic.pattern;
    let hops = hops(settings, stage, report, pattern, settings.rounds)?;
    for (name, hops) in &hops {
        report.measure(name, HOP, hops);
    }
    if pattern.mixed {
        report.note(
            "both ways count: two hops, and the reflector at the server, which is in every contender's time",
        );
    }
    let taking_part: Vec<_> =
        (0..stage.gateways.len()).filter(|number| hops.contains_key(stage.name(*number))).collect();
    for (name, time) in program_times(settings, stage, pattern, &taking_part)? {
        report.measure(name, PROGRAM, &[time]);
    }
    report.goal("natgw/bare", report.ratio(HOP, "natgw", "bare"), traffic.of_router.map(Bound::AtMost), None);
    let of_netfilter = traffic.of_netfilter.map(Bound::AtLeast);
    if !hops.contains_key("nft") && measure_fewer(settings, stage, report, pattern)? {
        report.goal("nft with fewer flows/natgw", report.ratio(HOP, FEWER, "natgw"), of_netfilter, None);
    } else {
        report.goal("nft/natgw", report.ratio(HOP, "nft", "natgw"), of_netfilter, None);
    }
    report.goal("nft/bare", report.ratio(HOP, "nft", "bare"), None, None);
    let program = |name| report.median(name, PROGRAM);
    if let (Some(natgw), Some(bare), Some(null)) = (program("natgw"), program("bare"), program(FLOOR)) {
        report.goal("P", Some((natgw - null) / (bare - null)), None, traffic.aim.map(Bound::AtMost));
    }
    Ok(())
}

/// The established traffic that shows what the number of flows does to a hop.
pub(crate) fn pattern_of(flows: u32) -> Pattern {
    Pattern { kind: RANDOM, flows, endpoint_bits: flows.ilog2().min(14), ..Pattern::PLAIN }
}

/// Nanoseconds a hop of each gateway that can take part, a number a round; of the generator, what a frame costs it.
pub(crate) fn hops(
    settings: &Settings,
    stage: &mut Stage,
    report: &mut FigureReport,
    pattern: Pattern,
    rounds: u32,
) -> anyhow::Result<BTreeMap<&'static str, Vec<f64>>> {
    let taking_part = stage.prepare_all(&Setup::of(pattern.flows.into()), report)?;
    for number in &taking_part {
        stage.open(*number, pattern, report)?;
    }
    let mut hops: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    let mut frames: BTreeMap<_, (u64, u64)> = BTreeMap::new();
    for round in 1..=rounds {
        settings.check_interrupt()?;
        eprintln!("{}: round {round} of {rounds}", report.name());
        stage.aim_at_floor(pattern)?;
        let floor = nanoseconds_each(&stage.generator.blast(settings.round)?);
        hops.entry(FLOOR).or_default().push(floor);
        for number in &taking_part {
            stage.aim(*number, pattern)?;
            let sample = stage.generator.blast(settings.round)?;
            let name = stage.name(*number);
            hops.entry(name).or_default().push(nanoseconds_each(&sample) - floor);
            let (sent, delivered) = frames.entry(name).or_default();
            *sent += sample.frames;
            *delivered += sample.delivered;
        }
    }
    for (name, (sent, delivered)) in frames {
        check_delivered(report, name, quotient(delivered, sent) * 100.0);
    }
    Ok(hops)
}

/// Where conntrack does not take as many flows nftables is measured with as many as it does: more would not cost it less.
/// Whether nftables takes part.
fn measure_fewer(
    settings: &Settings,
    stage: &mut Stage,
    report: &mut FigureReport,
    pattern: Pattern,
) -> anyhow::Result<bool> {
    let Some(number) = (0..stage.gateways.len()).find(|number| stage.name(*number) == "nft") else {
        return Ok(false);
    };
    let most = most_flows()?.min(pattern.flows.into());
    // A power of two, and room for what else there is.
    let pattern = Pattern { flows: 1 << (most - most / 8).ilog2(), ..pattern };
    if let Readiness::Absent(_) = stage.prepare(number, &Setup::of(pattern.flows.into()))? {
        return Ok(false);
    }
    stage.open(number, pattern, report)?;
    let (mut hops, mut frames, mut delivered) = (Vec::new(), 0, 0);
    for _ in 0..settings.rounds {
        settings.check_interrupt()?;
        stage.aim_at_floor(pattern)?;
        let floor = nanoseconds_each(&stage.generator.blast(settings.round)?);
        stage.aim(number, pattern)?;
        let sample = stage.generator.blast(settings.round)?;
        hops.push(nanoseconds_each(&sample) - floor);
        frames += sample.frames;
        delivered += sample.delivered;
    }
    report.measure(FEWER, HOP, &hops);
    check_delivered(report, FEWER, quotient(delivered, frames) * 100.0);
    report.note(format!(
        "{FEWER}: {}, as conntrack's limit allows; more would not cost it less",
        pattern.flows
    ));
    Ok(true)
}

/// A hop that loses more than a little says nothing about what a hop costs.
fn check_delivered(report: &mut FigureReport, name: &'static str, delivered: f64) {
    report.measure(name, "delivered_percent", &[delivered]);
    if delivered < LEAST_DELIVERED {
        report.fault(format!("{name}: {delivered:.2} % delivered"));
    }
}

/// Nanoseconds a run of each lane's XDP program, in a pass of its own: the kernel's clock costs.
fn program_times(
    settings: &Settings,
    stage: &mut Stage,
    pattern: Pattern,
    taking_part: &[usize],
) -> anyhow::Result<BTreeMap<&'static str, f64>> {
    // Closing the descriptor switches the statistics off again, however the bench ends.
    let _counting = enable_stats(Stats::RunTime).context("switch the statistics of eBPF programs on")?;
    let mut times = BTreeMap::new();
    let null = stage.generator.program("discard")?;
    stage.aim_at_floor(pattern)?;
    times.extend(program_time(settings, stage, &null)?.map(|time| (FLOOR, time)));
    for number in taking_part {
        settings.check_interrupt()?;
        let Some(program) = stage.program(*number)? else { continue };
        stage.aim(*number, pattern)?;
        let name = stage.name(*number);
        times.extend(program_time(settings, stage, &program)?.map(|time| (name, time)));
    }
    Ok(times)
}

fn program_time(
    settings: &Settings,
    stage: &mut Stage,
    program: &ProgramInfo,
) -> anyhow::Result<Option<f64>> {
    let before = RunTime::of(program)?;
    stage.generator.blast(settings.round / 2)?;
    let after = RunTime::of(program)?;
    let runs = after.runs - before.runs;
    Ok((runs > 0).then(|| quotient(after.nanoseconds - before.nanoseconds, runs)))
}

const HOP: &str = "hop_ns";
/// nftables with fewer flows than the others.
const FEWER: &str = "nft, fewer flows";
const PROGRAM: &str = "program_ns";
const LEAST_DELIVERED: f64 = 99.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hop_that_loses_frames_is_void() {
        let mut report = FigureReport::new("hop", "", String::new());
        check_delivered(&mut report, "natgw", 99.0);
        assert!(!report.is_void());
        check_delivered(&mut report, "nft", 98.9);
        assert!(report.is_void() && report.to_string().contains("VOID: nft: 98.90 % delivered"));
    }
}
