//! How much a packet costs in natgw, beside a bare XDP router and nftables: same frames, same wires, same CPU, taking
//! turns. Needs root; works in network namespaces of its own and leaves nothing behind.

mod busy;
mod figures;
mod gateways;
mod generator;
mod namespace;
mod report;
mod topology;

use std::{
    process::ExitCode,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::{Parser, ValueEnum};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::{
    figures::{Bench, FIGURES},
    report::Report,
};

/// A gateway to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Contender {
    /// An XDP router without NAT.
    Bare,
    /// Linux's own masquerading.
    Nft,
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
    /// 3 rounds of 0.3 s instead of 5 of 1 s.
    #[arg(long)]
    quick: bool,
    /// Rounds a figure.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// The gateways to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "bare,nft,natgw")]
    against: Vec<Contender>,
    /// Send UDP without checksums.
    #[arg(long)]
    zero_checksum: bool,
    /// The CPU that everything runs on (default: the last).
    #[arg(long, value_name = "NUMBER")]
    cpu: Option<usize>,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if !rustix::process::geteuid().is_root() {
        bail!("the bench makes network namespaces and loads eBPF programs: run it as root");
    }
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted)).context("catch signals")?;
    }
    let cpu = pin(arguments.cpu)?;

    let mut bench = Bench::new(&arguments.against, cpu, arguments.zero_checksum, interrupted)?;
    bench.round = Duration::from_millis(if arguments.quick { 300 } else { 1000 });
    bench.rounds = arguments.rounds.unwrap_or(if arguments.quick { 3 } else { 5 });
    let mut report = Report::new(cpu, arguments.zero_checksum);
    for figure in &FIGURES {
        if arguments.only.is_empty() || arguments.only.iter().any(|name| name == figure.name) {
            report.figures.push(bench.measure(figure)?);
            if !arguments.json {
                print!("{}", report.figures.last().map(ToString::to_string).unwrap_or_default());
            }
        }
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    }
    Ok(if report.is_void() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Binds this thread, and with it the frames' whole way and the processes it starts, to one CPU.
fn pin(cpu: Option<usize>) -> anyhow::Result<usize> {
    let cpus = std::thread::available_parallelism().context("count the CPUs")?.get();
    let cpu = cpu.unwrap_or(cpus - 1);
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("run on CPU {cpu}"))?;
    Ok(cpu)
}
