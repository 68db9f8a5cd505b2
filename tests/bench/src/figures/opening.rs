//! What a new flow costs, and how many a second there can be; the same for connections of a virtual server.

use nat_bench_ebpf::FRESH;

use crate::{
    gateways::{Ports, Readiness, Setup},
    generator::Pattern,
    report::{Bound, FigureReport, quotient},
    stage::{FLOOR, Settings, Stage, nanoseconds_each},
    traffic::Sample,
};

/// Every flow has an inside endpoint of its own, to 16,384 a remote.
pub(crate) const NEW: Pattern =
    Pattern { kind: FRESH, flows: 1 << 17, endpoint_bits: 14, stride: 1, ..Pattern::PLAIN };

/// New flows have endpoints of their own, more than an address has ports: natgw gets several addresses, nftables
/// shares ports between remotes.
pub(crate) const SETUP: Setup = Setup { ports: Ports::OfPool, needs_nat: true, ..Setup::of(1 << 17) };

/// natgw with every flow opened by its daemon.
const DAEMON: Setup = Setup { delegated: false, ..SETUP };
const DAEMON_NAME: &str = "natgw, by the daemon";

/// New connections of a virtual server, all to its one address.
const CONNECTIONS: Pattern = Pattern { one_remote: true, ..NEW };

/// Three servers, and nothing that has to be found for them but a turn.
const SERVICE: Setup = Setup { needs_nat: true, service: true, ..Setup::of(1 << 17) };

pub(crate) fn measure(
    settings: &Settings,
    stage: &mut Stage,
    report: &mut FigureReport,
) -> anyhow::Result<()> {
    let bounds = (Some(Bound::AtLeast(3.0)), Some(Bound::AtLeast(4.0)));
    measure_with(settings, stage, report, (NEW, SETUP), bounds)
}

pub(crate) fn measure_service(
    settings: &Settings,
    stage: &mut Stage,
    report: &mut FigureReport,
) -> anyhow::Result<()> {
    measure_with(settings, stage, report, (CONNECTIONS, SERVICE), (None, None))
}

fn measure_with(
    settings: &Settings,
    stage: &mut Stage,
    report: &mut FigureReport,
    (pattern, setup): (Pattern, Setup),
    (must, aim): (Option<Bound>, Option<Bound>),
) -> anyhow::Result<()> {
    let mut floors = Vec::new();
    let mut openings = vec![Openings::default(); stage.gateways.len()];
    let mut of_daemon = Openings::default();
    for round in settings.rounds(report.name()) {
        round?;
        stage.aim_at_floor(pattern)?;
        let floor = nanoseconds_each(&stage.generator.blast(settings.round / 2)?);
        floors.push(floor);
        for (number, openings) in openings.iter_mut().enumerate() {
            settings.check_interrupt()?;
            if let Readiness::Absent(reason) = stage.prepare(number, &setup)? {
                report.absent(stage.name(number), reason);
                continue;
            }
            openings.push(&opening(stage, number, &setup, pattern)?, floor);
        }
        if !setup.service
            && let Some((number, _)) = stage.natgw()
        {
            stage.prepare(number, &DAEMON)?;
            of_daemon.push(&opening(stage, number, &DAEMON, pattern)?, floor);
        }
    }
    report.measure(FLOOR, "frame_ns", &floors);
    let named = openings.iter().enumerate().map(|(number, openings)| (stage.name(number), openings));
    for (name, openings) in named.chain([(DAEMON_NAME, &of_daemon)]) {
        if openings.costs.is_empty() {
            continue;
        }
        let rates: Vec<_> = openings.costs.iter().map(|cost| 1e9 / cost).collect();
        report.measure(name, "flow_ns", &openings.costs);
        report.measure(name, RATE, &rates);
        report.measure(name, "lost_percent", &openings.lost);
        let lost = openings.lost.iter().copied().fold(0.0, f64::max);
        let tolerated = if matches!(name, "nft" | "iptables") { 1.0 } else { 0.0 };
        if lost > tolerated {
            report.fault(format!("{name}: {lost:.3} % of a round's first packets did not arrive"));
        }
    }
    let ratio = report.ratio(RATE, "natgw", "nft");
    report.goal("natgw/nft, flows a second", ratio, must, aim);
    if !of_daemon.costs.is_empty() {
        let ratio = report.ratio(RATE, DAEMON_NAME, "nft");
        report.goal("by the daemon alone", ratio, Some(Bound::AtLeast(1.0)), Some(Bound::AtLeast(1.5)));
    }
    Ok(())
}

/// Opens all flows, as fast as the gateway takes them.
fn opening(stage: &mut Stage, number: usize, setup: &Setup, pattern: Pattern) -> anyhow::Result<Sample> {
    if setup.service {
        stage.aim_at_service(number, pattern)?;
    } else {
        stage.aim(number, pattern)?;
    }
    stage.generator.feed(pattern.flows.into(), stage.helping(number))
}

/// What rounds have come to.
#[derive(Clone, Default)]
struct Openings {
    /// Nanoseconds a flow.
    costs: Vec<f64>,
    /// First packets that did not arrive, per cent.
    lost: Vec<f64>,
}

impl Openings {
    /// Adds a round; `floor` is what a frame itself takes, nanoseconds.
    fn push(&mut self, sample: &Sample, floor: f64) {
        self.costs.push(flow_cost(sample, floor));
        self.lost.push(quotient(sample.frames.saturating_sub(sample.delivered), sample.frames) * 100.0);
    }
}

/// Nanoseconds a flow. A frame that opened none is not a flow's: its time is shared by those that did.
fn flow_cost(sample: &Sample, floor: f64) -> f64 {
    (nanoseconds_each(sample) - floor) * quotient(sample.frames, sample.delivered.max(1))
}

const RATE: &str = "flows_per_second";

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn time_spent_on_flows_that_did_not_open_is_billed_to_those_that_did() {
        let sample =
            Sample { frames: 1000, delivered: 500, busy: Duration::from_micros(1100), ..Sample::default() };
        assert!((flow_cost(&sample, 100.0) - 2000.0).abs() < 1e-9);
    }
}
