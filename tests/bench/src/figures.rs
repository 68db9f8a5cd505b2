//! What is measured, and how a figure comes about.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use aya::{
    programs::ProgramInfo,
    sys::{Stats, enable_stats},
};
use nat_bench_ebpf::{FRESH, IN_TURN, RANDOM};

use crate::{
    Contender,
    busy::Helpers,
    gateways::{self, Gateway, Readiness},
    generator::{Generator, Pattern, Sample},
    namespace::Entered,
    report::{FigureReport, GatewayReport, Spread},
    topology::Topology,
};

/// Something to measure.
#[derive(Debug)]
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pattern: Pattern,
}

/// All figures, in the order they are measured in.
///
/// Established flows share their inside endpoints among remotes (4096 endpoints × 16 remotes, say), as hosts do: an
/// endpoint-independent mapping suffices, and no port is wanted twice. New flows each have an endpoint of their own.
pub(crate) const FIGURES: [Figure; 4] = [
    Figure {
        name: "hop-1k",
        what: "established hop, 1024 flows in turn",
        pattern: Pattern { kind: IN_TURN, flows: 1 << 10, endpoint_bits: 10, stride: 0 },
    },
    Figure {
        name: "hop-64k",
        what: "established hop, 65,536 flows in random order",
        pattern: Pattern { kind: RANDOM, flows: 1 << 16, endpoint_bits: 12, stride: 0 },
    },
    Figure {
        name: "hop-1m",
        what: "established hop, 1,048,576 flows in random order",
        pattern: Pattern { kind: RANDOM, flows: 1 << 20, endpoint_bits: 14, stride: 0 },
    },
    Figure {
        name: "new-flows",
        what: "every packet opens a flow; counted when delivered",
        pattern: Pattern { kind: FRESH, flows: 1 << 17, endpoint_bits: 14, stride: 1 },
    },
];

impl Figure {
    /// Whether every packet opens a flow.
    pub(crate) fn is_opening(&self) -> bool {
        self.pattern.kind == FRESH
    }

    /// How many flows there are at most at a time.
    pub(crate) fn most_flows(&self) -> u64 {
        self.pattern.flows.into()
    }
}

/// The lanes with their gateways, ready to measure.
///
/// The gateways go first when it is dropped: natgw stops before its namespace goes.
pub(crate) struct Bench {
    gateways: Vec<(&'static str, Box<dyn Gateway>)>,
    generator: Generator,
    /// The client's namespace, where frames are made.
    _client: Entered,
    topology: Topology,
    interrupted: Arc<AtomicBool>,
    pub(crate) round: Duration,
    pub(crate) rounds: u32,
}

impl Bench {
    pub(crate) fn new(
        contenders: &[Contender],
        cpu: usize,
        zero_checksum: bool,
        interrupted: Arc<AtomicBool>,
    ) -> anyhow::Result<Self> {
        let mut names = vec![FLOOR];
        names.extend(contenders.iter().map(|contender| contender.name()));
        let topology = Topology::new(&names)?;
        let mut generator = Generator::new(&topology, Helpers::new(cpu)?, zero_checksum)?;
        let mut gateways = Vec::new();
        let (floor, lanes) = topology.lanes.split_first().context("no lanes")?;
        {
            let _entered = floor.gateway.enter()?;
            generator.attach("discard", "lan")?;
        }
        for (contender, lane) in contenders.iter().zip(lanes) {
            gateways.push((lane.name, gateways::start(*contender, lane, &mut generator)?));
        }
        let client = topology.client.enter()?;
        Ok(Self {
            gateways,
            generator,
            _client: client,
            topology,
            interrupted,
            round: Duration::from_secs(1),
            rounds: 5,
        })
    }

    /// Measures one figure: all gateways in turn, round by round, so that what else the machine does hits all alike.
    pub(crate) fn measure(&mut self, figure: &Figure) -> anyhow::Result<FigureReport> {
        let mut report = FigureReport::new(figure.name, figure.what, figure.most_flows());
        let mut taking_part = Vec::new();
        for number in 0..self.gateways.len() {
            let name = self.gateways[number].0;
            eprintln!("{}: {name}: opening flows", figure.name);
            match self.prepare(number, figure)? {
                Readiness::Absent(reason) => drop(report.absent.insert(name, reason)),
                Readiness::Ready => {
                    if !figure.is_opening() {
                        self.open(number, figure, &mut report)?;
                    }
                    taking_part.push(number);
                }
            }
        }
        let mut floors = Vec::new();
        let mut samples: BTreeMap<usize, Vec<Sample>> = BTreeMap::new();
        for round in 1..=self.rounds {
            eprintln!("{}: round {round} of {}", figure.name, self.rounds);
            self.check_interrupt()?;
            self.generator.aim(0, false, figure.pattern)?;
            let floor = nanoseconds_each(&self.generator.blast(self.round)?);
            floors.push(floor);
            for number in &taking_part {
                self.check_interrupt()?;
                let sample = self.sample(*number, figure, round)?;
                samples.entry(*number).or_default().push(sample);
            }
        }
        report.floor = Spread::of(&floors);
        let program_times =
            if figure.is_opening() { BTreeMap::new() } else { self.program_times(figure, &taking_part)? };
        for (number, samples) in samples {
            let name = self.gateways[number].0;
            let mut gateway = GatewayReport::new(&samples, &floors, figure.is_opening());
            gateway.program = program_times.get(name).copied();
            report.gateways.insert(name, gateway);
        }
        report.null_program = program_times.get(FLOOR).copied();
        report.conclude();
        Ok(report)
    }

