//! What a packet costs that cannot have a port, against one that has.

use anyhow::Context as _;
use nat_bench_ebpf::{FRESH, RANDOM};
use serde_json::Value;

use crate::{
    gateways::{Readiness, Setup},
    generator::Pattern,
    report::{Bound, FigureReport, quotient},
    stage::{FLOOR, Settings, Stage, nanoseconds_each},
};

/// Inside endpoints that want a port of the one address toward the one remote: more than there are.
const WANTED: u32 = 1 << 16;
/// Of those that come first and have a port.
const ESTABLISHED: Pattern = Pattern {
    kind: RANDOM,
    flows: 1 << 15,
    endpoint_bits: 14,
    stride: 1,
    one_remote: true,
    ..Pattern::PLAIN
};

pub(crate) fn measure(
    settings: &Settings,
    stage: &mut Stage,
    report: &mut FigureReport,
) -> anyhow::Result<()> {
    let setup = Setup { needs_nat: true, ..Setup::of(WANTED.into()) };
    let mut floors = Vec::new();
    let mut established = vec![Vec::new(); stage.gateways.len()];
    let mut refused = vec![Vec::new(); stage.gateways.len()];
    for round in 1..=settings.rounds {
        settings.check_interrupt()?;
        stage.aim_at_floor(ESTABLISHED)?;
        let floor = nanoseconds_each(&stage.generator.blast(settings.round / 2)?);
        floors.push(floor);
        for number in 0..stage.gateways.len() {
            let name = stage.name(number);
            if round == 1 {
                if let Readiness::Absent(reason) = stage.prepare(number, &setup)? {
                    report.absent(name, reason);
                    continue;
                }
                take_all_ports(stage, number, report)?;
            } else if refused[number].is_empty() {
                continue;
            }
            eprintln!("{}: {name}: round {round} of {}", report.name(), settings.rounds);
            stage.aim(number, ESTABLISHED)?;
            let sample = stage.generator.blast(settings.round / 2)?;
            if sample.delivered * 100 < sample.frames * 99 {
                report.fault(format!("{name}: {} of {} established", sample.delivered, sample.frames));
            }
            established[number].push(nanoseconds_each(&sample) - floor);
            refused[number].push(refuse(settings, stage, number, round, report)? - floor);
        }
    }
    report.measure(FLOOR, "frame_ns", &floors);
    for (number, (established, refused)) in established.iter().zip(&refused).enumerate() {
        if !refused.is_empty() {
            report.measure(stage.name(number), "established_ns", established);
            report.measure(stage.name(number), "refused_ns", refused);
        }
    }
    let ratio = |name| Some(report.median(name, "refused_ns")? / report.median(name, "established_ns")?);
    let (natgw, nft) = (ratio("natgw"), ratio("nft"));
    let (must_reach, aim) = (Bound::AtMost(2.0), Bound::AtMost(1.5));
    report.goal("natgw, refused/established", natgw, Some(must_reach), Some(aim));
    report.goal("nft, refused/established", nft, None, None);
    report.goal("nft/natgw, refused", report.ratio("refused_ns", "nft", "natgw"), None, None);
    Ok(())
}

/// Opens flows until no port is left.
fn take_all_ports(stage: &mut Stage, number: usize, report: &mut FigureReport) -> anyhow::Result<()> {
    let name = stage.name(number);
    eprintln!("{}: {name}: taking all ports", report.name());
    stage.aim(number, ESTABLISHED)?;
    // The last find the more rarely one the fewer there are; those that are established here are all among the first.
    let counts = stage.generator.open_flows_once(WANTED, stage.helping(number))?;
    if counts.wrong > 0 || counts.flows_seen < u64::from(WANTED - 4096) {
        report.fault(format!("{name}: {} ports taken, {} frames wrong", counts.flows_seen, counts.wrong));
    }
    Ok(())
}

/// Offers flows that cannot open; nanoseconds a packet, the generator's included.
fn refuse(
    settings: &Settings,
    stage: &mut Stage,
    number: usize,
    round: u32,
    report: &mut FigureReport,
) -> anyhow::Result<f64> {
    let name = stage.name(number);
    let packets = if settings.quick { 1 << 14 } else { 1 << 16 };
    stage.aim(number, Pattern { kind: FRESH, first: WANTED + round * (1 << 17), ..ESTABLISHED })?;
    let before = refusals(stage, number)?;
    let helping = stage.helping(number).min(packets / 8);
    let sample = stage.generator.feed_in_vain(packets.into(), helping)?;
    if sample.delivered > 0 {
        report.note(format!(
            "{name}: {} of {} packets found a port after all",
            sample.delivered, sample.frames
        ));
    }
    if let (Some(before), Some(after)) = (before, refusals(stage, number)?) {
        let judged = quotient(after - before, sample.frames);
        if judged < 0.99 {
            report.note(format!("{name}: {:.1} % were judged, the others lost before that", judged * 100.0));
        }
    }
    Ok(nanoseconds_each(&sample))
}

/// Packets that natgw says it has refused for want of a port.
fn refusals(stage: &mut Stage, number: usize) -> anyhow::Result<Option<u64>> {
    let Some(natgw) = stage.gateways[number].1.daemon() else { return Ok(None) };
    let status = natgw.status()?;
    let drops = status.get("drops").and_then(Value::as_array).context("natgw status has no drops")?;
    let exhausted =
        drops.iter().find(|drop| drop.get("reason").and_then(Value::as_str) == Some("ports_exhausted"));
    Ok(Some(exhausted.and_then(|drop| drop.get("packets")?.as_u64()).unwrap_or(0)))
}
