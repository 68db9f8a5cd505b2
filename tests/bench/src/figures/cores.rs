//! What a second CPU brings.

use std::collections::BTreeMap;

use nat_bench_ebpf::RANDOM;

use crate::{
    gateways::Setup,
    generator::Pattern,
    report::{Bound, FigureReport, quotient},
    stage::{FLOOR, Settings, Stage, nanoseconds_each},
};

const PATTERN: Pattern = Pattern { kind: RANDOM, flows: 1 << 16, endpoint_bits: 12, ..Pattern::PLAIN };

/// One gateway: a nanosecond of which CPU it is does not matter, a frame costs the sum of all.
pub(crate) fn measure(settings: &Settings, report: &mut FigureReport) -> anyhow::Result<()> {
    let Some(other) = settings.other_cpu() else {
        report.absent("natgw", "this machine has one CPU".to_owned());
        return Ok(());
    };
    let cpus = [other, settings.cpu];
    let mut stage = Stage::new(settings, &cpus)?;
    let taking_part = stage.prepare_all(&Setup::of(PATTERN.flows.into()), report)?;
    for number in &taking_part {
        stage.open(*number, PATTERN, report)?;
    }
    let mut times: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    for round in settings.rounds(report.name()) {
        round?;
        for (cpus, quantity) in [(&cpus[1..], ONE), (&cpus[..], TWO)] {
            stage.aim_at_floor(PATTERN)?;
            let floor = nanoseconds_each(&stage.generator.blast_on(cpus, settings.round)?);
            times.entry((FLOOR, quantity)).or_default().push(floor);
            for number in &taking_part {
                settings.check_interrupt()?;
                stage.aim(*number, PATTERN)?;
                let sample = stage.generator.blast_on(cpus, settings.round)?;
                let name = stage.name(*number);
                times.entry((name, quantity)).or_default().push(nanoseconds_each(&sample) - floor);
                if sample.delivered * 100 < sample.frames * 99 {
                    let delivered = quotient(sample.delivered, sample.frames) * 100.0;
                    report.fault(format!("{name}: {delivered:.2} % delivered on {} CPUs", cpus.len()));
                }
            }
        }
    }
    for ((name, quantity), times) in &times {
        report.measure(name, quantity, times);
    }
    for (name, title) in [
        ("natgw", "natgw, two CPUs/one"),
        ("bare", "bare, two CPUs/one"),
        ("nft", "nft, two CPUs/one"),
        (FLOOR, "generator alone, two CPUs/one"),
    ] {
        let scaling =
            report.median(name, ONE).zip(report.median(name, TWO)).map(|(one, two)| 2.0 * one / two);
        let (must_reach, aim) = (Bound::AtLeast(1.8), Bound::AtLeast(1.95));
        let goal = (name == "natgw").then_some((must_reach, aim));
        report.goal(title, scaling, goal.map(|(must, _)| must), goal.map(|(_, aim)| aim));
    }
    report.note("hops by the time of all CPUs together; where two CPUs are threads of one core, the generator alone shows it");
    Ok(())
}

const ONE: &str = "one_cpu_hop_ns";
const TWO: &str = "two_cpus_hop_ns";
