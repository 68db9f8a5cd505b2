//! How long a frame takes from the generator to the sink.

use std::collections::BTreeMap;

use nat_bench_ebpf::{RANDOM, time_of};

use crate::{
    gateways::Setup,
    generator::{BATCH, Pattern},
    report::{Bound, FigureReport, quotient},
    stage::{Settings, Stage},
};

const PATTERN: Pattern =
    Pattern { kind: RANDOM, flows: 1 << 16, endpoint_bits: 12, stamped: true, ..Pattern::PLAIN };

/// What of the times is told: name of the quantity one at a time, and in bursts, and how many are at most as long.
const QUANTILES: [(&str, &str, f64); 3] =
    [("p50_ns", "burst_p50_ns", 0.5), ("p99_ns", "burst_p99_ns", 0.99), ("p999_ns", "burst_p999_ns", 0.999)];

pub(crate) fn measure(
    settings: &Settings,
    stage: &mut Stage,
    report: &mut FigureReport,
) -> anyhow::Result<()> {
    let taking_part = stage.prepare_all(&Setup::of(PATTERN.flows.into()), report)?;
    for number in &taking_part {
        stage.open(*number, PATTERN, report)?;
    }
    let mut times: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    for round in settings.rounds(report.name()) {
        round?;
        for number in &taking_part {
            settings.check_interrupt()?;
            for batch in [1, BATCH] {
                stage.aim(*number, PATTERN)?;
                stage.generator.batch = batch;
                let before = stage.generator.times()?;
                let sample = stage.generator.blast_by(1 << 14, settings.round / 2);
                stage.generator.batch = BATCH;
                sample?;
                let after = stage.generator.times()?;
                let frames: Vec<_> = after.iter().zip(before).map(|(after, before)| after - before).collect();
                for (alone, burst, share) in QUANTILES {
                    let name = if batch == 1 { alone } else { burst };
                    times.entry((stage.name(*number), name)).or_default().push(quantile(&frames, share));
                }
            }
        }
    }
    for ((name, quantity), times) in &times {
        report.measure(name, quantity, times);
    }
    for (name, quantity, must_reach, aim) in
        [("natgw/nft, p50", "p50_ns", 0.35, 0.30), ("natgw/nft, p99", "p99_ns", 0.5, 0.35)]
    {
        let ratio = report.ratio(quantity, "natgw", "nft");
        report.goal(name, ratio, Some(Bound::AtMost(must_reach)), Some(Bound::AtMost(aim)));
    }
    for (name, quantity, below) in [
        ("natgw/nft, p99.9", "p999_ns", "nft"),
        ("natgw/nft, p50 in bursts", "burst_p50_ns", "nft"),
        ("natgw/nft, p99 in bursts", "burst_p99_ns", "nft"),
        ("natgw/bare, p50", "p50_ns", "bare"),
        ("natgw/bare, p99", "p99_ns", "bare"),
    ] {
        report.goal(name, report.ratio(quantity, "natgw", below), None, None);
    }
    report
        .note("a frame of a burst of 64 waits for those before it: that is what load does to it on one CPU");
    Ok(())
}

/// The time that this share of the frames does not exceed.
fn quantile(frames: &[u64], share: f64) -> f64 {
    let all: u64 = frames.iter().sum();
    let mut passed = 0;
    for (slot, frames) in (0..).zip(frames) {
        passed += frames;
        if passed > 0 && quotient(passed, all) >= share {
            return f64::midpoint(quotient(time_of(slot), 1), quotient(time_of(slot + 1), 1));
        }
    }
    0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_within_their_slots() {
        let mut frames = vec![0; 300];
        frames[100] = 99;
        frames[200] = 1;
        assert!((quantile(&frames, 0.5) - 101.0).abs() < 3.0, "{}", quantile(&frames, 0.5));
        assert!((quantile(&frames, 0.99) - 101.0).abs() < 3.0);
        assert!(quantile(&frames, 0.999) > 250.0);
    }
}
