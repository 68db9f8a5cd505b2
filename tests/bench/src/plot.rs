//! Two pictures: what the number of flows does to a hop, and what an offered rate of new flows comes to.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::Context as _;

use crate::{
    figures::{hop, opening},
    gateways::{Readiness, most_flows},
    report::{FigureReport, Spread, quotient},
    stage::{FLOOR, Settings, Stage},
    svg::Chart,
};

/// Numbers of flows, as bits; with --quick up to a million.
const SIZES: [u32; 9] = [0, 4, 8, 10, 12, 14, 16, 20, 22];
const QUICK_SIZES: usize = 8;
/// New flows a second.
const RATES: [u32; 6] = [1 << 15, 1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 20];

/// Writes `hops.svg` and `new-flows.svg`, and prints the numbers.
pub(crate) fn draw(settings: &Settings, stage: &mut Stage, folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    write(folder, "hops.svg", "flows", &hops(settings, stage)?)?;
    write(folder, "new-flows.svg", "offered", &new_flows(settings, stage)?)
}

fn hops(settings: &Settings, stage: &mut Stage) -> anyhow::Result<Chart<'static>> {
    let mut lines: BTreeMap<_, Vec<_>> = BTreeMap::new();
    let sizes = if settings.quick { &SIZES[..QUICK_SIZES] } else { &SIZES[..] };
    for bits in sizes {
        let flows = 1 << bits;
        eprintln!("plot: hops with {flows} flows");
        let mut report = FigureReport::new("plot", "", String::new());
        let rounds = settings.rounds.min(3);
        let measured = hop::hops(settings, stage, &mut report, hop::pattern_of(flows), rounds)?;
        for (name, reason) in report.absences() {
            eprintln!("plot: {name} is not measured with {flows} flows: {reason}");
        }
        for (name, hops) in measured {
            if name != FLOOR {
                lines.entry(name).or_default().push((f64::from(flows), Spread::of(&hops).median));
            }
        }
    }
    Ok(Chart {
        title: "Nanoseconds a hop: established flows in random order",
        horizontal: "flows",
        vertical: "ns",
        lines: in_order(lines),
    })
}

fn new_flows(settings: &Settings, stage: &mut Stage) -> anyhow::Result<Chart<'static>> {
    let mut lines: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for rate in RATES {
        eprintln!("plot: {rate} new flows/s offered");
        for number in 0..stage.gateways.len() {
            settings.check_interrupt()?;
            if matches!(stage.prepare(number, &opening::SETUP)?, Readiness::Absent(_)) {
                continue;
            }
            // As long as the flows fit into any of the tables.
            let longest = quotient(most_flows()?.min(1 << 20) * 3 / 4, rate.into());
            let time = settings.round.min(Duration::from_secs_f64(longest));
            stage.aim(number, opening::NEW)?;
            let sample = stage.generator.pace(rate.into(), time)?;
            let seconds = sample.elapsed.as_secs_f64();
            let offered = quotient(sample.frames, 1) / seconds;
            let delivered = quotient(sample.delivered.max(1), 1) / seconds;
            lines.entry(stage.name(number)).or_default().push((offered, delivered));
        }
    }
    Ok(Chart {
        title: "New flows a second: delivered of those offered, generator on the same CPU",
        horizontal: "offered a second",
        vertical: "delivered a second",
        lines: in_order(lines),
    })
}

/// natgw first: a line's colour is by its place.
fn in_order(mut lines: BTreeMap<&'static str, Vec<(f64, f64)>>) -> Vec<(&'static str, Vec<(f64, f64)>)> {
    ["natgw", "nft", "bare"].into_iter().filter_map(|name| lines.remove_entry(name)).collect()
}

/// Writes a picture, and prints what it shows.
fn write(folder: &Path, name: &str, first: &str, chart: &Chart<'_>) -> anyhow::Result<()> {
    let path = folder.join(name);
    fs::write(&path, chart.draw()).with_context(|| format!("write {}", path.display()))?;
    eprintln!("{}:", path.display());
    for (line, points) in &chart.lines {
        for (x, y) in points {
            eprintln!("  {line:<8}{first} {x:>10.0}  {} {y:>10.0}", chart.vertical);
        }
    }
    Ok(())
}