    fn prepare(&mut self, number: usize, figure: &Figure) -> anyhow::Result<Readiness> {
        let (_, gateway) = &mut self.gateways[number];
        let readiness = gateway.prepare(&self.topology.lanes[number + 1], figure)?;
        self.aim(number, figure)?;
        Ok(readiness)
    }

    fn aim(&mut self, number: usize, figure: &Figure) -> anyhow::Result<()> {
        let slot = u32::try_from(number + 1)?;
        self.generator.helpers.count(self.gateways[number].1.processes());
        self.generator.aim(slot, self.gateways[number].1.translates(), figure.pattern)
    }

    /// Opens the figure's flows at a rate the gateway can take, and checks what it makes of them.
    fn open(&mut self, number: usize, figure: &Figure, report: &mut FigureReport) -> anyhow::Result<()> {
        let name = self.gateways[number].0;
        let flows = figure.pattern.flows;
        let counts = self.generator.open_flows(flows, self.gateways[number].1.helping())?;
        if counts.wrong > 0 {
            report.faults.push(format!("{name}: {} frames arrived wrong", counts.wrong));
        }
        if counts.flows_seen < flows.into() {
            report.faults.push(format!("{name}: {} of {flows} flows opened", counts.flows_seen));
        }
        Ok(())
    }

    fn sample(&mut self, number: usize, figure: &Figure, round: u32) -> anyhow::Result<Sample> {
        if figure.is_opening() {
            // The preparation of the figure serves the first round.
            if round > 1 {
                self.prepare(number, figure)?;
            }
            self.aim(number, figure)?;
            return self.generator.feed(figure.most_flows(), self.gateways[number].1.helping());
        }
        self.aim(number, figure)?;
        self.generator.blast(self.round)
    }

    /// Nanoseconds a run of each lane's XDP program, in a pass of its own: the kernel's clock costs.
    fn program_times(
        &mut self,
        figure: &Figure,
        taking_part: &[usize],
    ) -> anyhow::Result<BTreeMap<&'static str, f64>> {
        // Closing the descriptor switches the statistics off again, however the bench ends.
        let _counting = enable_stats(Stats::RunTime).context("switch the statistics of eBPF programs on")?;
        let mut times = BTreeMap::new();
        let null = self.generator.program("discard")?;
        self.generator.aim(0, false, figure.pattern)?;
        times.extend(self.program_time(&null)?.map(|time| (FLOOR, time)));
        for number in taking_part {
            self.check_interrupt()?;
            let (name, gateway) = &self.gateways[*number];
            let lane = &self.topology.lanes[*number + 1];
            let Some(program) = gateway.program(lane, &mut self.generator)? else { continue };
            let name = *name;
            self.aim(*number, figure)?;
            times.extend(self.program_time(&program)?.map(|time| (name, time)));
        }
        Ok(times)
    }

    fn program_time(&mut self, program: &ProgramInfo) -> anyhow::Result<Option<f64>> {
        let before = RunTime::of(program)?;
        self.generator.blast(self.round / 2)?;
        let after = RunTime::of(program)?;
        let runs = after.runs - before.runs;
        Ok((runs > 0).then(|| quotient(after.nanoseconds - before.nanoseconds, runs)))
    }

    fn check_interrupt(&self) -> anyhow::Result<()> {
        ensure!(!self.interrupted.load(Ordering::Relaxed), "interrupted");
        Ok(())
    }
}

impl Contender {
    fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Nft => "nft",
            Self::Natgw => "natgw",
        }
    }
}

/// What the kernel has counted of a program, while its statistics are on.
struct RunTime {
    nanoseconds: u64,
    runs: u64,
}

impl RunTime {
    fn of(program: &ProgramInfo) -> anyhow::Result<Self> {
        let fd = program.fd().context("open a program")?;
        let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let value = |name: &str| -> anyhow::Result<u64> {
            for line in text.lines() {
                if let Some((key, value)) = line.split_once(':')
                    && key == name
                {
                    return value.trim().parse().with_context(|| format!("{path}: {line}"));
                }
            }
            bail!("{path} has no {name}")
        };
        Ok(Self { nanoseconds: value("run_time_ns")?, runs: value("run_cnt")? })
    }
}

/// Nanoseconds a frame.
pub(crate) fn nanoseconds_each(sample: &Sample) -> f64 {
    quotient(u64::try_from(sample.busy.as_nanos()).unwrap_or(u64::MAX), sample.frames)
}

/// One number by another, exact enough for anything that is measured.
#[expect(clippy::cast_precision_loss, reason = "52 bits of nanoseconds are 52 days")]
pub(crate) fn quotient(dividend: u64, divisor: u64) -> f64 {
    dividend as f64 / divisor as f64
}

/// The lane that drops everything at its entrance.
pub(crate) const FLOOR: &str = "floor";
