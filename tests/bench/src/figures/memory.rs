//! What a session takes: counted, so that one round says as much as many.

use nat_bench_ebpf::IN_TURN;

use crate::{
    gateways::{Ports, Readiness, Setup},
    generator::Pattern,
    report::{Bound, FigureReport, quotient},
    stage::{Settings, Stage},
};

/// Name of the quantity, how many sessions, and inside endpoints as bits: a mapping each.
const SIZES: [(&str, u32, u32, bool); 3] = [
    ("1m_bytes_each", 1 << 20, 14, false),
    ("1m_own_mapping_bytes_each", 1 << 20, 14, true),
    ("4m_bytes_each", 1 << 22, 14, false),
];

pub(crate) fn measure(
    settings: &Settings,
    stage: &mut Stage,
    report: &mut FigureReport,
) -> anyhow::Result<()> {
    let rounds = if settings.quick { 1 } else { settings.rounds };
    if let Some((number, _)) = stage.natgw() {
        for (quantity, sessions, endpoint_bits, own_mapping) in SIZES {
            let first = quantity == SIZES[0].0;
            if settings.quick && !first {
                continue;
            }
            let pattern = Pattern {
                kind: IN_TURN,
                flows: sessions,
                endpoint_bits,
                stride: own_mapping.into(),
                ..Pattern::PLAIN
            };
            let setup = Setup {
                ports: if own_mapping { Ports::Shared } else { Ports::OfOneAddress },
                needs_nat: true,
                ..Setup::of(sessions.into())
            };
            let rounds = if first { rounds } else { 1 };
            measure_one(settings, stage, report, (number, quantity, rounds), (pattern, setup))?;
        }
    }
    if let Some(number) = (0..stage.gateways.len()).find(|number| stage.name(*number) == "nft") {
        let most = crate::gateways::most_flows()?;
        let sessions = u32::try_from(most.min(1 << 20))?;
        // A power of two, and room for what else there is.
        let sessions = 1 << (sessions - sessions / 8).ilog2();
        let pattern = Pattern { kind: IN_TURN, flows: sessions, endpoint_bits: 14, ..Pattern::PLAIN };
        let setup = Setup { needs_nat: true, ..Setup::of(sessions.into()) };
        measure_one(settings, stage, report, (number, "bytes_each", rounds), (pattern, setup))?;
        report.note(format!("nft: {sessions} sessions, by what the kernel's unreclaimable memory grew"));
    }
    report.note(
        "natgw: the daemon's RssAnon and RssShmem, and memlock of all its eBPF maps, those within maps included; \
         all of it, divided by the sessions, not only what it grew",
    );
    let (must_reach, aim) = (Some(Bound::AtMost(382.0)), Some(Bound::AtMost(192.0)));
    report.goal("bytes a session at 1 M", report.median("natgw", SIZES[0].0), must_reach, aim);
    report.goal("the same, each its own mapping", report.median("natgw", SIZES[1].0), must_reach, aim);
    report.goal("bytes a session at 4 M", report.median("natgw", SIZES[2].0), must_reach, aim);
    Ok(())
}

fn measure_one(
    settings: &Settings,
    stage: &mut Stage,
    report: &mut FigureReport,
    (number, quantity, rounds): (usize, &'static str, u32),
    (pattern, setup): (Pattern, Setup),
) -> anyhow::Result<()> {
    let name = stage.name(number);
    let each = |bytes: u64| quotient(bytes, pattern.flows.into());
    let (mut whole, mut grown, mut kernel) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        settings.check_interrupt()?;
        if let Readiness::Absent(reason) = stage.prepare(number, &setup)? {
            report.absent(name, reason);
            return Ok(());
        }
        let before = stage.gateways[number].1.memory()?;
        stage.open(number, pattern, report)?;
        let after = stage.gateways[number].1.memory()?;
        whole.push(each(after.all()));
        kernel.push(each(after.kernel));
        grown.push(each(after.all().saturating_sub(before.all())));
    }
    if name != "natgw" {
        report.measure(name, quantity, &grown);
        return Ok(());
    }
    report.measure(name, quantity, &whole);
    if quantity == SIZES[0].0 {
        report.measure(name, "1m_growth_bytes_each", &grown);
        report.measure(name, "1m_kernel_bytes_each", &kernel);
    }
    Ok(())
}
