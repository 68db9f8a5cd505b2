//! What a flood of new flows does to the established.

use anyhow::Context as _;
use nat_bench_ebpf::FLOOD;

use crate::{
    gateways::{Ports, Readiness, Setup, most_flows},
    generator::Pattern,
    machine::pin,
    report::{Bound, FigureReport, quotient},
    stage::{Settings, Stage},
};

/// New flows are numbered from `first` on; 65,536 are established.
const PATTERN: Pattern =
    Pattern { kind: FLOOD, flows: 1 << 16, endpoint_bits: 12, first: 1 << 22, ..Pattern::PLAIN };
/// Packets a second: 100 k of established flows, 10 k of newcomers, and 990 k of the flood.
const OFFERED: f64 = 1.1e6;
/// What natgw is told that one host may have and open a second, where one is hostile.
const LIMITS: (u32, u32) = (65_536, 20_000);

pub(crate) fn measure(
    settings: &Settings,
    stage: &mut Stage,
    report: &mut FigureReport,
    hostile: bool,
) -> anyhow::Result<()> {
    let pattern = Pattern { hostile, ..PATTERN };
    let limits = if hostile { LIMITS } else { (0, 0) };
    let setup = Setup { ports: Ports::Shared, needs_nat: true, limits, ..Setup::of(PATTERN.flows.into()) };
    for number in 0..stage.gateways.len() {
        if let Readiness::Absent(reason) = stage.prepare(number, &setup)? {
            report.absent(stage.name(number), reason);
            continue;
        }
        flood(settings, stage, report, number, &setup, pattern)?;
    }
    if report.median("nft", "offered_per_second").is_some() {
        report.note(format!(
            "nft: conntrack is full with {} flows, and drops new ones from there on",
            most_flows()?
        ));
    }
    let natgw = |quantity| report.median("natgw", quantity);
    let (lost, evicted) = (natgw("established_lost_percent"), natgw("evicted"));
    let newcomers = natgw("newcomers_lost_percent");
    report.goal("per cent of the established lost", lost, Some(Bound::AtMost(0.0)), None);
    report.goal("established sessions evicted", evicted, Some(Bound::AtMost(0.0)), None);
    if hostile {
        report.goal("per cent of newcomers lost", newcomers, None, Some(Bound::AtMost(0.0)));
        let (sessions, new) = LIMITS;
        report.note(format!("natgw: sessions_per_source = {sessions}, new_per_second_per_source = {new}"));
    }
    report.note(match settings.other_cpu() {
        Some(_) => "frames come on a CPU of their own, natgw's daemon is on the other",
        None => "generator, gateway and daemon share one CPU",
    });
    report.note("offered_per_second is what was reached of the 1.1 M packets a second");
    Ok(())
}

fn flood(
    settings: &Settings,
    stage: &mut Stage,
    report: &mut FigureReport,
    number: usize,
    setup: &Setup,
    pattern: Pattern,
) -> anyhow::Result<()> {
    let name = stage.name(number);
    let mut rounds: [Vec<f64>; 6] = Default::default();
    for round in settings.rounds(report.name()) {
        round?;
        // What another round's flood has left fills the table.
        stage.prepare(number, setup)?;
        // Answered, as established flows are; conntrack gives up others first.
        stage.open(number, Pattern { reflected: true, ..pattern }, report)?;
        stage.aim(number, pattern)?;
        let before = stage.generator.counts()?;
        pin(settings.other_cpu().unwrap_or(settings.cpu))?;
        let sample = stage.generator.pace(OFFERED, settings.round);
        pin(settings.cpu)?;
        let sample = sample?;
        let counts = stage.generator.counts()?.since(before);
        let (established, newcomers) = stage.generator.flood_frames()?;
        let seconds = sample.elapsed.as_secs_f64();
        let opened = counts.delivered - counts.established;
        let [offered, kept, opens, lost, refused, evicted] = &mut rounds;
        offered.push(quotient(sample.frames, 1) / seconds);
        kept.push(quotient(established, 1) / seconds);
        opens.push(quotient(opened, 1) / seconds);
        lost.push(quotient(established.saturating_sub(counts.established), established) * 100.0);
        refused.push(quotient(newcomers.saturating_sub(counts.newcomers), newcomers) * 100.0);
        if counts.wrong > 0 {
            report.fault(format!("{name}: {} frames arrived wrong", counts.wrong));
        }
        evicted.extend(evictions(stage, number, pattern)?);
    }
    for (quantity, rounds) in QUANTITIES.iter().zip(&rounds) {
        if !rounds.is_empty() {
            report.measure(name, quantity, rounds);
        }
    }
    Ok(())
}

/// The established sessions that are no more: what does not pass while the daemon is held, which would open it anew.
fn evictions(stage: &mut Stage, number: usize, pattern: Pattern) -> anyhow::Result<Option<f64>> {
    stage.generator.helpers.wait_idle()?;
    let Some(natgw) = stage.gateways[number].1.daemon() else { return Ok(None) };
    natgw.hold(true)?;
    stage.aim(number, pattern)?;
    let counts = stage.generator.open_flows_once(pattern.flows, 1 << 13);
    stage.gateways[number].1.daemon().context("natgw has no daemon")?.hold(false)?;
    Ok(Some(quotient(u64::from(pattern.flows) - counts?.flows_seen, 1)))
}

/// In the order of the rounds' numbers.
const QUANTITIES: [&str; 6] = [
    "offered_per_second",
    "established_per_second",
    "opened_per_second",
    "established_lost_percent",
    "newcomers_lost_percent",
    "evicted",
];
