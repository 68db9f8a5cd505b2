//! How much a packet costs in natgw, beside a bare XDP router and nftables: same frames, same wires, same CPU, taking
//! turns. Needs root; works in network namespaces of its own and leaves nothing behind.

mod busy;
mod figures;
mod gateways;
mod generator;
mod machine;
mod namespace;
mod plot;
mod report;
mod stage;
mod svg;
mod topology;
mod traffic;
mod zipf;

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::{Parser, ValueEnum};

use crate::{
    figures::{FIGURES, Figure, Measure},
    report::{FigureReport, Report},
    stage::{Settings, Stage},
};

/// A gateway to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Contender {
    /// An XDP router without NAT.
    Bare,
    /// Linux's own masquerading.
    Nft,
    /// The same by its older front, iptables-legacy.
    Iptables,
    /// natgw as it is built.
    Natgw,
}

/// Measures natgw beside a bare XDP router and nftables masquerade.
#[derive(Debug, Parser)]
struct Arguments {
    /// Print one JSON object instead of tables.
    #[arg(long)]
    json: bool,
    /// Measure this figure only (may be given more than once).
    #[arg(long, value_name = "NAME", value_parser = FIGURES.map(|figure| figure.name))]
    only: Vec<String>,
    /// 3 rounds of 0.2 s instead of 5 of 1 s, and fewer sessions where a million takes its time.
    #[arg(long)]
    quick: bool,
    /// Rounds a figure.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=64))]
    rounds: Option<u32>,
    /// The gateways to measure: bare, nft and natgw if not told otherwise, and without --quick what other NAT is on PATH.
    #[arg(long, value_enum, value_delimiter = ',')]
    against: Vec<Contender>,
    /// Send UDP without checksums.
    #[arg(long)]
    zero_checksum: bool,
    /// The CPU that everything runs on (default: the last).
    #[arg(long, value_name = "NUMBER")]
    cpu: Option<usize>,
    /// Also draw hops by number of flows, and new flows by offered rate, into this folder (SVG).
    #[arg(long, value_name = "FOLDER")]
    plot: Option<PathBuf>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if !rustix::process::geteuid().is_root() {
        bail!("the bench makes network namespaces and loads eBPF programs: run it as root");
    }
    let settings = settings(&arguments)?;
    machine::pin(settings.cpu)?;
    let mut report = Report::new(settings.cpu, arguments.zero_checksum);
    let mut lanes = None;
    for figure in &FIGURES {
        if arguments.only.is_empty() || arguments.only.iter().any(|name| name == figure.name) {
            let measured = measure(figure, &settings, &mut lanes)?;
            if !arguments.json {
                print!("{measured}");
            }
            report.figures.push(measured);
        }
    }
    if let Some(folder) = &arguments.plot {
        plot::draw(&settings, stage(&settings, &mut lanes)?, folder)?;
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    }
    Ok(if report.is_void() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn settings(arguments: &Arguments) -> anyhow::Result<Settings> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted)).context("catch signals")?;
    }
    let cpus = std::thread::available_parallelism().context("count the CPUs")?.get();
    Ok(Settings {
        contenders: contenders(arguments),
        cpu: arguments.cpu.unwrap_or(cpus - 1),
        cpus,
        zero_checksum: arguments.zero_checksum,
        quick: arguments.quick,
        round: Duration::from_millis(if arguments.quick { 200 } else { 1000 }),
        rounds: arguments.rounds.unwrap_or(if arguments.quick { 3 } else { 5 }),
        interrupted,
    })
}

/// The gateways to measure.
fn contenders(arguments: &Arguments) -> Vec<Contender> {
    if !arguments.against.is_empty() {
        return arguments.against.clone();
    }
    let mut contenders = vec![Contender::Bare, Contender::Nft, Contender::Natgw];
    if !arguments.quick && gateways::has_iptables() {
        contenders.push(Contender::Iptables);
    }
    contenders
}

fn measure(figure: &Figure, settings: &Settings, lanes: &mut Option<Stage>) -> anyhow::Result<FigureReport> {
    let command =
        format!("cargo xtask bench --only {}{}", figure.name, if settings.quick { " --quick" } else { "" });
    let start = Instant::now();
    let mut report = FigureReport::new(figure.name, figure.what, command);
    match figure.measure {
        Measure::Lanes(measure) => measure(settings, stage(settings, lanes)?, &mut report),
        Measure::Apart(measure) => {
            // Nobody else is to have anything to do.
            *lanes = None;
            measure(settings, &mut report)
        }
    }
    .with_context(|| figure.name)?;
    eprintln!("{}: {:.1} s", figure.name, start.elapsed().as_secs_f32());
    Ok(report)
}

/// The lanes that most figures share, made by the first.
fn stage<'a>(settings: &Settings, lanes: &'a mut Option<Stage>) -> anyhow::Result<&'a mut Stage> {
    Ok(match lanes {
        Some(stage) => stage,
        None => lanes.insert(Stage::new(settings, &[settings.cpu])?),
    })
}
